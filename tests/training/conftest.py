"""A small model to train, and the package of EnCodec's authors, whose modules ours are held to."""

import copy
import importlib
import importlib.util
import sys
import types
import warnings

import pytest
import torch

from support.models import pair, small_config


@pytest.fixture(scope="module")
def fitted():
    """Our small model, its codebooks fitted without statistics."""
    return pair(small_config())[1]


@pytest.fixture
def model(fitted):
    """A copy of it, to be changed."""
    return copy.deepcopy(fitted)


class _Spectrogram(torch.nn.Module):
    """torchaudio's transform as `encodec.msstftd` calls it, where torchaudio is not installed."""

    def __init__(self, n_fft, hop_length, win_length, window_fn, normalized, center, pad_mode, power):
        super().__init__()
        assert normalized and not center and power is None
        self.n_fft, self.hop_length, self.win_length = n_fft, hop_length, win_length
        self.register_buffer("window", window_fn(win_length))

    def forward(self, x):
        settings = dict(window=self.window, center=False, onesided=True, return_complex=True)
        spectrum = torch.stft(x.flatten(0, -2), self.n_fft, self.hop_length, self.win_length, **settings)
        return spectrum.view(*x.shape[:-1], *spectrum.shape[-2:]) / self.window.square().sum().sqrt()


@pytest.fixture
def authors(monkeypatch):
    """Imports a module of facebookresearch/encodec 0.1.1 by name."""
    missing = [name for name in ("encodec", "einops") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed: pip install --no-deps encodec einops")
    if importlib.util.find_spec("torchaudio") is None:
        stand_in = types.ModuleType("torchaudio")
        stand_in.transforms = types.SimpleNamespace(Spectrogram=_Spectrogram)
        monkeypatch.setitem(sys.modules, "torchaudio", stand_in)
        # one that another test imported has no transforms
        monkeypatch.delitem(sys.modules, "encodec.msstftd", raising=False)
    with warnings.catch_warnings():
        # of torch's old weight norm
        warnings.simplefilter("ignore", FutureWarning)
        yield lambda name: importlib.import_module(f"encodec.{name}")
