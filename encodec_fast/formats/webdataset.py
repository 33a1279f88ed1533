"""Codes as WebDataset tar shards: per clip `KEY.codes.npy`, [n_chunks, K, F], and `KEY.json` with everything else.

A run that keeps embeddings adds `KEY.embeddings.npy`, float16 [n_chunks, D, F].

`webdataset.WebDataset(shards).decode()` gives samples with "codes.npy" and "json". What made the codes stands in the
tar's global header, where no loader takes it for a sample.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encodec_fast.formats import ClipFailure, ClipRow, DatasetInfo, FormatError, check_codes, check_embeddings
from encodec_fast.formats.atomic import AtomicFile
from encodec_fast.formats.records import damaged_row, info_of, info_record, load_npy, npy_bytes, record_row, row_record

SUFFIX = ".tar"
# None: a shard is all there is
SHARED_FILES: tuple[str, ...] = ()
SIDE_FOLDERS: tuple[str, ...] = ()
HEADER = "ENCODEC_FAST.info"


class Shard:
    """Writes a tar shard; see formats.ShardFile."""

    def __init__(self, folder: Path, name: str, info: DatasetInfo):
        self._name, self._info, self._rows = name, info, 0
        self._atomic = AtomicFile(folder / f"{name}{SUFFIX}")
        header = {HEADER: json.dumps(info_record(info), sort_keys=True)}
        self._tar = tarfile.open(fileobj=self._atomic.file, mode="w", format=tarfile.PAX_FORMAT, pax_headers=header)

    def write(self, row: ClipRow) -> None:
        codes, embeddings = check_codes(row, self._info), check_embeddings(row, self._info)
        # webdataset takes all up to a name's first dot for its key: ids have dots
        key = f"{self._name}-{self._rows:06d}"
        self._rows += 1
        self._add(f"{key}.codes.npy", npy_bytes(codes))
        if embeddings is not None:
            self._add(f"{key}.embeddings.npy", npy_bytes(embeddings))
        self._add(f"{key}.json", json.dumps(row_record(row), ensure_ascii=False).encode())

    def finish(self) -> Path:
        try:
            self._tar.close()
        except BaseException:
            self.discard()
            raise
        return self._atomic.finish()

    def discard(self) -> None:
        self._atomic.discard()

    def _add(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))


def read_shard_info(path: Path) -> DatasetInfo:
    """Returns what made the codes of a shard. Raises FormatError for a file that isn't one."""
    try:
        with tarfile.open(path, "r:") as tar:
            tar.next()
            header = tar.pax_headers.get(HEADER)
    except (OSError, tarfile.TarError) as error:
        raise FormatError(f"{path}: the shard can't be read ({error}).") from error
    if header is None:
        raise FormatError(f"{path}: not written by encodec_fast (no {HEADER!r} in its header).")
    try:
        return info_of(json.loads(header), path)
    except ValueError as error:
        raise FormatError(f"{path}: what made its codes can't be read ({error}).") from error


def read_rows(path: Path, start: int = 0, stop: int | None = None) -> Iterator[ClipRow | ClipFailure]:
    """Yields the rows start ... stop - 1 of a shard; a damaged one is a failure. Raises FormatError where the file can't be read on."""
    info = read_shard_info(path)
    try:
        with tarfile.open(path, "r:") as tar:
            index, arrays, end = 0, _Arrays(), 0
            for member in tar:
                if stop is not None and index >= stop:
                    return
                tar.members.clear()  # type: ignore[attr-defined]
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                file = tar.extractfile(member)
                if file is None:
                    raise FormatError(f"{path}: {member.name!r} is no file.")
                if index < start:
                    index += not member.name.endswith(".npy")
                    continue
                if member.name.endswith(".embeddings.npy"):
                    arrays.embeddings = file.read()
                elif member.name.endswith(".npy"):
                    arrays.codes = file.read()
                else:
                    yield _row(file.read(), arrays, info, path, index)
                    index, arrays = index + 1, _Arrays()
            if arrays != _Arrays():
                raise FormatError(f"{path}: the archive ends with codes without a record.")
        count_rows(path)
        with path.open("rb") as file:
            file.seek(end)
            # tarfile takes a damaged header for the end
            if any(any(block) for block in iter(lambda: file.read(1 << 20), b"")):
                raise FormatError(f"{path}: the archive is damaged at byte {end}, and more stands behind.")
    except (OSError, ValueError, tarfile.TarError) as error:
        raise error if isinstance(error, FormatError) else FormatError(f"{path}: the shard can't be read ({error}).") from error


@dataclass
class _Arrays:
    """The `.npy` files of a row, which stand before its record."""

    codes: bytes | None = None
    embeddings: bytes | None = None


def _row(data: bytes, arrays: _Arrays, info: DatasetInfo, path: Path, index: int) -> ClipRow | ClipFailure:
    record: Any = None
    try:
        record = json.loads(data)
        if not isinstance(record, dict) or arrays.codes is None:
            raise ValueError("no JSON object." if arrays.codes is not None else "it has no codes.")
        embeddings = None if arrays.embeddings is None else load_npy(arrays.embeddings)
        return record_row(record, load_npy(arrays.codes), info, embeddings)
    except (ValueError, RecursionError) as error:
        return damaged_row(record, path, index, error)


def count_rows(path: Path) -> None:
    """Returns None: counting would read all headers. Raises FormatError for a file that does not end as archives end."""
    try:
        with path.open("rb") as file:
            # two blocks of zeros at least, which tarfile does not ask for
            file.seek(-2 * tarfile.BLOCKSIZE, io.SEEK_END)
            ended = not any(file.read())
    except OSError as error:
        raise FormatError(f"{path}: the shard can't be read ({error}).") from error
    if not ended:
        raise FormatError(f"{path}: the archive is cut short.")


def read_shard_ids(path: Path) -> list[str]:
    """Returns the id of every row of a shard, in order; then the shard's name, where it can't be read to its end."""
    ids: list[str] = []
    try:
        for row in read_rows(path):
            ids.append(row.id)
    except FormatError:
        ids.append(path.name)
    return ids


def side_files(path: Path) -> list[str]:
    """Returns none: a shard is all there is."""
    return []
