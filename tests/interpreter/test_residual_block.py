"""residual_block, fused and split, against its reference and against EnCodec's module."""

import pytest
import torch
from bounds import TF32, TF32X3, assert_close, assert_same_bits
from encodec_fast.kernels.residual_block import residual_block_ref, residual_block_triton
from encodec_fast.kernels.tiles import Tile, lookup
from transformers import EncodecConfig
from transformers.models.encodec.modeling_encodec import EncodecResnetBlock

SMALL = Tile(0, 32, 32, 1, 1)


def parameters(channels, shortcut=True, hidden=None, kernel=3):
    hidden = hidden or channels // 2
    shapes = [(hidden, channels, kernel), (hidden,), (channels, hidden, 1), (channels,), (channels, channels, 1), (channels,)]
    made = [torch.randn(shape) / (shape[1] * shape[2] if len(shape) == 3 else 1) ** 0.5 for shape in shapes]
    return made if shortcut else [*made[:4], None, None]


@pytest.mark.parametrize("shortcut", [True, False], ids=["conv", "identity"])
@pytest.mark.parametrize(
    "where",
    [
        dict(pad_left=2),
        dict(pad_left=2, pad_mode="constant"),
        dict(pad_left=8, dilation=4),
        dict(pad_left=1, pad_right=1),
        dict(pad_left=1, pad_right=1, pad_mode="replicate"),
    ],
    ids=["causal", "zeros", "dilated", "centred", "replicated"],
)
def test_every_length_matches_the_reference(where, shortcut, sliced):
    weights = parameters(12, shortcut)
    for length in (1, 2, 3, 4, 9, 32, 33, 67):
        x = sliced(torch.randn(3 if length == 3 else 1, 12, length))
        y = residual_block_triton(x, *weights, **where, precision="ieee", tile=SMALL)
        assert_close(y, residual_block_ref(x, *weights, **where))


@pytest.mark.parametrize("channels", [32, 64, 128, 256])
def test_blocks_of_the_real_models_match_transformers(channels, sliced):
    block = EncodecResnetBlock(EncodecConfig(), channels, [1, 1]).eval()
    first, second, short = block.block[1].conv, block.block[3].conv, block.shortcut.conv
    x = sliced(torch.randn(2, channels, 41))
    with torch.no_grad():
        weights = [t.detach() for conv in (first, second, short) for t in (conv.weight.contiguous(), conv.bias)]
        y = residual_block_triton(x, *weights, pad_left=2, precision="ieee")
        assert_close(y, block.double()(x.double()))


@pytest.mark.parametrize("precision", ["ieee", "tf32x3", "tf32"])
@pytest.mark.parametrize("channels", [32, 128])
def test_production_tiles_match_the_reference(channels, precision, sliced):
    tile = lookup("residual", "sm_90", precision, channels)
    x = sliced(torch.randn(1, channels, tile.block_n + 3))
    weights = parameters(channels)
    bound = {"ieee": 4e-6, "tf32x3": TF32X3, "tf32": TF32}[precision]
    y = residual_block_triton(x, *weights, pad_left=2, precision=precision, tile=tile)
    assert_close(y, residual_block_ref(x, *weights, pad_left=2), bound)


@pytest.mark.parametrize("channels", [12, 256], ids=["fused", "split"])
@pytest.mark.parametrize("shortcut", [True, False], ids=["conv", "identity"])
def test_a_clip_among_longer_ones_has_the_bits_it_has_alone(channels, shortcut, sliced):
    weights = parameters(channels, shortcut)
    tile = SMALL if channels == 12 else None
    lengths = [1, 33, 40]
    x = torch.full((3, channels, 40), float("nan"))
    for clip, length in enumerate(lengths):
        x[clip, :, :length] = torch.randn(channels, length)
    where = dict(pad_left=1, pad_right=1, precision="ieee", tile=tile)
    y = residual_block_triton(sliced(x), *weights, lengths=torch.tensor(lengths, dtype=torch.int32), **where)
    for clip, length in enumerate(lengths):
        assert_same_bits(y[clip : clip + 1, :, :length], residual_block_triton(x[clip : clip + 1, :, :length].clone(), *weights, **where))
        assert (y[clip, :, length:] == 0).all()


def test_no_width_but_the_tables_runs_split(sliced):
    # 96 channels with 96 hidden ones: no row of the table was compiled for that
    weights = parameters(96, hidden=96)
    x = sliced(torch.randn(1, 96, 20))
    assert_close(residual_block_triton(x, *weights, pad_left=2, precision="ieee"), residual_block_ref(x, *weights, pad_left=2))
