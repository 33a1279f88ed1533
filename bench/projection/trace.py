"""Carries a kernel's whole-number arithmetic out for one block, and keeps what each of its memory accesses touches."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from projection.ptx import Instruction, Program, Value, signed

WARP = 32
BANKS = 32
SECTOR = 32
# Bytes that the second-level cache sends an SM in a cycle.
L2_BYTES = 64
# A block that runs longer than this is taken for one that never ends.
MOST_STEPS = 3_000_000


@dataclass
class Access:
    """What one instruction of the program touched, summed over its executions and over the warps of the block.

    wavefronts: cycles in which shared memory serves it; least_wavefronts: those of as many bytes without conflict.
    sectors: of 32 bytes of global memory; least_sectors: those that the different bytes of its requests would fill.
    unknown: executions whose addresses depend on data; they count as without conflict and in as few sectors as can be.
    uncached: whether it asks the second-level cache every time, behind the first-level one.
    """

    kind: str  # "load", "store" or "copy" (global to shared)
    space: str  # "shared", "global" or "global to shared"
    line: str
    width: int  # bytes of a lane
    wavefronts: int = 0
    least_wavefronts: int = 0
    sectors: int = 0
    least_sectors: int = 0
    unknown: int = 0
    uncached: bool = False


@dataclass
class Trace:
    """executions of every instruction; accesses by instruction.

    touched: for 'load', 'store' and 'uncached' accesses the numbers of the different global sectors.
    latency: cycles of the block alone on an SM. It waits for results, matrix units, shared memory and the way to the second-level cache,
    but never for a turn to issue.
    """

    executions: list[int]
    accesses: dict[int, Access]
    touched: dict[str, set[int]]
    latency: float


# Cycles from issue to result; Hopper's and Ampere's differ by less than what is left out here.
LATENCY = {
    "float": 4.0,
    "int": 5.0,
    "special": 20.0,
    "shuffle": 24.0,
    "shared": 30.0,
    "matrix": 33.0,
    "global": 550.0,
    "barrier": 20.0,
    # a barrier of the grid, 1.5 us on an H100: from the last store until the counter shows it, then until a block that looks has seen it
    "release": 1500.0,
    "acquire": 1500.0,
}
_SPECIAL = ("ex2", "lg2", "rcp", "sqrt", "rsqrt", "sin", "cos", "tanh", "div")


@functools.cache
def _latency_of(opcode: str) -> float:
    stem = opcode.split(".")[0]
    if stem in _SPECIAL and (".f32" in opcode or ".f16" in opcode):
        return LATENCY["special"]
    if stem in ("shfl", "redux", "vote"):
        return LATENCY["shuffle"]
    if stem in ("mma", "wgmma"):
        return LATENCY["matrix"]
    if stem in ("div", "rem"):
        return 20 * LATENCY["int"]
    return LATENCY["float"] if ".f" in opcode else LATENCY["int"]


class Block:
    """One block of a launch.

    parameters: by position, a number or None for what is not a whole number.  threads: of the block.  index: (x, y, z) of the block.
    matrix_cycles: in which the matrix units of an SM carry an instruction of a warp (mma) out for all warps of the block.
    """

    def __init__(
        self,
        program: Program,
        parameters: list[int | None],
        threads: int,
        index: tuple[int, int, int],
        grid: Sequence[int],
        matrix_cycles: Callable[[str], float] = lambda opcode: 0.0,
    ) -> None:
        self.program, self.threads, self.matrix_cycles = program, threads, matrix_cycles
        self.special: dict[str, Value] = {"%tid.x": np.arange(threads, dtype=np.int64), "%tid.y": 0, "%tid.z": 0, "%ntid.x": threads}
        for axis, name in enumerate("xyz"):
            self.special[f"%ctaid.{name}"] = index[axis]
            self.special[f"%nctaid.{name}"] = grid[axis] if axis < len(grid) else 1
        self.special |= {"%laneid": self.special["%tid.x"] % WARP, "global_smem": 0, "WARP_SZ": WARP}
        self.parameters: Mapping[str, int | None] = dict(zip(program.parameters, parameters, strict=False))
        self.everyone = np.ones(threads, bool)
        self.values: dict[str, Value] = {}
        self.ready: dict[str, float] = {}
        self.accesses: dict[int, Access] = {}
        self.touched: dict[str, list[np.ndarray]] = defaultdict(list)
        self.executions = [0] * len(program.instructions)
        # nothing starts before `sync`; `latest` is the last start, `settled` the end of what the next barrier waits for;
        # all blocks walk alike, so what this one has told the others by `released` they have told it
        self.sync = self.latest = self.settled = self.released = self.end = 0.0
        self.copies: list[float] = [0.0]
        # when each is free again
        self.matrix = self.shared_port = self.global_port = 0.0

    def run(self) -> Trace:
        instructions, position, steps = self.program.instructions, 0, 0
        while position < len(instructions):
            instruction = instructions[position]
            self.executions[position] += 1
            steps += 1
            assert steps < MOST_STEPS, f"the block is still running after {MOST_STEPS} instructions"
            if instruction.target:
                position = self._branch(instruction, position)
            elif instruction.stem in ("ret", "exit"):
                if self._guard(instruction) is not False:
                    break
                position += 1
            else:
                self._step(instruction, position)
                position += 1
        touched = {kind: set(np.unique(np.concatenate(parts)).tolist()) for kind, parts in self.touched.items()}
        return Trace(self.executions, self.accesses, touched, self.end)

    def _value(self, name: str) -> Value:
        if name[0] == "%":
            return self.special[name] if name in self.special else self.values.get(name)
        if name in self.special:
            return self.special[name]
        if name.startswith(("0f", "0F")):
            return int(name[2:], 16)
        return int(name.rstrip("U"), 0) if name.lstrip("-")[:1].isdigit() else None

    def _guard(self, instruction: Instruction) -> Value:
        """Whether it is carried out: True, False, an array [threads] of both, or None."""
        if not instruction.guard:
            return True
        guard = self._value(instruction.guard)
        if guard is None:
            return None
        if isinstance(guard, np.ndarray):
            guard = ~guard if instruction.unless else guard
            return bool(guard[0]) if guard.all() or not guard.any() else guard
        return bool(guard) != instruction.unless

    def _branch(self, instruction: Instruction, position: int) -> int:
        guard, target = self._guard(instruction), self.program.labels[instruction.target]
        # in order: the next round begins after the last start of this one
        self.sync = max(self.sync, self.latest)
        if isinstance(guard, np.ndarray):
            # some threads go each way: both ways are walked, those that skip stay behind
            guard = False if target > position else True
        if guard is None:
            # data decides: the way with less code
            guard = self.program.to_end[target] < self.program.to_end[position + 1]
        return target if guard else position + 1

    def _step(self, instruction: Instruction, position: int) -> None:
        guard = self._guard(instruction)
        if guard is False:
            return
        opcode, ready = instruction.opcode, self.ready
        start = self.sync
        for name in instruction.sources:
            start = max(start, ready.get(name, 0.0))
        for name, _ in instruction.address:
            start = max(start, ready.get(name, 0.0))
        latency = _latency_of(opcode)
        if instruction.stem == "mov" and len(instruction.dests) + len(instruction.sources) > 2:
            self._move_parts(instruction, guard)
        elif instruction.compute is not None:
            values = [self._value(name) for name in instruction.sources]
            known = all(value is not None for value in values)
            self._assign(instruction.dests[0], instruction.compute(values) if known else _partly(instruction, values), guard)
        elif instruction.stem == "mov" and instruction.sources[0] in self.special:
            self._assign(instruction.dests[0], self._value(instruction.sources[0]), guard)
        elif opcode.startswith("ld.param"):
            self._assign(instruction.dests[0], self.parameters.get(instruction.address[0][0]), guard)
            latency = 0.0
        elif instruction.stem in ("ld", "st", "cp", "ldmatrix", "stmatrix", "atom", "red"):
            latency = self._memory(instruction, position, guard, start)
        elif instruction.stem in ("bar", "barrier"):
            self.sync = max(start, self.latest, self.settled) + LATENCY["barrier"]
            latency = 0.0
        elif opcode.startswith("shfl.sync.idx") and instruction.sources[1].isdigit():
            self._assign(instruction.dests[0], self._of_lane(self._value(instruction.sources[0]), int(instruction.sources[1])), guard)
            latency = LATENCY["shuffle"]
        elif instruction.stem == "wgmma":
            latency = self._matrix(instruction, start)
        else:
            if instruction.stem == "mma":
                start = max(start, self.matrix)
                self.matrix = start + self.matrix_cycles(opcode)
            for name in instruction.dests:
                self.values.pop(name, None)
        self.latest = max(self.latest, start)
        for name in instruction.dests:
            ready[name] = start + latency
        self.end = max(self.end, start + latency)

    def _move_parts(self, instruction: Instruction, guard: Value) -> None:
        """Joins narrow registers to a wide one, or takes a wide one apart; the lowest first."""
        whole = int(instruction.opcode.split(".")[1][1:])
        values = [self._value(name) for name in instruction.sources]
        if any(value is None for value in values):
            parts: list[Value] = [None] * len(instruction.dests)
        elif len(values) > 1:
            bits = whole // len(values)
            parts = [signed(sum((value & (1 << bits) - 1) << bits * place for place, value in enumerate(values)), whole)]
        else:
            bits = whole // len(instruction.dests)
            parts = [signed(values[0] >> bits * place, bits) for place in range(len(instruction.dests))]
        for name, part in zip(instruction.dests, parts, strict=True):
            self._assign(name, part, guard)

    def _of_lane(self, value: Value, lane: int) -> Value:
        return np.repeat(value[lane::WARP], WARP) if isinstance(value, np.ndarray) else value

    def _assign(self, name: str, value: Value, guard: Value) -> None:
        if isinstance(guard, np.ndarray) and value is not None:
            before = self.values.get(name)
            value = None if before is None else np.where(guard, value, before)
        if value is None or guard is None:
            self.values.pop(name, None)
        else:
            self.values[name] = value

    def _matrix(self, instruction: Instruction, start: float) -> float:
        if "mma_async" in instruction.opcode:
            # one after the other on the matrix unit, beside everything else
            self.matrix = max(self.matrix, start) + LATENCY["matrix"]
            return 0.0
        if "wait_group" in instruction.opcode:
            self.sync = max(self.sync, self.matrix)
        return 0.0

    # ---- memory

    def _memory(self, instruction: Instruction, position: int, guard: Value, start: float) -> float:
        opcode = instruction.opcode
        if opcode.startswith(("cp.async.commit", "cp.async.mbarrier")):
            self.copies.append(0.0)
            return 0.0
        if opcode.startswith("cp.async.wait"):
            left = int(instruction.sources[0]) if instruction.sources and "all" not in opcode else 0
            self.sync = max([self.sync, *self.copies[: len(self.copies) - 1 - left]])
            return 0.0
        for name in instruction.dests:
            self.values.pop(name, None)
        shared, width = "shared" in opcode, _width(opcode, instruction)
        copied = opcode.startswith("cp.async")
        space = "global to shared" if copied else "shared" if shared else "global"
        kind = "copy" if copied else "load" if instruction.stem in ("ld", "ldmatrix") else "store"
        uncached = any(word in opcode for word in (".cg", ".acquire", ".release", "atom"))
        access = self.accesses.setdefault(position, Access(kind, space, instruction.line, width, uncached=uncached))
        active = self.everyone if guard is None or guard is True else guard
        before = access.wavefronts, access.sectors
        if shared:
            self._shared(access, instruction.address[0], active, width)
        if not shared or copied:
            reading = active
            if copied and len(instruction.sources) == 2:
                # the last source says how many bytes are read; the rest are zeros
                size = self._value(instruction.sources[-1])
                reading = active if size is None else active & (np.broadcast_to(size, active.shape) > 0)
            self._global(access, instruction.address[-1], reading, width, kind)
        # what comes from the first-level cache is not told apart from what the second level sends
        self.shared_port = max(self.shared_port, start) + access.wavefronts - before[0]
        if access.sectors > before[1]:
            self.global_port = max(self.global_port, start) + SECTOR * (access.sectors - before[1]) / L2_BYTES
        waited = max(self.shared_port if shared else start, start if kind == "store" else self.global_port) - start
        if copied:
            self.copies[-1] = max(self.copies[-1], start + waited + LATENCY["global"])
            return 0.0
        if ".release" in opcode:
            self.released = max(start, self.latest) + LATENCY["release"]
            return 0.0
        if ".acquire" in opcode:
            self.sync = max(start, self.released) + LATENCY["acquire"]
            return 0.0
        latency = waited + LATENCY["shared" if shared else "global"]
        if shared:
            self.settled = max(self.settled, start + latency)
        return latency if kind == "load" else 0.0

    def _addresses(self, address: tuple[str, int]) -> np.ndarray | None:
        base = self._value(address[0])
        return None if base is None else np.broadcast_to(np.asarray(base, np.int64) + address[1], (self.threads,))

    def _shared(self, access: Access, address: tuple[str, int], active: np.ndarray, width: int) -> None:
        where = self._addresses(address)
        for warp, lanes in _asking(active):
            least = max(1, WARP * width // (4 * BANKS))
            access.least_wavefronts += least
            if where is None:
                access.unknown += 1
            access.wavefronts += least if where is None else wavefronts(where[warp], lanes, width)

    def _global(self, access: Access, address: tuple[str, int], active: np.ndarray, width: int, kind: str) -> None:
        where = self._addresses(address)
        for warp, lanes in _asking(active):
            if where is None:
                access.unknown += 1
                access.sectors += (least := -(-int(lanes.sum()) * width // SECTOR))
                access.least_sectors += least
                continue
            sectors, least = _sectors(where[warp][lanes], width)
            access.sectors += len(sectors)
            access.least_sectors += least
            self.touched["uncached" if access.uncached else "store" if kind == "store" else "load"].append(sectors)


def _asking(active: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Each warp with threads that take part, and which of them do."""
    for warp in _warps(len(active)):
        if active[warp].any():
            yield warp, active[warp]


@functools.cache
def _warps(threads: int) -> list[slice]:
    return [slice(first, first + WARP) for first in range(0, threads, WARP)]


_known_sectors: dict[tuple[int, bytes], tuple[np.ndarray, int]] = {}


def _sectors(addresses: np.ndarray, width: int) -> tuple[np.ndarray, int]:
    """The different sectors of one access of a warp, and how many its different bytes would fill."""
    first = addresses[0] // SECTOR
    relative = addresses - first * SECTOR
    key = (width, relative.tobytes())
    if key not in _known_sectors:
        picked = np.unique(relative)
        sectors = np.unique(np.concatenate((picked // SECTOR, (picked + width - 1) // SECTOR)))
        _known_sectors[key] = sectors, -(-len(picked) * width // SECTOR)
    sectors, least = _known_sectors[key]
    return sectors + first, least


def _partly(instruction: Instruction, values: list[Value]) -> Value:
    """What is known of a result when not all sources are: false and anything is false."""
    if instruction.opcode == "and.pred" and any(value is not None and not np.any(value) for value in values):
        return False
    return None


def _width(opcode: str, instruction: Instruction) -> int:
    """Bytes of a lane."""
    if "matrix" in opcode:
        return 16
    if opcode.startswith("cp.async"):
        return int(instruction.sources[0], 0)
    return _bytes_of(opcode)


@functools.cache
def _bytes_of(opcode: str) -> int:
    count, bits = re.search(r"\.v(\d)", opcode), re.search(r"\.[bfsu](\d+)$", opcode)
    assert bits, opcode
    return int(bits[1]) // 8 * (int(count[1]) if count else 1)


_known_wavefronts: dict[tuple[int, bytes, bytes], int] = {}


def wavefronts(addresses: np.ndarray, active: np.ndarray, width: int) -> int:
    """Cycles of shared memory for one access of a warp.

    4 bytes of each of 32 banks a cycle; lanes of 8 and 16 bytes in halves and quarters of a warp, whatever words they share.
    """
    relative = addresses - addresses[0] // 128 * 128
    key = (width, relative.tobytes(), active.tobytes())
    if key not in _known_wavefronts:
        group = max(1, min(WARP, 128 // max(width, 4)))
        _known_wavefronts[key] = sum(
            _cycles(relative[first : first + group][active[first : first + group]], width) for first in range(0, WARP, group)
        )
    return _known_wavefronts[key]


def _cycles(addresses: np.ndarray, width: int) -> int:
    """Different words in the bank that has the most."""
    if not len(addresses):
        return 0
    words = np.unique(addresses[:, None] // 4 + np.arange(max(1, width // 4)))
    return int(np.bincount(words % BANKS).max())
