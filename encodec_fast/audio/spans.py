"""Parts of a file, presented as a file of their own."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from typing import BinaryIO

# Libraries look for tags in these last bytes of a file before they read it
_TAIL = 1024


class Spans(io.RawIOBase):
    """A file made of parts of another one: (offset, bytes) in it, or bytes themselves.

    Seeks and reads; the other file is not closed.
    announced: the length it claims, in bytes, if that is more than there is.
    Reading still ends where the parts do, but the last bytes of the claimed length read as zeros.
    This serves libraries that guess from the length how much sound there is, and stop there.
    """

    def __init__(self, file: BinaryIO, parts: Sequence[tuple[int, int] | bytes], announced: int = 0):
        self._file, self._parts = file, [part for part in parts if isinstance(part, tuple) or part]
        self._ends: list[int] = []
        for part in self._parts:
            self._ends.append((self._ends[-1] if self._ends else 0) + (len(part) if isinstance(part, bytes) else part[1]))
        self.length = self._ends[-1] if self._ends else 0
        self._announced = max(announced, self.length)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._announced}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        data = self._some(len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _some(self, size: int) -> bytes:
        if self._at < self.length:
            index = bisect_right(self._ends, self._at)
            part, left = self._parts[index], self._ends[index] - self._at
            if isinstance(part, bytes):
                return part[len(part) - left :][:size]
            self._file.seek(part[0] + part[1] - left)
            return self._file.read(min(left, size))
        in_tail = self._at >= max(self.length + 1, self._announced - _TAIL)
        return bytes(min(size, max(0, self._announced - self._at))) if in_tail else b""
