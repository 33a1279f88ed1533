"""Which files of an --out folder a run may replace or remove: its own. Whatever else lies there is left alone, or the run refused.

Its own are: shards that a line of the ledger names; shards with a mark in `_encodec_fast/begun/`, which is there from before the shard
is begun until its line is on the disk; the files named by a manifest of either; temporary names that no other program makes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from encodec_fast.formats import FormatError
from encodec_fast.formats.atomic import inside, sync_folder, temporary_of, write_atomically
from encodec_fast.formats.folder import is_shard_name, read_info_of
from encodec_fast.formats.npy import INFO_FILE, npy_path, read_manifest
from encodec_fast.formats.parquet import ERRORS_FILE

BEGUN, REMOVAL, SET_ASIDE = "begun", "removal.jsonl", "set-aside"
_OWNED_INFO = re.compile(r"part-\d{8,}\.info\.json")


def own_files(identity: Mapping[str, Any]) -> list[str]:
    """What a run writes beside its shards.  identity: of run.json."""
    return [ERRORS_FILE, "report.html", *([INFO_FILE] if identity.get("format") == "npy" else [])]


class ForeignFile(ValueError):
    """A file that no run of ours made is in the way; the message names it and says what to do."""


class OwnFiles:
    """out: the folder of the codes. folder: of the run, below it."""

    def __init__(self, out: Path, folder: Path):
        self.out, self.folder = out, folder
        self._marks = folder / BEGUN

    # A shard's life

    def begin(self, name: str) -> None:
        """Puts on the disk that the shard of this name is ours. Raises ForeignFile if somebody else's file has the name."""
        if not (self._marks / name).exists() and os.path.lexists(self.out / name):
            raise ForeignFile(f"{self.out / name} is there already, and this run did not make it; move it away or choose another folder.")
        self.claim(name)

    def claim(self, name: str) -> None:
        """Marks a shard that a line of ours named: it is to be made again."""
        self._marks.mkdir(exist_ok=True)
        mark = self._marks / name
        if not mark.exists():
            mark.touch()
            sync_folder(self._marks)

    def settle(self, name: str) -> None:
        """Removes the mark: a line of the ledger vouches for the shard."""
        (self._marks / name).unlink(missing_ok=True)

    def begun(self) -> list[str]:
        """Names with a mark."""
        return sorted(path.name for path in self._marks.glob("*") if is_shard_name(path.name)) if self._marks.is_dir() else []

    def remove(self, name: str) -> None:
        """Removes a shard that is ours."""
        (self.out / name).unlink(missing_ok=True)

    def temporaries(self) -> Iterator[Path]:
        """What killed processes left under temporary names of ours."""
        for folder in (self.out, self.folder):
            for path in folder.glob(".*.tmp"):
                name = temporary_of(path.name) or ""
                # without the digits, and with an owner before the name, by earlier versions
                ours = is_shard_name(name) or _OWNED_INFO.fullmatch(name) or path.name != f".{name}.tmp"
                if name and ours and path.is_file() and not path.is_symlink():
                    yield path

    # Shards that nobody named

    def set_aside(self, path: Path) -> Path:
        """Moves a shard, whose line is damaged or was never written, out of the readers' way; its new path."""
        folder = self.folder / SET_ASIDE
        folder.mkdir(exist_ok=True)
        target, number = folder / path.name, 1
        while os.path.lexists(target):
            number += 1
            target = folder / f"{path.name}.{number}"
        path.rename(target)
        return target

    # Everything

    def begin_removal(self, shards: Iterable[str], others: Iterable[str]) -> None:
        """Puts on the disk that the run, its shards with their files, and others are to be removed.

        `finish_removal` does it, now or, if this process ends before, in the next one.
        """
        names: list[str] = []
        for name in sorted(set(shards)):
            names += [*self._named_by(name), name]
        names += [name for name in others if (self.out / name).is_file()]
        write_atomically(self.folder / REMOVAL, "".join(json.dumps(name) + "\n" for name in names).encode())

    def _named_by(self, shard: str) -> list[str]:
        """The files of a manifest that it names as we name them: what else it says is not ours."""
        path = self.out / shard
        if path.suffix != ".jsonl" or not path.is_file():
            return []
        try:
            records = list(read_manifest(path))
        except ValueError:  # cut or damaged: its files stay
            return []
        return [record["npy"] for record in records if isinstance(record, dict) and _is_own_name(record)]

    def finish_removal(self) -> bool:
        """Removes what `begin_removal` noted; whether there was anything."""
        path = self.folder / REMOVAL
        if not path.exists():
            return False
        for line in path.read_text(encoding="utf-8").splitlines():
            inside(self.out, json.loads(line)).unlink(missing_ok=True)
        sync_folder(self.out)
        for own in self._run_files():
            own.unlink(missing_ok=True)
        for temporary in self.temporaries():
            temporary.unlink(missing_ok=True)
        # last: until it is gone, the next process begins here again
        path.unlink()
        sync_folder(self.folder)
        return True

    def _run_files(self) -> Iterator[Path]:
        for pattern in ("ledger-*.jsonl", "schedule-*.arrow", "writer-*.lock", f"{BEGUN}/part-*", "run.json"):
            yield from self.folder.glob(pattern)


def _is_own_name(record: dict[str, object]) -> bool:
    id = record.get("id")
    return isinstance(id, str) and record.get("npy") == str(npy_path(id))


def made_by(path: Path, weights: str) -> bool:
    """Whether a shard says that weights whose hash begins like this made it."""
    try:
        return bool(weights) and read_info_of(path).weights_sha256.startswith(weights)
    except (FormatError, OSError):
        return False
