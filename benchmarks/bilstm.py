"""A BiLSTM layer on a CPU as the student runs it, against the same layer of torch with packed rows.

    python benchmarks/bilstm.py

About 1,600 tokens per batch in rows of about 20, 40, 80 and 120 tokens, 48 wide, 128 units per direction, float32, one
thread; CPU seconds, medians of interleaved runs. QUICK=1: three runs. Writes benchmarks/out/bilstm.json.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from report import Figure, write_figures
from settings import sized
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from shared.memory import keep_freed_memory
from student_train.students.bilstm import BiLSTMConfig, BiLSTMModel

RUNS = sized(15, quick=3, tiny=1)
TOKENS, WIDTH, UNITS = 1_600, 48, 128


class Case:
    """Rows of about the same length, and a student of one layer."""

    def __init__(self, length: int) -> None:
        draw = torch.Generator().manual_seed(0)
        rows = TOKENS // length
        self.lengths_B = torch.randint(length - length // 10, length + 1, (rows,), generator=draw)
        self.lengths_B[0] = length
        self.mask_BL = (torch.arange(length) < self.lengths_B[:, None]).long()
        self.words_BLD = torch.randn(rows, length, WIDTH, generator=draw).requires_grad_()
        config = BiLSTMConfig(vocab_size=2, embedding_size=WIDTH, hidden_size=2 * UNITS, dropout=0.0)
        self.student = BiLSTMModel(config).train()

    def ours(self) -> Tensor:
        """The student's way."""
        states: Tensor = self.student(inputs_embeds=self.words_BLD, attention_mask=self.mask_BL).last_hidden_state
        return states

    def packed(self) -> Tensor:
        """The way of torch's documentation: packed rows."""
        packed = pack_padded_sequence(self.words_BLD, self.lengths_B, batch_first=True, enforce_sorted=False)
        states: Tensor = pad_packed_sequence(self.student.layers[0](packed)[0], batch_first=True)[0]
        return states

    def learn(self, read: Callable[[], Tensor]) -> Tensor:
        """Run forward and backward; return the gradient of the input."""
        self.student.zero_grad()
        self.words_BLD.grad = None
        read().square().sum().backward()
        assert self.words_BLD.grad is not None
        return self.words_BLD.grad


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Measure both sides, print, write."""
    torch.set_num_threads(1)
    keep_freed_memory()
    figures = []
    for length in (20, 40, 80, 120):
        case = Case(length)
        torch.testing.assert_close(case.ours(), case.packed())
        torch.testing.assert_close(case.learn(case.ours), case.learn(case.packed), rtol=1e-3, atol=1e-5)
        training: dict[str, list[float]] = {"ours": [], "packed": []}
        reading: dict[str, list[float]] = {"ours": [], "packed": []}
        for _ in range(RUNS):
            for name, side in (("ours", case.ours), ("packed", case.packed)):
                training[name].append(seconds(partial(case.learn, side)))
                with torch.no_grad():
                    reading[name].append(seconds(side))
        figures += [
            Figure(
                figure=f"{what}, rows of about {length} tokens",
                value=1e3 * statistics.median(found["ours"]),
                baseline=1e3 * statistics.median(found["packed"]),
                target=1.0,
                higher_is_better=False,
                unit="ms",
                runs=RUNS,
            )
            for what, found in (("forward + backward", training), ("forward", reading))
        ]
    write_figures("bilstm", figures)


if __name__ == "__main__":
    main()
