"""Compiles the launches of a call for an architecture that need not be present, and reads what the machine code needs.

The launcher itself runs, on tensors of device 'meta'. Its launches are recorded and specialised by Triton's own rules
(alignment, ones). So the kernel compiled here is the one that a launch on such tensors would compile.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import jit
from triton.runtime.jit import JITFunction

from encodec_fast.kernels import tiles

# Bytes of shared memory that one block may ask for.  Triton compiles more without an error.
SHARED_LIMITS = {
    "sm_80": 166_912,
    "sm_86": 101_376,
    "sm_89": 101_376,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "sm_120": 101_376,
    "gfx942": 65_536,
}

# Counted in the disassembly: matrix instructions, scalar FMAs, asynchronous copies, spills.
NVIDIA_INSTRUCTIONS = ("HGMMA", "HMMA", "UTCHMMA", "FFMA", "FFMA2", "FADD", "FADD2", "LDGSTS", "UTMALDG", "LDL", "STL", "MUFU")
MATRIX_INSTRUCTIONS = ("HGMMA", "HMMA", "UTCHMMA", "v_mfma")


@dataclass(frozen=True)
class Launch:
    """One recorded kernel launch."""

    kernel: JITFunction
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes: registers per thread, stack (spilled) and shared memory in bytes, counted instructions."""

    registers: int
    stack: int
    shared: int
    threads: int
    instructions: Counter[str]
    seconds: float  # of CPU time that compiling took

    @property
    def matrix_instructions(self) -> set[str]:
        return {name for name in MATRIX_INSTRUCTIONS if self.instructions[name]}


def target_of(arch: str) -> GPUTarget:
    if arch.startswith("gfx"):
        return GPUTarget("hip", arch, 64 if arch.startswith("gfx9") else 32)
    return GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)


@contextlib.contextmanager
def as_on(arch: str) -> Iterator[None]:
    """Makes every device count as one of the architecture: for what is laid out for its tiles before the first launch."""
    arch_of = tiles.arch_of
    tiles.arch_of = lambda device: arch
    try:
        yield
    finally:
        tiles.arch_of = arch_of


def record_launches(call: Callable[[], Any], arch: str) -> list[Launch]:
    """Returns the launches of a call on meta tensors, with the tiles of the architecture, none of them carried out."""
    launches: list[Launch] = []

    def record(kernel: JITFunction, *args: Any, grid: tuple[int, ...], warmup: bool, **kwargs: Any) -> None:
        launches.append(Launch(kernel, grid, args, kwargs))

    run = JITFunction.run
    JITFunction.run = record
    try:
        with as_on(arch):
            call()
    finally:
        JITFunction.run = run
    return launches


class _Specialised(Exception):
    """Leaves Triton's launch where it would begin to compile."""


def specialise(launch: Launch, arch: str) -> tuple[ASTSource, dict[str, Any]]:
    """Returns the source and the options that the launch would be compiled with; `source.hash()` is equal for equal kernels.

    Triton's own launch makes them, whose inner functions change with each release, on a driver that says it has such a device.
    """
    seen: list[tuple[ASTSource, dict[str, Any]]] = []

    def stop(source: ASTSource, target: GPUTarget, options: dict[str, Any], **more: Any) -> None:
        seen.append((source, options))
        raise _Specialised

    target = target_of(arch)
    device = SimpleNamespace(get_current_device=lambda: arch, get_current_stream=lambda device: 0, get_current_target=lambda: target)
    kernel, driver, compiler = launch.kernel, jit.driver, triton.compiler.compile
    # what a launch on a real device left there, or will
    kept = dict(vars(kernel))
    jit.driver, triton.compiler.compile = SimpleNamespace(active=device), stop
    # made anew, with the compiler of this moment
    vars(kernel).update({name: fresh for name, fresh in _fresh_caches(kernel).items() if name in kept})
    try:
        kernel.run(*launch.args, grid=launch.grid, warmup=True, **launch.kwargs)
    except _Specialised:
        pass
    finally:
        jit.driver, triton.compiler.compile = driver, compiler
        vars(kernel).clear()
        vars(kernel).update(kept)
    return seen[0]


def _fresh_caches(kernel: JITFunction) -> dict[str, Any]:
    """What a kernel keeps between launches: `device_caches` from triton 3.3 on, before that `cache` and `binder`."""
    return {"device_caches": defaultdict(kernel.create_binder), "cache": defaultdict(dict), "binder": None}


def compiled(launch: Launch, arch: str) -> Any:
    """Returns what Triton makes of one launch: `asm`, `metadata`.  Raises what Triton and its assembler raise."""
    source, options = specialise(launch, arch)
    return triton.compile(source, target=target_of(arch), options=options)


def compile_launch(launch: Launch, arch: str) -> Resources:
    """Compiles one launch and reads its machine code.  Raises what Triton and its assembler raise."""
    target = target_of(arch)
    began = _cpu_seconds()
    made = compiled(launch, arch)
    seconds = _cpu_seconds() - began
    read = _read_amd if target.backend == "hip" else _read_nvidia
    registers, stack, instructions = read(made)
    return Resources(registers, stack, made.metadata.shared, made.metadata.num_warps * target.warp_size, instructions, seconds)


def compile_all(launches: Sequence[Launch], arch: str, workers: int | None = None) -> list[Resources | Exception]:
    """Returns for each launch what its kernel takes, or the error of compiling it. Processes share the work; equal kernels once.

    workers: processes, by default one per core. Call it before CUDA is initialised: they are forked, for kernels don't pickle.
    """
    specialised = [specialise(launch, arch) for launch in launches]
    keys = [(source.hash(), str(options)) for source, options in specialised]
    distinct = dict(zip(keys, launches, strict=True))
    made = dict(zip(distinct, for_each(list(distinct.values()), arch, compile_launch, workers), strict=True))
    return [made[key] for key in keys]


Found = TypeVar("Found")


def for_each(
    launches: Sequence[Launch], arch: str, each: Callable[[Launch, str], Found], workers: int | None = None
) -> list[Found | Exception]:
    """Returns each(launch, arch) of every launch, or its error, by forked processes that share the work.

    each: a function that a module holds, whose result can be pickled.  workers: processes, by default one per core.
    """
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _inherit, (list(launches), arch)) as pool:
        jobs = [pool.submit(_call_inherited, each, index) for index in range(len(launches))]
    return [error if isinstance(error := job.exception(), Exception) else job.result() for job in jobs]


_inherited: list[Launch] = []
_inherited_arch = ""


def _inherit(launches: list[Launch], arch: str) -> None:
    global _inherited, _inherited_arch
    _inherited, _inherited_arch = launches, arch


def _call_inherited(each: Callable[[Launch, str], Found], index: int) -> Found:
    return each(_inherited[index], _inherited_arch)


def _cpu_seconds() -> float:
    """Of this process and the assemblers it has waited for; a busy machine does not change it."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _read_amd(made: Any) -> tuple[int, int, Counter[str]]:
    code = made.asm["amdgcn"]

    def field(name: str) -> int:
        return max(map(int, re.findall(rf"\.{name}:\s+(\d+)", code)))

    counts = Counter({name: len(re.findall(rf"\b{name}", code)) for name in ("v_mfma", "v_fma", "scratch_")})
    return field("vgpr_count"), field("private_segment_fixed_size"), counts


def _read_nvidia(made: Any) -> tuple[int, int, Counter[str]]:
    # without the analysis that names the targets of jumps, a quarter of its time
    opcodes = Counter(
        re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+\s+)?([A-Z0-9]+)", _read_cubin(made, "nvdisasm", "-c", "-ndf"), re.MULTILINE)
    )
    return *registers_and_stack(made), Counter({name: opcodes[name] for name in NVIDIA_INSTRUCTIONS})


def registers_and_stack(made: Any) -> tuple[int, int]:
    """Returns the registers of a thread, and its bytes of stack, of a kernel for an NVIDIA architecture."""
    # LOCAL stays 0 in kernels that spill, and a failed allocation shows as 32 registers: STACK is the one to read
    found = re.search(r"REG:(\d+) STACK:(\d+)", _read_cubin(made, "cuobjdump", "-res-usage"))
    assert found
    return int(found[1]), int(found[2])


def disassembly(made: Any) -> str:
    """Returns the machine code of a kernel for an NVIDIA architecture as text."""
    return _read_cubin(made, "nvdisasm", "-c")


def _read_cubin(made: Any, name: str, *options: str) -> str:
    """What one of the tools that come with Triton prints of a kernel."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(made.asm["cubin"])
        return subprocess.run([str(tool), *options, str(cubin)], capture_output=True, text=True, check=True).stdout
