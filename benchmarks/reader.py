"""The cost of reading a dump: against memory-mapped arrays, against batches already in memory, and when resuming.

No teacher is needed: the codes are random, and ids and lengths have the skewed distributions of text. Every figure is a
median of interleaved runs on one thread, with the files in the page cache. Rates are in tokens per CPU second of this
process (all threads), and per second. With QUICK=1: fewer rows and runs. Writes benchmarks/out/reader.json.
"""

import os
import shutil
import statistics
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from report import Figure, write_figures
from settings import OUT, sized
from shard_of import manifest_of
from transformers import LlamaConfig, LlamaForCausalLM

from shared.dump.codecs import Codec, Int8Vectors, Sparse, TopK, VectorCodec
from shared.dump.codecs.coding.planes import split
from shared.dump.integrity.receipts import read_receipt
from shared.dump.layouts import LAYOUTS
from shared.dump.manifest import Compression
from shared.dump.reader import GroupReader
from shared.dump.rowgroup import Lists, RowGroup, Values
from shared.dump.shards import row_group_sizes, write_shard
from shared.memory import keep_freed_memory
from shared.storage import Folder
from student_train.data.batches import TrainingBatches
from student_train.data.order import Order
from student_train.forward.outputs import BatchTargets, Outputs
from student_train.losses.logits import KLLoss

WORK = OUT / "reader"
SHARD_ROWS = sized(4096, quick=4096, tiny=64)
SHARDS = sized(3, quick=1, tiny=1)
RUNS = sized(7, quick=3, tiny=1)
STEP_RUNS, STEPS = sized((9, 12), quick=(3, 6), tiny=(1, 1))
EPOCH_SHARDS = 245  # of 4,096 rows: an epoch of a million
BATCH_ROWS, BATCH_TOKENS = 32, 3200
TOP, WIDTH = 64, 384
LARGE, SMALL = 152_000, 4_096  # vocabularies: to read, and for a student of few parameters


def main() -> None:
    """Make the dumps, measure, print, write."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as `distill` does
    shutil.rmtree(WORK, ignore_errors=True)
    draw = np.random.default_rng(0)
    large = Sparse(name="distribution", selection=TopK(k=TOP), vocabulary=LARGE, in_planes=True)
    top_64 = {how: Drawn(large, f"top-64-{how}", SHARDS, draw, how) for how in get_args(Compression)}
    hidden = Drawn(Int8Vectors(name="hidden.6", width=WIDTH), "int8", SHARDS, draw)
    small = Drawn(large.model_copy(update={"vocabulary": SMALL}), "small", 1, draw)
    figures = [
        *(
            figure
            for how, target in (("zstd", 0.25), ("lz4", 0.25), ("none", 0.5))
            for figure in reading(top_64[how], f"top-{TOP} + labels, {how}", target)
        ),
        *reading(hidden, f"an int8 hidden layer of {WIDTH}", 0.5),
        streaming(small),
        *padding(top_64["zstd"]),
        *resuming(top_64["zstd"]),
    ]
    write_figures("reader", figures)
    shutil.rmtree(WORK)


class Drawn:
    """A dump of random codes as a source, and the same codes as flat arrays in .npy files."""

    layout = LAYOUTS["next-token"]

    class tokenizer:
        pad_token_id = 0

    def __init__(
        self, codec: Codec, name: str, shards: int, draw: np.random.Generator, compression: Compression = "zstd"
    ) -> None:
        self.codec, self.folder = codec, WORK / name
        self.manifest = manifest_of(codec).model_copy(update={"compression": compression})
        self.names = [column.name for column in codec.columns]
        self.is_vector = isinstance(codec, VectorCodec)
        self.per_column = self.manifest.per_column
        (self.folder / "shards").mkdir(parents=True)
        groups = [group for shard in range(shards) for group in self._write(shard, draw)]
        self.reader = GroupReader(Folder.of(self.folder), self.manifest, receipts(self.folder, shards))
        self.group_rows, self.sizes, self.load = self.reader.group_rows, self.reader.sizes, self.reader.read
        self._map(groups)

    def batches(self, seed: int, source: Any = None, **budget: int) -> TrainingBatches:
        """A stream of its batches, by default of 32 rows."""
        order = Order(self.sizes(self.names), seed, **(budget or {"batch_size": BATCH_ROWS}))
        return TrainingBatches(source or self, self.names, order)

    def _write(self, shard: int, draw: np.random.Generator) -> list[RowGroup]:
        """One shard, longest rows first, as `dump` writes them."""
        lengths = -np.sort(-np.clip(draw.lognormal(np.log(85), 0.6, SHARD_ROWS), 8, 512).astype(np.int64))
        positions = lengths * 0 if self.is_vector else lengths - 1
        groups, row = [], 0
        for rows in row_group_sizes(self.manifest, lengths.tolist(), positions.tolist()):
            mine = slice(row, row + rows)
            tokens, recorded = int(lengths[mine].sum()), int(positions[mine].sum())
            groups.append(
                RowGroup(
                    rows=np.arange(row, row + rows),
                    token_offsets=np.concatenate([[0], np.cumsum(lengths[mine])]),
                    input_ids=np.minimum(draw.zipf(1.3, tokens), SMALL - 1).astype(np.int32),
                    token_type_ids=None,
                    position_offsets=np.concatenate([[0], np.cumsum(positions[mine])]),
                    positions=np.zeros(recorded, np.int32),
                    labels=np.zeros(recorded, np.int32),
                    columns=drawn_vectors(self.codec, tokens, draw)
                    if isinstance(self.codec, VectorCodec)
                    else drawn_ids(self.codec, recorded, draw),
                )
            )
            row += rows
        write_shard(Folder.of(self.folder), shard, self.manifest, iter(groups))
        return groups

    def _map(self, groups: list[RowGroup]) -> None:
        """The flat arrays, written and mapped; each row group is then a piece of them, and no copy."""
        fields = ["input_ids", *self.names]
        flat: dict[str, list[NDArray[Any]]] = {name: [] for name in fields}
        for group in groups:
            flat["input_ids"].append(group.input_ids)
            for name in self.names:
                values = group.columns[name]
                assert not isinstance(values, Lists)
                flat[name].append(values)
        mapped = {}
        for name, parts in flat.items():
            np.save(self.folder / f"{name}.npy", np.concatenate(parts))
            mapped[name] = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        self.mapped = []
        first = dict.fromkeys(fields, 0)
        for number in range(len(groups)):
            # Offsets, positions and labels are as the reader makes them; they are in memory.
            group = self.load(number, self.names)
            pieces = {}
            for name in fields:
                size = len(flat[name][number])
                pieces[name] = mapped[name][first[name] : first[name] + size]
                first[name] += size
            group.input_ids = pieces.pop("input_ids")
            group.columns = pieces
            self.mapped.append(group)


class Mapped:
    """The same source with row groups in memory-mapped arrays: nothing is read, checked or decoded."""

    tokenizer, layout = Drawn.tokenizer, Drawn.layout

    def __init__(self, drawn: Drawn) -> None:
        self.per_column, self._groups = drawn.per_column, drawn.mapped

    def load(self, group: int, columns: Sequence[str]) -> RowGroup:
        """One row group."""
        return self._groups[group]


def drawn_ids(codec: Codec, positions: int, draw: np.random.Generator) -> dict[str, Values]:
    """Distinct ids in order, frequent ones more often, with codes of probabilities that decrease as those of text."""
    assert isinstance(codec, Sparse)
    gaps = draw.exponential(np.geomspace(0.01, codec.vocabulary / 16, TOP), (positions, TOP))
    # The last id is one of the vocabulary.
    gaps *= np.minimum(1, (codec.vocabulary - TOP) / gaps.sum(1, keepdims=True))
    gaps = gaps.astype(np.int64)
    codes = np.minimum(draw.exponential(6, (positions, TOP)), 60).astype(np.int64)
    planes = [column for column in codec.columns if column.width == TOP]
    entries = torch.from_numpy((gaps << codec.code_bits | codes).ravel())
    columns: dict[str, Values] = {name: plane.numpy() for name, plane in split(entries, planes).items()}
    small = codec.columns[len(planes) :]
    return columns | {column.name: draw.integers(0, 60, positions).astype(column.dtype) for column in small}


def drawn_vectors(codec: Codec, tokens: int, draw: np.random.Generator) -> dict[str, Values]:
    """Encoded hidden states of normally distributed numbers."""
    codes, scale = codec.columns
    values = np.clip(draw.normal(0, 30, (tokens, WIDTH)), -127, 127)
    return {codes.name: values.astype(codes.dtype), scale.name: draw.uniform(0.01, 0.02, tokens).astype(scale.dtype)}


def receipts(folder: Path, shards: int) -> dict[int, Any]:
    """The receipts of the written shards."""
    return {shard: read_receipt(Folder.of(folder), shard, None) for shard in range(shards)}


def reading(drawn: Drawn, what: str, target: float) -> list[Figure]:
    """Measure an epoch of packed batches from the dump and from the mapped arrays, in turn."""
    epoch = int(drawn.batches(0).order.batches(1))
    rates: dict[str, list[tuple[float, float]]] = {"dump": [], "mapped": []}
    # One stream for all runs, as in training: each run reads an epoch's worth.
    streams = {"dump": drawn.batches(0).gathered(), "mapped": drawn.batches(0, Mapped(drawn)).gathered()}
    for run in range(RUNS + 1):
        for kind, stream in streams.items():
            wall, cpu = time.perf_counter(), time.process_time()
            tokens = sum(len(rows.input_ids) for rows in islice(stream, epoch))
            spent = time.process_time() - cpu, time.perf_counter() - wall
            if run:  # the first fills caches
                rates[kind].append((tokens / spent[0] / 1000, tokens / spent[1] / 1000))
    return [
        Figure(
            figure=f"{what} / memory-mapped .npy, by {clock} time",
            value=statistics.median(rate[index] for rate in rates["dump"]),
            baseline=statistics.median(rate[index] for rate in rates["mapped"]),
            target=target,
            higher_is_better=True,
            unit="thousand tokens/s",
            runs=RUNS,
        )
        for index, clock in enumerate(("CPU", "wall"))
    ]


def streaming(drawn: Drawn) -> Figure:
    """Measure steps of a 2 x 128 transformer on batches from disk, and on the same batches in memory."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=SMALL, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512
    )
    student = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, fused=True)
    loss = KLLoss(tail="class")
    assert isinstance(drawn.codec, Sparse)

    def step(batch: dict[str, Any]) -> None:
        logits = student(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        outputs = Outputs(logits.flatten(0, 1)[batch.positions], ())
        loss.value(outputs, BatchTargets(drawn.codec.decode(batch.columns), {}, batch.labels), None).backward()
        optimizer.step()
        optimizer.zero_grad()

    rates: dict[str, list[float]] = {"disk": [], "memory": []}
    from_disk = drawn.batches(0)
    stream = iter(from_disk)
    in_memory = list(islice(drawn.batches(0), STEPS * (STEP_RUNS + 1)))
    for run in range(STEP_RUNS + 1):
        part = in_memory[run * STEPS : (run + 1) * STEPS]
        for kind, batches in (("disk", islice(stream, STEPS)), ("memory", iter(part))):
            begun = time.perf_counter()
            for batch in batches:
                step(batch)
            if run:
                rates[kind].append(STEPS / (time.perf_counter() - begun))
    disk, memory = (statistics.median(rates[kind]) for kind in ("disk", "memory"))
    return Figure("student 2 x 128: from disk / in memory", disk, memory, 0.98, True, "steps/s", STEP_RUNS)


def padding(drawn: Drawn) -> list[Figure]:
    """Measure cells of padded batches per token, against batches of random rows."""
    lengths = np.concatenate([np.diff(group.token_offsets) for group in drawn.mapped])
    shuffled = np.random.default_rng(0).permutation(lengths)
    random = [shuffled[start : start + BATCH_ROWS] for start in range(0, len(shuffled), BATCH_ROWS)]
    baseline = sum(len(batch) * batch.max() for batch in random) / lengths.sum()
    figures = []
    for budget in ({"batch_size": BATCH_ROWS}, {"batch_tokens": BATCH_TOKENS}):
        batches = drawn.batches(0, Mapped(drawn), **budget)
        found = [np.diff(rows.token_offsets) for rows in islice(batches.gathered(), int(batches.order.batches(1)))]
        cells = sum(len(batch) * batch.max() for batch in found)
        name = ", ".join(f"{key} {value}" for key, value in budget.items())
        value = float(cells / lengths.sum())
        figures.append(
            Figure(f"padded cells, {name} / random", value, float(baseline), 1.05 / baseline, False, "a token", 1)
        )
    return figures


def resuming(drawn: Drawn) -> list[Figure]:
    """Measure the time to the first batch of an epoch of a million rows, opened at a step; the baseline is step 0."""
    folder = WORK / "million"
    (folder / "shards").mkdir(parents=True)
    for shard in range(EPOCH_SHARDS):
        for suffix in ("parquet", "json"):
            os.link(drawn.folder / "shards" / f"00000.{suffix}", folder / "shards" / f"{shard:05d}.{suffix}")
    spent: dict[float, list[float]] = {share: [] for share in (0.0, 0.5, 0.999)}
    for _ in range(RUNS):
        for share, seconds in spent.items():
            begun = time.perf_counter()
            source = Mapped(drawn)
            reader = GroupReader(Folder.of(folder), drawn.manifest, receipts(folder, EPOCH_SHARDS))
            source.load = reader.read  # type: ignore[method-assign]
            order = Order(reader.sizes(drawn.names), 0, batch_tokens=BATCH_TOKENS)
            batch = int(share * EPOCH_SHARDS * SHARD_ROWS * 100 / BATCH_TOKENS)
            next(iter(TrainingBatches(source, drawn.names, order, batch)))
            seconds.append(time.perf_counter() - begun)
    start, *others = ((share, statistics.median(seconds)) for share, seconds in spent.items())
    return [
        Figure(f"first batch of 1M rows, {share:.0%} in / 1 s", seconds, 1.0, 1.0, False, "s", RUNS)
        for share, seconds in (start, *others)
    ]


if __name__ == "__main__":
    main()
