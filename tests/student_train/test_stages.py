"""Stages: what a recipe's stages become, that each trains what it says on the rows it says, and that the best weights
go from one to the next; also in a run that was killed, and on several ranks."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from shared.errors import RecipeError
from shared.text.tasks import TASKS
from student_train import curriculum, distill, journal
from student_train.curriculum import lessons_of
from student_train.loader import in_order
from student_train.recipe import Recipe
from student_train.sources import DumpSource, Source
from student_train.stages import stages_of
from student_train.students import build_student
from student_train.subsets import Split, is_held_out
from student_train.thawing import gradual, groups_of, thawed
from student_train.trainer import DistillationTrainer
from student_train.validation import Validation

TASK = "sequence-classification"
TRANSFORMER = {"kind": "transformer", "layers": 2, "hidden_size": 16, "heads": 2, "dropout": 0.1}
BILSTM = {"kind": "bilstm", "embedding_size": 8, "hidden_size": 8}
REPRESENTATION = {
    "name": "representation",
    "loss": [{"kind": "hidden", "teacher_layer": 2, "student_layer": -1}],
    "learning_rate": 1e-2,
}
LOGITS = {"name": "logits", "loss": [{"kind": "logits-mse"}]}
GOLD = {"name": "gold", "loss": [{"kind": "gold"}], "rows": "labelled"}
VALIDATION = {"share": 0.25, "every_steps": 2}


@pytest.fixture(scope="module")
def dump(make_dump: Callable[..., Path]) -> Path:
    """60 rows in shards of 16, about one in four without a gold label."""
    return make_dump(TASK, hidden="2")


def recipe(output: Path, dump: Path, *stages: dict[str, Any], **sections: Any) -> Recipe:
    training = {"max_steps": 3, "batch_size": 8, "learning_rate": 1e-2, "device": "cpu", "log_steps": 1}
    training |= sections.pop("training", {})
    student = sections.pop("student", BILSTM)
    values = {"output": output, "dump": dump, "student": student, "stage": stages, "training": training}
    return Recipe.model_validate(values | sections)


def student_of(source: Source, spec: dict[str, Any] = TRANSFORMER, task: str = TASK) -> Any:
    made = recipe(Path("out"), Path("dump"), LOGITS, student=spec)
    torch.manual_seed(0)
    return build_student(
        made.student,
        auto_class=TASKS[task].auto_class,
        vocab_size=source.vocabulary,
        tokenizer_size=len(source.tokenizer),
        label_names=source.label_names,
        pad_token_id=source.tokenizer.pad_token_id or 0,
        max_length=source.max_length,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(transformers.AutoModelForSequenceClassification.from_pretrained(folder).state_dict())


def results(made: Recipe) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = json.loads((made.output / "stages.json").read_text())
    return told


def rows_of(source: Source) -> list[int]:
    return sorted(row for group in range(len(source.group_rows)) for row in source.load(group, []).rows.tolist())


# ---------------------------------------------------------------- what a recipe's stages become


def test_a_stage_has_what_training_says_but_for_what_it_says_itself(dump: Path) -> None:
    own = {**LOGITS, "epochs": 2, "learning_rate": 5e-3, "batch_tokens": 100}
    made = recipe(Path("out"), dump, own, {**GOLD, "freeze_embeddings": True}, training={"weight_decay": 0.5})
    first, second = stages_of(made, student_of(DumpSource(dump)))
    assert (first.training.epochs, first.training.max_steps) == (2, None)
    assert (first.training.batch_tokens, first.training.batch_size) == (100, None)
    assert (first.training.learning_rate, first.training.weight_decay) == (5e-3, 0.5)
    assert (second.training.epochs, second.training.max_steps) == (None, 3)
    assert (second.training.batch_size, second.training.learning_rate) == (8, 1e-2)
    assert [stage.training.freeze_embeddings for stage in (first, second)] == [False, True]
    assert [stage.training.seed for stage in (first, second)] == [0, 1]


def test_a_recipe_that_is_written_down_says_no_more_than_it_was_told(dump: Path) -> None:
    made = recipe(Path("out"), dump, {**LOGITS, "learning_rate": 5e-3})
    told = json.loads(journal.recipe_json(made))
    assert "weight_decay" not in told["stage"][0]
    assert told["stage"][0]["learning_rate"] == 5e-3
    assert Recipe.model_validate(told) == made


def test_gradual_unfreezing_is_a_stage_for_each_group_from_the_top(dump: Path) -> None:
    made = recipe(Path("out"), dump, REPRESENTATION, {**LOGITS, "unfreeze": "gradual"})
    stages = stages_of(made, student_of(DumpSource(dump)))
    assert [(stage.name, stage.trainable) for stage in stages] == [
        ("representation", "all"),
        ("logits.1", "head"),
        ("logits.2", 1),
        ("logits.3", 2),
        ("logits.4", 3),
    ]
    assert [stage.where for stage in stages] == ["stage.0."] + 4 * ["stage.1."]


def test_a_stage_that_does_not_train_the_head_is_scored_by_its_loss(dump: Path) -> None:
    validation = {**VALIDATION, "metric": "accuracy", "patience": 3}
    patient = {**GOLD, "metric": "macro_f1", "patience": 7}
    made = recipe(Path("out"), dump, REPRESENTATION, LOGITS, patient, validation=validation)
    stages = stages_of(made, student_of(DumpSource(dump)))
    assert [(stage.metric, stage.patience) for stage in stages] == [("loss", 3), ("accuracy", 3), ("macro_f1", 7)]


@pytest.mark.parametrize(
    ("stages", "sections", "message"),
    [
        ([], {}, "the key 'loss' is missing"),
        ([LOGITS], {"loss": [{"kind": "kl"}]}, r"give either \[\[loss\]\] or \[\[stage\]\]"),
        ([LOGITS, LOGITS], {}, r"stage\.1\.name = 'logits': another stage has this name"),
        ([{**LOGITS, "trainable": "tail"}], {}, 'give "all", "head", or how many groups'),
        ([{**LOGITS, "trainable": 0}], {}, 'give "all", "head", or how many groups'),
        ([{**LOGITS, "trainable": 1, "unfreeze": "gradual"}], {}, "give either trainable or unfreeze"),
        ([{**LOGITS, "epochs": 1, "max_steps": 1}], {}, "give either epochs or max_steps"),
        ([{**LOGITS, "name": "a/b"}], {}, "should match pattern"),
        ([{**LOGITS, "metric": "accuracy"}], {}, r"stage\.0: metric and patience need a section \[validation\]"),
        ([LOGITS], {"validation": {"every": 1, "every_steps": 3}}, "give either every"),
        ([LOGITS], {"training": {"max_steps": None}}, r"stage\.0: give either epochs or max_steps, here or in"),
    ],
)
def test_a_contradiction_in_a_recipe_is_refused(stages: Any, sections: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(Path("out"), Path("dump"), *stages, **sections)


# ---------------------------------------------------------------- thawing


@pytest.mark.parametrize(
    ("task", "spec", "head"),
    [
        (TASK, TRANSFORMER, {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"}),
        (TASK, BILSTM, {"classifier.weight", "classifier.bias"}),
        (TASK, {**TRANSFORMER, "model_type": "distilbert"}, {"pre_classifier.weight", "classifier.weight"}),
        ("causal-lm", {**TRANSFORMER, "tie_embeddings": False}, {"lm_head.weight", "model.norm.weight"}),
        ("causal-lm", {**TRANSFORMER, "tie_embeddings": True}, {"model.norm.weight"}),
    ],
    ids=["bert", "bilstm", "distilbert", "llama", "tied llama"],
)
def test_groups_are_thawed_from_the_top(task: str, spec: dict[str, Any], head: set[str], dump: Path) -> None:
    student = student_of(DumpSource(dump), spec, task)
    names = {id(value): name for name, value in student.named_parameters()}
    groups = [{names[id(value)] for value in group} for group in groups_of(student)]
    assert head <= groups[-1]
    assert set().union(*groups) == set(names.values())
    assert sum(map(len, groups)) == len(names)
    assert {names[id(value)] for value in student.get_input_embeddings().parameters()} <= groups[0]
    for count, trainable in enumerate(gradual(student, freeze_embeddings=False)):
        before = {name: value.requires_grad for name, value in student.named_parameters()}
        with thawed(student, trainable, freeze_embeddings=False):
            now = {name for name, value in student.named_parameters() if value.requires_grad}
        expected = set().union(*groups[len(groups) - 1 - count :])
        assert now == {name for name in expected if before[name]}
        assert before == {name: value.requires_grad for name, value in student.named_parameters()}


def test_frozen_embeddings_are_never_thawed(dump: Path) -> None:
    """The last step of a BiLSTM would thaw the embeddings alone, and so there is none."""
    student = student_of(DumpSource(dump), BILSTM)
    assert gradual(student, freeze_embeddings=True) == ["head", 1]
    with thawed(student, "all", freeze_embeddings=True):
        assert not student.get_input_embeddings().weight.requires_grad
        assert student.classifier.weight.requires_grad


# ---------------------------------------------------------------- rows


def test_each_row_is_trained_on_or_held_out_and_of_one_kind(dump: Path) -> None:
    source = DumpSource(dump)
    split = Split(source, 0.25, seed=3)
    labels = {
        row: label
        for group in range(len(source.group_rows))
        for row, label in zip(source.load(group, []).rows.tolist(), source.load(group, []).labels.tolist(), strict=True)
    }
    held_out = {row for row in labels if is_held_out(np.asarray([row]), 0.25, 3)[0]}
    assert 5 < len(held_out) < 25
    for kind, fits in (("all", lambda _: True), ("labelled", lambda x: x != -100), ("unlabelled", lambda x: x == -100)):
        of_kind = {row for row, label in labels.items() if fits(label)}
        assert set(rows_of(split.to_train(kind))) == of_kind - held_out  # type: ignore[arg-type]
        assert set(rows_of(split.held_out(kind))) == of_kind & held_out  # type: ignore[arg-type]
    parts = [rows_of(split.held_out("all", rank, 3)) for rank in range(3)]
    assert sorted(sum(parts, [])) == sorted(held_out)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_rows_that_are_selected_keep_their_signals(dump: Path) -> None:
    source = DumpSource(dump)
    columns = source.columns_of(source.signals)
    taken = Split(source, 0.25, seed=3).to_train("labelled")
    for group, (number, kept) in enumerate(zip(taken.group_rows, taken._kept, strict=True)):  # type: ignore[attr-defined]
        whole, part = source.load(taken._groups[group], columns), taken.load(group, columns)  # type: ignore[attr-defined]
        assert len(part.rows) == number
        tokens = whole.token_offsets
        for place, row in enumerate(kept.tolist()):
            ours, theirs = slice(*part.token_offsets[place : place + 2]), slice(*tokens[row : row + 2])
            for name in source.vector_columns & set(columns):
                assert np.array_equal(part.columns[name][ours], whole.columns[name][theirs])  # type: ignore[arg-type]
    sizes = taken.sizes(columns)
    assert sizes.rows.tolist() == list(taken.group_rows)
    assert (sizes.tokens >= sizes.rows).all()


@pytest.mark.parametrize("task", ["token-classification", "causal-lm", "masked-lm", TASK])
def test_a_dump_tells_labelled_rows_from_its_smallest_columns(task: str, make_dump: Callable[..., Path]) -> None:
    source = DumpSource(make_dump(task))
    for group in range(len(source.group_rows)):
        rows, is_labelled = source.gold(group)
        expected_rows, expected = Source.gold(source, group)
        assert rows.tolist() == expected_rows.tolist()
        assert is_labelled.tolist() == expected.tolist()
