"""The folded CRC-32 is zlib's."""

import zlib

import numpy as np
import pytest

from shared.dump.parquet.checksum import BLOCK, FAR, crc32


@pytest.mark.parametrize(
    "size",
    [0, 1, 2 * FAR - 1, 2 * FAR, 2 * FAR + 1, *(FAR + 7 * BLOCK + more for more in range(-2, 6)), 2_000_000],
)
def test_the_checksum_is_that_of_zlib(size: int) -> None:
    message = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    assert crc32(message) == zlib.crc32(message.tobytes())
    assert crc32(np.zeros(size, np.uint8)) == zlib.crc32(bytes(size))


def test_any_changed_bit_changes_the_checksum() -> None:
    message = np.random.default_rng(0).integers(0, 256, FAR + 4 * BLOCK + 77, dtype=np.uint8)
    whole = crc32(message)
    for at in np.random.default_rng(1).choice(len(message), 60, replace=False).tolist():
        message[at] ^= 1 << at % 8
        assert crc32(message) != whole
        message[at] ^= 1 << at % 8
    assert crc32(message) == whole
