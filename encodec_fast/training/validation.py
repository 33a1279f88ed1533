"""How good a model is on recordings it was not trained on, as it will be served: its own encode and decode."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from encodec_fast.quality import metrics
from encodec_fast.quality.measurement import CodebookUse
from encodec_fast.training.losses import MelLoss

# dB, about what float32 resolves
LARGEST_RATIO = 120.0


@dataclass(frozen=True)
class Validation:
    """What a validation found; the first three are means over clips.

    mel: the mel loss.  si_snr: dB.  stoi: 0 to 1; None without pystoi, or where no clip is long and loud enough for it.
    use: of each level, the share of the codebook's entries that were used at least once.
    """

    mel: float
    si_snr: float
    stoi: float | None
    use: tuple[float, ...]


@torch.no_grad()
def validate(model: Any, clips: Sequence[Tensor], bandwidth: float, mel: MelLoss) -> Validation:
    """Returns how well the model, in eval mode, gives back the clips [C, T] at a bandwidth (kbps).

    mel: of the model's rate, device and dtype.
    Raises ValueError where there are no clips, and for one that is shorter than the mel loss's widest window.
    """
    if not clips:
        raise ValueError("clips is empty; at least one recording is needed.")
    mels, ratios, scores = [], [], []
    use = CodebookUse(model.config.codebook_size)
    for clip in clips:
        x = clip.to(model.device, model.dtype)
        (encoded,) = model.encode_batch([x], bandwidth)
        (y,) = model.decode_batch([encoded])
        mels.append(float(mel(x[None], y[None])))
        ratios.append(si_snr(x, y))
        if (score := stoi(x, y, model.config.sampling_rate)) is not None:
            scores.append(score)
        use.add(encoded)
    mean_stoi = math.fsum(scores) / len(scores) if scores else None
    return Validation(math.fsum(mels) / len(mels), math.fsum(ratios) / len(ratios), mean_stoi, tuple(use.shares()))


def si_snr(x: Tensor, y: Tensor) -> float:
    """Returns `quality.metrics.si_snr` of y against the recording x, both [C, T], in dB: the mean over channels.

    Within LARGEST_RATIO, and 0 of a silent recording, so that a mean over clips is finite.
    """
    ratios = metrics.si_snr(x, y).nan_to_num(nan=0.0, posinf=LARGEST_RATIO, neginf=-LARGEST_RATIO)
    return float(ratios.clamp(-LARGEST_RATIO, LARGEST_RATIO).mean())


def stoi(x: Tensor, y: Tensor, sampling_rate: int) -> float | None:
    """Returns `quality.metrics.stoi` of y against the recording x, both [C, T], on the mean of channels.

    None without pystoi, and for a clip that has too little sound for it.
    """
    if not has_stoi():
        return None
    score = float(metrics.stoi(x.mean(0), y.mean(0), sampling_rate))
    return None if math.isnan(score) else score


def has_stoi() -> bool:
    """Tells whether pystoi is installed: the extra `train`."""
    return importlib.util.find_spec("pystoi") is not None
