"""A format as CONTRIBUTING describes one, without side files: a line of JSON says what made the codes, then a line for each clip."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from encodec_fast.formats import ClipFailure, ClipRow, DatasetInfo, FormatError, check_codes
from encodec_fast.formats.atomic import AtomicFile
from encodec_fast.formats.records import damaged_row, info_of, info_record, record_row, row_record

# Of two parts, and it ends like nothing else
SUFFIX = ".codes.txt"
SHARED_FILES: tuple[str, ...] = ()
SIDE_FOLDERS: tuple[str, ...] = ()
END = b"end\n"


class Shard:
    def __init__(self, folder: Path, name: str, info: DatasetInfo):
        self._info = info
        self._atomic = AtomicFile(folder / f"{name}{SUFFIX}")
        self._add(info_record(info))

    def write(self, row: ClipRow) -> None:
        self._add({**row_record(row), "codes": check_codes(row, self._info).tolist()})

    def finish(self) -> Path:
        self._atomic.file.write(END)
        return self._atomic.finish()

    def discard(self) -> None:
        self._atomic.discard()

    def _add(self, record: dict[str, Any]) -> None:
        self._atomic.file.write(json.dumps(record).encode() + b"\n")


def read_rows(path: Path, start: int = 0, stop: int | None = None) -> Iterator[ClipRow | ClipFailure]:
    dtype = read_shard_info(path).code_dtype
    for index, line in islice(enumerate(_lines(path)[1:]), start, stop):
        record: Any = None
        try:
            record = json.loads(line)
            yield record_row(record, np.array(record["codes"], dtype), read_shard_info(path))
        except (ValueError, TypeError, KeyError) as error:
            yield damaged_row(record, path, index, error)


def read_shard_ids(path: Path) -> list[str]:
    return [row.id for row in read_rows(path)]


def count_rows(path: Path) -> int:
    return len(_lines(path)) - 1


def read_shard_info(path: Path) -> DatasetInfo:
    try:
        return info_of(json.loads(_lines(path)[0]), path)
    except (ValueError, TypeError) as error:
        raise FormatError(f"{path}: the shard can't be read ({error}).") from error


def side_files(path: Path) -> list[str]:
    return []


def _lines(path: Path) -> list[bytes]:
    """The lines of a whole shard but its last."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FormatError(f"{path}: the shard can't be read ({error}).") from error
    if not data.endswith(b"\n" + END):
        raise FormatError(f"{path}: the shard is cut short.")
    return data.splitlines()[:-1]
