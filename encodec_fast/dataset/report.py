"""_report.html: what a data set holds and how its run went, in numbers and pictures, in one file without links."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from encodec_fast.corpus.sources import RUN_FOLDER
from encodec_fast.dataset.failures import FAILURES_FILE
from encodec_fast.dataset.ledger import Ledger
from encodec_fast.dataset.ownership import REPORT_FILE
from encodec_fast.dataset.records import Record
from encodec_fast.dataset.writing import add_counts
from encodec_fast.formats import ClipFailure, DatasetInfo
from encodec_fast.formats.atomic import write_atomically
from encodec_fast.formats.folder import read_info, read_shard, shard_paths

# Codebook use is counted on this many codes of evenly spread shards: 1024 entries get thousands each
SAMPLED_SHARDS, SAMPLED_CODES = 64, 20_000_000
FAILURES_SHOWN = 50
PAUSE_SECONDS = 600.0
# One hue: no picture has more than one series
INK, BAR, FAINT = "#1f2937", "#2563eb", "#d1d5db"


class ReportError(RuntimeError):
    """No report can be written; the message says why."""


@dataclass(frozen=True)
class CodebookUse:
    """counts: [K, N], int64, how often each entry was used. clips, shards: that were counted."""

    counts: np.ndarray
    clips: int
    shards: int

    @property
    def used(self) -> np.ndarray:
        """Share of each level's entries that occur, [K]."""
        return (self.counts > 0).mean(axis=1)

    @property
    def entropy(self) -> np.ndarray:
        """Bits per code of each level, [K]; log2 N if all entries are equally frequent."""
        share = self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)
        return -(share * np.log2(np.where(share > 0, share, 1.0))).sum(axis=1)


def codebook_use(folder: str | os.PathLike[str], codebook_size: int) -> CodebookUse:
    """Counts how often the entries are used, on SAMPLED_SHARDS shards, spread evenly, up to SAMPLED_CODES codes."""
    shards = shard_paths(folder)
    chosen = [shards[len(shards) * index // min(len(shards), SAMPLED_SHARDS)] for index in range(min(len(shards), SAMPLED_SHARDS))]
    counts = np.zeros((0, codebook_size), np.int64)
    clips = 0
    for shard in chosen:
        budget = SAMPLED_CODES // len(chosen)
        for row in read_shard(shard):
            levels = row.codes.shape[1]
            counts = np.pad(counts, ((0, max(0, levels - len(counts))), (0, 0)))
            for level in range(levels):
                counts[level] += np.bincount(row.codes[:, level].ravel(), minlength=codebook_size)
            clips += 1
            budget -= row.codes.size
            if budget <= 0:
                break
    return CodebookUse(counts, clips, len(chosen))


def write_report(folder: str | os.PathLike[str]) -> Path:
    """Writes the report into the data set's folder; returns its path.

    Raises ReportError without matplotlib, and where there are no codes.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ReportError("matplotlib is missing; pip install 'encodec-fast[report]'.") from error
    matplotlib.use("Agg")
    if not shard_paths(folder):
        raise ReportError(f"{folder} holds no codes.")
    ledger = Ledger(folder)
    info, records = read_info(folder), ledger.records()
    seconds = np.concatenate([schedule.seconds for schedule in ledger.schedules()] or [np.zeros(0)])
    use = codebook_use(folder, info.codebook_size)
    pictures = [
        ("Clip duration", _durations(seconds[seconds > 0]), "From the headers of all clips, failed ones included."),
        ("Codebook use", _use(use), f"Share of entries that occur, per level, in {use.clips} clips of {use.shards} shards."),
        ("Entropy", _entropy(use), f"Bits per code and level, of {np.log2(info.codebook_size):.3g} at most, in the same clips."),
        ("Throughput", _throughput(records), "Audio per second of time, as the batches were finished; pauses between runs are cut out."),
    ]
    page = _page(Path(folder).resolve().name, info, records, ledger.failures(), pictures)
    return write_atomically(Path(folder) / REPORT_FILE, page.encode())


def _page(
    name: str, info: DatasetInfo, records: Sequence[Record], failures: Sequence[ClipFailure], pictures: Sequence[tuple[str, str, str]]
) -> str:
    clips, hours = sum(record.clips for record in records), sum(record.seconds for record in records) / 3600
    busy = sum(record.busy for record in records)
    facts: dict[str, Any] = {
        "Clips": f"{clips:,}",
        "Hours": f"{hours:,.2f}",
        "Failed": f"{len(failures):,}",
        "Shards": f"{sum(record.file is not None for record in records):,}",
        "Encoder": f"{3600 * hours / busy:,.1f} x real time" if busy else "-",
        "Model": f"{info.model_id} (weights {info.weights_sha256[:16]})",
        "Bandwidth": f"{info.options.get('bandwidth', '-')} kbps",
        "Backend": info.backend,
        "Versions": ", ".join(f"{package} {version}" for package, version in info.versions.items()),
        "Compared with transformers": _verified(records),
    }
    rows = "".join(f"<tr><th>{html.escape(key)}</th><td>{html.escape(str(value))}</td></tr>" for key, value in facts.items())
    figures = "".join(
        f"<figure><h2>{title}</h2><img alt='{title}' src='data:image/png;base64,{data}'><figcaption>{caption}</figcaption></figure>"
        for title, data, caption in pictures
    )
    errors = "".join(f"<tr><td>{html.escape(each.id)}</td><td>{html.escape(each.reason)}</td></tr>" for each in failures[:FAILURES_SHOWN])
    if failures:
        more = (
            f"<p>The first {FAILURES_SHOWN} of {len(failures):,}; all are in {RUN_FOLDER}/{FAILURES_FILE}.</p>"
            if len(failures) > FAILURES_SHOWN
            else ""
        )
        errors = f"<h2>Failed clips</h2><table><tr><th>Clip</th><th>Reason</th></tr>{errors}</table>{more}"
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{html.escape(name)}: EnCodec codes</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: {INK}; max-width: 68rem; margin: 2rem auto; padding: 0 1rem }}
h1 {{ font-size: 1.5rem }} h2 {{ font-size: 1.1rem; margin: 0 0 .3rem }}
table {{ border-collapse: collapse; margin-bottom: 2rem }}
th, td {{ text-align: left; padding: .15rem 1rem .15rem 0; vertical-align: top; overflow-wrap: anywhere }}
th {{ font-weight: 600; white-space: nowrap }}
.pictures {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(28rem, 1fr)); gap: 2rem; margin-bottom: 2rem }}
figure {{ margin: 0 }} img {{ width: 100% }} figcaption {{ color: #6b7280; font-size: .85rem }}
</style>
<h1>{html.escape(name)}</h1><table>{rows}</table><div class="pictures">{figures}</div>{errors}</html>
"""


def _verified(records: Sequence[Record]) -> str:
    counts: dict[str, Any] | None = None
    for record in records:
        counts = counts if record.verified is None else add_counts(counts, record.verified)
    if counts is None:
        return "no clips (--verify SHARE)"
    return (
        f"{counts['clips']} clips, {counts['codes']:,} codes: {counts['flips']} frames differ, largest margin "
        f"{counts['worst_margin']:.2f} of its bound; {counts['failed']} comparisons failed, {counts['changed']} stored frames differ"
    )


def _axes(xlabel: str, ylabel: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _png(figure: Any) -> str:
    data = io.BytesIO()
    # no version and date: the same data set gives the same bytes
    figure.savefig(data, format="png", metadata={"Software": None})
    return base64.b64encode(data.getvalue()).decode()


def _durations(seconds: np.ndarray) -> str:
    figure, axes = _axes("seconds (logarithmic)", "clips")
    if len(seconds):
        low, high = max(1e-3, float(seconds.min())), float(seconds.max())
        axes.hist(seconds, bins=np.geomspace(low, max(high, 1.01 * low), 41), color=BAR)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        middle = float(np.median(seconds))
        axes.axvline(middle, color=INK, linewidth=1)
        axes.annotate(f" median {middle:.3g} s", (middle, 0.97), xycoords=("data", "axes fraction"), va="top", fontsize=9)
    return _png(figure)


def _use(use: CodebookUse) -> str:
    figure, axes = _axes("level", "entries in use, %")
    axes.bar(np.arange(1, len(use.counts) + 1), 100 * use.used, color=BAR)
    axes.set_ylim(0, 100)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return _png(figure)


def _entropy(use: CodebookUse) -> str:
    figure, axes = _axes("level", "bits per code")
    axes.bar(np.arange(1, len(use.counts) + 1), use.entropy, color=BAR)
    most = float(np.log2(use.counts.shape[1]))
    axes.axhline(most, color=INK, linewidth=1, linestyle="--")
    axes.annotate("all entries alike", (1, most), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=9)
    axes.set_ylim(0, 1.12 * most)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return _png(figure)


def _throughput(records: Sequence[Record]) -> str:
    figure, axes = _axes("minutes of work", "x real time, all writers")
    paces = np.array(sorted(tuple(pace) for record in records for pace in record.paces) or [(0.0, 0.0)])
    # pauses between runs are cut out
    steps = np.diff(paces[:, 0], prepend=paces[0, 0])
    minutes = np.cumsum(np.where(steps > PAUSE_SECONDS, 0.0, steps)) / 60
    if minutes[-1] > 0:
        bins = np.linspace(0, minutes[-1], 1 + min(60, max(2, len(paces) // 4)))
        audio, _ = np.histogram(minutes[1:], bins, weights=paces[1:, 1])
        axes.stairs(audio / (60 * np.diff(bins)), bins, color=BAR, fill=True)
        axes.set_ylim(bottom=0)
    return _png(figure)
