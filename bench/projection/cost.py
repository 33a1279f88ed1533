"""What a launch costs: cycles of each pipe of an SM, bytes of each memory, and the longest of them."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from projection import compile_ahead, ptx, sass
from projection.hardware import GPUS, PARTITIONS, Gpu
from projection.trace import WARP, Block, Trace

# Along an axis of the grid with at most so many blocks every one is followed, along a longer one that in the middle.
FEW_BLOCKS = 4
PIPES = ("issue", "fma", "alu", "special", "matrix", "shared")


@dataclass(frozen=True)
class Region:
    """A loop without those inside it, or what stands in no loop.

    line: 'file:line' of its first memory access, or ''.  rounds: of the loop in one block.  cycles: of an SM for one block, by pipe.
    conflicts: those of cycles['shared'] that bank conflicts take.
    """

    line: str
    rounds: float
    cycles: dict[str, float]
    conflicts: float

    @property
    def bound(self) -> str:
        return max(self.cycles, key=self.cycles.__getitem__)

    @property
    def bound_by_conflicts(self) -> bool:
        """Returns whether another pipe would be the longest if there were none."""
        others = max(cycles for pipe, cycles in self.cycles.items() if pipe != "shared")
        return self.bound == "shared" and self.cycles["shared"] - self.conflicts < others


@dataclass(frozen=True)
class Cost:
    """One launch on one GPU.

    blocks: of the grid.  resident: blocks that fit on an SM.  waves: rounds in which the SMs take the blocks.
    sectors, least_sectors: that the loads of one block ask for, and that their bytes would fill.
    matrix: whether matrix instructions run.  unknown: accesses of one block whose addresses depend on data.
    milliseconds: by what could bound it.
    """

    kernel: str
    blocks: int
    threads: int
    registers: int
    stack: int
    shared: int
    resident: int
    waves: int
    regions: tuple[Region, ...]
    sectors: float
    least_sectors: float
    matrix: bool
    unknown: float
    milliseconds: dict[str, float]

    @property
    def bound(self) -> str:
        return max(self.milliseconds, key=self.milliseconds.__getitem__)

    @property
    def time(self) -> float:
        """Milliseconds of the longest, nothing for the launch."""
        return max(self.milliseconds.values())

    @property
    def conflicts(self) -> float:
        """Returns the share of the cycles of shared memory that bank conflicts take."""
        shared = sum(region.cycles["shared"] for region in self.regions)
        return sum(region.conflicts for region in self.regions) / shared if shared else 0.0


def launch_cost(launch: compile_ahead.Launch, arch: str) -> Cost:
    """Compiles a launch for an architecture of GPUS and follows its blocks.  Raises what the compiler raises, and `sass.LoopsDiffer`."""
    made = compile_ahead.compiled(launch, arch)
    return cost_of(made, _parameters(launch, arch), launch.grid, _tensor_bytes(launch), GPUS[arch])


def launch_key(launch: compile_ahead.Launch, arch: str) -> Hashable:
    """Returns what `launch_cost` depends on: launches with equal keys cost the same."""
    source, options = compile_ahead.specialise(launch, arch)
    return source.hash(), str(options), tuple(_parameters(launch, arch)), tuple(launch.grid), _tensor_bytes(launch)


def _tensor_bytes(launch: compile_ahead.Launch) -> int:
    return sum({id(value): value.nbytes for value in launch.args if isinstance(value, torch.Tensor)}.values())


def cost_of(made: Any, parameters: list[int | None], grid: Sequence[int], tensor_bytes: int, gpu: Gpu) -> Cost:
    """Returns what a compiled kernel costs, with the parameters of its launch in order, None for what is not a whole number.

    made: of `compile_ahead.compiled`.  tensor_bytes: of the tensors that it takes.
    """
    registers, stack = compile_ahead.registers_and_stack(made)
    program, code = ptx.parse(made.asm["ptx"]), sass.parse(compile_ahead.disassembly(made))
    threads, blocks = made.metadata.num_warps * WARP, math.prod(grid)
    share = threads / WARP / PARTITIONS
    cycles = functools.cache(lambda opcode: share * _of_a_warp(opcode, gpu))
    traces = [Block(program, parameters, threads, index, grid, cycles).run() for index in _followed(grid)]
    regions = _regions(code, program, traces, threads, gpu)
    resident = gpu.resident(threads, registers, made.metadata.shared)
    loads = [access for trace in traces for access in trace.accesses.values() if access.kind != "store" and access.space != "shared"]
    return Cost(
        kernel=made.metadata.name,
        blocks=blocks,
        threads=threads,
        registers=registers,
        stack=stack,
        shared=made.metadata.shared,
        resident=resident,
        waves=math.ceil(blocks / (gpu.sms * resident)),
        regions=regions,
        sectors=sum(access.sectors for access in loads) / len(traces),
        least_sectors=sum(access.least_sectors for access in loads) / len(traces),
        matrix=any(sass.pipe_of(opcode) == "matrix" for opcode, _ in code.instructions),
        unknown=sum(access.unknown for trace in traces for access in trace.accesses.values()) / len(traces),
        milliseconds=_milliseconds(traces, regions, blocks, resident, tensor_bytes, gpu),
    )


def _parameters(launch: compile_ahead.Launch, arch: str) -> list[int | None]:
    """Of the compiled kernel, in order: tensors as addresses far from each other, whole numbers as they are."""
    source, _ = compile_ahead.specialise(launch, arch)
    given = {**dict(zip(launch.kernel.arg_names, launch.args, strict=False)), **launch.kwargs}
    addresses = itertools.count(1)
    found: list[int | None] = []
    for name in launch.kernel.arg_names:
        if source.signature[name] == "constexpr":
            continue
        value = given[name]
        found.append(next(addresses) << 40 if isinstance(value, torch.Tensor) else value if isinstance(value, int) else None)
    return found


def _followed(grid: Sequence[int]) -> Iterable[tuple[int, int, int]]:
    """Indices of the blocks that stand for all."""
    axes = [range(size) if size <= FEW_BLOCKS and axis > 0 else (size // 2,) for axis, size in enumerate(grid)]
    axes += [(0,)] * (3 - len(axes))
    return itertools.product(*axes)


def _milliseconds(
    traces: Sequence[Trace], regions: Iterable[Region], blocks: int, resident: int, tensor_bytes: int, gpu: Gpu
) -> dict[str, float]:
    # the SM with the most blocks ends last
    most = math.ceil(blocks / gpu.sms)
    cycle = 1e-6 / gpu.ghz
    times = {pipe: most * sum(region.cycles[pipe] for region in regions) * cycle for pipe in PIPES}
    times["latency"] = math.ceil(most / resident) * max(trace.latency for trace in traces) * cycle
    share = 32 * blocks / len(traces)
    once = share * sum(len(sectors) for trace in traces for kind, sectors in trace.touched.items() if kind != "uncached")
    every_time = share * sum(access.sectors for trace in traces for access in trace.accesses.values() if access.uncached)
    times["l2"] = (once + every_time) / (gpu.l2 * 1e9)
    moved = min(share * sum(len(set().union(*trace.touched.values())) for trace in traces), tensor_bytes)
    # what fits the second-level cache was left there by the launch before, and stays for the next
    times["memory"] = moved / (gpu.memory * 1e9) if moved > gpu.l2_bytes else 0.0
    return times


def _regions(code: sass.MachineCode, program: ptx.Program, traces: Sequence[Trace], threads: int, gpu: Gpu) -> tuple[Region, ...]:
    """Mean over the blocks followed."""
    loops = program.loops()
    executions = [sum(trace.executions[index] for trace in traces) / len(traces) for index in range(len(program.instructions))]
    instructions: dict[int, Counter[str]] = defaultdict(Counter)
    matrix_cycles: Counter[int] = Counter()
    wavefronts: Counter[int] = Counter()
    conflicts: Counter[int] = Counter()
    lines: dict[int, str] = {}
    for (opcode, operands), (loop, times) in zip(code.instructions, sass.weights(code, program, executions), strict=True):
        pipe = sass.pipe_of(opcode)
        instructions[loop]["issue"] += times
        instructions[loop][pipe] += times
        if pipe == "matrix":
            cycles, read = _matrix(opcode, operands, gpu)
            matrix_cycles[loop] += times * cycles
            wavefronts[loop] += times * read * threads / WARP / PARTITIONS
        if opcode.startswith("SHFL"):
            wavefronts[loop] += times * threads / WARP
    for trace in traces:
        for index, access in trace.accesses.items():
            loop = _innermost(loops, index)
            lines.setdefault(loop, access.line)
            # a cached load passes the same data path as shared memory, 128 bytes a cycle
            cached = access.sectors / 4 if access.kind == "load" else 0.0
            wavefronts[loop] += (access.wavefronts + cached) / len(traces)
            conflicts[loop] += (access.wavefronts - access.least_wavefronts) / len(traces)
    share = threads / WARP / PARTITIONS
    return tuple(
        Region(
            line=lines.get(loop, ""),
            rounds=max(executions[loops[loop][0]], executions[loops[loop][1]]) if loop >= 0 else 1.0,
            cycles={
                "issue": share * counted["issue"],
                "fma": share * max(gpu.fma * (counted["fma"] + counted["imad"]), gpu.imad * counted["imad"]),
                "alu": share * gpu.alu * counted["alu"],
                "special": share * gpu.special * counted["special"],
                "matrix": share * matrix_cycles[loop],
                "shared": wavefronts[loop],
            },
            conflicts=conflicts[loop],
        )
        for loop in sorted({*instructions, *wavefronts})
        for counted in (instructions[loop],)
    )


def _innermost(loops: Sequence[tuple[int, int]], index: int) -> int:
    """The loop that holds an instruction and starts last; -1 for none."""
    return max((number for number, (first, last) in enumerate(loops) if first <= index <= last), default=-1)


def _matrix(opcode: str, operands: str, gpu: Gpu) -> tuple[float, float]:
    """(cycles of a partition, wavefronts of shared memory for all four) of one warp's matrix instruction."""
    kind = "TF32" if "TF32" in opcode else "BF16" if "BF16" in opcode else "F16"
    rate = gpu.multiply_adds[kind] / PARTITIONS
    if opcode.startswith("HGMMA"):
        found = re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", opcode)
        assert found, opcode
        rows, columns, depth = map(int, found.groups())
        size = 4 if kind == "TF32" else 2
        # the right operand always comes from shared memory, the left one from registers or from there
        sides = columns + (rows if operands.count("gdesc") > 1 or "gdesc" in operands.split(",")[1] else 0)
        return rows * columns * depth / PARTITIONS / rate, sides * depth * size / 128
    shapes = {"1688": 16 * 8 * 8, "16816": 16 * 8 * 16, "1684": 16 * 8 * 4}
    shape = opcode.split(".")[1]
    assert shape in shapes, opcode
    return _warp_cycles(shapes[shape], kind, gpu), 0.0


def _warp_cycles(multiply_adds: int, kind: str, gpu: Gpu) -> float:
    """Of a partition, for an instruction of one warp."""
    return multiply_adds / (gpu.multiply_adds[kind] / PARTITIONS) / gpu.warp_matrix


def _of_a_warp(opcode: str, gpu: Gpu) -> float:
    """Cycles of a partition of one `mma.sync`."""
    found = re.search(r"\.m(\d+)n(\d+)k(\d+)\..*\.(\w+)\.\w+\.f32$", opcode)
    assert found, opcode
    return _warp_cycles(math.prod(map(int, found.groups()[:3])), found[4].upper(), gpu)
