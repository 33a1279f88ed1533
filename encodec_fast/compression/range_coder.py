"""A range coder: symbols of known frequencies as nearly as few bits as their information, in whole numbers alone.

State: `low` and `range`, both of 64 bits. A carry out of `low` walks back over bytes already written.
`docs/ecdc.md` has the arithmetic, which is binding to the bit.
"""

from __future__ import annotations

_FULL = 1 << 64
_MASK = _FULL - 1
_LEAST_RANGE = 1 << 56
# So that a step of the smallest range is 2**16 at least
MOST_TOTAL = 1 << 40


class RangeEncoder:
    """Turns symbols into bytes."""

    def __init__(self) -> None:
        self._low = 0
        self._range = _MASK
        self._out = bytearray()

    def encode(self, start: int, frequency: int, total: int) -> None:
        """Adds a symbol.

        start: sum of the frequencies of the symbols before it.  frequency: its own, 1 or more.
        total: of all symbols, MOST_TOTAL at most.
        """
        step = self._range // total
        low = self._low + step * start
        if low > _MASK:
            low &= _MASK
            self._carry()
        width = step * frequency
        while width < _LEAST_RANGE:
            self._out.append(low >> 56)
            low = (low << 8) & _MASK
            width <<= 8
        self._low, self._range = low, width

    def finish(self) -> bytes:
        """Returns all bytes, without zeros at their end: a reader goes on with zeros."""
        low, last = self._low, self._low + self._range - 1
        for zeros in range(64, -1, -8):
            value = -(-low >> zeros) << zeros
            if value <= last:
                break
        if value > _MASK:
            value &= _MASK
            self._carry()
        self._out += value.to_bytes(8, "big")
        return bytes(self._out.rstrip(b"\0"))

    def _carry(self) -> None:
        at = len(self._out) - 1
        while self._out[at] == 0xFF:
            self._out[at] = 0
            at -= 1
        self._out[at] += 1


class RangeDecoder:
    """Turns the bytes of `RangeEncoder` into symbols again.

    Any bytes give symbols: whether they are right is for a checksum to say.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._code = int.from_bytes(data[:8].ljust(8, b"\0"), "big")
        self._position = 8
        self._range = _MASK
        self._step = 0

    def target(self, total: int) -> int:
        """Returns a number that lies in the next symbol: start <= target < start + frequency.  total: as in `encode`."""
        self._step = self._range // total
        return min(self._code // self._step, total - 1)

    def take(self, start: int, frequency: int) -> None:
        """Goes on behind the symbol that `target` lies in."""
        code = self._code - self._step * start
        width = self._step * frequency
        while width < _LEAST_RANGE:
            position = self._position
            code = (code << 8) & _MASK | (self._data[position] if position < len(self._data) else 0)
            self._position = position + 1
            width <<= 8
        self._code, self._range = code, width

    @property
    def at_end(self) -> bool:
        """Whether no byte is left that the encoder would not have written."""
        return len(self._data) <= self._position
