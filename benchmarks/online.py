"""A student's step with a dump against the same step with the teacher's forward pass in it (online distillation).

Student: a transformer of 2 layers, 128 wide; teacher: 6 layers, 384 wide (the size of MiniLM); random weights, 4,096
ids. Both sides have the same batches (of random texts, as in reader.py) and the same loss (KL against top-64 and the
tail). One side decodes the targets of the dump, the other runs the teacher and keeps the 64 most probable ids of each
position.

The target is the ratio of floating-point operations: (teacher's forward + student's forward and backward) / student's
forward and backward. Larger products take less time per operation, and the loss and the optimizer are not counted, so
the figure may be below the target. One thread; medians of interleaved steps. With QUICK=1: fewer. Writes
benchmarks/out/online.json.

Shapes: N recorded positions, V vocabulary.
"""

import shutil
import statistics
import time
from itertools import islice
from typing import Any

import numpy as np
import reader
import torch
from reader import SMALL, TOP, Drawn
from report import Figure, write_figures
from settings import OUT, sized
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from shared.dump.codecs import Sparse, SparseTargets, Targets, TopK
from shared.memory import keep_freed_memory
from student_train.forward.outputs import BatchTargets, Outputs
from student_train.losses.logits import KLLoss

WORK = OUT / "online"
STEPS = sized(15, quick=3, tiny=1)
Batch = dict[str, Any]


def model(layers: int, width: int) -> LlamaForCausalLM:
    """A transformer with random weights and heads of 64, or two of them."""
    heads = max(2, width // 64)
    config = LlamaConfig(
        vocab_size=SMALL,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
    )
    return LlamaForCausalLM(config)


class Case:
    """Student, teacher, loss."""

    def __init__(self, codec: Sparse) -> None:
        torch.manual_seed(0)
        self.codec, self.student, self.teacher = codec, model(2, 128), model(6, 384).eval()
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-3, fused=True)
        self.loss = KLLoss(tail="class")

    def from_dump(self, batch: Batch) -> None:
        """A step with the dump's targets."""
        self.learn(batch, self.codec.decode(batch.columns))

    def online(self, batch: Batch) -> None:
        """A step with targets that the teacher computes now."""
        with torch.no_grad():
            log_probs_NK, ids_NK = logits(self.teacher, batch).log_softmax(1).topk(TOP)
            tail_N = torch.log1p(-log_probs_NK.exp().sum(1).clamp(max=1 - 1e-6))
        self.learn(batch, SparseTargets(ids_NK, log_probs_NK, tail_N))

    def learn(self, batch: Batch, targets: Targets) -> None:
        """The student's part of a step: forward, loss, backward and optimizer."""
        outputs = Outputs(logits(self.student, batch), ())
        self.loss.value(outputs, BatchTargets(targets, {}, batch.labels), None).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def operations(self, batch: Batch) -> tuple[float, float]:
        """Floating-point operations of (the teacher, the student) for one batch."""
        counts = []
        for side in (self.online, self.from_dump):
            with FlopCounterMode(display=False) as counter:
                side(batch)
            counts.append(counter.get_total_flops())
        return counts[0] - counts[1], counts[1]


def logits(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """The logits [N, V] at the recorded positions."""
    output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    return output.logits.flatten(0, 1)[batch.positions]


def main() -> None:
    """Make the dump, measure, print, write."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as `distill` does
    reader.WORK = WORK  # where its drawn dumps go
    shutil.rmtree(WORK, ignore_errors=True)
    codec = Sparse(name="distribution", selection=TopK(k=TOP), vocabulary=SMALL, in_planes=True)
    stream = iter(Drawn(codec, "small", 1, np.random.default_rng(0)).batches(0))
    case = Case(codec)
    teacher, student = case.operations(next(stream))
    seconds: dict[str, list[tuple[float, float]]] = {"dump": [], "online": []}
    for batch in islice(stream, STEPS):
        for name, side in (("dump", case.from_dump), ("online", case.online)):
            wall, cpu = time.perf_counter(), time.process_time()
            side(batch)
            seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    stream.close()  # type: ignore[attr-defined]
    shutil.rmtree(WORK)
    medians = {name: [statistics.median(clock) for clock in zip(*each, strict=True)] for name, each in seconds.items()}
    print(
        f"operations a step: teacher's forward {teacher / 1e9:.1f} G, student's forward and backward "
        f"{student / 1e9:.1f} G, {teacher / student:.1f} times as many; CPU seconds a step: {medians['dump'][0]:.3f} "
        f"from the dump, {medians['online'][0]:.3f} with the teacher in the loop"
    )
    write_figures(
        "online",
        [
            Figure(
                figure=f"student 2 x 128: from disk / with a teacher of 6 x 384, by {clock} time",
                value=1 / medians["dump"][index],
                baseline=1 / medians["online"][index],
                target=(teacher + student) / student,
                higher_is_better=True,
                unit="steps/s",
                runs=STEPS,
            )
            for index, clock in enumerate(("CPU", "wall"))
        ],
    )


if __name__ == "__main__":
    main()
