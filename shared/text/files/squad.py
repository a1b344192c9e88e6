"""SQuAD's own JSON: articles of paragraphs, each a context with questions and their answers (versions 1.1 and 2.0).

The file is read whole, because it is one JSON value (30 MB for SQuAD's training questions).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from shared.errors import CorpusError
from shared.text.examples import Row

_PARAGRAPHS, _QUESTIONS = "paragraphs", "qas"


def is_squad(articles: list[Any]) -> bool:
    """Whether the items of a list are articles and not rows."""
    return bool(articles) and isinstance(articles[0], Mapping) and _PARAGRAPHS in articles[0]


def rows_of_articles(file: str, articles: list[Any]) -> Iterator[tuple[str, Row]]:
    """Yield each question with its context and answers, and its place. Raises CorpusError where a part is missing."""
    for number, article in enumerate(articles):
        for at, paragraph in enumerate(_list(article, _PARAGRAPHS, f"{file}, article {number}")):
            where = f"{file}, article {number}, paragraph {at}"
            for index, asked in enumerate(_list(paragraph, _QUESTIONS, where)):
                if not isinstance(asked, Mapping):
                    raise CorpusError(f"{where}: expected an object for question {index}, found {str(asked)[:80]!r}.")
                yield (
                    f"{where}, question {asked.get('id', index)}",
                    {"title": article.get("title"), "context": paragraph.get("context"), **asked},
                )


def _list(value: Any, key: str, where: str) -> list[Any]:
    found = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(found, list):
        raise CorpusError(f"{where}: no list of {key!r}, which SQuAD's JSON has here; correct or drop it.")
    return found
