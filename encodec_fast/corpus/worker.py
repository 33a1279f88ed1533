"""A reading process: takes tasks from standard input, gives clips on standard output, ends when its parent does.

A process and not a thread: a file that crashes the decoder costs itself, and Python's lock is not shared with the encoder.
"""

from __future__ import annotations

import math
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from encodec_fast.audio import MAX_CLIP_BYTES, AudioError
from encodec_fast.audio.files import allow_protocols
from encodec_fast.children import take_output
from encodec_fast.corpus.tasks import Task, open_task, read_task, read_task_blocks

# Seconds that a clip, or a block of a long one, may take
CLIP_TIMEOUT = 600.0
# The exit code of a process whose time is up: killed by the kernel, since neither a decoder nor a server that is waited for listens
TOOK_TOO_LONG = -getattr(signal, "SIGALRM", 0) or None


@dataclass(frozen=True)
class Request:
    """A task to read at a rate in Hz and a number of channels. data: the audio file's bytes, where the caller has them.

    block_seconds: give the clip in blocks of this length; None: whole. max_bytes: a file of more is refused.
    timeout: seconds that the clip, or a block of it, may take; what takes longer ends the process by TOOK_TOO_LONG.
    protocols: of URLs that are opened besides the usual ones.
    """

    task: Task
    sampling_rate: int
    channels: int
    block_seconds: float | None = None
    data: bytes | None = None
    max_bytes: int = MAX_CLIP_BYTES
    timeout: float = CLIP_TIMEOUT
    protocols: tuple[str, ...] = ()


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
    allow_protocols(request.protocols)
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
        signal.setitimer(signal.ITIMER_REAL, seconds)


def main() -> None:
    """Serves requests until standard input ends."""
    output = take_output()
    try:
        while True:
            request = pickle.load(sys.stdin.buffer)
            results = read(request)
            while True:
                # not while it waits for its parent to take what it has
                _limit(request.timeout)
                result = next(results, None)
                _limit(0)
                if result is None:
                    break
                send(output, *(result if isinstance(result, tuple) else (result,)))
    except (EOFError, BrokenPipeError):
        # the parent is done, or gone
        os._exit(0)
