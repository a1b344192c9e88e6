"""A finished student of the encoder or of a masked language model is what students of other tasks start from."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from shared.text.tasks import TASKS
from student_train import distill
from student_train.students.unfreezing import groups_of
from tests.student_train.runs import BILSTM, GOLD, HIDDEN, KL, TRANSFORMER, recipe

CLASSIFICATION, TAGGING, QUESTIONS = "sequence-classification", "token-classification", "question-answering"
ROBERTA, DISTILBERT = ({**TRANSFORMER, "model_type": kind} for kind in ("roberta", "distilbert"))


@pytest.mark.parametrize(
    ("student", "source", "targets"),
    [
        (TRANSFORMER, "encoder", (CLASSIFICATION, TAGGING, QUESTIONS)),
        (TRANSFORMER, "masked-lm", (CLASSIFICATION, TAGGING, QUESTIONS)),
        (ROBERTA, "masked-lm", (CLASSIFICATION,)),
        (DISTILBERT, "masked-lm", (QUESTIONS,)),
        (BILSTM, "encoder", (CLASSIFICATION, TAGGING)),
    ],
    ids=["bert encoder", "bert masked-lm", "roberta masked-lm", "distilbert masked-lm", "bilstm encoder"],
)
def test_a_finished_student_starts_one_of_another_task_with_its_own_weights(
    student: dict[str, Any],
    source: str,
    targets: tuple[str, ...],
    dumps: dict[str, Path],
    corpora: dict[str, Path],
    tmp_path: Path,
) -> None:
    loss = KL if source == "masked-lm" else HIDDEN
    start = distill.run(recipe(tmp_path / "start", student, loss, dump=dumps[source]), resume=False).output
    for target in targets:
        data = {"task": target, "train": [str(corpora[target])], "max_length": 64}
        # The first learns from a teacher of the target task, the others from gold labels.
        loss, rows = (KL, {"dump": dumps[target]}) if target == targets[0] else (GOLD, {"data": data})
        spec = {"kind": "pretrained", "path": str(start)}
        made = recipe(tmp_path / target, spec, loss, training={"learning_rate": 1e-9, "max_steps": 1}, **rows)
        tuned = getattr(transformers, TASKS[target].auto_class).from_pretrained(distill.run(made, resume=False).output)
        began = transformers.AutoModel.from_pretrained(start)
        for own, theirs in zip(groups_of(tuned)[:-1], groups_of(began)[:-1], strict=True):
            for value, other in zip(own, theirs, strict=True):
                torch.testing.assert_close(value, other, rtol=0, atol=1e-6)
