"""Output formats: how codes are stored. No torch here, so that a reader of codes needs none.

A new format is one module with a writer of ParquetShardWriter's shape and one line in WRITERS.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

WRITERS = {"parquet": "encodec_fast.formats.parquet:ParquetShardWriter"}


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
    codes are 0 ... codebook_size - 1. backend: as asked for. versions: package to version. options: of the run.
    """

    model_id: str
    weights_sha256: str
    codebook_size: int
    backend: str
    versions: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


class ClipWriter(Protocol):
    """What a format's writer does. As a context manager it closes itself, also on KeyboardInterrupt."""

    def write(self, row: ClipRow) -> None:
        """Adds a clip."""

    def write_failure(self, failure: ClipFailure) -> None:
        """Notes a clip that has no codes."""

    def close(self) -> list[Path]:
        """Finishes what is open; returns the files written, in order."""

    def __enter__(self) -> ClipWriter: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def writer_class(name: str) -> Any:
    """The writer class of a format in WRITERS; its module is imported here. Raises ValueError for another name."""
    if name not in WRITERS:
        raise ValueError(f"format is {name!r}; allowed are {', '.join(WRITERS)}.")
    module, attribute = WRITERS[name].split(":")
    return getattr(importlib.import_module(module), attribute)
