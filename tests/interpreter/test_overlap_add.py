"""overlap_add against transformers, bit for bit."""

import pytest
import torch
from bounds import assert_same_bits
from encodec_fast.kernels.overlap_add import fade_weight, overlap_add_ref, overlap_add_triton
from transformers import EncodecModel


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize(
    ("count", "length", "stride", "last"), [(1, 50, 45, 20), (3, 100, 90, 60), (3, 100, 90, 100), (4, 100, 40, 70), (2, 2000, 1980, 1500)]
)
def test_chunks_fade_as_in_transformers(count, length, stride, last, scaled, sliced):
    chunks = sliced(torch.randn(count, 2, 2, length))
    scales = torch.rand(count, 2) if scaled else None
    weight = fade_weight(length, "cpu")
    frames = [chunk if scales is None else chunk * scales[i].view(-1, 1, 1) for i, chunk in enumerate(chunks)]
    frames[-1] = frames[-1][..., :last]
    y = overlap_add_triton(chunks, scales, weight, stride, last)
    # the fade of the first chunk has the length of the first chunk
    fade_length = frames[0].shape[-1]
    if fade_length == length:
        assert_same_bits(y, EncodecModel._linear_overlap_add(frames, stride))
    assert_same_bits(y, overlap_add_ref(chunks, scales, weight, stride, last))
