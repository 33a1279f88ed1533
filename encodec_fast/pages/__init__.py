"""Pages of HTML in one file without links: their frame (base.html), players (listen.html), audio and pictures as text. Without torch."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

# The beginning of a clip says what it sounds like; a page of whole songs would not open
HEARD_SECONDS = 10.0


@dataclass(frozen=True)
class HeardVersion:
    """The beginning of a clip as a player.  name: what it is called.  flac, picture: base64; no picture: "", then none is shown."""

    name: str
    flac: str
    picture: str = ""


@dataclass(frozen=True)
class HeardClip:
    """A clip to listen to.  versions: the original first."""

    id: str
    versions: list[HeardVersion]


def flac_text(samples: np.ndarray, sampling_rate: int) -> str:
    """Returns the first HEARD_SECONDS of float samples [C, T] as FLAC of 16 bits, in base64; beyond full scale they are clipped."""
    import soundfile

    data = io.BytesIO()
    beginning = samples[:, : round(HEARD_SECONDS * sampling_rate)]
    soundfile.write(data, beginning.T.clip(-1, 1), sampling_rate, format="FLAC", subtype="PCM_16")
    return base64.b64encode(data.getvalue()).decode()


def png_text(figure: Any) -> str:
    """Returns a figure of matplotlib as PNG in base64."""
    data = io.BytesIO()
    # no version and date: the same figure gives the same bytes
    figure.savefig(data, format="png", metadata={"Software": None})
    return base64.b64encode(data.getvalue()).decode()


def render(package: str, template: str, **values: Any) -> str:
    """Returns the page that a template in a package makes of the values; it extends base.html."""
    import jinja2

    shared = resources.files("encodec_fast.pages")
    sources = {template: resources.files(package) / template, **{name: shared / name for name in ("base.html", "listen.html")}}
    loader = jinja2.DictLoader({name: file.read_text(encoding="utf-8") for name, file in sources.items()})
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template(template).render(**values)
