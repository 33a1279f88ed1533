"""Codes as Parquet shards: one row per clip, what made them in the file's metadata. No torch here.

`pyarrow.parquet.read_table(folder)`, pandas, polars, DuckDB, Spark and Hugging Face datasets read the shards as they
are: `np.array(row["codes"]).reshape(row["codes_shape"])` is [n_chunks, K, F].
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from encodec_fast.formats import ClipFailure, ClipRow, DatasetInfo, FormatError

METADATA_KEY = b"encodec_fast"
FORMAT_VERSION = 1
ERRORS_FILE = "errors.parquet"
ROW_GROUP_BYTES = 4 << 20


def clip_schema(info: DatasetInfo) -> pa.Schema:
    """Columns of a shard, with the DatasetInfo as JSON under METADATA_KEY."""
    code = pa.uint16() if info.codebook_size <= 1 << 16 else pa.uint32()
    columns = [
        ("id", pa.string()),
        ("path", pa.string()),
        ("codes", pa.list_(code)),
        ("codes_shape", pa.list_(pa.int32(), 3)),
        ("scales", pa.list_(pa.float32())),
        ("num_samples", pa.int64()),
        ("frames", pa.int64()),
        ("last_frame_pad_length", pa.int32()),
        ("sampling_rate", pa.int32()),
        ("original_rate", pa.int32()),
        ("duration", pa.float64()),
        ("bandwidth", pa.float64()),
    ]
    fields = [pa.field(name, type, nullable=name == "scales") for name, type in columns]
    metadata = json.dumps({"format_version": FORMAT_VERSION, **asdict(info)}, sort_keys=True)
    return pa.schema(fields, metadata={METADATA_KEY: metadata.encode()})


ERRORS_SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("id", "path", "reason")])


class ParquetShardWriter:
    """Writes `part-00000.parquet`, ... into a folder, and `errors.parquet` if a clip failed.

    A shard gets its name only when it is whole and on the disk, so a reader never meets half a one. Rows stand in the
    order they were written; a shard ends after rows_per_shard rows or bytes_per_shard bytes of codes.
    Raises FormatError if the folder holds shards already, unless overwrite, which removes them first.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        info: DatasetInfo,
        *,
        rows_per_shard: int = 10_000,
        bytes_per_shard: int = 256 << 20,
        overwrite: bool = False,
    ):
        if rows_per_shard < 1 or bytes_per_shard < 1:
            raise ValueError(f"rows_per_shard and bytes_per_shard are {rows_per_shard}, {bytes_per_shard}; 1 or more.")
        self.folder = Path(folder)
        self._schema = clip_schema(info)
        self._code_dtype = self._schema.field("codes").type.value_type.to_pandas_dtype()
        self._codebook_size = info.codebook_size
        self._rows_per_shard, self._bytes_per_shard = rows_per_shard, bytes_per_shard
        self._buffer: list[ClipRow] = []
        self._buffer_bytes = self._shard_rows = self._shard_bytes = 0
        self._open: _AtomicParquet | None = None
        self._shards: list[Path] = []
        self._failures: list[ClipFailure] = []
        self._closed = False
        self._prepare_folder(overwrite)

    def _prepare_folder(self, overwrite: bool) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        old = shard_paths(self.folder)
        if old and not overwrite:
            raise FormatError(f"{self.folder}: holds {len(old)} shards already; choose another folder or overwrite them.")
        for path in [*old, self.folder / ERRORS_FILE]:
            path.unlink(missing_ok=True)

    def write(self, row: ClipRow) -> None:
        """Adds a row. Raises FormatError if its codes are no codes of this model or not [n_chunks, K, F]."""
        codes = row.codes
        if codes.ndim != 3 or (codes.size and not 0 <= codes.min() <= codes.max() < self._codebook_size):
            raise FormatError(
                f"{row.id}: codes of shape {list(codes.shape)} must be [n_chunks, K, F], each 0 ... {self._codebook_size - 1}."
            )
        self._buffer.append(row)
        size = codes.size * np.dtype(self._code_dtype).itemsize
        self._buffer_bytes += size
        self._shard_bytes += size
        self._shard_rows += 1
        try:
            if self._shard_rows >= self._rows_per_shard or self._shard_bytes >= self._bytes_per_shard:
                self._finish_shard()
            elif self._buffer_bytes >= ROW_GROUP_BYTES:
                self._write_row_group()
        except BaseException:
            # the open shard is gone (a full disk, an interrupt); close() must not go on with it
            self._buffer, self._open, self._shard_rows = [], None, 0
            raise

    def write_failure(self, failure: ClipFailure) -> None:
        """Adds a line to the errors table, which is written by close()."""
        self._failures.append(failure)

    def close(self) -> list[Path]:
        """Finishes the open shard and the errors table; returns the paths of all files written. Idempotent."""
        if not self._closed:
            self._closed = True
            if self._shard_rows:
                self._finish_shard()
            if self._failures:
                self._write_errors()
        return [*self._shards, *([self.folder / ERRORS_FILE] if self._failures else [])]

    def __enter__(self) -> ParquetShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # an interrupted run keeps the clips that were done
        self.close()

    def _write_row_group(self) -> None:
        if self._open is None:
            self._open = _AtomicParquet(self.folder / f"part-{len(self._shards):05d}.parquet", self._schema)
        self._open.write(_table(self._buffer, self._schema, self._code_dtype))
        self._buffer.clear()
        self._buffer_bytes = 0

    def _finish_shard(self) -> None:
        if self._buffer:
            self._write_row_group()
        assert self._open is not None
        self._shards.append(self._open.finish())
        self._open = None
        self._shard_rows = self._shard_bytes = 0

    def _write_errors(self) -> None:
        errors = _AtomicParquet(self.folder / ERRORS_FILE, ERRORS_SCHEMA)
        errors.write(pa.Table.from_pylist([asdict(failure) for failure in self._failures], ERRORS_SCHEMA))
        errors.finish()


class _AtomicParquet:
    """A Parquet file under a temporary name that gets its own when it is whole and on the disk."""

    def __init__(self, path: Path, schema: pa.Schema):
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._file = self._temporary.open("wb")
        self._writer = pq.ParquetWriter(self._file, schema, compression="zstd")

    def write(self, table: pa.Table) -> None:
        try:
            self._writer.write_table(table)
        except BaseException:
            self._discard()
            raise

    def finish(self) -> Path:
        try:
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._temporary, self._path)
        except BaseException:
            self._discard()
            raise
        return self._path

    def _discard(self) -> None:
        # or its finalizer writes a footer to the closed file
        self._writer.is_open = False
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def _table(rows: list[ClipRow], schema: pa.Schema, code_dtype: type) -> pa.Table:
    flat = np.concatenate([row.codes.astype(code_dtype, copy=False).ravel() for row in rows])
    offsets = np.cumsum([0, *(row.codes.size for row in rows)], dtype=np.int32)
    columns = {
        "id": [row.id for row in rows],
        "path": [row.path for row in rows],
        "codes": pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)),
        "codes_shape": [list(row.codes.shape) for row in rows],
        "scales": [None if row.scales is None else row.scales.tolist() for row in rows],
        "num_samples": [row.num_samples for row in rows],
        "frames": [row.frames for row in rows],
        "last_frame_pad_length": [row.last_frame_pad_length for row in rows],
        "sampling_rate": [row.sampling_rate for row in rows],
        "original_rate": [row.original_rate for row in rows],
        "duration": [row.duration for row in rows],
        "bandwidth": [row.bandwidth for row in rows],
    }
    return pa.Table.from_pydict(columns, schema)


def shard_paths(folder: str | os.PathLike[str]) -> list[Path]:
    """The shards of a folder in the order of their rows."""
    return sorted(Path(folder).glob("part-*.parquet"))


def read_info(folder: str | os.PathLike[str]) -> DatasetInfo:
    """What made the codes of a folder.

    Raises FormatError if the folder holds no shards, one isn't ours or can't be read, or they differ in what made them.
    """
    infos = {path: _shard_info(path) for path in shard_paths(folder)}
    if not infos:
        raise FormatError(f"{folder}: no part-*.parquet in this folder; give the --out folder of `encodec-fast tokenize`.")
    (first_path, first), *others = infos.items()
    for path, info in others:
        if (info.model_id, info.weights_sha256) != (first.model_id, first.weights_sha256):
            raise FormatError(f"{path} was made by other weights than {first_path}; keep one run in one folder.")
    return first


def _shard_info(path: Path) -> DatasetInfo:
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise FormatError(f"{path}: the shard can't be read ({error}).") from error
    if METADATA_KEY not in metadata:
        raise FormatError(f"{path}: not written by encodec_fast (no {METADATA_KEY.decode()!r} in its metadata).")
    stored = json.loads(metadata[METADATA_KEY])
    version = stored.pop("format_version")
    if version != FORMAT_VERSION:
        raise FormatError(f"{path}: format version {version}; this encodec_fast reads {FORMAT_VERSION}.")
    return DatasetInfo(**stored)


def iter_rows(folder: str | os.PathLike[str]) -> Iterator[ClipRow]:
    """Every row of a folder in order, codes as numpy arrays. Raises FormatError for a shard that can't be read."""
    for path in shard_paths(folder):
        try:
            with pq.ParquetFile(path) as shard:
                for group in range(shard.num_row_groups):
                    yield from _rows(shard.read_row_group(group))
        except (OSError, pa.ArrowException) as error:
            raise FormatError(f"{path}: the shard can't be read ({error}).") from error


def _rows(table: pa.Table) -> Iterator[ClipRow]:
    table = table.combine_chunks()
    codes = table["codes"].chunk(0)
    flat, offsets = codes.values.to_numpy(), codes.offsets.to_numpy()
    others = table.drop_columns(["codes", "frames", "duration"]).to_pylist()
    for index, row in enumerate(others):
        shape, scales = row.pop("codes_shape"), row.pop("scales")
        yield ClipRow(
            codes=flat[offsets[index] : offsets[index + 1]].reshape(shape),
            scales=None if scales is None else np.array(scales, dtype=np.float32),
            **row,
        )


def read_ids(folder: str | os.PathLike[str]) -> list[str]:
    """The id of every row of a folder, in order."""
    return [id for path in shard_paths(folder) for id in pq.read_table(path, columns=["id"])["id"].to_pylist()]


def read_failures(folder: str | os.PathLike[str]) -> list[ClipFailure]:
    """The clips that have no codes, from the errors table; none if there is no such table."""
    path = Path(folder) / ERRORS_FILE
    return [ClipFailure(**row) for row in pq.read_table(path).to_pylist()] if path.exists() else []
