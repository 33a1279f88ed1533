"""The listening page: the table of a report, and its clips at each bandwidth, in one file without links."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from encodec_fast.pages import HeardClip, HeardVersion, flac_text, render

if TYPE_CHECKING:
    from encodec_fast.quality.measurement import QualityReport

# Of 10 s each at most: with six versions of a 24 kHz clip about 2 MB a clip
HEARD_CLIPS = 8


def listening_page(report: QualityReport, names: Sequence[str]) -> str:
    """Returns the page as HTML. With matplotlib each version of a clip has its spectrogram.

    report: of `measure` with `listen`.  names: of the clips in report.heard.
    """
    drawn = importlib.util.find_spec("matplotlib") is not None
    heading, *rows = report.table()
    return render(
        "encodec_fast.quality",
        "page.html",
        model=report.model,
        heading=heading,
        rows=rows,
        notes=report.notes(),
        heard=[_heard(report, index, name, drawn) for index, name in enumerate(names)],
        drawn=drawn,
    )


def _heard(report: QualityReport, index: int, name: str, drawn: bool) -> HeardClip:
    audio = report.heard[index]
    versions = {"original": audio.original, **{f"{bandwidth:g} kbps": decoded for bandwidth, decoded in audio.decoded.items()}}
    return heard_clip(name, versions, report.sampling_rate, drawn)


def heard_clip(name: str, versions: Mapping[str, np.ndarray], sampling_rate: int, drawn: bool) -> HeardClip:
    """Returns a clip's players.

    versions: by title, the original first, float [C, T].  drawn: with spectrograms, for which matplotlib must be there.
    """
    pictures = [""] * len(versions)
    if drawn:
        from encodec_fast.quality.plots import spectrograms

        pictures = spectrograms(list(versions.values()), sampling_rate)
    named = zip(versions.items(), pictures)
    return HeardClip(name, [HeardVersion(title, flac_text(samples, sampling_rate), picture) for (title, samples), picture in named])
