"""What a student is punished for, as pure functions of tensors.

Each loss takes what the student says and what the teacher said at N recorded positions and returns one number, the
mean over them. Inputs in half precision are computed in float32: a vocabulary's log-probabilities span some 30 nats,
and bfloat16 resolves only 0.1 there. No positions at all give a zero that is still part of the graph, so that a batch
without targets trains nothing and breaks nothing.

Shape suffixes:
    N  recorded positions
    V  vocabulary, or classes
    K  candidates that the teacher kept
    C  classes that are compared: V, K, or K and the tail
    D  width of a vector
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Tail = Literal["class", "renormalise"]

MISSING_LABEL = -100
NO_MASS = float("-inf")


def kl_dense(student_logits_NV: Tensor, teacher_logits_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """Forward KL(teacher || student) over all classes, times temperature squared.

    Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531), section 2: the square keeps
    the size of the gradients when the temperature changes.

    >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
    >>> kl_dense(logits, logits + 5.0).item()
    0.0
    """
    return _tempered_kl(student_logits_NV, teacher_logits_NV, temperature)


def kl_sparse(
    student_logits_NV: Tensor,
    ids_NK: Tensor,
    log_probs_NK: Tensor,
    tail_N: Tensor,
    *,
    temperature: float = 1.0,
    tail: Tail = "class",
    log_sum_N: Tensor | None = None,
) -> Tensor:
    """Forward KL(teacher || student), times temperature squared, where the teacher kept K ids of the vocabulary.

    `log_probs_NK` are the teacher's log-probabilities of `ids_NK` over the whole vocabulary, and `tail_N` is the log of
    its mass outside of them, -inf where nothing is outside. A row with fewer than K candidates is filled up with
    log-probability -inf; the ids there are ignored. A row that says nothing at all counts as a zero.

    `tail="class"`: everything outside is one more class, so that the student learns how much mass belongs there but
    not where. At another temperature the K + 1 classes are tempered as a whole, on both sides; unless `log_sum_N`, the
    log of the teacher's sum over V of p ** (1 / temperature), is known: then each side is tempered over the whole
    vocabulary first, as Hinton's formula has it, and lumped together afterwards.
    `tail="renormalise"`: both sides are conditioned on the K ids, and the student's mass outside goes unpunished.

    >>> logits = torch.tensor([[2.0, 0.0, -1.0, -1.0]])
    >>> log_probs = logits.log_softmax(-1)
    >>> ids = torch.tensor([[0, 1]])
    >>> round(kl_sparse(logits, ids, log_probs[:, :2], log_probs[:, 2:].logsumexp(-1)).item(), 6)
    0.0
    """
    is_kept_NK = log_probs_NK != NO_MASS
    student_NK = student_logits_NV.gather(1, ids_NK).masked_fill(~is_kept_NK, NO_MASS)
    if tail == "renormalise":
        return _tempered_kl(student_NK, log_probs_NK, temperature)

    if log_sum_N is not None:
        log_probs_NK = log_probs_NK / temperature - log_sum_N[:, None]
        # What rounding makes of an empty tail is a little more or less than nothing.
        outside_N = 1 - log_probs_NK.exp().sum(dim=1)
        tail_N = torch.where(outside_N > 0, outside_N.clamp(min=torch.finfo(outside_N.dtype).tiny).log(), NO_MASS)
        student_logits_NV = _at_least_float32(student_logits_NV) / temperature
        untempered = kl_sparse(student_logits_NV, ids_NK, log_probs_NK, tail_N)
        return untempered * temperature**2

    # Where the whole vocabulary is kept, a tail can only be the teacher's rounding, which no student could match.
    keeps_all_N1 = is_kept_NK.sum(dim=1, keepdim=True) == student_logits_NV.shape[1]
    teacher_tail_N1 = tail_N[:, None].masked_fill(keeps_all_N1, NO_MASS)
    # The student's mass outside is the sum over everything outside: 1 - sum(kept) would lose all its digits, and its
    # gradient would blow up, exactly where a good student ends, with nearly all of its mass on the kept ids.
    # A filling points at an id that is erased anyway. (Where a row has none, the tail is its only class: loss zero.)
    erased_NK = torch.where(is_kept_NK, ids_NK, ids_NK.gather(1, log_probs_NK.argmax(dim=1, keepdim=True)))
    # A row that would lose everything loses nothing until the sum is taken, whose gradient would be NaN.
    erasure_N1 = torch.where(keeps_all_N1, 0.0, NO_MASS).to(student_logits_NV.dtype)
    outside_NV = student_logits_NV.scatter(1, erased_NK, erasure_N1.expand_as(erased_NK))
    student_tail_N1 = _at_least_float32(outside_NV).logsumexp(dim=1, keepdim=True).masked_fill(keeps_all_N1, NO_MASS)
    return _tempered_kl(
        torch.cat([student_NK, student_tail_N1], dim=1),
        torch.cat([log_probs_NK, teacher_tail_N1], dim=1),
        temperature,
    )


def kl_sampled(student_logits_NV: Tensor, ids_NK: Tensor, log_weights_NK: Tensor) -> Tensor:
    """Sum over the kept ids of w * (log w - log q): forward KL against sampled targets.

    Its gradient is the student's softmax times sum(w), minus w: where the weights w are unbiased for the teacher's
    probabilities, it is unbiased for the gradient of KL(teacher || student). Its value is not: few ids, each of which
    stands for many, look more certain than the teacher is. Anshumann et al. 2025, "Sparse Logit Sampling" (arXiv
    2503.16870), section 3, for draws; any unbiased weights will do. No temperature: tempering weights is not unbiased.

    >>> logits = torch.tensor([[2.0, 0.0, -1.0, -1.0]])
    >>> round(kl_sampled(logits, torch.arange(4)[None], logits.log_softmax(-1)).item(), 6)
    0.0
    """
    log_q_NK = _log_softmax(student_logits_NV, 1.0).gather(1, ids_NK)
    log_ratio_NK = (log_weights_NK - log_q_NK).masked_fill(log_weights_NK == NO_MASS, 0.0)
    return (log_weights_NK.exp() * log_ratio_NK).sum() / max(len(ids_NK), 1)


def logits_mse(student_logits_NV: Tensor, teacher_logits_NV: Tensor) -> Tensor:
    """Mean squared difference of the logits, over positions and classes.

    Ba & Caruana 2014, "Do Deep Nets Really Need to be Deep?" (arXiv 1312.6184), section 2.1.
    """
    return _mean((_at_least_float32(student_logits_NV) - _at_least_float32(teacher_logits_NV)).square())


def cross_entropy(student_logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Cross-entropy with gold labels, averaged over the positions that have one (label -100: none)."""
    total = functional.cross_entropy(
        _at_least_float32(student_logits_NV), labels_N.long(), ignore_index=MISSING_LABEL, reduction="sum"
    )
    return total / (labels_N != MISSING_LABEL).sum().clamp(min=1)


def hidden_mse(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """Mean squared difference of hidden vectors, over positions and width.

    Romero et al. 2015, "FitNets" (arXiv 1412.6550), equation 3; Jiao et al. 2020, "TinyBERT" (arXiv 1909.10351),
    equation 8.
    """
    return _mean((_at_least_float32(student_ND) - _at_least_float32(teacher_ND)).square())


def hidden_cosine(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """One minus the cosine between hidden vectors, which leaves the student's lengths free.

    Sanh et al. 2019, "DistilBERT" (arXiv 1910.01108), section 2.
    """
    cosine_N = functional.cosine_similarity(_at_least_float32(student_ND), _at_least_float32(teacher_ND), dim=-1)
    return _mean(1 - cosine_N)


def _tempered_kl(student_NC: Tensor, teacher_NC: Tensor, temperature: float) -> Tensor:
    """KL(softmax(teacher / T) || softmax(student / T)) * T**2 from logits, where -inf is a class without mass."""
    # A row of nothing but -inf says nothing; made uniform on both sides, it is a zero.
    says_nothing_N1 = (teacher_NC == NO_MASS).all(dim=1, keepdim=True)
    log_p_NC = _log_softmax(teacher_NC.masked_fill(says_nothing_N1, 0.0), temperature)
    log_q_NC = _log_softmax(student_NC.masked_fill(says_nothing_N1, 0.0), temperature)
    # 0 * log 0 is 0. The difference is masked before the product, so that no NaN reaches the gradient either.
    log_ratio_NC = (log_p_NC - log_q_NC).masked_fill(log_p_NC == NO_MASS, 0.0)
    return _mean((log_p_NC.exp() * log_ratio_NC).sum(dim=1)) * temperature**2


def _log_softmax(logits_NC: Tensor, temperature: float) -> Tensor:
    return functional.log_softmax(_at_least_float32(logits_NC) / temperature, dim=1)


def _mean(values: Tensor) -> Tensor:
    """The mean, and zero for no values."""
    return values.sum() / max(values.numel(), 1)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
