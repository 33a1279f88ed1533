"""transposed_conv1d against torch.nn.functional.conv_transpose1d and a trim."""

import pytest
import torch
from bounds import PRODUCTS, assert_close, assert_same_bits
from ops import Padding, among_longer_ones, rows_of, transposed

from encodec_fast.kernels.group_norm import group_norm_statistics_triton
from encodec_fast.kernels.tiles import Tile, lookup
from encodec_fast.kernels.transposed_conv1d import phase_matrix, transposed_conv1d_ref, transposed_conv1d_triton

SMALL = Tile(32, 16, 1, 1)


def parameters(channels, out_channels, kernel, stride):
    return torch.randn(channels, out_channels, kernel) / (channels * kernel / stride) ** 0.5, torch.randn(out_channels)


def exact(x, weight, bias, stride):
    """[B, T, C], untrimmed, in float64."""
    return torch.nn.functional.conv_transpose1d(x.double().transpose(1, 2), weight.double(), bias.double(), stride).transpose(1, 2)


@pytest.mark.parametrize(
    ("kernel", "stride", "trim_left", "trim_right"),
    [(4, 2, 0, 2), (10, 5, 0, 5), (16, 8, 0, 8), (10, 5, 3, 2), (16, 8, 4, 4), (7, 3, 1, 3), (3, 3, 0, 0), (9, 2, 2, 5), (10, 5, 2, 3)],
)
def test_every_length_matches_torch(kernel, stride, trim_left, trim_right, sliced):
    weight, bias = parameters(6, 4, kernel, stride)
    where = dict(stride=stride, trim_left=trim_left, trim_right=trim_right)
    for length in (1, 2, 3, 31, 32, 33):
        x = sliced(torch.randn(3 if length == 3 else 1, length, 6))
        y = transposed(x, weight, bias, **where, tile=SMALL, lead=length % 4, tail=length % 5)
        full = exact(x, weight, bias, stride)
        assert_close(y, full[:, trim_left : full.shape[1] - trim_right])
        assert_close(transposed_conv1d_ref(x, weight, bias, **where), y)


@pytest.mark.parametrize("mode", ["ieee", "split"])
@pytest.mark.parametrize(("channels", "stride"), [(512, 8), (256, 5), (128, 4), (64, 2)])
def test_layers_of_the_real_models_match_the_reference(channels, stride, mode, sliced):
    weight, bias = parameters(channels, channels // 2, 2 * stride, stride)
    x = sliced(torch.randn(1, 7, channels))
    where = dict(stride=stride, trim_left=0, trim_right=stride, activation="elu")
    assert_close(transposed(x, weight, bias, **where, mode=mode), transposed_conv1d_ref(x, weight, bias, **where))


@pytest.mark.parametrize("mode", ["ieee", "split", "tf32"])
def test_production_tiles_match_the_reference(mode, sliced):
    tile = lookup("conv", "sm_90", mode, 64)
    weight, bias = parameters(9, 40, 4, 2)
    x = sliced(torch.randn(1, tile.block_m + 3, 9))
    where = dict(stride=2, trim_left=0, trim_right=2)
    y = transposed(x, weight, bias, **where, mode=mode, tile=tile)
    assert_close(y, transposed_conv1d_ref(x, weight, bias, **where), PRODUCTS[mode])


@pytest.mark.parametrize("partials", [False, True])
def test_a_clip_among_longer_ones_has_the_bits_it_has_alone(partials, sliced):
    weight, bias = parameters(6, 4, 10, 5)
    lengths = [1, 33, 40]
    x, own = among_longer_ones(lengths, 6, 40)
    where = dict(stride=5, trim_left=3, trim_right=2, mode="split", tile=SMALL, partials=partials)
    made = transposed(sliced(x), weight, bias, lengths=own, **where)
    for clip, length in enumerate(lengths):
        alone = transposed(x[clip : clip + 1, :length].clone(), weight, bias, **where)
        if partials:
            stats = [group_norm_statistics_triton(sums, 1e-5) for sums in (made[1][:, clip : clip + 1].contiguous(), alone[1])]
            assert_same_bits(*stats)
        y, alone = (made[0], alone[0]) if partials else (made, alone)
        assert_same_bits(y[clip : clip + 1, : alone.shape[1]], alone)


@pytest.mark.parametrize("trim_left", [0, 3])
def test_statistics_take_in_the_trimmed_steps(trim_left, sliced):
    weight, bias = parameters(6, 4, 10, 5)
    x = sliced(torch.randn(2, 40, 6))
    y, partials = transposed(x, weight, bias, stride=5, trim_left=trim_left, trim_right=5 - trim_left, partials=True, tile=SMALL)
    full = exact(x, weight, bias, 5)
    assert_close(y, full[:, trim_left : full.shape[1] - 5 + trim_left])
    stats = group_norm_statistics_triton(partials, 1e-5)
    assert_close(stats[:, 0], full.mean((1, 2)), 1e-5)
    assert_close(stats[:, 1], (full.var((1, 2), unbiased=False) + 1e-5).rsqrt())


def test_a_matrix_of_other_channels_is_an_error():
    weight, bias = parameters(6, 4, 10, 5)
    rows = rows_of(torch.randn(1, 9, 5), Padding(1, 1))
    with pytest.raises(ValueError, match=r"matrix must be contiguous \[1, C_out, 10\] in ieee"):
        transposed_conv1d_triton(rows, phase_matrix(weight, 5, "ieee"), bias, kernel=10, stride=5, trim_left=0, trim_right=5, mode="ieee")
