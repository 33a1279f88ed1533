"""residual_block against its reference and against EnCodec's module."""

import pytest
import torch
from bounds import PRODUCTS, assert_close, assert_same_bits
from ops import Padding, among_longer_ones, residual
from transformers import EncodecConfig
from transformers.models.encodec.modeling_encodec import EncodecResnetBlock

from encodec_fast.kernels.residual_block import residual_block_ref
from encodec_fast.kernels.tiles import Tile, lookup

SMALL = Tile(32, 16, 1, 1)
CAUSAL = Padding(2, 0, "reflect")


def parameters(channels, shortcut=True, hidden=None, kernel=3):
    hidden = hidden or channels // 2
    shapes = [(hidden, channels, kernel), (hidden,), (channels, hidden, 1), (channels,), (channels, channels, 1), (channels,)]
    made = [torch.randn(shape) / (shape[1] * shape[2] if len(shape) == 3 else 1) ** 0.5 for shape in shapes]
    return made if shortcut else [*made[:4], None, None]


@pytest.mark.parametrize("shortcut", [True, False], ids=["conv", "identity"])
@pytest.mark.parametrize(
    ("padding", "dilation"),
    [
        (CAUSAL, 1),
        (Padding(2), 1),
        (Padding(8, 0, "reflect"), 4),
        (Padding(1, 1, "reflect"), 1),
        (Padding(1, 1, "replicate"), 1),
    ],
    ids=["causal", "zeros", "dilated", "centred", "replicated"],
)
def test_every_length_matches_the_reference(padding, dilation, shortcut, sliced):
    # 24 channels fill no block, 64 fill them all, and are two blocks of columns
    for channels in (24, 64):
        weights = parameters(channels, shortcut)
        for length in (1, 2, 3, 4, 9, 32, 33, 67):
            x = sliced(torch.randn(3 if length == 3 else 1, length, channels))
            where = dict(dilation=dilation, activation="elu" if length % 2 > 0 else "none")
            tile = SMALL if channels == 24 else Tile(32, 32, 1, 1)
            assert_close(residual(x, *weights, padding, **where, tile=tile), residual_block_ref(x, *weights, padding, **where))


@pytest.mark.parametrize("mode", ["ieee", "split"])
@pytest.mark.parametrize("channels", [32, 64, 128, 256])
def test_blocks_of_the_real_models_match_transformers(channels, mode, sliced):
    block = EncodecResnetBlock(EncodecConfig(), channels, [1, 1]).eval()
    first, second, short = block.block[1].conv, block.block[3].conv, block.shortcut.conv
    x = sliced(torch.randn(2, 41, channels))
    with torch.no_grad():
        weights = [t.detach() for conv in (first, second, short) for t in (conv.weight.contiguous(), conv.bias)]
        y = residual(x, *weights, CAUSAL, mode=mode)
        assert_close(y, block.double()(x.double().transpose(1, 2)).transpose(1, 2))


@pytest.mark.parametrize("mode", ["ieee", "split", "tf32"])
@pytest.mark.parametrize("channels", [32, 128])
def test_production_tiles_match_the_reference(channels, mode, sliced):
    tile = lookup("residual", "sm_90", mode, channels)
    x = sliced(torch.randn(1, tile.block_m + 3, channels))
    weights = parameters(channels)
    y = residual(x, *weights, CAUSAL, mode=mode, tile=tile)
    assert_close(y, residual_block_ref(x, *weights, CAUSAL), PRODUCTS[mode])


@pytest.mark.parametrize("mode", ["ieee", "split", "tf32"])
@pytest.mark.parametrize("shortcut", [True, False], ids=["conv", "identity"])
def test_a_clip_among_longer_ones_has_the_bits_it_has_alone(mode, shortcut, sliced):
    weights = parameters(24, shortcut)
    lengths = [1, 33, 40]
    x, own = among_longer_ones(lengths, 24, 40)
    padding, where = Padding(1, 1, "reflect"), dict(mode=mode, tile=SMALL)
    y = residual(sliced(x), *weights, padding, lengths=own, **where)
    for clip, length in enumerate(lengths):
        assert_same_bits(y[clip : clip + 1, :length], residual(x[clip : clip + 1, :length].clone(), *weights, padding, **where))


def test_any_width_runs(sliced):
    # 96 channels with 96 hidden ones: no row of the table was compiled for that
    weights = parameters(96, hidden=96)
    x = sliced(torch.randn(1, 20, 96))
    assert_close(residual(x, *weights, CAUSAL), residual_block_ref(x, *weights, CAUSAL))
