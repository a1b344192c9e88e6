"""A student's output projection, held back while the student runs, so that its losses can be had slice by slice.

The projection gets zero tokens inside the model, and what would have gone into it is kept. Whether a projection of that
(and a step that the configuration names) are the model's logits is found out once, on a probe; a student for which they
are not keeps its own forward pass.

Shapes: B rows, L tokens, D width, V vocabulary, N positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shared.dump.codecs import LogitStep
from student_train.forward.sliced_logits import SlicedLogits

PROBE_TOKENS = 8


@dataclass(frozen=True)
class StudentHead:
    """The output projection of a model, and what the model does to its result."""

    projection: nn.Linear
    after: LogitStep

    def run(self, model: nn.Module, inputs: dict[str, Any], positions_N: Tensor) -> tuple[Any, SlicedLogits]:
        """The model's output but for its logits, and these at flat indices into B * L. `model` is the projection's, or
        one that wraps it (DistributedDataParallel)."""
        held_back: list[Tensor] = []
        dtypes: list[torch.dtype] = []

        def hold_back(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            held_back.append(arguments[0])
            device = arguments[0].device.type
            autocast = torch.is_autocast_enabled(device)
            dtypes.append(torch.get_autocast_dtype(device) if autocast else self.projection.weight.dtype)
            return (arguments[0][..., :0, :], *arguments[1:])

        hook = self.projection.register_forward_pre_hook(hold_back)
        try:
            output = model(**inputs)
        finally:
            hook.remove()
        (states_BLD,), (dtype,) = held_back, dtypes
        states_ND = states_BLD.flatten(0, -2)[positions_N]
        return output, SlicedLogits(states_ND, self.projection.weight, self.projection.bias, self.after, dtype)


def plain_head(model: PreTrainedModel) -> StudentHead | None:
    """The model's head, where its logits are a linear map of a last hidden state and a step that is known."""
    projection = model.get_output_embeddings()
    if type(projection) is not nn.Linear:
        return None
    head = StudentHead(projection, LogitStep.of(model.config.get_text_config()))
    was_training = model.training
    try:
        return head if _same_as_model(head, model.eval()) else None
    finally:
        model.train(was_training)


@torch.no_grad()
def _same_as_model(head: StudentHead, model: PreTrainedModel) -> bool:
    """Two questions, because half precision blurs products by more than a soft cap changes them: are the model's logits
    what `after` makes of its own projection's output? And is that the projection of what is held back?"""
    ids_BL = torch.arange(PROBE_TOKENS, device=model.device).remainder(head.projection.out_features)[None]
    inputs = {"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL), "return_dict": True}
    projected: list[Tensor] = []
    hook = head.projection.register_forward_hook(lambda module, inputs, output: projected.append(output))
    try:
        expected = model(**inputs).logits[0].float()
    finally:
        hook.remove()
    try:
        _, sliced = head.run(model, inputs, torch.arange(PROBE_TOKENS, device=model.device))
        found = torch.cat([logits for _, logits in sliced.parts()])
    except (RuntimeError, ValueError, IndexError):
        return False  # A model that takes its projection's output to be of all tokens, or calls it twice.
    if len(projected) != 1 or found.shape != expected.shape:
        return False
    blur = max(1e-4, 16 * torch.finfo(projected[0].dtype).eps * float(expected.nan_to_num().abs().max()))
    reached = head.after(projected[0][0]).float()
    return torch.allclose(reached, expected, rtol=1e-6, atol=1e-6, equal_nan=True) and torch.allclose(
        found, expected, rtol=0.0, atol=blur, equal_nan=True
    )
