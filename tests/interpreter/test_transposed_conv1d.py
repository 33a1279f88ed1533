"""transposed_conv1d against torch.nn.functional.conv_transpose1d and a trim."""

import pytest
import torch
from bounds import TF32, TF32X3, assert_close, assert_same_bits
from encodec_fast.kernels.group_norm import group_norm_statistics_triton
from encodec_fast.kernels.tiles import Tile, lookup
from encodec_fast.kernels.transposed_conv1d import phase_weight, transposed_conv1d_ref, transposed_conv1d_triton

SMALL = Tile(16, 32, 32, 1, 1)


def parameters(channels, out_channels, kernel, stride):
    weight = torch.randn(channels, out_channels, kernel) / (channels * kernel / stride) ** 0.5
    return weight, phase_weight(weight, stride), torch.randn(out_channels)


@pytest.mark.parametrize(
    ("kernel", "stride", "trim_left", "trim_right"),
    [(4, 2, 0, 2), (10, 5, 0, 5), (16, 8, 0, 8), (10, 5, 3, 2), (16, 8, 4, 4), (7, 3, 1, 3), (3, 3, 0, 0), (9, 2, 2, 5), (10, 5, 2, 3)],
)
def test_every_length_matches_torch(kernel, stride, trim_left, trim_right, sliced):
    weight, phases, bias = parameters(6, 4, kernel, stride)
    where = dict(kernel=kernel, stride=stride, trim_left=trim_left, trim_right=trim_right)
    for length in (1, 2, 3, 31, 32, 33):
        x = sliced(torch.randn(3 if length == 3 else 1, 6, length))
        y = transposed_conv1d_triton(x, phases, bias, **where, precision="ieee", tile=SMALL)
        full = torch.nn.functional.conv_transpose1d(torch.nn.functional.elu(x.double()), weight.double(), bias.double(), stride)
        assert_close(y, full[..., trim_left : full.shape[2] - trim_right])
        assert_close(transposed_conv1d_ref(x, phases, bias, **where), y)


@pytest.mark.parametrize(("channels", "stride"), [(512, 8), (256, 5), (128, 4), (64, 2)])
def test_layers_of_the_real_models_match_the_reference(channels, stride, sliced):
    _, phases, bias = parameters(channels, channels // 2, 2 * stride, stride)
    x = sliced(torch.randn(1, channels, 7))
    where = dict(kernel=2 * stride, stride=stride, trim_left=0, trim_right=stride)
    assert_close(transposed_conv1d_triton(x, phases, bias, **where, precision="ieee"), transposed_conv1d_ref(x, phases, bias, **where))


@pytest.mark.parametrize("precision", ["ieee", "tf32x3", "tf32"])
def test_production_tiles_match_the_reference(precision, sliced):
    tile = lookup("conv", "sm_90", precision, 64)
    _, phases, bias = parameters(9, 40, 4, 2)
    x = sliced(torch.randn(1, 9, tile.block_n + 3))
    where = dict(kernel=4, stride=2, trim_left=0, trim_right=2)
    y = transposed_conv1d_triton(x, phases, bias, **where, precision=precision, tile=tile)
    assert_close(y, transposed_conv1d_ref(x, phases, bias, **where), {"ieee": 4e-6, "tf32x3": TF32X3, "tf32": TF32}[precision])


def test_a_clip_among_longer_ones_has_the_bits_it_has_alone(sliced):
    _, phases, bias = parameters(6, 4, 10, 5)
    lengths = [1, 33, 40]
    x = torch.full((3, 6, 40), float("nan"))
    for clip, length in enumerate(lengths):
        x[clip, :, :length] = torch.randn(6, length)
    where = dict(kernel=10, stride=5, trim_left=3, trim_right=2, precision="ieee", tile=SMALL)
    y = transposed_conv1d_triton(sliced(x), phases, bias, lengths=torch.tensor(lengths, dtype=torch.int32), **where)
    for clip, length in enumerate(lengths):
        alone = transposed_conv1d_triton(x[clip : clip + 1, :, :length].clone(), phases, bias, **where)
        assert_same_bits(y[clip : clip + 1, :, : alone.shape[2]], alone)
        assert (y[clip, :, alone.shape[2] :] == 0).all()


@pytest.mark.parametrize("trim_left", [0, 3])
def test_statistics_take_in_the_trimmed_steps(trim_left, sliced):
    weight, phases, bias = parameters(6, 4, 10, 5)
    x = sliced(torch.randn(2, 6, 40))
    y, partials = transposed_conv1d_triton(
        x, phases, bias, kernel=10, stride=5, trim_left=trim_left, trim_right=5 - trim_left, partials=True, precision="ieee", tile=SMALL
    )
    full = torch.nn.functional.conv_transpose1d(torch.nn.functional.elu(x.double()), weight.double(), bias.double(), 5)
    assert_close(y, full[..., trim_left : full.shape[2] - 5 + trim_left])
    stats = group_norm_statistics_triton(partials, 1e-5)
    assert_close(stats[:, 0], full.mean((1, 2)), 1e-5)
    assert_close(stats[:, 1], (full.var((1, 2), unbiased=False) + 1e-5).rsqrt())


def test_a_weight_that_is_no_phase_weight_is_an_error():
    _, phases, bias = parameters(6, 4, 10, 5)
    with pytest.raises(ValueError, match=r"weight must be phase_weight of \[5, C_out, 10\]"):
        transposed_conv1d_triton(torch.randn(1, 5, 9), phases, bias, kernel=10, stride=5, trim_left=0, trim_right=5, precision="ieee")
