"""Latencies: all runtimes get the same inputs, equally often."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from shared.text.columns import ColumnNames
from shared.text.tasks import TASKS
from student_train.data.sources import TextSource
from student_train.scoring import latency

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"]


@pytest.fixture
def source(write_corpus: Callable[..., Path], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> TextSource:
    """Five rows of 3, 4, ..., 7 tokens."""
    rows = [{"text": " ".join(WORDS[: row + 1]), "label": "a"} for row in range(5)]
    task = TASKS["sequence-classification"]
    columns = task.columns(ColumnNames(), labels_required=True)
    return TextSource(task, [str(write_corpus(tmp_path / "rows.jsonl", rows))], columns, tiny_tokenizer, 64, ("a",))


class Recorder:
    """A runtime that only records its inputs."""

    def __init__(self, name: str, calls: list[tuple[str, tuple[int, ...]]]) -> None:
        self.name, self.calls = name, calls

    def inputs(self, tensors: Mapping[str, Tensor]) -> Any:
        return tuple(tensors["attention_mask"].sum(1).tolist())

    def run(self, inputs: Any) -> dict[str, Any]:
        self.calls.append((self.name, inputs))
        return {}


def test_batches_are_the_first_rows_in_order_and_always_full(source: TextSource) -> None:
    lengths = [batch.attention_mask.sum(1).tolist() for batch in latency.first_batches(source, 2, 4)]
    assert lengths == [[3, 4], [5, 6], [7, 3], [4, 5]]
    assert [batch.input_ids.shape for batch in latency.first_batches(source, 2, 2)] == [(2, 4), (2, 6)]
    (batch,) = latency.first_batches(source, 32, 1)
    assert batch.input_ids.shape == (32, 7)


def test_slow_and_fast_see_the_same_inputs_equally_often(source: TextSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "LATENCY_BATCHES", {1: 3, 2: 2})
    calls: list[tuple[str, tuple[int, ...]]] = []
    runners = [(Recorder(name, calls), source) for name in ("slow", "fast")]
    medians = latency.latencies(runners, seconds=0)
    assert [set(median) for median in medians] == [{1, 2}, {1, 2}]
    assert calls[:6] == [(name, length) for name in ("slow", "fast") for length in ((3,), (4,), (5,))], "warming up"
    assert set(Counter(calls).values()) == {1 + latency.LEAST_TURNS}
    assert len({inputs for _, inputs in calls}) == 5
