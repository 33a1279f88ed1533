"""Codes in as few bits as the codebook needs, 10 for 1024 entries, as earlier versions could store them.

Parquet compresses uint16 to within 2 % of that, and everybody can read it.
"""

from __future__ import annotations

import math

import numpy as np


def code_bits(codebook_size: int) -> int:
    """Returns the bits per code."""
    return max(1, (codebook_size - 1).bit_length())


def unpack_codes(data: bytes, bits: int, shape: tuple[int, ...], dtype: np.typing.DTypeLike = np.uint16) -> np.ndarray:
    """Returns codes of the shape in C order, `bits` bits each, least significant bit first, as dtype.

    Raises ValueError for fewer or more bytes than codes of that shape take.
    """
    size = math.prod(shape)
    if len(data) != -(-size * bits // 8):
        raise ValueError(f"{len(data)} bytes of codes, and codes of shape {list(shape)} take {-(-size * bits // 8)}.")
    planes = np.unpackbits(np.frombuffer(data, np.uint8), count=size * bits, bitorder="little").reshape(size, bits)
    return (planes.astype(np.uint32) << np.arange(bits, dtype=np.uint32)).sum(1, dtype=np.uint32).astype(dtype).reshape(shape)
