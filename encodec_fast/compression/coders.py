"""Coders: the codes of a segment as bytes, and back. These need no language model; `adaptive` has a module of its own.

Every segment is coded by itself, frame by frame, and within a frame the first level first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from encodec_fast.compression.bits import bits_per_code, pack_bits, packed_size, unpack_bits
from encodec_fast.compression.range_coder import RangeDecoder, RangeEncoder
from encodec_fast.compression.segments import CompressedFileError
from encodec_fast.compression.tables import LEVEL_ABOVE, Context, Tables

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
        self._levels = level_tables(tables)

    def encode(self, segments: Sequence[np.ndarray]) -> list[bytes]:
        payloads = []
        for codes in segments:
            check_levels(self._tables, len(codes))
            encoder = RangeEncoder()
            levels = self._levels[: len(codes)]
            before = [-1] * len(codes)
            for frame in codes.T.tolist():
                above = -1
                for code, last, level in zip(frame, before, levels):
                    starts = level.starts(last, above).list
                    encoder.encode(starts[code], starts[code + 1] - starts[code], starts[-1])
                    above = code
                before = frame
            payloads.append(encoder.finish())
        return payloads

    def decode(self, payloads: Sequence[bytes], frames: Sequence[int], levels: int) -> list[np.ndarray]:
        check_levels(self._tables, levels)
        decoded = []
        for data, count in zip(payloads, frames, strict=True):
            decoder = RangeDecoder(data)
            rows: list[list[int]] = []
            before = [-1] * levels
            for _ in range(count):
                above, frame = -1, []
                for last, level in zip(before, self._levels):
                    starts = level.starts(last, above).list
                    above = bisect_right(starts, decoder.target(starts[-1])) - 1
                    decoder.take(starts[above], starts[above + 1] - starts[above])
                    frame.append(above)
                rows.append(frame)
                before = frame
            check_end(decoder)
            decoded.append(np.array(rows, np.int64).reshape(count, levels).T.copy())
        return decoded


class _Starts(NamedTuple):
    """Sums of frequencies, twice: an element of an array takes Python longer."""

    list: list[int]
    array: np.ndarray


class LevelTables:
    """The tables of a level, by what is known when its code comes."""

    def __init__(self, starts: np.ndarray, context: Context | None):
        self._alone = _Starts(starts.tolist(), starts)
        self._above = context is not None and context.kind == LEVEL_ABOVE
        # for each code of the context; a class has them once
        self._behind: list[_Starts] = []
        if context is not None:
            classes = [_Starts(each.tolist(), each) for each in context.starts]
            self._behind = [classes[number] for number in context.classes.tolist()]

    def starts(self, before: int, above: int) -> _Starts:
        """Returns the sums of frequencies.  before, above: codes of the frame before and of the level above, -1 for none."""
        known = above if self._above else before
        return self._behind[known] if self._behind and known >= 0 else self._alone


def level_tables(tables: Tables) -> list[LevelTables]:
    """Returns the tables of each level."""
    contexts = tables.contexts or (None,) * tables.levels
    return [LevelTables(starts, context) for starts, context in zip(tables.starts, contexts, strict=True)]


def check_levels(tables: Tables, levels: int) -> None:
    """Raises CompressedFileError for more levels than the tables have."""
    if levels > tables.levels:
        raise CompressedFileError(f"the codes have {levels} levels, the tables {tables.levels}; give tables of that many.")


def check_end(decoder: RangeDecoder) -> None:
    """Raises CompressedFileError where a segment has bytes that its coder would not have written."""
    if not decoder.at_end:
        raise CompressedFileError("more bytes are there than codes for them.")
