"""Models that read mixtures of two rows: lambda times the word embeddings of one, 1 - lambda times those of the other
(MixKD, Liang et al. 2021, arXiv 2011.00593, section 3).

Only the word embeddings are mixed, each model's own. Positions, and whatever else a model adds to them, are those of a
single row. Both rows are filled up to the same length with the padding token, and the model attends to every position
that either row has. Token types are those of the first row, and beyond its end those of the second.

Shapes: M mixtures, L tokens of the longest row, D width, C classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# Two made-up rows, the second of which is padded.
_PROBE_LENGTHS = 8, 5


@dataclass(frozen=True, eq=False)
class MixedInputs:
    """The inputs of a model for mixtures of rows.

    Attributes:
        first_ids, second_ids: int64 [M, L], each padded on the right.
        weights: float32 [M], the weight lambda of the first row.
        attention_mask: int64 [M, L], 1 where at least one of the rows has a token.
        token_type_ids: int64 [M, L], for pairs only.
    """

    first_ids: Tensor
    second_ids: Tensor
    weights: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor | None = None

    @classmethod
    def of(
        cls, first: Mapping[str, Tensor], second: Mapping[str, Tensor], weights_M: Tensor, pad_token_id: int
    ) -> "MixedInputs":
        """Mix two padded batches of M rows each, given as the arguments of a model: `input_ids`, `attention_mask` and,
        for pairs, `token_type_ids`."""
        length = max(first["input_ids"].shape[1], second["input_ids"].shape[1])

        def filled(batch: Mapping[str, Tensor], name: str, value: int) -> Tensor:
            return nn.functional.pad(batch[name], (0, length - batch[name].shape[1]), value=value)

        # Within each batch, padding may have been filled up with another id.
        masks = [filled(batch, "attention_mask", 0).bool() for batch in (first, second)]
        ids = [
            filled(batch, "input_ids", pad_token_id).masked_fill(~mask_ML, pad_token_id)
            for batch, mask_ML in zip((first, second), masks, strict=True)
        ]
        types = None
        if "token_type_ids" in first:
            of_first, of_second = (filled(batch, "token_type_ids", 0) for batch in (first, second))
            types = torch.where(masks[0], of_first, of_second)
        return cls(ids[0], ids[1], weights_M.float(), (masks[0] | masks[1]).long(), types)

    def each(self, change: Callable[[Tensor], Tensor]) -> "MixedInputs":
        """Return the inputs with `change` applied to every tensor."""
        types = None if self.token_type_ids is None else change(self.token_type_ids)
        return MixedInputs(
            change(self.first_ids), change(self.second_ids), change(self.weights), change(self.attention_mask), types
        )


def run_mixed(model: PreTrainedModel, inputs: MixedInputs, token_types: bool = True) -> Any:
    """Return a model's output for mixtures; `token_types` says whether it takes token types."""
    embed = model.get_input_embeddings()
    first_MLD, second_MLD = embed(inputs.first_ids), embed(inputs.second_ids)
    weights_M11 = inputs.weights[:, None, None].to(first_MLD.device)
    mixed_MLD = (weights_M11 * first_MLD + (1 - weights_M11) * second_MLD).to(first_MLD.dtype)
    arguments = {"inputs_embeds": mixed_MLD, "attention_mask": inputs.attention_mask, "return_dict": True}
    if token_types and inputs.token_type_ids is not None:
        arguments["token_type_ids"] = inputs.token_type_ids
    return model(**arguments)


@torch.no_grad()
def takes_embeddings(model: PreTrainedModel) -> bool:
    """Whether a classifier gives the same logits for the embeddings of tokens as for their ids, padded rows included.

    Models that find the end of a row by its padding token do not, and some architectures refuse embeddings. It is found
    out with two made-up rows; the model must be in evaluation mode.
    """
    pad: int | None = getattr(model.config.get_text_config(), "pad_token_id", None)
    vocabulary = range(model.get_input_embeddings().weight.shape[0])
    usable = [index for index in vocabulary if index != pad]
    ids_L = torch.tensor([usable[-1 - 7 * at % len(usable)] for at in range(max(_PROBE_LENGTHS))])
    rows = [ids_L[None, :length].to(model.device) for length in _PROBE_LENGTHS]
    mask_ML = torch.stack([torch.arange(len(ids_L)) < length for length in _PROBE_LENGTHS])
    padded = {"input_ids": ids_L.expand_as(mask_ML), "attention_mask": mask_ML.long()}
    inputs = MixedInputs.of(padded, padded, torch.ones(len(rows)), pad if pad is not None and pad in vocabulary else 0)
    try:
        expected_MC = torch.cat([model(input_ids=ids_1L, return_dict=True).logits for ids_1L in rows])
        found_MC = run_mixed(model, inputs.each(lambda tensor: tensor.to(model.device))).logits
    except Exception:  # whatever an architecture does with arguments that it does not expect
        return False
    if found_MC.shape != expected_MC.shape:
        return False
    # NaN weights are reported later, with the row.
    blur = 0.01 * float(expected_MC.nan_to_num().abs().max())
    return torch.allclose(found_MC.float(), expected_MC.float(), rtol=0.0, atol=blur, equal_nan=True)
