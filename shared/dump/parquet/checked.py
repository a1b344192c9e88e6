"""A Parquet file for Arrow, whose pages are checked whenever they are read.

Arrow can verify the checksums of pages, but believes their headers (see `headers.py`). So it is given the footer, which
has been checked before, and then reads nothing but whole columns of row groups, through the file below.
"""

import io
from io import RawIOBase

import pyarrow.parquet as pq

from shared.dump.parquet.headers import bytes_at, data_pages, place_of
from shared.storage.ranges import SizedFile


def open_checked(file: RawIOBase, metadata: pq.FileMetaData) -> pq.ParquetFile:
    """Open a file for Arrow, with its metadata. `close(force=True)` closes the file, too.

    For damaged pages its methods raise ValueError.
    """
    # With `pre_buffer`, Arrow reads several columns at once, and gaps between them.
    return pq.ParquetFile(_CheckedFile(file, metadata), metadata=metadata, pre_buffer=False)


class _CheckedFile(SizedFile):
    def __init__(self, file: RawIOBase, metadata: pq.FileMetaData) -> None:
        super().__init__(file.seek(0, io.SEEK_END))
        self._file, self._metadata = file, metadata
        self._chunks: dict[tuple[int, int], pq.ColumnChunkMetaData] = {}

    def read(self, size: int | None = -1) -> bytes:
        """Return the bytes of a column of a row group from here on. Raises ValueError for damage."""
        if not self._chunks:
            groups = map(self._metadata.row_group, range(self._metadata.num_row_groups))
            chunks = [group.column(leaf) for group in groups for leaf in range(self._metadata.num_columns)]
            self._chunks = {place_of(chunk): chunk for chunk in chunks}
        chunk = self._chunks.get((self._at, -1 if size is None else size))
        if chunk is None:
            raise ValueError(f"no column of a row group has {size} bytes at {self._at}")
        content = bytes_at(self._file, *place_of(chunk))
        try:
            data_pages(chunk, content)
        except ValueError as error:
            raise ValueError(f"column {chunk.path_in_schema.split('.list.')[0]!r}: {error}") from None
        self._at += len(content)
        return content.data  # type: ignore[return-value]

    def close(self) -> None:
        self._file.close()
        super().close()
