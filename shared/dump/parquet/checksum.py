"""CRC-32 of large buffers, in a third of zlib's time.

A CRC is the remainder of a message, as a polynomial over GF(2), divided by a polynomial of degree 32. Divided by it,
x ** (8 * FAR) and x ** (8 * NEAR) + 1 have the same remainder. So the first bytes of a message can be removed and added
(exclusive or) `FAR - NEAR` and `FAR` bytes later: numpy does this to blocks of bytes at the speed of the caches, and
zlib only has to process the last FAR bytes. (Every polynomial divides such sums of three powers; these are the smallest
that are whole bytes.)
"""

import zlib

import numpy as np
from numpy.typing import NDArray

FAR, NEAR = 91_639, 41_678
BLOCK = FAR - NEAR
# FAR bytes before the beginning of a block is this far into the block before the previous one.
_INTO = 2 * BLOCK - FAR
# Shorter messages are left to zlib.
_LEAST_BYTES = 2 * FAR


def crc32(message: NDArray[np.uint8]) -> int:
    """Return the CRC-32 of bytes [n], equal to that of zlib.crc32."""
    if len(message) < _LEAST_BYTES:
        return zlib.crc32(message.data)
    end = len(message) - FAR
    lead = end % BLOCK
    # Zeros before a message change nothing if the CRC register begins with zeros. It begins with ones, which is the
    # same as inverting the first four bytes.
    first = np.zeros(2 * BLOCK, np.uint8)
    first[BLOCK - lead :] = message[: BLOCK + lead]
    first[BLOCK - lead :][:4] ^= 255
    before, last, spare = first[:BLOCK], first[BLOCK:], np.empty(BLOCK, np.uint8)
    last ^= before
    last[NEAR:] ^= before[:_INTO]
    for start in range(lead + BLOCK, end, BLOCK):
        np.bitwise_xor(message[start : start + BLOCK], last, out=spare)
        spare[:NEAR] ^= before[_INTO:]
        spare[NEAR:] ^= last[:_INTO]
        before, last, spare = last, spare, before
    tail = message[end:].copy()
    tail[:BLOCK] ^= last
    tail[:NEAR] ^= before[_INTO:]
    tail[NEAR:] ^= last
    # zlib inverts the start value that it is given, so this is a register of zeros.
    return zlib.crc32(tail.data, 0xFFFFFFFF)
