"""What a student is punished for, as pure functions of tensors.

Each loss takes what the student says and what the teacher said at N recorded positions and returns one number, the
mean over them (`Divergence` says which of the divergences). Inputs in half precision are computed in float32: a
vocabulary's log-probabilities span some 30 nats, and bfloat16 resolves only 0.1 there. No positions at all give a zero
that is still part of the graph, so that a batch without targets trains nothing and breaks nothing. With `overwrite` the
student's logits may be used up, as nobody looks at them afterwards: see `lump`.

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

from shared.dump.rowgroup import MISSING
from student_train.losses.divergence import NO_MASS, Divergence
from student_train.losses.lumping import lump

Tail = Literal["class", "renormalise"]

FORWARD = Divergence()


def kl_dense(
    student_logits_NV: Tensor, teacher_logits_NV: Tensor, temperature: float = 1.0, divergence: Divergence = FORWARD
) -> Tensor:
    """KL(teacher || student), or another divergence, over all classes, times temperature squared.

    Cross-entropy with the teacher's probabilities (soft cross-entropy) is larger by the teacher's entropy, which no
    student changes: the gradients are the same.

    Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531), section 2: the square keeps
    the size of the gradients when the temperature changes.

    >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
    >>> kl_dense(logits, logits + 5.0).item()
    0.0
    """
    return _tempered(divergence, student_logits_NV, teacher_logits_NV, temperature)


def kl_sparse(
    student_logits_NV: Tensor,
    ids_NK: Tensor,
    log_probs_NK: Tensor,
    tail_N: Tensor,
    *,
    temperature: float = 1.0,
    tail: Tail = "class",
    log_sum_N: Tensor | None = None,
    divergence: Divergence = FORWARD,
    overwrite: bool = False,
) -> Tensor:
    """KL(teacher || student), or another divergence, times temperature squared, where the teacher kept K ids of the
    vocabulary.

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
    if tail == "renormalise":
        student_NK = student_logits_NV.gather(1, ids_NK).masked_fill(~is_kept_NK, NO_MASS)
        return _tempered(divergence, student_NK, log_probs_NK, temperature)

    if log_sum_N is not None:
        log_probs_NK = log_probs_NK / temperature - log_sum_N[:, None]
        # What rounding makes of an empty tail is a little more or less than nothing.
        outside_N = 1 - log_probs_NK.exp().sum(dim=1)
        tail_N = torch.where(outside_N > 0, outside_N.clamp(min=torch.finfo(outside_N.dtype).tiny).log(), NO_MASS)
        student_logits_NV = _at_temperature(student_logits_NV, temperature)
        untempered = kl_sparse(
            student_logits_NV, ids_NK, log_probs_NK, tail_N, divergence=divergence, overwrite=overwrite
        )
        return untempered * temperature**2

    # Where the whole vocabulary is kept, a tail can only be the teacher's rounding, which no student could match.
    keeps_all_N1 = is_kept_NK.sum(dim=1, keepdim=True) == student_logits_NV.shape[1]
    teacher_tail_N1 = tail_N[:, None].masked_fill(keeps_all_N1, NO_MASS)
    student_NC = lump(_at_least_float32(student_logits_NV), ids_NK, is_kept_NK, overwrite)
    return _tempered(divergence, student_NC, torch.cat([log_probs_NK, teacher_tail_N1], dim=1), temperature)


def tail_to_labels(
    ids_NK: Tensor, log_probs_NK: Tensor, tail_N: Tensor, labels_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, log_probs, tail) with K + 1 ids a position, where the label has the tail's mass beside its own. A position
    without a label keeps its tail.

    >>> ids, log_probs, tail = torch.tensor([[3, 1]]), torch.tensor([[0.5, 0.3]]).log(), torch.tensor([0.2]).log()
    >>> ids, log_probs, tail = tail_to_labels(ids, log_probs, tail, torch.tensor([1]))
    >>> ids.tolist(), [round(p, 2) for p in log_probs.exp()[0].tolist()], tail.tolist()
    ([[3, 1, 1]], [0.5, 0.5, 0.0], [-inf])
    """
    has_label_N = labels_N != MISSING
    label_N1 = labels_N.clamp(min=0)[:, None].to(ids_NK.dtype)
    is_label_NK = (ids_NK == label_N1) & has_label_N[:, None] & (log_probs_NK != NO_MASS)
    log_probs_NK = torch.where(is_label_NK, torch.logaddexp(log_probs_NK, tail_N[:, None]), log_probs_NK)
    own_N = tail_N.masked_fill(~has_label_N | is_label_NK.any(1), NO_MASS)
    return (
        torch.cat([ids_NK, label_N1], dim=1),
        torch.cat([log_probs_NK, own_N[:, None].to(log_probs_NK.dtype)], dim=1),
        tail_N.masked_fill(has_label_N, NO_MASS),
    )


def kl_sampled(student_logits_NV: Tensor, ids_NK: Tensor, log_weights_NK: Tensor, overwrite: bool = False) -> Tensor:
    """Sum over the kept ids of w * (log w - log q): forward KL against sampled targets.

    Its gradient is the student's softmax times sum(w), minus w: where the weights w are unbiased for the teacher's
    probabilities, it is unbiased for the gradient of KL(teacher || student). Its value is not: few ids, each of which
    stands for many, look more certain than the teacher is. Anshumann et al. 2025, "Sparse Logit Sampling" (arXiv
    2503.16870), section 3, for draws; any unbiased weights will do. No temperature: tempering weights is not unbiased.

    >>> logits = torch.tensor([[2.0, 0.0, -1.0, -1.0]])
    >>> round(kl_sampled(logits, torch.arange(4)[None], logits.log_softmax(-1)).item(), 6)
    0.0
    """
    is_kept_NK = log_weights_NK != NO_MASS
    log_q_NC = lump(_at_least_float32(student_logits_NV), ids_NK, is_kept_NK, overwrite).log_softmax(1)
    # Masked before the product, so that no NaN reaches the gradient either.
    log_ratio_NK = (log_weights_NK - log_q_NC[:, :-1]).masked_fill(~is_kept_NK, 0.0)
    return _mean((log_weights_NK.exp() * log_ratio_NK).sum(1))


def logits_mse(student_logits_NV: Tensor, teacher_logits_NV: Tensor) -> Tensor:
    """Mean squared difference of the logits, over positions and classes.

    Ba & Caruana 2014, "Do Deep Nets Really Need to be Deep?" (arXiv 1312.6184), section 2.1; the logit loss of
    Mukherjee & Awadallah 2019 (arXiv 1910.01769) and 2020, "XtremeDistil" (arXiv 2004.05686).
    """
    return _mean((_at_least_float32(student_logits_NV) - _at_least_float32(teacher_logits_NV)).square())


def logits_mse_ragged(student_logits_NV: Tensor, teacher_logits_NV: Tensor) -> Tensor:
    """The same where distributions have different numbers of classes, the others being -inf on both sides: the mean
    over each one's classes, then over all of them, so that each counts once."""
    is_class_NV = teacher_logits_NV != NO_MASS
    # Masked before the difference, so that no NaN reaches the gradient either.
    student_NV, teacher_NV = (
        _at_least_float32(logits_NV).masked_fill(~is_class_NV, 0.0)
        for logits_NV in (student_logits_NV, teacher_logits_NV)
    )
    return _mean((student_NV - teacher_NV).square().sum(1) / is_class_NV.sum(1).clamp(min=1))


def cross_entropy(student_logits_NV: Tensor, labels_N: Tensor, overwrite: bool = False) -> Tensor:
    """Cross-entropy with gold labels, averaged over the positions that have one (label -100: none)."""
    has_label_N1 = labels_N[:, None] != MISSING
    label_N1 = labels_N[:, None].long().masked_fill(~has_label_N1, 0)
    log_q_NC = lump(_at_least_float32(student_logits_NV), label_N1, has_label_N1, overwrite).log_softmax(1)
    return _mean(-log_q_NC[:, :1], has_label_N1)


def hidden_mse(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """Mean squared difference of hidden vectors, over positions and width.

    Romero et al. 2015, "FitNets" (arXiv 1412.6550), equation 3; Jiao et al. 2020, "TinyBERT" (arXiv 1909.10351),
    equation 8; of several layers, "XtremeDistilTransformers" (arXiv 2106.04563).
    """
    return _mean((_at_least_float32(student_ND) - _at_least_float32(teacher_ND)).square())


def hidden_cosine(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """One minus the cosine between hidden vectors, which leaves the student's lengths free.

    Sanh et al. 2019, "DistilBERT" (arXiv 1910.01108), section 2.
    """
    cosine_N = functional.cosine_similarity(_at_least_float32(student_ND), _at_least_float32(teacher_ND), dim=-1)
    return _mean(1 - cosine_N)


def hidden_kl(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """KL(teacher || student) between the softmaxes of hidden vectors over their width, which leaves the student free to
    add the same number to all of a vector's channels.

    The representation loss of Mukherjee & Awadallah 2019 (arXiv 1910.01769) and 2020, "XtremeDistil" (arXiv
    2004.05686). The direction is that of their code (github.com/MSR-LIT/XtremeDistil), which compares the vectors
    themselves, cut off at 0 and 1; through the softmax no channel is lost and no value is negative.
    """
    return _mean(FORWARD(student_ND, teacher_ND))


def _tempered(divergence: Divergence, student_NC: Tensor, teacher_NC: Tensor, temperature: float) -> Tensor:
    """The divergence between softmax(teacher / T) and softmax(student / T), times T**2, from logits."""
    values_N = divergence(_at_temperature(student_NC, temperature), _at_temperature(teacher_NC, temperature))
    return _mean(values_N) * temperature**2


def _at_temperature(logits_NC: Tensor, temperature: float) -> Tensor:
    """logits / T; at T = 1 the same ones, for a copy of a vocabulary's is large."""
    return _at_least_float32(logits_NC) if temperature == 1 else _at_least_float32(logits_NC) / temperature


def _mean(values: Tensor, counted: Tensor | None = None) -> Tensor:
    """The mean (of those that are counted), and zero for no values. What is masked reaches no gradient."""
    if counted is None:
        return values.sum() / max(values.numel(), 1)
    return values.masked_fill(~counted, 0.0).sum() / counted.sum().clamp(min=1)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
