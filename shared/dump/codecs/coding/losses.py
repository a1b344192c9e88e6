"""What is lost when only some ids of a distribution are kept, with rounded probabilities.

Shapes: N positions, V vocabulary, K most ids of a position, C classes: the kept ids and the rest.
"""

import torch
from torch import Tensor

from shared.dump.codecs.base import DistributionCodec, Sample
from shared.dump.codecs.targets import SparseTargets


def losses_of(codec: DistributionCodec, sample: Sample) -> dict[str, float]:
    """Measure a codec that takes logits and decodes to some ids, as means over the positions of a sample.

    Returns:
        ids_per_position; and, if the codec has exact ids, kept_mass, their probability mass, and rounding_kl, the KL
        divergence caused by rounding, over the exact ids and the rest as one class.
    """
    count, ids, mass, divergence = 0, 0, 0.0, 0.0
    for logits_NV, keys_N in sample:
        targets = codec.decode(codec.encode(logits_NV, keys_N))
        assert isinstance(targets, SparseTargets)
        exact_NV = logits_NV.double().log_softmax(-1)
        count += len(exact_NV)
        ids += int((targets.log_probs_NK > -torch.inf).sum())
        if codec.has_exact_ids:
            kept, lost = _against(exact_NV, targets.exact())
            mass, divergence = mass + kept, divergence + lost
    facts = {"ids_per_position": ids / max(count, 1)}
    if codec.has_exact_ids and count:
        facts |= {"kept_mass": mass / count, "rounding_kl": divergence / count}
    return facts


def _against(exact_NV: Tensor, found: SparseTargets) -> tuple[float, float]:
    """Return (true mass of the found ids, KL(true || found) over them and the rest), summed over positions, in
    float64."""
    is_there_NK = found.log_probs_NK > -torch.inf
    exact_NK = exact_NV.gather(1, found.ids_NK).masked_fill(~is_there_NK, -torch.inf)
    # If nothing is outside, any difference from 1 is rounding.
    rest_N = (1 - exact_NK.exp().sum(1)).clamp(min=0).masked_fill(found.tail_N == -torch.inf, 0.0)
    p_NC = torch.cat([exact_NK.exp(), rest_N[:, None]], dim=1)
    q_NC = torch.cat([found.log_probs_NK.double(), found.tail_N.double()[:, None]], dim=1).log_softmax(1)
    terms_NC = torch.where(p_NC > 0, p_NC * (p_NC.clamp(min=1e-300).log() - q_NC), 0.0)
    return float(exact_NK.exp().sum()), float(terms_NC.sum())
