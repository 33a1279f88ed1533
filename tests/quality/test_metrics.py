"""Each measure against its formula in float64 or the package that defines it; what silence and short clips give."""

import math
import sys
import types

import numpy as np
import pytest
import torch

from encodec_fast.audio import resample
from encodec_fast.quality import metrics
from encodec_fast.quality.metrics import MEL_FLOOR, MEL_SCALES, mel_distance, missing_packages, pesq, si_snr, stoi
from support.models import audio_like

RATE = 8000


@pytest.fixture(scope="module")
def pair_of_signals():
    """A second of [2, 3, T] and the same with noise, another noise for each signal."""
    clean = audio_like(2, 3, RATE, 1)
    return clean, clean + 0.03 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))


def test_si_snr_is_its_formula_for_every_signal_of_a_batch(pair_of_signals):
    clean, noisy = pair_of_signals
    found = si_snr(clean, noisy)
    assert found.shape == (2, 3) and found.dtype == torch.float64
    for index in np.ndindex(2, 3):
        x, y = (each[index].double().numpy() for each in pair_of_signals)
        x, y = x - x.mean(), y - y.mean()
        part = (x @ y) / (x @ x) * x
        assert float(found[index]) == pytest.approx(10 * math.log10((part @ part) / ((y - part) @ (y - part))), abs=1e-9)


def test_si_snr_is_the_same_at_any_scale_and_offset(pair_of_signals):
    clean, noisy = (each.double() for each in pair_of_signals)
    assert torch.allclose(si_snr(clean, -3 * noisy + 0.5), si_snr(clean, noisy), rtol=0, atol=1e-9)


def test_si_snr_of_equal_audio_is_infinite(pair_of_signals):
    clean, _ = pair_of_signals
    assert (si_snr(clean, clean) == math.inf).all()


@pytest.mark.parametrize("level", [0.0, 0.1])
def test_si_snr_of_a_silent_recording_is_undefined_and_of_silent_audio_minus_infinity(pair_of_signals, level):
    # in float64 the mean of a constant is not always that constant
    clean = pair_of_signals[0].double()
    silence = torch.full_like(clean, level)
    assert si_snr(silence, clean).isnan().all() and si_snr(silence, silence).isnan().all()
    assert (si_snr(clean, silence) == -math.inf).all()


def test_mel_distance_is_zero_for_equal_audio_and_for_silence(pair_of_signals):
    clean, noisy = pair_of_signals
    assert (mel_distance(clean, clean, RATE) == 0).all()
    assert (mel_distance(torch.zeros(1, 500), torch.zeros(1, 500), RATE) == 0).all()
    assert (mel_distance(clean, noisy, RATE) > 0.1).all()


def _slaney_edges(mels):
    """Hz of `mels` + 2 points, equidistant on Slaney's scale: linear below 1 kHz, then 27 steps for a factor of 6.4."""
    top = 15 + math.log(RATE / 2 / 1000) * 27 / math.log(6.4) if RATE / 2 > 1000 else RATE / 2 * 3 / 200
    points = np.linspace(0, top, mels + 2)
    return np.where(points < 15, points * 200 / 3, 1000 * np.exp((points - 15) * math.log(6.4) / 27))


def _log_mel(signal, width, mels):
    padded = np.pad(signal, width // 2)
    window = np.sin(math.pi * np.arange(width) / width) ** 2
    frames = np.stack([padded[start : start + width] * window for start in range(0, len(padded) - width + 1, width // 4)])
    bins, edges = np.arange(width // 2 + 1) * RATE / width, _slaney_edges(mels)
    low, centre, high = (edges[offset : offset + mels, None] for offset in range(3))
    bands = np.maximum(0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre))) * 2 / (high - low)
    return np.log10(np.maximum(np.abs(np.fft.rfft(frames)) @ bands.T, MEL_FLOOR))


def test_mel_distance_is_its_formula_in_float64(pair_of_signals):
    x, y = (each[0, 0].double().numpy() for each in pair_of_signals)
    expected = sum(np.abs(_log_mel(x, *scale) - _log_mel(y, *scale)).mean() for scale in MEL_SCALES)
    # measured: 1e-7
    assert float(mel_distance(*pair_of_signals, RATE)[0, 0]) == pytest.approx(expected, rel=1e-5)


def test_mel_distance_takes_clips_shorter_than_its_windows():
    assert mel_distance(torch.ones(1, 1), torch.zeros(1, 1), RATE).isfinite().all()


def test_stoi_is_that_of_pystoi(pair_of_signals):
    from pystoi import stoi as theirs

    clean, noisy = pair_of_signals
    found = stoi(clean, noisy, RATE)
    assert found.shape == (2, 3) and len(set(found.flatten().tolist())) == 6
    for index in np.ndindex(2, 3):
        assert float(found[index]) == theirs(clean[index].double().numpy(), noisy[index].double().numpy(), RATE)


@pytest.mark.parametrize("samples", [1, 100, 3000, 3200])
def test_stoi_of_too_short_a_clip_is_undefined(samples):
    clip = audio_like(1, 1, samples, 3)
    assert stoi(clip, clip, RATE).isnan().all()


def test_stoi_of_silence_is_undefined(pair_of_signals):
    clean, _ = pair_of_signals
    assert stoi(torch.zeros_like(clean), clean, RATE).isnan().all()


class NoUtterances(RuntimeError):
    pass


@pytest.fixture
def stand_in(monkeypatch):
    """A package pesq that notes what it is given, and finds no utterance in what is faint."""
    calls = []

    def measured(rate, reference, decoded, mode):
        calls.append((rate, reference, decoded, mode))
        if np.abs(reference).max() < 1e-3:
            raise NoUtterances
        return 4.0

    module = types.ModuleType("pesq")
    module.pesq, module.NoUtterancesError, module.BufferTooShortError = measured, NoUtterances, NoUtterances
    module.__spec__ = types.SimpleNamespace(name="pesq")
    monkeypatch.setitem(sys.modules, "pesq", module)
    return calls


def test_pesq_is_given_wideband_audio_at_16_khz(pair_of_signals, stand_in):
    clean, noisy = pair_of_signals
    assert pesq(clean, noisy, RATE).tolist() == [[4.0] * 3] * 2
    rate, reference, decoded, mode = stand_in[1]
    assert (rate, mode) == (16_000, "wb")
    assert np.array_equal(reference, resample(clean[0, 1:2].numpy(), RATE, 16_000)[0])
    assert np.array_equal(decoded, resample(noisy[0, 1:2].numpy(), RATE, 16_000)[0])


def test_pesq_is_undefined_where_it_finds_nothing_to_compare(pair_of_signals, stand_in):
    clean, _ = pair_of_signals
    assert pesq(1e-4 * clean, clean, RATE).isnan().all() and len(stand_in) == 6
    assert pesq(torch.zeros_like(clean), clean, RATE).isnan().all() and pesq(clean[..., :1999], clean[..., :1999], RATE).isnan().all()
    assert len(stand_in) == 6


def test_pesq_of_the_real_package_is_higher_the_less_noise(pair_of_signals):
    pytest.importorskip("pesq", reason="pesq is not installed: pip install 'encodec-fast[quality]'")
    clean, noisy = (each[0, 0] for each in pair_of_signals)
    best, good, bad = (float(pesq(clean, each, RATE)) for each in (clean, clean + 0.1 * (noisy - clean), noisy))
    assert 4.6 < best < 4.7 and best > good > bad > 1


@pytest.mark.parametrize("measure", [stoi, pesq])
def test_a_missing_package_names_the_extra(monkeypatch, pair_of_signals, measure):
    monkeypatch.setattr(metrics, "PACKAGES", {"stoi": "no_such_package", "pesq": "no_such_package"})
    with pytest.raises(ModuleNotFoundError, match=rf"{measure.__name__}: the package no_such_package .* 'encodec-fast\[quality\]'"):
        measure(*pair_of_signals, RATE)
    assert set(missing_packages()) == {"stoi", "pesq"}


@pytest.mark.parametrize("measure", [lambda x, y: si_snr(x, y), lambda x, y: mel_distance(x, y, RATE), lambda x, y: stoi(x, y, RATE)])
def test_shapes_that_differ_are_refused(measure):
    with pytest.raises(ValueError, match=r"reference has shape \[1, 9\] and decoded \[1, 8\]"):
        measure(torch.zeros(1, 9), torch.zeros(1, 8))
