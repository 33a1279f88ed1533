"""The rows of Parquet and Arrow tables: what they are called, and the audio in them.

A damaged table can end the process that reads it, so only reading processes call this; see `reading_process.Tables`.
"""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from encodec_fast.audio import AudioError
from encodec_fast.audio.files import is_url, open_binary
from encodec_fast.corpus.columns import scalar_columns
from encodec_fast.corpus.tasks import Task, valid_text

# Row groups kept in memory at once; Hugging Face writes 100 clips into one
CACHED_GROUPS = 2
# What names a row, and its length
_OWN_COLUMNS = ("id", "key", "duration")


class TableError(ValueError):
    """A table without audio; the message names it and its columns."""


class DamagedTable(TableError):
    """A file that is no table, or not a whole one."""


def table_tasks(path: str, id: str, audio_column: str, columns: Sequence[str] | None = None) -> Iterator[Task]:
    """Returns a task per row of a Parquet or Arrow file; a row without bytes is that of the file it names.

    Where the table has a column `duration` (seconds), that is trusted, and no audio is read here.
    columns: that go with the clips; None: all that hold scalars.
    Raises TableError for a file without the column.
    """
    try:
        with _open_table(path, audio_column) as table:
            names = [name for name in (*_OWN_COLUMNS, *table.scalars) if name in table.names]
            if columns is not None:
                names = [name for name in names if name in (*_OWN_COLUMNS, *columns)]
            names = [name for name in dict.fromkeys(names) if name != audio_column]
            index = 0
            for group, length in enumerate(table.lengths):
                try:
                    rows = table.read(group, names)
                except (OSError, ValueError) as error:  # pyarrow's own errors are of these, and text that is no UTF-8
                    problem = f"rows {index} to {index + length - 1} of the table can't be read ({error})."
                    yield Task(f"{id}#{index}", path, row=index, group=group, problem=problem)
                    rows = []
                for offset, row in enumerate(rows):
                    yield _row_task(row, path, id, index + offset, group)
                index += length
    except OSError as error:
        yield Task(id, path, problem=f"the table can't be opened ({error.strerror or error}).")


def _row_task(row: dict[str, Any], path: str, id: str, index: int, group: int) -> Task:
    id_name = next((name for name in ("id", "key") if row.get(name) is not None), "id")
    found = row.get(id_name)
    found = f"{id}#{index}" if found is None else found
    duration, problem = row.get("duration"), None
    try:
        clip_id = valid_text(found, "id")
        seconds = float(duration or 0.0)
        if isinstance(duration, bool) or not 0 <= seconds < math.inf:
            raise ValueError(f"duration is {duration!r}; seconds are needed, 0 or more.")
    except (TypeError, ValueError, OverflowError) as error:
        clip_id, seconds, problem = f"{id}#{index}", 0.0, f"row {index} of the table: {error}"
    columns = scalar_columns(row, {id_name, "duration"})
    return Task(clip_id, path, row=index, group=group, seconds=seconds, problem=problem, columns=columns)


class TableReader:
    """Gives the bytes of rows; keeps the last row groups, so that rows read in their order cost one reading."""

    def __init__(self, audio_column: str):
        self._audio_column = audio_column
        self._lock = threading.Lock()
        self._starts: dict[str, np.ndarray] = {}
        self._groups: OrderedDict[tuple[str, int], list[Any]] = OrderedDict()

    def audio(self, task: Task) -> bytes:
        """Returns the audio file in the task's row. Raises AudioError where there is none."""
        assert task.row is not None
        try:
            with self._lock:
                cell = self._cell(task.path, task.row)
        except (OSError, ValueError, IndexError) as error:  # a TableError and pyarrow's own errors are of these
            raise AudioError(task.shown_path, f"the table can't be read ({error}).") from error
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if data is None and isinstance(cell, dict) and isinstance(cell.get("path"), str) and cell["path"]:
            name = cell["path"] if is_url(cell["path"]) else os.path.join(os.path.dirname(task.path), cell["path"])
            try:
                with open_binary(name) as file:
                    data = file.read()
            except (OSError, ValueError) as error:
                raise AudioError(name, f"the file can't be opened ({getattr(error, 'strerror', None) or error}).") from error
        if not isinstance(data, bytes):
            raise AudioError(task.shown_path, f"row {task.row} holds no audio.")
        return data

    def _group(self, path: str, row: int) -> int:
        if path not in self._starts:
            with _open_table(path, self._audio_column) as table:
                self._starts[path] = np.cumsum([0, *table.lengths])
        return int(np.searchsorted(self._starts[path], row, side="right")) - 1

    def _cell(self, path: str, row: int) -> Any:
        group = self._group(path, row)
        if (path, group) not in self._groups:
            with _open_table(path, self._audio_column) as table:
                self._groups[path, group] = [cells[self._audio_column] for cells in table.read(group, [self._audio_column])]
            while len(self._groups) > CACHED_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end((path, group))
        return self._groups[path, group][row - int(self._starts[path][group])]


class _Table:
    """A Parquet file, or an Arrow stream as datasets.save_to_disk writes it, by row groups."""

    def __init__(self, path: str, file: Any):
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._parquet = self._batches = None
        try:
            if path.lower().endswith(".parquet"):
                self._parquet = pq.ParquetFile(file)
                metadata = self._parquet.metadata
                self.lengths = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
                schema = self._parquet.schema_arrow
            else:
                reader = pa.ipc.open_stream(pa.memory_map(path) if not is_url(path) else file)
                self._batches = list(reader)
                self.lengths = [batch.num_rows for batch in self._batches]
                schema = reader.schema
            self.names = schema.names
            self.scalars = [field.name for field in schema if _is_scalar(field.type)]
        except (pa.ArrowException, OSError) as error:
            raise DamagedTable(f"{path}: not a table that can be read ({error}).") from error

    @property
    def groups(self) -> int:
        return len(self.lengths)

    def read(self, group: int, columns: list[str]) -> list[dict[str, Any]]:
        if not columns:
            return [{}] * self.lengths[group]
        if self._parquet is not None:
            return self._parquet.read_row_group(group, columns=columns).to_pylist()
        assert self._batches is not None
        batch = self._batches[group].select(columns)
        # an Arrow file is used as it lies on the disk: offsets that point anywhere would be followed
        batch.validate(full=True)
        return batch.to_pylist()


def _is_scalar(kind: Any) -> bool:
    """Returns whether a column of this pyarrow type holds what corpus.columns takes."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    number = pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    time = pa.types.is_date(kind) or pa.types.is_time(kind) or pa.types.is_timestamp(kind)
    return text or number or time


@contextmanager
def _open_table(path: str, audio_column: str) -> Iterator[_Table]:
    with open_binary(path) as file:
        table = _Table(path, file)
        if audio_column not in table.names:
            raise TableError(f"{path}: no column {audio_column!r} among {', '.join(table.names)}; name it with --audio-column.")
        yield table
