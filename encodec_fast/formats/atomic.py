"""Files that are either whole and on the disk, or not there."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"


class AtomicFile:
    """A file under a temporary name beside its own, which it gets when it is whole and on the disk.

    file: to write to. The temporary name starts with a dot and depends on the path and the owner alone: what a killed
    process left behind is overwritten by the next one. owner: of a file that several processes may write at once.
    """

    def __init__(self, path: Path, owner: str = ""):
        self.path = path
        name = f"{owner}.{path.name}" if owner else path.name
        self.temporary = path.with_name(f".{name}{TEMPORARY_SUFFIX}")
        self.file = self.temporary.open("wb")

    def finish(self) -> Path:
        """The path, where the file now stands. After an error nothing does."""
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


def write_atomically(path: Path, data: bytes, owner: str = "") -> Path:
    """The path, whose file now holds the data; or holds what it did before, after an error. owner: see AtomicFile."""
    file = AtomicFile(path, owner)
    try:
        file.file.write(data)
    except BaseException:
        file.discard()
        raise
    return file.finish()


def sync_folder(folder: Path) -> None:
    """Puts the folder's names on the disk: without this, a power cut can undo a rename."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
