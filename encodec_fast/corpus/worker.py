"""A reading process: takes tasks from standard input, gives clips on standard output, ends when its parent does.

A process and not a thread: a file that crashes the decoder costs itself, and Python's lock is not shared with the encoder.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from encodec_fast.audio import AudioError
from encodec_fast.children import take_output
from encodec_fast.corpus.tasks import Task, open_task, read_task, read_task_blocks


@dataclass(frozen=True)
class Request:
    """A task to read at a rate in Hz and a number of channels. data: the audio file's bytes, where the caller has them.

    block_seconds: give the clip in blocks of this length; None: whole.
    """

    task: Task
    sampling_rate: int
    channels: int
    block_seconds: float | None = None
    data: bytes | None = None


@dataclass(frozen=True)
class Block:
    """Samples follow, float32 of this shape. original_rate: the file's, Hz. busy: seconds of work. last: of its clip."""

    shape: tuple[int, int]
    original_rate: int
    busy: float
    last: bool


@dataclass(frozen=True)
class Failed:
    """The clip, or what is left of it, can't be read."""

    reason: str


def read(request: Request) -> Iterator[tuple[Block, np.ndarray] | Failed]:
    """The blocks of a clip; a whole clip is one block. A failure ends it."""
    task, start = request.task, time.perf_counter()
    try:
        if request.block_seconds is None:
            clip = read_task(task, request.sampling_rate, request.channels, request.data)
            yield Block(clip.samples.shape, clip.original_rate, time.perf_counter() - start, True), clip.samples
            return
        with open_task(task, request.data) as file:
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


def main() -> None:
    """Serves requests until standard input ends."""
    output = take_output()
    try:
        while True:
            for result in read(pickle.load(sys.stdin.buffer)):
                send(output, *(result if isinstance(result, tuple) else (result,)))
    except (EOFError, BrokenPipeError):
        # the parent is done, or gone
        os._exit(0)
