"""One memory-mapped file of tokens for trainers that read such: `NAME.bin`, beside it its index and what the tokens are.

    NAME.bin        all tokens of all clips, end to end; uint16, or uint32 where the vocabulary is larger
    NAME.idx.npy    int64 [clips + 1]: where each clip begins in it, and the end
    NAME.json       dtype, vocabulary, pattern, levels, separator, and what made the codes
    NAME.jsonl      a line per clip: its id and its columns

`numpy.memmap("train.bin", dtype="uint16", mode="r")` is all that a trainer in the manner of nanoGPT needs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encodec_fast.formats import FormatError
from encodec_fast.formats.atomic import AtomicFile, write_atomically
from encodec_fast.formats.folder import read_info, read_shard, shards_of
from encodec_fast.formats.records import npy_bytes
from encodec_fast.patterns import Kind, TokenPattern

FORMAT = "encodec_fast tokens 1"


@dataclass(frozen=True)
class TokenFile:
    """A file of tokens, opened by `open_tokens`.

    tokens: the whole file, memory-mapped, uint16 or uint32 [tokens].  starts: of clips among them, int64 [clips + 1].
    ids: of the clips.  columns: of each clip.
    pattern: how codes became tokens.  separator: the token behind each clip, or None.
    """

    tokens: np.ndarray
    starts: np.ndarray
    ids: list[str]
    columns: list[dict[str, Any]]
    pattern: TokenPattern
    separator: int | None

    @property
    def vocabulary_size(self) -> int:
        """Size of an embedding table: all tokens that can occur."""
        return self.pattern.num_codes + (self.separator is not None)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, clip: int) -> np.ndarray:
        """Returns a clip's tokens, [steps], without the separator, mapped and not read.

        clip: its number in stored order; negative ones count from the end.
        Raises IndexError for a clip that is not there.
        """
        if not -len(self) <= clip < len(self):
            raise IndexError(f"clip {clip} of {len(self)}")
        clip %= len(self)
        return self.tokens[self.starts[clip] : self.starts[clip + 1] - (self.separator is not None)]

    def codes(self, clip: int) -> Tensor:
        """Returns a clip's codes, int64 [K, F], as they were stored.  Raises IndexError for a clip that is not there."""
        return self.pattern.decode(torch.from_numpy(self[clip].astype(np.int64)))


def export_tokens(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    pattern: Kind = "flatten",
    levels: int | None = None,
    offsets: bool | None = None,
    separator: bool = True,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> TokenFile:
    """Writes the codes of a folder as one file of tokens, in stored order, and opens it.

    out: ends in `.bin`; the other files get its name. They appear when they are whole, the `.bin` last.
    pattern: "flatten" or "coarse_first": of those whose tokens are one stream.  levels: only the first so many; None: all that the first
    clip has.  offsets: as in TokenPattern.  separator: a token behind each clip, one above those of codes.
    overwrite: replaces files of an earlier export.  progress: called with the shards read, and all of them.
    Raises ValueError for a wrong argument and for a clip of fewer levels, FormatError for codes that can't be read.
    """
    shards, info, target = shards_of(folder), read_info(folder), Path(out)
    if target.suffix != ".bin":
        raise ValueError(f"out is {os.fspath(out)!r}; its name must end in .bin.")
    if levels is None:
        first = next(read_shard(shards[0]), None)
        levels = 1 if first is None else first.codes.shape[1]
    tokens = TokenPattern(pattern, levels, info.codebook_size, offsets)
    if not tokens.is_one_stream:
        raise ValueError(f"pattern is {pattern!r}, which makes a stream per level; flatten or coarse_first make one.")
    if taken := [path for path in _paths(target) if os.path.lexists(path)]:
        if not overwrite:
            raise ValueError(f"{taken[0]} exists already; choose another name, or overwrite it.")
        if not target.with_suffix(".json").is_file() or _described(target).get("format") != FORMAT:
            raise ValueError(
                f"{taken[0]} is not replaced: nothing beside it says that it was exported here; move it, or choose another name."
            )
    end = tokens.num_codes if separator else None
    dtype = np.uint16 if tokens.num_codes + separator <= 1 << 16 else np.uint32
    target.parent.mkdir(parents=True, exist_ok=True)
    lines, starts = AtomicFile(target.with_suffix(".jsonl")), [0]
    stream = AtomicFile(target)
    try:
        for number, shard in enumerate(shards, 1):
            for row in read_shard(shard):
                if row.codes.shape[1] < levels:
                    raise ValueError(f"levels is {levels}; {row.id} has {row.codes.shape[1]}.")
                own = tokens.encode(torch.from_numpy(row.frame_codes()[:levels].astype(np.int64))).numpy()
                own = own if end is None else np.append(own, end)
                stream.file.write(own.astype(dtype).tobytes())
                starts.append(starts[-1] + len(own))
                lines.file.write(json.dumps({"id": row.id, **row.columns}, ensure_ascii=False).encode() + b"\n")
            if progress is not None:
                progress(number, len(shards))
        described = {
            "format": FORMAT,
            "dtype": np.dtype(dtype).name,
            "clips": len(starts) - 1,
            "tokens": starts[-1],
            "vocabulary_size": tokens.num_codes + separator,
            "separator": end,
            **asdict(tokens),
            "offsets": tokens.has_offsets,
            "model_id": info.model_id,
            "weights_sha256": info.weights_sha256,
        }
        write_atomically(target.with_suffix(".idx.npy"), npy_bytes(np.array(starts, np.int64)))
        write_atomically(target.with_suffix(".json"), json.dumps(described, indent=1, ensure_ascii=False).encode())
        lines.finish()
    except BaseException:
        lines.discard()
        stream.discard()
        raise
    stream.finish()
    return open_tokens(target)


def open_tokens(path: str | os.PathLike[str]) -> TokenFile:
    """Opens a file that `export_tokens` wrote. Raises FormatError where it, or what belongs to it, is missing or of another length."""
    target = Path(path)
    described = _described(target)
    try:
        starts = np.load(target.with_suffix(".idx.npy"))
        records = [json.loads(line) for line in target.with_suffix(".jsonl").read_bytes().splitlines()]
        pattern = TokenPattern(described["kind"], described["levels"], described["codebook_size"], described["offsets"])
        dtype = np.dtype(described["dtype"])
        size, count = target.stat().st_size, int(described["tokens"])
        # an empty file can't be mapped
        tokens = np.memmap(target, dtype, mode="r") if size else np.zeros(0, dtype)
    # EOFError: numpy's, of an empty file
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{target}: a file of tokens that can't be read ({error}).") from error
    if size != count * dtype.itemsize or starts[-1] != count or not len(starts) == len(records) + 1 == described["clips"] + 1:
        raise FormatError(
            f"{target}: it or its index is not whole: {size} bytes, {count} tokens and {described['clips']} clips are announced."
        )
    ids = [record.pop("id") for record in records]
    return TokenFile(tokens, starts, ids, records, pattern, described["separator"])


def _paths(target: Path) -> list[Path]:
    return [target, *(target.with_suffix(suffix) for suffix in (".idx.npy", ".json", ".jsonl"))]


def _described(target: Path) -> dict[str, Any]:
    path = target.with_suffix(".json")
    try:
        described = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FormatError(f"{target}: what its tokens are can't be read ({path.name}: {error}).") from error
    if not isinstance(described, dict):
        raise FormatError(f"{target}: what its tokens are can't be read ({path.name} holds no object).")
    return described
