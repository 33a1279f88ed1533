"""Runs clips through a model at each of its bandwidths, and averages what `metrics` says of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encodec_fast.model import EncodecModel, EncodedClip, known_bandwidth
from encodec_fast.pages import HEARD_SECONDS
from encodec_fast.quality import metrics
from encodec_fast.sample_formats import float_samples
from encodec_fast.serving.clips import levels_of
from encodec_fast.wording import counted


@dataclass(frozen=True)
class Measure:
    """A column of the table.  decimals: that it shows.  of: original, decoded audio [C, T] and Hz to a value per channel, [C]."""

    heading: str
    decimals: int
    of: Callable[[Tensor, Tensor, int], Tensor]


# In the order of the table
MEASURES = {
    "si_snr": Measure("SI-SNR dB", 2, lambda original, decoded, _: metrics.si_snr(original, decoded)),
    "stoi": Measure("STOI", 3, metrics.stoi),
    "mel_distance": Measure("mel distance", 3, metrics.mel_distance),
    "pesq": Measure("PESQ", 2, metrics.pesq),
}
# Of the table and the lines below it
WIDTH = 80


@dataclass(frozen=True)
class BandwidthQuality:
    """The measures of one bandwidth.

    bandwidth: kbps.  levels: of codes that it has.
    means: by measure, over the clips for which it is defined; None: for none of them.  clips: how many those are, by measure.
    """

    bandwidth: float
    levels: int
    means: dict[str, float | None]
    clips: dict[str, int]


@dataclass(frozen=True)
class HeardAudio:
    """The beginning of a clip, float32 [C, T] each: as it was, and decoded, by bandwidth in kbps."""

    original: np.ndarray
    decoded: dict[float, np.ndarray]


@dataclass(frozen=True)
class QualityReport:
    """What `measure` found; str() is a table.

    model: its name.  clips, seconds: of audio that was measured.  sampling_rate: Hz.  bandwidths: from the lowest.
    frames: of codes.  codebook_size: entries of a codebook.  use: share of the entries that occur, per level.
    missing: by measure, why it was left out.  heard: audio of the first clips, where it was asked for.
    """

    model: str
    clips: int
    seconds: float
    sampling_rate: int
    bandwidths: list[BandwidthQuality]
    frames: int
    codebook_size: int
    use: list[float]
    missing: dict[str, str]
    heard: list[HeardAudio] = field(default_factory=list, repr=False, compare=False)

    @property
    def measures(self) -> list[str]:
        """The measures that were taken, in the table's order."""
        return [name for name in MEASURES if name not in self.missing]

    def table(self) -> list[list[str]]:
        """Returns the heading and a row per bandwidth; what is undefined for every clip is a dash."""
        rows = [["kbps", "levels", *(MEASURES[name].heading for name in self.measures), "least use (level)"]]
        for each in self.bandwidths:
            use = self.use[: each.levels]
            level = min(range(len(use)), key=use.__getitem__)
            means = [_shown(each.means[name], MEASURES[name].decimals) for name in self.measures]
            rows.append([f"{each.bandwidth:g}", str(each.levels), *means, f"{100 * use[level]:.1f} % ({level + 1})"])
        return rows

    def notes(self) -> list[str]:
        """Returns the lines below the table: what the numbers are of, what was left out, and the use of each level."""
        lines = [f"{counted(self.clips, 'clip')}, {self.seconds:.1f} s at {self.sampling_rate} Hz; a number is the mean over clips"]
        for name in self.measures:
            defined = min(each.clips[name] for each in self.bandwidths)
            if defined < self.clips:
                lines.append(f"{MEASURES[name].heading}: of {counted(defined, 'clip')}; the others are silent or too short for it")
        lines += [f"{MEASURES[name].heading}: left out, {reason}" for name, reason in self.missing.items()]
        shares = " ".join(f"{100 * share:.0f}" for share in self.use)
        lines.append(f"entries in use by level, % of {self.codebook_size}, in {self.frames} frames: {shares}")
        return lines

    def __str__(self) -> str:
        import textwrap

        rows = self.table()
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        table = ["  ".join(text.rjust(width) for text, width in zip(row, widths)) for row in rows]
        notes = [part for line in self.notes() for part in textwrap.wrap(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)]
        return "\n".join([self.model, "", *table, "", *notes])

    def to_json(self) -> dict[str, Any]:
        """Returns the report for json.dumps, without audio; what is infinite is the text "inf" or "-inf"."""
        bandwidths = [
            {
                "bandwidth": each.bandwidth,
                "levels": each.levels,
                **{name: _json_number(each.means[name]) for name in self.measures},
                "clips": each.clips,
            }
            for each in self.bandwidths
        ]
        return {
            "model": self.model,
            "clips": self.clips,
            "seconds": self.seconds,
            "sampling_rate": self.sampling_rate,
            "bandwidths": bandwidths,
            "codebooks": {"size": self.codebook_size, "frames": self.frames, "use": self.use},
            "missing": self.missing,
        }


def _shown(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def _mean(values: Sequence[float]) -> float:
    """Returns the mean; minus infinity wins over infinity, whose sum would be no number."""
    return -math.inf if -math.inf in values else sum(values) / len(values)


def _json_number(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)


def measure(
    model: EncodecModel,
    clips: Iterable[Tensor | np.ndarray],
    bandwidths: Sequence[float] | None = None,
    *,
    listen: int = 0,
    progress: Callable[[int], None] | None = None,
) -> QualityReport:
    """Encodes and decodes clips, and measures the audio of each bandwidth against them. Returns the report.

    clips: as `encode_batch` takes them, [C, T]; taken one by one, so that a generator need not hold all of them.
    bandwidths: kbps; None: all that the model has.  listen: of so many clips, the first HEARD_SECONDS are kept in `heard`.
    progress: is called with the number of clips that are done.
    A clip is encoded once, at the highest bandwidth; a lower one decodes the first levels of these codes, which are its own.
    The channels of a clip are measured one by one and averaged. STOI and PESQ are left out where their packages are missing.
    Raises ValueError without clips, for a bandwidth that the model lacks and for decoded audio that is not finite.
    Else it raises what `encode_batch` raises.
    """
    if bandwidths is not None and not len(bandwidths):
        raise ValueError("bandwidths is empty; give some of the model's, or None for all.")
    chosen = sorted({known_bandwidth(model.config, each) for each in bandwidths or model.config.target_bandwidths})
    levels = [levels_of(model.quantizer, bandwidth) for bandwidth in chosen]
    missing = metrics.missing_packages()
    tally = _Tally(model, chosen, [name for name in MEASURES if name not in missing])
    heard: list[HeardAudio] = []
    beginning = round(HEARD_SECONDS * model.config.sampling_rate)
    for clip in clips:
        (encoded,) = model.encode_batch([clip], chosen[-1])
        original = float_samples(torch.as_tensor(clip), "clips", model.device, torch.float32).reshape(-1, encoded.num_samples)
        tally.add_codes(encoded)
        decoded = {}
        for bandwidth, count in zip(chosen, levels):
            (audio,) = model.decode_batch([replace(encoded, codes=encoded.codes[:, :count])])
            tally.add(bandwidth, original, audio.float())
            decoded[bandwidth] = audio
        if len(heard) < listen:
            parts = {each: audio[:, :beginning].float().cpu().numpy() for each, audio in decoded.items()}
            heard.append(HeardAudio(original[:, :beginning].cpu().numpy(), parts))
        if progress is not None:
            progress(tally.clips)
    if not tally.clips:
        raise ValueError("clips is empty; at least one is needed.")
    return QualityReport(
        model=model.name_or_path or type(model).__name__,
        clips=tally.clips,
        seconds=tally.samples / model.config.sampling_rate,
        sampling_rate=model.config.sampling_rate,
        bandwidths=[tally.quality(bandwidth, count) for bandwidth, count in zip(chosen, levels)],
        frames=tally.use.frames,
        codebook_size=model.config.codebook_size,
        use=tally.use.shares(),
        missing=missing,
        heard=heard,
    )


class CodebookUse:
    """Which entries of each level's codebook occur.  frames: that were looked at."""

    def __init__(self, codebook_size: int) -> None:
        self.frames = 0
        self._size = codebook_size
        self._used: list[set[int]] = []

    def add(self, encoded: EncodedClip) -> None:
        """Looks at the codes of a clip."""
        *whole, last = encoded.codes.cpu().unbind()
        # the frames behind a short last chunk are filled up with zeros, which nobody chose
        codes = torch.cat([*whole, last[:, : last.shape[1] - encoded.last_frame_pad_length]], dim=1)
        self.frames += codes.shape[1]
        self._used = self._used or [set() for _ in codes]
        for used, level in zip(self._used, codes):
            used.update(level.unique().tolist())

    def shares(self) -> list[float]:
        """Returns the share of the entries that occurred, per level."""
        return [len(used) / self._size for used in self._used]


class _Tally:
    """Sums over clips."""

    def __init__(self, model: EncodecModel, bandwidths: Sequence[float], measures: Sequence[str]):
        self.clips = self.samples = 0
        self.use = CodebookUse(model.config.codebook_size)
        self._rate, self._measures = model.config.sampling_rate, measures
        self._values: dict[float, dict[str, list[float]]] = {each: {name: [] for name in measures} for each in bandwidths}

    def add_codes(self, encoded: EncodedClip) -> None:
        self.clips += 1
        self.samples += encoded.num_samples
        self.use.add(encoded)

    def add(self, bandwidth: float, original: Tensor, decoded: Tensor) -> None:
        if not decoded.isfinite().all():
            raise ValueError(
                f"model: its audio of clip {self.clips - 1} at {bandwidth:g} kbps is not finite; are the clip and the weights?"
            )
        for name in self._measures:
            value = MEASURES[name].of(original, decoded, self._rate)
            defined = value[~value.isnan()]
            if len(defined):
                self._values[bandwidth][name].append(_mean(defined.tolist()))

    def quality(self, bandwidth: float, levels: int) -> BandwidthQuality:
        values = self._values[bandwidth]
        means = {name: _mean(each) if each else None for name, each in values.items()}
        return BandwidthQuality(bandwidth, levels, means, {name: len(each) for name, each in values.items()})
