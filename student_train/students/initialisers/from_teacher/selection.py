"""Which layers, residual dimensions, heads and neurons of a teacher a student takes.

Extract Then Distill (Chen et al. 2021, arXiv 2104.11928) keeps one set of residual dimensions for the whole model,
because all layers read and write them, and heads and neurons of each layer by itself; layers are spread evenly. Each
set holds the entries with the highest scores: random numbers, or the importance that a dump has.

Shapes: L layers, H heads, D residual dimensions, F neurons, S size of a head; of the teacher.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from student_train.students.initialisers.from_teacher.matrices import RESIDUAL, LinearMap
from student_train.students.sizes import Sizes


@dataclass(frozen=True)
class Scores:
    """How much each part of a teacher is worth keeping: heads [L, H], neurons [L, F], residual dimensions [D].

    `sizes_matter` says that dimensions within a head are judged by the size of their weights, because scores are of
    whole heads; otherwise they are drawn.
    """

    heads_LH: Tensor
    neurons_LF: Tensor
    residual_D: Tensor
    sizes_matter: bool


@dataclass(frozen=True)
class Selection:
    """What of a teacher a student takes.

    Attributes:
        layers: the teacher's layer, from 0, that each layer of the student starts from.
        kept: for each layer of the student: axis -> the kept indices, ascending within a head.
        query_scales: for each layer of the student, the factors of the kept rows of the queries.
    """

    layers: tuple[int, ...]
    kept: tuple[dict[str, Tensor], ...]
    query_scales: tuple[Tensor, ...]

    @property
    def residual(self) -> Tensor:
        """The kept residual dimensions, the same in all layers."""
        return self.kept[0][RESIDUAL]


def random_scores(teacher: Sizes) -> Scores:
    """Return scores drawn from torch's global generator."""
    heads_LH = torch.rand(teacher.layers, teacher.heads)
    neurons_LF = torch.rand(teacher.layers, teacher.neurons)
    return Scores(heads_LH, neurons_LF, torch.rand(teacher.width), sizes_matter=False)


def everything(teacher: Sizes, layers: Sequence[int]) -> Selection:
    """Return the selection of some layers, whole."""
    rows, key_rows = teacher.heads * teacher.head_size, teacher.key_heads * teacher.head_size
    whole = {
        RESIDUAL: torch.arange(teacher.width),
        "queries": torch.arange(rows),
        "keys": torch.arange(key_rows),
        "values": torch.arange(key_rows),
        "attended": torch.arange(rows),
        "neurons": torch.arange(teacher.neurons),
    }
    return Selection(tuple(layers), (whole,) * len(layers), (torch.ones(rows),) * len(layers))


def select(
    teacher: Sizes,
    student: Sizes,
    layers: Sequence[int],
    scores: Scores,
    maps: Sequence[Mapping[str, LinearMap]],
) -> Selection:
    """Return the parts with the highest scores for a student that is nowhere larger than the teacher.

    Args:
        layers: the teacher's layers, from 0, one for each of the student's.
        maps: for each of these layers: kind of matrix -> the teacher's.
    """
    residual = _best(scores.residual_D, student.width)
    kept, scales = [], []
    for layer, own in zip(layers, maps, strict=True):
        heads, key_heads = _heads(scores.heads_LH[layer], teacher, student)
        if student.head_size == teacher.head_size:
            asked = answered = key_side = None
            scale = torch.ones(student.heads * student.head_size)
        else:
            asked, answered = _dimensions(own, heads, teacher, student, scores.sizes_matter)
            key_side, scale = asked, _query_scales(own, heads, asked, residual, teacher)
        kept.append(
            {
                RESIDUAL: residual,
                "queries": _rows(heads, teacher.head_size, asked),
                "keys": _rows(key_heads, teacher.head_size, key_side),
                "values": _rows(key_heads, teacher.head_size, answered),
                "attended": _rows(heads, teacher.head_size, answered),
                "neurons": _best(scores.neurons_LF[layer], student.neurons),
            }
        )
        scales.append(scale)
    return Selection(tuple(layers), tuple(kept), tuple(scales))


def _best(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the highest scores in the last axis, ascending; of equal ones the first."""
    return scores.argsort(dim=-1, descending=True, stable=True)[..., :count].sort(dim=-1).values


def _heads(scores_H: Tensor, teacher: Sizes, student: Sizes) -> tuple[Tensor, Tensor]:
    """Return the kept heads of the queries, and of the keys and values.

    Grouped heads share a key head: groups are kept by the sum over their best heads, as many of each group as the
    student has.
    """
    per_group = student.heads // student.key_heads
    grouped_GH = scores_H.reshape(teacher.key_heads, -1)
    best_GH = _best(grouped_GH, per_group)
    groups = _best(grouped_GH.gather(1, best_GH).sum(1), student.key_heads)
    heads = groups[:, None] * grouped_GH.shape[1] + best_GH[groups]
    return heads.flatten(), groups


def _rows(heads: Tensor, size: int, within: Tensor | None) -> Tensor:
    """Return the rows of these heads: all of each, or its dimensions `within` [heads, kept]."""
    return (heads[:, None] * size + (torch.arange(size) if within is None else within)).flatten()


def _dimensions(
    own: Mapping[str, LinearMap], heads: Tensor, teacher: Sizes, student: Sizes, sizes_matter: bool
) -> tuple[Tensor, Tensor]:
    """Return the kept dimensions within each of the heads: those of queries and keys, those of values.

    A dimension contributes the product of two numbers to a score (or of a number and a column of the output), so it is
    judged by the product of the lengths of its weights.
    """
    lengths = {
        kind: own[kind].weight_PQ.float().norm(dim=0 if kind == "output" else 1).reshape(-1, teacher.head_size)[heads]
        for kind in ("query", "key", "value", "output")
    }
    if sizes_matter:
        asked_HS, answered_HS = lengths["query"] * lengths["key"], lengths["value"] * lengths["output"]
    else:
        asked_HS, answered_HS = torch.rand_like(lengths["query"]), torch.rand_like(lengths["value"])
    return _best(asked_HS, student.head_size), _best(answered_HS, student.head_size)


def _query_scales(
    own: Mapping[str, LinearMap], heads: Tensor, asked: Tensor, residual: Tensor, teacher: Sizes
) -> Tensor:
    """Return the factor of each kept row of the queries with which scores vary as before dimensions were dropped.

    For inputs x and y with independent entries of variance 1, the score (Wq x + bq)(Wk y) / sqrt(S) has the variance
    |[Wq bq]' Wk|^2 / S (Frobenius). The squared length of a product A'B is the sum of the entries of AA' * BB', which
    are only [S, S]. (The bias of the keys shifts all scores of a query alike, which a softmax does not see.)
    """
    query = own["query"]
    columns = [query.weight_PQ.float()[:, residual]]
    if query.bias_P is not None:
        columns.append(query.bias_P.float()[:, None])
    asks = torch.cat(columns, dim=1).unflatten(0, (-1, teacher.head_size))[heads]
    keys = own["key"].weight_PQ.float()[:, residual].unflatten(0, (-1, teacher.head_size))[heads]

    def variance(asks: Tensor, keys: Tensor) -> Tensor:
        return ((asks @ asks.mT) * (keys @ keys.mT)).sum((1, 2)) / asks.shape[1]

    left = variance(_at(asks, asked), _at(keys, asked))
    ratio = variance(asks, keys) / left.clamp_min(torch.finfo(left.dtype).tiny)
    return torch.where(left > 0, ratio.sqrt(), 1.0).repeat_interleave(asked.shape[1])


def _at(rows: Tensor, which: Tensor) -> Tensor:
    """Return, for each head, some of its rows [heads, rows, width]."""
    return rows.gather(1, which[..., None].expand(-1, -1, rows.shape[2]))
