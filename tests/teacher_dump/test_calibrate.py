"""What a sample decides: byte budgets, constants of vector codecs, and what the manifest says about both."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer

from shared import Dump, DumpError, UsageError
from shared.dump.codecs import Draws, Int8Vectors, LowRankVectors, Sparse, Threshold, TopK, TopP
from shared.dump.codecs.selection.presets import PRESETS
from shared.dump.integrity.receipts import shard_path
from shared.dump.rowgroup import to_flat
from shared.dump.shards import column_sizes, open_shard, read_row_group
from shared.text.tasks import task_named
from teacher_dump import cli
from teacher_dump.annotate import annotate, prepare
from teacher_dump.request import Request


def decoded(dump: Dump, name: str) -> torch.Tensor:
    """All vectors of a one-shard dump, as a trainer decodes them."""
    codec, shard = dump.manifest.vectors[name], open_shard(shard_path(dump.path, 0), dump.receipts[0])
    names = [column.name for column in codec.columns]
    groups = [read_row_group(dump.manifest, shard, number, names) for number in range(shard.num_row_groups)]
    parts = [{n: torch.from_numpy(np.array(v)) for n, v in to_flat(group.columns).items()} for group in groups]
    return torch.cat([codec.decode(part) for part in parts])


@pytest.mark.parametrize("tail", ["sample", "mass"])
def test_a_byte_budget_is_met(tail: str, make_dump: Callable[..., Path], texts: list[str]) -> None:
    out = make_dump("causal-lm", data=texts[:120], bytes_per_token=30, tail=tail, shard_rows=200)
    dump = Dump(out)
    codec = dump.distribution
    assert isinstance(codec, Sparse)
    assert isinstance(codec.selection, Threshold)
    assert codec.selection.tail == tail
    sizes = column_sizes([open_shard(shard_path(dump.path, 0), dump.receipts[0]).metadata])
    positions = sum(receipt.positions for receipt in dump.receipts.values())
    size = sum(sizes[column.name] for column in codec.columns) / positions
    assert size == pytest.approx(30, rel=0.1)
    assert dump.manifest.measured["distribution"]["bytes_per_position"] == pytest.approx(size, rel=0.1)


def test_a_budget_that_no_threshold_meets_is_refused(make_dump: Callable[..., Path], texts: list[str]) -> None:
    with pytest.raises(UsageError, match="--bytes-per-token 9000"):
        make_dump("causal-lm", data=texts[:20], bytes_per_token=9000)


def test_what_is_measured_is_what_a_dump_then_holds(make_dump: Callable[..., Path], texts: list[str]) -> None:
    """The sample is the whole of this corpus."""
    dump = Dump(make_dump("causal-lm", data=texts[:40], threshold=0.05, hidden="1", hidden_codec="int8", shard_rows=64))
    found = dump.positions().select("ids", "exact", "tail").collect()
    facts = dump.manifest.measured["distribution"]
    assert facts["ids_per_position"] == pytest.approx(found["ids"].list.len().mean(), rel=1e-3)
    assert facts["kept_mass"] == pytest.approx((1 - found["tail"].exp()).mean(), abs=5e-3)
    assert 0 < facts["rounding_kl"] < 1e-3
    assert 0 < dump.manifest.measured["hidden.1"]["relative_error"] < 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {"bytes_per_token": 20.0},
        {"hidden": "1,2", "hidden_codec": "int8"},
        {"hidden": "last", "hidden_codec": "int4", "hidden_rank": 8},
    ],
)
def test_a_dump_goes_on_with_what_it_was_begun_with(
    options: dict[str, Any], make_dump: Callable[..., Path], make_teacher: Any, texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    teacher = make_teacher("causal-lm")
    out = make_dump("causal-lm", teacher=teacher, data=texts[:40], **options)
    before = {path.name: path.read_bytes() for path in out.rglob("*.*") if path.suffix in (".parquet", ".safetensors")}
    (out / "shards" / "00001.json").unlink()
    # Another machine's sample would give other last digits: it must not be looked at again.
    monkeypatch.setattr("teacher_dump.annotate.calibrate", lambda *_: pytest.fail("calibrated a second time"))
    make_dump("causal-lm", teacher=teacher, data=out.parent / "corpus.jsonl", out=out, **options)
    after = {path.name: path.read_bytes() for path in out.rglob("*.*") if path.suffix in (".parquet", ".safetensors")}
    assert before == after


@pytest.mark.parametrize(
    ("begun", "asked", "difference"),
    [
        ({"bytes_per_token": 20.0}, {"bytes_per_token": 40.0}, "options.bytes_per_token: the dump has 20.0"),
        ({"threshold": 0.1}, {"threshold": 0.2}, "selection.threshold: the dump has 0.1, this command asks for 0.2"),
        ({"threshold": 0.1}, {"threshold": 0.1, "tail": "mass"}, "selection.tail: the dump has sample"),
        ({"hidden": "1", "hidden_codec": "int8"}, {"hidden": "1"}, "options.hidden_codec: the dump has int8"),
        ({"hidden": "1", "hidden_rank": 8}, {"hidden": "1", "hidden_rank": 9}, "options.hidden_rank: the dump has 8"),
    ],
)
def test_another_choice_is_another_dump(
    begun: dict[str, Any], asked: dict[str, Any], difference: str, make_dump: Callable[..., Path], make_teacher: Any,
    texts: list[str],
) -> None:  # fmt: skip
    teacher = make_teacher("causal-lm")
    out = make_dump("causal-lm", teacher=teacher, data=texts[:20], **begun)
    with pytest.raises(UsageError, match=difference):
        make_dump("causal-lm", teacher=teacher, data=out.parent / "corpus.jsonl", out=out, **asked)


def test_int8_and_low_rank_vectors_are_the_teachers(make_dump: Callable[..., Path], texts: list[str]) -> None:
    teacher_states = Dump(make_dump("encoder", data=texts[:30], hidden="1", shard_rows=64))
    exact = decoded(teacher_states, "hidden.1")
    for options, kind, tolerance in (
        ({"hidden_codec": "int8"}, Int8Vectors, 0.01),
        ({"hidden_rank": 32, "hidden_codec": "int8"}, LowRankVectors, 0.02),
    ):
        dump = Dump(make_dump("encoder", data=texts[:30], hidden="1", shard_rows=64, **options))
        assert isinstance(dump.manifest.vectors["hidden.1"], kind)
        found = decoded(dump, "hidden.1")
        assert ((found - exact).norm(dim=-1) / exact.norm(dim=-1)).max() < tolerance
        rows = dump.vectors("hidden.1").collect()["vector"].to_list()
        np.testing.assert_allclose(rows, found.numpy(), atol=1e-4)


def test_damaged_or_missing_constants_are_named(make_dump: Callable[..., Path], texts: list[str]) -> None:
    out = make_dump("encoder", data=texts[:10], hidden="1", hidden_rank=4)
    file = next((out / "weights").iterdir())
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DumpError, match=file.name):
        Dump(out)
    file.write_bytes(whole[:40])
    with pytest.raises(DumpError, match=file.name):
        Dump(out)
    shutil.rmtree(out / "weights")
    with pytest.raises(DumpError, match=f"{file.name}: missing"):
        Dump(out)


@pytest.mark.parametrize(
    ("options", "selection"),
    [
        ({}, PRESETS["default"][0]),
        ({"preset": "tiny"}, PRESETS["tiny"][0]),
        ({"threshold": 0.2, "tail": "mass"}, Threshold(threshold=0.2, tail="mass")),
        ({"top_k": 3}, TopK(k=3)),
        ({"top_p": 0.5}, TopP(p=0.5, k=256)),
        ({"top_p": 0.5, "top_k": 7}, TopP(p=0.5, k=7)),
        ({"draws": 9}, Draws(draws=9)),
    ],
)
def test_every_way_to_choose_ids(
    options: dict[str, Any], selection: object, make_dump: Callable[..., Path], texts: list[str]
) -> None:
    dump = Dump(make_dump("causal-lm", data=texts[:8], temperatures="4,2", levels=100, **options))
    codec = dump.distribution
    assert isinstance(codec, Sparse)
    assert codec.selection == selection
    assert (codec.levels, codec.temperatures) == (100, (2.0, 4.0))
    assert len(dump.positions().collect()) == sum(receipt.positions for receipt in dump.receipts.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.1, "top_k": 5}, "--threshold and --top-k exclude each other"),
        ({"preset": "tiny", "dense": True}, "--preset and --dense exclude each other"),
        ({"draws": 5, "tail": "mass"}, "--tail is for ids below a threshold; give it with --threshold"),
        ({"threshold": 1.5}, "--threshold 1.5"),
        ({"threshold": 0.1, "tail": "none"}, "--tail none"),
        ({"top_p": 1.5}, "--top-p 1.5"),
        ({"draws": 256}, "--draws 256"),
        ({"preset": "huge"}, "--preset 'huge': use tiny, compact"),
        ({"levels": 1}, "--levels 1"),
        ({"temperatures": "2,x"}, "--temperatures '2,x'"),
        ({"temperatures": "1"}, "temperatures"),
        ({"dense": True, "levels": 100}, "--levels, --temperatures and --entropy"),
        ({"bytes_per_token": 1.0}, "--bytes-per-token 1"),
        ({"hidden_codec": "int8"}, "--hidden-codec needs vectors"),
        ({"hidden": "1", "hidden_codec": "int2"}, "--hidden-codec 'int2': use float16, int8, int4"),
        ({"hidden": "1", "hidden_rank": 33}, "--hidden-rank 33: hidden states are 32 wide"),
    ],
)
def test_a_wrong_choice_names_the_option(
    options: dict[str, Any], message: str, make_teacher: Any, write_corpus: Any, texts: list[str], tmp_path: Path
) -> None:
    data = write_corpus(tmp_path / "corpus.jsonl", texts[:5])
    teacher = str(make_teacher("causal-lm"))
    request = Request(teacher, "causal-lm", (str(data),), tmp_path / "out", max_length=64, device="cpu", **options)
    with pytest.raises(UsageError) as error:
        prepare(request)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_help_names_every_preset() -> None:
    (preset,) = (option for option in typer.main.get_command(cli.app).params if option.name == "preset")
    assert all(name in str(getattr(preset, "help", "")) for name in PRESETS)


def test_the_sample_is_measured_from_rows_of_the_corpus(
    make_teacher: Any, write_corpus: Any, texts: list[str], tmp_path: Path
) -> None:
    """Sampled ids depend on seed, row and position: a dump of the sample's rows has the very same entries."""
    data = write_corpus(tmp_path / "corpus.jsonl", texts[:30])
    request = Request(
        str(make_teacher("causal-lm")), "causal-lm", (str(data),), tmp_path / "out", max_length=64, device="cpu",
        threshold=0.1,
    )  # fmt: skip
    plan = prepare(request)
    assert task_named("causal-lm").layouts["all"] == plan.manifest.layout.name
    annotate(plan)
    ids = Dump(tmp_path / "out").positions().select("ids").collect()["ids"].list.len().mean()
    assert plan.manifest.measured["distribution"]["ids_per_position"] == pytest.approx(ids, rel=1e-3)


def test_the_sample_comes_from_all_over_the_corpus(
    make_teacher: Any, write_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short texts first, long ones last: a sample of the beginning would know nothing of the long ones."""
    monkeypatch.setattr("teacher_dump.calibrate.SAMPLE_TOKENS", 200)
    data = write_corpus(tmp_path / "corpus.jsonl", ["the fox"] * 100 + ["seven wizards box some jugs of liquor"] * 100)
    seen: list[int] = []
    monkeypatch.setattr(
        "teacher_dump.calibrate._Sample.__init__", lambda self, *given: seen.extend(given[2].numbers) or 1 / 0
    )
    request = Request(str(make_teacher("encoder")), "encoder", (str(data),), tmp_path / "out", max_length=64,
                      device="cpu", hidden="1")  # fmt: skip
    with pytest.raises(ZeroDivisionError):
        prepare(request)
    assert min(seen) < 100 <= max(seen)
