"""Losses equal their formulas, written out with loops in float64; gradients equal finite differences."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from encodec_fast.training import losses
from support.models import audio_like

EXPONENTS = (5, 6)


def audio(seed, channels=2, samples=150, dtype=torch.float64):
    return audio_like(2, channels, samples, seed).to(dtype)


def maps(seed, layers=3):
    """Features or logits of two discriminators, of different shapes."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(2, 3, 4 + k, 5 + layer, generator=generator).double() for layer in range(layers)] for k in range(2)]


def logits(seed):
    return [layers[0] for layers in maps(seed)]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def items(tensor):
    return tensor.flatten().tolist()


def test_the_time_loss_is_its_formula():
    x, y = audio(0), audio(1)
    expected = mean(abs(a - b) for a, b in zip(items(x), items(y)))
    assert losses.time_loss(x, y).item() == pytest.approx(expected, rel=1e-12)


def test_the_generators_loss_is_its_formula():
    expected = mean(mean(max(0.0, 1 - value) for value in items(each)) for each in logits(0))
    assert losses.generator_loss(logits(0)).item() == pytest.approx(expected, rel=1e-12)


def test_the_discriminators_loss_is_its_formula():
    real, fake = logits(0), logits(1)
    expected = mean(
        mean(max(0.0, 1 - value) for value in items(x)) + mean(max(0.0, 1 + value) for value in items(y)) for x, y in zip(real, fake)
    )
    assert losses.discriminator_loss(real, fake).item() == pytest.approx(expected, rel=1e-12)


def relative(x, y):
    return mean(abs(a - b) for a, b in zip(items(x), items(y))) / mean(abs(a) for a in items(x))


def test_the_feature_loss_is_its_formula():
    real, fake = maps(0), maps(1)
    expected = mean(relative(x, y) for own, other in zip(real, fake) for x, y in zip(own, other))
    assert losses.feature_loss(real, fake).item() == pytest.approx(expected, rel=1e-12)


def test_a_louder_layer_counts_no_more():
    louder = [[100 * layers[0], *layers[1:]] for layers in maps(0)], [[100 * layers[0], *layers[1:]] for layers in maps(1)]
    torch.testing.assert_close(losses.feature_loss(*louder), losses.feature_loss(maps(0), maps(1)))


def test_features_of_the_recording_get_no_gradient():
    real, fake = ([[layer.requires_grad_() for layer in layers] for layers in maps(seed)] for seed in (0, 1))
    losses.feature_loss(real, fake).backward()
    assert [layer.grad is None for layers in real for layer in layers] == [True] * 6
    assert all(layer.grad.abs().sum() > 0 for layers in fake for layer in layers)


def test_features_of_zeros_give_no_nan():
    zeros = [[torch.zeros(1, 2, 3, 4)]]
    assert losses.feature_loss(zeros, zeros) == 0


def test_the_commitment_loss_is_its_formula():
    residuals = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)).double()
    expected = sum(mean(value**2 for value in items(level)) for level in residuals)
    assert losses.commitment_loss(residuals).item() == pytest.approx(expected, rel=1e-12)


def spectrum(signal, exponent, rate, mels):
    """Mel bands [mels, frames] of one channel, by the definition of the DFT and of each triangle."""
    width = 2**exponent
    hop = width // 4
    side = (width - hop) // 2
    padded = np.pad(signal, side, mode="reflect")
    frames = math.ceil(len(signal) / hop)
    padded = np.pad(padded, (0, (frames - 1) * hop + width - len(padded)))
    window = np.array([0.5 - 0.5 * math.cos(2 * math.pi * n / width) for n in range(width)])
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = [700 * (10 ** (top * m / (mels + 1) / 2595) - 1) for m in range(mels + 2)]
    found = np.zeros((mels, frames))
    for frame in range(frames):
        piece = window * padded[frame * hop : frame * hop + width]
        for bin_ in range(width // 2 + 1):
            turns = np.exp(-2j * math.pi * bin_ * np.arange(width) / width)
            magnitude = abs((piece * turns).sum()) / math.sqrt((window**2).sum())
            frequency = bin_ * rate / width
            for m in range(mels):
                low, centre, high = edges[m : m + 3]
                found[m, frame] += magnitude * max(0.0, min((frequency - low) / (centre - low), (high - frequency) / (high - centre)))
    return found


def mel_loss(rate=2400, exponents=EXPONENTS, mels=24, alpha=0.5):
    return losses.MelLoss(rate, exponents, mels, alpha, torch.float64)


def test_the_mel_loss_is_its_formula():
    # with bands that are empty
    assert not losses.mel_bands(2400, 32, 24).any(1).all()
    x, y = audio(0, samples=83), audio(1, samples=83)
    expected = 0.0
    for exponent in EXPONENTS:
        for b in range(2):
            for c in range(2):
                difference = spectrum(x[b, c].numpy(), exponent, 2400, 24) - spectrum(y[b, c].numpy(), exponent, 2400, 24)
                expected += abs(difference).mean() + 0.5 * math.sqrt((difference**2).mean())
    assert mel_loss()(x, y).item() == pytest.approx(expected / (len(EXPONENTS) * 4), rel=1e-12)


def test_the_bands_of_short_windows_are_as_empty_as_the_docstring_says():
    assert int((losses.mel_bands(24_000, 32, 64).amax(1) == 0).sum()) == 36
    assert "36 of 64 at 32 samples" in losses.MelLoss.__doc__


def test_the_mel_loss_of_a_batch_is_the_mean_of_its_clips():
    x, y = audio(0), audio(1)
    alone = torch.stack([mel_loss()(x[b : b + 1], y[b : b + 1]) for b in range(2)])
    torch.testing.assert_close(mel_loss()(x, y), alone.mean())


def test_the_gradient_at_equal_and_at_silent_audio_is_zero():
    for x in (audio(0), torch.zeros(1, 1, 150).double()):
        y = x.clone().requires_grad_()
        mel_loss()(x, y).backward()
        assert torch.equal(y.grad, torch.zeros_like(y))


GRADIENTS = {
    "time": (lambda y: losses.time_loss(audio(0, 1, 40), y), audio(1, 1, 40)),
    "mel": (lambda y: mel_loss()(audio(0, 1, 60), y), audio(1, 1, 60)),
    "generator": (lambda y: losses.generator_loss([y]), logits(0)[0]),
    "discriminator": (lambda y: losses.discriminator_loss([y], [0.5 * y]), logits(0)[0]),
    "features": (lambda y: losses.feature_loss(maps(0, 1), [[y], [y[..., :1, :].expand(-1, -1, 5, -1)]]), maps(1)[0][0]),
    "commitment": (losses.commitment_loss, torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)).double()),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_equal_finite_differences(name):
    loss, y = GRADIENTS[name]
    assert gradcheck(loss, y.clone().requires_grad_())


def test_audio_shorter_than_the_widest_window_needs_is_refused():
    mel_loss()(audio(0, samples=25), audio(1, samples=25))
    with pytest.raises(ValueError, match=r"24 samples; a window of 64 needs 25"):
        mel_loss()(audio(0, samples=24), audio(1, samples=24))


def test_audio_of_other_lengths_is_refused():
    with pytest.raises(ValueError, match=r"x has shape \[2, 2, 150\] and y \[2, 2, 149\]"):
        mel_loss()(audio(0), audio(1)[..., :-1])
