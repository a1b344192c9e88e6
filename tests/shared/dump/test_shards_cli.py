"""`shards info | head | stats | verify`, as a person reads them."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from shared import Dump
from shared.cli import run
from shared.dump import inspection
from shared.dump.cli import app

TASKS = ("causal-lm", "masked-lm", "sequence-classification", "token-classification", "encoder")


@pytest.fixture
def shards(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    """shards("info", dump) -> (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["shards", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run(app)
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


@pytest.mark.parametrize("task", TASKS)
def test_every_view_of_every_task(task: str, make_dump: Any, shards: Any, tmp_path: Path) -> None:
    dump = make_dump(task, hidden="1")
    code, info, _ = shards("info", dump)
    assert code == 0
    assert task in info
    assert "60 of 60" in info
    assert "4 of 4 finished" in info
    for column in Dump(dump).scan().collect_schema().names():
        assert column in info

    code, head, _ = shards("head", dump, "-n", 2)
    assert code == 0
    assert "row 0 ·" in head
    assert "row 1 ·" in head
    assert "row 2 ·" not in head

    code, stats, _ = shards("stats", dump, "--plot", tmp_path / "plot.png")
    assert code == 0
    assert "tokens a row" in stats
    assert ("entropy" in stats) == (task != "encoder")
    assert (tmp_path / "plot.png").stat().st_size > 1000

    code, verified, _ = shards("verify", dump)
    assert code == 0
    assert "every byte as it was written" in verified


def test_a_plot_without_matplotlib_is_refused_before_the_work(
    make_dump: Any, shards: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, stats, message = shards("stats", make_dump("causal-lm"), "--plot", tmp_path / "plot.png")
    assert (code, stats) == (2, "")
    assert "plots need matplotlib" in message


def test_head_names_the_teachers_first_choice_and_the_gold_label(make_dump: Any, shards: Any) -> None:
    dump = make_dump("sequence-classification", data=[{"text": "the quick fox", "label": "positive"}])
    first = Dump(dump).positions().collect().row(0, named=True)
    best = Dump(dump).manifest.label_names[int(np.argmax(first["log_probs"]))]
    _, head, _ = shards("head", dump)
    assert f"gold: positive   teacher: {best} {math.exp(max(first['log_probs'])):.3f}" in head


def test_head_puts_the_next_token_beside_its_candidates(make_dump: Any, shards: Any) -> None:
    dump = make_dump("causal-lm", data=["the quick brown fox"], top_k=3)
    first = Dump(dump).positions().collect().row(0, named=True)
    texts = Dump(dump).token_texts
    _, head, _ = shards("head", dump, "-k", 3)
    line = next(line for line in head.splitlines() if line.strip().startswith("0  "))
    assert texts[first["label"]] in line
    assert all(texts[index] in line for index in first["ids"] if index < len(texts))


def test_spreads_equal_a_plain_computation(make_dump: Any) -> None:
    dump = Dump(make_dump("masked-lm", top_k=5))
    rows = dump.positions().collect()
    log_probs = np.array(rows["log_probs"].to_list(), np.float64)
    tail = rows["tail"].to_numpy().astype(np.float64)
    expected = {
        "entropy": -(np.exp(log_probs) * log_probs).sum(1) - np.exp(tail) * tail,
        "top-1 probability": np.exp(log_probs[:, 0]),
        "kept mass": 1 - np.exp(tail),
    }
    found = {spread.name: spread for spread in inspection.spreads(dump)}
    for name, values in expected.items():
        assert found[name].count == len(values)
        assert found[name].mean == pytest.approx(values.mean(), rel=1e-6)
        assert min(values) <= found[name].quantiles[2] <= max(values)
    accuracy, count = inspection.teacher_accuracy(dump) or (None, None)
    assert count == len(rows)
    assert accuracy == pytest.approx(np.mean([ids[0] == label for ids, label in rows.select("ids", "label").rows()]))


def test_an_entropy_of_dense_logits_is_that_of_their_softmax(make_dump: Any) -> None:
    dump = Dump(make_dump("sequence-classification"))
    probabilities = np.exp(np.array(dump.positions().collect()["log_probs"].to_list()))
    entropy = next(spread for spread in inspection.spreads(dump) if spread.name == "entropy")
    assert entropy.mean == pytest.approx(-(probabilities * np.log(probabilities)).sum(1).mean(), rel=1e-6)
    assert probabilities.sum(1) == pytest.approx(np.ones(60))


def test_verify_names_the_damaged_file_and_ends_with_1(make_dump: Any, shards: Any) -> None:
    dump = make_dump()
    damaged = dump / "shards" / "00002.parquet"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 4
    damaged.write_bytes(content)
    code, _, error = shards("verify", dump)
    assert code == 1
    assert str(damaged) in error
    assert "00001" not in error


@pytest.mark.parametrize("command", ["info", "head", "stats", "verify", "seal"])
def test_a_folder_without_a_dump_is_one_sentence(command: str, tmp_path: Path, shards: Any) -> None:
    code, out, error = shards(command, tmp_path)
    assert code == 1
    assert out == ""
    assert "no dump here" in error
    assert "Traceback" not in error


def test_an_unfinished_dump_can_be_looked_at(make_dump: Any, shards: Any) -> None:
    dump = make_dump()
    for suffix in ("parquet", "json"):
        (dump / "shards" / f"00001.{suffix}").unlink()
    code, info, _ = shards("info", dump)
    assert code == 0
    assert "3 of 4 finished" in info
    assert shards("stats", dump)[0] == 0
    code, _, error = shards("verify", dump)
    assert code == 1
    assert "00001.parquet: missing" in error


def test_an_edit_by_hand_is_refused_until_it_is_sealed(make_dump: Any, shards: Any) -> None:
    dump = make_dump()
    manifest = dump / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"negative"', '"bad"'))
    for command in ("info", "head", "stats"):
        code, out, error = shards(command, dump)
        assert (code, out) == (1, "")
        assert f"{manifest}: not as it was written" in error
        assert f"`shards seal {dump}`" in error
    code, _, error = shards("verify", dump)
    assert (code, str(manifest) in error) == (1, True)
    code, out, _ = shards("seal", dump)
    assert (code, out) == (0, f"{dump}/checksums.json now signs these files as they are:\n  manifest.json: changed\n")
    assert "bad, neutral, positive" in shards("info", dump)[1]
    assert shards("verify", dump)[0] == 0
    assert "nothing has changed" in shards("seal", dump)[1]


@pytest.mark.parametrize("command", ["head", "stats"])
def test_a_flipped_bit_in_what_is_shown_is_one_sentence(command: str, make_dump: Any, shards: Any) -> None:
    """polars reads the pages, and the sentence comes through it as it was."""
    dump = make_dump("masked-lm", top_k=5)
    file = dump / "shards" / "00000.parquet"
    chunk = pq.ParquetFile(file).metadata.row_group(0).column(1)
    content = bytearray(file.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 16
    file.write_bytes(content)
    code, out, err = shards(command, dump)
    assert code == 1
    said = " ".join(err.split())
    assert said.startswith(f"error: {file}: damaged shard (")
    assert said.endswith("delete it and run the same dump command again.")
    assert "Traceback" not in err + out
