"""`dump --dry-run`: what it says is near the truth, and it writes nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from shared import Dump, TeacherError
from teacher_dump.annotate import annotate, prepare
from teacher_dump.estimate import estimate
from teacher_dump.request import Request


@pytest.fixture
def plan_of(make_teacher: Any, write_corpus: Any, texts: list[str], tmp_path: Path) -> Callable[..., Any]:
    data = write_corpus(tmp_path / "corpus.jsonl", texts)

    def plan(task: str, **options: Any) -> Any:
        request = Request(make_teacher(task).as_posix(), task, (str(data),), tmp_path / "out", device="cpu", **options)
        return prepare(request)

    return plan


@pytest.mark.parametrize(("task", "options"), [("causal-lm", {"top_k": 32}), ("encoder", {"hidden": "all"})])
def test_estimate_is_near_what_the_dump_takes(
    plan_of: Callable[..., Any], tmp_path: Path, task: str, options: dict[str, Any]
) -> None:
    plan = plan_of(task, max_length=64, **options)
    found = estimate(plan)
    assert not (tmp_path / "out").exists()
    annotate(plan)
    dump = Dump(tmp_path / "out")
    receipts = dump.receipts.values()
    assert found.rows == sum(receipt.rows for receipt in receipts) == 300
    assert found.sampled_rows == 256
    assert found.tokens == pytest.approx(sum(receipt.tokens for receipt in receipts), rel=0.1)
    assert found.bytes == pytest.approx(sum(receipt.bytes for receipt in receipts), rel=0.1)
    assert found.signal_bytes.keys() == {"text", *(signal.name for signal in dump.manifest.signals)}
    assert found.free_bytes > 0
    assert found.seconds > 0


def test_estimate_says_how_many_rows_are_cut(plan_of: Callable[..., Any]) -> None:
    assert estimate(plan_of("causal-lm", max_length=2)).truncated_share > 0.9
    assert estimate(plan_of("causal-lm", max_length=64)).truncated_share < 0.2


def test_a_corpus_smaller_than_the_sample_is_estimated_exactly(
    make_teacher: Any, write_corpus: Any, tmp_path: Path
) -> None:
    data = write_corpus(tmp_path / "few.jsonl", ["the quick brown fox", "a lazy dog"])
    teacher = str(make_teacher("masked-lm"))
    plan = prepare(Request(teacher, "masked-lm", (str(data),), tmp_path / "out", max_length=64, device="cpu"))
    found = estimate(plan)
    outcome = annotate(plan)
    assert found.tokens == outcome.tokens
    assert found.bytes == sum(path.stat().st_size for path in (tmp_path / "out" / "shards").glob("*.parquet"))


def test_a_sample_names_rows_of_the_corpus(
    make_teacher: Any, write_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """256 of 300 rows are drawn; the first of the bad ones is named by its place in the corpus, not in the sample."""
    teacher = make_teacher("encoder")
    model = transformers.AutoModel.from_pretrained(teacher)
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher)
    poison = tokenizer("wizards", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        model.get_input_embeddings().weight[poison] = torch.nan
    model.save_pretrained(teacher)
    data = write_corpus(tmp_path / "corpus.jsonl", ["the fox"] * 200 + ["wizards dog"] * 100)
    request = Request(str(teacher), "encoder", (str(data),), tmp_path / "out", hidden="1", device="cpu", max_length=64)
    with pytest.raises(TeacherError, match=r"row 2\d\d: NaN"):
        prepare(request)
    monkeypatch.setattr("teacher_dump.annotate.calibrate", lambda teacher, draft, *sample: draft)
    plan = prepare(request)
    first = min(number for number in plan.survey.sample_numbers if number >= 200)
    with pytest.raises(TeacherError, match=f"row {first}: NaN"):
        estimate(plan)
