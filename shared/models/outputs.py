"""What a model's output has in the way of logits."""

from typing import Any

import torch
from torch import Tensor


def logits_of(output: Any) -> Tensor | None:
    """The logits of a transformers model's output: [rows, classes] or [rows, tokens, classes or vocabulary], of a model
    that answers questions [rows, tokens, 2], start and end. None for a model without a head.

    >>> from transformers.modeling_outputs import QuestionAnsweringModelOutput
    >>> start_BL, end_BL = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])
    >>> logits_of(QuestionAnsweringModelOutput(start_logits=start_BL, end_logits=end_BL))
    tensor([[[1., 3.],
             [2., 4.]]])
    """
    if getattr(output, "start_logits", None) is not None:
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    logits: Tensor | None = getattr(output, "logits", None)
    return logits
