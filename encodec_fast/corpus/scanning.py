"""Lengths of clips from their files' headers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from encodec_fast.audio import AudioError
from encodec_fast.audio.reading import OpenAudio
from encodec_fast.corpus.tables import TableReader
from encodec_fast.corpus.tasks import Task, open_task

# For files behind URLs: a header costs a wait, not work
SCAN_THREADS = 8
# Seconds of audio held at once where a length has to be measured
MEASURED_SECONDS = 10


def scan(tasks: Sequence[Task], tables: TableReader, max_bytes: int) -> Iterator[Task]:
    """Yields each task with its length, or with the reason why its file can't be read; in their order.

    A clip whose header has no length, as browsers record WebM, is decoded once: batches and memory are planned by lengths.
    """
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        yield from pool.map(lambda task: _scanned(task, tables, max_bytes), tasks)


def _scanned(task: Task, tables: TableReader, max_bytes: int) -> Task:
    try:
        with open_task(task, None if task.row is None else tables.audio(task), max_bytes) as file:
            if not file.info.num_samples:
                return replace(task, seconds=_measured(task, file))
            left = max(0.0, file.info.duration - task.start)
    except AudioError as error:
        return replace(task, problem=error.reason)
    except (OSError, ValueError, MemoryError) as error:
        return replace(task, problem=f"the file can't be read ({type(error).__name__}: {error}).")
    return replace(task, seconds=left if task.duration is None else min(left, task.duration))


def _measured(task: Task, file: OpenAudio) -> float:
    rate = file.info.sampling_rate
    frames = None if task.duration is None else round(task.duration * rate)
    return sum(len(block) for block in file.blocks(round(task.start * rate), frames, MEASURED_SECONDS * rate)) / rate
