"""Results as JSON lines: appended, never rewritten, read back by suite."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
RESULTS = Path(__file__).parents[1] / "results"
# Instructions of the native kernels, by compiler and tier (bench/tools/instructions.py).
INSTRUCTIONS = RESULTS / "instructions.json"


def append(path: Path, rows: Iterable[Row]) -> None:
    """Appends rows at the end of the file, which is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


def read(path: Path) -> list[Row]:
    """Reads all rows of a file, none where it does not exist."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def key(row: Row) -> str:
    """Returns what a row is about: suite, case, contender, threads, clock, machine.  Of two rows with one key the later one counts."""
    about = {name: row.get(name) for name in ("suite", "case", "stage", "contender")}
    about["machine"] = row["environment"]["machine"]
    about["threads"], about["clock"] = row["environment"]["threads"], row["environment"].get("clock")
    return json.dumps(about, sort_keys=True)


def latest(rows: Iterable[Row]) -> list[Row]:
    """Returns the last row of every key, in the order in which the keys first came."""
    return list({key(row): row for row in rows}.values())


def done(rows: Iterable[Row], revision: str) -> set[str]:
    """Returns the keys that a revision has a row for."""
    return {key(row) for row in rows if row["environment"]["revision"] == revision}


def kept(options: argparse.Namespace, about: Row) -> set[str]:
    """Returns the keys not to measure again: a run that was cut off goes on after them.

    options: `out`, the file of rows, and `again`, to measure everything.  about: the run's common fields.
    """
    return set() if options.again else done(read(options.out), about["environment"]["revision"])
