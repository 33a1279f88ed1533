"""A codec on frames in EnCodec's layers: transformers computes what the codec's own formulas give."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from transformers import EncodecConfig

from encodec_fast.frame_codec import embed_frame_codec

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
