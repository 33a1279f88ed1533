"""What is stored beside the codes, as JSON: of a clip, and of what made them all."""

from __future__ import annotations

import io
import math
import tokenize
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from encodec_fast.formats import (
    COLUMN_TYPES,
    FORMAT_VERSION,
    ROW_FIELDS,
    ClipFailure,
    ClipRow,
    DatasetInfo,
    FormatError,
    check_embeddings,
)

# Of a DatasetInfo, in every shard; and what is there only where a folder has it, so that earlier versions read the others.
_INFO = {"model_id": str, "weights_sha256": str, "codebook_size": int, "backend": str, "versions": dict, "options": dict}
_LATER = {"columns": dict, "embedding_dim": int}
# Codes are stored in 32 bits at most.
MOST_ENTRIES = 1 << 32


def info_record(info: DatasetInfo) -> dict[str, Any]:
    """Returns the info with the version of the format."""
    record = {"format_version": FORMAT_VERSION, **asdict(info)}
    return {name: value for name, value in record.items() if value or name not in _LATER}


def info_of(record: dict[str, Any], path: Path) -> DatasetInfo:
    """Returns the info that `info_record` made the record of.  path: for messages.  Raises FormatError for another version."""
    stored = dict(record)
    version = stored.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise FormatError(f"{path}: format version {version}; this encodec_fast reads {FORMAT_VERSION}.")
    try:
        info = DatasetInfo(**stored)
    except TypeError as error:
        raise FormatError(f"{path}: what made its codes can't be read ({error}).") from error
    for name, kind in {**_INFO, **_LATER}.items():
        value = getattr(info, name)
        if type(value) is not kind:
            raise FormatError(f"{path}: what made its codes can't be read ({name} is {value!r}, not {kind.__name__}).")
    if not 1 <= info.codebook_size <= MOST_ENTRIES:
        raise FormatError(f"{path}: what made its codes can't be read (codebook_size is {info.codebook_size}).")
    if info.embedding_dim < 0:
        raise FormatError(f"{path}: what made its codes can't be read (embedding_dim is {info.embedding_dim}).")
    for name, type_name in info.columns.items():
        if type_name not in COLUMN_TYPES or name in ROW_FIELDS:
            raise FormatError(f"{path}: what made its codes can't be read (column {name!r} is of type {type_name!r}).")
    return info


def row_record(row: ClipRow) -> dict[str, Any]:
    """Returns the row without its codes and embeddings, as JSON can hold it."""
    record = {name: value for name, value in vars(row).items() if name not in ("codes", "scales", "columns", "embeddings")}
    scales = None if row.scales is None else row.scales.tolist()
    shape = list(row.codes.shape)
    return {**record, "scales": scales, "frames": row.frames, "duration": row.duration, "codes_shape": shape, **row.columns}


def record_row(record: Mapping[str, Any], codes: np.ndarray, info: DatasetInfo, embeddings: np.ndarray | None = None) -> ClipRow:
    """Returns the row of a record, its codes, and its embeddings where its data set has some.  info: of its shard.

    Raises FormatError, naming the row, for fields that no clip has: a damaged or forged shard must not pass for codes.
    """
    id, path, bandwidth = record.get("id"), record.get("path"), record.get("bandwidth")
    if not isinstance(id, str) or not isinstance(path, str):
        raise FormatError(f"a row has no id or no path: {id!r}, {path!r}.")
    numbers: dict[str, int] = {}
    for name, least in _LEAST.items():
        value = record.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 62:
            raise FormatError(f"{id}: {name} is {value!r}; a whole number is needed, {least} or more.")
        numbers[name] = value
    if isinstance(bandwidth, bool) or not isinstance(bandwidth, int | float) or not 0 < bandwidth < math.inf:
        raise FormatError(f"{id}: bandwidth is {bandwidth!r}; kbps are needed.")
    if codes.ndim != 3 or list(codes.shape) != list(shape_of(record)):
        raise FormatError(f"{id}: its codes have shape {list(codes.shape)} and are said to have {record.get('codes_shape')}.")
    if not np.issubdtype(codes.dtype, np.integer):
        raise FormatError(f"{id}: its codes are {codes.dtype}; whole numbers are needed.")
    if codes.size and codes.min() < 0:
        raise FormatError(f"{id}: a code is {codes.min()}; codes count from 0.")
    if numbers["last_frame_pad_length"] >= max(codes.shape[2], 1):
        raise FormatError(f"{id}: last_frame_pad_length is {numbers['last_frame_pad_length']} of {codes.shape[2]} frames.")
    scales = _scales(id, record.get("scales"), codes)
    columns = {name: _column(id, name, record.get(name), type_name) for name, type_name in info.columns.items()}
    row = ClipRow(
        id=id, path=path, codes=codes, scales=scales, bandwidth=float(bandwidth), columns=columns, embeddings=embeddings, **numbers
    )
    check_embeddings(row, info)
    return row


def _column(id: str, name: str, value: Any, type_name: str) -> bool | int | float | str | None:
    # JSON writes a float that is whole as readers like
    kinds = (int, float) if type_name == "float64" else (COLUMN_TYPES[type_name],)
    if value is not None and type(value) not in kinds:
        raise FormatError(f"{id}: the column {name!r} is {value!r}; a {type_name} is needed.")
    return float(value) if type_name == "float64" and value is not None else value


# The fields that are whole numbers, and the least that each can be.
_LEAST = {"num_samples": 1, "last_frame_pad_length": 0, "sampling_rate": 1, "original_rate": 1}


def _scales(id: str, stored: Any, codes: np.ndarray) -> np.ndarray | None:
    if stored is None:
        return None
    try:
        scales = np.array(stored, np.float32)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{id}: its scales are no numbers ({error}).") from error
    if scales.shape != codes.shape[:1] or not np.isfinite(scales).all():
        raise FormatError(f"{id}: its scales are {scales.tolist()}; one finite number for each of {codes.shape[0]} chunks is needed.")
    return scales


def damaged_row(record: Any, path: Path, index: int, error: Exception) -> ClipFailure:
    """Returns the failure that stands for a row that can't be read.  index: of the row, to name it by if it has no id."""
    fields = record if isinstance(record, Mapping) else {}
    id, source = fields.get("id"), fields.get("path")
    id = id if isinstance(id, str) else f"{path.name}#{index}"
    return ClipFailure(id, source if isinstance(source, str) else str(path), f"the row is damaged: {error}")


def shape_of(record: Mapping[str, Any]) -> tuple[int, int, int]:
    """Returns the shape of a row's codes as it is stored, before anything of that size is made. Raises FormatError if it is none."""
    shape = record.get("codes_shape")
    if isinstance(shape, list) and len(shape) == 3 and all(type(side) is int and 0 <= side < 1 << 31 for side in shape):
        return shape[0], shape[1], shape[2]
    raise FormatError(f"{record.get('id')!r}: codes_shape is {shape!r}; three whole numbers are needed.")


def npy_bytes(array: np.ndarray) -> bytes:
    """Returns the array as a `.npy` file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def load_npy(data: bytes) -> np.ndarray:
    """Returns the array of a `.npy` file. Raises ValueError if it is none, or if it announces another size than it has."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"version {version} of the format, where codes have (1, 0)")
    try:
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    # numpy lets Python's own parser speak of a header that is no literal
    except (SyntaxError, tokenize.TokenError, TypeError, RecursionError, OverflowError) as error:
        raise ValueError(f"its header can't be read ({error})") from error
    size = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or size != len(data) - file.tell():
        raise ValueError(f"{size} bytes of {dtype} announced, {len(data) - file.tell()} there")
    file.seek(0)
    return np.load(file)
