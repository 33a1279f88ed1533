"""Codes as WebDataset tar shards: per clip `KEY.codes.npy`, [n_chunks, K, F], and `KEY.json` with everything else.

`webdataset.WebDataset(shards).decode()` gives samples with "codes.npy" and "json". What made the codes stands in the
tar's global header, where no loader takes it for a sample.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from encodec_fast.formats import ClipRow, DatasetInfo, FormatError, check_codes
from encodec_fast.formats.atomic import AtomicFile
from encodec_fast.formats.records import info_of, info_record, record_row, row_record

SUFFIX = ".tar"
HEADER = "ENCODEC_FAST.info"


class Shard:
    """A tar shard; see formats.ShardFile."""

    def __init__(self, folder: Path, name: str, info: DatasetInfo, packed: bool = False):
        if packed:
            raise ValueError("packed codes are stored as Parquet only; choose --format parquet.")
        self._name, self._info, self._rows = name, info, 0
        self._atomic = AtomicFile(folder / f"{name}{SUFFIX}")
        header = {HEADER: json.dumps(info_record(info), sort_keys=True)}
        self._tar = tarfile.open(fileobj=self._atomic.file, mode="w", format=tarfile.PAX_FORMAT, pax_headers=header)

    def write(self, row: ClipRow) -> None:
        codes = io.BytesIO()
        np.save(codes, check_codes(row, self._info))
        # webdataset takes all up to a name's first dot for its key: ids have dots
        key = f"{self._name}-{self._rows:06d}"
        self._rows += 1
        self._add(f"{key}.codes.npy", codes.getvalue())
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
    """What made the codes of a shard. Raises FormatError for a file that isn't one."""
    try:
        with tarfile.open(path, "r:") as tar:
            tar.next()
            header = tar.pax_headers.get(HEADER)
    except (OSError, tarfile.TarError) as error:
        raise FormatError(f"{path}: the shard can't be read ({error}).") from error
    if header is None:
        raise FormatError(f"{path}: not written by encodec_fast (no {HEADER!r} in its header).")
    return info_of(json.loads(header), path)


def read_shard(path: Path) -> Iterator[ClipRow]:
    """Every row of a shard in order. Raises FormatError for a file that can't be read."""
    try:
        with tarfile.open(path, "r:") as tar:
            codes = None
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]
                file = tar.extractfile(member)
                assert file is not None
                if member.name.endswith(".npy"):
                    codes = np.load(io.BytesIO(file.read()))
                elif codes is not None:
                    yield record_row(json.load(file), codes)
    except (OSError, ValueError, tarfile.TarError) as error:
        raise FormatError(f"{path}: the shard can't be read ({error}).") from error


def count_rows(path: Path) -> None:
    """None: counting would read all headers. Raises FormatError for a file that does not end as archives end."""
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
    """The id of every row of a shard, in order."""
    return [row.id for row in read_shard(path)]
