"""Coders: the codes of a segment as bytes, and back. These need no language model; `adaptive` has a module of its own.

Every segment is coded by itself, frame by frame, and within a frame the first level first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from encodec_fast.compression.bits import bits_per_code, pack_bits, packed_size, unpack_bits
from encodec_fast.compression.range_coder import RangeDecoder, RangeEncoder
from encodec_fast.compression.segments import CompressedFileError
from encodec_fast.compression.tables import Tables

NO_FINGERPRINT = bytes(32)


class Coder(Protocol):
    """Turns the codes of segments into bytes and back.

    name: as `--coder` takes it.
    fingerprint: SHA-256 of the weights or tables that decoding needs, 32 bytes; zeros where it needs none.
    """

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> bytes: ...

    def encode(self, segments: Sequence[np.ndarray]) -> list[bytes]:
        """Returns the bytes of each segment, which depend on that segment alone.  segments: integers [K, F]."""

    def decode(self, payloads: Sequence[bytes], frames: Sequence[int], levels: int) -> list[np.ndarray]:
        """Returns the codes of each segment, int64 [levels, F].

        frames: F of each.
        Raises CompressedFileError for bytes that can't be of such a segment. Other damage gives other codes of the codebook.
        """


class RawCoder:
    """Codes as they are, in as few bits as tell the entries apart."""

    name = "raw"
    fingerprint = NO_FINGERPRINT

    def __init__(self, codebook_size: int):
        self._entries, self._bits = codebook_size, bits_per_code(codebook_size)

    def size(self, levels: int, frames: int) -> int:
        """Returns the bytes of a segment."""
        return packed_size(levels * frames, self._bits)

    def encode(self, segments: Sequence[np.ndarray]) -> list[bytes]:
        return [pack_bits(codes.T, self._bits) for codes in segments]

    def decode(self, payloads: Sequence[bytes], frames: Sequence[int], levels: int) -> list[np.ndarray]:
        decoded = []
        for data, count in zip(payloads, frames, strict=True):
            if len(data) != self.size(levels, count):
                raise CompressedFileError(f"{len(data)} bytes of codes; {levels} x {count} take {self.size(levels, count)}.")
            codes = unpack_bits(data, self._bits, levels * count)
            if codes.size and codes.max() >= self._entries:
                raise CompressedFileError(f"a code is {codes.max()}; the codebook has 0 ... {self._entries - 1}.")
            decoded.append(np.ascontiguousarray(codes.reshape(count, levels).T.astype(np.int64)))
        return decoded


class StaticCoder:
    """Codes by the frequencies of tables, which are the same for every segment."""

    name = "static"

    def __init__(self, tables: Tables):
        self._tables, self.fingerprint = tables, tables.fingerprint
        # lists: an element of an array takes Python longer
        self._starts: list[list[int]] = tables.starts.tolist()

    def encode(self, segments: Sequence[np.ndarray]) -> list[bytes]:
        payloads = []
        for codes in segments:
            check_levels(self._tables, len(codes))
            encoder = RangeEncoder()
            starts = self._starts[: len(codes)]
            for frame in codes.T.tolist():
                for code, level in zip(frame, starts):
                    encoder.encode(level[code], level[code + 1] - level[code], level[-1])
            payloads.append(encoder.finish())
        return payloads

    def decode(self, payloads: Sequence[bytes], frames: Sequence[int], levels: int) -> list[np.ndarray]:
        check_levels(self._tables, levels)
        decoded = []
        for data, count in zip(payloads, frames, strict=True):
            decoder = RangeDecoder(data)
            rows = []
            for _ in range(count):
                for level in self._starts[:levels]:
                    code = bisect_right(level, decoder.target(level[-1])) - 1
                    decoder.take(level[code], level[code + 1] - level[code])
                    rows.append(code)
            check_end(decoder)
            decoded.append(np.array(rows, np.int64).reshape(count, levels).T.copy())
        return decoded


def check_levels(tables: Tables, levels: int) -> None:
    """Raises CompressedFileError for more levels than the tables have."""
    if levels > tables.levels:
        raise CompressedFileError(f"the codes have {levels} levels, the tables {tables.levels}; give tables of that many.")


def check_end(decoder: RangeDecoder) -> None:
    """Raises CompressedFileError where a segment has bytes that its coder would not have written."""
    if not decoder.at_end:
        raise CompressedFileError("more bytes are there than codes for them.")
