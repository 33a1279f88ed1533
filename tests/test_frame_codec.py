"""A codec on frames in EnCodec's layers: transformers computes what the codec's own formulas give."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from transformers import EncodecConfig

from encodec_fast.frame_codec import embed_frame_codec
from support.models import config_48khz

UNITS, VALUES, LEVELS, ENTRIES = 192, 16, 4, 64
# Weights are kept in float32, as length and direction: 2^-24 of each, times sums of up to 640 terms of size 1.
TOLERANCE = 1e-5


def drawn_tensors() -> dict[str, torch.Tensor]:
    """A frame codec of random numbers, for fewer filters than the real model has."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int, scale: float) -> torch.Tensor:
        return scale * torch.randn(*shape, generator=generator)

    return {
        "encoder.units": drawn(UNITS, 40, 16, scale=0.2),
        "encoder.units_bias": drawn(UNITS, scale=1),
        "encoder.values": drawn(VALUES, UNITS, 7, scale=0.05),
        "encoder.values_bias": drawn(VALUES, scale=1),
        "decoder.units": drawn(UNITS, VALUES, 7, scale=0.1),
        "decoder.units_bias": drawn(UNITS, scale=1),
        "decoder.samples": drawn(UNITS, 40, 16, scale=0.0005),
        "codebooks": (80 * drawn(LEVELS, ENTRIES, VALUES, scale=0.4)).clamp(-127, 127).to(torch.int8),
        "codebooks_scale": drawn(LEVELS, ENTRIES, scale=0.001).abs() + 0.01,
    }


@pytest.fixture(scope="module")
def tensors():
    return drawn_tensors()


@pytest.fixture(scope="module")
def stereo():
    """(tensors, model) of the 48 kHz architecture. Its units are small and in pairs, as the norms want them."""
    tensors = drawn_tensors()
    generator = torch.Generator().manual_seed(3)
    for name, scale in (("encoder.units", 0.0005), ("decoder.samples", 30)):
        tensors[name] = scale * torch.randn(UNITS - 2, 80, 16, generator=generator)
    for name in ("encoder.units_bias", "decoder.units_bias", "decoder.units"):
        tensors[name] = 0.001 * tensors[name][: UNITS - 2]
    for name in ("encoder.units", "encoder.units_bias", "decoder.units", "decoder.units_bias"):
        tensors[name][1::2] = -tensors[name][::2]
    tensors["encoder.values"] = 30 * tensors["encoder.values"][: VALUES - 2, : UNITS - 2]
    tensors["encoder.values_bias"] = tensors["encoder.values_bias"][: VALUES - 2]
    tensors["volume"] = torch.tensor(1.25)
    config = config_48khz(num_filters=24, hidden_size=VALUES, codebook_size=ENTRIES, target_bandwidths=[3.6])
    model = transformers.EncodecModel(config).eval()
    embed_frame_codec(model, tensors)
    return tensors, model.double()


@pytest.mark.parametrize("gain", [1.0, 0.01])
def test_the_stereo_encoder_gives_the_values_of_the_frames_whatever_its_norms_divide_by(stereo, gain):
    tensors, model = stereo
    audio = gain * torch.randn(1, 2, 320 * 20, generator=torch.Generator().manual_seed(1)).double()
    samples = audio.transpose(1, 2).reshape(1, -1, 80).transpose(1, 2)
    units = F.elu(F.conv1d(samples, tensors["encoder.units"].double(), tensors["encoder.units_bias"].double(), stride=8))
    expected = F.conv1d(units, tensors["encoder.values"].double(), tensors["encoder.values_bias"].double())
    with torch.no_grad():
        # with half a frame before it, the first frame of units is the second here, and values see three on each side
        values = model.encoder(F.pad(audio, (160, 160)))[:, :-2, 4:][..., : expected.shape[-1]]
    assert expected.std() > 0.3
    # norms take the mean of all values off
    torch.testing.assert_close(values - values.mean(), expected - expected.mean(), rtol=0, atol=5e-3)


def test_decoded_stereo_has_the_samples_of_the_units_at_its_own_volume(stereo):
    tensors, model = stereo
    values = torch.randn(1, VALUES, 20, generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        decoded = model.decoder(values)[0]
    units = F.elu(
        F.conv1d(F.pad(values, (3, 3), mode="reflect"), tensors["decoder.units"].double(), tensors["decoder.units_bias"].double())
    )
    samples = F.conv_transpose1d(units, tensors["decoder.samples"].double(), stride=8)[..., 4:-4]
    assert 0.3 < samples.std() < 3
    expected = samples.transpose(1, 2).reshape(-1, 2).T
    expected = tensors["volume"] * (expected - expected.mean()) / expected.std(correction=0)
    # peaks of four times the volume are bent by 0.1 %
    torch.testing.assert_close(decoded, expected, rtol=2e-3, atol=2e-3)


@pytest.fixture(scope="module")
def model(tensors):
    # four levels
    config = EncodecConfig(num_filters=12, hidden_size=VALUES, codebook_size=ENTRIES, target_bandwidths=[1.8])
    model = transformers.EncodecModel(config).eval()
    embed_frame_codec(model, tensors)
    return model.double()


@pytest.fixture(scope="module")
def audio():
    # quiet, so that ELU bends nothing
    return 0.003 * torch.randn(1, 1, 320 * 20, generator=torch.Generator().manual_seed(1)).double()


def test_the_encoder_gives_the_values_of_the_frames(model, tensors, audio):
    with torch.no_grad():
        values = model.encoder(audio)
    samples = audio.view(1, -1, 40).transpose(1, 2)
    units = F.elu(F.conv1d(samples, tensors["encoder.units"].double(), tensors["encoder.units_bias"].double(), stride=8))
    expected = F.conv1d(units, tensors["encoder.values"].double(), tensors["encoder.values_bias"].double())
    # seven frames of units, the first of which has a frame before it
    torch.testing.assert_close(values[..., 7:], expected, rtol=0, atol=TOLERANCE)


def test_the_decoder_gives_the_samples_of_the_units(model, tensors):
    values = torch.randn(1, VALUES, 20, generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        decoded = model.decoder(values)
    units = F.elu(F.conv1d(values, tensors["decoder.units"].double(), tensors["decoder.units_bias"].double()))
    samples = F.conv_transpose1d(units, tensors["decoder.samples"].double(), stride=8)[..., 8:-8]
    assert 0.001 < samples.abs().max() < 0.1
    torch.testing.assert_close(decoded[0, 0, 7 * 320 :], samples.transpose(1, 2).flatten(), rtol=0, atol=TOLERANCE)


def test_the_codebooks_are_the_integers_times_their_scales(model, tensors):
    expected = tensors["codebooks"].float() * tensors["codebooks_scale"][..., None]
    assert torch.equal(torch.stack([layer.codebook.embed for layer in model.quantizer.layers]), expected.double())


def test_samples_beyond_full_scale_are_bent_and_stay_finite(model, audio):
    with torch.no_grad():
        moderate, loud = (model.encoder(gain * audio) for gain in (100.0, 1e5))
    assert loud.isfinite().all()
    assert moderate.abs().max() < loud.abs().max() < 900 * moderate.abs().max()


def test_filters_of_zero_have_gradients_that_are_numbers(model, audio):
    model.zero_grad()
    model.decoder(model.encoder(audio)).square().sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())
