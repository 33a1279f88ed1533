"""Reading a folder of codes, whatever its format."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from encodec_fast.formats import FORMATS, ClipFailure, ClipRow, DatasetInfo, Format, FormatError, format_module, joined
from encodec_fast.formats.atomic import file_crc32

SHARD_PATTERN = "part-*"
_SHARD_STEM = re.compile(r"part-\d{8,}")


def all_formats() -> list[Format]:
    """Returns the modules of FORMATS, in its order."""
    return [format_module(name) for name in FORMATS]


def format_of(name: str) -> Format | None:
    """Returns the format whose suffix a shard's name has, or None."""
    return next((module for module in all_formats() if name.endswith(module.SUFFIX)), None)


def load_codes(path: str | os.PathLike[str]) -> Iterator[ClipRow]:
    """Returns an iterator over every clip's codes, in stored order, of a folder of `tokenize` or one of its shards.

    path: the folder, or the shard.
    Returns rows that are ClipRow: `row.codes` is a numpy array [n_chunks, K, F]. No shard is held in memory as a whole.
    Raises FormatError if there are no codes, or they can't be read.
    """
    shards = [Path(path)] if Path(path).is_file() else shards_of(path)
    return (row for shard in shards for row in read_shard(shard))


def read_shard(path: Path, start: int = 0, stop: int | None = None) -> Iterator[ClipRow]:
    """Yields the rows start ... stop - 1 of one shard, by default all. Raises FormatError at the first that is damaged."""
    for row in read_rows(path, start, stop):
        if isinstance(row, ClipFailure):
            raise FormatError(f"{path}: the shard can't be read ({row.id!r}: {row.reason}).")
        yield row


def read_rows(path: Path, start: int = 0, stop: int | None = None) -> Iterator[ClipRow | ClipFailure]:
    """Yields the rows start ... stop - 1 of one shard, a failure for a damaged one. Raises FormatError where it can't be read on."""
    return _module(path).read_rows(path, start, stop)


def count_rows(path: Path) -> int:
    """Returns the number of rows of one shard; reads all of it where its format has no quicker way. Raises FormatError."""
    count = _module(path).count_rows(path)
    return len(shard_ids(path)) if count is None else count


def is_shard_name(name: object) -> bool:
    """Tells whether a name is one that `tokenize` gives to shards, without any folder."""
    found = format_of(name) if isinstance(name, str) else None
    return isinstance(name, str) and found is not None and _SHARD_STEM.fullmatch(name.removesuffix(found.SUFFIX)) is not None


def shard_problem(path: Path, clips: int, size: int | None) -> str | None:
    """Returns what is wrong with a shard, by its size (bytes, where known) and rows: a sentence without its full stop; or None."""
    if path.is_symlink() or not path.is_file():
        return f"{path} is gone"
    if size is not None and path.stat().st_size != size:
        return f"{path} has {path.stat().st_size} bytes and had {size}"
    try:
        count = _module(path).count_rows(path)
    except FormatError as error:
        return str(error).rstrip(".")
    return None if count in (None, clips) else f"{path} has {count} rows and had {clips}"


def shard_problem_inside(path: Path, clips: int, crc32: str | None) -> str | None:
    """Returns what reading all of a shard finds wrong with it; as `shard_problem`.  crc32: of its bytes, where known."""
    if crc32 is not None and file_crc32(path) != crc32:
        return f"{path} has other bytes than it had"
    try:
        count = sum(1 for _ in read_shard(path))
    except FormatError as error:
        return str(error).rstrip(".")
    return None if count == clips else f"{path} has {count} rows and had {clips}"


def read_info_of(path: Path) -> DatasetInfo:
    """Returns what made one shard. Raises FormatError if nothing says so."""
    return _module(path).read_shard_info(path)


def shard_paths(folder: str | os.PathLike[str]) -> list[Path]:
    """Returns the shards of a folder in the order of their rows."""
    suffixes = tuple(module.SUFFIX for module in all_formats())
    return sorted(path for path in Path(folder).glob(SHARD_PATTERN) if path.name.endswith(suffixes))


def shards_of(folder: str | os.PathLike[str]) -> list[Path]:
    """Returns what `shard_paths` does. Raises FormatError if there are none."""
    shards = shard_paths(folder)
    if not shards:
        first, *others = (module.SUFFIX for module in all_formats())
        nor = f", nor {joined(others, 'or')}" if others else ""
        raise FormatError(f"{folder}: no {SHARD_PATTERN}{first} in this folder{nor}; give the --out folder of `encodec-fast tokenize`.")
    return shards


def read_info(folder: str | os.PathLike[str], skip_damaged: bool = False) -> DatasetInfo:
    """Returns what made the codes of a folder.

    Raises FormatError if there are no shards, or one isn't ours or can't be read. Also if they were made differently.
    skip_damaged: leaves out the shards that aren't ours or can't be read, as long as there is another.
    """
    infos: dict[Path, DatasetInfo] = {}
    problem: FormatError | None = None
    for path in shards_of(folder):
        try:
            infos[path] = read_info_of(path)
        except FormatError as error:
            if not skip_damaged:
                raise
            problem = problem or error
    if problem is not None and not infos:
        raise problem
    (first_path, first), *others = infos.items()
    for path, info in others:
        if (info.model_id, info.weights_sha256) != (first.model_id, first.weights_sha256):
            raise FormatError(f"{path} was made by other weights than {first_path}; keep one run in one folder.")
    return first


def read_ids(folder: str | os.PathLike[str]) -> list[str]:
    """Returns the id of every row of a folder, in order."""
    return [id for path in shard_paths(folder) for id in shard_ids(path)]


def shard_ids(path: Path) -> list[str]:
    """Returns the id of every row of one shard, in order; see Format.read_shard_ids. Raises FormatError."""
    return _module(path).read_shard_ids(path)


def _module(path: Path) -> Format:
    module = format_of(path.name.lower())
    if module is None:
        raise FormatError(f"{path}: not a shard; {joined([each.SUFFIX for each in all_formats()], 'and')} are.")
    return module
