"""A student's output projection (head), held back during the forward pass, so that losses can be computed in slices.

A student whose logits cannot be reproduced in this way uses its own forward pass.

Shapes: B rows, L tokens, N positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shared.dump.codecs import LogitStep
from shared.models.head import gives_own_logits, run_without_head
from student_train.forward.evaluating import evaluating
from student_train.forward.sliced_logits import SlicedLogits


@dataclass(frozen=True)
class StudentHead:
    """The output projection of a model, and the step that the model applies to its result."""

    projection: nn.Linear
    after: LogitStep

    def run(self, model: nn.Module, inputs: dict[str, Any], positions_N: Tensor) -> tuple[Any, SlicedLogits]:
        """Return (the model's output without logits, the logits at flat indices into B * L).

        `model` is the model of the projection, or a wrapper around it (DistributedDataParallel).
        """
        output, held_back = run_without_head(model, self.projection, inputs)
        states_ND, projection = held_back.states_ND[positions_N], self.projection
        return output, SlicedLogits(states_ND, projection.weight, projection.bias, self.after, held_back.dtype)


def plain_head(model: PreTrainedModel) -> StudentHead | None:
    """Return the model's head if its logits are a linear map of the last hidden state and a known step; else None."""
    projection = model.get_output_embeddings()
    if type(projection) is not nn.Linear:
        return None
    head = StudentHead(projection, LogitStep.of(model.config.get_text_config()))

    def logits_of(inputs: dict[str, Any], positions_N: Tensor) -> Tensor:
        _, sliced = head.run(model, inputs, positions_N)
        return torch.cat([logits_MV for _, logits_MV in sliced.parts()])

    with evaluating(model):
        return head if gives_own_logits(model, projection, head.after, logits_of) else None
