"""The interface of an open audio file, its error, and opening of regular files: no pipe, device or socket."""

from __future__ import annotations

import io
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import numpy as np


class AudioError(ValueError):
    """A clip that can't be used.

    path: the file.  reason: one sentence for the person who owns it.
    """

    def __init__(self, path: Path | str, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says.

    duration: seconds.  sampling_rate: Hz.  channels: how many.  num_samples: per channel.

    duration and num_samples are 0 where the header doesn't say.
    They are estimates where only the frames could say (an MP3 without a Xing header), until the file is read.
    """

    duration: float
    sampling_rate: int
    channels: int
    num_samples: int


# Upper bound of one read over all channels, so that a false header can't exhaust memory
MOST_SAMPLES = 1 << 23


def frames_at_once(wanted: int | None, channels: int) -> int:
    """Returns how many samples per channel to read at once.  wanted: by the caller, if anything."""
    most = max(1, MOST_SAMPLES // channels)
    return most if wanted is None else min(wanted, most)


class OpenAudio(Protocol):
    """An open file. name: for messages."""

    name: str
    info: AudioInfo

    def blocks(self, first: int, frames: int | None, block_frames: int | None) -> Iterator[np.ndarray]:
        """Yields `frames` samples from `first` on (None: all), float32 [T, C'], in blocks of at most block_frames.

        It works once.  Raises AudioError.
        """


def open_regular(path: str | os.PathLike[str], name: str, empty: bool = False) -> io.FileIO:
    """Opens the file without a buffer; never waits for it.

    Raises AudioError for a file that is missing, unreadable or not regular.
    Raises it too for an empty file unless `empty` is true.
    """
    try:
        # a pipe is not even opened: its writer would see a reader
        _check_regular(os.stat(path), name, empty)
        if not os.access(path, os.R_OK):
            raise PermissionError
        # if a pipe has replaced the file meanwhile, opening it does not wait
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
    except AudioError:
        raise
    except PermissionError as error:
        raise AudioError(name, "the file can't be opened (no permission to read it).") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise AudioError(name, f"the file can't be opened ({reason}).") from error
    try:
        _check_regular(os.fstat(descriptor), name, empty)
        return io.FileIO(descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(status: os.stat_result, name: str, empty: bool) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise AudioError(name, "this is a folder that can't be listed, not a regular file.")
    if not stat.S_ISREG(status.st_mode):
        raise AudioError(name, f"this is {_kind(status.st_mode)}, not a regular file.")
    if status.st_size == 0 and not empty:
        raise AudioError(name, "the file is empty (0 bytes).")


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "something special")


class InMemory(io.BytesIO):
    """A file's bytes.

    An impossible seek does nothing: libraries that follow a damaged header try that.
    """

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


def size_of(file: BinaryIO) -> int:
    """Returns the file's length in bytes."""
    with undisturbed(file):
        return file.seek(0, os.SEEK_END)


def copied(file: BinaryIO, stack: ExitStack, most: int | None = None) -> tuple[io.FileIO, str]:
    """Copies to an unbuffered file on the disk, which is deleted with the stack; returns it and its path.

    Raises LargeError after `most` bytes.
    """
    temporary = stack.enter_context(tempfile.NamedTemporaryFile(prefix="encodec_fast-", buffering=0))
    copy = cast("io.FileIO", temporary.file)
    if file.seekable():
        file.seek(0)
    size = 0
    while data := file.read(1 << 20):
        size += len(data)
        if most is not None and size > most:
            raise LargeError
        # an unbuffered file may write less
        view = memoryview(data)
        while view:
            view = view[copy.write(view) :]
    copy.seek(0)
    return copy, temporary.name


class LargeError(Exception):
    """A file has more bytes than are read."""


@contextmanager
def undisturbed(file: BinaryIO) -> Iterator[BinaryIO]:
    """Yields the file and restores its position: a library that reads it in turn would go on from somewhere else."""
    at = file.tell()
    try:
        yield file
    finally:
        file.seek(at)
