"""Everything that one GPU can tell in minutes: python bench/gpu_report.py [--out FOLDER]

It runs from a bare checkout: nothing has to be installed but torch, triton, transformers and rich, and nothing is downloaded.
Each phase is a process of its own with a limit of time. What it finds is a line of JSON in FOLDER/gpu_report.jsonl at once. A crash, a
hang or a full clock thus costs one row: a phase that died, or was silent for too long, goes on behind the piece it died in.
A check that fails marks its row and stops nothing. The last thing printed is the tables, which also stand in FOLDER/gpu_report.txt;
what the phases printed is in FOLDER/gpu_report.log.

    --phases stages,end_to_end     only these
    --minutes 7                    for all of it; what does not fit is named as left out
    --show FILE                    the tables of an earlier report
    --toy                          tiny models; without a GPU in Triton's interpreter, where times mean nothing

Without a GPU it compiles the kernels for --arch and says of the other phases that they need one.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
NAME = "gpu_report"

# A phase may take so many times longer in Triton's interpreter.
INTERPRETED = 5
# For imports, before a process says anything.
START_SECONDS = 60.0

Row = dict[str, Any]


@dataclass(frozen=True)
class Phase:
    """name: of the function in `module` that gives its items.  seconds: for all of it; silence: for one item.

    anywhere: it has something to say without a GPU.
    """

    name: str
    module: str
    seconds: float
    silence: float
    anywhere: bool = False


# In the order of what is worth most if the clock runs out.
PHASES = (
    Phase("card", "gpu.card", 25, 20, anywhere=True),
    Phase("compile_ahead", "gpu.card", 90, 60, anywhere=True),
    Phase("kernels", "gpu.exactness", 60, 30),
    Phase("laws", "gpu.exactness", 60, 30),
    Phase("stages", "gpu.speed", 75, 30),
    Phase("end_to_end", "gpu.speed", 110, 40),
    Phase("codes", "gpu.exactness", 45, 30),
    Phase("variants", "gpu.variants", 45, 20),
    Phase("profile", "gpu.instruments", 80, 45),
    Phase("sanitizer", "gpu.instruments", 95, 50),
    Phase("tokenize", "gpu.host", 60, 45),
    Phase("cpu", "gpu.host", 90, 60, anywhere=True),
)


class Report:
    """The file of rows, which phases append to as well, and the log beside it.  scratch: for weights and other large things, elsewhere."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder, self.scratch = folder, scratch
        self.path, self.log = folder / f"{NAME}.jsonl", folder / f"{NAME}.log"

    def start(self) -> None:
        """Begins anew."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path.write_text("")
        self.log.write_text("")

    def append(self, row: Row) -> None:
        # one write of one line: two processes never mix theirs
        line = json.dumps({key: _storable(value) for key, value in row.items()}) + "\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)

    def rows(self, phase: str | None = None) -> list[Row]:
        rows = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        return [row for row in rows if phase in (None, row["phase"])]


def _storable(value: Any) -> Any:
    # JSON has no NaN; a number that is none is what a reader must see
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def import_path() -> Path:
    """Returns a folder that holds the package as an installation would: encodec_fast, and kernels/ as encodec_fast.kernels."""
    site = ROOT / "build" / "site"
    package = site / "encodec_fast"
    package.mkdir(parents=True, exist_ok=True)
    wanted = {path.name: path for path in (ROOT / "encodec_fast").iterdir() if path.name != "__pycache__"}
    wanted["kernels"] = ROOT / "kernels"
    for link in package.iterdir():
        if link.is_symlink() and link.name not in wanted:
            link.unlink()
    for name, target in wanted.items():
        if not (package / name).exists():
            (package / name).unlink(missing_ok=True)
            (package / name).symlink_to(target)
    return site


def environment(interpret: bool) -> dict[str, str]:
    """Returns the environment of a phase: this checkout before whatever is installed.  interpret: the kernels, for want of a GPU."""
    paths = [str(import_path()), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "TRITON_INTERPRET": str(int(interpret))}
    return {**os.environ, **own}


# The parent: it imports neither torch nor anything that could bring it down


def run_phase(phase: Phase, report: Report, options: argparse.Namespace, deadline: float) -> None:
    """Runs the phase to its end, to its limit or to the deadline (of time.monotonic), again and again behind what broke it."""
    seconds = phase.seconds * (INTERPRETED if options.toy else 1)
    end = min(deadline, time.monotonic() + seconds)
    while time.monotonic() < end:
        how = _run_once(phase, report, options, end)
        if how is None:
            return
        begun = [row["begun"] for row in report.rows(phase.name) if "begun" in row]
        broken = bool(begun) and not _ended(report, phase.name, begun[-1])
        report.append({"phase": phase.name, "item": begun[-1] if broken else "start", "failed": how})
        if not broken:
            return  # it does not even begin
    if not any("complete" in row for row in report.rows(phase.name)):
        report.append({"phase": phase.name, "item": "the rest", "left_out": f"its {seconds:g} s were over"})


def _ended(report: Report, phase: str, item: str) -> bool:
    return any(row.get("ended") == item for row in report.rows(phase))


def _run_once(phase: Phase, report: Report, options: argparse.Namespace, end: float) -> str | None:
    """How the process of the phase broke, or None if it came to its end."""
    command = [sys.executable, str(BENCH / f"{NAME}.py"), "--run", phase.name, "--module", phase.module, "--out", str(report.folder)]
    command += ["--scratch", str(report.scratch), "--arch", options.arch, *(["--toy"] if options.toy else [])]
    # the compiler is rehearsed too
    interpret = options.toy and not options.has_gpu and phase.name != "compile_ahead"
    with report.log.open("ab") as log:
        log.write(f"--- {phase.name}\n".encode())
        log.flush()
        said = log.tell()
        # a session of its own: what it started goes with it
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environment(interpret))
    size, heard, patience = report.path.stat().st_size, time.monotonic(), START_SECONDS
    try:
        while process.poll() is None:
            now = time.monotonic()
            if report.path.stat().st_size != size:
                size, heard, patience = report.path.stat().st_size, now, phase.silence * (INTERPRETED if options.toy else 1)
            if now - heard > patience:
                return f"silent for {now - heard:.0f} s"
            if now > end:
                return "its time was over"
            time.sleep(0.05)
    finally:
        _end(process)
    if process.returncode == 0:
        return None
    words = report.log.read_bytes()[said:].decode(errors="replace").strip().splitlines()
    ended = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
    return f"{ended}: {words[-1][:300]}" if words else ended


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and all that it started."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sent)
        except ProcessLookupError:
            break
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


# The child


def run_items(phase: str, items: Iterable[Any], report: Report, fatal: Callable[[Exception], bool]) -> None:
    """Works through the items of a phase that no earlier process of it has begun; a row for each thing found.

    fatal: whether this process can't go on after the error; the next one does.
    """
    begun = {row["begun"] for row in report.rows(phase) if "begun" in row}
    for item in items:
        if item.name in begun:
            continue
        start = time.perf_counter()
        report.append({"phase": phase, "begun": item.name})
        try:
            for row in item.rows():
                report.append({"phase": phase, "item": item.name, **row})
        except Exception as error:  # one item's error is its row
            words = str(error).strip().splitlines() or [""]
            report.append({"phase": phase, "item": item.name, "failed": f"{type(error).__name__}: {words[0][:300]}"})
            traceback.print_exception(error)
            if fatal(error):
                raise
        report.append({"phase": phase, "ended": item.name, "took_s": round(time.perf_counter() - start, 2)})
    report.append({"phase": phase, "complete": True})


def device_is_lost(error: Exception) -> bool:
    """Returns whether the device is lost: after an illegal address every call of the process fails."""
    import torch

    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def demanded_backend() -> AbstractContextManager[None]:
    """Demands triton, on which ours runs or fails: another backend's figures would stand under the GPU's name."""
    from encodec_fast import use_backend
    from encodec_fast.backends.registry import get_backend

    return nullcontext() if get_backend("triton").unavailable() else use_backend("triton")


def child(options: argparse.Namespace, report: Report) -> None:
    """Runs one phase in this process."""
    import torch

    from gpu.setting import Setting

    torch.set_grad_enabled(False)
    if os.environ.get("TRITON_INTERPRET") == "1":
        from bench_lib.interpreted import quicken

        quicken()
    setting = Setting(options.arch, options.toy, report.scratch, report.path)
    module = importlib.import_module(options.module)
    if options.only_stage or options.only_toy:
        from gpu import instruments

        instruments.run_stage(setting, options.only_stage) if options.only_stage else instruments.run_toy(setting)
        return
    with demanded_backend():
        run_items(options.run, getattr(module, options.run)(setting), report, device_is_lost)


# What is read at the end


def verdict(rows: list[Row]) -> tuple[str, bool]:
    """Returns the last line, and whether nothing was red."""
    checks = [row for row in rows if "passed" in row]
    red = [row for row in checks if not row["passed"]]
    failed = [row for row in rows if "failed" in row]
    left_out = [row for row in rows if "left_out" in row]
    line = f"{len(checks)} checks, {len(red)} red; {len(failed)} pieces failed; {len(left_out)} left out"
    return line, not red and not failed


def show(rows: list[Row], folder: Path | None) -> bool:
    """Prints the tables; writes them to the folder too. Whether nothing was red."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from gpu.tables import grids, sentences

    line, green = verdict(rows)
    for console in [Console()] + ([Console(file=(folder / f"{NAME}.txt").open("w", encoding="utf-8"), width=120)] if folder else []):
        for grid in grids(rows):
            table = Table(title=grid.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
            for index, heading in enumerate(grid.headings):
                table.add_column(heading, overflow="fold", justify="right" if index and heading not in ("found", "said") else "left")
            for row in grid.rows:
                table.add_row(*row)
            console.print(table, markup=False, highlight=False)
        for sentence in sentences(rows):
            console.print(sentence, markup=False, highlight=False)
        console.print(line, markup=False, highlight=False)
        console.file.flush()
    return green


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ROOT / "build" / NAME)), help="folder of the report")
    parser.add_argument("--minutes", type=float, default=7.0, help="for all phases together (7)")
    parser.add_argument("--phases", help=f"only these, separated by commas: {', '.join(phase.name for phase in PHASES)}")
    parser.add_argument("--arch", default="sm_90", help="what to compile for where there is no GPU (sm_90)")
    parser.add_argument("--toy", action="store_true", help="tiny models and short audio")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the tables of an earlier report and end")
    # how it starts itself
    for hidden in ("--run", "--module", "--only-stage"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only-toy", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    missing = [name for name in ("torch", "triton", "transformers", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        parser.exit(2, f"{NAME}: {', '.join(missing)} not installed for {sys.executable}; nothing else is needed\n")
    if options.phases:
        unknown = set(options.phases.split(",")) - {phase.name for phase in PHASES}
        if unknown:
            parser.error(f"--phases: {', '.join(sorted(unknown))} is none of {', '.join(phase.name for phase in PHASES)}")
    return options


def main() -> None:
    options = arguments()
    if options.show:
        sys.exit(0 if show([json.loads(line) for line in options.show.read_text().splitlines()], None) else 1)
    if options.run or options.only_stage or options.only_toy:
        options.module = options.module or "gpu.instruments"
        child(options, Report(options.out, options.scratch))
        return
    # a SIGTERM, of a machine that is taken back, must not leave phases behind
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as scratch:
        green = run_all(options, Report(options.out, Path(scratch)))
    sys.exit(0 if green else 1)


def run_all(options: argparse.Namespace, report: Report) -> bool:
    """Runs the phases and prints what they found; whether nothing was red."""
    report.start()
    began = time.monotonic()
    deadline = began + 60 * options.minutes
    # until the card has said otherwise
    options.has_gpu = True
    for phase in PHASES:
        if options.phases and phase.name not in options.phases.split(","):
            continue
        if not options.has_gpu and not options.toy and not phase.anywhere:
            report.append({"phase": phase.name, "left_out": "no GPU"})
            continue
        if time.monotonic() >= deadline:
            report.append({"phase": phase.name, "left_out": f"the {options.minutes:g} minutes were over"})
            continue
        print(f"{time.monotonic() - began:5.0f} s  {phase.name}", flush=True)
        run_phase(phase, report, options, deadline)
        for row in report.rows("card"):
            if "arch" in row:
                options.arch, options.has_gpu = row["arch"], row["device"] != "none"
    return show(report.rows(), report.folder)


if __name__ == "__main__":
    main()
