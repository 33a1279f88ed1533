"""What is stored beside the codes, as JSON: of a clip, and of what made them all."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from encodec_fast.formats import FORMAT_VERSION, ClipRow, DatasetInfo, FormatError


def info_record(info: DatasetInfo) -> dict[str, Any]:
    """The info with the version of the format."""
    return {"format_version": FORMAT_VERSION, **asdict(info)}


def info_of(record: dict[str, Any], path: Path) -> DatasetInfo:
    """The info that `info_record` made the record of.  path: for messages.  Raises FormatError for another version."""
    stored = dict(record)
    version = stored.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise FormatError(f"{path}: format version {version}; this encodec_fast reads {FORMAT_VERSION}.")
    return DatasetInfo(**stored)


def row_record(row: ClipRow) -> dict[str, Any]:
    """The row without its codes, as JSON can hold it."""
    record = {name: value for name, value in vars(row).items() if name not in ("codes", "scales")}
    scales = None if row.scales is None else row.scales.tolist()
    return {**record, "scales": scales, "frames": row.frames, "duration": row.duration, "codes_shape": list(row.codes.shape)}


def record_row(record: dict[str, Any], codes: np.ndarray) -> ClipRow:
    """The row of a record and its codes."""
    fields = {name: value for name, value in record.items() if name in ClipRow.__dataclass_fields__}
    scales = fields.pop("scales")
    return ClipRow(codes=codes, scales=None if scales is None else np.array(scales, np.float32), **fields)
