"""The model card of a student: what it was trained on, with which losses, and its scores."""

from pathlib import Path

from shared.models.sentence_folder import MODULES
from shared.storage.files import write_text_atomically
from student_train.chains.transitions import FILE_NAME as TRANSITIONS
from student_train.data.sources import Source
from student_train.losses.base import Loss
from student_train.recipe.recipe import Recipe
from student_train.scoring.report import Report


def write_card(folder: Path, recipe: Recipe, source: Source, steps: int, report: Report | None) -> None:
    """Write the model card, README.md, into the student's folder."""
    trained_on = "a teacher's recorded outputs (a Lectern dump)" if recipe.dump else "gold labels"
    stages = {"": recipe.loss} if recipe.loss else {f"{stage.name}: ": stage.loss for stage in recipe.stage}
    losses = "; ".join(name + ", ".join(_with_weight(spec) for spec in specs) for name, specs in stages.items())
    training = recipe.training
    batch = f"{training.batch_size} rows" if training.batch_size else f"about {training.batch_tokens:,} tokens"
    scores = "".join(f"| {name} | {value} |\n" for name, value in report.table()) if report else "| not scored | |\n"
    write_text_atomically(
        folder / "README.md",
        f"""---
library_name: {"sentence-transformers" if _has_embeddings(folder) else "transformers"}
tags: [knowledge-distillation, lectern, {source.task.name}]
---
# {recipe.output.name}

Trained by Lectern on {trained_on}: {sum(source.group_rows):,} rows, {steps:,} steps of
{batch}, losses {losses}. The whole recipe is in `recipe.json`.

| | |
|---|---|
{scores}{_about_transitions(folder)}{_about_embeddings(folder)}""",
    )


def _about_transitions(folder: Path) -> str:
    """Return how to use the model's transitions between tags, if it has some."""
    if not (folder / TRANSITIONS).exists():
        return ""
    return f"""
The tagger is a CRF. A word's logits, at its first token, are the emissions; `{TRANSITIONS}` holds the transitions:
`between[i][j]` is the score of label j after label i, `first` and `last` are those of a row's first and last word.
Viterbi decoding takes the labels with the highest sum of log-softmax values and transitions, as
`distill eval {folder.parent.name}` does; without it, each word's most probable label can be taken, at some loss.
"""


def _has_embeddings(folder: Path) -> bool:
    return (folder / MODULES).exists()


def _about_embeddings(folder: Path) -> str:
    """Return how to get embeddings from the model, if it makes some."""
    if not _has_embeddings(folder):
        return ""
    has_code = any(folder.glob("*.py"))
    option = ", trust_remote_code=True" if has_code else ""
    why = " (`trust_remote_code`, because the folder brings the model's one file of code)" if has_code else ""
    return f"""
Embeddings of sentences{why}:

```python
from sentence_transformers import SentenceTransformer

SentenceTransformer("path/of/this/folder"{option}).encode(["One text.", "Another one."])
```

`AutoModel` loads the folder too, and gives the vectors of the tokens.
"""


def _with_weight(spec: Loss) -> str:
    return f"{spec.label} x {spec.weight:g}"
