"""The members of a tar, from its headers alone, whatever state it is in: what is damaged is named, and what follows is found.

Python's tarfile ends without a word at a header that it can't read, and differs between versions; so headers are read here.
Formats: v7, ustar, GNU (long names, base-256 sizes) and PAX (path, size). Source: POSIX.1-2017, pax, and the GNU tar manual.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

BLOCK = 512
# More for a name, or for the records of one PAX header, is damage and no name
MAX_METADATA = 1 << 20
# Links that lead to links
MAX_LINKS = 16
# From this size on a ustar header can't hold it, and PAX does: 8 GiB
_USTAR_LIMIT = 8 << 30
_SEARCHED_AT_ONCE = 1 << 20
_REGULAR, _HARD_LINK, _SYMBOLIC_LINK, _FOLDER, _DEVICES = b"0\0007", b"1", b"2", b"5D", b"346"
_MAGIC, _MAGIC_AT = b"ustar", 257


@dataclass(frozen=True)
class Member:
    """A file in a tar. name: bytes that are not UTF-8 as surrogate escapes. offset, size: of its data, bytes.

    problem: why it can't be read, where it is no plain file; None else.
    """

    name: str
    offset: int
    size: int
    problem: str | None = None


@dataclass(frozen=True)
class Damage:
    """A place where the tar is not what it should be. offset: in bytes. What follows is read as far as it is found."""

    offset: int
    reason: str


class _HeaderError(ValueError):
    """A header that is none; the message says why."""


@dataclass
class _Header:
    name: str
    size: int
    kind: bytes
    link: str


@dataclass
class _Pending:
    """What headers before a member's say of it."""

    name: str | None = None
    link: str | None = None
    size: int | None = None
    sparse: bool = False


@dataclass
class _Archive:
    file: BinaryIO
    end: int
    files: dict[str, Member] = field(default_factory=dict)
    links: list[tuple[str, str, int]] = field(default_factory=list)

    def at(self, offset: int, size: int) -> bytes:
        self.file.seek(offset)
        return self.file.read(size)


def tar_members(file: BinaryIO) -> Iterator[Member | Damage]:
    """Yields every file of the tar, links last, and every damage. An archive that does not end as archives end is damaged.

    Links are what they lead to in this archive. Sparse files, devices and links to elsewhere have a problem.
    Folders give nothing. Raises OSError where the file can't be read.
    """
    archive = _Archive(file, file.seek(0, 2))
    at: int | None = 0
    while at is not None:
        try:
            yield from _run(archive, at)
            at = None
        except _HeaderError as error:
            reason, at = error.args
            yield Damage(at, reason)
            at = _next_header(archive, at + 1)
    yield from _followed(archive)


def _run(archive: _Archive, at: int) -> Iterator[Member | Damage]:
    """Yields members from a header on, up to the end of the archive. Raises _HeaderError with the place."""
    pending = _Pending()
    while True:
        block = archive.at(at, BLOCK)
        if len(block) < BLOCK:
            raise _HeaderError("the archive is cut short: it ends without its end mark", at)
        if not any(block):
            _check_end(archive, at)
            return
        try:
            header = _header(block)
        except ValueError as error:
            raise _HeaderError(f"a member's header is damaged ({error})", at) from error
        data = at + BLOCK
        if header.kind in (b"L", b"K", b"x", b"X", b"g"):
            _take_metadata(archive, header, data, at, pending)
            at = data + _padded(header.size)
            continue
        yield from _member(archive, header, pending, at)
        at = _after(archive, header, pending, at)
        pending = _Pending()


def _check_end(archive: _Archive, at: int) -> None:
    """Raises _HeaderError where what follows a block of zeros is not the end of the archive."""
    second = archive.at(at + BLOCK, BLOCK)
    if any(second):
        raise _HeaderError("a member's header is damaged (a block of zeros)", at)
    # a lone block of zeros that is the last has cut off nothing
    place = at + BLOCK + len(second)
    while place < archive.end:
        part = archive.at(place, _SEARCHED_AT_ONCE)
        if not part:
            return
        if any(part):
            raise _HeaderError("something stands behind the end of the archive", at)
        place += len(part)


def _member(archive: _Archive, header: _Header, pending: _Pending, at: int) -> Iterator[Member | Damage]:
    name = header.name if pending.name is None else pending.name
    size, start = _size(header, pending, at), at + BLOCK
    folder = header.kind in _FOLDER or (header.kind in _REGULAR and name.endswith("/"))
    if folder:
        return
    problem = None
    if pending.sparse or header.kind == b"S":
        problem = "a sparse member of the archive; pack it without --sparse."
    elif header.kind in b"MV":
        problem = "a part of a member that lies in several archives; join them first."
    elif header.kind in _DEVICES:
        problem = "a device or pipe in the archive, no file."
    elif header.kind in (_HARD_LINK, _SYMBOLIC_LINK):
        target = header.link if pending.link is None else pending.link
        if header.kind == _SYMBOLIC_LINK:
            target = posixpath.join(posixpath.dirname(name), target)
        archive.links.append((name, target, start))
        return
    elif start + size > archive.end:
        yield Member(name, start, size, f"the archive is cut short: {size} bytes announced, {max(0, archive.end - start)} there.")
        return
    member = Member(name, start, size, problem)
    archive.files[posixpath.normpath(name)] = member
    yield member


def _after(archive: _Archive, header: _Header, pending: _Pending, at: int) -> int:
    """Returns where the next header should be. Raises _HeaderError where that is behind the end of the file."""
    size, start = _size(header, pending, at), at + BLOCK
    if header.kind in (_HARD_LINK, _SYMBOLIC_LINK) or header.kind in b"3456":
        return start
    if header.kind == b"S":
        # old GNU: more blocks with the map of the holes
        more = archive.at(at + 482, 1)
        while more == b"\1":
            more = archive.at(start + 504, 1)
            start += BLOCK
    if start + size > archive.end:
        # a size that is a lie may hide whole members, so these are searched for
        raise _HeaderError(f"a member announces {size} bytes, and {max(0, archive.end - start)} are there", at)
    return start + _padded(size)


def _size(header: _Header, pending: _Pending, at: int) -> int:
    if pending.size is None:
        return header.size
    if 0 < header.size != pending.size < _USTAR_LIMIT:
        raise _HeaderError(f"a member's two headers announce {pending.size} and {header.size} bytes", at)
    return pending.size


def _take_metadata(archive: _Archive, header: _Header, start: int, at: int, pending: _Pending) -> None:
    """Raises _HeaderError where the header that stands before a member's is damaged."""
    if header.size > MAX_METADATA or start + header.size > archive.end:
        raise _HeaderError(f"a header of {header.size} bytes, {max(0, archive.end - start)} are there", at)
    data = archive.at(start, header.size)
    if header.kind == b"L":
        pending.name = _text(data)
    elif header.kind == b"K":
        pending.link = _text(data)
    elif header.kind != b"g":
        try:
            _take_pax(data, pending)
        except ValueError as error:
            raise _HeaderError(f"a PAX header is damaged ({error})", at) from error


def _take_pax(data: bytes, pending: _Pending) -> None:
    """Raises ValueError for what are no records `length key=value`."""
    while data.rstrip(b"\0"):
        digits, _, _ = data[:20].partition(b" ")
        length = _number(digits, 10)
        record = data[len(digits) + 1 : length]
        key, equals, value = record[:-1].partition(b"=")
        if not equals or record[-1:] != b"\n" or length > len(data):
            raise ValueError("a record without its end")
        if key == b"GNU.sparse.name" or (key == b"path" and not pending.sparse):
            pending.name = value.decode("utf-8", "surrogateescape")
        elif key == b"linkpath":
            pending.link = value.decode("utf-8", "surrogateescape")
        elif key == b"size":
            pending.size = _number(value, 10)
        pending.sparse |= key.startswith(b"GNU.sparse.")
        data = data[length:]


def _header(block: bytes) -> _Header:
    """Raises ValueError for what is no header."""
    announced = _number(block[148:156].strip(b" \0"), 8)
    rest = block[:148] + b" " * 8 + block[156:]
    # some old writers sum signed bytes
    if announced not in (sum(rest), sum(rest) - 256 * sum(byte > 127 for byte in rest)):
        raise ValueError("its checksum is wrong")
    name, prefix = _text(block[:100]), _text(block[345:500])
    # GNU's magic is "ustar  ", and it keeps other things where ustar has the prefix
    if block[_MAGIC_AT : _MAGIC_AT + 6] == b"ustar\0" and prefix:
        name = f"{prefix}/{name}"
    return _Header(name, _size_field(block[124:136]), block[156:157], _text(block[157:257]))


def _size_field(data: bytes) -> int:
    """Raises ValueError for what is no size."""
    if data[0] == 0x80:
        return int.from_bytes(data[1:], "big")
    if data[0] == 0xFF:
        raise ValueError("its size is negative")
    return _number(data.strip(b" \0") or b"0", 8)


def _number(digits: bytes, base: int) -> int:
    # int() takes signs and underscores too
    if not digits or len(digits) > 20 or digits.strip(b"01234567" if base == 8 else b"0123456789"):
        raise ValueError(f"{digits[:20]!r} is no number")
    return int(digits, base)


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _next_header(archive: _Archive, start: int) -> int | None:
    """Returns where the next block with a right checksum and magic begins, or None. At any offset: bytes may be missing."""
    at, kept = start, b""
    while True:
        part = archive.at(at + len(kept), _SEARCHED_AT_ONCE)
        window = kept + part
        found = window.find(_MAGIC, _MAGIC_AT)
        while found != -1:
            place = at + found - _MAGIC_AT
            block = window[found - _MAGIC_AT : found - _MAGIC_AT + BLOCK]
            if len(block) == BLOCK and _is_header(block):
                return place
            found = window.find(_MAGIC, found + 1)
        if not part:
            return None
        kept = window[-(BLOCK - 1) :]
        at += len(window) - len(kept)


def _is_header(block: bytes) -> bool:
    try:
        _header(block)
    except ValueError:
        return False
    return True


def _followed(archive: _Archive) -> Iterator[Member]:
    """Yields the links, as what they lead to."""
    links = {posixpath.normpath(name): posixpath.normpath(target) for name, target, _ in archive.links}
    for name, first, start in archive.links:
        target = posixpath.normpath(first)
        for _ in range(MAX_LINKS):
            if target in archive.files or target not in links:
                break
            target = links[target]
        found = archive.files.get(target)
        if found is None:
            yield Member(name, start, 0, "a link to what is not in this archive.")
        else:
            yield Member(name, found.offset, found.size, found.problem)
