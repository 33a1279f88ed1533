"""Whole numbers in as few bits as they need, least significant bit first, as version 0 of `.ecdc` has them."""

from __future__ import annotations

import numpy as np


def bits_per_code(codebook_size: int) -> int:
    """Returns the bits that tell `codebook_size` entries apart, at least 1."""
    return max(1, (codebook_size - 1).bit_length())


def packed_size(count: int, bits: int) -> int:
    """Returns the bytes that `count` numbers of `bits` bits take, the last byte filled up with zeros."""
    return -(-count * bits // 8)


def pack_bits(values: np.ndarray, bits: int) -> bytes:
    """Returns the numbers in `bits` bits each, end to end.

    values: any shape, read in C order, each 0 ... 2**bits - 1.
    """
    flat = np.ascontiguousarray(values, dtype="<u4").reshape(-1, 1)
    planes = np.unpackbits(flat.view(np.uint8), axis=1, count=bits, bitorder="little")
    return np.packbits(planes, bitorder="little").tobytes()


def unpack_bits(data: bytes, bits: int, count: int, lead: int = 0) -> np.ndarray:
    """Returns `count` numbers of `bits` bits, uint32 [count].

    lead: bits before the first of them.
    Raises ValueError where the data ends before them.
    """
    if lead + count * bits > 8 * len(data):
        raise ValueError(f"{len(data)} bytes hold no {count} numbers of {bits} bits behind {lead} bits.")
    planes = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[lead : lead + count * bits]
    padded = np.zeros((count, 32), np.uint8)
    padded[:, :bits] = planes.reshape(count, bits)
    return np.packbits(padded, axis=1, bitorder="little").view("<u4")[:, 0]
