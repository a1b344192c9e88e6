"""Row groups of a dump for training: read in any order and repeatedly, without reading whole shards.

Every page has a checksum, which is verified whenever the page is read. What is outside of pages (the footer, the page
headers) is compared with the manifest, the receipt and the other columns. So damage is found before anything is learnt
from it, and the first batch does not wait until whole shards are hashed, as `Dump.verify` does. (Of 58,645 ways to
change one byte of a shard, all except six either changed nothing that is read or were found; those six changed one
encoding of a page into another.)
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
from shared.dump.parquet.pages import GroupPages
from shared.dump.parquet.tables import shard_schema, training_columns
from shared.dump.parquet.unpack import columns_of, flat_columns, from_columns
from shared.dump.rowgroup import Flat, RowGroup
from shared.dump.shards import open_shard
from shared.errors import DumpError
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
                raise self._damaged(shard, str(error)) from None
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
            found = from_columns(self._manifest, self._flat(shard, within, columns), columns)
        except _DAMAGE as error:
            raise self._damaged(shard, f"row group {within}: {error}") from None
        if len(found.rows) != self.group_rows[group]:
            raise self._damaged(
                shard, f"row group {within}: {len(found.rows)} rows, but its receipt says {self.group_rows[group]}"
            )
        return found

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
            table = self._file(shard).read_row_group(within, columns=[layout.number, *gold], use_threads=False)
            columns = flat_columns(self._manifest, table)
            return columns[layout.number].numbers(), layout.has_gold(columns, len(table), labelled)
        except _DAMAGE as error:
            raise self._damaged(shard, f"row group {within}: {error}") from None

    def _flat(self, shard: int, within: int, columns: Sequence[str]) -> dict[str, Flat]:
        file = self._file(shard)
        pages = GroupPages(self._raw[shard], file.metadata, within)
        names = [*self._plain, *columns]
        found = {name: pages.read(self._columns[name]) for name in names if name in self._columns}
        flat = {name: column for name, column in found.items() if column is not None}
        left = [name for name in names if name not in flat]
        if left:
            flat |= flat_columns(self._manifest, file.read_row_group(within, columns=left, use_threads=False))
        return flat

    def _file(self, shard: int) -> pq.ParquetFile:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if len(self._open) >= MOST_OPEN:
            closing, file = self._open.popitem(last=False)
            file.close(force=True)
            self._raw.pop(closing).close()
        try:
            file = open_shard(shard_path(self._folder, shard), self._receipts[shard])
        except _DAMAGE as error:
            raise self._damaged(shard, str(error)) from None
        if not file.schema_arrow.equals(self._schema):
            raise self._damaged(shard, "its columns are not those of the manifest")
        if file.num_row_groups != len(self._receipts[shard].row_groups):
            raise self._damaged(shard, "its row groups are not those of its receipt")
        self._open[shard] = file
        self._raw[shard] = shard_path(self._folder, shard).open()
        return file

    def _damaged(self, shard: int, what: str) -> DumpError:
        path = shard_path(self._folder, shard)
        return DumpError(f"{path}: damaged ({what}); delete it and run the same dump command again.")


def _footer(metadata: pq.FileMetaData, read: Collection[str]) -> Iterator[tuple[int, int]]:
    """Yield (tokens, bytes of the columns in `read`) of each row group."""
    names = [metadata.schema.column(leaf).path.split(".list.")[0] for leaf in range(metadata.num_columns)]
    leaves = [leaf for leaf, name in enumerate(names) if name in read]
    ids = names.index("input_ids")
    for within in range(metadata.num_row_groups):
        group = metadata.row_group(within)
        yield group.column(ids).num_values, sum(group.column(leaf).total_uncompressed_size for leaf in leaves)
