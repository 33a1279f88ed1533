"""Compiles the CPU engine into one shared library that serves any Python and any torch."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent
LIBRARY = "encodec_cpu.so"

# No -ffast-math, no -march=native, no contraction: every rounding is written in the source, and the same on every machine.
FLAGS = (
    "-std=c++17",
    f"-I{SOURCES}",
    "-O3",
    "-ffp-contract=off",
    "-fno-fast-math",  # whatever CXXFLAGS ask for
    "-fPIC",
    "-fvisibility=hidden",
    "-pthread",
    "-Wall",
    "-Wextra",
    "-Werror=switch",  # an activation without its case would write nothing
    "-Wno-psabi",
)
COMMON = (
    "api/engine",
    "api/language_model",
    *(f"net/{unit}" for unit in ("program", "schedule", "cuts", "chain", "stages", "winograd", "lstm", "codebooks", "chunks", "saved")),
    *(f"lm/{unit}" for unit in ("model", "segment", "saved")),
    "simd/tiers",
    "runtime/threads",
)
# The translation units of each machine's instruction sets, each with the flags that switch its set on.
TIERS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "simd/tier_avx512": ("-mavx512f", "-mavx512bw", "-mfma"),
        "simd/tier_avx2": ("-mavx2", "-mfma"),
        "simd/tier_avx512_emulated": ("-mavx2", "-mfma"),
        "simd/tier_baseline": (),
    },
    # GCC's first scheduling pass loads weights early there, which takes registers from the sums of the widest tiles
    "aarch64": {"simd/tier_neon": ("-fno-schedule-insns",), "simd/tier_baseline": ()},
}
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


class BuildError(Exception):
    """The engine can't be compiled here; the message says why and what would help."""


def find_compiler() -> list[str] | None:
    """Returns the C++ compiler's command: the CXX environment variable, which may be `ccache g++`, else c++, g++ or clang++; or None."""
    if named := flags_of_environment("CXX"):
        return named
    return next(([name] for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


def flags_of_environment(name: str) -> list[str]:
    """Returns the user's words in a variable such as CXXFLAGS. They come first, so that FLAGS have the last word on arithmetic."""
    # paths of Windows have backslashes
    return shlex.split(os.environ.get(name, ""), posix=os.name != "nt")


def target_machine() -> str:
    """Returns what this Python's wheels are for, as platform.machine() has it; tools that build for others say so to sysconfig."""
    machine = sysconfig.get_platform().rpartition("-")[2]
    return platform.machine().lower() if machine == "universal2" else machine


def compile_units(
    folder: str | os.PathLike[str], command: str | Sequence[str], machine: str, extra_flags: tuple[str, ...] = ()
) -> list[str]:
    """Compiles objects into `folder`, one of each translation unit for that machine.  Raises BuildError where the compiler fails."""
    units = {**dict.fromkeys(COMMON, ()), **TIERS.get(MACHINES.get(machine, machine), {"simd/tier_baseline": ()})}
    objects = [str(Path(folder) / f"{unit.replace('/', '_')}.o") for unit in units]
    jobs = [
        [*_words(command), *_flags("CXXFLAGS"), *FLAGS, *flags, *extra_flags, "-c", str(SOURCES / f"{unit}.cpp"), "-o", out]
        for (unit, flags), out in zip(units.items(), objects)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, jobs))
    return objects


def build(
    output_dir: str | os.PathLike[str],
    compiler: str | None = None,
    machine: str | None = None,
    extra_flags: tuple[str, ...] = (),
) -> Path:
    """Compiles the library into `output_dir` and returns its path.

    compiler: default the CXX environment variable, else c++, g++ or clang++.  machine: what it compiles for, default this one.
    CXXFLAGS, LDFLAGS and ARCHFLAGS are heeded, but for what would change the arithmetic.
    Raises BuildError without a C++17 compiler that has GCC's vector extensions, or where it fails.
    """
    command = _words(compiler) if compiler else find_compiler()
    if command is None:
        raise BuildError("no C++ compiler found: install g++ or clang++, or name one in CXX, and install again")
    target = Path(output_dir) / LIBRARY
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        objects = compile_units(scratch, command, machine or target_machine(), extra_flags)
        # under its own name, which a library of Windows holds; what else linkers write is gone with the folder
        linked = Path(scratch) / LIBRARY
        _run([*command, *_flags("LDFLAGS"), "-shared", "-pthread", *extra_flags, *objects, "-o", str(linked)])
        # beside its place, and then renamed: no other process ever loads half a library
        placed = target.with_suffix(f".{os.getpid()}.tmp")
        shutil.copy(linked, placed)
        placed.replace(target)
    return target


def _flags(name: str) -> list[str]:
    # the second is how Python's tools name an architecture on macOS
    return [*flags_of_environment(name), *flags_of_environment("ARCHFLAGS")]


def _words(command: str | Sequence[str]) -> list[str]:
    return [command] if isinstance(command, str) else [*command]


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"{command[0]} can't be run: {error}") from error
    if done.returncode:
        raise BuildError(f"{' '.join(command)} failed:\n{done.stderr.strip()}")


if __name__ == "__main__":
    print(build(SOURCES))
