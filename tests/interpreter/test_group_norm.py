"""Statistics of group_norm against float64."""

import pytest
import torch
from bounds import assert_close, assert_same_bits
from ops import Padding, among_longer_ones, conv

from encodec_fast.kernels.group_norm import group_norm_statistics_ref, group_norm_statistics_triton
from encodec_fast.kernels.rows import Norm, arrange_triton
from encodec_fast.kernels.tiles import Tile

TILE = Tile(32, 16, 1, 1)


def identity_partials(x, lengths=None):
    """Partials of x itself, from a convolution by the identity."""
    eye = torch.eye(x.shape[2])[:, :, None].contiguous()
    return conv(x, eye, None, Padding(), lengths=lengths, partials=True, tile=TILE)[1]


@pytest.mark.parametrize("offset", [0.0, 1000.0], ids=["centred", "far from zero"])
def test_statistics_match_float64(offset, sliced):
    x = sliced(torch.randn(3, 70, 20) + offset)
    stats = group_norm_statistics_triton(identity_partials(x), 1e-5)
    exact = x.double()
    assert_close(stats[:, 0], exact.mean((1, 2)), 1e-6 if offset else 1e-3)
    assert_close(stats[:, 1], (exact.var((1, 2), unbiased=False) + 1e-5).rsqrt(), 1e-5)
    assert_close(stats, group_norm_statistics_ref(identity_partials(x), 1e-5))


def test_more_tiles_than_one_block_of_them_holds():
    partials = torch.rand(3, 2, 2500) + 0.5
    assert_close(group_norm_statistics_triton(partials, 1e-5), group_norm_statistics_ref(partials, 1e-5))


def test_statistics_of_a_clip_among_longer_ones_have_the_bits_they_have_alone():
    lengths = [1, 33, 200]
    x, own = among_longer_ones(lengths, 20, 200)
    together = group_norm_statistics_triton(identity_partials(x, own), 1e-5)
    for clip, length in enumerate(lengths):
        alone = group_norm_statistics_triton(identity_partials(x[clip : clip + 1, :length].contiguous()), 1e-5)
        assert_same_bits(together[clip : clip + 1], alone)


@pytest.mark.parametrize("mode", ["ieee", "thin"])
@pytest.mark.parametrize("length", [1, 17, 130])
def test_partials_and_norm_match_group_norm(length, mode, sliced):
    weight, bias = torch.randn(20, 2, 3) / 6**0.5, torch.randn(20)
    x = sliced(torch.randn(2, length, 2) + 5)
    y, partials = conv(x, weight, bias, Padding(1, 1, "reflect"), partials=True, mode=mode, tile=TILE)
    gamma, beta = torch.randn(20), torch.randn(20)
    norm = Norm(group_norm_statistics_triton(partials, 1e-5), gamma, beta)
    exact = torch.nn.functional.group_norm(y.double().transpose(1, 2), 1, gamma.double(), beta.double(), 1e-5).transpose(1, 2)
    assert_close(arrange_triton(y, norm=norm).values, exact, 2e-5 if length == 1 else 4e-6)
