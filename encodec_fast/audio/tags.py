"""What surrounds frames of sound: tags, and zeros as padding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

_CHUNK = 1 << 20
# First bytes of files of sound: WAV and its kin, AIFF, AU, W64, CAF, FLAC, Ogg, Matroska, ASF
_BEGINNINGS = (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM", b".snd", b"riff", b"caff", b"fLaC", b"OggS", b"\x1aE\xdf\xa3", b"0&\xb2u")


def read_at(file: BinaryIO, at: int, size: int) -> bytes:
    """Reads up to `size` bytes from this place on."""
    file.seek(at)
    return file.read(max(0, size))


def is_beginning(head: bytes) -> bool:
    """Tells whether a file that starts with these eight bytes may hold sound, in any format but MPEG audio."""
    return head[:4] in _BEGINNINGS or head[4:8] == b"ftyp"


def no_audio(file: BinaryIO, at: int, end: int) -> int:
    """Returns the length of the tag or the run of zeros at this place; 0 if there is none."""
    head = read_at(file, at, min(32, end - at))
    if tag := _id3_bytes(head):
        return tag
    if head[:4] == b"TAG+":
        return 227
    if head[:3] == b"TAG":
        return 128
    if head[:8] == b"APETAGEX" and len(head) == 32:
        return 32 + (int.from_bytes(head[12:16], "little") if head[23] & 0x20 else 0)
    return sum(_zeros(file, at, end))


def _id3_bytes(head: bytes) -> int:
    """Returns the length of the ID3v2 tag with this head, or 0."""
    if head[:3] != b"ID3" or len(head) < 10 or max(head[6:10]) >= 0x80:
        return 0
    return 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]) + (10 if head[5] & 0x10 else 0)


def skip_tags(file: BinaryIO, end: int) -> int:
    """Returns where the ID3v2 tags at the file's start end."""
    at = 0
    while at < end and (tag := _id3_bytes(read_at(file, at, 10))):
        at += tag
    return at


def _zeros(file: BinaryIO, at: int, end: int) -> Iterator[int]:
    while at < end:
        data = read_at(file, at, min(_CHUNK, end - at))
        zeros = len(data) - len(data.lstrip(b"\0"))
        yield zeros
        if zeros < len(data) or not data:
            return
        at += zeros


def before_tags(file: BinaryIO, start: int, end: int) -> int:
    """Returns where the tags at the file's end start."""
    while True:
        tail = read_at(file, max(start, end - 227), end - max(start, end - 227))
        size = 0
        if tail[-128:-125] == b"TAG" and len(tail) >= 128:
            size = 227 if tail[:4] == b"TAG+" and len(tail) == 227 else 128
        elif tail[-32:-24] == b"APETAGEX":
            size = int.from_bytes(tail[-20:-16], "little") + (32 if tail[-9] & 0x80 else 0)
        elif tail[-9:] == b"LYRICS200" and tail[-15:-9].isdigit():
            size = int(tail[-15:-9]) + 15
        if not 0 < size <= end - start:
            return end
        end -= size


def before_zeros(file: BinaryIO, start: int, end: int) -> int:
    """Returns where the zeros at a file's end start."""
    at = end
    while at > start:
        size = min(_CHUNK, at - start)
        data = read_at(file, at - size, size)
        at -= len(data) - len(data.rstrip(b"\0"))
        if data.rstrip(b"\0"):
            break
    return at
