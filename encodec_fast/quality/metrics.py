"""Measures of decoded audio against its recording, each a function without a model.

reference and decoded are of one shape [..., T], full scale +-1.0, on any device; each returns float64 [...], a value per signal.
It is NaN where the measure is undefined, as for digital silence. Higher is better, but for the mel distance.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

# (window, bands) of the mel distance: those of DAC (Kumar et al. 2023, arXiv 2306.06546, section 3.5)
MEL_SCALES = ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))
# Magnitudes below are one floor, which digital silence has too
MEL_FLOOR = 1e-5
# A centred signal of less energy than this share is rounding: a constant offset, which is silence
_ROUNDING = 1e-20
# Wideband PESQ is defined at this rate only
PESQ_RATE = 16_000
# Of packages that measure; without them the measures are left out
PACKAGES = {"stoi": "pystoi", "pesq": "pesq"}


def si_snr(reference: Tensor, decoded: Tensor) -> Tensor:
    """Returns the scale-invariant signal-to-noise ratio in dB (Luo & Mesgarani 2018, arXiv 1711.00541).

    With x and y, the reference and the decoded audio less their means:

        s = <y, x> x / |x|^2
        si_snr = 10 log10(|s|^2 / |y - s|^2)

    Infinite where nothing but the scale differs; minus infinity where the decoded audio alone is silent. Raises ValueError for shapes
    that differ, as all measures here do.
    """
    _check_shapes(reference, decoded)
    x, y = reference.double(), decoded.double()
    silent_x, silent_y = _silent(x), _silent(y)
    x, y = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    scaled = x * ((y * x).sum(-1, keepdim=True) / x.square().sum(-1, keepdim=True))
    ratio = 10 * torch.log10(scaled.square().sum(-1) / (y - scaled).square().sum(-1))
    return ratio.masked_fill(silent_y, -torch.inf).masked_fill(silent_x, torch.nan)


def mel_distance(reference: Tensor, decoded: Tensor, sampling_rate: int) -> Tensor:
    """Returns the multi-scale log-mel distance of DAC (arXiv 2306.06546), 0 for equal signals; lower is better.

        sum over MEL_SCALES of mean |log10 M(x) - log10 M(y)|

    M is the mel spectrogram of magnitudes, not below MEL_FLOOR: Hann windows a quarter apart, bands of Slaney's scale and area.
    It is the field's usual measure of spectra. `training.losses.MelLoss` weighs by loudness, and is what training minimizes.
    Signals shorter than a window count with zeros behind them.
    """
    _check_shapes(reference, decoded)
    signals = torch.stack([reference, decoded]).float()
    shape = signals.shape[1:-1]
    signals = signals.flatten(0, -2)
    total = torch.zeros(shape, dtype=torch.float64, device=signals.device)
    for width, mels in MEL_SCALES:
        window = torch.hann_window(width, device=signals.device)
        # half a window on each side as in DAC's, but of zeros: a reflection needs signals longer than that
        spectrum = torch.stft(signals, width, width // 4, window=window, pad_mode="constant", return_complex=True).abs()
        bands = _mel_bands(sampling_rate, width, mels).to(signals.device)
        logarithm = (bands @ spectrum).clamp(min=MEL_FLOOR).log10().unflatten(0, (2, *shape))
        total += (logarithm[0] - logarithm[1]).abs().mean((-2, -1))
    return total


def stoi(reference: Tensor, decoded: Tensor, sampling_rate: int) -> Tensor:
    """Returns the short-time objective intelligibility of speech, up to 1 (Taal et al. 2011), by the package pystoi.

    NaN for less than 0.4 s of sound and for silence. Raises ModuleNotFoundError that names the extra where pystoi is missing.
    """
    _check_shapes(reference, decoded)
    _require("stoi")
    from pystoi import stoi as measured

    def one(x: np.ndarray, y: np.ndarray) -> float:
        with warnings.catch_warnings():
            # with 1e-5 for an answer: too little is left without the pauses
            warnings.filterwarnings("error", "Not enough STFT frames", RuntimeWarning)
            try:
                return float(measured(x, y, sampling_rate))
            except RuntimeWarning:
                return float("nan")

    # below, pystoi fails before it can say so: 30 of its frames, 12.8 ms apart, and one more
    return _each(one, reference, decoded, math.ceil(0.4 * sampling_rate))


def pesq(reference: Tensor, decoded: Tensor, sampling_rate: int) -> Tensor:
    """Returns the wideband PESQ of speech, 1 ... 4.64 (ITU-T P.862.2), by the package pesq, both resampled to 16 kHz by soxr.

    NaN for less than 0.25 s, for silence, and where it finds no utterance. Raises ModuleNotFoundError that names the extra where
    pesq is missing.
    """
    _check_shapes(reference, decoded)
    _require("pesq")
    from pesq import BufferTooShortError, NoUtterancesError
    from pesq import pesq as measured

    from encodec_fast.audio import resample

    def one(x: np.ndarray, y: np.ndarray) -> float:
        x, y = (resample(each[None].astype(np.float32), sampling_rate, PESQ_RATE)[0] for each in (x, y))
        try:
            return float(measured(PESQ_RATE, x, y, "wb"))
        except (BufferTooShortError, NoUtterancesError):
            return float("nan")

    return _each(one, reference, decoded, math.ceil(0.25 * sampling_rate))


def missing_packages() -> dict[str, str]:
    """Returns, by measure, what to install for those that can't run here."""
    return {name: _remedy(name) for name, package in PACKAGES.items() if importlib.util.find_spec(package) is None}


def _remedy(name: str) -> str:
    return f"the package {PACKAGES[name]} is not installed: pip install 'encodec-fast[quality]'"


def _require(name: str) -> None:
    if importlib.util.find_spec(PACKAGES[name]) is None:
        raise ModuleNotFoundError(f"{name}: {_remedy(name)}", name=PACKAGES[name])


def _check_shapes(reference: Tensor, decoded: Tensor) -> None:
    if reference.shape != decoded.shape or reference.dim() == 0 or reference.shape[-1] == 0:
        raise ValueError(
            f"reference has shape {list(reference.shape)} and decoded {list(decoded.shape)}; both must have one [..., T], T > 0."
        )


def _silent(signal: Tensor) -> Tensor:
    """Tells of each signal [..., T], float64, whether it is constant, up to rounding."""
    centred = signal - signal.mean(-1, keepdim=True)
    return centred.square().sum(-1) <= _ROUNDING * signal.square().sum(-1)


def _each(one: Callable[[np.ndarray, np.ndarray], float], reference: Tensor, decoded: Tensor, least: int) -> Tensor:
    """Returns one(x, y) of each pair of signals, float64; NaN without a call for a silent reference and below `least` samples."""
    shape = reference.shape[:-1]
    x, y = (
        each.detach().cpu().double().flatten(0, -2) if each.dim() > 1 else each.detach().cpu().double()[None]
        for each in (reference, decoded)
    )
    silent = _silent(x).tolist()
    values = [float("nan") if quiet or len(a) < least else one(a, b) for quiet, a, b in zip(silent, x.numpy(), y.numpy())]
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


@functools.lru_cache(maxsize=32)
def _mel_bands(sampling_rate: int, width: int, mels: int) -> Tensor:
    """Returns the weight of each bin of an STFT in each band, [mels, width // 2 + 1]."""
    from transformers.audio_utils import mel_filter_bank

    with warnings.catch_warnings():
        # of bands between two bins, which are empty in both signals
        warnings.simplefilter("ignore", UserWarning)
        bands = mel_filter_bank(width // 2 + 1, mels, 0.0, sampling_rate / 2, sampling_rate, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(bands.T.astype(np.float32))
