"""Instructions that each native kernel takes at a small size, counted by callgrind: `python bench/tools/instructions.py [--store]`.

The same for every run on any machine of one instruction set, compiler and C library, however busy it is; so a rise is a change
of the code. The stored counts (bench/results/instructions.json) are per compiler and tier; more than LIMIT above them fails
tests/bench/test_instructions.py. A change that is worth its instructions stores new counts in its own commit, and says why.
Valgrind knows no AVX-512: the tiers are avx2 and neon.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# bench/, which holds bench_lib
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench_lib.results import INSTRUCTIONS
from encodec_fast.kernels.cpu import library
from encodec_fast.kernels.cpu.build import find_compiler

PROGRAM = Path(__file__).with_name("instructions.cpp")
LIMIT = 0.03
HEADER = Path("/usr/include/valgrind/callgrind.h")


def missing() -> str | None:
    """Returns what this machine lacks for counting, or None."""
    if shutil.which("valgrind") is None or not HEADER.exists():
        return "valgrind is not installed (Debian and Ubuntu: apt-get install valgrind)"
    if find_compiler() is None:
        return "there is no C++ compiler (CXX, c++, g++ or clang++)"
    try:
        library.load()
    except library.LibraryMissing as error:
        return str(error)
    return None


def tier() -> str:
    """Returns the best tier that valgrind can run."""
    return "neon" if platform.machine() in ("aarch64", "arm64") else "avx2"


def engine() -> Path:
    """Returns the engine of this installation."""
    return library.SOURCES / library.LIBRARY


def key() -> str:
    """Returns the engine's compiler, by its major version, and the tier: counts of different keys are not comparable."""
    found = re.search(rb"GCC: \([^)]*\) (\d+)|clang version (\d+)", engine().read_bytes())
    if found is None:
        return f"unknown compiler, {tier()}"
    return f"{'gcc' if found[1] else 'clang'} {(found[1] or found[2]).decode()}, {tier()}"


def count() -> dict[str, int]:
    """Counts the instructions of each kernel.  Raises RuntimeError with the tool's own words where something fails."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "instructions"
        sources = [str(PROGRAM), str(engine())]
        command = [*(find_compiler() or []), "-std=c++17", "-O1", f"-I{library.SOURCES}", *sources, f"-Wl,-rpath,{library.SOURCES}"]
        _run([*command, "-o", str(program)], folder)
        out = f"--callgrind-out-file={folder}/counts"
        names = _run(["valgrind", "--tool=callgrind", "--collect-atstart=no", out, str(program), tier()], folder).split()
        # dump n of the run is counts.n; its last line with "totals:" or "summary:" holds the sum
        return {name: _total(Path(folder) / f"counts.{number}") for number, name in enumerate(names, 1)}


def _total(path: Path) -> int:
    found = re.findall(r"^(?:totals|summary): (\d+)", path.read_text(), re.MULTILINE)
    return int(found[-1])


def _run(command: list[str], folder: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout


def risen(counts: dict[str, int], stored: dict[str, int]) -> list[str]:
    """Returns a sentence per kernel that takes more than LIMIT above its stored count, or that has none, or that is gone."""
    sentences = [f"{name}: not stored" for name in counts.keys() - stored.keys()]
    sentences += [f"{name}: no longer counted" for name in stored.keys() - counts.keys()]
    for name in counts.keys() & stored.keys():
        change = counts[name] / stored[name] - 1
        if change > LIMIT:
            sentences.append(f"{name}: {counts[name]} instructions, {change:+.1%} against {stored[name]}; at most {LIMIT:+.0%}")
    return sorted(sentences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", action="store_true", help="make the counts of this compiler and tier the ones to compare with")
    options = parser.parse_args()
    reason = missing()
    if reason:
        sys.exit(f"bench/tools/instructions.py: {reason}")
    stored = json.loads(INSTRUCTIONS.read_text()) if INSTRUCTIONS.exists() else {}
    before, counts = stored.get(key(), {}), count()
    for name, instructions in counts.items():
        change = f"{instructions / before[name] - 1:+.2%}" if name in before else "not stored"
        print(f"{name:24} {instructions:>12,}  {change}")
    if options.store:
        INSTRUCTIONS.write_text(json.dumps({**stored, key(): counts}, indent=1, sort_keys=True) + "\n")
    elif before and risen(counts, before):
        sys.exit("\n".join(risen(counts, before)))


if __name__ == "__main__":
    main()
