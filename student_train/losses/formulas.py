"""Loss functions, as pure functions of tensors.

Each takes the student's outputs and the targets at N recorded positions and returns their mean loss, one number (the
argument `divergence` selects a `Divergence`). Half-precision inputs are converted to float32: log-probabilities of a
vocabulary span some 30 nats, where bfloat16 resolves only 0.1. Without any position the loss is a zero that is still
part of the graph, so that a batch without targets trains nothing and breaks nothing. With `overwrite` a loss may
overwrite the student's logits, because nothing reads them afterwards: see `lump`.

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

    Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531), section 2: the factor
    temperature squared keeps the size of the gradients when the temperature changes.

    >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
    >>> kl_dense(logits, logits + 5.0).item()
    0.0
    """
    return _mean_divergence(divergence, student_logits_NV, teacher_logits_NV, temperature)


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
    """KL(teacher || student), or another divergence, times temperature squared, if the teacher's targets are K ids of
    the vocabulary.

    `log_probs_NK` are the teacher's log-probabilities of `ids_NK` over the whole vocabulary, and `tail_N` is the log of
    its mass outside of them, -inf where nothing is outside. A row with fewer than K candidates is padded with
    log-probability -inf; the ids there are ignored. A row without any mass counts as 0.

    `tail="class"`: everything outside is one more class, so that the student learns how much mass belongs there but
    not where. If `log_sum_N` is given, the log of the teacher's sum over V of p ** (1 / temperature), the temperature
    is applied to both distributions over the whole vocabulary, as in Hinton's formula, before the ids outside are
    lumped together. Otherwise it is applied to the K + 1 classes of both distributions.
    `tail="renormalise"`: both distributions are conditioned on the K ids; the student's mass outside costs nothing.

    >>> logits = torch.tensor([[2.0, 0.0, -1.0, -1.0]])
    >>> log_probs = logits.log_softmax(-1)
    >>> ids = torch.tensor([[0, 1]])
    >>> round(kl_sparse(logits, ids, log_probs[:, :2], log_probs[:, 2:].logsumexp(-1)).item(), 6)
    0.0
    """
    is_kept_NK = log_probs_NK != NO_MASS
    if tail == "renormalise":
        student_NK = student_logits_NV.gather(1, ids_NK).masked_fill(~is_kept_NK, NO_MASS)
        return _mean_divergence(divergence, student_NK, log_probs_NK, temperature)

    if log_sum_N is not None:
        log_probs_NK = log_probs_NK / temperature - log_sum_N[:, None]
        # Rounding can make an empty tail slightly larger or smaller than zero.
        outside_N = 1 - log_probs_NK.exp().sum(dim=1)
        tail_N = torch.where(outside_N > 0, outside_N.clamp(min=torch.finfo(outside_N.dtype).tiny).log(), NO_MASS)
        student_logits_NV = _at_temperature(student_logits_NV, temperature)
        value = kl_sparse(student_logits_NV, ids_NK, log_probs_NK, tail_N, divergence=divergence, overwrite=overwrite)
        return value * temperature**2

    # If the whole vocabulary is kept, a tail can only be a rounding error, which no student could match.
    keeps_all_N1 = is_kept_NK.sum(dim=1, keepdim=True) == student_logits_NV.shape[1]
    teacher_tail_N1 = tail_N[:, None].masked_fill(keeps_all_N1, NO_MASS)
    student_NC = lump(_at_least_float32(student_logits_NV), ids_NK, is_kept_NK, overwrite)
    return _mean_divergence(divergence, student_NC, torch.cat([log_probs_NK, teacher_tail_N1], dim=1), temperature)


def tail_to_labels(
    ids_NK: Tensor, log_probs_NK: Tensor, tail_N: Tensor, labels_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (ids, log_probs, tail) with K + 1 ids per position, where the tail's mass is added to that of the label.
    A position without a label keeps its tail.

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

    The gradient is the student's softmax times sum(w), minus w. If the weights w are unbiased estimates of the
    teacher's probabilities, it is an unbiased estimate of the gradient of KL(teacher || student). The value is biased:
    a few ids that represent many look more certain than the teacher is. Anshumann et al. 2025, "Sparse Logit Sampling"
    (arXiv 2503.16870), section 3, for draws; any unbiased weights are possible. There is no temperature, because
    applying one to the weights would make them biased.

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
    """`logits_mse` for distributions with different numbers of classes, padded with -inf on both sides: the mean over
    each distribution's own classes, then over the distributions, so that each counts equally."""
    is_class_NV = teacher_logits_NV != NO_MASS
    # Masked before the difference, so that no NaN reaches the gradient either.
    student_NV, teacher_NV = (
        _at_least_float32(logits_NV).masked_fill(~is_class_NV, 0.0)
        for logits_NV in (student_logits_NV, teacher_logits_NV)
    )
    return _mean((student_NV - teacher_NV).square().sum(1) / is_class_NV.sum(1).clamp(min=1))


def cross_entropy(student_logits_NV: Tensor, labels_N: Tensor, overwrite: bool = False) -> Tensor:
    """Cross-entropy with gold labels, averaged over the positions that have one (label -100 means none)."""
    has_label_N1 = labels_N[:, None] != MISSING
    label_N1 = labels_N[:, None].long().masked_fill(~has_label_N1, 0)
    log_q_NC = lump(_at_least_float32(student_logits_NV), label_N1, has_label_N1, overwrite).log_softmax(1)
    return _mean(-log_q_NC[:, :1], has_label_N1)


def mixed_cross_entropy(logits_MC: Tensor, labels_M2: Tensor, weights_M: Tensor) -> Tensor:
    """Cross-entropy of M mixtures of rows with their mixed labels: `weights_M` times that with the first row's label,
    plus 1 - `weights_M` times that with the second's. Mixtures that lack a label do not count.

    Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization" (arXiv 1710.09412), section 2.

    >>> round(mixed_cross_entropy(torch.zeros(1, 2), torch.tensor([[0, 1]]), torch.tensor([0.3])).item(), 6)
    0.693147
    """
    is_known_M = (labels_M2 != MISSING).all(1)
    log_probs_M2 = _at_least_float32(logits_MC).log_softmax(-1).gather(1, labels_M2.clamp(min=0))
    losses_M = -(torch.stack([weights_M, 1 - weights_M], 1) * log_probs_M2).sum(1)
    return losses_M.where(is_known_M, 0.0).sum() / is_known_M.sum().clamp(min=1)


def hidden_mse(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """Mean squared difference of hidden vectors, over positions and width.

    Romero et al. 2015, "FitNets" (arXiv 1412.6550), equation 3; Jiao et al. 2020, "TinyBERT" (arXiv 1909.10351),
    equation 8; for several layers, "XtremeDistilTransformers" (arXiv 2106.04563).
    """
    return _mean((_at_least_float32(student_ND) - _at_least_float32(teacher_ND)).square())


def hidden_cosine(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """One minus the cosine between hidden vectors; the lengths of the student's vectors do not matter.

    Sanh et al. 2019, "DistilBERT" (arXiv 1910.01108), section 2.
    """
    cosine_N = functional.cosine_similarity(_at_least_float32(student_ND), _at_least_float32(teacher_ND), dim=-1)
    return _mean(1 - cosine_N)


def hidden_kl(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """KL(teacher || student) between the softmaxes of hidden vectors over their width; adding the same number to all
    channels of a student's vector does not change it.

    The representation loss of Mukherjee & Awadallah 2019 (arXiv 1910.01769) and 2020, "XtremeDistil" (arXiv
    2004.05686). The direction is that of their code (github.com/MSR-LIT/XtremeDistil), which compares the vectors
    themselves, clipped to 0 and 1; with the softmax no channel is lost and no value is negative.
    """
    return _mean(FORWARD(student_ND, teacher_ND))


def _mean_divergence(divergence: Divergence, student_NC: Tensor, teacher_NC: Tensor, temperature: float) -> Tensor:
    """The mean divergence between softmax(teacher / T) and softmax(student / T), times T**2, from logits."""
    values_N = divergence(_at_temperature(student_NC, temperature), _at_temperature(teacher_NC, temperature))
    return _mean(values_N) * temperature**2


def _at_temperature(logits_NC: Tensor, temperature: float) -> Tensor:
    """Return logits / T; for T = 1 without a copy, because the logits of a vocabulary are large."""
    return _at_least_float32(logits_NC) if temperature == 1 else _at_least_float32(logits_NC) / temperature


def _mean(values: Tensor, counted: Tensor | None = None) -> Tensor:
    """Return the mean over the values (or those that are `counted`), 0 without any; the others get no gradient."""
    if counted is None:
        return values.sum() / max(values.numel(), 1)
    return values.masked_fill(~counted, 0.0).sum() / counted.sum().clamp(min=1)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
