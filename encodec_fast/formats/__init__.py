"""How codes are stored, and read again.

A format is one module that has what `Format` lists, and one line in FORMATS. No torch here, so that a reader of codes needs none.
numpy is imported where it is used, so that the command line can list the formats at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    import numpy as np

    from encodec_fast.formats import ecdc, npy, parquet, webdataset

# Name, as `--format` takes it, and module.
FORMATS = {
    "parquet": "encodec_fast.formats.parquet",
    "webdataset": "encodec_fast.formats.webdataset",
    "npy": "encodec_fast.formats.npy",
    "ecdc": "encodec_fast.formats.ecdc",
}
FORMAT_VERSION = 1
# Types of the columns that come from the sources, by pyarrow's names of them.
COLUMN_TYPES: dict[str, type] = {"string": str, "int64": int, "float64": float, "bool": bool}
# Names that no such column has: what a row holds itself, in one format or another, or as CodesDataset gives it.
ROW_FIELDS = frozenset(
    "id path codes codes_shape scales num_samples frames last_frame_pad_length sampling_rate original_rate duration bandwidth columns "
    "npy npy_crc32 embeddings embeddings_npy embeddings_crc32 audio_codes audio_scales".split()
)


class FormatError(ValueError):
    """Stored codes that can't be written or read; the message names the file and says why."""


@dataclass(frozen=True)
class ClipRow:
    """The codes of one clip and what is needed to turn them back into audio.

    id: unique in its data set. path: of the audio file, for people. codes: [n_chunks, K, F], any integer dtype in
    memory; one chunk unless the model is chunked. scales: float32 [n_chunks], or None for a model that doesn't
    normalize. num_samples: length at sampling_rate (Hz, the model's). original_rate: Hz, the file's. bandwidth: kbps.
    last_frame_pad_length: frames of zeros at the end of the last chunk. columns: of its manifest or table; those of DatasetInfo.
    embeddings: float16 [n_chunks, D, F], what the encoder gave and the codes were found for; None unless the run kept them.
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
    columns: Mapping[str, bool | int | float | str | None] = field(default_factory=dict)
    embeddings: np.ndarray | None = None

    @property
    def frames(self) -> int:
        """Codec frames of the clip: those of all chunks, without the last one's padding."""
        chunks, _, frames = self.codes.shape
        return chunks * frames - self.last_frame_pad_length

    @property
    def duration(self) -> float:
        """Seconds at the model's rate."""
        return self.num_samples / self.sampling_rate

    def frame_codes(self) -> np.ndarray:
        """Returns the codes of all frames, [K, F]: chunks end to end, without the last one's padding."""
        return self._end_to_end(self.codes)

    def frame_embeddings(self) -> np.ndarray | None:
        """Returns the embeddings of all frames, [D, F], as `frame_codes` does the codes; None of a row without."""
        return None if self.embeddings is None else self._end_to_end(self.embeddings)

    def _end_to_end(self, chunks: np.ndarray) -> np.ndarray:
        return chunks.swapaxes(0, 1).reshape(chunks.shape[1], -1)[:, : self.frames]


@dataclass(frozen=True)
class ClipFailure:
    """A clip without codes.

    id, path: as in ClipRow.  reason: one sentence.
    """

    id: str
    path: str
    reason: str


@dataclass(frozen=True)
class DatasetInfo:
    """What made the codes of a data set, stored in every shard.

    model_id: name or folder. weights_sha256: of the state dict (plan.weights.weights_sha256). codebook_size: entries, so
    codes are 0 ... codebook_size - 1. backend: what ran. versions: package to version. options: of the run. columns: that its rows
    have from their sources, with the type of each, of COLUMN_TYPES. embedding_dim: D of its rows' embeddings; 0 where they have none.
    """

    model_id: str
    weights_sha256: str
    codebook_size: int
    backend: str
    versions: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    embedding_dim: int = 0

    @property
    def code_dtype(self) -> type[np.unsignedinteger[Any]]:
        """What codes are stored as."""
        import numpy as np

        return np.uint16 if self.codebook_size <= 1 << 16 else np.uint32


class ShardFile(Protocol):
    """A shard that is being written, under a temporary name (see formats.atomic.AtomicFile)."""

    def write(self, row: ClipRow) -> None:
        """Adds a clip.

        Raises FormatError if its codes, or embeddings, are none of the model (see check_codes, check_embeddings), or have no place.
        """

    def finish(self) -> Path:
        """Puts the shard on the disk under its own name and returns its path.

        Its side files are on the disk before it. After an error nothing of it is left.
        """

    def discard(self) -> None:
        """Removes what was written of it, its side files too."""


class Format(Protocol):
    """A module of FORMATS: all that the package asks of a format.

    A shard is one file of rows. A format may put side files beside it, such as a file of codes per clip, which the shard names.
    What makes the codes stands in the shard, or in a file that all shards of a folder share. A side file is named in the shard before
    it is written. Where its name is taken, by a file of others or of a lost shard, it gets another one.

    SUFFIX: of a shard's name, with its dot; no other format's ends like it.
    SHARED_FILES: names, below the folder, of files that all of its shards share. A format that has some needs side files too: in such
    a folder, a shard is known as ours only by the names of its side files.
    SIDE_FOLDERS: names of the folders, below the folder, that hold the side files.
    """

    SUFFIX: str
    SHARED_FILES: tuple[str, ...]
    SIDE_FOLDERS: tuple[str, ...]

    def Shard(self, folder: Path, name: str, info: DatasetInfo) -> ShardFile:
        """Begins a shard: `finish` gives it the name `name` + SUFFIX, so that a reader never meets half a one.

        Its bytes depend on name, info and rows alone.
        """

    def read_rows(self, path: Path, start: int = 0, stop: int | None = None) -> Iterator[ClipRow | ClipFailure]:
        """Yields the rows start ... stop - 1 of a shard in order, a ClipFailure for a damaged one (see formats.records).

        Rows before are passed over, as far as the format can without reading their codes.
        Raises FormatError where the shard can't be read, or can't be read on.
        """

    def read_shard_ids(self, path: Path) -> list[str]:
        """Returns the id of every row of a shard, in order; `NAME#INDEX` for a damaged row that has none, where NAME is the shard's.

        Where the shard can't be read to its end, NAME comes last, for the rows that are lost; or FormatError is raised.
        """

    def count_rows(self, path: Path) -> int | None:
        """Returns the rows of a shard, quickly; None if that takes reading it all.

        Raises FormatError for a shard that is cut or not whole.
        """

    def read_shard_info(self, path: Path) -> DatasetInfo:
        """Returns what made a shard's codes. Raises FormatError for a file that this package did not write."""

    def side_files(self, path: Path) -> list[str]:
        """Returns the side files of a shard, names below its folder.

        path: of the shard; or of its temporary file, which may end anywhere: a killed process left it, and its side files with it.
        Holds only names that the format gives itself: these files are removed with the shard.
        Raises FormatError if the file can't be read.
        """


if TYPE_CHECKING:
    # each module is checked against the protocol
    _MODULES: tuple[Format, ...] = (parquet, webdataset, npy, ecdc)


def format_module(name: str) -> Format:
    """Imports and returns the module of a format in FORMATS. Raises ValueError for another name."""
    if name not in FORMATS:
        raise ValueError(f"format is {name!r}; allowed are {', '.join(FORMATS)}.")
    return cast(Format, importlib.import_module(FORMATS[name]))


def joined(names: Sequence[str], last: str) -> str:
    """Returns the names for people: `a, b or c`, where `or` is `last`."""
    *others, end = names
    return f"{', '.join(others)} {last} {end}" if others else end


def check_codes(row: ClipRow, info: DatasetInfo) -> np.ndarray:
    """Returns the row's codes in the dtype they are stored as. Raises FormatError if they are none, or not [n_chunks, K, F]."""
    codes = row.codes
    if codes.ndim != 3 or (codes.size and not 0 <= codes.min() <= codes.max() < info.codebook_size):
        raise FormatError(f"{row.id}: codes of shape {list(codes.shape)} must be [n_chunks, K, F], each 0 ... {info.codebook_size - 1}.")
    return codes.astype(info.code_dtype, copy=False)


def check_embeddings(row: ClipRow, info: DatasetInfo) -> np.ndarray | None:
    """Returns the row's embeddings, None where its data set has none.

    Raises FormatError if they are not float16 [n_chunks, D, F], with the codes' chunks and frames, or not finite.
    """
    import numpy as np

    found = None if row.embeddings is None else (row.embeddings.dtype.name, row.embeddings.shape)
    wanted = ("float16", (row.codes.shape[0], info.embedding_dim, row.codes.shape[2])) if info.embedding_dim else None
    if found != wanted:
        raise FormatError(f"{row.id}: its embeddings are {_shown(found)}; {_shown(wanted)} must be there.")
    if row.embeddings is not None and not np.isfinite(row.embeddings).all():
        raise FormatError(f"{row.id}: some of its embeddings are NaN or infinite.")
    return row.embeddings


def _shown(embeddings: tuple[str, tuple[int, ...]] | None) -> str:
    return "none" if embeddings is None else f"{embeddings[0]} {list(embeddings[1])}"
