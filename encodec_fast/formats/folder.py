"""Reading a folder of codes, whatever its format."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from encodec_fast.formats import FORMATS, ClipRow, DatasetInfo, FormatError

SHARD_PATTERN = "part-*"


def load_codes(path: str | os.PathLike[str]) -> Iterator[ClipRow]:
    """Every clip's codes, in stored order, of a folder that `encodec-fast tokenize` wrote, or of one of its shards.

    Rows are ClipRow: `row.codes` is a numpy array [n_chunks, K, F]; one shard is held in memory in parts.
    Raises FormatError if there are no codes, or they can't be read.
    """
    shards = [Path(path)] if Path(path).is_file() else shards_of(path)
    return (row for shard in shards for row in read_shard(shard))


def read_shard(path: Path) -> Iterator[ClipRow]:
    """The rows of one shard in order."""
    return _module(path).read_shard(path)


def shard_paths(folder: str | os.PathLike[str]) -> list[Path]:
    """The shards of a folder in the order of their rows."""
    suffixes = {importlib.import_module(name).SUFFIX for name in FORMATS.values()}
    return sorted(path for path in Path(folder).glob(SHARD_PATTERN) if path.suffix in suffixes)


def shards_of(folder: str | os.PathLike[str]) -> list[Path]:
    """As `shard_paths`.  Raises FormatError if there are none."""
    shards = shard_paths(folder)
    if not shards:
        raise FormatError(
            f"{folder}: no part-*.parquet in this folder, nor .tar or .jsonl; give the --out folder of `encodec-fast tokenize`."
        )
    return shards


def read_info(folder: str | os.PathLike[str]) -> DatasetInfo:
    """What made the codes of a folder.

    Raises FormatError if the folder holds no shards, one isn't ours or can't be read, or they differ in what made them.
    """
    infos = {path: _module(path).read_shard_info(path) for path in shards_of(folder)}
    (first_path, first), *others = infos.items()
    for path, info in others:
        if (info.model_id, info.weights_sha256) != (first.model_id, first.weights_sha256):
            raise FormatError(f"{path} was made by other weights than {first_path}; keep one run in one folder.")
    return first


def read_ids(folder: str | os.PathLike[str]) -> list[str]:
    """The id of every row of a folder, in order."""
    return [id for path in shard_paths(folder) for id in _module(path).read_shard_ids(path)]


def _module(path: Path) -> Any:
    for name in FORMATS.values():
        module = importlib.import_module(name)
        if module.SUFFIX == path.suffix:
            return module
    raise FormatError(f"{path}: not a shard; .parquet, .tar and .jsonl are.")
