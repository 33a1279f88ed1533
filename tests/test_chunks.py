"""Chunks: common batches within a memory bound, and an overlap-add that is HF's to the bit."""

from __future__ import annotations

import re

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from encodec_fast import use_backend
from encodec_fast.serving import clips, route
from encodec_fast.serving.functions import normalize, overlap_add
from support.engine import engine
from support.models import audio_like, config_48khz, is_error, outcome, pair


@pytest.fixture(scope="module")
def model():
    return pair(config_48khz(num_filters=4, hidden_size=8, codebook_size=16, target_bandwidths=[2.4]))[1]


@given(st.integers(1, 7), st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.sampled_from([torch.float32, torch.float64]))
def test_overlap_add_is_bit_equal_to_hf(count, length, last, stride, dtype):
    frames = [audio_like(2, 2, length, seed).to(dtype) for seed in range(count)]
    frames[-1] = frames[-1][..., : min(last, length)]
    try:
        expected = transformers.EncodecModel._linear_overlap_add(frames, stride)
    except (ValueError, RuntimeError) as error:
        # gaps between chunks, or a chunk that ends after the last one
        with pytest.raises(type(error), match=re.escape(str(error)[:40])):
            overlap_add(frames, stride)
        return
    assert torch.equal(overlap_add(frames, stride), expected)
    cut = expected.shape[-1] // 2
    assert torch.equal(overlap_add(frames, stride, cut), expected[..., :cut])


def test_the_volume_of_a_chunk_is_the_same_alone_and_in_a_batch_at_any_thread_count():
    batch = torch.cat([audio_like(1, 2, 48_000, seed) for seed in range(12)])
    threads = torch.get_num_threads()
    scales = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            scales += [normalize(batch)[1], torch.cat([normalize(chunk[None])[1] for chunk in batch])]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(scale, scales[0]) for scale in scales)


@pytest.mark.parametrize("length", [1, 2, 3, 479, 47_521])
def test_the_volume_of_a_chunk_errs_less_than_a_last_place(length):
    batch = torch.cat([audio_like(1, 2, length, seed) for seed in range(4)])
    clean, scale = normalize(batch)
    exact = batch.double().mean(1).pow(2).mean(-1, keepdim=True).sqrt() + 1e-8
    assert ((scale.double() - exact).abs() <= 2**-22 * exact).all()
    assert torch.equal(clean, batch / scale[..., None])


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 700), st.integers(0, 99))
def test_the_engine_takes_the_volume_off_to_the_bit(batch, channels, length, seed):
    engine()
    audio = audio_like(batch, channels, length, seed)
    with use_backend("torch"):
        expected = normalize(audio)
    with use_backend("cpu"):
        assert all(map(torch.equal, normalize(audio), expected))
        # strides that are no clip's own
        wide = torch.cat([audio, audio], 1)[:, :channels]
        assert all(map(torch.equal, normalize(wide), expected))


@pytest.mark.parametrize("threads", [1, 2])
def test_chunks_longer_than_a_task_of_the_engine_fade_as_in_hf(threads):
    engine()
    frames = [audio_like(2, 2, length, length) for length in (4801, 4801, 4801, 3000)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with use_backend("cpu"):
            assert torch.equal(overlap_add(frames, 4700), transformers.EncodecModel._linear_overlap_add(frames, 4700))
            assert route.route_function("overlap_add", frames).prepared.name == "cpu"
    finally:
        torch.set_num_threads(before)


def test_a_chunk_that_ends_after_the_last_one_decodes_to_the_length_of_the_clip(model):
    # 47681 samples are 150 frames, 48000 samples; the second chunk of 161 samples ends at 47840, where HF gives up
    clip = audio_like(1, 2, 47_520 + 161, 0)
    encoded = model.encode_batch([clip[0]])[0]
    frames = [audio_like(1, 2, length, seed) for seed, length in enumerate((48_000, 320))]
    with pytest.raises(RuntimeError, match="must match the size"):
        overlap_add(frames, 47_520)
    assert model.decode_batch([encoded])[0].shape == clip.shape[1:]
    joined = overlap_add(frames, 47_520, 47_681)
    torch.testing.assert_close(joined[..., :47_520], frames[0][..., :47_520])
    assert joined.shape[-1] == 47_681


def test_batches_of_chunks_stay_within_the_bound_and_change_nothing(model, monkeypatch):
    audio = audio_like(1, 2, 5 * 47_520 + 480, 0)
    sizes = []
    handle = model.encoder.register_forward_hook(lambda module, args, output: sizes.append(output.shape[0]))
    with torch.no_grad():
        whole = model.encode(audio)
        monkeypatch.setattr(clips, "CHUNK_BATCH_BYTES", 2 * 48_000 * clips.first_layer_bytes(model.config))
        bounded = model.encode(audio)
        assert torch.equal(model.decode(*bounded.to_tuple()[:2])[0], model.decode(*whole.to_tuple()[:2])[0])
    handle.remove()
    assert sizes == [5, 1, 2, 2, 1, 1]
    assert torch.equal(bounded.audio_codes, whole.audio_codes)


def test_chunks_with_and_without_scales_decode_one_by_one(model):
    codes = torch.randint(0, 16, (2, 1, 4, 150))
    scales = [torch.ones(1, 1), None]
    with torch.no_grad():
        theirs = transformers.EncodecModel.decode(model, codes, scales).audio_values
        torch.testing.assert_close(model.decode(codes, scales).audio_values, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_fade_that_a_half_cannot_hold_leaves_no_nan(dtype):
    frames = [audio_like(1, 2, 48_000, seed).to(dtype) for seed in range(2)]
    # the weights at the ends round to zero, and transformers gives up
    with pytest.raises(ValueError, match="sum_weight"):
        transformers.EncodecModel._linear_overlap_add(frames, 47_520)
    joined = overlap_add(frames, 47_520)
    assert joined.dtype == dtype
    torch.testing.assert_close(joined.float(), overlap_add([frame.float() for frame in frames], 47_520), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("scale", [torch.tensor([0.5]), torch.rand(4, 1), torch.rand(2, 1)])
@pytest.mark.parametrize("batch", [1, 2])
def test_scales_of_any_size_decode_as_in_hf(model, scale, batch):
    codes = torch.randint(0, 16, (2, batch, 4, 150))
    with torch.no_grad():
        for part in (codes[:1], codes):
            theirs, ours = (
                outcome(lambda decode=decode, part=part: decode(model, part, [scale] * len(part)).audio_values)
                for decode in (transformers.EncodecModel.decode, type(model).decode)
            )
            assert is_error(theirs) == is_error(ours)
            if not is_error(theirs):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert outcome(lambda: model.decode(codes, [])) == outcome(lambda: transformers.EncodecModel.decode(model, codes, []))
