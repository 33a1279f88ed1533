"""Bytes of sound that a file's header announces, and bytes that are there.

Formats: WAV, AIFF, AU, W64, CAF, AVI, MP4, Matroska.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from encodec_fast.audio.mpeg import parse_header
from encodec_fast.audio.tags import is_beginning, read_at

_MOST_CHUNKS = 100_000
# Some programs pad a file to a whole disk block
_MOST_BEHIND = 4096


@dataclass(frozen=True)
class Declared:
    """Where the samples start, how many bytes are announced, and how many there are up to the file's end.

    announced: None if the header calls the length unknown. Programs that write to a pipe can't go back to fill it in.
    repair: (offset, bytes) to overwrite in such a header, so that libsndfile reads all samples.
    whole: where the outermost chunk says that the file ends, or 0.  bare: only samples follow the header in this format.
    """

    start: int
    announced: int | None
    there: int
    repair: tuple[int, bytes] | None = None
    whole: int = 0
    bare: bool = False

    def problem(self, file: BinaryIO) -> str | None:
        """Returns what is missing, or what follows the sound, as a sentence without its full stop; None if neither."""
        if self.announced is None:
            return None
        if self.announced > self.there:
            return f"the file is cut short: {self.announced} bytes of audio announced, {self.there} there"
        last = self.start + self.announced
        # a pad byte, or chunks that describe the sound, may come between
        for end in (last, last + last % 2, self.whole, self.whole + self.whole % 2):
            if not 0 < end < self.start + self.there:
                continue
            head = read_at(file, end, 8)
            if is_beginning(head) or head[:3] == b"ID3" or parse_header(head) is not None:
                return f"another file begins behind its end, at byte {end}: the file is made of several; split them, or convert them to one"
        if self.bare and self.there - self.announced > _MOST_BEHIND:
            return f"{self.there - self.announced} bytes stand behind the announced end of the audio: the file is made of several"
        return None


def declared(file: BinaryIO, size: int) -> Declared | None:
    """Returns what the file's header announces; None for other formats and where no samples are found.

    size: of the file, in bytes.
    """
    file.seek(0)
    magic = file.read(12)
    find = _mp4 if magic[4:8] == b"ftyp" else _FORMATS.get(magic[:4])
    try:
        return find(file, size, magic) if find is not None else None
    except struct.error:  # the file ends inside a number or before a chunk
        return None


def _go(file: BinaryIO, at: int, size: int) -> None:
    """Seeks to `at`; raises struct.error past the file's end.

    A damaged length may point there, or further than a seek can go.
    """
    if at > size:
        raise struct.error
    file.seek(at)


def _riff(file: BinaryIO, size: int, magic: bytes) -> Declared | None:
    if magic[8:] == b"AVI ":
        length = struct.unpack("<I", magic[4:8])[0]
        return Declared(8, length or None, size - 8)
    if magic[8:] != b"WAVE":
        return None
    order, wide, at = ">" if magic[:4] == b"RIFX" else "<", None, 12
    whole = 8 + struct.unpack(f"{order}I", magic[4:8])[0]
    for _ in range(_MOST_CHUNKS):
        _go(file, at, size)
        header = file.read(8)
        if len(header) < 8:
            return None
        name, length = struct.unpack(f"{order}4sI", header)
        start = at + 8
        if name == b"ds64":
            whole, wide = struct.unpack("<QQ", file.read(16))
            whole, wide_at = whole + 8, start + 8
        if name == b"data":
            there = size - start
            if wide is not None and length == 0xFFFFFFFF:
                unknown = (wide == 0 and there > 0 and not _chunks_to_the_end(file, start, size, order)) or wide >= 1 << 62
                repair = (wide_at, struct.pack("<Q", there)) if unknown else None
                return Declared(start, None if unknown else wide, there, repair, whole)
            if length == 0 and there and not _chunks_to_the_end(file, start, size, order):
                return Declared(start, None, there, (at + 4, b"\xff" * 4))
            # a length that was never filled in is near 2^31 or 2^32
            return Declared(start, None if length >= 0x7FFFF000 and length > there else length, there, None, whole)
        at = start + length + length % 2
    return None


def _chunks_to_the_end(file: BinaryIO, at: int, size: int, order: str) -> bool:
    """Tells whether chunks follow each other from here to the file's end, which samples never look like."""
    while at < size:
        _go(file, at, size)
        header = file.read(8)
        if len(header) < 8 or not all(32 <= char < 127 for char in header[:4]):
            return False
        length = struct.unpack(f"{order}I", header[4:])[0]
        at += 8 + length + length % 2
    return at in (size, size + 1)


def _aiff(file: BinaryIO, size: int, magic: bytes) -> Declared | None:
    if magic[8:] not in (b"AIFF", b"AIFC"):
        return None
    at, whole = 12, 8 + struct.unpack(">I", magic[4:8])[0]
    for _ in range(_MOST_CHUNKS):
        _go(file, at, size)
        name, length = struct.unpack(">4sI", file.read(8))
        if name == b"SSND":
            return Declared(at + 8, None if length in (0, 0xFFFFFFFF) else length, size - at - 8, None, whole)
        at += 8 + length + length % 2
    return None


def _au(file: BinaryIO, size: int, magic: bytes) -> Declared | None:
    start, length = struct.unpack(">II", magic[4:])
    if start > size:
        return None
    if length == 0 and size > start:
        return Declared(start, None, size - start, (8, b"\xff" * 4))
    return Declared(start, None if length == 0xFFFFFFFF else length, size - start, bare=True)


def _wave64(file: BinaryIO, size: int, magic: bytes) -> Declared | None:
    file.seek(16)
    whole, at = struct.unpack("<Q", file.read(8))[0], 40
    for _ in range(_MOST_CHUNKS):
        _go(file, at, size)
        name, length = struct.unpack("<16sQ", file.read(24))
        if name[:4] == b"data":
            unknown = length < 24 or length >= 1 << 62
            return Declared(at + 24, None if unknown else length - 24, size - at - 24, None, whole)
        if length < 24:
            return None
        at += (length + 7) // 8 * 8
    return None


def _caf(file: BinaryIO, size: int, magic: bytes) -> Declared | None:
    at = 8
    for _ in range(_MOST_CHUNKS):
        _go(file, at, size)
        name, length = struct.unpack(">4sq", file.read(12))
        if name == b"data":
            start, there = at + 12, size - at - 12
            return Declared(start, None, there, (at + 4, struct.pack(">q", there))) if length == -1 else Declared(start, length, there)
        if length < 0:
            return None
        at += 12 + length
    return None


def _mp4(file: BinaryIO, size: int, magic: bytes) -> Declared | None:
    """Returns the length up to the last of the boxes; ffmpeg tells whether they are whole."""
    at = 0
    while at + 8 <= size:
        length, name = struct.unpack(">I4s", read_at(file, at, 8))
        if length == 1:
            length = struct.unpack(">Q", read_at(file, at + 8, 8))[0]
        if length < 8 or not name.isalnum() or (at and is_beginning(read_at(file, at, 8))):
            break
        at += length
    return Declared(0, min(at, size), size)


def _matroska(file: BinaryIO, size: int, magic: bytes) -> Declared | None:
    """Returns the length up to the end of the segment, if that is known; ffmpeg tells whether it is whole."""
    at = 0
    for name in (b"\x1aE\xdf\xa3", b"\x18S\x80g"):
        head = read_at(file, at, 12)
        width = 9 - head[4].bit_length() if len(head) == 12 else 9
        length = int.from_bytes(head[4 : 4 + width], "big") - (1 << 7 * width)
        if head[:4] != name or width > 8 or length == (1 << 7 * width) - 1:
            return None
        at += 4 + width + length
    return Declared(0, min(at, size), size)


_FORMATS: dict[bytes, Callable[[BinaryIO, int, bytes], Declared | None]] = {
    b"RIFF": _riff,
    b"RIFX": _riff,
    b"RF64": _riff,
    b"BW64": _riff,
    b"FORM": _aiff,
    b".snd": _au,
    b"riff": _wave64,
    b"caff": _caf,
    b"\x1aE\xdf\xa3": _matroska,
}
