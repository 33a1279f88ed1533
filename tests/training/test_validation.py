"""What a validation says of a model: distances against formulas, and the share of entries in use."""

import pytest
import torch

from encodec_fast.training import validation
from encodec_fast.training.losses import MelLoss
from support.models import audio_like, pair, small_config


def test_si_snr_is_its_formula_whatever_the_scale_and_the_mean():
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 1, 4000, generator=generator, dtype=torch.float64)
    x, noise = x - x.mean(), noise - noise.mean()
    noise -= (noise * x).sum() / x.square().sum() * x
    noise *= x.norm() / noise.norm() / 10
    assert validation.si_snr(x, 3 * (x + noise) + 0.7) == pytest.approx(20.0)


def test_si_snr_of_silence_is_finite():
    silence = torch.zeros(1, 100)
    assert validation.si_snr(silence, silence) == 0


def test_stoi_is_one_for_the_recording_itself_and_falls_with_noise():
    pytest.importorskip("pystoi", reason="the extra `train`")
    x = audio_like(1, 1, 20_000, 0)[0]
    noisy = x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert validation.stoi(x, x, 10_000) == pytest.approx(1) and validation.stoi(x, noisy, 10_000) < 0.8


def test_a_clip_with_too_little_sound_has_no_stoi():
    pytest.importorskip("pystoi", reason="the extra `train`")
    x = audio_like(1, 1, 1000, 0)[0]
    assert validation.stoi(x, x, 10_000) is None


def test_without_pystoi_there_is_no_stoi(monkeypatch):
    monkeypatch.setattr(validation.importlib.util, "find_spec", lambda _: None)
    x = audio_like(1, 1, 20_000, 0)[0]
    assert validation.stoi(x, x, 10_000) is None


def test_a_validation_is_that_of_transformers_audio_and_codes():
    stock, ours = pair(small_config())
    clips, mel = [audio_like(1, 1, 3000 + index, index)[0] for index in range(2)], MelLoss(2400, (5, 6))
    found = validation.validate(ours, clips, 4.8, mel)
    codes, mels, ratios = [], [], []
    for clip in clips:
        with torch.no_grad():
            output = stock(clip[None], bandwidth=4.8)
        audio = output.audio_values[..., : clip.shape[-1]]
        mels.append(float(mel(clip[None], audio)))
        ratios.append(validation.si_snr(clip, audio[0]))
        codes.append(output.audio_codes[0, 0])
    use = [len(level.unique()) / 16 for level in torch.cat(codes, dim=1)]
    assert found.use == pytest.approx(use) and len(use) > 1 and min(use) > 0.3
    assert found.mel == pytest.approx(sum(mels) / 2, rel=1e-4) and found.si_snr == pytest.approx(sum(ratios) / 2, abs=1e-2)
