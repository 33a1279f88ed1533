"""Tasks in batches, longest first; decided once, kept in a file, and read from there by every process that takes part."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from encodec_fast.corpus.tasks import Task
from encodec_fast.formats.atomic import AtomicFile, file_crc32

# pyarrow imports pandas, if there is one, at its first array: in the middle of a run an interrupt would leave half a module
with contextlib.suppress(ImportError):
    import pandas  # noqa: F401

# A batch of very short clips ends here: their bookkeeping costs more than their audio
MAX_BATCH_CLIPS = 512
_COLUMNS = {
    "id": pa.string(),
    "path": pa.binary(),  # file names need not be UTF-8
    "offset": pa.int64(),
    "size": pa.int64(),
    "row": pa.int64(),
    "group": pa.int64(),
    "start": pa.float64(),
    "duration": pa.float64(),
    "channel": pa.int32(),
    "seconds": pa.float64(),
    "problem": pa.string(),
    "columns": pa.string(),  # as JSON; null: none
}
_SCHEMA = pa.schema([*_COLUMNS.items(), ("batch", pa.int64())])
_BUILD_ROWS = 65_536


def order(tasks: Sequence[Task]) -> list[Task]:
    """Returns the tasks, longest first and ids in order where lengths are equal; rows of a table stay with their row group.

    A row group is read whole, so jumping between them would read each many times.
    """

    def place(task: Task) -> tuple[str, int]:
        return ("", 0) if task.row is None or task.problem else (task.path, task.group or 0)

    return sorted(tasks, key=lambda task: (*place(task), -task.seconds, task.id))


def batches(seconds: Sequence[float], batch_seconds: float, most_clips: int = MAX_BATCH_CLIPS) -> np.ndarray:
    """Returns the batch of each clip, int64, counted from 0: consecutive clips of at most batch_seconds together.

    most_clips: in a batch; above MAX_BATCH_CLIPS it changes nothing.
    A longer clip is a batch of its own. Nothing is padded, so a batch costs the sum of its lengths.
    """
    numbers = np.zeros(len(seconds), np.int64)
    batch = clips = 0
    filled = 0.0
    for index, length in enumerate(seconds):
        if clips and (filled + length > batch_seconds or clips >= min(most_clips, MAX_BATCH_CLIPS)):
            batch, filled, clips = batch + 1, 0.0, 0
        numbers[index] = batch
        filled, clips = filled + length, clips + 1
    return numbers


def write_schedule(path: Path, tasks: Sequence[Task], batch_seconds: float, first_batch: int, most_clips: int = MAX_BATCH_CLIPS) -> Path:
    """Writes a schedule of the tasks, whose batches count from first_batch on; returns its path, with its bytes' CRC-32 in the name.

    batch_seconds, most_clips: of a batch.
    """
    ordered = order(tasks)
    numbers = first_batch + batches([task.seconds for task in ordered], batch_seconds, most_clips)
    atomic = AtomicFile(path)
    try:
        with pa.ipc.new_file(atomic.file, _SCHEMA) as writer:
            for at in range(0, len(ordered), _BUILD_ROWS):
                part = ordered[at : at + _BUILD_ROWS]
                columns: dict[str, Any] = {name: [getattr(task, name) for task in part] for name in _COLUMNS}
                columns["path"] = [os.fsencode(task.path) for task in part]
                columns["columns"] = [json.dumps(task.columns) if task.columns else None for task in part]
                columns["batch"] = numbers[at : at + _BUILD_ROWS]
                writer.write_table(pa.Table.from_pydict(columns, _SCHEMA))
        atomic.file.flush()
        atomic.path = path.with_name(f"{path.stem}-{file_crc32(atomic.temporary)}{path.suffix}")
    except BaseException:
        atomic.discard()
        raise
    return atomic.finish()


def is_sound(path: Path) -> bool:
    """Tells whether a schedule has the bytes that its name says; a name by an earlier version says nothing."""
    crc32 = path.stem.split("-")[2:]
    return not crc32 or crc32 == [file_crc32(path)]


class Schedule:
    """A schedule's file, mapped into memory: a process touches only the batches it works on."""

    def __init__(self, path: Path):
        self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        numbers = self._table["batch"].to_numpy()
        self.first_batch = int(numbers[0])
        self.end_batch = int(numbers[-1]) + 1
        self._starts = np.searchsorted(numbers, np.arange(self.first_batch, self.end_batch + 1))
        self._seconds = self._table["seconds"].to_numpy()

    @property
    def num_clips(self) -> int:
        return self._table.num_rows

    @property
    def seconds(self) -> np.ndarray:
        """Length of each clip, float64."""
        return self._seconds

    def clips_of(self, batches: np.ndarray) -> tuple[int, float]:
        """Returns (clips, seconds) of the batches [n] together."""
        totals = np.concatenate([[0.0], np.cumsum(self._seconds)])
        first, end = (self._starts[batches - self.first_batch + more] for more in (0, 1))
        return int((end - first).sum()), float((totals[end] - totals[first]).sum())

    def size(self, batch: int) -> int:
        """Returns the number of clips in the batch."""
        return self._bounds(batch)[1]

    def tasks(self, batch: int | None = None) -> Iterator[Task]:
        """Yields the tasks of a batch; None: of all."""
        rows = self._table if batch is None else self._table.slice(*self._bounds(batch))
        for part in rows.drop_columns(["batch"]).to_batches(_BUILD_ROWS):
            for row in part.to_pylist():
                # earlier versions stored no columns
                columns = row.pop("columns", None)
                yield Task(**{**row, "path": os.fsdecode(row["path"])}, columns=json.loads(columns) if columns else {})

    def _bounds(self, batch: int) -> tuple[int, int]:
        start, end = self._starts[batch - self.first_batch : batch - self.first_batch + 2]
        return int(start), int(end - start)


def schedule_of(schedules: Sequence[Schedule], batch: int) -> Schedule:
    """Returns the one of them that holds the batch."""
    return next(schedule for schedule in schedules if batch < schedule.end_batch)
