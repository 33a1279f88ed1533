"""How codes are stored, and read again. No torch here, so that a reader of codes needs none.

A format is one module with a class `Shard` (see ShardFile), `SUFFIX`, `read_rows`, `count_rows`, `read_shard_ids` and
`read_shard_info`, and one line in FORMATS.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

FORMATS = {
    "parquet": "encodec_fast.formats.parquet",
    "webdataset": "encodec_fast.formats.webdataset",
    "npy": "encodec_fast.formats.npy",
}
FORMAT_VERSION = 1


class FormatError(ValueError):
    """Stored codes that can't be written or read; the message names the file and says why."""


@dataclass(frozen=True)
class ClipRow:
    """The codes of one clip and what is needed to turn them back into audio.

    id: unique in its data set. path: of the audio file, for people. codes: [n_chunks, K, F], any integer dtype in
    memory; one chunk unless the model is chunked. scales: float32 [n_chunks], or None for a model that doesn't
    normalize. num_samples: length at sampling_rate (Hz, the model's). original_rate: Hz, the file's. bandwidth: kbps.
    last_frame_pad_length: frames of zeros at the end of the last chunk.
    """

    id: str
    path: str
    codes: np.ndarray
    scales: np.ndarray | None
    num_samples: int
    last_frame_pad_length: int
    sampling_rate: int
    original_rate: int
    bandwidth: float

    @property
    def frames(self) -> int:
        """Codec frames of the clip: those of all chunks, without the last one's padding."""
        chunks, _, frames = self.codes.shape
        return chunks * frames - self.last_frame_pad_length

    @property
    def duration(self) -> float:
        """Seconds at the model's rate."""
        return self.num_samples / self.sampling_rate


@dataclass(frozen=True)
class ClipFailure:
    """A clip without codes, and the reason in one sentence."""

    id: str
    path: str
    reason: str


@dataclass(frozen=True)
class DatasetInfo:
    """What made the codes of a data set, stored in every shard.

    model_id: name or folder. weights_sha256: of the state dict (pretrained.weights_sha256). codebook_size: entries, so
    codes are 0 ... codebook_size - 1. backend: what ran. versions: package to version. options: of the run.
    """

    model_id: str
    weights_sha256: str
    codebook_size: int
    backend: str
    versions: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def code_dtype(self) -> type[np.unsignedinteger[Any]]:
        """What codes are stored as."""
        return np.uint16 if self.codebook_size <= 1 << 16 else np.uint32


class ShardFile(Protocol):
    """A shard that is being written under a temporary name: Shard(folder, name, info, packed=False).

    It gets its own name, name + SUFFIX, when it is whole and on the disk, so that a reader never meets half a one. Its
    bytes depend on name, info and rows alone.
    """

    def write(self, row: ClipRow) -> None:
        """Adds a clip. Raises FormatError if its codes are no codes of the model."""

    def finish(self) -> Path:
        """Makes it a shard; returns its path."""

    def discard(self) -> None:
        """Removes it."""


def format_module(name: str) -> Any:
    """The module of a format in FORMATS, imported here. Raises ValueError for another name."""
    if name not in FORMATS:
        raise ValueError(f"format is {name!r}; allowed are {', '.join(FORMATS)}.")
    return importlib.import_module(FORMATS[name])


def check_codes(row: ClipRow, info: DatasetInfo) -> np.ndarray:
    """The row's codes in the dtype they are stored as. Raises FormatError if they are none, or not [n_chunks, K, F]."""
    codes = row.codes
    if codes.ndim != 3 or (codes.size and not 0 <= codes.min() <= codes.max() < info.codebook_size):
        raise FormatError(f"{row.id}: codes of shape {list(codes.shape)} must be [n_chunks, K, F], each 0 ... {info.codebook_size - 1}.")
    return codes.astype(info.code_dtype, copy=False)
