"""_report.html: what a data set holds and how its run went, in one file without links. With matplotlib it has pictures."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from encodec_fast.corpus.sources import RUN_FOLDER
from encodec_fast.dataset.failures import FAILURES_FILE
from encodec_fast.dataset.ledger import Ledger
from encodec_fast.dataset.ownership import REPORT_FILE
from encodec_fast.dataset.records import Record
from encodec_fast.dataset.statistics import FolderStatistics, folder_statistics
from encodec_fast.dataset.writing import add_counts
from encodec_fast.formats import DatasetInfo
from encodec_fast.formats.atomic import write_atomically
from encodec_fast.formats.folder import read_info_of, shard_paths
from encodec_fast.pages import HeardClip, render
from encodec_fast.wording import counted, hours_text

FAILURES_SHOWN = 50


def write_report(folder: str | os.PathLike[str], heard: Sequence[HeardClip] = ()) -> Path:
    """Writes the report into the data set's folder; returns its path. Raises FormatError where there are no codes.

    heard: clips to listen to; see listening.heard_clips.
    """
    # which also holds the shards against each other
    found = folder_statistics(folder, sample=True)
    info = read_info_of(shard_paths(folder)[0])
    ledger = Ledger(folder)
    records = ledger.records()
    pictures = _pictures(found, ledger, records) if importlib.util.find_spec("matplotlib") else []
    text = render(
        "encodec_fast.dataset",
        "report.html",
        name=Path(folder).resolve().name,
        facts=_facts(info, found, records),
        statistics=found,
        counted=f"Counted on {_counted(found)}.",
        pictures=pictures,
        heard=heard,
        hours_text=hours_text,
        failures=ledger.failures(),
        failures_shown=FAILURES_SHOWN,
        failures_file=f"{RUN_FOLDER}/{FAILURES_FILE}",
    )
    return write_atomically(Path(folder) / REPORT_FILE, text.encode())


def _pictures(found: FolderStatistics, ledger: Ledger, records: Sequence[Record]) -> list[tuple[str, str, str]]:
    """Returns (title, PNG, caption) of each."""
    from encodec_fast.dataset import plots

    seconds = np.concatenate([schedule.seconds for schedule in ledger.schedules()] or [np.zeros(0)])
    of = f"in {_counted(found)}."
    pictures = [
        ("Clip duration", plots.durations(seconds[seconds > 0]), "From the headers of all clips, failed ones included."),
        ("Codebook use", plots.use(found), f"Share of entries that occur, per level, {of}"),
        ("Entropy", plots.entropy(found), f"Bits per code and level, of {np.log2(found.codebook_size):.3g} at most, {of}"),
    ]
    if (throughput := plots.throughput(records)) is not None:
        caption = "Audio per second of time, as the batches were finished; pauses between runs are cut out."
        pictures.append(("Throughput", throughput, caption))
    return pictures


def _counted(found: FolderStatistics) -> str:
    return f"{counted(found.read_clips, 'clip', ',')} of {counted(found.read_shards, 'shard', ',')}"


def _facts(info: DatasetInfo, found: FolderStatistics, records: Sequence[Record]) -> dict[str, str]:
    busy = sum(record.busy for record in records)
    hours = found.seconds / 3600
    return {
        "Clips": f"{found.clips:,}",
        "Hours": hours_text(found.seconds),
        "Tokens": f"{found.tokens_per_hour * hours:,.0f}" + (" (by the sample)" if found.is_sample else ""),
        "Bytes": f"{found.bytes:,}, {found.bytes_per_hour / 1e6:,.2f} MB an hour",
        "Failed": f"{found.failed:,}",
        "Shards": f"{found.shards:,}",
        "Encoder": f"{found.seconds / busy:,.1f} x real time" if busy else "-",
        "Model": f"{info.model_id} (weights {info.weights_sha256[:16]})",
        "Bandwidth": f"{info.options.get('bandwidth', '-')} kbps",
        "Columns": ", ".join(f"{name} ({type_name})" for name, type_name in info.columns.items()) or "none",
        "Backend": info.backend,
        "Versions": ", ".join(f"{package} {version}" for package, version in info.versions.items()),
        "Verified": _verified(records),
    }


def _verified(records: Sequence[Record]) -> str:
    counts: dict[str, Any] | None = None
    for record in records:
        counts = counts if record.verified is None else add_counts(counts, record.verified)
    if counts is None:
        return "no clips compared with transformers (--verify SHARE)"
    return (
        f"{counts['clips']} clips, {counts['codes']:,} codes: {counts['flips']} frames differ from transformers, largest margin "
        f"{counts['worst_margin']:.2f} of its bound; {counts['failed']} comparisons failed, {counts['changed']} stored frames differ"
    )
