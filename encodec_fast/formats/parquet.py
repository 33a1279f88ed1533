"""Codes as Parquet shards: one row per clip, what made them in the file's metadata. No torch here.

`pyarrow.parquet.read_table(folder)`, pandas, polars, DuckDB, Spark and Hugging Face datasets read the shards as they
are: `np.array(row["codes"]).reshape(row["codes_shape"])` is [n_chunks, K, F]. Packed codes are bytes instead, which
`formats.packing.unpack_codes` takes. A run that keeps embeddings has the column `embeddings`: float16, flat, of [n_chunks, D, F].
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from encodec_fast.formats import ClipFailure, ClipRow, DatasetInfo, FormatError, check_codes, check_embeddings
from encodec_fast.formats.atomic import AtomicFile
from encodec_fast.formats.packing import code_bits, unpack_codes
from encodec_fast.formats.records import damaged_row, info_of, info_record, record_row, row_record, shape_of

SUFFIX = ".parquet"
# None: a shard is all there is
SHARED_FILES: tuple[str, ...] = ()
SIDE_FOLDERS: tuple[str, ...] = ()
METADATA_KEY = b"encodec_fast"
ROW_GROUP_BYTES = 4 << 20


def clip_schema(info: DatasetInfo) -> pa.Schema:
    """Returns the columns of a shard, with the DatasetInfo as JSON under METADATA_KEY."""
    columns = [
        ("id", pa.string()),
        ("path", pa.string()),
        ("codes", pa.list_(pa.from_numpy_dtype(info.code_dtype))),
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
    if info.embedding_dim:
        fields.append(pa.field("embeddings", pa.list_(pa.float16()), nullable=False))
    fields += [pa.field(name, pa.type_for_alias(type_name)) for name, type_name in info.columns.items()]
    metadata = json.dumps(info_record(info), sort_keys=True)
    return pa.schema(fields, metadata={METADATA_KEY: metadata.encode()})


def write_file(path: Path, rows: Iterable[ClipRow], info: DatasetInfo) -> Path:
    """Writes rows as one file of any name, which reads as a shard does; returns its path."""
    shard = Shard(path.parent, path.stem, info, path.suffix)
    try:
        for row in rows:
            shard.write(row)
    except BaseException:
        shard.discard()
        raise
    return shard.finish()


class Shard:
    """Writes a Parquet shard; see formats.ShardFile."""

    def __init__(self, folder: Path, name: str, info: DatasetInfo, suffix: str = SUFFIX):
        self._info = info
        self._schema = clip_schema(info)
        self._rows: list[ClipRow] = []
        self._bytes = 0
        self._atomic = AtomicFile(folder / f"{name}{suffix}")
        self._writer = pq.ParquetWriter(self._atomic.file, self._schema, compression="zstd")

    def write(self, row: ClipRow) -> None:
        codes, embeddings = check_codes(row, self._info), check_embeddings(row, self._info)
        self._rows.append(row)
        self._bytes += codes.nbytes + (0 if embeddings is None else embeddings.nbytes)
        if self._bytes >= ROW_GROUP_BYTES:
            self._write_row_group()

    def finish(self) -> Path:
        try:
            if self._rows:
                self._write_row_group()
            self._writer.close()
        except BaseException:
            self.discard()
            raise
        return self._atomic.finish()

    def discard(self) -> None:
        # or its finalizer writes a footer to the closed file
        self._writer.is_open = False
        self._atomic.discard()

    def _write_row_group(self) -> None:
        self._writer.write_table(_table(self._rows, self._schema, self._info))
        self._rows, self._bytes = [], 0


def _table(rows: list[ClipRow], schema: pa.Schema, info: DatasetInfo) -> pa.Table:
    arrays = {"codes": _lists([row.codes.astype(info.code_dtype, copy=False) for row in rows])}
    if info.embedding_dim:
        arrays["embeddings"] = _lists([row.embeddings for row in rows if row.embeddings is not None])
    records = [row_record(row) for row in rows]
    columns = {name: arrays.get(name, [record.get(name) for record in records]) for name in schema.names}
    return pa.Table.from_pydict(columns, schema)


def _lists(arrays: list[np.ndarray]) -> pa.ListArray:
    """Returns a column that holds each array flat."""
    offsets = np.cumsum([0, *(array.size for array in arrays)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate([array.ravel() for array in arrays])))


def read_shard_info(path: Path) -> DatasetInfo:
    """Returns what made the codes of a shard. Raises FormatError for a file that isn't one."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise FormatError(f"{path}: the shard can't be read ({error}).") from error
    if METADATA_KEY not in metadata:
        raise FormatError(f"{path}: not written by encodec_fast (no {METADATA_KEY.decode()!r} in its metadata).")
    try:
        return info_of(json.loads(metadata[METADATA_KEY]), path)
    except ValueError as error:
        raise FormatError(f"{path}: what made its codes can't be read ({error}).") from error


def read_rows(path: Path, start: int = 0, stop: int | None = None) -> Iterator[ClipRow | ClipFailure]:
    """Yields the rows start ... stop - 1 of a shard in order, codes as numpy arrays; a damaged row is a failure.

    Reads the row groups that hold them. Raises FormatError for a file that can't be read, or where it can't be read on.
    """
    info = read_shard_info(path)
    try:
        with pq.ParquetFile(path) as shard:
            if "codes" not in shard.schema_arrow.names:
                raise FormatError(f"{path}: the shard has no column 'codes'.")
            first = 0
            for group in range(shard.num_row_groups):
                count = shard.metadata.row_group(group).num_rows
                wanted = range(first, first + count)[max(0, start - first) : None if stop is None else max(0, stop - first)]
                if wanted:
                    try:
                        table = shard.read_row_group(group).slice(wanted.start - first, len(wanted))
                    except (OSError, pa.ArrowException) as error:
                        yield from islice(_lost_rows(shard, group, first, path, error), wanted.start - first, wanted.stop - first)
                    else:
                        yield from _rows(table, wanted.start, info, path)
                first += count
    except (OSError, KeyError, pa.ArrowException) as error:
        raise FormatError(f"{path}: the shard can't be read ({error}).") from error


def _rows(table: pa.Table, first: int, info: DatasetInfo, path: Path) -> Iterator[ClipRow | ClipFailure]:
    """Yields the rows of a table.  first: its first row's index in the shard."""
    if not table.num_rows:
        return
    table = table.combine_chunks()
    codes = table["codes"].chunk(0)
    # by earlier versions
    packed = codes.type == pa.binary()
    if not packed and not (pa.types.is_list(codes.type) and pa.types.is_integer(codes.type.value_type)):
        raise FormatError(f"{path}: the column 'codes' is of {codes.type}; lists of whole numbers, or bytes, are needed.")
    if not packed:
        # a null among the numbers becomes a float there, and then an error of its row
        flat, offsets = codes.values.to_numpy(zero_copy_only=False), codes.offsets.to_numpy()
    embeddings = _embeddings(table, info, path)
    bulk = [name for name in ("codes", "embeddings") if name in table.column_names]
    for index, record in enumerate(table.drop_columns(bulk).to_pylist()):
        try:
            shape = shape_of(record)
            if not codes[index].is_valid:
                raise FormatError(f"{record.get('id')!r} has no codes.")
            if packed:
                own = unpack_codes(codes[index].as_py(), code_bits(info.codebook_size), shape, info.code_dtype)
            else:
                own = _shaped(flat[offsets[index] : offsets[index + 1]], shape)
            yield record_row(record, own, info, None if embeddings is None else _row_embeddings(embeddings, index, shape, info))
        except (FormatError, ValueError) as error:
            yield damaged_row(record, path, first + index, error)


def _embeddings(table: pa.Table, info: DatasetInfo, path: Path) -> pa.ListArray | None:
    """Returns the column of embeddings, None where the data set has none. Raises FormatError where it is none of them."""
    if not info.embedding_dim:
        return None
    if "embeddings" not in table.column_names or table["embeddings"].type != pa.list_(pa.float16()):
        raise FormatError(f"{path}: the shard has no column 'embeddings' of lists of float16, which its metadata announce.")
    return table["embeddings"].chunk(0)


def _row_embeddings(embeddings: pa.ListArray, index: int, shape: tuple[int, int, int], info: DatasetInfo) -> np.ndarray:
    if not embeddings[index].is_valid:
        raise ValueError("it has no embeddings.")
    first, end = embeddings.offsets[index].as_py(), embeddings.offsets[index + 1].as_py()
    # a null among the numbers becomes NaN there, and then an error of its row
    return _shaped(embeddings.values[first:end].to_numpy(zero_copy_only=False), (shape[0], info.embedding_dim, shape[2]), "embeddings")


def _lost_rows(shard: pq.ParquetFile, group: int, first: int, path: Path, error: Exception) -> Iterator[ClipFailure]:
    """Yields a failure for each row of a group that can't be read, by its id if that can."""
    count = shard.metadata.row_group(group).num_rows
    try:
        ids = shard.read_row_group(group, columns=["id"])["id"].to_pylist()
    except (OSError, KeyError, pa.ArrowException):
        ids = [None] * count
    for index, id in enumerate(ids, first):
        yield damaged_row({"id": id}, path, index, error)


def _shaped(flat: np.ndarray, shape: tuple[int, int, int], named: str = "codes") -> np.ndarray:
    if flat.size != math.prod(shape):
        raise ValueError(f"it has {flat.size} {named}, and {list(shape)} are announced.")
    return flat.reshape(shape)


def count_rows(path: Path) -> int:
    """Returns the number of rows of a shard, by its footer. Raises FormatError for a file that has none."""
    try:
        return pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowException) as error:
        raise FormatError(f"{path}: the shard can't be read ({error}).") from error


def read_shard_ids(path: Path) -> list[str]:
    """Returns the id of every row of a shard, in order."""
    try:
        ids = pq.read_table(path, columns=["id"], partitioning=None)["id"].to_pylist()
    except (OSError, KeyError, pa.ArrowException) as error:
        raise FormatError(f"{path}: the shard can't be read ({error}).") from error
    return [id if isinstance(id, str) else f"{path.name}#{index}" for index, id in enumerate(ids)]


def side_files(path: Path) -> list[str]:
    """Returns none: a shard is all there is."""
    return []
