"""overlap_add against transformers, bit for bit."""

import pytest
import torch
from bounds import assert_same_bits
from transformers import EncodecModel

from encodec_fast import use_backend
from encodec_fast.backends import registry
from encodec_fast.kernels.overlap_add import overlap_add_ref, overlap_add_triton
from encodec_fast.serving.functions import fade_weight, overlap_add


@pytest.mark.parametrize(
    ("count", "length", "stride", "last"), [(1, 50, 45, 20), (3, 100, 90, 60), (3, 100, 90, 100), (4, 100, 40, 70), (2, 2000, 1980, 1500)]
)
def test_chunks_fade_as_in_transformers(count, length, stride, last, sliced):
    chunks = sliced(torch.randn(count, 2, 2, length))
    weight = fade_weight(length, torch.zeros(1))
    frames = list(chunks)
    frames[-1] = frames[-1][..., :last]
    total = stride * (count - 1) + last
    y = overlap_add_triton(chunks, weight, stride, total)
    # the fade of the first chunk has the length of the first chunk
    fade_length = frames[0].shape[-1]
    if fade_length == length:
        assert_same_bits(y, EncodecModel._linear_overlap_add(frames, stride))
    assert_same_bits(y, overlap_add_ref(chunks, weight, stride, total))


def test_halves_are_rounded_where_transformers_rounds_them(sliced):
    chunks = sliced(torch.randn(3, 2, 2, 100).half())
    y = overlap_add_triton(chunks, fade_weight(100, torch.zeros(1, dtype=torch.float16)), 60, 220)
    assert_same_bits(y, EncodecModel._linear_overlap_add(list(chunks), 60))


def test_chunks_end_where_the_result_does(sliced):
    chunks = sliced(torch.randn(4, 1, 2, 100))
    weight = fade_weight(100, torch.zeros(1))
    for length in (271, 199, 100, 1):
        assert_same_bits(overlap_add_triton(chunks, weight, 90, length), overlap_add_ref(chunks, weight, 90, length))


@pytest.mark.parametrize(("lengths", "num_samples"), [((100, 100, 70), None), ((100, 100, 95), 270), ((100, 100, 40), 205)])
def test_a_model_on_this_backend_adds_its_chunks_here(lengths, num_samples, monkeypatch):
    frames = [torch.randn(2, 2, length) for length in lengths]
    launched, add = [], registry.get_backend("triton").overlap_add
    monkeypatch.setattr(registry.get_backend("triton"), "overlap_add", lambda *call: launched.append(call) or add(*call))
    with use_backend("torch"):
        expected = overlap_add(frames, 90, num_samples)
    assert not launched
    with use_backend("triton"):
        assert_same_bits(overlap_add(frames, 90, num_samples), expected)
        assert len(launched) == 1
        assert overlap_add([frame.requires_grad_() for frame in frames], 90, num_samples).requires_grad
