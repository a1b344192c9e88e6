"""The effect of stored targets on a student: their variance, and the angle of the gradient, at equal bytes.

The gradient of the mean loss over all positions with respect to the student's head is compared with the gradient of
KL(teacher || student) over whole distributions. There are three students: a near one (the teacher with a noisy head), a
far one (which knows the frequencies of ids, but ignores the text), and one halfway between their logits.

Shapes: N positions, V vocabulary, D width, K largest number of ids of a position.
"""

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from rates import COARSE_LEVELS, shard_bytes, sparse
from sources import Candidates, Source
from torch import Tensor

from shared.dump.codecs import Draws, Selection, Sparse, SparseTargets, Threshold, TopK
from student_train.losses import formulas

NOISE = 0.5
PAPER_DRAWS = 50
# Gradients of a large vocabulary are compared in slices of rows, so that there is no copy in float64.
ROWS = 4096
Student = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Method:
    """A rule with a number of bytes, and the loss for its targets."""

    name: str
    codec: Sparse
    loss: str


@dataclass(frozen=True)
class Effect:
    """The results of one method, as means over draws.

    Attributes:
        bytes, ids: per position, in a shard.
        variance: mean over positions of the sum over V of (w - p) ** 2; for a biased rule the squared bias.
        angles: student -> degrees between its gradient and the full one.
        norms: student -> length of its gradient divided by that of the full one.
    """

    method: Method
    bytes: float
    ids: float
    variance: float
    angles: dict[str, float]
    norms: dict[str, float]


RULES: dict[str, tuple[Callable[[float], Selection], float, float, str]] = {
    "top-k, renormalised": (lambda ids: TopK(k=round(ids)), 1, 512, "renormalise"),
    "top-k, tail a class": (lambda ids: TopK(k=round(ids)), 1, 512, "class"),
    "threshold, tail a class": (lambda ids: Threshold(threshold=0.5 / ids, tail="mass"), 1, 1000, "class"),
    "threshold, tail sampled": (lambda ids: Threshold(threshold=0.5 / ids), 1, 1000, "sampled"),
    "random draws": (lambda ids: Draws(draws=round(ids)), 1, 255, "sampled"),
}


def effects(source: Source, budgets: tuple[int, ...], seeds: int) -> list[Effect]:
    """Every rule at every budget, the paper's draws, and the threshold whose variance is that of these draws."""
    methods = [Method(f"random draws ({PAPER_DRAWS})", sparse(Draws(draws=PAPER_DRAWS), source), "sampled")]
    equal = Threshold(threshold=threshold_of_equal_variance(source.candidates, PAPER_DRAWS))
    # Where draws vary this much, exact values need no fine rounding; what it adds is in the measured variance.
    methods.append(Method("threshold of the same variance", sparse(equal, source, COARSE_LEVELS), "sampled"))
    for budget in budgets:
        for name, (rule, least, most, loss) in RULES.items():
            methods.append(Method(name, fitted(rule, least, most, budget, source), loss))
    draws = [
        [stored(method.codec, source, seed) for seed in range(seeds if method.codec.samples else 1)]
        for method in methods
    ]
    found = [sizes(method, source, flats) for method, flats in zip(methods, draws, strict=True)]
    # One student after the other: of a large vocabulary, each gradient by the head takes hundreds of megabytes.
    for name, make_student in STUDENTS.items():
        student = make_student(source)
        full_VD = head_gradient(source, student, lambda _, said_NV, teacher_NV: formulas.kl_dense(said_NV, teacher_NV))
        for effect, flats in zip(found, draws, strict=True):
            compared_to_full = [
                compared(head_gradient(source, student, loss_against(targets, effect.method.loss)), full_VD)
                for targets in map(effect.method.codec.decode, flats)
            ]
            effect.angles[name], effect.norms[name] = map(statistics.mean, zip(*compared_to_full, strict=True))
    return found


def fitted(rule: Callable[[float], Selection], least: float, most: float, budget: int, source: Source) -> Sparse:
    """The codec whose shard takes `budget` bytes per position, or as near to it as possible, found by bisection."""
    while True:
        middle = math.sqrt(least * most)
        codec = sparse(rule(middle), source)
        size = sum(shard_bytes(codec, stored(codec, source, 0), source.lengths).values())
        if abs(size / budget - 1) < 0.015 or most / least < 1.01:
            return codec
        least, most = (least, middle) if size > budget else (middle, most)


def stored(codec: Sparse, source: Source, seed: int) -> dict[str, Tensor]:
    """The codec's columns for all positions."""
    if not codec.samples:
        return codec.pack(source.candidates.select(codec.selection))
    keys_N = source.keys(seed)
    parts = [codec.encode(logits_NV, keys_N[part]) for part, logits_NV in source.slices()]
    return {name: torch.cat([columns[name] for columns in parts]) for name in parts[0]}


def sizes(method: Method, source: Source, flats: list[dict[str, Tensor]]) -> Effect:
    """Bytes, ids and variance of a method, averaged over draws; no students yet."""
    bytes_, ids, variances = [], [], []
    for flat in flats:
        targets = method.codec.decode(flat)
        bytes_.append(sum(shard_bytes(method.codec, flat, source.lengths).values()))
        ids.append(float((targets.log_probs_NK != -torch.inf).sum(-1).double().mean()))
        variances.append(variance(targets, source, method.loss))
    mean = statistics.mean
    return Effect(method, mean(bytes_), mean(ids), mean(variances), angles={}, norms={})


def compared(gradient_VD: Tensor, full_VD: Tensor) -> tuple[float, float]:
    """(angle in degrees, ratio of lengths) of two gradients."""
    length, full_length = (_length(found.split(ROWS)) for found in (gradient_VD, full_VD))
    # Half the angle is computed from the chord, because the cosine of a small angle would be rounded to 1.
    parts = zip(gradient_VD.split(ROWS), full_VD.split(ROWS), strict=True)
    chord = _length(part.double() / length - full.double() / full_length for part, full in parts)
    return math.degrees(2 * math.asin(min(1.0, chord / 2))), length / full_length


def _length(parts: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(part.double().square().sum()) for part in parts))


def head_gradient(source: Source, student: Student, loss: Callable[[slice, Tensor, Tensor], Tensor]) -> Tensor:
    """Gradient [V, D] of the mean of `loss(positions, student's logits, teacher's logits)` by the student's head."""
    positions = len(source.hidden_ND)
    gradient_VD = torch.zeros_like(source.head_VD)
    for part, teacher_NV in source.slices():
        hidden_ND = source.hidden_ND[part].float()
        said_NV = student(hidden_ND).requires_grad_()
        value = loss(part, said_NV, teacher_NV) * (len(hidden_ND) / positions)
        (by_logits_NV,) = torch.autograd.grad(value, said_NV)
        gradient_VD.addmm_(by_logits_NV.T, hidden_ND)
    return gradient_VD


def loss_against(targets: SparseTargets, loss: str) -> Callable[[slice, Tensor, Tensor], Tensor]:
    """The trainer's own loss for these targets."""

    def value(part: slice, said_NV: Tensor, _teacher_NV: Tensor) -> Tensor:
        ids_NK, log_probs_NK = targets.ids_NK[part], targets.log_probs_NK[part]
        if loss == "sampled":
            return formulas.kl_sampled(said_NV, ids_NK, log_probs_NK)
        tail: formulas.Tail = "class" if loss == "class" else "renormalise"
        return formulas.kl_sparse(said_NV, ids_NK, log_probs_NK, targets.tail_N[part], tail=tail)

    return value


def variance(targets: SparseTargets, source: Source, loss: str) -> float:
    """Mean over positions of the sum over V of (w - p) ** 2.

    The mass of a tail that is one class is spread evenly over all ids that are not kept.
    """
    total = 0.0
    candidates = source.candidates
    for start in range(0, len(source.hidden_ND), 64):
        part = slice(start, start + 64)
        logits_NK = torch.einsum("nd,nkd->nk", source.hidden_ND[part].float(), source.head_VD[targets.ids_NK[part]])
        is_there_NK = targets.log_probs_NK[part] != -torch.inf
        p_NK = (logits_NK.double() - candidates.log_sum_N[part, None]).exp() * is_there_NK
        w_NK = targets.log_probs_NK[part].double().exp()
        if loss == "renormalise":
            w_NK = w_NK / w_NK.sum(-1, keepdim=True)
        total += float((candidates.squares_N[part] + (w_NK * (w_NK - 2 * p_NK)).sum(-1)).sum())
        if loss == "class":
            others_N = (source.vocabulary - is_there_NK.sum(-1)).clamp(min=1)
            tail_N, outside_N = targets.tail_N[part].double().exp(), (1 - p_NK.sum(-1)).clamp(min=0)
            total += float((tail_N / others_N * (tail_N - 2 * outside_N)).sum())
    return total / len(source.hidden_ND)


def threshold_of_equal_variance(candidates: Candidates, draws: int) -> float:
    """The threshold whose sampled targets have the same variance as `draws` random draws.

    The variances are the sum of p (t - p) over the ids below t, and the sum of p (1 - p) / draws over all ids.
    """
    p_NM = (candidates.shifted_NM - candidates.total_N1.log()).exp()
    wanted = float((1 - candidates.squares_N).mean()) / draws
    least, most = 1e-4, 0.5
    while most / least > 1.001:
        middle = math.sqrt(least * most)
        exact_NM = p_NM * ((p_NM > middle) | (p_NM == p_NM.amax(-1, keepdim=True)))
        tail_N, squares_N = 1 - exact_NM.sum(-1), candidates.squares_N - exact_NM.square().sum(-1)
        found = float((middle * tail_N - squares_N).mean())
        least, most = (least, middle) if found > wanted else (middle, most)
    return least


def near(source: Source) -> Student:
    """The teacher with a noisy head, whose logits differ by about NOISE."""
    draw = torch.Generator().manual_seed(1)
    length = source.hidden_ND.float().norm(dim=-1).square().mean().sqrt()
    noise_VD = torch.randn(source.head_VD.shape, generator=draw) * (NOISE / length)
    head_VD = source.head_VD + noise_VD
    return lambda hidden_ND: hidden_ND @ head_VD.T


def far(source: Source) -> Student:
    """The teacher's mean distribution at every position."""
    mean_V = torch.zeros(source.vocabulary)
    for _, logits_NV in source.slices():
        mean_V += logits_NV.softmax(-1).sum(0) / len(source.hidden_ND)
    logits_V = mean_V.clamp(min=1e-12).log()
    return lambda hidden_ND: logits_V.repeat(len(hidden_ND), 1)


def halfway(source: Source) -> Student:
    """The mean of the other students' logits."""
    close, distant = near(source), far(source)
    return lambda hidden_ND: (close(hidden_ND) + distant(hidden_ND)) / 2


STUDENTS: dict[str, Callable[[Source], Student]] = {"near": near, "halfway": halfway, "far": far}
