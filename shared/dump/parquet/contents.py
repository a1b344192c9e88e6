"""Whether the content of a row group makes sense: what `verify`, a trainer and polars frames check before they use it.

Checksums show that a shard is as it was written. Here is checked that nothing in it is out of range, because a dump of
unknown origin can hold anything: token ids that its vocabulary lacks, positions beyond their row, NaN.
"""

from collections.abc import Mapping

import pyarrow as pa

from shared.dump.codecs.bounds import require_within
from shared.dump.manifest import Manifest
from shared.dump.parquet.tables import INPUT_IDS, ROW, TOKEN_TYPES
from shared.dump.parquet.unpack import flat_columns
from shared.dump.rowgroup import Flat, check_lengths, offsets_per, to_flat
from shared.dump.signals import Per

# Few tokenizers have more than two types of tokens: XLNet's has a third one.
_MOST_TOKEN_TYPES = 3


def check_table(manifest: Manifest, table: pa.Table) -> None:
    """`check_contents` for a table with some of the columns of a row group."""
    check_contents(manifest, flat_columns(manifest, table))


def check_contents(manifest: Manifest, flat: Mapping[str, Flat]) -> None:
    """Check the values of some of the columns of a row group.

    Raises:
        ValueError: for values out of range, or if the lengths of lists do not fit the rows.
    """
    tokens = flat.get(INPUT_IDS.name)
    token_offsets = None if tokens is None else tokens.list_offsets()
    if tokens is not None and token_offsets is not None:
        require_within(INPUT_IDS.name, tokens.numbers(), 0, manifest.vocabulary - 1)
        lengths = token_offsets[1:] - token_offsets[:-1]
        require_within(f"{INPUT_IDS.name}: length of a row", lengths, 0, manifest.options.max_length)
    if TOKEN_TYPES.name in flat:
        require_within(TOKEN_TYPES.name, flat[TOKEN_TYPES.name].numbers(), 0, _MOST_TOKEN_TYPES - 1)
        if token_offsets is not None:
            check_lengths(TOKEN_TYPES.name, flat, token_offsets)
    classes = manifest.vocabulary if manifest.label_names is None else len(manifest.label_names)
    position_offsets = manifest.layout.check(flat, token_offsets, classes)
    # Without a list to compare with, the lists of a position or token must at least be as long as one another.
    offsets = {"token": token_offsets, "position": position_offsets, "row": None}
    for signal in manifest.signals:
        found = {column.name: flat[column.name] for column in signal.columns if column.name in flat}
        for name, column in found.items():
            per: Per = signal.per
            expected = offsets[per] if per != "row" else offsets_per(per, column.list_offsets(), column.list_offsets())
            if expected is None:
                offsets[per] = column.list_offsets()
            else:
                check_lengths(name, flat, expected)
        values = to_flat({name: column.values for name, column in found.items()})
        signal.codec.check(values)
        if ROW.name in flat:
            signal.codec.check_rows(values, flat[ROW.name].numbers())
