"""Files that are either whole and on the disk, or not there; locks; and names read from files, which may point anywhere."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import IO

# Names no other program makes, so that what a killed process left can be removed: `.NAME.16 hexadecimal digits.tmp`; by earlier versions
# without the digits.
_TEMPORARY = re.compile(r"\.(?P<name>.+?)(\.[0-9a-f]{16})?\.tmp")


def temporary_of(name: str) -> str | None:
    """Returns the name that a temporary file of ours would have got, or None for any other name."""
    found = _TEMPORARY.fullmatch(name)
    return found["name"] if found else None


class AtomicFile:
    """A file under a temporary name beside its own, which it gets when it is whole and on the disk.

    file: to write to. The temporary name is random and the file new: nothing that lies there is overwritten or followed.
    """

    def __init__(self, path: Path):
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        # x: a name that is there already, a link too, is an error
        self.file = self.temporary.open("xb")

    def finish(self) -> Path:
        """Gives the file its own name and returns the path. After an error there is no file."""
        try:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            os.replace(self.temporary, self.path)
            sync_folder(self.path.parent)
        except BaseException:
            self.discard()
            raise
        return self.path

    def discard(self) -> None:
        """Removes the temporary file, also from a disk too full for what was still to be written."""
        with contextlib.suppress(OSError):
            self.file.close()
        self.temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def open_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Yields a file to write to, which gets its name at the end. After an error the path holds what it did before."""
    atomic = AtomicFile(path)
    try:
        yield atomic.file
    except BaseException:
        atomic.discard()
        raise
    atomic.finish()


def write_atomically(path: Path, data: bytes) -> Path:
    """Writes the data to the path and returns it. After an error the file holds what it did before."""
    with open_atomically(path) as file:
        file.write(data)
    return path


def file_crc32(path: Path) -> str:
    """Returns the CRC-32 of a file's bytes, eight hexadecimal digits."""
    crc = 0
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            crc = zlib.crc32(data, crc)
    return f"{crc:08x}"


def sync_folder(folder: Path) -> None:
    """Puts the folder's names on the disk: without this, a power cut can undo a rename."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[IO[bytes]]:
    """Opens and locks the file; the lock ends with the process however that ends. Raises BlockingIOError if another has it."""
    try:
        import fcntl
    except ImportError:  # Windows: the file can't be locked, so that nobody is kept out
        fcntl = None  # type: ignore[assignment]
    with path.open("ab+") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield file


def inside(folder: Path, name: object) -> Path:
    """Returns the path below the folder of a name that was read from a file.

    Raises ValueError for what is no relative name, leaves the folder, or lies behind a link that does.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"{name!r} is no name of a file.")
    pure = PurePath(name)
    path = folder / pure
    if pure.is_absolute() or pure.drive or ".." in pure.parts or not path.parent.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} lies outside {folder}.")
    return path
