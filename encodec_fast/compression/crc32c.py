"""CRC-32C (Castagnoli), as iSCSI and many file formats have it. zlib's CRC-32 has another polynomial.

A block's checksum is a sum, without carries, over one table entry for each byte: numpy adds a thousand of them at once.
"""

from __future__ import annotations

import functools

import numpy as np

_POLYNOMIAL = 0x82F63B78
# Bytes that are added at once; the table takes 1 KB for each
_BLOCK = 1024


@functools.cache
def _tables() -> np.ndarray:
    """Returns what each byte value adds, at each place of a block: uint32 [_BLOCK, 256], the last place's in the last row."""
    table: np.ndarray = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ (table & 1) * np.uint32(_POLYNOMIAL)
    rows = [table]
    for _ in range(_BLOCK - 1):
        rows.append((rows[-1] >> 8) ^ table[rows[-1] & 0xFF])
    return np.stack(rows[::-1])


def crc32c(data: bytes, crc: int = 0) -> int:
    """Returns the CRC-32C of bytes.  crc: of the bytes before them."""
    tables, crc = _tables(), crc ^ 0xFFFFFFFF
    for start in range(0, len(data), _BLOCK):
        block = np.frombuffer(data, np.uint8, min(_BLOCK, len(data) - start), start)
        size = len(block)
        mixed = np.bitwise_xor(block[:4], np.frombuffer(crc.to_bytes(4, "little"), np.uint8)[:size])
        rows = tables[_BLOCK - size :]
        head = np.bitwise_xor.reduce(rows[np.arange(len(mixed)), mixed])
        rest = np.bitwise_xor.reduce(rows[np.arange(4, size), block[4:]]) if size > 4 else 0
        # of fewer bytes than the checksum has, its upper ones move down
        crc = int(head) ^ int(rest) ^ (crc >> 8 * size if size < 4 else 0)
    return crc ^ 0xFFFFFFFF
