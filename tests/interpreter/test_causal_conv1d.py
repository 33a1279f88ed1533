"""causal_conv1d against torch.nn.functional behind EnCodec's own padding."""

import pytest
import torch
from bounds import FLOAT16, TF32, TF32X3, assert_close, assert_same_bits
from encodec_fast.kernels.causal_conv1d import causal_conv1d_ref, causal_conv1d_triton
from encodec_fast.kernels.group_norm import group_norm_statistics_triton
from encodec_fast.kernels.tiles import Tile, lookup

# stride, kernel, dilation, pad_left, pad_right
CAUSAL = [(1, 7, 1, 6, 0), (1, 3, 2, 4, 0), (2, 4, 1, 2, 0), (5, 10, 1, 5, 0), (8, 16, 1, 8, 0), (1, 1, 1, 0, 0), (3, 4, 1, 1, 0)]
CENTRED = [(1, 7, 1, 3, 3), (2, 4, 1, 1, 1), (5, 10, 1, 3, 2)]
# several tiles in every direction on tiny shapes
SMALL = Tile(16, 32, 32, 1, 1)


def parameters(out_channels, channels, kernel):
    weight = torch.randn(out_channels, channels, kernel) / (channels * kernel) ** 0.5
    return weight, torch.randn(out_channels)


def interesting_lengths(stride, kernel):
    # the last two end at the edge of a tile of SMALL and just past it
    return sorted({1, 2, kernel - 1, kernel, kernel + 1, stride - 1, stride + 1, 32 * stride, 32 * stride + 1} - {0})


@pytest.mark.parametrize("pad_mode", ["reflect", "constant", "replicate"])
@pytest.mark.parametrize("geometry", CAUSAL + CENTRED, ids=lambda g: "s{}k{}d{}l{}r{}".format(*g))
def test_every_length_matches_the_reference(geometry, pad_mode, sliced):
    stride, kernel, dilation, pad_left, pad_right = geometry
    weight, bias = parameters(5, 3, kernel)
    for length in interesting_lengths(stride, kernel):
        x = sliced(torch.randn(3 if length == kernel else 1, 3, length))
        where = dict(stride=stride, dilation=dilation, pad_left=pad_left, pad_right=pad_right, pad_mode=pad_mode, elu=length % 3 > 0)
        y = causal_conv1d_triton(x, weight, bias, **where, precision="ieee", tile=SMALL)
        assert_close(y, causal_conv1d_ref(x, weight, bias, **where))


@pytest.mark.parametrize(
    ("channels", "out_channels", "kernel", "stride"),
    [
        (1, 32, 7, 1),
        (2, 32, 7, 1),
        (32, 64, 4, 2),
        (64, 128, 8, 4),
        (128, 256, 10, 5),
        (256, 512, 16, 8),
        (512, 128, 7, 1),
        (128, 512, 7, 1),
        (32, 1, 7, 1),
        (32, 2, 7, 1),
        (512, 2048, 1, 1),
    ],
)
def test_layers_of_the_real_models_match_the_reference(channels, out_channels, kernel, stride, sliced):
    weight, bias = parameters(out_channels, channels, kernel)
    x = sliced(torch.randn(1, channels, 3 * stride + 1))
    where = dict(stride=stride, pad_left=kernel - stride, elu=True)
    assert_close(causal_conv1d_triton(x, weight, bias, **where, precision="ieee"), causal_conv1d_ref(x, weight, bias, **where))


@pytest.mark.parametrize("precision", ["ieee", "tf32x3", "tf32"])
@pytest.mark.parametrize("arch", ["sm_90", "gfx942"])
def test_production_tiles_match_the_reference(arch, precision, sliced):
    if (arch, precision) == ("gfx942", "tf32x3"):
        pytest.skip("gfx942 has no tf32x3")
    bound = {"ieee": 4e-6, "tf32x3": TF32X3, "tf32": TF32}[precision]
    for out_channels in (1, 32, 70):
        tile = lookup("conv", arch, precision, min(128, max(16, 1 << (out_channels - 1).bit_length())))
        weight, bias = parameters(out_channels, 9, 4)
        x = sliced(torch.randn(2, 9, 2 * tile.block_n + 3))
        where = dict(stride=2, pad_left=2, elu=True)
        y = causal_conv1d_triton(x, weight, bias, **where, precision=precision, tile=tile)
        assert_close(y, causal_conv1d_ref(x, weight, bias, **where), bound)


@pytest.mark.parametrize("geometry", CAUSAL[:4] + CENTRED, ids=lambda g: "s{}k{}d{}l{}r{}".format(*g))
def test_a_clip_among_longer_ones_has_the_bits_it_has_alone(geometry, sliced):
    stride, kernel, dilation, pad_left, pad_right = geometry
    weight, bias = parameters(5, 3, kernel)
    lengths = [1, 19, 40, stride + 1]
    x = torch.full((4, 3, 40), float("nan"))
    for clip, length in enumerate(lengths):
        x[clip, :, :length] = torch.randn(3, length)
    where = dict(stride=stride, dilation=dilation, pad_left=pad_left, pad_right=pad_right, elu=True)
    y = causal_conv1d_triton(
        sliced(x), weight, bias, **where, lengths=torch.tensor(lengths, dtype=torch.int32), precision="ieee", tile=SMALL
    )
    for clip, length in enumerate(lengths):
        alone = causal_conv1d_triton(x[clip : clip + 1, :, :length].clone(), weight, bias, **where, precision="ieee", tile=SMALL)
        assert_same_bits(y[clip : clip + 1, :, : alone.shape[2]], alone)
        assert (y[clip, :, alone.shape[2] :] == 0).all()


@pytest.mark.parametrize("tile", [SMALL, Tile(64, 64, 16, 4, 1)])
def test_output_does_not_depend_on_the_batch_or_the_place_in_it(tile):
    weight, bias = parameters(20, 6, 7)
    x = torch.randn(3, 6, 50)
    batch = causal_conv1d_triton(x, weight, bias, pad_left=6, precision="ieee", tile=tile)
    for clip in range(3):
        alone = causal_conv1d_triton(x[clip : clip + 1], weight, bias, pad_left=6, precision="ieee", tile=tile)
        assert_same_bits(batch[clip : clip + 1], alone)


def test_a_frame_far_into_a_clip_has_the_bits_it_has_at_the_front():
    weight, bias = parameters(20, 6, 7)
    x = torch.randn(1, 6, 90)
    whole = causal_conv1d_triton(x, weight, bias, pad_left=6, precision="ieee", tile=SMALL)
    part = causal_conv1d_triton(x[..., 29:], weight, bias, pad_left=6, start=29, out_start=35, precision="ieee", tile=SMALL)
    assert_same_bits(part, whole[..., 35:])


def test_residual_is_added_and_strided_output_is_filled(memory, sliced):
    weight, bias = parameters(5, 3, 1)
    x, residual = sliced(torch.randn(2, 3, 21)), sliced(torch.randn(2, 5, 21))
    out = memory.allocate((21, 2, 5), torch.float32).permute(1, 2, 0)
    y = causal_conv1d_triton(x, weight, bias, pad_left=0, residual=residual, out=out, precision="ieee")
    assert y is out
    assert_close(out, causal_conv1d_ref(x, weight, bias, pad_left=0, residual=residual))


@pytest.mark.parametrize("length", [1, 17, 130])
def test_partials_and_norm_in_the_load_match_group_norm(length, sliced):
    weight, bias = parameters(20, 3, 7)
    x = sliced(torch.randn(2, 3, length) + 5)
    y, partials = causal_conv1d_triton(x, weight, bias, pad_left=3, pad_right=3, partials=True, precision="ieee", tile=SMALL)
    gamma, beta = torch.randn(20), torch.randn(20)
    weight2, bias2 = parameters(4, 20, 7)
    stats = group_norm_statistics_triton(partials, 1e-5)
    normed = torch.nn.functional.group_norm(y.double(), 1, gamma.double(), beta.double(), 1e-5).float()
    where = dict(pad_left=3, pad_right=3, elu=True, pad_mode="constant")
    z = causal_conv1d_triton(y, weight2, bias2, **where, norm=(stats, gamma, beta), precision="ieee", tile=SMALL)
    assert_close(z, causal_conv1d_ref(normed, weight2, bias2, **where), 2e-5 if length == 1 else 4e-6)


def test_float16_in_and_out_with_float32_sums(sliced):
    weight, bias = parameters(32, 16, 7)
    x, weight, bias = sliced(torch.randn(2, 16, 40).half()), weight.half(), bias.half()
    y = causal_conv1d_triton(x, weight, bias, pad_left=6, elu=True, precision="tf32")
    assert y.dtype == torch.float16
    assert_close(y, causal_conv1d_ref(x.float(), weight.float(), bias.float(), pad_left=6, elu=True), FLOAT16)


def test_nan_stays_where_it_reaches():
    weight, bias = parameters(4, 2, 3)
    x = torch.randn(1, 2, 40)
    x[0, 1, 20] = float("nan")
    y = causal_conv1d_triton(x, weight, bias, pad_left=2, elu=True, precision="ieee", tile=SMALL)
    assert y[0].isnan().any(0).nonzero().flatten().tolist() == [20, 21, 22]


def test_an_empty_input_gives_an_empty_output():
    weight, bias = parameters(4, 2, 3)
    assert causal_conv1d_triton(torch.randn(2, 2, 0), weight, bias, pad_left=2, precision="ieee").shape == (2, 4, 0)
    assert causal_conv1d_triton(torch.randn(0, 2, 9), weight, bias, pad_left=2, precision="ieee").shape == (0, 4, 9)


def test_a_long_sum_in_blocks_errs_less_than_as_one_chain():
    weight, x = torch.rand(32, 4096, 1), torch.rand(1, 4096, 64)
    exact = causal_conv1d_ref(x.double(), weight.double(), None, pad_left=0)

    def error(depth):
        y = causal_conv1d_triton(x, weight, None, pad_left=0, precision="ieee", tile=Tile(32, 64, depth, 1, 1))
        return (y.double() - exact).square().mean().sqrt()

    # 64 + 64 additions in the place of 4096
    assert error(64) < 0.5 * error(4096)


def test_elu_is_as_exact_near_zero_as_expm1():
    x = torch.cat((-torch.logspace(-12, 1.5, 500), torch.linspace(-1, 1, 501), torch.tensor([-float("inf"), float("inf"), -1e-40])))
    y = causal_conv1d_triton(x[None, None], torch.ones(1, 1, 1), None, pad_left=0, elu=True, precision="ieee")[0, 0]
    exact = torch.nn.functional.elu(x.double())
    # at -0.25, where the series ends: exp's last place, 6e-8, over 0.22, and a rounding. exp(x) - 1 errs by 3e-8 / |x| further up
    assert torch.allclose(y.double(), exact, rtol=4e-7, atol=1e-44)


def test_a_weight_of_other_channels_is_an_error():
    weight, bias = parameters(4, 2, 3)
    with pytest.raises(ValueError, match=r"weight must be contiguous \[C_out, 3, kernel\]"):
        causal_conv1d_triton(torch.randn(1, 3, 9), weight, bias, pad_left=2, precision="ieee")
