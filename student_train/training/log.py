"""What a training run logs: losses, speed, and how the student's distributions compare with the teacher's.

All values are summed on the training device, without synchronizing with it, and summed over the ranks when a line is
due. Distributions are compared at no more than `COMPARED_POSITIONS` positions of a batch, so that this costs almost
nothing for a large vocabulary: a softmax over 64 of 2,000 positions.

Shapes: N recorded positions, V vocabulary or classes, K candidates that the teacher kept.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from shared.dump.codecs import Targets
from shared.progress import Progress, human_seconds
from student_train.forward.outputs import Outputs
from student_train.scoring.agreement import is_agreed

COMPARED_POSITIONS = 64

AGREEMENT = "agreement"
SPARSE_MEASURES = ("kept_mass", "teacher_tail", "student_tail")
LOSS_PREFIX, SCORE_PREFIX = "loss/", "eval_"
TOKENS_PER_SECOND, LOADER_SHARE = "tokens_per_second", "loader_share"

# Name of a measure -> its sum over the positions compared.
Sums = dict[str, Tensor]


@torch.no_grad()
def compare(outputs: Outputs, distributions: Targets) -> Sums:
    """Compare a student's distributions with the teacher's at some evenly spaced positions.

    Returns:
        Sums over these positions, by name:
        positions: their number;
        agreement: 1 where the student's most probable class is the teacher's;
        and, if the dump keeps only some ids of a vocabulary,
        kept_mass, teacher_tail: the teacher's probability of the ids that the dump keeps, and of all others;
        student_tail: the student's probability of all others.
    """
    step = max(1, -(-outputs.positions // COMPARED_POSITIONS))
    logits_NV = torch.cat([logits_NV.float() for _, logits_NV in outputs.every(step).parts()])
    distributions = distributions.part(slice(None, None, step)).resized(logits_NV.shape[-1])
    sums = {
        "positions": torch.full((), len(logits_NV), dtype=torch.float32, device=logits_NV.device),
        AGREEMENT: is_agreed(logits_NV, distributions).float().sum(),
    }
    if distributions.has_all_logits:
        return sums
    exact = distributions.exact()
    student_NK = (logits_NV.gather(1, exact.ids_NK) - logits_NV.logsumexp(-1, keepdim=True)).exp()
    outside_N = 1 - student_NK.masked_fill(exact.log_probs_NK == -torch.inf, 0.0).sum(-1)
    return {
        **sums,
        "kept_mass": exact.log_probs_NK.exp().sum(),
        "teacher_tail": exact.tail_N.exp().sum(),
        "student_tail": outside_N.clamp(min=0.0).sum(),
    }


class Account:
    """Adds up losses, measures, tokens and times between two lines of the log.

    Attributes:
        tokens: number of tokens that this rank has trained on, without padding.
        waited_seconds: how long this rank has waited for batches.
    """

    def __init__(self) -> None:
        self._sums: Sums = {}
        self._clear()

    def _clear(self) -> None:
        self._sums = {name: torch.zeros_like(value) for name, value in self._sums.items()}
        self.tokens, self.waited_seconds, self._start = 0, 0.0, time.monotonic()

    def leave_out(self, seconds: float) -> None:
        """Exclude seconds that were spent on something other than training."""
        self._start += seconds

    def add(self, sums: Sums) -> None:
        """Add values to the sums of the same names."""
        for name, value in sums.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def take(self, steps: int, ranks: int, sum_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the values of one log line, over the `steps` steps since the last line and over all ranks, and reset.

        Every rank must call this, with the same names added.
        """
        names, seconds = list(self._sums), time.monotonic() - self._start
        host = torch.tensor([float(self.tokens), self.waited_seconds])
        device = self._sums[names[0]].device if names else host.device
        total = sum_over_ranks(torch.cat([host.to(device), *(self._sums[name].reshape(1).float() for name in names)]))
        tokens, waited, *values = total.tolist()
        sums = dict(zip(names, values, strict=True))
        self._clear()
        positions = max(sums.get("positions", 0.0), 1.0)
        return {
            **{name: value / steps for name, value in sums.items() if name.startswith(LOSS_PREFIX)},
            **{name: sums[name] / positions for name in (AGREEMENT, *SPARSE_MEASURES) if name in sums},
            TOKENS_PER_SECOND: tokens / seconds,
            LOADER_SHARE: waited / (ranks * seconds),
        }


class LogAtTheEnd(TrainerCallback):
    """Requests a log line after the last step, in addition to the Trainer's every `logging_steps` steps."""

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """Request a log line if this was the last step."""
        control.should_log = control.should_log or state.global_step >= state.max_steps


class ProgressReport(TrainerCallback):
    """Shows a progress bar of steps on a terminal, and prints a line whenever the Trainer logs."""

    def __init__(self, label: str, steps: int, first_step: int) -> None:
        self._progress = Progress(label, "steps", steps)
        self._progress.advance(first_step)
        self._label, self._steps, self._first_step = label, steps, first_step
        self._start = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """Advance the bar by one step."""
        self._progress.advance(1)

    def on_substep_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """Show that a step of many batches is at work."""
        self._progress.advance(0)

    def on_log(self, args: TrainingArguments, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Print the logged values, or the score of an evaluation."""
        for name in logs:
            if name.startswith(SCORE_PREFIX):
                score = f"held-out {name.removeprefix(SCORE_PREFIX)} {logs[name]:.4f}"
                self._progress.say(f"{self._label}  step {state.global_step}/{self._steps}  {score}")
        if TOKENS_PER_SECOND not in logs:
            return  # the score of an evaluation, or the Trainer's summary at the end
        left = (time.monotonic() - self._start) / (state.global_step - self._first_step)
        left *= self._steps - state.global_step
        self._progress.say(
            f"{self._label}  step {state.global_step}/{self._steps}  {line(logs)}  {human_seconds(left)} left"
        )

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        self._progress.close()


def line(logs: dict[str, float]) -> str:
    """Format logged values for people.

    >>> line({"loss/kl": 1.5, "agreement": 0.25, "learning_rate": 1e-4, "tokens_per_second": 12345, "loader_share": 0})
    'kl 1.5000  agree 25%  lr 1.0e-04  12,345 tokens/s  loader 0%'
    """
    parts = [f"{name.removeprefix(LOSS_PREFIX)} {logs[name]:.4f}" for name in logs if name.startswith(LOSS_PREFIX)]
    if AGREEMENT in logs:
        parts.append(f"agree {logs[AGREEMENT]:.0%}")
    if "kept_mass" in logs:
        parts.append(f"kept {logs['kept_mass']:.3f}")
        parts.append(f"tail {logs['teacher_tail']:.3f} (student {logs['student_tail']:.3f})")
    parts.append(f"lr {logs['learning_rate']:.1e}")
    parts.append(f"{logs[TOKENS_PER_SECOND]:,.0f} tokens/s")
    parts.append(f"loader {logs[LOADER_SHARE]:.0%}")
    return "  ".join(parts)
