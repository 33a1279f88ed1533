"""A format as CONTRIBUTING describes one, with side files: a list of clips, files of their codes, and one file of what made them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from encodec_fast.formats import ClipFailure, ClipRow, DatasetInfo, FormatError, check_codes
from encodec_fast.formats.atomic import AtomicFile, inside, write_atomically
from encodec_fast.formats.records import damaged_row, info_of, info_record, record_row, row_record, shape_of

SUFFIX = ".list"
SHARED_FILES: tuple[str, ...] = ("made-by.json",)
SIDE_FOLDERS: tuple[str, ...] = ("bytes",)


class Shard:
    def __init__(self, folder: Path, name: str, info: DatasetInfo):
        self._folder, self._name, self._info = folder, name, info
        self._written: list[Path] = []
        if not (folder / "made-by.json").exists():
            write_atomically(folder / "made-by.json", json.dumps(info_record(info)).encode())
        (folder / "bytes").mkdir(exist_ok=True)
        self._atomic = AtomicFile(folder / f"{name}{SUFFIX}")

    def write(self, row: ClipRow) -> None:
        codes = check_codes(row, self._info)
        name = self._free_name()
        self._atomic.file.write(json.dumps({"bytes": name, **row_record(row)}).encode() + b"\n")
        self._atomic.file.flush()
        with (self._folder / name).open("xb") as file:
            self._written.append(self._folder / name)
            file.write(codes.tobytes())

    def _free_name(self) -> str:
        first = name = f"bytes/{self._name}-{len(self._written)}"
        number = 1
        while os.path.lexists(self._folder / name):
            number += 1
            name = f"{first}~{number}"
        return name

    def finish(self) -> Path:
        for path in self._written:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        return self._atomic.finish()

    def discard(self) -> None:
        for path in self._written:
            path.unlink()
        self._atomic.discard()


def read_rows(path: Path, start: int = 0, stop: int | None = None) -> Iterator[ClipRow | ClipFailure]:
    dtype = read_shard_info(path).code_dtype
    for index, record in islice(enumerate(_records(path)), start, stop):
        try:
            codes = np.frombuffer(inside(path.parent, record["bytes"]).read_bytes(), dtype)
            yield record_row(record, codes.reshape(shape_of(record)), read_shard_info(path))
        except (OSError, ValueError, TypeError, KeyError) as error:
            yield damaged_row(record, path, index, error)


def read_shard_ids(path: Path) -> list[str]:
    return [record["id"] for record in _records(path)]


def count_rows(path: Path) -> int:
    if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        raise FormatError(f"{path}: the list is cut short.")
    return len(_records(path))


def read_shard_info(path: Path) -> DatasetInfo:
    try:
        return info_of(json.loads((path.parent / "made-by.json").read_bytes()), path)
    except (OSError, ValueError, TypeError) as error:
        raise FormatError(f"{path}: not written by encodec_fast ({error}).") from error


def side_files(path: Path) -> list[str]:
    names = [record.get("bytes") for record in _records(path)]
    return [name for name in names if isinstance(name, str) and name.startswith("bytes/part-")]


def _records(path: Path) -> list[dict[str, Any]]:
    """The lines that are objects; of a list that was cut the whole ones."""
    records = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records
