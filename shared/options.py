"""Options of more than one command line: which columns of the files hold what."""

from typing import Annotated

import typer

TextColumn = Annotated[str, typer.Option(help="Column of texts.")]
PairColumn = Annotated[str | None, typer.Option(help="Column of the second text, for pairs.")]
TokensColumn = Annotated[str, typer.Option(help="Column of word lists (token-classification).")]
QuestionColumn = Annotated[str, typer.Option(help="Column of questions (question-answering).")]
ContextColumn = Annotated[str, typer.Option(help="Column of the contexts that hold the answers.")]
ImpossibleColumn = Annotated[
    str, typer.Option(help="Column that is true for questions without an answer, where there is one.")
]
