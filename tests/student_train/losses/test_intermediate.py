"""Losses on layers in between: one or the last k, tokens or rows, attention as the models have it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, PreTrainedModel

from shared.dump.signals import SignalKey
from shared.errors import RecipeError
from student_train import distill
from student_train.data.batch import Batch
from student_train.data.batches import collate
from student_train.data.sources import DumpSource
from student_train.losses import formulas
from student_train.losses.hidden import HiddenLoss
from student_train.losses.projections import make_projections
from student_train.losses.relations import RelationLoss
from student_train.recipe.recipe import Recipe
from tests.student_train.losses.batches import ROWS, batch_of, inputs_of, loss_of, student_of

ATTENTION = {"pairs": ("attention",), "own_heads": True, "metric": "mse"}


@pytest.fixture(scope="module")
def teacher(make_teacher: Callable[..., Path]) -> Path:
    return make_teacher("encoder", num_hidden_layers=3)


@pytest.fixture(scope="module")
def dump(make_dump: Callable[..., Path], teacher: Path) -> Path:
    return make_dump("encoder", teacher=teacher, hidden="1,2,3", relations="2,3")


@pytest.fixture(scope="module")
def source(dump: Path) -> DumpSource:
    return DumpSource(dump)


# ---------------------------------------------------------------- hidden states


@pytest.mark.parametrize("at", ["all", "first", "mean"])
@pytest.mark.parametrize("metric", ["mse", "cosine", "kl"])
def test_the_last_layers_meet_each_through_its_own_projection(
    metric: Any, at: Any, source: DumpSource, teacher: Path
) -> None:
    """Against transformers' own hidden states of both models, padded as they are."""
    model, spec, batch = student_of(), HiddenLoss(last=3, metric=metric, at=at), batch_of(source)
    projections = make_projections((spec,), source, model)
    parameters = [*model.parameters(), *projections.parameters()]
    shown = AutoModel.from_pretrained(teacher).eval()(**inputs_of(batch), output_hidden_states=True).hidden_states
    outputs = model(**inputs_of(batch), output_hidden_states=True).hidden_states
    is_token_BL = batch.attention_mask.bool()
    compare = {"mse": formulas.hidden_mse, "cosine": formulas.hidden_cosine, "kl": formulas.hidden_kl}[metric]

    def places(states_BLD: Tensor) -> Tensor:
        if at == "all":
            return states_BLD[is_token_BL]
        if at == "first":
            return states_BLD[:, 0]
        return torch.stack([row[own].mean(0) for row, own in zip(states_BLD, is_token_BL, strict=True)])

    own: Any = projections["0"]
    assert list(own) == ["1", "2", "3"]
    # The student's embeddings and two layers, the teacher's three layers.
    expected = sum(compare(places(own[str(layer)](outputs[layer - 1])), places(shown[layer])) for layer in (1, 2, 3))
    value = loss_of(spec, model, projections, source, batch)
    assert value.item() == pytest.approx(expected.item(), rel=1e-3)
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        if one is None or other is None:
            assert one is other
        else:
            torch.testing.assert_close(one, other, rtol=1e-2, atol=2e-4)


@pytest.mark.parametrize("at", ["first", "mean"])
def test_rows_are_counted_where_rows_are_compared(at: Any, source: DumpSource) -> None:
    """Shares add up: the mean over a batch is that over its rows alone, without padding."""
    model, spec = student_of(), HiddenLoss(teacher_layer=3, student_layer=-1, metric="kl", at=at)
    projections = make_projections((spec,), source, model)
    batch = batch_of(source)
    assert spec.count(batch) == len(ROWS)
    assert HiddenLoss(teacher_layer=3, student_layer=-1).count(batch) == int(batch.attention_mask.sum())
    alone = [loss_of(spec, model, projections, source, batch_of(source, [row])).item() for row in ROWS]
    together = loss_of(spec, model, projections, source, batch).item()
    assert together == pytest.approx(sum(alone) / len(ROWS), rel=1e-4)


@pytest.mark.parametrize("at", ["first", "mean"])
def test_a_row_without_tokens_counts_for_nothing(at: Any, make_dump: Callable[..., Path]) -> None:
    rows = ["the quick brown fox", "", "a lazy dog"]
    source = DumpSource(make_dump("causal-lm", data=[{"text": text} for text in rows], hidden="2", top_k=3))
    torch.manual_seed(0)
    columns = ["hidden.2"]
    model = AutoModel.from_config(BertConfig(**{**student_of().config.to_dict(), "vocab_size": source.vocabulary}))
    group, spec = source.load(0, columns), HiddenLoss(teacher_layer=2, student_layer=-1, at=at)
    lengths = np.diff(group.token_offsets).tolist()
    assert 0 in lengths
    batch = collate({0: group}, np.asarray([[0, row] for row in range(3)]), source)
    assert spec.count(batch) == 2
    projections = make_projections((spec,), source, model)
    full = [[0, row] for row in range(3) if lengths[row]]
    value = loss_of(spec, model.eval(), projections, source, batch)
    without = loss_of(spec, model, projections, source, collate({0: group}, np.asarray(full), source))
    assert value.item() == pytest.approx(without.item(), rel=1e-5)


def test_the_last_layers_of_a_dump_are_those_that_it_stores(
    make_dump: Callable[..., Path], teacher: Path, source: DumpSource
) -> None:
    spec = HiddenLoss(last=2)
    assert [str(key) for key in spec.signals(source.signals)] == ["hidden.2", "hidden.3"]
    keys = [SignalKey("distribution"), *(SignalKey("hidden", layer) for layer in (0, 12, 9)), SignalKey("queries", 7)]
    assert spec.signals(keys) == (SignalKey("hidden", 9), SignalKey("hidden", 12))
    itself = AutoModel.from_pretrained(teacher).eval()
    assert not make_projections((spec,), source, itself)
    assert loss_of(spec, itself, nn.ModuleDict(), source, batch_of(source)).item() < 1e-5
    assert loss_of(spec, itself, nn.ModuleDict(), source, batch_of(source, [5])).item() < 1e-5


# ---------------------------------------------------------------- attention


def attention_of(model: PreTrainedModel, batch: Batch, layer: int) -> Tensor:
    attentions_BHLL: Tensor = model(**inputs_of(batch), output_attentions=True).attentions[layer].double()
    return attentions_BHLL


@pytest.mark.parametrize("metric", ["mse", "kl"])
def test_attention_of_the_last_layers_is_what_both_models_report_head_by_head(
    metric: Any, source: DumpSource, teacher: Path
) -> None:
    model, batch = student_of(), batch_of(source)
    shown = AutoModel.from_pretrained(teacher, attn_implementation="eager").eval()
    spec = RelationLoss(last=2, **{**ATTENTION, "metric": metric})
    total, lengths = torch.zeros((), dtype=torch.float64), batch.attention_mask.sum(1).tolist()
    for layer in (-2, -1):
        p_BHLL, q_BHLL = (attention_of(each, batch, layer) for each in (shown, model))
        for row, length in enumerate(lengths):
            p, q = p_BHLL[row, :, :length, :length], q_BHLL[row, :, :length, :length]
            ours = (p - q).square().sum() / length if metric == "mse" else (p * (p.log() - q.log())).sum()
            total = total + ours / (sum(lengths) * 4)
    value = loss_of(spec, model, nn.ModuleDict(), source, batch)
    assert value.item() == pytest.approx(total.item(), rel=1e-3)
    parameters = [each for name, each in model.named_parameters() if "self.query" in name or "self.key" in name]
    found, wanted = torch.autograd.grad(value, parameters), torch.autograd.grad(total, parameters)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-4)


def test_without_a_number_the_topmost_layer_of_the_dump_is_meant(source: DumpSource) -> None:
    assert RelationLoss(pairs=("values",)).signals(source.signals) == (SignalKey("values", 3),)
    assert RelationLoss(pairs=("values",), last=2).signals(source.signals) == (
        SignalKey("values", 2),
        SignalKey("values", 3),
    )
    assert RelationLoss().attention_layers == (-1,)
    assert RelationLoss(last=2).attention_layers == (-2, -1)


def test_scores_before_the_softmax_are_those_whose_softmax_the_models_report(source: DumpSource, teacher: Path) -> None:
    """A softmax loses a constant for each token, so each model's scores are its log-attention and such a constant."""
    model, batch = student_of(), batch_of(source)
    shown = AutoModel.from_pretrained(teacher, attn_implementation="eager").eval()
    spec = RelationLoss(student_layer=2, teacher_layer=3, **{**ATTENTION, "metric": "scores-mse"})
    states = [
        each(**inputs_of(batch), output_hidden_states=True).hidden_states[layer]
        for each, layer in ((shown, 2), (model, 1))
    ]
    total, lengths = torch.zeros((), dtype=torch.float64), batch.attention_mask.sum(1).tolist()
    for row, length in enumerate(lengths):
        scores_HLL = []
        for each, layer, states_BLD in ((shown, 2, states[0]), (model, 1, states[1])):
            own = each.encoder.layer[layer].attention.self
            queries, keys = (
                part(states_BLD[row, :length]).double().unflatten(-1, (4, -1)).transpose(0, 1)
                for part in (own.query, own.key)
            )
            scores_HLL.append(queries @ keys.transpose(1, 2) / queries.shape[-1] ** 0.5)
        reported = attention_of(shown, batch, 2)[row, :, :length, :length]
        torch.testing.assert_close(scores_HLL[0].softmax(-1), reported, rtol=1e-4, atol=1e-6)
        total = total + (scores_HLL[0] - scores_HLL[1]).square().sum() / length / (sum(lengths) * 4)
    value = loss_of(spec, model, nn.ModuleDict(), source, batch)
    assert value.item() == pytest.approx(total.item(), rel=1e-3)


# ---------------------------------------------------------------- a run, and what is refused before it


@pytest.fixture
def recipe(tmp_path: Path, dump: Path) -> Callable[..., Recipe]:
    def make(*losses: dict[str, Any], dump: Path = dump, **student: Any) -> Recipe:
        return Recipe.model_validate(
            {
                "output": tmp_path / "student",
                "dump": dump,
                "student": {"kind": "transformer", "layers": 2, "hidden_size": 24, "heads": 4} | student,
                "loss": losses,
                "training": {"max_steps": 3, "batch_size": 8, "learning_rate": 5e-3, "device": "cpu"},
            }
        )

    return make


def test_hidden_states_and_attention_of_the_last_layers_are_learnt_together(recipe: Callable[..., Recipe]) -> None:
    hidden, attention = {"kind": "hidden", "last": 3, "at": "first"}, {"kind": "relations", "last": 2, **ATTENTION}
    result = distill.run(recipe(hidden, attention, {"kind": "relations", "pairs": ["values"]}), resume=False)
    model, info = AutoModel.from_pretrained(result.output, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert model.config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("loss", "student", "sentence"),
    [
        (
            {"kind": "hidden", "last": 4},
            {},
            r"last = 4 needs the teacher's hidden states of 4 layers, but .* of 3 \(hidden\.1, hidden\.2, hidden\.3\)",
        ),
        ({"kind": "hidden", "last": 3}, {"layers": 1}, r"loss\.0\.last = 3: the student has layers 0 to 1"),
        ({"kind": "relations", "last": 3}, {}, r"last = 3 needs .* 3 of the teacher's layers, but .* of 2 \(2, 3\)"),
        ({"kind": "relations", "last": 2}, {"layers": 1}, r"the student has layers 1 to 1"),
        ({"kind": "relations", **ATTENTION}, {"heads": 2}, r"the student has 2 heads and the teacher 4"),
    ],
    ids=["hidden-dump", "hidden-student", "relations-dump", "relations-student", "heads"],
)
def test_layers_and_heads_that_are_not_there_are_refused(
    loss: dict[str, Any], student: dict[str, Any], sentence: str, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=sentence):
        distill.run(recipe(loss, **student), resume=False)
    assert not (tmp_path / "student").exists()


def test_a_dump_that_does_not_tell_its_heads_is_refused_only_for_own_heads(source: DumpSource) -> None:
    """Dumps of earlier versions."""
    assert source.attention_heads == 4
    unknown, model = DumpSource(Path(source.name)), student_of()
    unknown.attention_heads = None
    RelationLoss(relation_heads=4).check_student(unknown, model)
    with pytest.raises(RecipeError, match="does not say how many heads its teacher has"):
        RelationLoss(own_heads=True).check_student(unknown, model)


@pytest.mark.parametrize(
    ("loss", "options", "sentence"),
    [
        (HiddenLoss, {"last": 2, "teacher_layer": 3}, "give either both teacher_layer and student_layer, or last"),
        (HiddenLoss, {"teacher_layer": 3}, "give either both teacher_layer and student_layer, or last"),
        (HiddenLoss, {}, "give either both teacher_layer and student_layer, or last"),
        (RelationLoss, {"last": 2, "student_layer": 1}, "give either teacher_layer and student_layer, or last"),
        (RelationLoss, {"own_heads": True, "relation_heads": 4}, "leave relation_heads = 4 out"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(loss: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        loss(**options)
