"""A made-up row: what a model does is found out on a few tokens, and not told from its name."""

from typing import Any

import torch
from transformers import PreTrainedModel

PROBE_TOKENS = 8
# Enough to see how wide something is, and no more than the smallest model reads.
FEWEST_TOKENS = 2


def probe_inputs(model: PreTrainedModel, tokens: int = PROBE_TOKENS) -> dict[str, Any]:
    """A forward pass's arguments for one row [1, tokens] of the vocabulary's first ids, on the model's device."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids_BL = torch.arange(tokens, device=model.device).remainder(vocabulary)[None]
    return {"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL), "return_dict": True}
