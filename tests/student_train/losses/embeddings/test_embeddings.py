"""Losses on embeddings of rows, against plain float64 loops: values and gradients."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from transformers import PreTrainedModel

from shared import Dump
from shared.dump.facts import Pooling
from shared.errors import RecipeError
from shared.models.pooling import set_pooling
from student_train.data.batch import Batch
from student_train.data.sources import DumpSource
from student_train.losses.embeddings import EmbeddingLoss, SimilarityLoss
from student_train.losses.embeddings.similarity import similarity_kl
from student_train.losses.projections import make_projections
from tests.student_train.losses.batches import ROWS, batch_of, inputs_of, loss_of, student_of

NORMALIZED = Pooling(mode="mean", normalized=True)


@pytest.fixture(scope="module")
def dump(make_dump: Callable[..., Path]) -> Path:
    return make_dump("encoder", hidden="last", normalize="yes")


@pytest.fixture(scope="module")
def source(dump: Path) -> DumpSource:
    return DumpSource(dump)


def teacher_embeddings(dump: Path, batch: Batch) -> Tensor:
    frame = Dump(dump).vectors("embedding").collect()
    vectors = dict(zip(frame["row"].to_list(), frame["vector"].to_list(), strict=True))
    return torch.tensor([vectors[row] for row in batch.rows.tolist()], dtype=torch.float64)


def student_embeddings(model: PreTrainedModel, batch: Batch, mode: str, normalized: bool) -> Tensor:
    """By loops over rows, with gradients, in float64 after the model."""
    states_BLD = model(**inputs_of(batch)).last_hidden_state.double()
    rows = []
    for states_LD, mask_L in zip(states_BLD, batch.attention_mask, strict=True):
        own_LD = states_LD[mask_L.bool()]
        row_D = {"mean": own_LD.mean(0), "cls": own_LD[0], "last": own_LD[-1], "max": own_LD.amax(0)}[mode]
        rows.append(row_D / (row_D**2).sum().sqrt() if normalized else row_D)
    return torch.stack(rows)


def gradients(value: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return torch.cat([each.double().flatten() for each in found if each is not None])


@pytest.mark.parametrize("mode", ["mean", "cls", "last", "max"])
@pytest.mark.parametrize("metric", ["mse", "cosine"])
@pytest.mark.parametrize("width", [24, 32])
def test_the_loss_on_each_row(metric: Any, mode: Any, width: int, source: DumpSource, dump: Path) -> None:
    model, batch = student_of(width=width), batch_of(source)
    normalized = mode != "cls"
    set_pooling(model, Pooling(mode=mode, normalized=normalized))
    spec = EmbeddingLoss(metric=metric).for_student(source, model)
    projections = make_projections((spec,), source, model)
    assert (width != 32) == bool(len(projections))
    found = loss_of(spec, model, projections, source, batch)

    rows_RD = student_embeddings(model, batch, mode, normalized)
    if width != 32:
        linear = projections["0"]
        rows_RD = rows_RD @ linear.weight.double().T + linear.bias.double()
    teacher_RE, terms = teacher_embeddings(dump, batch), []
    for own_D, wanted_D in zip(rows_RD, teacher_RE, strict=True):
        if metric == "mse":
            terms.append(((own_D - wanted_D) ** 2).mean())
        else:
            terms.append(1 - (own_D @ wanted_D) / (own_D.norm() * wanted_D.norm()))
    expected = torch.stack(terms).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    parameters = [*model.parameters(), *projections.parameters()]
    assert torch.allclose(gradients(found, parameters), gradients(expected, parameters), rtol=1e-3, atol=1e-6)
    assert spec.count(batch) == len(ROWS)


def plain_similarity(student_RD: Tensor, teacher_RE: Tensor, temperature: float) -> Tensor:
    """By loops: a row's softmax over all rows but itself."""
    total, rows = torch.zeros((), dtype=torch.float64), len(student_RD)
    for row in range(rows):
        others = [other for other in range(rows) if other != row]
        logs = []
        for vectors in (student_RD, teacher_RE):
            cosines = torch.stack(
                [vectors[row] @ vectors[other] / (vectors[row].norm() * vectors[other].norm()) for other in others]
            )
            logs.append((cosines / temperature).log_softmax(0))
        total = total + (logs[1].exp() * (logs[1] - logs[0])).sum()
    return total / rows


@given(
    rows=st.integers(2, 7),
    widths=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    temperature=st.sampled_from([0.05, 1.0, 10.0]),
    seed=st.integers(0, 999),
)
@settings(max_examples=40)
def test_the_similarity_of_rows_is_that_of_loops(
    rows: int, widths: tuple[int, int], temperature: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    student_RD, teacher_RE = (torch.randn(rows, width, generator=generator, dtype=torch.float64) for width in widths)
    student_RD.requires_grad_()
    found = similarity_kl(student_RD, teacher_RE, temperature)
    expected = plain_similarity(student_RD, teacher_RE, temperature)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)
    pair = [torch.autograd.grad(value, student_RD)[0] for value in (found, expected)]
    assert torch.allclose(*pair, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("width", [24, 32])
def test_the_loss_on_similarities_needs_no_map(width: int, source: DumpSource, dump: Path) -> None:
    model, batch = student_of(width=width), batch_of(source)
    set_pooling(model, NORMALIZED)
    spec = SimilarityLoss(temperature=0.3).for_student(source, model)
    projections = make_projections((spec,), source, model)
    assert not len(projections)
    found = loss_of(spec, model, projections, source, batch)
    own_RD = student_embeddings(model, batch, "mean", True)
    expected = plain_similarity(own_RD, teacher_embeddings(dump, batch), 0.3)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    parameters = list(model.parameters())
    assert torch.allclose(gradients(found, parameters), gradients(expected, parameters), rtol=1e-3, atol=1e-5)


def test_one_row_has_no_similarity(source: DumpSource) -> None:
    model, batch = student_of(), batch_of(source, [3])
    spec = SimilarityLoss().for_student(source, model)
    value = loss_of(spec, model, nn.ModuleDict(), source, batch)
    assert (value.item(), spec.count(batch)) == (0, 0)
    assert not np.any([parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.parameters()])


def test_a_student_that_gives_the_teachers_embeddings_has_no_loss() -> None:
    rows_RD = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert similarity_kl(3 * rows_RD, rows_RD, 0.05).item() == pytest.approx(0, abs=1e-6)


def test_a_dump_without_embeddings_is_refused(make_dump: Callable[..., Path]) -> None:
    without = DumpSource(make_dump("encoder", hidden="last", pooling="none"))
    for spec in (EmbeddingLoss(), SimilarityLoss()):
        with pytest.raises(RecipeError, match=r"needs the signal 'embedding', which .* lacks; it has hidden\.2"):
            spec.check(without)
