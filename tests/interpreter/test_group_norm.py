"""group_norm against torch.nn.functional.group_norm in float64."""

import pytest
import torch
from bounds import assert_close, assert_same_bits
from encodec_fast.kernels.causal_conv1d import causal_conv1d_triton
from encodec_fast.kernels.group_norm import (
    group_norm_apply_ref,
    group_norm_apply_triton,
    group_norm_statistics_ref,
    group_norm_statistics_triton,
)
from encodec_fast.kernels.tiles import Tile

TILE = Tile(16, 32, 16, 1, 1)


def identity_partials(x, lengths=None):
    """Partials of x itself, from a convolution by the identity."""
    eye = torch.eye(x.shape[1])[:, :, None].contiguous()
    return causal_conv1d_triton(x, eye, None, pad_left=0, lengths=lengths, partials=True, precision="ieee", tile=TILE)[1]


@pytest.mark.parametrize("offset", [0.0, 1000.0], ids=["centred", "far from zero"])
def test_statistics_match_float64(offset, sliced):
    x = sliced(torch.randn(3, 20, 70) + offset)
    stats = group_norm_statistics_triton(identity_partials(x), 1e-5)
    exact = x.double()
    assert_close(stats[:, 0], exact.mean((1, 2)), 1e-6 if offset else 1e-3)
    assert_close(stats[:, 1], (exact.var((1, 2), unbiased=False) + 1e-5).rsqrt(), 1e-5)
    assert_close(stats, group_norm_statistics_ref(identity_partials(x), 1e-5))


def test_more_tiles_than_one_block_of_them_holds():
    partials = torch.rand(2, 2500, 3) + 0.5
    assert_close(group_norm_statistics_triton(partials, 1e-5), group_norm_statistics_ref(partials, 1e-5))


def test_statistics_of_a_clip_among_longer_ones_have_the_bits_they_have_alone():
    lengths = [1, 33, 200]
    x = torch.randn(3, 20, 200)
    together = group_norm_statistics_triton(identity_partials(x, torch.tensor(lengths, dtype=torch.int32)), 1e-5)
    for clip, length in enumerate(lengths):
        alone = group_norm_statistics_triton(identity_partials(x[clip : clip + 1, :, :length].contiguous()), 1e-5)
        assert_same_bits(together[clip : clip + 1], alone)


@pytest.mark.parametrize("length", [1, 511, 513])
@pytest.mark.parametrize("other", ["none", "plain", "normed"])
def test_apply_matches_the_reference(other, length, sliced):
    x, second = sliced(torch.randn(2, 11, length)), sliced(torch.randn(2, 11, length))
    norms = [(torch.rand(2, 2), torch.randn(11), torch.randn(11)) for _ in range(2)]
    more = {"none": (None, None), "plain": (second, None), "normed": (second, norms[1])}[other]
    assert_close(group_norm_apply_triton(x, norms[0], *more), group_norm_apply_ref(x, norms[0], *more))
