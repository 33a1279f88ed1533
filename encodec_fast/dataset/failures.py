"""The clips of a run that have no codes: one line of JSON each, where no reader of codes looks."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from encodec_fast.corpus.sources import run_folder
from encodec_fast.formats import ClipFailure
from encodec_fast.formats.atomic import write_atomically

FAILURES_FILE = "errors.jsonl"
# Beside the shards, by earlier versions: every reader took it for codes.
OLD_FAILURES_FILE = "errors.parquet"
_COLUMNS = ["id", "path", "reason"]


def write_failures(folder: Path, failures: Sequence[ClipFailure]) -> Path | None:
    """Writes the failures into a run's own folder; returns their path. Without failures removes the file and returns None."""
    path = folder / FAILURES_FILE
    if not failures:
        path.unlink(missing_ok=True)
        return None
    return write_atomically(path, "".join(json.dumps(asdict(failure)) + "\n" for failure in failures).encode())


def read_failures(out: str | os.PathLike[str]) -> list[ClipFailure]:
    """Returns the clips of a folder of codes that have none."""
    path, old = run_folder(Path(out)) / FAILURES_FILE, Path(out) / OLD_FAILURES_FILE
    if path.exists():
        return [ClipFailure(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    if not is_old_table(old):
        return []
    import pyarrow.parquet as pq

    return [ClipFailure(**row) for row in pq.read_table(old, partitioning=None).to_pylist()]


def is_old_table(path: Path) -> bool:
    """Tells whether the file is a table of failures as earlier versions wrote it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.is_symlink() or not path.is_file():
        return False
    try:
        return pq.read_schema(path).names == _COLUMNS
    except (OSError, pa.ArrowException):
        return False
