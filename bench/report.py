"""Writes docs/benchmarks.md, the README's table and nothing else from bench/results: `python bench/report.py [--check]`.

Every figure of both comes from a row of results; --check writes nothing and fails where a file is not what the rows say.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bench_lib import results, tables
from bench_lib.results import Row
from bench_lib.tables import by_case, threads_of
from gpu.tables import grids, sentences

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs" / "benchmarks.md", ROOT / "README.md"
BEGIN, END = "<!-- benchmarks: written by bench/report.py -->", "<!-- /benchmarks -->"


def page(read: dict[str, list[Row]]) -> str:
    """Returns the whole of docs/benchmarks.md."""
    parts = [
        "# Benchmarks",
        "Written by `python bench/report.py` from the rows in `bench/results/`; no figure here is typed by hand. "
        "`python bench/run.py` measures your machine: see its `--help`.",
        COMMANDS,
        METHOD,
    ]
    cpu, kernels, memory, precision = (read[suite] for suite in ("cpu", "kernels", "memory", "precision"))
    if cpu:
        groups = by_case(cpu)
        parts += [
            "## Whole calls on the CPU",
            tables.speed_table(groups),
            FOOTNOTE,
            "![x real time by case and contender](plots/speed.png)",
        ]
        parts += [
            "### Where another contender is ahead of ours",
            tables.ahead_list(groups),
            "### Every measurement",
            tables.details_table(groups),
            tables.origin(cpu),
        ]
    if read["browser"]:
        cases = [row["case"] for row in read["browser"]]
        native = [row for row in cpu if row["contender"] in ("ours-cpu", "onnxruntime", "openvino") and row["case"] in cases]
        parts += ["## The exported graphs in other runtimes", RUNTIMES, tables.speed_table(by_case([*native, *read["browser"]]))]
        parts += [tables.origin(read["browser"])]
    if kernels:
        parts += [
            "## Each stage against its floor",
            STAGES,
            "![share of floor by stage](plots/stages.png)",
            tables.stage_table(kernels),
            tables.origin(kernels),
        ]
    if memory:
        parts += ["## Time and memory against length", LENGTHS, "![time and memory against length](plots/lengths.png)"]
        parts += [tables.length_table(memory), tables.origin(memory)]
    if precision:
        parts += [
            "## How often a code differs from float64's",
            PRECISION,
            tables.precision_table(precision),
            LEVELS,
            tables.level_table(precision),
        ]
        parts += ["![margins and differing codes](plots/margins.png)", tables.origin(precision)]
    for suite, title in (("dataset", "Tokenizing a dataset"), ("gpu", "Whole calls on a GPU")):
        if read[suite]:
            shown = [DATASET, tables.dataset_table(read[suite])]
            if suite == "gpu":
                shown = [tables.speed_table(by_case(read[suite])), tables.energy_table(read[suite])]
            parts += [f"## {title}", *shown, tables.origin(read[suite])]
    if read["lm"]:
        parts += ["## Coding by a language model", CODING, tables.coding_table(read["lm"]), tables.origin(read["lm"])]
    reports = sorted(results.RESULTS.glob("gpu_report*.jsonl"))
    parts += [gpu_part(path) for path in reports]
    if not read["gpu"] and not reports:
        parts += ["## GPUs", NO_GPU]
    projected = results.read(results.RESULTS / "projected.jsonl")
    if projected:
        parts += [
            "## PROJECTED: GPU kernels by their machine code",
            PROJECTED,
            tables.projected_totals(projected),
            tables.projected_stages(projected),
        ]
    parts += ["## Instructions of the native kernels", INSTRUCTIONS, tables.instruction_table()]
    return "\n\n".join(parts) + "\n"


def gpu_part(path: Path) -> str:
    """Returns the tables of one report of `bench/gpu_report.py`, under the card's name."""
    rows = results.read(path)
    cards = [row["device"] for row in rows if "device" in row]
    measured = "Measured by `python bench/gpu_report.py`; what failed or was left out is said below the tables."
    return "\n\n".join([f"## {' '.join(cards)}", measured, *(grid.markdown() for grid in grids(rows)), *sentences(rows)])


def readme_part(read: dict[str, list[Row]]) -> str:
    """Returns what stands between the markers of the README."""
    rows = [row for row in read["cpu"] if row["contender"] not in ("folded", "onnxruntime") and _is_typical(row["case"])]
    if not rows:
        return ""
    about, groups = rows[-1]["environment"], by_case(rows)
    machine = about["machine"]
    versions = f"torch {about['versions']['torch']}, transformers {about['versions']['transformers']}"
    intro = (
        f"Seconds of audio per second of work on {machine['cores']} cores of an {machine['cpu']} ({about['tier']}), "
        f"{threads_of(about)}, float32, {versions}. Answers were compared first; these are medians of interleaved runs, the fastest in "
        "bold. `python bench/run.py --set readme` measures your machine; [docs/benchmarks.md](docs/benchmarks.md) has every case, spread "
        "and memory."
    )
    losses = tables.ahead_list(groups)
    said = (
        "Another contender is ahead of ours in these cells:\n\n" + losses
        if losses.startswith("-")
        else "No contender is ahead of ours in any cell of this table."
    )
    return "\n\n".join([intro, tables.speed_table(groups), said])


def _is_typical(case: dict[str, Any]) -> bool:
    """Tells whether the README has the case: one clip of 10 s, and eight, at 6 kbps. The page has all of them."""
    return case["batch"] in (1, 8) and case["seconds"] == 10 and case["bandwidth"] == 6


def with_part(readme: str, part: str) -> str:
    """Returns the README with the text between its markers replaced.  Raises ValueError where it has no markers."""
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{README.name} has no lines {BEGIN} and {END}")
    return f"{head}{begin}\n\n{part}\n\n{end}{tail}"


COMMANDS = """\
```bash
pip install -e '.[bench]' && pip install --no-deps encodec    # the contenders; those that are missing are left out
python bench/run.py --set readme                              # a quarter of an hour on two cores; --quick takes two minutes
python bench/plot.py && python bench/report.py                # pictures, this page and the table of the README
python bench/run.py --base main                               # this tree against a revision: faster, slower or noise
```"""
METHOD = """\
Every contender has a process of its own with the same weights, the same number of threads and float32. Its answer is compared with that
of stock `transformers` before it is timed: codes frame by frame, audio within 1e-4 of its peak; a wrong answer gets no time. The
contenders run in turn, round after round, in alternating order; given is the median, and as spread (slowest - fastest) / median. After
every round a matrix product and a copy of torch are timed with the same threads. A measurement is marked as disturbed where other
processes used more than 5 % of the cores during it or the matrix product fell below 80 % of its median rate.

On a machine that others use, `--threads 1 --clock cpu` takes the CPU time of the contender's process in place of wall time, for the
matrix product and the copy as well: of one thread that is the wall time of an idle machine, but for caches and memory shared with
others.

The floor of a call is its arithmetic at the measured rate of the matrix product, or its audio, codes and weights at the measured rate
of the copy, whichever takes longer; a share of 1 means as fast as torch's own product of 768 x 768 matrices. The arithmetic is that of
plain convolutions for every contender. The cpu backend does about 15 % less (Winograd's minimal filtering), so its share can exceed 1.
Set-up is the first call: loading, converting and compiling included."""
FOOTNOTE = "\\* the canary marked this measurement as disturbed. An empty cell was not measured."
RUNTIMES = """\
The graphs of `encodec-fast export`, end to end: audio to codes, codes to audio. onnxruntime and OpenVINO are those of the table above. The
browser is measured by `python bench/tools/browser.py`, in turns of its own; its answers are held by `tests/examples/test_browser.py`."""
STAGES = """\
Each stage by itself, its floor the longer of its arithmetic and of reading its input and weights and writing its output once. The cpu
backend runs several stages on one piece of time before it goes on, so whole calls move less than these stages do; a stage
alone also pays for changing between torch's layout and the engine's, which a whole call does at its ends only."""
LENGTHS = """\
One clip, one run each in a fresh process. Peak memory is what the process held at most beyond model, input and a call of one second.
Answers are compared on the beginning that transformers was run on."""
PRECISION = """\
The truth is transformers in float64. A frame counts once, at its first level that differs; its margin is the relative change of the
embedding that would swap the two codes. SNR and STFT distance are against the audio of transformers in float32: `decode` decodes the
same codes, `round trip` each way's own codes. These weights are untrained, so the sound has no meaning beyond these figures."""
LEVELS = (
    "Share of codes unlike float64's at a level; levels behind a frame's first difference quantize another residual and mostly differ, too."
)
DATASET = (
    "From files to codes on disk, process start and loading of the model included; the loop reads, resamples and encodes file by file."
)
CODING = """\
Random weights of the published sizes, the same for both, at 6 kbps; codes are drawn from the model. What was written is read back before
it is timed. `encodec` 0.1.1 codes one clip at a time. A whole file is audio to bytes, and bytes to audio."""
PROJECTED = """Not measured: `python bench/aot.py --write` compiles every launch, follows the addresses of all threads of a block
through its machine code and counts what each pipe and each memory has to do; the longest bounds the launch. What waits, collides or
overlaps badly is left out. Floors are of perfectly fused stages at the vendor's figures."""
NO_GPU = (
    "Nothing here has run on a GPU. `python bench/gpu_report.py` tells all of one in under ten minutes; the report's JSON lines, kept as "
    "`bench/results/gpu_report-CARD.jsonl`, become a section of this page. `python bench/run.py --suite gpu` adds joules per hour of audio."
)
INSTRUCTIONS = (
    """Counted by callgrind at small sizes, the same in every run; `tests/bench/test_instructions.py` fails on a rise of more than 3 %."""
)

SUITES = ("cpu", "browser", "kernels", "memory", "precision", "dataset", "gpu", "lm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where a file is not what the results say")
    options = parser.parse_args()
    read = {suite: results.latest(results.read(results.RESULTS / f"{suite}.jsonl")) for suite in SUITES}
    wanted = {PAGE: page(read), README: with_part(README.read_text(encoding="utf-8"), readme_part(read))}
    for path, text in wanted.items():
        if options.check:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                sys.exit(f"{path.relative_to(ROOT)} is not what bench/results say: python bench/report.py")
            continue
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
