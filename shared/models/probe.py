"""A made-up row: what a model does is found out on a few tokens, and not told from its name."""

from typing import Any

import torch
from transformers import PreTrainedModel

PROBE_TOKENS = 8


def probe_inputs(model: PreTrainedModel) -> dict[str, Any]:
    """A forward pass's arguments for one row [1, PROBE_TOKENS] of the vocabulary's first ids, on the model's device."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids_BL = torch.arange(PROBE_TOKENS, device=model.device).remainder(vocabulary)[None]
    return {"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL), "return_dict": True}
