"""The plan states the model's geometry and cost correctly."""

from __future__ import annotations

import pytest
import torch

from encodec_fast.plan import LSTM, Conv, ResidualBlock, Upsample, fused_bytes, multiply_adds, not_streamable, step_bytes
from encodec_fast.plan.reader import read_network, read_plan, read_quantizer
from encodec_fast.plan.weights import PlanCache
from support.models import config_24khz, config_48khz, pair, reference_model, small_config


@pytest.fixture(scope="module")
def plan_24khz():
    import encodec_fast

    return encodec_fast.EncodecModel(config_24khz()).plan()


def test_the_24khz_encoder_has_the_stages_of_the_paper(plan_24khz):
    kinds = [type(stage) for stage in plan_24khz.encoder.stages]
    assert kinds == [Conv, *[ResidualBlock, Conv] * 4, LSTM, Conv]
    assert [type(stage) for stage in plan_24khz.decoder.stages] == [Conv, LSTM, *[Upsample, ResidualBlock] * 4, Conv]
    assert plan_24khz.quantizer.codebooks.shape == (32, 1024, 128)


def test_multiply_adds_of_the_24khz_model_are_those_counted_by_hand(plan_24khz):
    # 1.18 G in convolutions and 0.32 G in the LSTM per second of audio
    convs, lstm = 0, 0
    length = 24_000
    for stage in plan_24khz.encoder.stages:
        work = multiply_adds(stage, length)
        convs, lstm = (convs, lstm + work) if isinstance(stage, LSTM) else (convs + work, lstm)
        length = stage.output_length(length)
    assert (convs, lstm) == (pytest.approx(1.175e9, rel=0.01), 75 * 2 * 2 * 4 * 512 * 512)


def test_bytes_of_a_fused_first_convolution(plan_24khz):
    conv = plan_24khz.encoder.stages[0]
    assert fused_bytes(conv, 1000) == 4 * (1000 + 32 * 1000 + 32 * 7)
    assert step_bytes(plan_24khz.encoder.stages) == 32 * 4


@pytest.mark.parametrize("samples", [1, 7, 319, 320, 321, 997])
@pytest.mark.parametrize(
    "config", [small_config(), small_config(trim_right_ratio=0.4, upsampling_ratios=[3, 5]), config_48khz(num_filters=2)]
)
def test_lengths_are_those_that_hf_produces(config, samples):
    import encodec_fast

    model = encodec_fast.EncodecModel(config).eval()
    plan = model.plan()
    with torch.no_grad(), encodec_fast.use_backend("reference"):
        encoded = model.encoder(torch.zeros(2, config.audio_channels, samples))
        assert plan.encoder.output_length(samples) == encoded.shape[-1]
        assert plan.decoder.output_length(encoded.shape[-1]) == model.decoder(encoded).shape[-1]


def test_only_causal_weight_norm_models_stream():
    streams = {
        name: not_streamable(read_network(reference_model(small_config(**changes)).encoder).stages)
        for name, changes in {
            "plain": {},
            "trimmed": {"trim_right_ratio": 0.5},
            "centred": {"use_causal_conv": False},
            "group norm": {"norm_type": "time_group_norm"},
        }.items()
    }
    assert streams["plain"] is None
    assert streams["trimmed"] is None
    assert "looks ahead" in streams["centred"]
    assert "time_group_norm" in streams["group norm"]


def test_folded_weights_are_those_that_hf_multiplies_with():
    reference, model = pair(small_config())
    conv = read_plan(model).encoder.stages[0]
    with torch.no_grad():
        reference.encoder(torch.zeros(1, 1, 50))
    assert torch.equal(conv.weight, reference.encoder.layers[0].conv.weight)


def test_codebooks_are_stacked_in_order():
    reference = reference_model(small_config())
    codebooks = read_quantizer(reference.quantizer).codebooks
    assert all(torch.equal(codebooks[level], layer.codebook.embed) for level, layer in enumerate(reference.quantizer.layers))


def test_a_cache_makes_a_value_once_until_a_weight_changes():
    cache, module, made = PlanCache(), torch.nn.Sequential(torch.nn.Linear(2, 2)), []
    for _ in range(2):
        cache.get(list(module.children()), "key", lambda: made.append(1))
    assert len(made) == 1
    with torch.no_grad():
        module[0].weight[0, 0] += 1
    cache.get(list(module.children()), "key", lambda: made.append(1))
    assert len(made) == 2
