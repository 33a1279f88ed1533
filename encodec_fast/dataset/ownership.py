"""Which files of an --out folder a run may replace or remove: its own. Whatever else lies there is left alone, or the run refused.

Its own are:

- shards that a line of the ledger names.
- shards of the run's weights that have a mark in `.encodec_fast/begun/`. The mark is made before the shard is begun. It goes when the
  shard's line is on the disk.
- the side files of either, or of a shard that was never finished; the format says which (see formats.Format).
- temporary names that no other program makes.

What has such a name and can't be told from a foreign file is moved to `.encodec_fast/set-aside/`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from encodec_fast.dataset.failures import FAILURES_FILE
from encodec_fast.formats import FORMATS, Format, format_module
from encodec_fast.formats.atomic import inside, sync_folder, temporary_of, write_atomically
from encodec_fast.formats.folder import all_formats, format_of, is_shard_name, read_info_of

logger = logging.getLogger("encodec_fast")

BEGUN, REMOVAL, SET_ASIDE = "begun", "removal.jsonl", "set-aside"
# An underscore: pyarrow, pandas and Spark pass over it in a folder of Parquet files.
REPORT_FILE, OLD_REPORT_FILE = "_report.html", "report.html"
# A shared file's temporary name with its owner before it, by earlier versions
_OWNED = re.compile(r"part-\d{8,}\.(?P<file>.+)")


def own_files(identity: Mapping[str, Any]) -> list[str]:
    """Returns the names of what a run writes beside its shards and their side files.  identity: of run.json."""
    module = _format_of_run(identity)
    return [REPORT_FILE, *(module.SHARED_FILES if module else ())]


def side_folders(identity: Mapping[str, Any]) -> list[str]:
    """Returns the names of the folders that a run puts its side files into.  identity: of run.json."""
    module = _format_of_run(identity)
    return [*module.SIDE_FOLDERS] if module else []


def _format_of_run(identity: Mapping[str, Any]) -> Format | None:
    name = identity.get("format")
    return format_module(name) if name in FORMATS else None


class ForeignFile(ValueError):
    """A file that no run of ours made is in the way; the message names it and says what to do."""


class OwnFiles:
    """out: the folder of the codes. folder: of the run, below it."""

    def __init__(self, out: Path, folder: Path):
        self.out, self.folder = out, folder
        self._marks = folder / BEGUN

    # A shard's life

    def begin(self, name: str) -> None:
        """Marks on the disk that the shard of this name is ours. Raises ForeignFile if somebody else's file has the name."""
        path = self.out / name
        # ours is there where Ray repeats the writing of a group
        if os.path.lexists(path) and not ((self._marks / name).exists() and self.made(path)):
            raise ForeignFile(f"{path} is there already, and this run did not make it; move it away or choose another folder.")
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
        """Returns the names with a mark."""
        return sorted(path.name for path in self._marks.glob("*") if is_shard_name(path.name)) if self._marks.is_dir() else []

    def remove(self, name: str) -> None:
        """Removes a shard that was begun, with its files; sets aside what is none of this run, or is too damaged to say so."""
        path = self.out / name
        if not os.path.lexists(path):
            return
        if not self.made(path):
            logger.warning("%s can't be told from somebody else's file; it is kept as %s", path, self.set_aside(path))
            return
        self._remove_side_files(path)
        path.unlink()

    def remove_temporaries(self) -> None:
        """Removes what killed processes left under temporary names of ours, and the files that an unfinished manifest names."""
        for folder in (self.out, self.folder):
            for path in folder.glob(".*.tmp"):
                name = temporary_of(path.name) or ""
                # without the digits, by earlier versions
                ours = is_shard_name(name) or self._is_owned(name) or path.name != f".{name}.tmp"
                if name and ours and path.is_file() and not path.is_symlink():
                    self._remove_side_files(path)
                    path.unlink(missing_ok=True)

    def _is_owned(self, name: str) -> bool:
        found = _OWNED.fullmatch(name)
        return found is not None and any(found["file"] in module.SHARED_FILES for module in all_formats())

    def _remove_side_files(self, shard: Path) -> None:
        for name in self._side_files(shard):
            inside(self.out, name).unlink(missing_ok=True)

    # Shards that nobody named

    def made(self, path: Path) -> bool:
        """Tells whether a shard names the weights of this run, and its side files as its format does."""
        if path.is_symlink() or not path.is_file():
            return False
        try:
            # a number, should somebody have written one
            weights = str(json.loads((self.folder / "run.json").read_bytes()).get("weights") or "")
            if not weights or not read_info_of(path).weights_sha256.startswith(weights):
                return False
            module = format_of(path.name)
            # a shared file says this of everything in the folder that has the suffix
            return module is not None and (not module.SHARED_FILES or bool(module.side_files(path)))
        except (ValueError, AttributeError, OSError):
            return False

    def set_aside(self, path: Path) -> Path:
        """Moves a shard whose line is damaged, or was never written, out of the readers' way; returns its new path."""
        folder = self.folder / SET_ASIDE
        folder.mkdir(exist_ok=True)
        # not by its own suffix: `**/*.parquet` may look into folders with a dot
        number = 1
        while os.path.lexists(target := folder / f"{path.name}.{number}"):
            number += 1
        path.rename(target)
        return target

    # Everything

    def begin_removal(self, shards: Iterable[str], others: Iterable[str]) -> None:
        """Notes on the disk that the run, its shards with their side files, and `others` are to be removed.

        `finish_removal` does it: now, or in the next process if this one ends before.
        """
        names: list[str] = []
        for name in sorted(set(shards)):
            names += [*self._side_files(self.out / name), name]
        names += [name for name in others if (self.out / name).is_file()]
        write_atomically(self.folder / REMOVAL, "".join(json.dumps(name) + "\n" for name in names).encode())

    def _side_files(self, shard: Path) -> list[str]:
        """Returns the side files of a shard, or of its temporary file, that lie inside the folder."""
        module = format_of(temporary_of(shard.name) or shard.name)
        if module is None or shard.is_symlink() or not shard.is_file():
            return []
        names = []
        for name in module.side_files(shard):
            # behind a link out of the folder nothing is ours
            with contextlib.suppress(ValueError):
                inside(self.out, name)
                names.append(name)
        return names

    def finish_removal(self) -> bool:
        """Removes what `begin_removal` noted; returns whether there was anything."""
        path = self.folder / REMOVAL
        if not path.exists():
            return False
        for line in path.read_text(encoding="utf-8").splitlines():
            inside(self.out, json.loads(line)).unlink(missing_ok=True)
        sync_folder(self.out)
        for own in self._run_files():
            own.unlink(missing_ok=True)
        self.remove_temporaries()
        # last: until it is gone, the next process begins here again
        path.unlink()
        sync_folder(self.folder)
        return True

    def _run_files(self) -> Iterator[Path]:
        for pattern in (FAILURES_FILE, "ledger-*.jsonl", "schedule-*.arrow", "writer-*.lock", f"{BEGUN}/part-*", "run.json"):
            yield from self.folder.glob(pattern)
