"""report.html in a run's folder: a few validation clips before training and after, and curves, in one file without links."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from encodec_fast.formats.atomic import write_atomically
from encodec_fast.pages import HeardClip, render
from encodec_fast.quality.measurement import QualityReport, measure
from encodec_fast.quality.page import heard_clip
from encodec_fast.training.checkpoint import METRICS, REPORT


def measured(model: Any, clips: Sequence[Tensor]) -> QualityReport:
    """Returns the quality of the model on clips [C, T] at its lowest, middle and highest bandwidth, with the audio."""
    bandwidths = sorted(model.config.target_bandwidths)
    return measure(model, clips, [bandwidths[0], bandwidths[len(bandwidths) // 2], bandwidths[-1]], listen=len(clips))


def write_report(
    folder: Path, facts: Mapping[str, str], names: Sequence[str], before: QualityReport | None, after: QualityReport | None
) -> Path:
    """Writes report.html of what metrics.csv has and of what is heard; returns its path. With matplotlib it has pictures.

    facts: lines of the table at the top.  names: of the clips.  before, after: of `measured`, on these; None without validation.
    """
    drawn = importlib.util.find_spec("matplotlib") is not None
    pictures = []
    if drawn:
        from encodec_fast.training.curves import curves

        with (folder / METRICS).open(encoding="utf-8", newline="") as file:
            pictures = curves(list(csv.DictReader(file)))
    tables, notes, heard = [], [], []
    if before is not None and after is not None:
        for title, report in (("Before training", before), ("After", after)):
            heading, *rows = report.table()
            tables.append((title, heading, rows))
        notes = [f"After: {note}" if note.startswith("entries") else note for note in after.notes()]
        heard = [_heard(before, after, index, name, drawn) for index, name in enumerate(names)]
    page = render(
        "encodec_fast.training",
        "report.html",
        name=folder.resolve().name,
        facts=facts,
        tables=tables,
        notes=notes,
        heard=heard,
        pictures=pictures,
        drawn=drawn,
    )
    write_atomically(folder / REPORT, page.encode())
    return folder / REPORT


def _heard(before: QualityReport, after: QualityReport, index: int, name: str, drawn: bool) -> HeardClip:
    versions = {"original": before.heard[index].original}
    for bandwidth, audio in before.heard[index].decoded.items():
        versions |= {f"{bandwidth:g} kbps, before": audio, f"{bandwidth:g} kbps, after": after.heard[index].decoded[bandwidth]}
    return heard_clip(name, versions, before.sampling_rate, drawn)
