"""The pages of Ogg: where each stream chained in a file starts and ends, and whether all of it is there."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

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


class Link(NamedTuple):
    """A link of the chain.

    start, end: in bytes.  early_ends: where the pages begin that say that their stream ends, before it does.
    begins_early: whether its sound begins before the time 0, so that no time on its pages tells its length.
    """

    start: int
    end: int
    early_ends: tuple[int, ...] = ()
    begins_early: bool = False


@dataclass
class _Stream:
    """State of one serial number's stream after the pages so far."""

    number: int
    granule: int = 0
    # where the page begins that says that it ends
    end: int | None = None
    # whether the last packet continues on the next page
    open: bool = False


@dataclass
class _Link:
    start: int
    streams: dict[int, _Stream] = field(default_factory=dict)
    # whether a page other than a stream's first has come
    begun: bool = False
    early_ends: list[int] = field(default_factory=list)
    begins_early: bool = False

    def until(self, end: int) -> Link:
        """Returns the link that ends there.  Raises OggError if a stream in it doesn't end."""
        if any(stream.end is None for stream in self.streams.values()):
            raise OggError("the file is cut short: the last page of a stream doesn't say that it ends there")
        return Link(self.start, end, tuple(self.early_ends), self.begins_early)


def links(file: BinaryIO, end: int) -> list[Link]:
    """Returns each link chained in the file; one if nothing is chained.

    Checks each page's checksum and number.  Raises OggError if a page is damaged or missing, or a stream doesn't end.
    """
    found: list[Link] = []
    link: _Link | None = None
    data, base, at = b"", 0, 0
    while at < end:
        if at + _LONGEST_PAGE > base + len(data) and base + len(data) < end:
            file.seek(at)
            base, data = at, file.read(min(_CHUNK, end - at))
        size = _page(data, at - base, at, end)
        if size is None:
            if link is not None and all(stream.end is not None for stream in link.streams.values()) and not _comes(file, at, end):
                head = read_at(file, at, 8)
                if is_beginning(head) or head[:3] == b"ID3" or parse_header(head) is not None:
                    raise OggError(f"another file begins at byte {at}: the file is made of several; split them, or convert them to one")
                end = at  # what follows is not Ogg
                break
            raise OggError(f"the file is damaged: no Ogg page starts at byte {at}")
        header = data[at - base : at - base + 27]
        if header[5] & _FIRST and (link is None or link.begun):
            if link is not None:
                found.append(link.until(at))
            link = _Link(at)
        if link is None:
            raise OggError("the file is cut short: its first page is not the beginning of a stream")
        _add(link, header, data[at - base + 26 + header[26]] == 255 if header[26] else False, at)
        at += size
    if link is None:
        raise OggError("no Ogg page is found in it")
    return [*found, link.until(end)]


def parts(file: BinaryIO, link: Link) -> list[tuple[int, int] | bytes]:
    """Returns the link as parts for `Spans`, without its early ends, at which decoders stop."""
    found: list[tuple[int, int] | bytes] = []
    at = link.start
    for early in link.early_ends:
        file.seek(early)
        page = bytearray(file.read(_LONGEST_PAGE))
        size = 27 + page[26] + sum(page[27 : 27 + page[26]])
        page[5] &= ~_LAST
        page[22:26] = _checksum(bytes(page[:size]))
        found += [(at, early - at), bytes(page[:27])]
        at = early + 27
    return [*found, (at, link.end - at)]


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
    if data[at + 22 : at + 26] != _checksum(data[at : at + size]):
        raise OggError(f"the file is damaged: the checksum of the page at byte {offset} is wrong")
    return size


def _checksum(page: bytes) -> bytes:
    """Returns the checksum that belongs into a page."""
    checksum = zlib.crc32((page[:22] + bytes(4) + page[26:]).translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return checksum.to_bytes(4, "big").translate(_REVERSED)


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
        if stream.end is not None:
            link.early_ends.append(stream.end)
            stream.end = None
        stream.number, stream.open = number, is_open
        stream.granule = max(stream.granule, granule)
        # -1 is a page on which no packet ends
        link.begins_early |= granule < -1
    if header[5] & _LAST:
        link.streams[serial].end = offset


def _comes(file: BinaryIO, at: int, end: int) -> bool:
    """Tells whether any page starts from this place on."""
    while at < end:
        file.seek(at)
        if b"OggS" in file.read(min(_CHUNK + 3, end - at)):
            return True
        at += _CHUNK
    return False
