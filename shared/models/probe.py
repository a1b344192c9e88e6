"""A made-up row, to find out how a model behaves by running it on a few tokens rather than from its name."""

from typing import Any

import torch
from transformers import PreTrainedModel

PROBE_TOKENS = 8
# Enough to find out widths, and not too many for the smallest model.
FEWEST_TOKENS = 2


def probe_inputs(model: PreTrainedModel, tokens: int = PROBE_TOKENS) -> dict[str, Any]:
    """Return the arguments of a forward pass for one row [1, tokens] of the vocabulary's first ids, on the model's
    device."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids_BL = torch.arange(tokens, device=model.device).remainder(vocabulary)[None]
    return {"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL), "return_dict": True}
