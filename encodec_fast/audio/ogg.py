"""The pages of Ogg: where each stream chained in a file starts and ends, and whether all of it is there."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import BinaryIO

from encodec_fast.audio.mpeg import parse_header
from encodec_fast.audio.tags import is_beginning, read_at

_CHUNK = 1 << 20
# header and table, 255 segments of 255 bytes
_LONGEST_PAGE = 27 + 255 + 255 * 255
_FIRST, _LAST = 2, 4
# each byte with its bits reversed: Ogg's checksum is zlib's of such bytes, reversed in turn
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class OggError(ValueError):
    """Pages that are damaged or missing; the message is a sentence without its full stop."""


@dataclass
class _Stream:
    """State of one serial number's stream after the pages so far."""

    number: int
    granule: int = 0
    ended: bool = False
    # whether the last packet continues on the next page
    open: bool = False


@dataclass
class _Link:
    start: int
    streams: dict[int, _Stream] = field(default_factory=dict)
    # whether a page other than a stream's first has come
    begun: bool = False


def links(file: BinaryIO, end: int) -> list[tuple[int, int]]:
    """Returns (start, end) in bytes of each link chained in the file; one if nothing is chained.

    Checks each page's checksum and number.  Raises OggError if a page is damaged or missing, or a stream doesn't end.
    """
    found: list[tuple[int, int]] = []
    link: _Link | None = None
    data, base, at = b"", 0, 0
    while at < end:
        if at + _LONGEST_PAGE > base + len(data) and base + len(data) < end:
            file.seek(at)
            base, data = at, file.read(min(_CHUNK, end - at))
        size = _page(data, at - base, at, end)
        if size is None:
            if link is not None and all(stream.ended for stream in link.streams.values()) and not _comes(file, at, end):
                head = read_at(file, at, 8)
                if is_beginning(head) or head[:3] == b"ID3" or parse_header(head) is not None:
                    raise OggError(f"another file begins at byte {at}: the file is made of several; split them, or convert them to one")
                end = at  # what follows is not Ogg
                break
            raise OggError(f"the file is damaged: no Ogg page starts at byte {at}")
        header = data[at - base : at - base + 27]
        if header[5] & _FIRST and (link is None or link.begun):
            if link is not None:
                found.append((link.start, at))
                _check_ended(link)
            link = _Link(at)
        if link is None:
            raise OggError("the file is cut short: its first page is not the beginning of a stream")
        _add(link, header, data[at - base + 26 + header[26]] == 255 if header[26] else False, at)
        at += size
    if link is None:
        raise OggError("no Ogg page is found in it")
    _check_ended(link)
    return [*found, (link.start, end)]


def last_serial(file: BinaryIO, end: int) -> tuple[int, int]:
    """Returns the serial numbers of the first and of the last page; if they differ, streams may be chained."""
    file.seek(0)
    first = file.read(18)
    start = max(0, end - _LONGEST_PAGE)
    file.seek(start)
    tail = file.read(end - start)
    at = max(0, tail.rfind(b"OggS"))
    return int.from_bytes(first[14:18], "little"), int.from_bytes(tail[at + 14 : at + 18], "little")


def _page(data: bytes, at: int, offset: int, end: int) -> int | None:
    """Returns the length of the page at `at`; None if none starts there.  offset: its position in the file, for messages."""
    if data[at : at + 4] != b"OggS":
        return None
    segments = data[at + 27 : at + 27 + data[at + 26]] if at + 27 <= len(data) else b""
    size = 27 + len(segments) + sum(segments)
    if at + 27 > len(data) or len(segments) < data[at + 26] or offset + size > end:
        raise OggError(f"the file is cut short: its last page, at byte {offset}, is not whole")
    page = data[at : at + 22] + bytes(4) + data[at + 26 : at + size]
    checksum = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    if data[at + 22 : at + 26] != checksum.to_bytes(4, "big").translate(_REVERSED):
        raise OggError(f"the file is damaged: the checksum of the page at byte {offset} is wrong")
    return size


def _add(link: _Link, header: bytes, is_open: bool, offset: int) -> None:
    serial, number = int.from_bytes(header[14:18], "little"), int.from_bytes(header[18:22], "little")
    granule = int.from_bytes(header[6:14], "little", signed=True)
    if header[5] & _FIRST:
        link.streams[serial] = _Stream(number, open=is_open)
    else:
        link.begun = True
        stream = link.streams.get(serial)
        if stream is None:
            raise OggError(f"the file is damaged: the page at byte {offset} belongs to no stream that has begun")
        # after the headers, a recording of a running stream may continue with any number
        if number != (stream.number + 1) & 0xFFFFFFFF and (stream.granule > 0 or stream.open):
            raise OggError(f"the file is damaged: pages are missing before byte {offset}")
        stream.number, stream.open = number, is_open
        stream.granule = max(stream.granule, granule)
    link.streams[serial].ended |= bool(header[5] & _LAST)


def _check_ended(link: _Link) -> None:
    if not all(stream.ended for stream in link.streams.values()):
        raise OggError("the file is cut short: the last page of a stream doesn't say that it ends there")


def _comes(file: BinaryIO, at: int, end: int) -> bool:
    """Tells whether any page starts from this place on."""
    while at < end:
        file.seek(at)
        if b"OggS" in file.read(min(_CHUNK + 3, end - at)):
            return True
        at += _CHUNK
    return False
