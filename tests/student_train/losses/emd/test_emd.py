"""BERT-EMD on a batch: costs, flow, masses and gradients, against plain float64 arithmetic; what does not fit it."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from shared.dump.signals import SignalKey
from shared.errors import RecipeError
from student_train import distill
from student_train.data.batch import Batch
from student_train.data.batches import collate
from student_train.data.sources import DumpSource
from student_train.forward import teacher_vectors
from student_train.forward.observe import outputs_of, targets_of
from student_train.forward.teacher_vectors import TeacherVectors
from student_train.losses import relation_formulas
from student_train.losses.base import columns_of
from student_train.losses.emd import EMDLoss
from student_train.losses.emd.loss import EMDState
from student_train.losses.emd.terms import Sample
from student_train.losses.projections import make_projections
from student_train.recipe.recipe import Recipe
from tests.student_train.losses.batches import ROWS, batch_of, inputs_of, loss_of, student_of

HEADS = 4


@pytest.fixture(scope="module")
def teacher(make_teacher: Callable[..., Path]) -> Path:
    return make_teacher("encoder", num_hidden_layers=3)


@pytest.fixture(scope="module")
def dump(make_dump: Callable[..., Path], teacher: Path) -> Path:
    return make_dump("encoder", teacher=teacher, hidden="all", relations="all")


@pytest.fixture(scope="module")
def source(dump: Path) -> DumpSource:
    return DumpSource(dump)


def fitted(spec: EMDLoss, source: DumpSource, model: PreTrainedModel) -> tuple[EMDLoss, nn.ModuleDict, EMDState]:
    spec.check(source)
    made = spec.for_student(source, model)
    made.check_student(source, model)
    projections = make_projections((made,), source, model)
    return made, projections, projections["0"]  # type: ignore[return-value]


# ---------------------------------------------------------------- plainly, in float64


def plain_costs(model: Any, state: EMDState, batch: Batch, source: DumpSource, rows: list[int]) -> dict[str, Tensor]:
    """D of hidden states and of attention scores, [M, N] each: row by row, in float64, from what transformers give."""
    vectors = targets_of(batch, source).vectors
    states = model(**inputs_of(batch), output_hidden_states=True).hidden_states
    lengths = batch.attention_mask.sum(1).tolist()
    starts = np.concatenate([[0], np.cumsum(lengths)])
    hidden, attention, tokens = [], [], sum(lengths[row] for row in rows)
    for own in range(1, len(states)):
        block = model.encoder.layer[own - 1].attention.self
        linear = state.projection.linears[min(own, len(state.projection.linears)) - 1] if state.projection else None
        for other in (1, 2, 3):
            squares: Any = [0.0, 0.0]
            for row in rows:
                part = slice(starts[row], starts[row + 1])
                length, seen = lengths[row], states[own][row, : lengths[row]]
                wanted = vectors[SignalKey("hidden", other)].decode(part).double()
                if linear is not None:
                    squares[0] += (linear(seen).double() - wanted).square().sum() / wanted.shape[1]
                below = states[own - 1][row, :length]
                scores = []
                for queries, keys in (
                    (block.query(below), block.key(below)),
                    (vectors[SignalKey(name, other)].decode(part) for name in ("queries", "keys")),
                ):
                    q, k = (each.double().unflatten(1, (HEADS, -1)).transpose(0, 1) for each in (queries, keys))
                    scores.append(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]))
                squares[1] += (scores[0] - scores[1]).square().sum() / length / HEADS
            hidden.append(torch.as_tensor(squares[0] / tokens))
            attention.append(squares[1] / tokens)
    return {"hidden": torch.stack(hidden).view(-1, 3), "attention": torch.stack(attention).view(-1, 3)}


def plain_flow(supply: Any, demand: Any, costs: Tensor) -> Tensor:
    """The cheapest flow, with equations written down one by one."""
    rows, columns = costs.shape
    equations, sums = [], []
    for row in range(rows):
        equations.append([float(each // columns == row) for each in range(rows * columns)])
        sums.append(supply[row])
    for column in range(columns):
        equations.append([float(each % columns == column) for each in range(rows * columns)])
        sums.append(demand[column])
    found = linprog(costs.detach().flatten().numpy(), A_eq=equations, b_eq=sums, method="highs-ipm")
    return torch.from_numpy(found.x).view(rows, columns)


def plain_update(masses: list[float], flow: Tensor, costs: Tensor, axis: int) -> list[float]:
    unit = [(flow * costs).detach().select(axis, layer).sum().item() / mass for layer, mass in enumerate(masses)]
    return [1 / each / sum(1 / every for every in unit) for each in unit]


# ---------------------------------------------------------------- value, gradient, masses


@pytest.mark.parametrize("slice_numbers", [1, 700, 2**20])
@pytest.mark.parametrize(
    ("parts", "keys", "width", "layers"),
    [
        (("hidden", "attention"), {"attention_weight": 0.3}, 24, 2),
        (("hidden", "attention"), {"shared_projection": True}, 24, 3),
        (("hidden", "attention"), {"separate_masses": True}, 32, 2),
        (("hidden",), {}, 24, 1),
        (("attention",), {"cost_attention": False}, 24, 4),
    ],
    ids=["both", "shared", "separate", "hidden", "attention"],
)
def test_two_batches_one_after_the_other_are_those_of_the_formulas(
    parts: Any,
    keys: dict[str, Any],
    width: int,
    layers: int,
    slice_numbers: int,
    source: DumpSource,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second one has the masses that the first one left."""
    for module in (teacher_vectors, relation_formulas):
        monkeypatch.setattr(module, "SLICE_NUMBERS", slice_numbers)
    model = student_of(layers=layers, width=width)
    spec, projections, state = fitted(EMDLoss(parts=parts, **keys), source, model)
    parameters = [*model.parameters(), *projections.parameters()]
    masses = {part: ([1 / layers] * layers, [1 / 3] * 3) for part in parts}
    for rows in (ROWS, [2, 9, 4]):
        batch = batch_of(source, rows)
        costs = plain_costs(model, state, batch, source, list(range(len(rows))))
        flows = {part: plain_flow(*masses[part], costs[part]) for part in parts}
        weights = {"hidden": 1.0, "attention": keys.get("attention_weight", 1.0)}
        expected = sum(weights[part] * (flows[part] * costs[part]).sum() for part in parts)
        value = loss_of(spec, model, projections, source, batch)
        assert value.item() == pytest.approx(expected.item(), rel=1e-4)
        found = torch.autograd.grad(value * 3, parameters, allow_unused=True)
        wanted = torch.autograd.grad(expected * 3, parameters, allow_unused=True)
        assert any(each is not None for each in found)
        for one, other in zip(found, wanted, strict=True):
            if one is None or other is None:
                assert all(each is None or not each.any() for each in (one, other))
            else:
                torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-5)
        if spec.cost_attention:
            moved = {
                part: tuple(plain_update(masses[part][axis], flows[part], costs[part], axis) for axis in (0, 1))
                for part in parts
            }
            if not spec.separate_masses:
                mean = [np.mean([moved[part][side] for part in parts], 0).tolist() for side in (0, 1)]
                moved = dict.fromkeys(parts, tuple(mean))
            masses = moved
        for part in parts:
            kept = state.of(part)
            assert kept.student_M.tolist() == pytest.approx(masses[part][0], rel=1e-3)
            assert kept.teacher_N.tolist() == pytest.approx(masses[part][1], rel=1e-3)
    changed = layers > 1 and spec.cost_attention
    assert (max(state.of(parts[0]).student_M) > 1.01 / layers) == changed


def test_scoring_moves_no_masses(source: DumpSource) -> None:
    model = student_of()
    spec, projections, state = fitted(EMDLoss(), source, model)
    projections.eval()
    first, second = (loss_of(spec, model, projections, source, batch_of(source)).item() for _ in range(2))
    assert first == second
    assert state.of("hidden").student_M.tolist() == [0.5, 0.5]
    projections.train()
    assert loss_of(spec, model, projections, source, batch_of(source)).item() == first
    assert loss_of(spec, model, projections, source, batch_of(source)).item() != first


def test_the_order_of_rows_changes_nothing(source: DumpSource) -> None:
    model = student_of()
    spec, projections, _ = fitted(EMDLoss(cost_attention=False), source, model)
    one, other = (
        loss_of(spec, model, projections, source, batch_of(source, rows)).item() for rows in (ROWS, ROWS[::-1])
    )
    assert one == pytest.approx(other, rel=1e-5)


def test_a_student_that_is_its_teacher_imitates_layer_by_layer(teacher: Path, source: DumpSource) -> None:
    """Equal numbers of layers and widths: the flow is diagonal, nothing is projected, and the loss is that of codes."""
    itself = AutoModel.from_pretrained(teacher).eval()
    spec, projections, state = fitted(EMDLoss(), source, itself)
    assert not list(projections.parameters())
    assert loss_of(spec, itself, projections, source, batch_of(source)).item() < 1e-4
    for part in ("hidden", "attention"):
        masses = state.of(part)
        torch.testing.assert_close(masses.student_M, masses.teacher_N)


def test_no_layer_is_decoded_for_more_tokens_than_a_slice_has(
    source: DumpSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All three layers of the teacher together fit in a slice."""
    most = 3 * 4 * 32
    for module in (teacher_vectors, relation_formulas):
        monkeypatch.setattr(module, "SLICE_NUMBERS", most)
    sizes: dict[str, list[int]] = {"hidden": [], "queries": [], "keys": []}
    decode = TeacherVectors.decode

    def watching(self: TeacherVectors, tokens: Any) -> Tensor:
        found = decode(self, tokens)
        sizes[self.codec.name.partition(".")[0]].append(found.numel())
        return found

    monkeypatch.setattr(TeacherVectors, "decode", watching)
    model, batch = student_of(), batch_of(source, [0, 1, 2, 3])
    spec, projections, _ = fitted(EMDLoss(), source, model)
    loss_of(spec, model, projections, source, batch).backward()
    longest = int(batch.attention_mask.sum(1).max())
    assert max(sizes["hidden"]) == most // 3 < longest * 32
    assert max(sizes["queries"] + sizes["keys"]) <= longest * 32 < batch.tokens * 32


def test_inputs_of_attention_and_the_last_hidden_state_serve_as_well(
    source: DumpSource, teacher: Path, make_dump: Callable[..., Path]
) -> None:
    """From a column for each layer and one more, all others are computed."""
    stored = {"hidden": "last", "attention_inputs": "all", "attention_inputs_codec": "float16"}
    computed = DumpSource(make_dump("encoder", teacher=teacher, **stored))
    model, values = student_of(), []
    for each in (source, computed):
        torch.manual_seed(0)
        spec, projections, _ = fitted(EMDLoss(), each, model)
        assert spec.signals(each.signals) == EMDLoss().signals(source.signals)
        batch = collate({0: each.load(0, columns_of([spec], each))}, np.asarray([[0, row] for row in ROWS]), each)
        values.append(loss_of(spec, model, projections, each, batch).item())
    assert values[0] == pytest.approx(values[1], rel=1e-2)


def test_costs_of_some_rows_choose_the_flow_and_all_tokens_make_the_loss(source: DumpSource) -> None:
    rows = list(range(12))
    model, batch = student_of(), batch_of(source, rows)
    spec, projections, state = fitted(EMDLoss(cost_tokens=20), source, model)
    lengths = batch.attention_mask.sum(1).tolist()
    step = math.ceil(sum(lengths) / 20)
    sample, all_rows = (plain_costs(model, state, batch, source, some) for some in (rows[::step], rows))
    flows = {part: plain_flow([0.5] * 2, [1 / 3] * 3, sample[part]) for part in sample}
    expected = sum((flows[part] * all_rows[part]).sum().item() for part in flows)
    assert loss_of(spec, model, projections, source, batch).item() == pytest.approx(expected, rel=1e-4)
    moved = [plain_update([0.5] * 2, flows[part], sample[part], 0) for part in flows]
    assert state.of("hidden").student_M.tolist() == pytest.approx(np.mean(moved, 0).tolist(), rel=1e-3)


@pytest.mark.parametrize(
    ("most", "rows"),
    [(None, [0, 1, 3, 4]), (100, [0, 1, 3, 4]), (20, [0, 1, 3, 4]), (10, [0, 3]), (9, [0, 4]), (1, [0])],
)
def test_a_sample_is_every_kth_row_and_whole(most: int | None, rows: list[int]) -> None:
    lengths = (5, 3, 0, 8, 4)
    sample = Sample.of(lengths, most, torch.device("cpu"))
    starts = [0, 5, 8, 8, 16]
    assert sample.lengths == tuple(lengths[row] for row in rows)
    assert sample.tokens_S.tolist() == [
        token for row in rows for token in range(starts[row], starts[row] + lengths[row])
    ]


def test_a_batch_without_tokens_is_a_zero_of_the_graph(source: DumpSource) -> None:
    model, batch = student_of(), batch_of(source, [0])
    spec, projections, state = fitted(EMDLoss(), source, model)
    outputs = outputs_of(model, batch, source, wants_hidden=True, attention_layers=spec.attention_layers)
    none = {
        layer: replace(each, parts_TD={name: part[:0] for name, part in each.parts_TD.items()}, lengths=(0,))
        for layer, each in outputs.attended.items()
    }
    empty = replace(outputs, hidden_TD=tuple(each[:0] for each in outputs.hidden_TD), attended=none, lengths=(0,))
    value = spec.value(empty, targets_of(batch, source), projections["0"])
    value.backward()
    assert value.item() == 0
    assert state.of("hidden").student_M.tolist() == [0.5, 0.5]


def test_a_loss_that_is_not_finite_is_one_and_leaves_the_masses(source: DumpSource) -> None:
    model = student_of()
    spec, projections, state = fitted(EMDLoss(), source, model)
    nn.init.constant_(model.encoder.layer[0].output.dense.weight, float("nan"))
    assert loss_of(spec, model, projections, source, batch_of(source)).isnan()
    assert state.of("hidden").student_M.tolist() == [0.5, 0.5]


def test_it_reads_all_layers_but_the_embeddings(source: DumpSource) -> None:
    assert [key.name for key in EMDLoss(parts=("hidden",)).signals(source.signals)] == [
        "hidden.1",
        "hidden.2",
        "hidden.3",
    ]
    both = {key.site for key in EMDLoss().signals(source.signals)}
    assert both == {"hidden", "queries", "keys"}
    keys = [SignalKey("queries", 1), SignalKey("keys", 2), SignalKey("queries", 2), SignalKey("values", 3)]
    assert EMDLoss(parts=("attention",)).signals(keys) == (SignalKey("queries", 2), SignalKey("keys", 2))


# ---------------------------------------------------------------- what is refused


BILSTM = {"kind": "bilstm", "embedding_size": 6, "hidden_size": 8}


@pytest.fixture
def recipe(tmp_path: Path, dump: Path) -> Callable[..., Recipe]:
    def make(keys: dict[str, Any], student: dict[str, Any], dump: Path = dump) -> Recipe:
        own = {"kind": "transformer", "layers": 2, "hidden_size": 24, "heads": 4}
        return Recipe.model_validate(
            {
                "output": tmp_path / "student",
                "dump": dump,
                "student": student if "kind" in student else own | student,
                "loss": [{"kind": "emd", **keys}],
                "training": {"max_steps": 2, "batch_size": 8, "learning_rate": 5e-3, "device": "cpu"},
            }
        )

    return make


@pytest.mark.parametrize(
    ("keys", "student", "dumped", "sentence"),
    [
        (
            {},
            {"heads": 2},
            {},
            r"the student has 2 heads and the teacher 4; give the student as many, or parts = \[\"hid",
        ),
        ({}, BILSTM, {}, r"the loss 'emd': a student of type BiLSTMModel does not give access to its queries"),
        ({}, {}, {"hidden": "none", "relations": "all"}, r"the part 'hidden', but .* has none; .* --hidden all"),
        ({}, {}, {"hidden": "all"}, r"the part 'attention', but .* has none; .* --relations all"),
        (
            {},
            {},
            {"hidden": "all", "relations": "last"},
            r"has hidden states of the layers 1, 2, but attention of 2, .* or give separate_masses = true",
        ),
    ],
    ids=["heads", "bilstm", "no-hidden", "no-attention", "other-layers"],
)
def test_what_does_not_fit_is_refused(
    keys: dict[str, Any],
    student: dict[str, Any],
    dumped: dict[str, str],
    sentence: str,
    recipe: Callable[..., Recipe],
    make_dump: Callable[..., Path],
    tmp_path: Path,
) -> None:
    made = recipe(keys, student, make_dump("encoder", **dumped)) if dumped else recipe(keys, student)
    with pytest.raises(RecipeError, match=sentence):
        distill.run(made, resume=False)
    assert not (tmp_path / "student").exists()


def test_grouped_queries_are_refused_in_both(source: DumpSource, monkeypatch: pytest.MonkeyPatch) -> None:
    model, spec = student_of(), EMDLoss()
    monkeypatch.setattr(
        DumpSource, "widths", {key: 16 if key.site == "keys" else width for key, width in source.widths.items()}
    )
    with pytest.raises(RecipeError, match="the teacher's queries are wider than its keys"):
        spec.for_student(source, model).check_student(source, model)


def test_a_part_is_named_once() -> None:
    with pytest.raises(ValueError, match="name each part once"):
        EMDLoss(parts=("hidden", "hidden"))


def test_a_bilstm_learns_from_hidden_states_alone(recipe: Callable[..., Recipe]) -> None:
    assert distill.run(recipe({"parts": ["hidden"], "shared_projection": True}, BILSTM), resume=False).steps == 2
