"""The footer of a shard: the end of a Parquet file, which says what is where in it.

Arrow and polars trust a footer: some changes of one bit in it end the process. So its checksum, which is in the shard's
receipt, is compared before anybody parses it.

From format version 6 on, a footer also names the shard's origin: the dump's identity and the shard's number.
"""

import re

from shared.storage import Folder

# The key of the origin in the file's key-value metadata.
ORIGIN_KEY = "lectern.shard"
# After the footer come its length (4 bytes) and the format's name.
_END_BYTES = 8
_MAGIC = b"PAR1"
# The origin as Thrift's compact protocol has it: key, field number and type, length, value.
_ORIGIN = re.compile(ORIGIN_KEY.encode() + rb"\x18.([0-9a-f]{32}/[0-9]{5,})", re.DOTALL)


def origin_of(identity: str, index: int) -> str:
    """Return the origin that the footer of shard `index` of a dump names."""
    return f"{identity}/{index:05d}"


def tail(path: Folder, size: int) -> bytes:
    """Return the last `size` bytes of a file, or the whole of a smaller one."""
    with path.open() as file:
        end = file.seek(0, 2)
        file.seek(max(0, end - size))
        return file.read(size) or b""


def footer_of(path: Folder) -> bytes:
    """Return the footer of a Parquet file with what follows it; empty if the file does not end as one."""
    end = tail(path, _END_BYTES)
    if len(end) < _END_BYTES or end[4:] != _MAGIC:
        return b""
    return tail(path, int.from_bytes(end[:4], "little") + _END_BYTES)


def origin_in(footer: bytes) -> str | None:
    """Return the origin that a footer names, if it names one. Nothing parses the footer, which may be damaged."""
    found = _ORIGIN.search(footer)
    return found[1].decode() if found else None
