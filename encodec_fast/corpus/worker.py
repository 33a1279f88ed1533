"""A reading process: takes requests from standard input, gives replies on standard output, ends when its parent does.

A process and not a thread: a file that crashes the decoder costs itself, and Python's lock is not shared with the encoder. So whatever
lies in files that libraries parse is looked at here: audio, their headers, tables.
"""

from __future__ import annotations

import functools
import math
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any

import numpy as np

from encodec_fast.audio import MAX_CLIP_BYTES, AudioError
from encodec_fast.audio.files import allow_protocols
from encodec_fast.corpus.scanning import scan
from encodec_fast.corpus.tables import TableError, TableReader, table_tasks
from encodec_fast.corpus.tasks import Task, open_task, read_task, read_task_blocks
from encodec_fast.processes import end_with_parent, take_output

# Seconds that a clip, or a block of a long one, may take
CLIP_TIMEOUT = 600.0
# The exit code of a process whose time is up: killed by the kernel, since neither a decoder nor a server that is waited for listens
TOOK_TOO_LONG = -getattr(signal, "SIGALRM", 0) or None
# Rows of a table in one reply
LISTED_ROWS = 65_536


@dataclass(frozen=True)
class Request:
    """What a reading process is asked for.

    timeout: seconds that each reply may take; what takes longer ends the process by TOOK_TOO_LONG.
    protocols: of URLs that are opened besides the usual ones.
    """

    timeout: float
    protocols: tuple[str, ...]


@dataclass(frozen=True)
class ReadClip(Request):
    """Asks for a clip at a rate in Hz and a number of channels. Blocks with their samples answer it, or Failed.

    data: the audio file's bytes, where the caller has them. block_seconds: give the clip in blocks of this length; None: whole.
    max_bytes: a file of more is refused.
    """

    task: Task
    sampling_rate: int
    channels: int
    block_seconds: float | None = None
    data: bytes | None = None
    max_bytes: int = MAX_CLIP_BYTES


@dataclass(frozen=True)
class ScanTasks(Request):
    """The lengths of clips, answered by each task with it."""

    tasks: list[Task]
    audio_column: str
    max_bytes: int


@dataclass(frozen=True)
class ListTable(Request):
    """The clips of a table, answered by lists of tasks, or by a TableError."""

    path: str
    id: str
    audio_column: str
    columns: tuple[str, ...] | None


@dataclass(frozen=True)
class ReadRow(Request):
    """The bytes in a row of a table, answered by them or by Failed."""

    task: Task
    audio_column: str


@dataclass(frozen=True)
class Block:
    """Samples follow, float32 of this shape. original_rate: the file's, Hz. busy: seconds of work. last: of its clip."""

    shape: tuple[int, int]
    original_rate: int
    busy: float
    last: bool


@dataclass(frozen=True)
class Failed:
    """What was asked for, or what is left of it, can't be read."""

    reason: str


@dataclass(frozen=True)
class Done:
    """The request is answered."""


def replies(request: Request) -> Iterator[Any]:
    """Yields what a request is answered by; samples come in a pair with their Block."""
    allow_protocols(request.protocols)
    if isinstance(request, ReadClip):
        yield from read(request)
    elif isinstance(request, ScanTasks):
        yield from scan(request.tasks, _tables(request.audio_column), request.max_bytes)
    elif isinstance(request, ReadRow):
        try:
            yield _tables(request.audio_column).audio(request.task)
        except AudioError as error:
            yield Failed(error.reason)
    else:
        assert isinstance(request, ListTable)
        try:
            tasks = table_tasks(request.path, request.id, request.audio_column, request.columns)
            while part := list(islice(tasks, LISTED_ROWS)):
                yield part
        except TableError as error:
            yield error


@functools.lru_cache(maxsize=1)
def _tables(audio_column: str) -> TableReader:
    return TableReader(audio_column)


def read(request: ReadClip) -> Iterator[tuple[Block, np.ndarray] | Failed]:
    """Yields the blocks of a clip; a whole clip is one block. A failure ends it."""
    task, start = request.task, time.perf_counter()
    try:
        if request.block_seconds is None:
            clip = read_task(task, request.sampling_rate, request.channels, request.data, request.max_bytes)
            yield Block(clip.samples.shape, clip.original_rate, time.perf_counter() - start, True), clip.samples
            return
        with open_task(task, request.data, request.max_bytes) as file:
            rate, previous = file.info.sampling_rate, None
            for samples in read_task_blocks(task, file, request.sampling_rate, request.channels, request.block_seconds):
                if previous is not None:
                    yield Block(previous.shape, rate, time.perf_counter() - start, False), previous
                    start = time.perf_counter()
                previous = samples
            assert previous is not None
            yield Block(previous.shape, rate, time.perf_counter() - start, True), previous
    except AudioError as error:
        yield Failed(error.reason)
    except (OSError, ValueError, MemoryError) as error:
        yield Failed(f"the file can't be read ({type(error).__name__}: {error}).")


def send(stream: IO[bytes], message: Any, samples: np.ndarray | None = None) -> None:
    """Writes a message, and the samples it announces."""
    pickle.dump(message, stream)
    if samples is not None:
        stream.write(samples.data.cast("B"))
    stream.flush()


def _limit(seconds: float) -> None:
    """Ends the process in so many seconds; 0: not any more. Nowhere but where there is such a clock."""
    if TOOK_TOO_LONG is not None and seconds < math.inf:
        # more is more than the clock takes
        signal.setitimer(signal.ITIMER_REAL, min(seconds, 1e8))


def main() -> None:
    """Serves requests until standard input ends."""
    output = take_output()
    end_with_parent()
    try:
        while True:
            request = pickle.load(sys.stdin.buffer)
            for result in _limited(replies(request), request.timeout):
                send(output, *(result if isinstance(result, tuple) else (result,)))
            send(output, Done())
    except (EOFError, BrokenPipeError):
        # the parent is done, or gone
        os._exit(0)


def _limited(results: Iterator[Any], seconds: float) -> Iterator[Any]:
    """Yields the results, each within its time. Waiting for the parent to take one does not count."""
    while True:
        _limit(seconds)
        try:
            result = next(results)
        except StopIteration:
            return
        except Exception as error:  # of a library that nobody expected it of: no reason to end
            result, results = Failed(f"the file can't be read ({type(error).__name__}: {error})."), iter(())
        finally:
            _limit(0)
        yield result
