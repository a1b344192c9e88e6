"""Row groups of a dump for training: read in any order and repeatedly, without reading whole shards.

Every page has a checksum, which is verified whenever the page is read. What is outside of pages is checked, too: the
footer against its checksum in the receipt, the headers of pages and the number of rows against the footer and the
receipt. So damage is found before anything is learnt from it, and the first batch does not wait until whole shards are
hashed, as `Dump.verify` does. (`tests/shared/dump/test_flips.py` flips bits.)
"""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from io import RawIOBase

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shared.dump.integrity.receipts import Receipt, shard_path
from shared.dump.manifest import Manifest
from shared.dump.parquet.contents import check_contents
from shared.dump.parquet.pages import GroupPages
from shared.dump.parquet.tables import shard_schema, training_columns
from shared.dump.parquet.unpack import check_row_numbers, columns_of, flat_columns, from_columns
from shared.dump.rowgroup import Flat, RowGroup
from shared.dump.shards import damaged_shard, open_shard
from shared.storage import Folder

# The most files open at once. Opening one takes about 0.2 ms; systems allow a process 1,024 open files, often fewer.
MOST_OPEN = 64
# Bytes per token that a row group has in memory but not in the file: int32 positions and labels.
_MORE_BYTES_PER_TOKEN = 8
# What pyarrow raises for invalid bytes.
_DAMAGE = (pa.ArrowException, OSError, ValueError, IndexError)


@dataclass(frozen=True, eq=False)
class GroupSizes:
    """Rows, tokens and bytes in memory of each row group, int64 [G] each.

    Tokens and bytes are accurate to a few per cent. (Parquet counts a row without tokens as one token.)
    """

    rows: NDArray[np.int64]
    tokens: NDArray[np.int64]
    bytes: NDArray[np.int64]


class GroupReader:
    """A reader of the row groups of a complete dump, which are numbered across all shards.

    Args:
        folder: location of the dump.
        manifest: the dump's manifest.
        receipts: the receipts of all shards, by index.
    """

    def __init__(self, folder: Folder, manifest: Manifest, receipts: dict[int, Receipt]) -> None:
        self._folder, self._manifest, self._receipts = folder, manifest, receipts
        self._groups = [
            (shard, within) for shard in sorted(receipts) for within in range(len(receipts[shard].row_groups))
        ]
        self._schema = shard_schema(manifest)
        self._columns, self._plain = columns_of(manifest), training_columns(manifest)
        self._open: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._raw: dict[int, RawIOBase] = {}
        self._sensible: set[tuple[int, int, str]] = set()
        self.group_rows = tuple(receipts[shard].row_groups[within] for shard, within in self._groups)

    def sizes(self, columns: Sequence[str]) -> GroupSizes:
        """Return the sizes of all row groups with these columns of codecs.

        It reads the footers only, which takes about 0.3 ms per shard.

        Raises:
            DumpError: for damage, with the name of the file.
        """
        read = {*self._plain, *columns}
        tokens: list[int] = []
        sizes: list[int] = []
        for shard in sorted(self._receipts):
            file = self._file(shard)
            try:
                for of_group, in_memory in _footer(file.metadata, read):
                    tokens.append(of_group)
                    sizes.append(in_memory)
            except _DAMAGE as error:
                raise damaged_shard(shard_path(self._folder, shard), str(error)) from None
        counts = np.asarray(tokens, np.int64)
        return GroupSizes(
            np.asarray(self.group_rows, np.int64), counts, np.asarray(sizes, np.int64) + _MORE_BYTES_PER_TOKEN * counts
        )

    def read(self, group: int, columns: Sequence[str]) -> RowGroup:
        """Read row group `group` with these columns of codecs.

        Raises:
            DumpError: for damage, with the name of the file and the number of the row group in it.
        """
        shard, within = self._groups[group]
        try:
            flat = self._flat(shard, within, [*self._plain, *columns])
            return from_columns(self._manifest, flat, columns)
        except _DAMAGE as error:
            raise damaged_shard(shard_path(self._folder, shard), f"row group {within}: {error}") from None

    def gold(self, group: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return (row numbers [R], whether each row has a gold label [R]) of row group `group`.

        Rows that belong together (the windows of a question's context) have the same number. It reads only the smallest
        columns.

        Raises:
            DumpError: for damage, with the name of the file and the number of the row group in it.
        """
        shard, within = self._groups[group]
        layout, labelled = self._manifest.layout, self._manifest.labelled
        gold = [field.name for field in layout.fields(labelled) if field.holds_gold]
        try:
            columns = self._flat(shard, within, [layout.number, *gold])
            return columns[layout.number].numbers(), layout.has_gold(columns, self.group_rows[group], labelled)
        except _DAMAGE as error:
            raise damaged_shard(shard_path(self._folder, shard), f"row group {within}: {error}") from None

    def _flat(self, shard: int, within: int, names: Sequence[str]) -> dict[str, Flat]:
        """Return columns of a row group, each with as many rows as the receipt says."""
        file = self._file(shard)
        pages = GroupPages(self._raw[shard], file.metadata, within)
        found = {name: pages.read(self._columns[name]) for name in names if name in self._columns}
        flat = {name: column for name, column in found.items() if column is not None}
        left = [name for name in names if name not in flat]
        if left:
            flat |= flat_columns(self._manifest, file.read_row_group(within, columns=left, use_threads=False))
        rows = self._receipts[shard].row_groups[within]
        for name, column in flat.items():
            if column.rows != rows:
                raise ValueError(f"column {name!r} has {column.rows} rows, but the receipt says {rows}")
        if "row" in flat:
            check_row_numbers(flat["row"].numbers(), self._manifest.rows_of_shard(shard))
        self._check_contents(shard, within, flat)
        return flat

    def _check_contents(self, shard: int, within: int, flat: dict[str, Flat]) -> None:
        """Check columns that are read for the first time; afterwards the checksums of their pages are enough."""
        known = {(shard, within, name) for name in flat}
        if not known <= self._sensible:
            check_contents(self._manifest, flat)
            self._sensible |= known

    def _file(self, shard: int) -> pq.ParquetFile:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if len(self._open) >= MOST_OPEN:
            closing, file = self._open.popitem(last=False)
            file.close(force=True)
            self._raw.pop(closing).close()
        file = open_shard(shard_path(self._folder, shard), self._receipts[shard], self._schema)
        self._open[shard] = file
        self._raw[shard] = shard_path(self._folder, shard).open()
        return file


def _footer(metadata: pq.FileMetaData, read: Collection[str]) -> Iterator[tuple[int, int]]:
    """Yield (tokens, bytes of the columns in `read`) of each row group."""
    names = [metadata.schema.column(leaf).path.split(".list.")[0] for leaf in range(metadata.num_columns)]
    leaves = [leaf for leaf, name in enumerate(names) if name in read]
    ids = names.index("input_ids")
    for within in range(metadata.num_row_groups):
        group = metadata.row_group(within)
        yield group.column(ids).num_values, sum(group.column(leaf).total_uncompressed_size for leaf in leaves)
