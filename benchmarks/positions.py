"""`Dump.positions()` in polars against pyarrow and torch, over a million positions; and its peak memory.

Both sides read rows, positions, ids and log-probabilities from the same dump: polars with its own expressions,
streaming, most probable ids first; pyarrow by row groups and the codec's `decode`, as a trainer does, in the order of
the ids. polars uses all cores, the other side one. Medians of interleaved runs, wall and CPU seconds. With QUICK=1: a
tenth of the positions.

    python benchmarks/positions.py

Writes benchmarks/out/positions.json.
"""

import shutil
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch
from memory import peak_megabytes
from report import Figure, write_figures
from settings import OUT, sized
from shard_of import manifest_of, write
from sources import make
from tokenizers import Tokenizer, models

from shared import Dump
from shared.dump.codecs import Selection, Sparse, TopK
from shared.dump.codecs.selection.presets import PRESETS
from shared.dump.facts import CorpusFacts, Options, Teacher, TokenizerFacts
from shared.dump.integrity.receipts import shard_path
from shared.dump.layouts import LAYOUTS
from shared.dump.manifest import Manifest
from shared.dump.rowgroup import from_flat, to_flat
from shared.dump.shards import open_shard, read_row_group
from shared.memory import keep_freed_memory
from shared.storage import Folder

POSITIONS, RUNS = sized((1_000_000, 5), quick=(100_000, 3), tiny=(2_000, 1))
WORK = OUT / "positions"
COLUMNS = ("row", "position", "ids", "log_probs", "tail")


def main() -> None:
    """Make the dumps, read them in both ways, print."""
    torch.set_num_threads(1)
    # Pages of a shard are read-only, and no decoder writes to them.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    keep_freed_memory()
    figures = []
    for name, rule in {"the default preset": PRESETS["default"][0], "top 50": TopK(k=50)}.items():
        folder = WORK / name.replace(" ", "-")
        make_dump(folder, rule, POSITIONS)
        runs = [[timed(partial(read, folder)) for read in (through_polars, through_pyarrow)] for _ in range(RUNS)]
        for clock, unit in enumerate(("wall s", "CPU s")):
            ours, baseline = (statistics.median(run[side][clock] for run in runs) for side in (0, 1))
            label = f"positions() of {name}, {POSITIONS:,}, to pyarrow"
            figures.append(Figure(label, ours, baseline, 3.0, False, unit, RUNS))
    make_dump(WORK / "small", PRESETS["default"][0], POSITIONS // 10)
    large, small = (peak_megabytes(mean_over(WORK / name)) for name in ("the-default-preset", "small"))
    figures.append(Figure("peak memory of a mean over it, to a tenth", large, small, 2.0, False, "MB", 1))
    write_figures("positions", figures)


def make_dump(folder: Path, rule: Selection, positions: int) -> None:
    """Make a dump of one shard, with rows repeated until it has this number of positions."""
    shutil.rmtree(folder, ignore_errors=True)
    source = make(min(positions, 10_000))
    codec = Sparse(name="distribution", selection=rule, vocabulary=source.vocabulary)
    keys_N = source.keys(0)
    parts = [codec.encode(logits_NV, keys_N[part]) for part, logits_NV in source.slices()]
    times = positions // len(source.hidden_ND)
    flat = {name: np.tile(torch.cat([part[name] for part in parts]).numpy(), times) for name in parts[0]}
    lengths = source.lengths * times
    write(codec, from_flat(codec.columns, flat), lengths, folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(source.vocabulary)}, unk_token="w0"))
    (folder / "tokenizer").mkdir()
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    Manifest(
        format_version=5,
        task="causal-lm",
        layout=LAYOUTS["next-token"],
        labelled=False,
        pairs=False,
        signals=manifest_of(codec).signals,
        lectern_version="0",
        teacher=Teacher(name="none", revision=None, architecture="none", parameters=0, fingerprint=""),
        tokenizer=TokenizerFacts(size=source.vocabulary, fingerprint="", pad_token_id=None),
        vocabulary=source.vocabulary,
        label_names=None,
        corpus=CorpusFacts(rows=len(lengths), labelled_rows=0, fingerprint=""),
        options=Options(positions=None, max_length=512, dtype="fp32", shard_rows=len(lengths), seed=0),
    ).write(Folder.of(folder))


def through_polars(folder: Path) -> None:
    """Read every position with `Dump.positions()`."""
    frame = Dump(folder).positions().select(COLUMNS).collect(engine="streaming")
    assert isinstance(frame, pl.DataFrame)
    assert len(frame) == POSITIONS


def through_pyarrow(folder: Path) -> None:
    """Read every position by row groups and the codec."""
    dump, positions = Dump(folder), 0
    codec = dump.distribution
    shard = open_shard(shard_path(dump.path, 0), dump.receipts[0])
    names = [column.name for column in codec.columns]
    for number in range(shard.num_row_groups):
        group = read_row_group(dump.manifest, shard, number, names)
        codec.decode({name: torch.from_numpy(values) for name, values in to_flat(group.columns).items()})
        positions += len(group.positions)
    assert positions == POSITIONS


def timed(read: Callable[[], None]) -> tuple[float, float]:
    """(wall seconds, CPU seconds of all threads)."""
    wall, processor = time.perf_counter(), time.process_time()
    read()
    return time.perf_counter() - wall, time.process_time() - processor


def mean_over(folder: Path) -> list[str]:
    """The command of a process that computes a mean over all positions, streaming."""
    code = (
        "import sys; from shared import Dump; import polars as pl; "
        "Dump(sys.argv[1]).positions().select(pl.col('log_probs').list.first().mean()).collect(engine='streaming')"
    )
    return [sys.executable, "-c", code, str(folder)]


if __name__ == "__main__":
    main()
