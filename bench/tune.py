"""Times the legal tiles of every row of the table on this GPU and rewrites kernels/tile_table.py: python bench/tune.py [--dry-run]

Only rows of this GPU's own architecture are added; the rows for "any" stay for the others. A tile is legal if it compiles
without spilling within the shared memory of a block. block_k is left alone, for it sets the order of summation, and with it
the codes.
Run `pytest tests/aot` and `python bench/gpu_report.py` afterwards. Not yet run on a GPU: without one it stops with a sentence that says so.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from encodec_fast.kernels import aot, tile_table
from encodec_fast.kernels.causal_conv1d import causal_conv1d_triton
from encodec_fast.kernels.residual_block import residual_block_triton
from encodec_fast.kernels.rvq_encode import rvq_encode_triton, search_tables
from encodec_fast.kernels.tiles import Tile, arch_of, lookup

# A layer of the 24 kHz model for each width: channels in, channels out, kernel, stride, steps of 32 clips of 10 s.
CONV_LAYERS = {16: (32, 1, 7, 1, 240_000), 32: (1, 32, 7, 1, 240_000), 64: (32, 64, 4, 2, 240_000), 128: (128, 256, 10, 5, 30_000)}
RESIDUAL_STEPS = {32: 240_000, 64: 120_000, 128: 30_000, 256: 6_000}
CLIPS = 32


def workload(op: str, precision: str, width: int) -> Callable[[Tile], Any] | None:
    """A call of the kernel with a given tile on tensors of the real size, or None for kernels that are not tuned."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device="cuda")

    if op == "conv":
        channels, out_channels, kernel, stride, steps = CONV_LAYERS[width]
        x, weight, bias = random(CLIPS, channels, steps), random(out_channels, channels, kernel), random(out_channels)
        return lambda tile: causal_conv1d_triton(
            x, weight, bias, stride=stride, pad_left=kernel - stride, elu=True, precision=precision, tile=tile
        )
    if op == "residual":
        half = width // 2
        x = random(CLIPS, width, RESIDUAL_STEPS[width])
        weights = [random(*shape) for shape in ((half, width, 3), (half,), (width, half, 1), (width,), (width, width, 1), (width,))]
        return lambda tile: residual_block_triton(x, *weights, pad_left=2, precision=precision, tile=tile)
    if op == "rvq_encode":
        tables, x = search_tables(random(8, 1024, 128)), random(CLIPS if width else 1, 128, 750)
        return lambda tile: rvq_encode_triton(x, tables, 8, precision=precision, tile=tile)
    return None


def candidates(op: str, start: Tile) -> Iterator[Tile]:
    """Tiles around the one in the table, with its block_k."""
    sides_m = {"conv": (16, 32, 64, 128), "residual": (0,), "rvq_encode": (16, 32, 64)}[op]
    for block_m, block_n, warps, stages in itertools.product(sides_m, (32, 64, 128), (4, 8), (1, 2, 3)):
        yield Tile(block_m, block_n, start.block_k, warps, stages)


def legal(call: Callable[[Tile], Any], tile: Tile, arch: str) -> bool:
    launches = aot.record_launches(lambda: call(tile), arch)
    needs = [aot.compile_launch(launch, arch) for launch in launches]
    return all(need.stack == 0 and need.shared <= aot.SHARED_LIMITS[arch] for need in needs)


def milliseconds(call: Callable[[Tile], Any], tile: Tile) -> float:
    for _ in range(3):
        call(tile)
    times = []
    for _ in range(10):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call(tile)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def render(table: dict[tuple[str, str, str, int], Any]) -> str:
    """The table as the source of its file; everything above `TABLE` stays as it is."""
    source = Path(tile_table.__file__).read_text()
    head = source[: source.index("TABLE: dict")]
    annotation = "TABLE: dict[tuple[str, str, str, int], tuple[int, int, int, int, int] | None] = {\n"
    rows = "".join(f'    ("{arch}", "{op}", "{precision}", {width}): {row},\n' for (arch, op, precision, width), row in table.items())
    return head + annotation + rows + "}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="print the rows, do not write the file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, "no GPU is visible to torch: tiles are timed, and there is nothing to time them on\n")
    arch, table = arch_of(torch.device("cuda")), dict(tile_table.TABLE)
    if arch not in aot.SHARED_LIMITS:
        parser.exit(1, f"no shared memory limit is known for {arch}; add it to SHARED_LIMITS in kernels/aot.py\n")
    for op, precision, width in dict.fromkeys(key[1:] for key in tile_table.TABLE):
        start, call = lookup(op, arch, precision, width), workload(op, precision, width)
        if start is None or call is None or (precision == "tf32x3" and arch.startswith("gfx")):
            continue
        times = {tile: milliseconds(call, tile) for tile in candidates(op, start) if legal(call, tile, arch)}
        if not times:
            continue
        best = min(times, key=times.__getitem__)
        print(f"{op} {precision} {width}: {best} {times[best]:.3f} ms, table {times.get(start, float('nan')):.3f} ms")
        table[(arch, op, precision, width)] = (best.block_m, best.block_n, best.block_k, best.num_warps, best.num_stages)
    if arguments.dry_run:
        print(render(table))
    else:
        Path(tile_table.__file__).write_text(render(table))


if __name__ == "__main__":
    main()
