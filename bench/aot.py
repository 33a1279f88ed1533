"""Prints what every kernel costs on a GPU that need not be there: python bench/aot.py [--arch sm_90] [--model demo] [--details]

Each kernel is compiled and its machine code read. Its whole-number arithmetic is carried out for all threads of a block: that gives the
rounds of every loop, the bank conflicts of shared memory and the sectors of global memory. A launch takes as long as its longest pipe.
All times are PROJECTED: what waits, collides or overlaps badly on a real GPU is left out. Clock and rates: bench/projection/hardware.py.
--write puts the rows of all cases into bench/results/projected.jsonl, which docs/benchmarks.md shows.
With another version of Triton the same kernels cost something else: run it with the one that your GPU has.
"""

from __future__ import annotations

import argparse
import json
import os

import triton
from rich.console import Console
from rich.table import Table

from bench_lib.results import RESULTS, read
from projection.calls import CASES, PARTS, Projection, project
from projection.cost import PIPES
from projection.hardware import GPUS

STORED = RESULTS / "projected.jsonl"
# Columns of --details.
TIMES = (*PIPES, "l2", "memory", "latency")


def summary(found: Projection, call: str) -> Table:
    """Returns a row per launch, in 80 columns."""
    table = Table(title=f"{call}: {found.case} on {GPUS[found.arch].name}", caption=_total(found, call), pad_edge=False)
    for heading in ("stage", "kernel", "times", "bound by", "PROJECTED ms", "floor ms"):
        table.add_column(heading, justify="left" if heading in ("stage", "kernel", "bound by") else "right")
    for stage in found.part(call):
        floor = "" if stage.floor is None else f"{stage.floor:.3f}"
        time = f"{stage.milliseconds(GPUS[found.arch].launch):.3f}"
        table.add_row(_short(stage.stage), _kernel(stage.cost.kernel), str(stage.times), stage.cost.bound, time, floor)
    return table


def details(found: Projection, call: str) -> Table:
    """Returns what each launch takes, ms by what could bound it, and the loops that bank conflicts bound."""
    table = Table(title=f"{call}: {found.case} on {GPUS[found.arch].name}, ms", caption=_total(found, call))
    headings = ("stage", "kernel", "blocks", "waves", "registers", "shared KiB", *TIMES, "conflicts", "sectors", "bound by conflicts")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("stage", "kernel", "bound by conflicts") else "right")
    for stage in found.part(call):
        cost = stage.cost
        times = [f"{'[bold]' * (name == cost.bound)}{stage.times * cost.milliseconds[name]:.3f}" for name in TIMES]
        resources = str(cost.blocks), str(cost.waves), str(cost.registers), f"{cost.shared / 1024:.0f}"
        conflicted = " ".join(region.line for region in cost.regions if region.bound_by_conflicts)
        sectors = f"{cost.sectors / cost.least_sectors:.2f} x" if cost.least_sectors else ""
        table.add_row(_short(stage.stage), _kernel(cost.kernel), *resources, *times, f"{cost.conflicts:.0%}", sectors, conflicted)
    return table


def _total(found: Projection, call: str) -> str:
    gpu = GPUS[found.arch]
    seconds = found.case.clips * 10
    total = found.milliseconds(call)
    return (
        f"PROJECTED {total:.1f} ms ({seconds * 1000 / total:,.0f} x real time), floor {found.floor(call):.1f} ms; "
        f"{found.launches(call)} launches, {gpu.launch} us each in a graph; triton {triton.__version__}"
    )


def _short(stage: str) -> str:
    return stage.replace(".layers.", " ")


def _kernel(name: str) -> str:
    return name.removeprefix("_").removesuffix("_kernel")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", choices=list(GPUS), help="sm_90 by default, with --write all")
    parser.add_argument("--model", nargs="+", choices=sorted({case.model for case in CASES}), help="all by default")
    parser.add_argument("--clips", nargs="+", type=int, choices=sorted({case.clips for case in CASES}), help="all by default")
    parser.add_argument("--precision", nargs="+", default=["parity", "fast"], choices=sorted({case.precision for case in CASES}))
    parser.add_argument("--details", action="store_true", help="a wide table: every pipe, registers, conflicts, sectors")
    parser.add_argument("--write", action="store_true", help=f"store all cases in {STORED.name}")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that compile (one per core)")
    arguments = parser.parse_args()
    console = Console(width=230 if arguments.details else None)
    if arguments.write:
        write(console, arguments.arch or list(GPUS), arguments.workers)
        return
    for arch in arguments.arch or ["sm_90"]:
        for case in CASES:
            wanted = ((arguments.model, case.model), (arguments.clips, case.clips), (arguments.precision, case.precision))
            if all(allowed is None or value in allowed for allowed, value in wanted):
                found = project(case, arch, arguments.workers)
                for call in PARTS:
                    console.print(details(found, call) if arguments.details else summary(found, call))


def write(console: Console, archs: list[str], workers: int | None) -> None:
    """Stores every case, in place of what was stored for these architectures and this version of Triton."""
    lines = [json.dumps(row) for row in read(STORED) if row["triton"] != triton.__version__ or row["arch"] not in archs]
    for arch in archs:
        for case in CASES:
            found = project(case, arch, workers)
            lines += [json.dumps({**row, "triton": triton.__version__}) for row in found.rows()]
            console.print(f"{arch} {case}: " + ", ".join(f"{call} {found.milliseconds(call):.1f} ms" for call in PARTS))
    STORED.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
