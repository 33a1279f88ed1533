"""The arithmetic coder of `encodec` 0.1.1, to the bit: what version 0 of `.ecdc` has behind its language model.

A range [low, high] is cut into parts by ratios in double. Its leading bits, once `low` and `high` share them, are written one by one.
Source: encodec 0.1.1, quantization/ac.py.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import IO

import numpy as np

from encodec_fast.compression.bits import pack_bits
from encodec_fast.compression.segments import CompressedFileError

# What the parts of all symbols end at, at most
TOTAL = 1 << 24
# A range that stays around its middle settles no bit; theirs ends at so many
_MOST_BITS = 62


class _Range:
    """[low, high], both of so many bits."""

    def __init__(self) -> None:
        self.low = self.high = self.bits = 0

    def ratio(self) -> float:
        """Returns the width of one unit of TOTAL."""
        return (self.high - self.low + 1) / TOTAL

    def narrow(self, start: int, end: int, ratio: float) -> None:
        """Goes on with the part [start, end) of TOTAL.  Raises CompressedFileError where no range is left."""
        self.low, self.high = self.low + math.ceil(start * ratio), self.low + math.floor((end - 1) * ratio)
        if not self.low <= self.high < 1 << self.bits or self.bits > _MOST_BITS:
            raise CompressedFileError("the arithmetic coder of encodec 0.1.1 has no range for this code.")

    def settle(self) -> int | None:
        """Takes away the first bit, if `low` and `high` share it, and returns it; else None."""
        if not self.bits:
            return None
        place = self.bits - 1
        bit = self.low >> place
        if bit != self.high >> place:
            return None
        self.low -= bit << place
        self.high -= bit << place
        self.bits = place
        return bit

    def widen(self) -> bool:
        """Makes a range that is narrower than TOTAL twice as wide, and tells whether it was."""
        if self.high - self.low + 1 >= TOTAL:
            return False
        self.low, self.high, self.bits = 2 * self.low, 2 * self.high + 1, self.bits + 1
        return True


class ArithmeticEncoder:
    """Turns symbols into bytes."""

    def __init__(self) -> None:
        self._range = _Range()
        self._out: list[int] = []

    def encode(self, start: int, end: int) -> None:
        """Adds the symbol whose part of TOTAL is [start, end).  Raises CompressedFileError where theirs would fail."""
        while self._range.widen():
            pass
        self._range.narrow(start, end, self._range.ratio())
        while (bit := self._range.settle()) is not None:
            self._out.append(bit)

    def finish(self) -> bytes:
        """Returns all bytes. A decoder reads each of them for the symbols, and none more."""
        low, bits = self._range.low, self._range.bits
        # least significant bit first within a byte, as all of version 0
        return pack_bits(np.array([*self._out, *(low >> place & 1 for place in range(bits - 1, -1, -1))], np.uint32), 1)


class ArithmeticDecoder:
    """Turns the bytes of `ArithmeticEncoder` into symbols again; the file is left behind the last byte that was needed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._range = _Range()
        self._current = 0
        self._byte = self._left = 0

    def decode(self, ends: Sequence[int]) -> int:
        """Returns the next symbol.

        ends: of the part of each symbol; each begins where the one before ends.
        Raises CompressedFileError where the file ends, and for bytes that no symbol has.
        """
        own = self._range
        while own.widen():
            self._current = 2 * self._current + self._bit()
        ratio, place = own.ratio(), self._current - own.low
        symbol = bisect_right(ends, place, key=lambda end: math.ceil(end * ratio))
        if symbol == len(ends) or place > math.floor((ends[symbol] - 1) * ratio):
            raise CompressedFileError("no code has these bits.")
        own.narrow(ends[symbol - 1] if symbol else 0, ends[symbol], ratio)
        while (bit := own.settle()) is not None:
            self._current -= bit << own.bits
        return symbol

    def _bit(self) -> int:
        if not self._left:
            data = self._file.read(1)
            if not data:
                raise CompressedFileError("the file is cut short, or other probabilities were computed than when it was written.")
            self._byte, self._left = data[0], 8
        bit = self._byte & 1
        self._byte >>= 1
        self._left -= 1
        return bit
