"""Codes as a tree of `.npy` files under codes/, one [n_chunks, K, F] per clip, with manifests of JSON lines beside it.

`part-*.jsonl` holds a line per clip: its id, where its `npy` lies, and everything else about it. A manifest appears when all of its
files are on the disk. `info.json` says what made the codes. A run that keeps embeddings has a tree of the same names for them, under
embeddings/: float16, one [n_chunks, D, F] per clip.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from encodec_fast.formats import ClipFailure, ClipRow, DatasetInfo, FormatError, check_codes, check_embeddings
from encodec_fast.formats.atomic import AtomicFile, inside, write_atomically
from encodec_fast.formats.records import damaged_row, info_of, info_record, load_npy, npy_bytes, record_row, row_record

SUFFIX = ".jsonl"
INFO_FILE = "info.json"
CODES_FOLDER, EMBEDDINGS_FOLDER = "codes", "embeddings"
SHARED_FILES: tuple[str, ...] = (INFO_FILE,)
SIDE_FOLDERS: tuple[str, ...] = (CODES_FOLDER, EMBEDDINGS_FOLDER)
# Of a row's record, by the folder: the names of its side file, and of that file's CRC-32
_FIELDS = {CODES_FOLDER: ("npy", "npy_crc32"), EMBEDDINGS_FOLDER: ("embeddings_npy", "embeddings_crc32")}
# An id whose folders are longer than that together loses them: systems allow 4096 for a path, with all that stands before
MAX_PATH_BYTES = 1024


class Shard:
    """Writes a manifest and its files; see formats.ShardFile."""

    def __init__(self, folder: Path, name: str, info: DatasetInfo):
        self._folder, self._info = folder, info
        self._written: list[Path] = []
        if not (folder / INFO_FILE).exists():
            # writers that begin together all write it, each under a temporary name of its own
            write_atomically(folder / INFO_FILE, json.dumps(info_record(info), sort_keys=True, indent=1).encode())
        self._atomic = AtomicFile(folder / f"{name}{SUFFIX}")

    def write(self, row: ClipRow) -> None:
        files = {CODES_FOLDER: npy_bytes(check_codes(row, self._info))}
        embeddings = check_embeddings(row, self._info)
        if embeddings is not None:
            files[EMBEDDINGS_FOLDER] = npy_bytes(embeddings)
        names = {folder: self._free_name(row.id, folder) for folder in files}
        record: dict[str, Any] = {}
        for folder, (name, crc32) in _FIELDS.items():
            if folder in files:
                record |= {name: names[folder], crc32: f"{zlib.crc32(files[folder]):08x}"}
        record |= row_record(row)
        # before its file is there: what a killed process leaves is named by the temporary manifest, and by that alone known as ours
        self._atomic.file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._atomic.file.flush()
        for folder, data in files.items():
            path = self._folder / names[folder]
            with path.open("xb") as file:
                self._written.append(path)
                file.write(data)

    def _free_name(self, id: str, folder: str) -> str:
        """Returns a free name for the clip's file below a side folder.

        A file or link that has the name already is somebody's and is left alone.
        """
        first, number = npy_path(id, folder), 1
        try:
            path = inside(self._folder, str(first))
        except ValueError as error:
            raise FormatError(f"{id}: its codes can't be stored: {error}") from error
        path.parent.mkdir(parents=True, exist_ok=True)
        while os.path.lexists(path):
            number += 1
            path = path.with_name(f"{first.stem}~{number}.npy")
        return str(first.with_name(path.name))

    def finish(self) -> Path:
        # the manifest vouches for its files, so they go to the disk before it
        try:
            for path in self._written:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        except BaseException:
            self.discard()
            raise
        return self._atomic.finish()

    def discard(self) -> None:
        for path in self._written:
            path.unlink(missing_ok=True)
        self._atomic.discard()


def npy_path(id: str, folder: str = CODES_FOLDER) -> PurePosixPath:
    """Returns where the clip's file of a side folder lies below the data set's folder: its id, safe on every file system, no two alike."""
    parts = [part for part in re.split(r"[/\\]", id) if part not in ("", ".", "..")] or ["clip"]
    safe = [re.sub(r'[<>:"|?*\x00-\x1f\x7f]', "_", part).rstrip(". ").encode()[:180].decode(errors="ignore") or "_" for part in parts]
    # a name that had to be changed, or differs from others by case alone, is told apart by its hash
    mark = "" if "/".join(safe) == id and id == id.casefold() else "-" + hashlib.sha256(id.encode()).hexdigest()[:12]
    if sum(len(part.encode()) + 1 for part in safe) > MAX_PATH_BYTES:
        safe, mark = safe[-1:], "-" + hashlib.sha256(id.encode()).hexdigest()[:12]
    return PurePosixPath(folder, *safe[:-1], f"{safe[-1]}{mark}.npy")


def own_names(record: Mapping[str, Any]) -> list[str]:
    """Returns the side files that a row's record names as `npy_path` does."""
    names = [(folder, record.get(field)) for folder, (field, _) in _FIELDS.items()]
    return [name for folder, name in names if isinstance(name, str) and _is_own_name(record.get("id"), name, folder)]


def _is_own_name(id: Any, name: str, folder: str) -> bool:
    if not isinstance(id, str):
        return False
    first = npy_path(id, folder)
    return name == str(first) or re.fullmatch(re.escape(str(first.with_suffix(""))) + r"~\d+\.npy", name) is not None


def read_shard_info(path: Path) -> DatasetInfo:
    """Returns what made the codes of a manifest. Raises FormatError if nothing says so."""
    try:
        stored: dict[str, Any] = dict(json.loads((path.parent / INFO_FILE).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise FormatError(f"{path}: not written by encodec_fast ({INFO_FILE} beside it can't be read: {error}).") from error
    return info_of(stored, path)


def read_rows(path: Path, start: int = 0, stop: int | None = None) -> Iterator[ClipRow | ClipFailure]:
    """Yields the rows start ... stop - 1 of a manifest; a failure where it, or its file, is damaged. Raises FormatError for no manifest."""
    info = read_shard_info(path)
    for index, line in islice(enumerate(_lines(path)), start, stop):
        record: Any = None
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("no JSON object.")
            codes = _array(path.parent, record, CODES_FOLDER)
            embeddings = _array(path.parent, record, EMBEDDINGS_FOLDER) if info.embedding_dim else None
            yield record_row(record, codes, info, embeddings)
        except (OSError, ValueError, RecursionError) as error:
            yield damaged_row(record, path, index, error)


def _lines(path: Path) -> list[bytes]:
    """Returns the lines of a manifest, also a last one that was cut before its line end."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise FormatError(f"{path}: the shard can't be read ({error}).") from error
    return lines if lines[-1] else lines[:-1]


def _array(folder: Path, record: Mapping[str, Any], side: str) -> np.ndarray:
    """Returns a row's file in a side folder. Raises ValueError if it is not as it was written; earlier versions noted no checksum."""
    name, crc32 = (record.get(field) for field in _FIELDS[side])
    path = inside(folder, name)
    data = path.read_bytes()
    if crc32 is not None and f"{zlib.crc32(data):08x}" != crc32:
        raise ValueError(f"{path.name} has other bytes than it had")
    return load_npy(data)


def count_rows(path: Path) -> int:
    """Returns the number of rows of a manifest; does not look at their files. Raises FormatError if it can't be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FormatError(f"{path}: the manifest can't be read ({error}).") from error
    if data and not data.endswith(b"\n"):
        raise FormatError(f"{path}: the manifest is cut short.")
    return data.count(b"\n")


def read_shard_ids(path: Path) -> list[str]:
    """Returns the id of every row of a manifest, in order."""
    ids = []
    for index, line in enumerate(_lines(path)):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        id = record.get("id") if isinstance(record, dict) else None
        ids.append(id if isinstance(id, str) else f"{path.name}#{index}")
    return ids


def side_files(path: Path) -> list[str]:
    """Returns the files that a manifest, whole or not, names as `npy_path` does; what a damaged line says counts for nothing."""
    names = []
    for line in _lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            names += own_names(record)
    return names
