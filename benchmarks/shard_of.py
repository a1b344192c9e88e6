"""Write the columns of a distribution codec to a real shard, to measure its size and to read it, without a teacher.

Shapes: N positions of all rows.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from shared.dump.codecs import Codec, VectorCodec
from shared.dump.facts import Options
from shared.dump.layouts import LAYOUTS
from shared.dump.manifest import Manifest
from shared.dump.rowgroup import RowGroup, Values
from shared.dump.shards import Receipt, column_sizes, row_group_sizes, write_shard
from shared.dump.signals import Signal
from shared.storage import Folder


class AnyRows(Manifest):
    """A manifest of shards that may have any rows, so that a shard may lie at several numbers."""

    def rows_of_shard(self, index: int) -> range:
        """All rows."""
        return range(2**62)


def manifest_of(codec: Codec) -> Manifest:
    """A manifest with only the codec, which is enough to write and read shards."""
    is_vectors = isinstance(codec, VectorCodec)
    signal = Signal(site=codec.name, per="token" if is_vectors else "position", codec=codec)
    layout = LAYOUTS["none" if is_vectors else "next-token"]
    return AnyRows.model_construct(
        format_version=1,
        task="none",
        layout=layout,
        labelled=False,
        label_names=None,
        pairs=False,
        signals=(signal,),
        vocabulary=getattr(codec, "outcomes", None) or 2**17,
        options=Options.model_construct(max_length=2**40),
    )


def write(codec: Codec, columns: dict[str, Values], row_positions: Sequence[int], folder: Path) -> Receipt:
    """Write rows with these numbers of positions as shard 0 of `folder`, in the row groups of a dump.

    Token ids are zeros.
    """
    manifest = manifest_of(codec)
    # In a causal dump a row has one token more than it has positions.
    row_tokens = np.asarray(row_positions) + (0 if isinstance(codec, VectorCodec) else 1)
    (folder / "shards").mkdir(parents=True, exist_ok=True)

    def groups():  # type: ignore[no-untyped-def]
        row = position = 0
        for size in row_group_sizes(manifest, row_tokens.tolist(), list(row_positions)):
            tokens = row_tokens[row : row + size]
            positions = int(sum(row_positions[row : row + size]))
            yield RowGroup(
                rows=np.arange(row, row + size),
                token_offsets=np.concatenate([[0], np.cumsum(tokens)]),
                input_ids=np.zeros(int(tokens.sum()), np.int32),
                token_type_ids=None,
                position_offsets=np.concatenate([[0], np.cumsum(row_positions[row : row + size])]),
                positions=np.zeros(positions, np.int32),
                labels=np.zeros(positions, np.int32),
                columns={name: values[position : position + positions] for name, values in columns.items()},
            )
            row, position = row + size, position + positions

    return write_shard(Folder.of(folder), 0, manifest, groups())


def bytes_per_position(codec: Codec, folder: Path, positions: int) -> dict[str, float]:
    """The bytes per position of each of the codec's columns in the shard of `folder`."""
    sizes = column_sizes([pq.ParquetFile(folder / "shards" / "00000.parquet").metadata])
    return {column.name: sizes[column.name] / positions for column in codec.columns}
