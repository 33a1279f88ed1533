"""Which tile is the fastest? The longest kernels run in turn on one input, with the table's tile and with others."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from encodec_fast.backends.triton_layers import ConvLayer, ResidualLayer, make_layers
from encodec_fast.kernels import tiles
from encodec_fast.kernels.causal_conv1d import causal_conv1d_triton
from encodec_fast.kernels.residual_block import residual_block_triton
from encodec_fast.kernels.rows import empty_rows
from encodec_fast.kernels.rvq_encode import rvq_encode_triton, search_tables
from encodec_fast.kernels.tiles import Tile
from encodec_fast.plan import Plan
from encodec_fast.plan.reader import read_plan
from gpu.setting import Item, Row, Setting
from gpu.timing import in_turn, median

SECONDS = 0.4
# By kernel, precision and width, as the table of tiles has them; all give the same bits.
OTHERS = {
    ("conv", "split", 64): (Tile(128, 64, 4, 3), Tile(64, 64, 4, 2), Tile(256, 64, 8, 2)),
    ("conv", "split", 128): (Tile(128, 128, 8, 3), Tile(64, 128, 4, 2), Tile(128, 64, 4, 3)),
    ("conv", "tf32", 128): (Tile(128, 128, 8, 3), Tile(128, 128, 8, 2), Tile(256, 128, 8, 2)),
    ("residual", "split", 32): (Tile(64, 32, 4, 2), Tile(128, 32, 8, 2), Tile(128, 32, 4, 1)),
    ("residual", "split", 64): (Tile(64, 64, 4, 2), Tile(128, 64, 8, 2), Tile(128, 64, 4, 1)),
    ("residual", "split", 128): (Tile(64, 128, 4, 2), Tile(128, 64, 8, 2), Tile(128, 128, 8, 1)),
    ("residual", "split", 256): (Tile(128, 64, 8, 2), Tile(64, 128, 4, 2), Tile(128, 128, 8, 1)),
    ("rvq_encode", "rerank", 1): (Tile(16, 64, 8, 3), Tile(32, 128, 8, 3), Tile(64, 64, 8, 3), Tile(32, 64, 4, 3)),
}

Run = Callable[[Tile], torch.Tensor]


def variants(setting: Setting) -> Iterator[Item]:
    """Yields one item for each kernel of OTHERS."""
    for key in OTHERS if not setting.toy else [("conv", "split", 64), ("rvq_encode", "rerank", 1)]:
        yield Item(" ".join(map(str, key)), lambda k=key: compared(setting, k))


def compared(setting: Setting, key: tuple[str, str, int]) -> Iterator[Row]:
    """Yields ms of each tile on the widest layer of that kind, the table's first, and whether it gives the table's bits."""
    kernel = " ".join(map(str, key))
    run = kernel_run(read_plan(setting.stock("24 kHz")), key, *_size(setting), setting.device)
    if run is None:
        yield {"kernel": kernel, "said": "the model has no such layer"}
        return
    first, *others = all_tiles(key, tiles.lookup(key[0], setting.arch, *key[1:]))
    expected, same, calls, said = run(first), {first: True}, {_name(first): lambda: run(first)}, {}
    for tile in others:
        try:
            same[tile] = torch.equal(run(tile), expected)
            calls[_name(tile)] = lambda tile=tile: run(tile)
        except Exception as error:  # too much shared memory, or what a compiler says
            said[tile] = f"{type(error).__name__}: {error}"[:120]
    times = {name: median(runs) for name, runs in in_turn(calls, setting.device, SECONDS).items()}
    for tile in (first, *others):
        row: Row = {"kernel": kernel, "tile": _name(tile), "of": "table" if tile is first else "", "ms": times.get(_name(tile))}
        yield row | {"same bits": same.get(tile), "said": said.get(tile, "")} | ({"passed": same[tile]} if tile in same else {})


def all_tiles(key: tuple[str, str, int], own: Tile) -> list[Tile]:
    return list(dict.fromkeys((own, *OTHERS[key])))


def kernel_run(plan: Plan, key: tuple[str, str, int], clips: int, samples: int, device: torch.device) -> Run | None:
    """Returns a call of one kernel with a given tile, on the widest layer of the encoder that the key names; None if it has none."""
    kind, precision, width = key
    if kind == "rvq_encode":
        tables, levels = search_tables(plan.quantizer.codebooks), len(plan.quantizer.codebooks)
        x = torch.randn(clips, plan.encoder.output_length(samples), tables.codebooks.shape[2], device=device).transpose(1, 2)
        return lambda tile: rvq_encode_triton(x, tables, min(8, levels), mode=precision, tile=tile)
    length, found = samples, None
    for stage, layer in zip(plan.encoder.stages, make_layers(plan.encoder.stages, precision, library_lstm=False), strict=True):
        here = isinstance(layer, ResidualLayer) if kind == "residual" else isinstance(layer, ConvLayer) and layer.mode == precision
        columns = min(tiles.block_of(stage.out_channels), 128 if kind == "conv" else 256)
        if here and columns == width:
            found = layer, length
        length = stage.output_length(length)
    if found is None:
        return None
    layer, length = found
    padding, channels = layer.padding, layer.conv.in_channels
    like = torch.empty(0, device=device)
    rows = empty_rows(like, clips, length, channels, padding.left, padding.tail)
    if not rows.buffer.is_meta:
        rows.buffer.normal_()
    if isinstance(layer, ResidualLayer):
        return lambda tile: (
            residual_block_triton(rows, *layer.parameters, padding, dilation=layer.conv.dilation, mode=precision, tile=tile).values
        )
    return lambda tile: causal_conv1d_triton(
        rows, layer.matrix, layer.conv.bias, padding,
        kernel=layer.conv.kernel, dilation=layer.conv.dilation, mode=precision, tile=tile,
    ).values  # fmt: skip


def _size(setting: Setting) -> tuple[int, int]:
    return (32, 10 * setting.config("24 kHz").sampling_rate) if not setting.toy else (2, setting.samples(1.0))


def _name(tile: Tile) -> str:
    return f"{tile.block_m}x{tile.block_n} {tile.num_warps}w {tile.num_stages}s"
