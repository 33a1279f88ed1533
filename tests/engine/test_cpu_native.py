"""The C++ engine by itself: sanitizers, the same bits from an ARM build, sums in registers, and a build that fails."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from encodec_fast.kernels.cpu import build as native_build
from encodec_fast.kernels.cpu import library as native
from support.engine import engine

CPP = Path(__file__).parent / "cpp"
# lines, not variables: what a report shows, and a quarter quicker to compile
SANITIZERS = ("-g1", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
RACES = ("-g1", "-O1", "-fsanitize=thread")
CASES = "24"
FORGED = "60"

compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
needs_compiler = pytest.mark.skipif(compiler is None, reason="no C++ compiler")


def fuzz_program(folder: Path, command: Sequence[str], library: Path, flags: tuple[str, ...] = (), name: str = "engine_fuzz") -> Path:
    """A fuzz, linked with that build of the engine."""
    program, source = folder / name, str(CPP / f"{name}.cpp")
    include, link = f"-I{native_build.SOURCES}", (str(library), f"-Wl,-rpath,{library.parent}", "-pthread")
    subprocess.run([*command, "-std=c++17", "-O1", *flags, include, source, *link, "-o", str(program)], check=True)
    return program


def digests(command: list[str], cases: str = CASES) -> str:
    done = subprocess.run([*command, "0", cases], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    # of Windows, lines end otherwise
    return done.stdout.replace("\r\n", "\n")


@pytest.fixture(scope="module")
def checked_library(tmp_path_factory):
    """The engine built with these sanitizers; one build of each."""
    made = {}

    def library(flags):
        if flags not in made:
            folder = tmp_path_factory.mktemp("checked")
            command = [compiler, *flags, "-xc++", "-", "-o", str(folder / "probe")]
            if subprocess.run(command, input=b"int main(){}", capture_output=True).returncode:
                pytest.skip(f"{compiler} has no {flags[2]}")
            made[flags] = native_build.build(folder, compiler, extra_flags=flags)
        return made[flags]

    return library


@needs_compiler
@pytest.mark.parametrize("flags", [SANITIZERS, RACES], ids=["address and undefined behaviour", "races"])
def test_random_programs_agree_with_themselves_under_sanitizers(tmp_path, checked_library, flags):
    program = fuzz_program(tmp_path, [compiler], checked_library(flags), flags)
    assert len(digests([str(program)]).splitlines()) == int(CASES)


@needs_compiler
def test_a_forged_state_is_refused_or_goes_on_under_sanitizers(tmp_path, checked_library):
    program = fuzz_program(tmp_path, [compiler], checked_library(SANITIZERS), SANITIZERS, "saved_fuzz")
    assert len(digests([str(program)], FORGED).splitlines()) == int(FORGED)


@needs_compiler
@pytest.mark.parametrize("flags", [(), RACES], ids=["plain", "races"])
def test_calls_within_calls_keep_to_their_threads(tmp_path, flags):
    sources = (str(CPP / "nested_tasks.cpp"), str(native_build.SOURCES / "runtime" / "threads.cpp"))
    program = tmp_path / "nested_tasks"
    built = subprocess.run([compiler, "-std=c++17", "-pthread", *flags, f"-I{native_build.SOURCES}", *sources, "-o", str(program)])
    if flags and built.returncode:
        pytest.skip(f"{compiler} has no {flags[2]}")
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="puts an allocator in the C library's place")
def test_a_push_works_after_one_that_ran_out_of_memory(tmp_path):
    library = Path(engine()._name)
    program, link = tmp_path / "out_of_memory", (str(library), f"-Wl,-rpath,{library.parent}", "-pthread", "-rdynamic")
    source = str(CPP / "out_of_memory.cpp")
    subprocess.run([compiler, "-std=c++17", f"-I{native_build.SOURCES}", source, *link, "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# Other builds of the engine: its compiler, what it compiles for, and what runs the program here. {} is this Python.
ZIG = "{} -m ziglang c++ -target"
BUILDS = {
    "clang": ("clang++", platform.machine(), []),
    "arm": ("aarch64-linux-gnu-g++", "aarch64", ["qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu"]),
    "zig": (f"{ZIG} x86_64-linux-gnu.2.28", "x86_64", []),
    "zig for arm": (f"{ZIG} aarch64-linux-gnu.2.28", "aarch64", ["qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu"]),
    "zig for Windows": (f"{ZIG} x86_64-windows-gnu", "x86_64", ["wine"]),
    "zig for macOS": (f"{ZIG} aarch64-macos", "aarch64", None),
    "zig for macOS, Intel": (f"{ZIG} x86_64-macos", "x86_64", None),
}


@pytest.fixture(scope="module")
def digests_here(tmp_path_factory):
    """Those of the engine that the package uses, made once for all builds that are compared with it."""
    engine()
    return digests([str(fuzz_program(tmp_path_factory.mktemp("here"), [compiler], native_build.SOURCES / native.LIBRARY))])


@needs_compiler
@pytest.mark.parametrize("command, machine, runner", BUILDS.values(), ids=BUILDS)
def test_builds_of_other_compilers_and_machines_give_the_same_bits(tmp_path, monkeypatch, digests_here, command, machine, runner):
    words = command.format(sys.executable).split()
    if "ziglang" in words and importlib.util.find_spec("ziglang") is None:
        pytest.skip("needs ziglang: pip install ziglang")
    for program in [words[0], *(runner or [])[:1]]:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    monkeypatch.setenv("CXX", " ".join(words))
    library = native_build.build(tmp_path / "own", machine=machine)
    if runner is None:
        return  # nothing runs it here
    own = fuzz_program(tmp_path / "own", words, library)
    monkeypatch.setenv("WINEPREFIX", str(tmp_path / "wine"))
    monkeypatch.setenv("WINEDEBUG", "-all")
    assert digests([*runner, str(own)]) == digests_here


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists() or platform.machine() != "x86_64", reason="needs an x86 Linux's /proc/cpuinfo")
def test_the_tiers_are_those_that_the_system_says_the_processor_has():
    flags = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split())
    avx2 = flags >= {"avx2", "fma"}
    names = native.tiers(engine())
    assert ("avx2" in names) == avx2 == ("avx512_emulated" in names)
    assert ("avx512" in names) == (avx2 and flags >= {"avx512f", "avx512bw"}) and "baseline" in names


# What multiplies and adds, and what stores a whole vector register, in the assembly of each set.
ASSEMBLY = {
    "x86_64": (r"vfmadd\d+ps\s", r"v?mov[au]ps\s+%[xyz]mm\d+, [^%]*\("),
    "aarch64": (r"fmla\s+v", r"st[rp]\s+q\d+|st1\s"),
}


def innermost_loops(assembly: str) -> list[list[str]]:
    """The lines of each loop that holds no other, by jumps back to a label."""
    lines = assembly.splitlines()
    labels = {line[:-1]: at for at, line in enumerate(lines) if re.fullmatch(r"\.L\w+:", line)}
    ends = {at: re.search(r"\t(?:j|b|cbn?z|tbn?z).*(\.L\w+)$", line) for at, line in enumerate(lines)}
    loops = [(labels[jump[1]], at) for at, jump in ends.items() if jump and labels.get(jump[1], at) < at]
    return [lines[a : b + 1] for a, b in loops if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in loops)]


@needs_compiler
@pytest.mark.parametrize(("machine", "tier", "vecs"), [("x86_64", "avx512", 4), ("x86_64", "avx2", 2), ("aarch64", "neon", 4)])
def test_the_sums_of_a_product_stay_in_registers_while_the_depth_goes_by(machine, tier, vecs):
    command = shutil.which(f"{machine}-linux-gnu-g++")
    if command is None:
        pytest.skip(f"needs {machine}-linux-gnu-g++")
    source, flags = native_build.SOURCES / "simd" / f"tier_{tier}.cpp", native_build.TIERS[machine][f"simd/tier_{tier}"]
    compile_ = [command, *native_build.FLAGS, *flags, "-S", str(source), "-o", "-"]
    assembly = subprocess.run(compile_, capture_output=True, text=True, check=True).stdout
    multiplies, stores = ASSEMBLY[machine]
    seen: dict[str, set[int]] = {}
    for function in re.split(r"\n(?=_Z[\w.$]+:)", assembly):
        name = function.partition(":")[0]
        if not re.search(r"run_(?:tiles|rows|panel_rows|few_rows)", name):
            continue
        for loop in innermost_loops(function):
            count = sum(bool(re.search(multiplies, line)) for line in loop)
            if count:
                seen.setdefault(name, set()).add(count)
                assert not [line for line in loop if re.search(stores, line)], "\n".join(loop)
    # of one, two and three rows, several panels at once; a compiler may take more than one step of the depth in a turn
    for rows, panels in ((1, 6), (2, 3), (3, 2)):
        (counts,) = [counts for name, counts in seen.items() if f"run_tilesILi{rows}ELi{vecs}ELi{panels}E" in name]
        assert max(counts) % (rows * vecs * panels) == 0


def test_a_build_without_a_compiler_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(native_build.BuildError, match=r"install g\+\+ or clang\+\+"):
        native_build.build(tmp_path)


def test_a_compiler_of_several_words_and_flags_of_the_environment_are_heeded(tmp_path, monkeypatch):
    """And no flag changes a bit: fast mathematics is asked for, and not given."""
    seen = []
    monkeypatch.setattr(native_build, "_run", seen.append)
    monkeypatch.setenv("CXX", "ccache g++")
    monkeypatch.setenv("CXXFLAGS", "-O2 -ffast-math -DNAME='a b'")
    monkeypatch.setenv("LDFLAGS", "-Wl,-z,now")
    with pytest.raises(FileNotFoundError):  # nothing was linked
        native_build.build(tmp_path)
    *units, link = seen
    assert all(command[:2] == ["ccache", "g++"] for command in seen) and "-Wl,-z,now" in link
    for command in units:
        assert "-DNAME=a b" in command
        assert command.index("-ffast-math") < command.index("-fno-fast-math") and command.index("-O2") < command.index("-O3")


def test_a_compiler_that_fails_is_quoted(tmp_path):
    with pytest.raises(native_build.BuildError, match="failed"):
        native_build.build(tmp_path, compiler="false")


def test_a_missing_library_says_how_to_get_one(tmp_path):
    with pytest.raises(native.LibraryMissing, match="C\\+\\+17 compiler"):
        native.bind(tmp_path / native.LIBRARY)


def test_a_file_that_is_no_library_is_not_loaded(tmp_path):
    (tmp_path / native.LIBRARY).write_bytes(b"nothing")
    with pytest.raises(native.LibraryMissing, match="can't be loaded"):
        native.bind(tmp_path / native.LIBRARY)


@pytest.mark.parametrize(
    ("cuts", "message"),
    [("tiles=4", 'there is no cut "tiles": cuts are clips, piece, wave'), ("tile", "NAME=BOUND"), ("wave=5000000000", "bound of a cut")],
)
def test_an_unknown_cut_is_refused(cuts, message):
    with pytest.raises(native.EngineError, match=message):
        native.set_cuts(engine(), cuts)


def test_the_environment_changes_cuts_and_no_bit():
    script = """
import torch
from encodec_fast.backends.cpu_backend import CpuBackend
from encodec_fast.plan.reader import read_plan
from support.models import audio_like, pair, small_config
encoder = read_plan(pair(small_config())[1]).encoder.stages
print(CpuBackend().prepare(encoder).run(audio_like(3, 1, 5000, 0)).double().sum().item().hex())
"""
    command, found = [sys.executable, "-c", script], set()
    for cuts in ("", "tile=1,wave=1,lstm_steps=1", "clips=1,block=1"):
        environment = {**os.environ, "PYTHONPATH": str(CPP.parents[1]), native.CUTS_VARIABLE: cuts}
        found.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(found) == 1 and "0x" in found.pop()
