"""causal_conv1d against torch.nn.functional behind EnCodec's own padding."""

import pytest
import torch
from bounds import FLOAT16, PRODUCTS, assert_close, assert_same_bits
from ops import Padding, among_longer_ones, conv, rows_of

from encodec_fast.kernels.causal_conv1d import causal_conv1d_ref, causal_conv1d_triton, conv_matrix, conv_mode
from encodec_fast.kernels.rows import arrange_triton
from encodec_fast.kernels.tiles import Tile, lookup

# stride, kernel, dilation, pad_left, pad_right
CAUSAL = [(1, 7, 1, 6, 0), (1, 3, 2, 4, 0), (2, 4, 1, 2, 0), (5, 10, 1, 5, 0), (8, 16, 1, 8, 0), (1, 1, 1, 0, 0), (3, 4, 1, 1, 0)]
CENTRED = [(1, 7, 1, 3, 3), (2, 4, 1, 1, 1), (5, 10, 1, 3, 2)]
# several tiles in every direction on tiny shapes
SMALL = Tile(32, 16, 1, 1)


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
    weight, bias = parameters(20, 3, kernel)
    padding = Padding(pad_left, pad_right, pad_mode, stride)
    for length in interesting_lengths(stride, kernel):
        x = sliced(torch.randn(3 if length == kernel else 1, length, 3))
        where = dict(dilation=dilation, activation="elu" if length % 3 > 0 else "none")
        y = conv(x, weight, bias, padding, **where, tile=SMALL)
        assert_close(y, causal_conv1d_ref(x, weight, bias, padding, **where))


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
@pytest.mark.parametrize("mode", ["ieee", "split"])
def test_layers_of_the_real_models_match_the_reference(channels, out_channels, kernel, stride, mode, sliced):
    weight, bias = parameters(out_channels, channels, kernel)
    x = sliced(torch.randn(1, 3 * stride + 1, channels))
    padding = Padding(kernel - stride, 0, "reflect", stride)
    y = conv(x, weight, bias, padding, activation="elu", mode=conv_mode(weight, mode))
    assert_close(y, causal_conv1d_ref(x, weight, bias, padding, activation="elu"))


@pytest.mark.parametrize("mode", ["ieee", "split", "tf32"])
@pytest.mark.parametrize("arch", ["sm_90", "gfx942"])
def test_production_tiles_match_the_reference(arch, mode, sliced):
    if (arch, mode) == ("gfx942", "split"):
        pytest.skip("gfx942 has no split products")
    # terms that fill blocks of the sum, and terms that don't; columns that fill a tile, and columns that don't
    for out_channels, channels in ((1, 9), (32, 16), (70, 9), (128, 8)):
        tile = lookup("conv", arch, mode, min(128, max(16, 1 << (out_channels - 1).bit_length())))
        weight, bias = parameters(out_channels, channels, 4)
        x, padding = sliced(torch.randn(2, 2 * tile.block_m + 3, channels)), Padding(2, 0, "reflect", 2)
        y = conv(x, weight, bias, padding, activation="elu", mode=mode, tile=tile)
        assert_close(y, causal_conv1d_ref(x, weight, bias, padding, activation="elu"), PRODUCTS[mode])


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize(("channels", "outputs", "kernel"), [(1, 6, 7), (2, 32, 4), (5, 2, 9), (40, 1, 7), (12, 4, 3)])
def test_thin_convolutions_match_the_reference(channels, outputs, kernel, dilation, sliced):
    weight, bias = parameters(outputs, channels, kernel)
    assert conv_mode(weight, "split") == "thin"
    padding = Padding((kernel - 1) * dilation, 0, "reflect")
    for length in (1, 9, 130):
        x = sliced(torch.randn(2, length, channels))
        where = dict(dilation=dilation, activation="elu" if length == 9 else "none")
        y = conv(x, weight, bias, padding, **where, mode="thin", tile=Tile(64, 16, 1, 1))
        assert_close(y, causal_conv1d_ref(x, weight, bias, padding, **where))


def test_a_convolution_is_thin_by_its_terms_or_by_outputs_that_no_norm_follows():
    assert conv_mode(torch.empty(32, 1, 7), "split", normed=True) == "thin"
    assert conv_mode(torch.empty(2, 32, 7), "split") == "thin"
    assert conv_mode(torch.empty(2, 32, 7), "split", normed=True) == "split"
    assert conv_mode(torch.empty(2, 1024, 7), "split") == "split"
    assert conv_mode(torch.empty(32, 32, 7), "tf32") == "tf32"


@pytest.mark.parametrize("geometry", CAUSAL[:4] + CENTRED, ids=lambda g: "s{}k{}d{}l{}r{}".format(*g))
def test_a_clip_among_longer_ones_has_the_bits_it_has_alone(geometry, sliced):
    stride, kernel, dilation, pad_left, pad_right = geometry
    weight, bias = parameters(20, 3, kernel)
    lengths = [1, 19, 40, stride + 1]
    x, own = among_longer_ones(lengths, 3, 40)
    padding, where = Padding(pad_left, pad_right, "reflect", stride), dict(dilation=dilation, activation="elu", mode="split", tile=SMALL)
    y = conv(sliced(x), weight, bias, padding, lengths=own, **where)
    for clip, length in enumerate(lengths):
        alone = conv(x[clip : clip + 1, :length].clone(), weight, bias, padding, **where)
        assert_same_bits(y[clip : clip + 1, : alone.shape[1]], alone)


@pytest.mark.parametrize("mode", ["ieee", "split", "tf32", "thin"])
def test_output_does_not_depend_on_the_batch_or_the_place_in_it(mode):
    weight, bias = parameters(20 if mode != "thin" else 2, 6, 7)
    x, padding = torch.randn(3, 50, 6), Padding(6, 0, "reflect")
    batch = conv(x, weight, bias, padding, mode=mode, tile=SMALL)
    for clip in range(3):
        assert_same_bits(batch[clip : clip + 1], conv(x[clip : clip + 1], weight, bias, padding, mode=mode, tile=SMALL))


@pytest.mark.parametrize("mode", ["ieee", "split", "tf32", "thin"])
def test_a_frame_far_into_a_clip_has_the_bits_it_has_at_the_front(mode):
    weight, bias = parameters(20 if mode != "thin" else 2, 6, 7)
    x, padding = torch.randn(1, 90, 6), Padding(6, 0, "reflect")
    whole = conv(x, weight, bias, padding, mode=mode, tile=SMALL)
    part = conv(x[:, 29:], weight, bias, padding, start=29, out_start=35, mode=mode, tile=SMALL)
    assert_same_bits(part, whole[:, 35:])


def test_strided_output_is_filled(memory, sliced):
    weight, bias = parameters(5, 3, 1)
    x = sliced(torch.randn(2, 21, 3))
    out = memory.allocate((21, 2, 5), torch.float32).transpose(0, 1)
    conv(x, weight, bias, Padding(), out=out)
    assert_close(out, causal_conv1d_ref(x, weight, bias, Padding()))


def test_room_beside_the_output_stays_free():
    weight, bias = parameters(20, 3, 7)
    x, padding = torch.randn(2, 33, 3), Padding(6, 0, "reflect")
    rows = causal_conv1d_triton(
        rows_of(x, padding), conv_matrix(weight, "ieee"), bias, padding, kernel=7, lead=5, tail=2, mode="ieee", tile=SMALL
    )
    assert rows.buffer.shape == (2, 40, 20) and rows.tail == 2
    assert rows.buffer[:, :5].isnan().all() and rows.buffer[:, 38:].isnan().all()
    assert_same_bits(rows.values, conv(x, weight, bias, padding, tile=SMALL))


def test_float16_in_and_out_with_float32_sums(sliced):
    weight, bias = parameters(32, 16, 7)
    x, weight, bias = sliced(torch.randn(2, 40, 16).half()), weight.half(), bias.half()
    padding = Padding(6, 0, "reflect")
    y = conv(x, weight, bias, padding, activation="elu", mode="tf32")
    assert y.dtype == torch.float16
    assert_close(y, causal_conv1d_ref(x.float(), weight.float(), bias.float(), padding, activation="elu"), FLOAT16)


@pytest.mark.parametrize("mode", ["ieee", "split", "tf32"])
def test_nan_stays_where_it_reaches(mode):
    weight, bias = parameters(20, 2, 3)
    x = torch.randn(1, 40, 2)
    x[0, 20, 1] = float("nan")
    y = conv(x, weight, bias, Padding(2, 0, "reflect"), activation="elu", mode=mode, tile=SMALL)
    assert y[0].isnan().any(1).nonzero().flatten().tolist() == [20, 21, 22]


def test_an_empty_input_gives_an_empty_output():
    weight, bias = parameters(20, 2, 3)
    assert conv(torch.randn(2, 0, 2), weight, bias, Padding(2)).shape == (2, 0, 20)
    assert conv(torch.randn(0, 9, 2), weight, bias, Padding(2)).shape == (0, 9, 20)


@pytest.mark.parametrize("mode", ["ieee", "split"])
def test_a_long_sum_in_blocks_errs_less_than_as_one_chain(mode):
    weight, x = torch.rand(32, 4096, 1), torch.rand(1, 64, 4096)
    exact = causal_conv1d_ref(x.double(), weight.double(), None, Padding())
    chain = torch.zeros(64, 32)
    for k in range(4096):
        chain.addcmul_(x[0, :, k, None], weight[:, k, 0])

    def error(y):
        return (y.double() - exact).square().mean().sqrt()

    # of terms that are all positive, where truncated sums are at their worst
    assert error(conv(x, weight, None, Padding(), mode=mode)) < {"ieee": 0.3, "split": 0.6}[mode] * error(chain)


def test_elu_is_as_exact_near_zero_as_expm1():
    x = torch.cat((-torch.logspace(-12, 1.5, 500), torch.linspace(-1, 1, 501), torch.tensor([-float("inf"), float("inf"), -1e-40])))
    y = arrange_triton(x[None, :, None], activation="elu").values[0, :, 0]
    exact = torch.nn.functional.elu(x.double())
    # at -0.25, where the series ends: exp's last place, 6e-8, over 0.22, and a rounding. exp(x) - 1 errs by 3e-8 / |x| further up
    assert torch.allclose(y.double(), exact, rtol=4e-7, atol=1e-44)


def test_a_matrix_of_other_channels_or_precision_is_an_error():
    weight, bias = parameters(20, 2, 3)
    with pytest.raises(ValueError, match=r"matrix must be contiguous \[1, C_out, 9\] in ieee"):
        conv(torch.randn(1, 9, 3), weight, bias, Padding(2))
    rows = rows_of(torch.randn(1, 9, 2), Padding(2))
    with pytest.raises(ValueError, match=r"matrix must be contiguous \[2, C_out, 6\] in split"):
        causal_conv1d_triton(rows, conv_matrix(weight, "ieee"), bias, Padding(2), kernel=3, mode="split")
