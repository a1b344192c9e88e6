"""The loss 'mixup': what it compares, against plain float64; which draw is used when; runs, stages and refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from shared import Dump
from shared.dump.signals import MIXTURES, SignalKey
from shared.errors import DumpError, RecipeError
from student_train import distill
from student_train.data.batch import Batch
from student_train.data.batches import TrainingBatches, batch_of, in_order
from student_train.data.gather import Rows
from student_train.data.order import Order
from student_train.data.sources import DumpSource
from student_train.data.subsets import Split, first_rows, is_held_out
from student_train.forward.observe import outputs_of, targets_of
from student_train.losses.base import columns_of, outputs_for
from student_train.losses.mixup import MixupLoss
from student_train.losses.total import total_loss
from student_train.training.trainer import DistillationTrainer
from tests.student_train.runs import BILSTM, GOLD, KL, TRANSFORMER, are_equal, recipe, weights

TASK = "sequence-classification"
DRAWS = 3
MIXUP = {"kind": "mixup"}
COLUMNS = [f"{MIXTURES}.{name}" for name in ("partner", "lambda", "logits")]


@pytest.fixture(scope="module")
def dump(make_dump: Callable[..., Path], toy_rows: Any) -> Path:
    return make_dump(TASK, data=toy_rows(TASK, 40), mixup=DRAWS)


@pytest.fixture(scope="module")
def source(dump: Path) -> DumpSource:
    return DumpSource(dump)


@pytest.fixture
def student(make_teacher: Callable[..., Path]) -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(make_teacher(TASK, seed=3)).eval()


def batch_in(source: DumpSource, epoch: int = 0, group: int = 0) -> Batch:
    rows = Rows([source.load(group, COLUMNS)], source.per_column)
    return batch_of(rows, np.asarray([5, 0, 9, 15, 2]), source, epoch)


def loss_of(spec: MixupLoss, model: nn.Module, batch: Batch, source: DumpSource) -> Tensor:
    outputs = outputs_of(model, batch, source, wants_hidden=False, wants_mixed=True)
    return total_loss((spec,), outputs, targets_of(batch, source), nn.ModuleDict())[0]


# ---------------------------------------------------------------- its value


@pytest.mark.parametrize(
    "options",
    [{}, {"metric": "kl", "temperature": 2.0}, {"metric": "kl"}, {"target": "gold"}],
    ids=["mse", "kl at 2", "kl", "gold"],
)
@pytest.mark.parametrize("epoch", [0, 2])
def test_value_and_gradient_are_those_of_the_formula_in_float64(
    options: dict[str, Any], epoch: int, dump: Path, source: DumpSource, student: PreTrainedModel
) -> None:
    """Every mixture is made anew from the dump's frames, one row at a time."""
    spec, batch = MixupLoss(**options), batch_in(source, epoch)
    found = loss_of(spec, student, batch, source)
    student.zero_grad()
    found.backward()
    gradients = {name: value.grad.clone() for name, value in student.named_parameters() if value.grad is not None}
    assert any("word_embeddings" in name for name in gradients)

    frames = Dump(dump)
    ids = dict(frames.scan().select("row", "input_ids").collect().rows())
    gold = dict(frames.positions().select("row", "label").collect().rows())
    drawn = {(row, draw): rest for row, draw, *rest in frames.mixtures().collect().rows()}
    student = student.double()
    student.zero_grad()
    terms = []
    for row in batch.rows.tolist():
        partner, weight, teacher = drawn[row, epoch]
        length = max(len(ids[row]), len(ids[partner]))
        embed = student.get_input_embeddings()
        one, other = (embed(torch.tensor([ids[at] + [0] * (length - len(ids[at]))])) for at in (row, partner))
        mixed = weight * one + (1 - weight) * other
        logits = student(inputs_embeds=mixed, attention_mask=torch.ones(1, length)).logits[0]
        target = torch.tensor(teacher, dtype=torch.float64)
        if spec.target == "gold":
            if gold[row] is not None and gold[partner] is not None:
                log_probs = logits.log_softmax(0)
                terms.append(-weight * log_probs[gold[row]] - (1 - weight) * log_probs[gold[partner]])
        elif spec.metric == "kl":
            temperature = spec.temperature or 1
            p = (target / temperature).softmax(0)
            log_q = (logits / temperature).log_softmax(0)
            terms.append(temperature**2 * (p * (p.log() - log_q)).sum())
        else:
            terms.append((logits - target).square().mean())
    assert spec.count(batch) == len(terms) > 1
    wanted = torch.stack(terms).mean()
    wanted.backward()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-4)
    for name, value in student.named_parameters():
        if value.grad is not None:
            torch.testing.assert_close(gradients[name].double(), value.grad, rtol=1e-3, atol=1e-4)


def test_a_student_that_is_the_teacher_has_no_loss(
    make_dump: Callable[..., Path], make_teacher: Callable[..., Path], toy_rows: Any
) -> None:
    teacher = make_teacher(TASK, "roberta", max_position_embeddings=80)
    source = DumpSource(make_dump(TASK, teacher=teacher, data=toy_rows(TASK, 20), mixup=2))
    itself = AutoModelForSequenceClassification.from_pretrained(teacher).eval()
    batch = next(in_order(source, COLUMNS, 16))
    assert loss_of(MixupLoss(), itself, batch, source).item() < 1e-8
    assert loss_of(MixupLoss(metric="kl"), itself, batch, source).item() < 1e-6


def test_several_losses_share_one_forward_pass(source: DumpSource, student: PreTrainedModel) -> None:
    """One for the rows and one for the mixtures."""
    calls: list[set[str]] = []
    student.register_forward_pre_hook(lambda module, given, named: calls.append(set(named)), with_kwargs=True)
    losses = (MixupLoss(), MixupLoss(target="gold"), MixupLoss(metric="kl"))
    outputs = outputs_for(losses, student, batch_in(source), source)
    assert ["inputs_embeds" in names for names in calls] == [False, True]
    _, parts = total_loss(losses, outputs, targets_of(batch_in(source), source), nn.ModuleDict())
    assert list(parts) == ["mixup", "mixup.gold", "mixup#2"]


def test_a_batch_without_mixtures_trains_nothing(source: DumpSource, student: PreTrainedModel) -> None:
    """The partners of its rows are all held out."""
    batch = next(in_order(first_rows(source, 1), COLUMNS, 8))
    assert batch.mixed is None
    for spec in (MixupLoss(), MixupLoss(target="gold")):
        assert spec.count(batch) == 0
        value = loss_of(spec, student, batch, source)
        value.backward()
        assert value.item() == 0
    assert not any(parameter.grad is not None and parameter.grad.any() for parameter in student.parameters())


def test_a_batch_on_another_device_has_its_mixtures_there(source: DumpSource) -> None:
    batch = batch_in(source).to("meta")
    assert batch.mixed is not None
    assert {batch.mixed.rows.device.type, batch.mixed.inputs.first_ids.device.type} == {"meta"}


# ---------------------------------------------------------------- which draw, which partner


def test_each_epoch_has_another_draw(dump: Path, source: DumpSource) -> None:
    frame = Dump(dump).mixtures().collect()
    drawn = {(row, draw): (partner, weight) for row, draw, partner, weight, _ in frame.rows()}
    ids = dict(Dump(dump).scan().select("row", "input_ids").collect().rows())
    for epoch in range(2 * DRAWS):
        batch = batch_in(source, epoch, group=1)
        assert batch.mixed is not None
        assert batch.mixed.rows.tolist() == list(range(5))
        assert batch.mixed.draws.tolist() == [epoch % DRAWS] * 5
        for at, row in enumerate(batch.rows.tolist()):
            partner, weight = drawn[row, epoch % DRAWS]
            assert batch.mixed.inputs.weights[at].item() == weight
            second = batch.mixed.inputs.second_ids[at].tolist()
            assert second[: len(ids[partner])] == ids[partner]
            assert not any(second[len(ids[partner]) :])


def test_batches_of_an_epoch_have_its_draw_wherever_training_begins(source: DumpSource) -> None:
    order = Order(source.sizes(COLUMNS), seed=1, batch_size=8)
    whole = iter(TrainingBatches(source, COLUMNS, order))
    batches = [next(whole) for _ in range(17)]
    for number, batch in enumerate(batches):
        assert batch.mixed is not None
        assert set(batch.mixed.draws.tolist()) == {number // 5 % DRAWS}
    resumed = next(iter(TrainingBatches(source, COLUMNS, order, first_batch=13)))
    assert resumed.mixed is not None
    assert batches[13].mixed is not None
    assert torch.equal(resumed.mixed.inputs.second_ids, batches[13].mixed.inputs.second_ids)
    assert torch.equal(resumed.mixed.draws, batches[13].mixed.draws)


def test_rows_that_are_held_out_are_nobodys_partners(source: DumpSource) -> None:
    """Such a draw is passed over; a row whose draws are all passed over is not mixed."""
    rows = Split(source, 0.5, seed=0).to_train("all")
    partners = {row: partners for row, _, partners in _stored(source)}
    unmixed = 0
    for epoch in range(DRAWS):
        for group in range(len(rows.group_rows)):
            loaded = Rows([rows.load(group, COLUMNS)], rows.per_column)
            batch = batch_of(loaded, np.arange(rows.group_rows[group]), rows, epoch)
            assert batch.mixed is not None
            chosen = dict(zip(batch.mixed.rows.tolist(), batch.mixed.draws.tolist(), strict=True))
            for at, row in enumerate(batch.rows.tolist()):
                turns = [(epoch + turn) % DRAWS for turn in range(DRAWS)]
                held_out = is_held_out(np.asarray(partners[row]), 0.5, 0)
                able = [turn for turn in turns if not held_out[turn]]
                assert chosen.get(at) == (able[0] if able else None)
                unmixed += not able
    assert unmixed > 0


def test_held_out_rows_are_mixed_alike_however_many_ranks_score_them(source: DumpSource) -> None:
    split = Split(source, 0.6, seed=0)

    def mixtures(rank: int, ranks: int) -> dict[int, tuple[int, list[int]]]:
        rows = split.held_out("all", rank, ranks)
        found = {}
        for batch in in_order(rows, COLUMNS, 4):
            if batch.mixed is None:
                continue
            numbers = batch.rows[batch.mixed.rows].tolist()
            for number, draw, ids in zip(
                numbers, batch.mixed.draws.tolist(), batch.mixed.inputs.second_ids.tolist(), strict=True
            ):
                found[number] = draw, [index for index in ids if index]
        return found

    alone = mixtures(0, 1)
    assert len(alone) > 15
    assert mixtures(0, 3) | mixtures(1, 3) | mixtures(2, 3) == alone


def _stored(source: DumpSource) -> list[tuple[int, int, list[int]]]:
    assert source.mixtures is not None
    found = []
    for group in range(len(source.group_rows)):
        loaded = source.load(group, COLUMNS)
        partners = source.mixtures.partners({COLUMNS[0]: loaded.columns[COLUMNS[0]].values})  # type: ignore[union-attr]
        found += [(row, group, each) for row, each in zip(loaded.rows.tolist(), partners.tolist(), strict=True)]
    return found


def test_columns_of_mixtures_are_read_only_for_their_loss(source: DumpSource) -> None:
    assert columns_of((MixupLoss(),), source) == COLUMNS
    batch = next(in_order(source, source.columns_of([SignalKey("distribution")]), 8))
    assert batch.mixed is None
    assert targets_of(batch, source).mixed is None


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("student", [TRANSFORMER, BILSTM], ids=["transformer", "bilstm"])
def test_a_student_learns_from_mixtures(student: dict[str, Any], dump: Path, tmp_path: Path) -> None:
    """With a validation by the loss itself, beside other losses."""
    made = recipe(
        tmp_path / "student",
        student,
        MIXUP,
        {"kind": "mixup", "target": "gold", "weight": 0.5},
        GOLD,
        dump=dump,
        validation={"share": 0.3, "every_steps": 10},
        training={"max_steps": 30, "learning_rate": 0.02},
    )
    distill.run(made, resume=False)
    (stage,) = json.loads((tmp_path / "student" / "stages.json").read_text())
    assert stage["best_step"] > 0


def test_a_resumed_run_is_bit_equal(dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(name: str) -> Any:
        training = {"max_steps": 17, "save_steps": 6}
        return recipe(tmp_path / name, TRANSFORMER, MIXUP, KL, dump=dump, training=training)

    distill.run(made("whole"), resume=False)
    step = DistillationTrainer.training_step
    count = 0

    def killed(*given: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == 15:
            raise KeyboardInterrupt
        return step(*given, **named)

    monkeypatch.setattr(DistillationTrainer, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        distill.run(made("killed"), resume=False)
    monkeypatch.undo()
    distill.run(made("killed"), resume=True)
    assert are_equal(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "gold", "metric": "mse"}, "metric is for target"),
        ({"temperature": 2.0}, "temperature is for metric"),
        ({"target": "gold", "temperature": 2.0}, "temperature is for metric"),
        ({"metric": "cosine"}, "metric"),
    ],
)
def test_keys_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MixupLoss(**options)


def test_a_dump_without_mixtures_is_refused(make_dump: Callable[..., Path], toy_rows: Any, tmp_path: Path) -> None:
    folder = make_dump(TASK, data=toy_rows(TASK, 8))
    with pytest.raises(
        RecipeError, match=r"needs the teacher's logits for mixtures of rows, which .*; dump again with"
    ):
        distill.run(recipe(tmp_path / "student", TRANSFORMER, MIXUP, dump=folder), resume=False)
    with pytest.raises(DumpError, match="this dump has no mixtures of rows; dump again with --mixup"):
        Dump(folder).mixtures()


def test_a_dump_without_gold_labels_is_refused_for_mixed_gold(
    make_dump: Callable[..., Path], texts: list[str], tmp_path: Path
) -> None:
    folder = make_dump(TASK, data=texts[:8], mixup=1)
    made = recipe(tmp_path / "student", TRANSFORMER, {"kind": "mixup", "target": "gold"}, dump=folder)
    with pytest.raises(RecipeError, match=r"the loss 'mixup' with target = \"gold\" needs gold labels"):
        distill.run(made, resume=False)


def test_a_student_that_cannot_read_embeddings_is_refused(
    dump: Path, make_teacher: Callable[..., Path], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    path = make_teacher(TASK, "gpt2", tokenizer=tiny_tokenizer)
    made = recipe(tmp_path / "student", {"kind": "pretrained", "path": str(path)}, MIXUP, dump=dump)
    with pytest.raises(RecipeError, match=r"the loss 'mixup' mixes word embeddings, but GPT2ForSequenceClassification"):
        distill.run(made, resume=False)
