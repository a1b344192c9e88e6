"""The losses of a large vocabulary: KL against top-50, forward and backward, slice by slice against all logits at once.

    python benchmarks/fused_kl.py

2,048 positions, 512 wide, 152,064 ids; one thread. Both sides use the trainer's code: a projection and `kl_sparse` with
the tail as a class, once with `SlicedLogits`, once with the logits of all positions, their log-softmax and autograd.
Seconds are medians of interleaved runs. Peak memory is that of a separate process, minus that of a process which only
makes the weights, the states and their gradients. QUICK=1: 256 positions, one run. Writes
benchmarks/out/fused_kl.json.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from memory import peak_megabytes
from report import Figure, write_figures
from settings import sized
from torch import Tensor
from torch.nn import functional

from shared.dump.codecs import LogitStep, SparseTargets
from shared.memory import keep_freed_memory
from student_train.forward.sliced_logits import SlicedLogits
from student_train.losses import formulas

POSITIONS = sized(2_048, quick=256, tiny=16)
VOCABULARY, WIDTH, KEPT = sized((152_064, 512, 50), quick=(152_064, 512, 50), tiny=(2_000, 16, 50))
RUNS = sized(5, quick=1, tiny=1)


class Case:
    """Trainable states and projection, and the targets that a dump would have."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.states_ND = torch.randn(POSITIONS, WIDTH, generator=draw).requires_grad_()
        self.weight_VD = (torch.randn(VOCABULARY, WIDTH, generator=draw) / WIDTH**0.5).requires_grad_()
        ids_NK = torch.randint(VOCABULARY // KEPT, (POSITIONS, KEPT), generator=draw)
        ids_NK += torch.arange(KEPT) * (VOCABULARY // KEPT)
        log_probs_NC = (3 * torch.randn(POSITIONS, KEPT + 1, generator=draw)).log_softmax(1)
        self.targets = SparseTargets(ids_NK, log_probs_NC[:, :-1], log_probs_NC[:, -1])

    def fused(self) -> None:
        """The trainer's way: slice by slice."""
        sliced = SlicedLogits(self.states_ND, self.weight_VD, None, LogitStep(), torch.float32)

        def slice_loss(part: slice, logits_MV: Tensor) -> tuple[Tensor, Tensor]:
            targets = self.targets.part(part)
            value = formulas.kl_sparse(logits_MV, targets.ids_NK, targets.log_probs_NK, targets.tail_N, overwrite=True)
            value = value * (len(logits_MV) / POSITIONS)
            return value, value[None]

        sliced.summed_loss(slice_loss)[0].backward()

    def full(self) -> None:
        """The baseline: all logits, their log-softmax, and the KL over kept ids and remaining mass, with autograd."""
        log_q_NV = functional.linear(self.states_ND, self.weight_VD).log_softmax(1)
        log_q_NK = log_q_NV.gather(1, self.targets.ids_NK)
        rest_N1 = (1 - log_q_NK.exp().sum(1, keepdim=True)).clamp(min=1e-9).log()
        log_p_NC = torch.cat([self.targets.log_probs_NK, self.targets.tail_N[:, None]], dim=1)
        log_q_NC = torch.cat([log_q_NK, rest_N1], dim=1)
        functional.kl_div(log_q_NC, log_p_NC, reduction="batchmean", log_target=True).backward()

    def nothing(self) -> None:
        """Only the gradients of weights and states, to subtract their memory."""
        self.states_ND.grad, self.weight_VD.grad = torch.ones_like(self.states_ND), torch.ones_like(self.weight_VD)


def main() -> None:
    """Measure both sides, print, write."""
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        getattr(Case(), sys.argv[1])()
        return
    command = [sys.executable, __file__]
    peaks = {side: peak_megabytes([*command, side]) for side in ("nothing", "fused", "full")}
    keep_freed_memory()
    case = Case()
    check(case)
    seconds = interleaved({"fused": case.fused, "full": case.full}, case)
    size = f"V = {VOCABULARY:,}, {POSITIONS:,} tokens, top {KEPT}"
    write_figures(
        "fused_kl",
        [
            Figure(
                figure=f"peak memory beyond weights and gradients, {size}",
                value=peaks["fused"] - peaks["nothing"],
                baseline=peaks["full"] - peaks["nothing"],
                target=1 / 20,
                higher_is_better=False,
                unit="MB",
                runs=1,
            ),
            Figure(
                figure=f"CPU time, forward + backward, {size}",
                value=seconds["fused"],
                baseline=seconds["full"],
                target=1 / 1.25,
                higher_is_better=False,
                unit="s",
                runs=RUNS,
            ),
        ],
    )


def check(case: Case) -> None:
    """Check that both sides compute the same gradients."""
    found = []
    for side in (case.fused, case.full):
        case.states_ND.grad = case.weight_VD.grad = None
        side()
        found.append(case.states_ND.grad)
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-7)


def interleaved(sides: dict[str, Callable[[], None]], case: Case) -> dict[str, float]:
    """Median CPU seconds of each side."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(RUNS):
        for name, side in sides.items():
            case.states_ND.grad = case.weight_VD.grad = None
            start = time.process_time()
            side()
            seconds[name].append(time.process_time() - start)
            print(f"{name:<8}{seconds[name][-1]:>8.2f} s", flush=True)
    return {name: statistics.median(found) for name, found in seconds.items()}


if __name__ == "__main__":
    main()
