"""The whole configuration space: any EncodecConfig that HF accepts gives HF's results, and bad calls give HF's errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import EncodecConfig

from encodec_fast import verify
from support.configs import configs
from support.models import (
    assert_close_to_reference,
    assert_same_codes,
    audio_like,
    config_24khz,
    config_48khz,
    drawn_pair,
    is_error,
    outcome,
    pair,
)


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of encode, without the model's part in them."""
    return {
        "batch": draw(st.integers(1, 3)),
        "samples": draw(st.one_of(st.integers(1, 12), st.integers(1, 700))),
        "bandwidth": draw(st.integers(0, 3)),
        "mask": draw(st.sampled_from([None, "per clip", "per channel"])),
        "return_dict": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }


def padding_mask(kind: str | None, shape: tuple[int, int, int], seed: int) -> torch.Tensor | None:
    if kind is None:
        return None
    batch, channels, samples = shape
    lengths = torch.randint(1, samples + 1, (batch,), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(samples) < lengths[:, None]
    return mask if kind == "per clip" else mask[:, None].expand(batch, channels, samples)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(configs(), calls())
def test_any_config_gives_the_results_of_hf(config: EncodecConfig, call: dict[str, Any]) -> None:
    reference, model = drawn_pair(config, call["seed"])
    audio = audio_like(call["batch"], config.audio_channels, call["samples"], call["seed"])
    mask = padding_mask(call["mask"], tuple(audio.shape), call["seed"])
    bandwidths = [*config.target_bandwidths, None]
    bandwidth = bandwidths[call["bandwidth"] % len(bandwidths)]
    arguments = {"padding_mask": mask, "bandwidth": bandwidth, "return_dict": call["return_dict"]}
    with torch.no_grad():
        theirs, ours = (outcome(lambda side=side: side.encode(audio, **arguments)) for side in (reference, model))
        if is_error(theirs):
            assert ours == theirs
            return
        assert type(ours) is type(theirs)
        check_encoded(model, reference, audio, mask, theirs, ours, bandwidth)
        check_decoded(model, reference, theirs, mask)


def check_encoded(model, reference, audio, mask, theirs, ours, bandwidth) -> None:
    theirs, ours = (tuple(output.values()) if isinstance(output, dict) else output for output in (theirs, ours))
    assert ours[2:] == theirs[2:]
    for own, stock in zip(ours[1], theirs[1], strict=True):
        assert (own is None) == (stock is None)
        if own is not None:
            torch.testing.assert_close(own, stock, rtol=1e-6, atol=0)
    masked = audio if mask is None else audio * (mask if mask.dim() == 3 else mask[:, None])
    bandwidth = model.config.target_bandwidths[0] if bandwidth is None else bandwidth
    assert_same_codes(model, reference, masked, ours[0], theirs[0], bandwidth)


def check_decoded(model, reference, encoded, mask) -> None:
    codes, scales, *rest = tuple(encoded.values()) if isinstance(encoded, dict) else encoded
    extra = {"last_frame_pad_length": rest[0]} if rest else {}
    results = [outcome(lambda side=side: side.decode(codes, scales, mask, return_dict=False, **extra)[0]) for side in (model, reference)]
    if is_error(results[1]):
        assert results[0] == results[1]
        return
    truth_model = verify.Reference(reference, torch.float64).model
    double_scales = [None if scale is None else scale.double() for scale in scales]
    truth = truth_model.decode(codes, double_scales, mask, return_dict=False, **extra)[0]
    assert_close_to_reference(results[0], results[1], truth)


@pytest.mark.parametrize("samples", [1, 2, 6, 7, 8, 319, 320, 321, 1009, 12_001])
@pytest.mark.parametrize("batch", [1, 3])
def test_24khz_model_gives_the_results_of_hf_at_any_length(reference_24khz, batch: int, samples: int) -> None:
    reference, model = reference_24khz
    compare_both_ways(reference, model, audio_like(batch, 1, samples, seed=samples), bandwidth=6.0)


@pytest.mark.parametrize("samples", [1, 300, 47_999, 48_000, 48_001, 60_000])
def test_48khz_model_gives_the_results_of_hf_at_any_length(reference_48khz, samples: int) -> None:
    reference, model = reference_48khz
    compare_both_ways(reference, model, audio_like(1, 2, samples, seed=samples), bandwidth=6.0)


def compare_both_ways(reference, model, audio, bandwidth: float) -> None:
    with torch.no_grad():
        theirs, ours = (outcome(lambda side=side: side.encode(audio, bandwidth=bandwidth)) for side in (reference, model))
        if is_error(theirs):
            assert ours == theirs
            return
        check_encoded(model, reference, audio, None, theirs, ours, bandwidth)
        check_decoded(model, reference, theirs, None)


@pytest.fixture(scope="module")
def reference_24khz():
    return pair(config_24khz())


@pytest.fixture(scope="module")
def reference_48khz():
    return pair(config_48khz())
