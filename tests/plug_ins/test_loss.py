"""A loss from outside, through the table alone: its keys, its needs, a projection of its own, a run and its scores."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from shared.dump.codecs import DenseTargets
from shared.errors import RecipeError
from shared.text.columns import ScoredColumns
from student_train import distill
from student_train.data.sources import Source
from student_train.forward.outputs import BatchTargets, Outputs
from student_train.losses.base import Loss
from student_train.losses.specs import LOSSES
from student_train.recipe.recipe import read_recipe
from student_train.scoring import evaluate
from tests.student_train.runs import GOLD, KL, TRANSFORMER, recipe

TASK = "sequence-classification"


class MappedLogits(Loss):
    """The student's logits, taken through a square matrix that is learnt along, against the teacher's."""

    values: ClassVar[list[float]] = []
    projections: ClassVar[list[Tensor]] = []

    kind: Literal["mapped-logits"] = "mapped-logits"
    power: int = Field(default=2, ge=1)

    @property
    def label(self) -> str:
        return f"{self.kind}.{self.power}"

    def check(self, source: Source) -> None:
        super().check(source)
        if not source.has_dense_logits:
            raise RecipeError(f"the loss {self.kind!r} needs all logits, and {source.name} keeps some of them.")

    def make_projection(self, source: Source, student: PreTrainedModel, where: str) -> nn.Module:
        made = nn.Linear(student.config.num_labels, student.config.num_labels, bias=False)
        nn.init.eye_(made.weight)
        return made

    def value(self, outputs: Outputs, targets: BatchTargets, projection: nn.Module | None) -> Tensor:
        assert isinstance(targets.distributions, DenseTargets)
        assert projection is not None
        value = (projection(outputs.logits_NV) - targets.distributions.logits_NV).abs().pow(self.power).mean()
        self.values.append(float(value.detach()))
        self.projections.append(next(projection.parameters()).detach().clone())
        return value


class Confidence(Loss):
    """Squared probability that the student leaves to all classes but the gold one; position by position."""

    by_position: ClassVar[bool] = True
    has_teacher: ClassVar[bool] = False

    kind: Literal["confidence"] = "confidence"

    @property
    def signal(self) -> None:
        return None

    def counted(self, labels_N: Tensor) -> Tensor:
        return (labels_N >= 0).sum()

    def value(self, outputs: Outputs, targets: BatchTargets, projection: nn.Module | None) -> Tensor:
        assert outputs.logits_NV is not None
        is_labelled_N = targets.labels_N >= 0
        probs_NV = outputs.logits_NV[is_labelled_N].softmax(-1)
        right_N = probs_NV.gather(1, targets.labels_N[is_labelled_N, None]).squeeze(1)
        return (1 - right_N).square().sum() / max(len(right_N), 1)


class Variety(Loss):
    """Negative entropy of the student's mean distribution over a batch, for which all of its positions are needed."""

    needs_whole_logits: ClassVar[bool] = True
    has_teacher: ClassVar[bool] = False
    positions: ClassVar[list[int]] = []

    kind: Literal["variety"] = "variety"

    @property
    def signal(self) -> None:
        return None

    def value(self, outputs: Outputs, targets: BatchTargets, projection: nn.Module | None) -> Tensor:
        assert outputs.logits_NV is not None
        self.positions.append(len(outputs.logits_NV))
        mean_V = outputs.logits_NV.softmax(-1).mean(0)
        return (mean_V * mean_V.log()).sum()


@pytest.fixture(autouse=True)
def _plugged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "mapped-logits", MappedLogits)
    monkeypatch.setitem(LOSSES, "confidence", Confidence)
    monkeypatch.setitem(LOSSES, "variety", Variety)
    monkeypatch.setattr(evaluate, "LATENCY_SECONDS", 0.0)
    for seen in (MappedLogits.values, MappedLogits.projections, Variety.positions):
        seen.clear()


def corpus(write_corpus: Any, toy_rows: Any, folder: Path, task: str = TASK) -> Path:
    found: Path = write_corpus(folder / f"{task}.jsonl", toy_rows(task, 32))
    return found


def test_a_student_learns_by_a_loss_that_was_plugged_in(
    make_dump: Callable[..., Path], write_corpus: Any, toy_rows: Any, tmp_path: Path
) -> None:
    """Its projection learns along and is dropped; other losses stand beside it, and stages are scored by it."""
    data = corpus(write_corpus, toy_rows, tmp_path)
    file = tmp_path / "recipe.toml"
    file.write_text(
        f"""
        output = "{tmp_path / "student"}"
        dump = "{make_dump(TASK, data=data)}"
        [student]
        kind = "transformer"
        layers = 1
        hidden_size = 16
        heads = 2
        dropout = 0.0
        [[loss]]
        kind = "mapped-logits"
        power = 1
        [[loss]]
        kind = "gold"
        weight = 0.1
        [training]
        max_steps = 12
        batch_size = 32
        learning_rate = 0.01
        scheduler = "constant_with_warmup"
        device = "cpu"
        [validation]
        share = 0.2
        every_steps = 6
        """
    )
    result = distill.run(read_recipe(file, []), resume=False)
    assert MappedLogits.values[-1] < 0.8 * MappedLogits.values[0]
    first, *_, last = MappedLogits.projections
    assert torch.equal(first, torch.eye(3))
    assert not torch.equal(last, first)
    assert not [name for name in load_file(result.output / "model.safetensors") if "projection" in name]
    report = evaluate.evaluate(result.output, [str(data)], ScoredColumns(), device="cpu")
    assert 0 <= report.metrics["accuracy"] <= 1


def test_a_loss_by_position_gets_a_vocabularys_logits_in_slices(
    make_dump: Callable[..., Path], write_corpus: Any, toy_rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = corpus(write_corpus, toy_rows, tmp_path, "causal-lm")
    sizes: list[int] = []
    value = Confidence.value
    monkeypatch.setattr(
        Confidence,
        "value",
        lambda *given: sizes.append(len(given[1].logits_NV)) or value(*given),  # type: ignore[func-returns-value]
    )
    monkeypatch.setattr("student_train.forward.sliced_logits.SLICE_VALUES", {"cpu": 1})
    made = recipe(tmp_path / "student", TRANSFORMER, {"kind": "confidence"}, dump=make_dump("causal-lm", data=data))
    result = distill.run(made, resume=False)
    assert len(sizes) > result.steps
    assert max(sizes) == 64
    assert evaluate.evaluate(result.output, [str(data)], ScoredColumns(), device="cpu").metrics["perplexity"] > 1


def test_a_loss_over_a_whole_batch_gets_a_vocabularys_logits_at_once(
    make_dump: Callable[..., Path], write_corpus: Any, toy_rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so do the losses beside it, in training as in validation."""
    dump = make_dump("causal-lm", data=corpus(write_corpus, toy_rows, tmp_path, "causal-lm"))
    monkeypatch.setattr("student_train.forward.sliced_logits.SLICE_VALUES", {"cpu": 1})
    losses = {"kind": "variety"}, KL
    sections = {"dump": dump, "validation": {"share": 0.3, "every_steps": 2}}
    distill.run(recipe(tmp_path / "student", TRANSFORMER, *losses, **sections), resume=False)
    assert len(Variety.positions) > 3
    assert max(Variety.positions) > 64


def test_its_keys_and_needs_are_checked_like_any_others(
    make_dump: Callable[..., Path], write_corpus: Any, toy_rows: Any, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(
        f'output = "{tmp_path / "student"}"\ndump = "x"\n[student]\nkind = "bilstm"\nembedding_size = 8\n'
        'hidden_size = 8\n[[loss]]\nkind = "mapped-logits"\npowr = 1\n[training]\nmax_steps = 1\n'
    )
    with pytest.raises(RecipeError, match=r"unknown key 'loss\.0\.powr'.*valid here: kind, power, weight"):
        read_recipe(file, [])
    file.write_text(file.read_text().replace("powr", "power").replace('"mapped-logits"', '"maped-logits"'))
    with pytest.raises(RecipeError, match=r"loss\.0\.kind = 'maped-logits': the valid ones are .*'mapped-logits'"):
        read_recipe(file, [])
    data = corpus(write_corpus, toy_rows, tmp_path)
    made = recipe(tmp_path / "student", TRANSFORMER, {"kind": "mapped-logits"}, dump=make_dump("encoder", data=data))
    with pytest.raises(RecipeError, match=r"the loss 'mapped-logits\.2' needs the signal 'distribution'"):
        distill.run(made, resume=False)


def test_a_run_has_a_teacher_where_one_of_its_losses_says_so(tmp_path: Path) -> None:
    def has_teacher(*losses: dict[str, Any]) -> bool:
        return any(loss.has_teacher for loss in recipe(tmp_path, TRANSFORMER, *losses, dump="x").loss)

    assert not has_teacher(GOLD, {"kind": "confidence"})
    assert has_teacher(GOLD, {"kind": "mapped-logits"})
