"""Carries compiled kernels out on the CPU, instruction by instruction of their PTX: what no GPU and no interpreter is there to run.

Whole grids, floats and memory included, with barriers between blocks; not the instructions of four warps (wgmma) nor bulk copies.
"""

import struct

import numpy as np
import torch

from projection import compile_ahead, ptx

WARP = 32
FLOAT = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "min": np.fmin,
    "max": np.fmax,
    "neg": np.negative,
    "abs": np.abs,
    "ex2": np.exp2,
}
COMPARE = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
# comparisons that hold for NaN
UNORDERED = {name + "u": name for name in COMPARE}


# Rows and columns of the matrices of m16n8k16 that a lane's registers hold: [lane, register, half], of the sums [lane, register]
_LANE, _REGISTER, _HALF = np.ogrid[:WARP, :4, :2]
LEFT = _LANE // 4 + _REGISTER % 2 * 8, _LANE % 4 * 2 + _REGISTER // 2 * 8 + _HALF
RIGHT = _LANE % 4 * 2 + _REGISTER[:, :2] * 8 + _HALF, _LANE // 4
SUMS = (_LANE // 4 + _REGISTER // 2 * 8)[..., 0], (_LANE % 4 * 2 + _REGISTER % 2)[..., 0]


class Memory:
    """Tensors, each behind an address of its own that leaves room for none to run into the next."""

    def __init__(self, tensors):
        self.buffers = {number << 40: tensor.detach().view(-1).view(torch.uint8).numpy() for number, tensor in enumerate(tensors, 1)}

    def _places(self, addresses, width):
        base = int(addresses[0]) >> 40 << 40
        buffer = self.buffers[base]
        places = addresses - base
        assert (places >= 0).all() and (places + width <= len(buffer)).all(), "an access outside its tensor"
        return buffer, places[:, None] + np.arange(width)

    def load(self, addresses, width):
        buffer, places = self._places(addresses, width)
        return buffer[places]

    def store(self, addresses, values):
        buffer, places = self._places(addresses, values.shape[1])
        buffer[places] = values


def _as_integers(data):
    """[n, bytes] -> signed integers of that width."""
    return np.ascontiguousarray(data).view({1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}[data.shape[1]])[:, 0].astype(np.int64)


def _as_bytes(values, width):
    return values.astype({1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}[width])[:, None].view(np.uint8)


class EmulatedBlock:
    """One block of threads; `run` is a generator that yields where it waits for other blocks."""

    def __init__(self, program, parameters, threads, index, grid, memory):
        self.program, self.threads, self.memory = program, threads, memory
        self.parameters = dict(zip(program.parameters, parameters, strict=False))
        lanes = np.arange(threads, dtype=np.int64)
        self.special = {"%tid.x": lanes, "%ntid.x": threads, "%laneid": lanes % WARP, "global_smem": 0}
        for axis, name in enumerate("xyz"):
            self.special[f"%ctaid.{name}"] = index[axis]
            self.special[f"%nctaid.{name}"] = grid[axis] if axis < len(grid) else 1
        self.everyone = np.ones(threads, bool)
        self.values = {}
        self.shared = np.zeros(1 << 18, np.uint8)

    def run(self):
        position, active, waiting = 0, self.everyone, {}
        while position < len(self.program.instructions):
            if position in waiting:
                # threads that went ahead meet the others again
                active = active | waiting.pop(position)
                active = self.everyone if active.all() else active
            one = self.program.instructions[position]
            mask = active & self._guard(one) if one.guard else active
            position += 1
            if one.stem in ("ret", "exit") and mask.any():
                assert mask.all()
                return
            if one.stem == "trap":
                assert not mask.any(), "a trap"
            if one.target:
                target = self.program.labels[one.target]
                if mask.all() or (mask == active).all():
                    # nobody of those here stays behind; those elsewhere are further on
                    assert mask.any() and all(place >= target or place >= position for place in waiting)
                    if target < position and not mask.all():
                        # some threads alone go round: they look for what another block is to write
                        yield
                    position = target
                elif mask.any():
                    assert target >= position, "some threads alone go back"
                    waiting[target] = waiting.get(target, np.zeros(self.threads, bool)) | mask
                    active = active & ~mask
            elif mask is self.everyone or mask.any():
                self._step(one, mask)

    def _value(self, name):
        if name in self.special:
            return self.special[name]
        if name[0] == "%":
            return self.values[name]
        if name[:2] in ("0f", "0F"):
            return struct.unpack("<i", struct.pack("<I", int(name[2:], 16)))[0]
        return int(name.rstrip("U"), 0)

    def _of_all(self, value):
        # what already has a number for each thread is most of what comes, and numpy takes its time to see it
        return value if getattr(value, "shape", None) == self.everyone.shape else np.broadcast_to(value, self.everyone.shape)

    def _wide(self, name):
        return self._of_all(np.asarray(self._value(name), np.int64))

    def _float(self, name):
        return self._wide(name).astype(np.int32).view(np.float32)

    def _guard(self, one):
        guard = self._of_all(self._value(one.guard))
        return ~guard if one.unless else guard

    def _assign(self, name, value, mask):
        value = self._of_all(value)
        kind = bool if value.dtype == bool else np.int64
        if mask is self.everyone:
            self.values[name] = value.astype(kind, copy=False)
            return
        before = self.values.get(name, np.zeros(self.threads, kind))
        self.values[name] = np.where(mask, value.astype(kind), before)

    def _step(self, one, mask):
        stem, kinds = one.stem, one.opcode.split(".")[1:]
        if stem in ("ld", "st", "red"):
            self._memory(one, mask)
        elif stem in ("bar", "trap"):
            pass
        elif stem == "mma":
            self._mma(one, mask)
        elif stem == "mov" and len(one.dests) + len(one.sources) > 2:
            self._move_parts(one, mask)
        elif stem == "mov":
            self._assign(one.dests[0], self._value(one.sources[0]), mask)
        elif stem == "selp":
            yes, no, test = (self._value(name) for name in one.sources)
            self._assign(one.dests[0], np.where(test, yes, no), mask)
        elif one.opcode == "cvt.rn.f16.f32":
            with np.errstate(over="ignore"):
                self._assign(one.dests[0], self._float(one.sources[0]).astype(np.float16).view(np.int16), mask)
        elif one.opcode == "cvt.f32.f16":
            halves = self._wide(one.sources[0]).astype(np.int16).view(np.float16)
            self._assign(one.dests[0], halves.astype(np.float32).view(np.int32), mask)
        elif stem == "setp" and "f32" in kinds:
            name = kinds[0]
            a, b = map(self._float, one.sources)
            found = COMPARE[UNORDERED.get(name, name)](a, b)
            self._assign(one.dests[0], found | np.isnan(a) | np.isnan(b) if name in UNORDERED else found, mask)
        elif "f32" in kinds:
            self._assign(one.dests[0], self._floating(stem, [self._float(name) for name in one.sources]), mask)
        else:
            assert one.compute is not None, f"{one.opcode} is not emulated"
            wide = [np.asarray(self._value(name)) for name in one.sources]
            # numpy would shift and multiply single numbers of Python's own width
            values = [int(value) if value.ndim == 0 and value.dtype != bool else value for value in wide]
            self._assign(one.dests[0], np.asarray(one.compute(values)), mask)

    @staticmethod
    def _floating(stem, values):
        with np.errstate(all="ignore"):
            if stem == "fma":
                a, b, c = (value.astype(np.float64) for value in values)
                return (a * b + c).astype(np.float32).view(np.int32)
            return FLOAT[stem](*values).astype(np.float32).view(np.int32)

    def _move_parts(self, one, mask):
        whole = int(one.opcode.split(".")[1][1:])
        if len(one.sources) > 1:
            bits = whole // len(one.sources)
            parts = [(self._wide(name) & (1 << bits) - 1) << bits * place for place, name in enumerate(one.sources)]
            self._assign(one.dests[0], ptx.signed(sum(parts), whole), mask)
        else:
            bits = whole // len(one.dests)
            for place, name in enumerate(one.dests):
                self._assign(name, ptx.signed(self._wide(one.sources[0]) >> bits * place, bits), mask)

    def _memory(self, one, mask):
        if one.opcode.startswith("ld.param"):
            self._assign(one.dests[0], self.parameters[one.address[0][0]], mask)
            return
        kinds = one.opcode.split(".")
        width = int(kinds[-1][1:]) // 8
        base, offset = one.address[0]
        addresses = (self._wide(base) + offset)[mask]
        if not len(addresses):
            return
        if one.stem == "red":
            assert kinds[-2] == "add" and len(addresses) == 1
            now = _as_integers(self.memory.load(addresses, width)) + self._wide(one.sources[0])[mask]
            self.memory.store(addresses, _as_bytes(now, width))
            return
        registers = one.dests if one.stem == "ld" else one.sources
        for place, name in enumerate(registers):
            where = addresses + place * width
            if one.stem == "ld":
                data = self.shared[where[:, None] + np.arange(width)] if "shared" in kinds else self.memory.load(where, width)
                value = np.zeros(self.threads, np.int64)
                value[mask] = _as_integers(data)
                self._assign(name, value, mask)
            elif "shared" in kinds:
                self.shared[where[:, None] + np.arange(width)] = _as_bytes(self._wide(name)[mask], width)
            else:
                self.memory.store(where, _as_bytes(self._wide(name)[mask], width))

    def _mma(self, one, mask):
        """Of a warp, 16 x 8 x 16 of half precision; fragments as in the PTX manual. Sums in float64, rounded once."""
        assert one.opcode == "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32" and mask.all(), one.opcode
        a, b = self._halves(one.sources[:4]), self._halves(one.sources[4:6])
        c = np.stack([self._float(name) for name in one.sources[6:]], 1).reshape(-1, WARP, 4)
        left, right = np.zeros((len(c), 16, 16)), np.zeros((len(c), 16, 8))
        left[(slice(None), *LEFT)] = a
        right[(slice(None), *RIGHT)] = b
        sums = ((left @ right)[(slice(None), *SUMS)] + c).astype(np.float32).reshape(self.threads, 4).view(np.int32)
        for register, name in enumerate(one.dests):
            self._assign(name, sums[:, register], mask)

    def _halves(self, names):
        """[warps, 32, registers, 2] float64."""
        bits = np.stack([self._wide(name) for name in names], 1).astype(np.int32)
        return bits.view(np.float16).reshape(-1, WARP, len(names), 2).astype(np.float64)


def emulate(launch, arch, order=None):
    """Carries out a launch whose tensors hold numbers.  order: of the blocks, a list of their numbers along the first axis of the grid.

    A block runs until it waits for others, then the next one does: a wait that is missing or too short shows. What does not show is how a
    GPU orders memory: here every store is seen at once, and the threads of a block walk together.
    """
    made = compile_ahead.compiled(launch, arch)
    source, _ = compile_ahead.specialise(launch, arch)
    given = {**dict(zip(launch.kernel.arg_names, launch.args, strict=False)), **launch.kwargs}
    names = [name for name in launch.kernel.arg_names if source.signature[name] != "constexpr"]
    tensors = [given[name] for name in names if isinstance(given[name], torch.Tensor)]
    memory, addresses = Memory([_whole(tensor) for tensor in tensors]), iter(range(1, 100))
    parameters = []
    for name in names:
        value = given[name]
        if isinstance(value, torch.Tensor):
            value = (next(addresses) << 40) + value.storage_offset() * value.element_size()
        parameters.append(value)
    program, threads = ptx.parse(made.asm["ptx"]), made.metadata.num_warps * WARP
    numbers = range(launch.grid[0]) if order is None else order
    blocks = [EmulatedBlock(program, parameters, threads, (number, 0, 0), launch.grid, memory).run() for number in numbers]
    while blocks:
        blocks = [block for block in blocks if next(block, "ended") != "ended"]


def _whole(tensor):
    """All of the memory that a tensor is a view of."""
    return torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
