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
    before, last, spare = _Block(first[:BLOCK]), _Block(first[BLOCK:]), _Block(np.empty(BLOCK, np.uint8))
    add = np.bitwise_xor
    last.whole ^= before.whole
    last.far ^= before.begin
    for start in range(lead + BLOCK, end, BLOCK):
        add(message[start : start + BLOCK], last.whole, spare.whole)
        add(spare.near, before.end, spare.near)
        add(spare.far, last.begin, spare.far)
        before, last, spare = last, spare, before
    tail = message[end:].copy()
    tail[:BLOCK] ^= last.whole
    tail[:NEAR] ^= before.end
    tail[NEAR:] ^= last.whole
    # zlib inverts the start value that it is given, so this is a register of zeros.
    return zlib.crc32(tail.data, 0xFFFFFFFF)


class _Block:
    """A block of bytes and its parts, which are made once: a slice takes half as long as adding a block."""

    __slots__ = ("begin", "end", "far", "near", "whole")

    def __init__(self, whole: NDArray[np.uint8]) -> None:
        self.whole, self.near, self.far = whole, whole[:NEAR], whole[NEAR:]
        self.begin, self.end = whole[:_INTO], whole[_INTO:]
