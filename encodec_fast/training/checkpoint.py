"""What a training run keeps on the disk: its checkpoint, the model for transformers, and a row of metrics now and then."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from encodec_fast.errors import first_line
from encodec_fast.formats.atomic import open_atomically, sync_folder, temporary_of, write_atomically

CHECKPOINT, CONFIG, METRICS, MODEL, REPORT = "checkpoint.pt", "config.toml", "metrics.csv", "model", "report.html"


def write_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Writes the state as checkpoint.pt; the one before is there until this one is whole and on the disk."""
    with open_atomically(folder / CHECKPOINT) as file:
        torch.save(dict(state), file)


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Returns the state in the folder, on the CPU; None where there is none. It is read as data and never runs code.

    Raises ValueError for a file that is damaged or none of ours.
    """
    path = folder / CHECKPOINT
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except OSError:
        raise
    except Exception as error:  # of pickle, zipfile or torch, by where the damage is
        raise ValueError(f"{path}: not a checkpoint that can be read ({first_line(error)}). Move it away to begin anew.") from error
    if not isinstance(state, dict) or not {"step", "config", "clips", "model", "training", "best"} <= state.keys():
        raise ValueError(f"{path}: not a checkpoint of `encodec-fast train`. Choose another folder.")
    return state


def write_model(folder: Path, model: Any) -> None:
    """Writes the model into `model/` as `save_pretrained` does. Each file of the one before is there until its successor is whole.

    The config is the same all through a run, so that weights and config fit at any moment.
    """
    target = folder / MODEL
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".model.", suffix=".tmp", dir=folder) as temporary:
        model.save_pretrained(temporary)
        for path in sorted(Path(temporary).iterdir()):
            # r+: Windows puts only what may be written on the disk
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(path, target / path.name)
    sync_folder(target)


def remove_temporaries(folder: Path) -> None:
    """Removes what a killed run left half written."""
    for path in folder.iterdir():
        if path.is_file() and temporary_of(path.name) in (CHECKPOINT, CONFIG, METRICS, REPORT):
            path.unlink(missing_ok=True)
        elif path.is_dir() and path.name.startswith(".model.") and path.name.endswith(".tmp"):
            for part in path.iterdir():
                part.unlink(missing_ok=True)
            path.rmdir()


class MetricsFile:
    """metrics.csv: a row of the columns now and then, the first of which is the step.

    last: rows of later steps are of a run that was killed after its checkpoint; they are removed, for they come again.
    """

    def __init__(self, path: Path, columns: Sequence[str], last: int) -> None:
        self._columns = columns
        header = _line(columns)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if last and path.exists() else []
        # a last line without an end is torn
        kept = [line for line in lines[1:] if line.endswith("\n") and int(line.partition(",")[0]) <= last]
        write_atomically(path, "".join([header, *kept]).encode())
        self._file = path.open("a", encoding="utf-8", newline="")

    def write(self, row: Mapping[str, float | None]) -> None:
        """Adds a row; a column without a number is empty."""
        found = [row.get(name) for name in self._columns]
        self._file.write(_line(["" if value is None else str(value) if isinstance(value, int) else f"{value:.6g}" for value in found]))
        self._file.flush()

    def sync(self) -> None:
        """Puts the rows on the disk, before the checkpoint that counts on them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _line(values: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()
