"""Properties of a teacher that are found by running it on a few artificial tokens."""

from collections.abc import Callable

import torch
from torch import Tensor

PROBE_ROWS, PROBE_TOKENS = 2, 3


def probe_batch(device: torch.device) -> dict[str, Tensor]:
    """A batch of the vocabulary's first ids, with fewer rows than tokens per row."""
    ids_BL = torch.arange(PROBE_ROWS * PROBE_TOKENS, device=device).view(PROBE_ROWS, PROBE_TOKENS)
    return {"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL)}


@torch.inference_mode()
def looks_ahead(logits_of: Callable[[dict[str, Tensor]], Tensor | None], device: torch.device) -> bool:
    """Whether changing the last token changes the logits [B, L, V] before it."""
    ids_BL = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1]], device=device)
    logits_BLV = logits_of({"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL)})
    assert logits_BLV is not None
    first_LV, second_LV = logits_BLV.float()
    return not torch.allclose(first_LV[:-1], second_LV[:-1], rtol=1e-2, atol=1e-2, equal_nan=True)
