"""Training stops at the first step whose losses or weights are NaN or infinite.

What follows such a step is lost: the optimizer carries NaN into every weight. A device is not waited for at every step
to find this out: each step only notes on the device whether its losses are finite, and the notes are read when a log
line, a checkpoint or a score is due, which wait for the device anyway.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from shared.errors import TrainingError

_NEVER = 2**62


class FiniteLosses:
    """Notes the first step at which each loss was NaN or infinite.

    Args:
        stage: the stage's name, for messages; empty if the recipe has no stages.
    """

    def __init__(self, stage: str) -> None:
        self._of_stage = f" of stage {stage!r}" if stage else ""
        self._first: dict[str, Tensor] = {}

    def note(self, step: int, losses: Mapping[str, Tensor]) -> None:
        """Note the losses of a batch of this step."""
        for name, value in losses.items():
            before = self._first.get(name)
            now = torch.where(value.detach().isfinite().all(), _NEVER, step)
            self._first[name] = now if before is None else torch.minimum(before, now)

    def check(self, learning_rate: float) -> None:
        """Raise TrainingError if a noted loss was not finite; it names the first step, the losses and the rate."""
        firsts = {name: int(first) for name, first in self._first.items()}
        step = min(firsts.values(), default=_NEVER)
        if step < _NEVER:
            names = ", ".join(name for name, first in firsts.items() if first == step)
            raise TrainingError(
                f"step {step:,}{self._of_stage}: the loss {names} is NaN or infinite (learning rate "
                f"{learning_rate:.1e}), so the training has stopped. {_ADVICE}"
            )

    def check_weights(self, model: nn.Module, step: int, learning_rate: float) -> None:
        """Raise TrainingError if a trainable weight is not finite after this step."""
        for name, value in model.named_parameters():
            if value.requires_grad and not bool(value.isfinite().all()):
                raise TrainingError(
                    f"step {step:,}{self._of_stage}: the weights {name} are NaN or infinite (learning rate "
                    f"{learning_rate:.1e}), so the training has stopped. {_ADVICE}"
                )


_ADVICE = (
    "Lower learning_rate, the weight of that loss or max_grad_norm, or begin with a longer warmup; checkpoints of "
    "earlier steps are kept."
)
