"""Students that start from their teacher's weights, from the dump to the saved folder; in a killed run too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from shared.errors import LecternError, RecipeError
from student_train import distill
from student_train.data.needs import needs_of
from student_train.data.sources import DumpSource
from student_train.recipe.recipe import Recipe
from student_train.students import build_student
from student_train.training.trainer import DistillationTrainer
from tests.student_train.runs import KL, are_equal, recipe, run_until_killed, weights

TASK = "sequence-classification"
WHOLE = {"kind": "transformer", "layers": 2, "hidden_size": 32, "heads": 4, "intermediate_size": 64}
SMALL = {"kind": "transformer", "layers": 1, "hidden_size": 16, "heads": 2}
LAYERS = {**WHOLE, "layers": 1, "start": {"kind": "layers", "numbers": [2]}}
EXTRACT = {**SMALL, "start": {"kind": "extract", "by": "importance"}}
AT_RANDOM = {**SMALL, "start": {"kind": "extract", "by": "random"}}
FACTORISE = {**WHOLE, "start": {"kind": "factorise", "rank": 6}}
SQUEEZE = {**SMALL, "start": {"kind": "squeeze", "by": "importance"}}
STARTS = {"layers": LAYERS, "extract": EXTRACT, "at random": AT_RANDOM, "factorise": FACTORISE, "squeeze": SQUEEZE}


@pytest.fixture(scope="module")
def dump(make_dump: Callable[..., Path]) -> Path:
    return make_dump(TASK, hidden="2", teacher_weights="all", importance=16)


@pytest.mark.parametrize("student", STARTS.values(), ids=STARTS)
def test_a_student_starts_learns_and_is_saved_as_a_plain_model(
    student: dict[str, Any], dump: Path, tmp_path: Path
) -> None:
    made = recipe(tmp_path / "student", student, KL, dump=dump, training={"max_steps": 8})
    assert Recipe.model_validate_json(made.model_dump_json()) == made
    parameters = distill.check(made)
    result = distill.run(made, resume=False)
    model = AutoModelForSequenceClassification.from_pretrained(result.output)
    assert type(model).__name__ == "BertForSequenceClassification"
    assert model.num_parameters() == parameters
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (student["layers"], student["hidden_size"])
    source = DumpSource(dump)
    torch.manual_seed(0)
    beginning = build_student(made.student, needs_of(made.student, source))
    path = "bert.encoder.layer.0.output.dense.weight"
    began = beginning.get_parameter(path) if path in dict(beginning.named_parameters()) else _value(beginning, path)
    moved = (model.get_parameter(path) - began).abs()
    assert 0 < moved.max() < 0.1, "it has learnt, and not from random weights"


def _value(model: torch.nn.Module, path: str) -> torch.Tensor:
    module, _, name = path.rpartition(".")
    value: torch.Tensor = getattr(model.get_submodule(module), name)
    return value


def test_a_decoder_is_extracted_from_a_dump_too(make_dump: Callable[..., Path], tmp_path: Path) -> None:
    dump = make_dump("causal-lm", teacher_weights="all", importance=16)
    result = distill.run(recipe(tmp_path / "student", EXTRACT, KL, dump=dump), resume=False)
    model = AutoModelForCausalLM.from_pretrained(result.output)
    assert (model.config.model_type, model.config.head_dim, model.config.hidden_size) == ("llama", 8, 16)


# ---------------------------------------------------------------- stages, checkpoints and kills

REPRESENTATION = {"name": "hidden", "loss": [{"kind": "hidden", "teacher_layer": 2, "student_layer": -1}]}
LOGITS = {"name": "logits", "loss": [{"kind": "kl"}], "unfreeze": "gradual", "max_steps": 4}
GOLD = {"name": "gold", "loss": [{"kind": "gold"}], "rows": "labelled", "freeze_embeddings": True}


def staged(output: Path, student: dict[str, Any], dump: Path) -> Recipe:
    return recipe(
        output,
        student,
        stage=[REPRESENTATION, LOGITS, GOLD],
        dump=dump,
        training={"save_steps": 2, "learning_rate": 1e-2, "max_steps": 3},
        validation={"share": 0.25, "every_steps": 2},
    )


@pytest.fixture(scope="module", params=["factorise", "squeeze"])
def undisturbed(request: pytest.FixtureRequest, dump: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    made = staged(tmp_path_factory.mktemp("staged") / "undisturbed", STARTS[request.param], dump)
    distill.run(made, resume=False)
    return made


@pytest.mark.parametrize(
    ("owner", "call", "at"),
    [
        (DistillationTrainer, "compute_loss", 3),  # after the first checkpoint
        (DistillationTrainer, "compute_loss", 9),  # in a stage that unfreezes
        (distill, "_save", 1),  # after all stages, when it is folded
    ],
    ids=["first stage", "unfreezing", "saving"],
)
def test_a_killed_run_goes_on_to_the_very_weights_of_an_undisturbed_one(
    owner: Any, call: str, at: int, undisturbed: Recipe, dump: Path, tmp_path: Path
) -> None:
    killed = undisturbed.model_copy(update={"output": tmp_path / "killed"})
    run_until_killed(killed, owner, call, at)
    distill.run(killed, resume=True)
    assert are_equal(weights(undisturbed.output), weights(killed.output))


def test_the_weights_around_which_a_student_is_trained_are_in_no_checkpoint(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    original = DistillationTrainer._save_checkpoint

    def noting(trainer: DistillationTrainer, model: Any, trial: Any) -> None:
        original(trainer, model, trial)
        names.extend(model.state_dict())

    monkeypatch.setattr(DistillationTrainer, "_save_checkpoint", noting)
    made = recipe(tmp_path / "student", SQUEEZE, KL, dump=dump, training={"save_steps": 2})
    distill.run(made, resume=False)
    assert any(name.endswith("original1") for name in names)
    assert not any("weight_PQ" in name for name in names)
    saved = json.loads((made.output / "config.json").read_text())
    assert AutoConfig.for_model(**saved).hidden_size == 16


# ---------------------------------------------------------------- what is refused


def test_a_source_without_what_it_starts_from_is_refused(
    make_dump: Callable[..., Path], make_teacher: Callable[..., Path], dump: Path, tmp_path: Path
) -> None:
    data = {"task": TASK, "train": [str(tmp_path / "rows.jsonl")], "tokenizer": str(make_teacher(TASK))}
    (tmp_path / "rows.jsonl").write_text(
        '{"text": "the fox", "label": "neutral"}\n{"text": "a dog", "label": "positive"}'
    )
    only_weights = make_dump(TASK, teacher_weights="all")
    for source, student, message in (
        ({"dump": make_dump(TASK)}, AT_RANDOM, "--teacher-weights"),
        ({"dump": only_weights}, EXTRACT, "--importance"),
        ({"data": data}, AT_RANDOM, "--teacher-weights"),
    ):
        made = recipe(tmp_path / "student", student, KL if "dump" in source else {"kind": "gold"}, **source)
        with pytest.raises(LecternError, match=message):
            distill.run(made, resume=False)
        assert not made.output.exists()


def test_layers_that_the_dump_does_not_have_are_refused_by_name(make_dump: Callable[..., Path], tmp_path: Path) -> None:
    one = make_dump(TASK, teacher_weights="2")
    made = recipe(tmp_path / "student", LAYERS, KL, dump=one)
    distill.run(made, resume=False)
    other = recipe(tmp_path / "other", {**LAYERS, "start": {"kind": "layers"}}, KL, dump=one)
    with pytest.raises(RecipeError, match=r"no bert\.encoder\.layer\.0\.\S+ of the teacher"):
        distill.run(other, resume=False)
