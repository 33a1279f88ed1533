"""The measurement: contenders in processes of their own, checked against transformers, then run in turn, round after round.

Every contender keeps its process and its model for all cases; while one runs, the others wait on their standard input. After each
round the rates of this machine's matrix product and copy are measured with the same threads. Floors and the canary are thus those of
the minutes in which the contenders ran.
"""

from __future__ import annotations

import json
import math
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench_lib.cases import Case, stock_bytes, weights_file
from bench_lib.check import WrongAnswer, check
from bench_lib.machine import busy_seconds, disturbance, others_share, room
from bench_lib.results import Row
from bench_lib.roofline import Work, whole_work

BENCH = Path(__file__).parents[1]
REFERENCE = "hf"
MACHINE = "machine"

# A timed run is repeated until it lasts this long: the kernel counts CPU time in hundredths of a second.
SHORTEST_RUN_S = 0.2
# Idle threads of OpenMP spin for some milliseconds after their work; the next contender starts after them.
SETTLE_S = 0.03
CALL_TIMEOUT_S = 900.0


class ContenderFailed(Exception):
    """A contender raised, ran too long or died; the message says which."""


class Process:
    """A worker, and the conversation with it.  name: of the row; contender: of the worker's class."""

    def __init__(self, name: str, contender: str, threads: int, device: str, clock: str = "wall", packages: Path | None = None) -> None:
        """clock: a name in worker.CLOCKS.  packages: a folder that comes before all installed ones; how another revision is measured."""
        self.name = name
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        if packages is not None:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(packages), environment.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "bench_lib.worker", contender, "--threads", str(threads), "--device", device, "--clock", clock]
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, cwd=BENCH, env=environment, text=True, bufsize=1
        )

    def ask(self, **message: Any) -> Row:
        """Returns the worker's answer.  Raises ContenderFailed where it has none."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
        except BrokenPipeError:
            raise ContenderFailed(f"{self.name} is gone: {self._last_words()}") from None
        if not select.select([self.process.stdout], [], [], CALL_TIMEOUT_S)[0]:
            self.close()
            raise ContenderFailed(f"{self.name} gave no answer to {message['do']} in {CALL_TIMEOUT_S:g} s")
        line = self.process.stdout.readline()
        if not line:
            raise ContenderFailed(f"{self.name} ended with code {self.process.wait()}: {self._last_words()}")
        reply = json.loads(line)
        if "error" in reply:
            raise ContenderFailed(f"{self.name}: {reply['error']}")
        return reply

    def _last_words(self) -> str:
        self.log.seek(0)
        return (self.log.read().strip().splitlines() or ["it said nothing"])[-1]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class Measured:
    """One contender's runs of one case."""

    setup_seconds: float
    times: int = 1
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    elapsed: float = 0.0
    busy: float = 0.0
    joules: list[float] = field(default_factory=list)
    check: Row = field(default_factory=dict)

    def add(self, reply: Row, busy: float) -> None:
        self.seconds.append(reply["seconds"])
        self.cpu_seconds += reply["cpu_seconds"]
        self.elapsed += reply["wall_seconds"]
        self.busy += busy
        if "joules" in reply:
            self.joules.append(reply["joules"])

    @property
    def others_share(self) -> float:
        """Returns the share of all cores that other processes used during the runs, at least 0."""
        return others_share(self.busy, self.cpu_seconds, self.elapsed)


class Harness:
    """Processes of contenders, each started at its first case and kept for all others."""

    def __init__(
        self, threads: int, device: str = "cpu", clock: str = "wall", variants: Mapping[str, tuple[str, Path]] | None = None
    ) -> None:
        """variants: names for contenders with other packages, as (contender, folder of the packages)."""
        self.threads, self.device, self.clock, self.variants = threads, device, clock, variants or {}
        self.processes: dict[str, Process] = {}
        self.scratch = tempfile.TemporaryDirectory()

    def process(self, name: str) -> Process:
        """Returns the contender's process; a fresh one where the last one has died."""
        if name not in self.processes or self.processes[name].process.poll() is not None:
            contender, packages = self.variants.get(name, (name, None))
            self.processes[name] = Process(name, contender, self.threads, self.device, self.clock, packages)
        return self.processes[name]

    def close(self) -> None:
        """Ends all processes."""
        for process in self.processes.values():
            process.close()
        self.scratch.cleanup()

    def measure(self, case: Case, contenders: Sequence[str], rounds: int, seconds: float) -> list[Row]:
        """Returns a row per contender: its times, its check and the machine's rates, or why it has none.

        rounds: how often each contender runs; fewer, though at least 3, where the case would take longer than `seconds`.
        Raises ContenderFailed where the reference itself fails.
        """
        weights_file(case.model)
        measured: dict[str, Measured] = {}
        rows: list[Row] = []
        expected: Tensor | None = None
        if REFERENCE not in contenders or self._too_large(case, REFERENCE):
            expected = self._expected(case)
        # transformers comes first: its answer is the one that the others are compared with
        for name in sorted(contenders, key=lambda name: name != REFERENCE):
            try:
                measured[name], answer = self._prepare(case, name, expected)
            except (ContenderFailed, WrongAnswer) as error:
                rows.append({"case": case.fields(), "contender": name, "failed": str(error)})
                if expected is None:
                    return rows
                continue
            expected = answer if expected is None else expected
        rates: list[Row] = []
        end = time.monotonic() + seconds
        for number in range(rounds if measured else 0):
            if number >= 3 and time.monotonic() > end:
                break
            for name in measured if number % 2 == 0 else reversed(measured):
                self._run(self.process(name), measured[name])
            rates.append(self.process(MACHINE).ask(do="run"))
        return [row(case, name, runs, rates, self.clock) for name, runs in measured.items()] + rows

    def _expected(self, case: Case) -> Tensor:
        """The answer of transformers, from as many clips at a time as memory allows."""
        path = Path(self.scratch.name) / "expected.pt"
        clips = max(1, int(case.batch * min(1.0, self._room() / stock_bytes(case))))
        self.process(REFERENCE).ask(do="answer_in_pieces", case=case.fields(), clips=clips, path=str(path))
        return torch.load(path)

    def _room(self) -> float:
        return room() if self.device == "cpu" else math.inf

    def _too_large(self, case: Case, name: str) -> bool:
        return name in HUNGRY and stock_bytes(case) > self._room()

    def _prepare(self, case: Case, name: str, expected: Tensor | None) -> tuple[Measured, Tensor]:
        """The contender, ready for `case`, and its answer, which is the right one."""
        if self._too_large(case, name):
            raise ContenderFailed(f"{name} was not run: it needs about {stock_bytes(case) / 2**30:.0f} GiB of memory")
        process = self.process(name)
        measured = Measured(process.ask(do="prepare", case=case.fields())["seconds"])
        path = Path(self.scratch.name) / "answer.pt"
        process.ask(do="answer", path=str(path))
        answer = torch.load(path)
        measured.check = check(case, answer, answer if expected is None else expected)
        # the second run: the first one may have compiled
        once = process.ask(do="run", times=1)["seconds"]
        measured.times = max(1, math.ceil(SHORTEST_RUN_S / once))
        return measured, answer

    def _run(self, process: Process, measured: Measured) -> None:
        time.sleep(SETTLE_S)
        before = busy_seconds()
        reply = process.ask(do="run", times=measured.times)
        measured.add(reply, busy_seconds() - before)


# Contenders that hold whole activations of all layers of the longest clip.
HUNGRY = ("hf", "folded", "compile", "encodec", "onnxruntime", "openvino")


def row(case: Case, name: str, measured: Measured, rates: list[Row], clock: str) -> Row:
    """Returns what is kept of one contender's runs."""
    timed = timing(measured.seconds, whole_work(case), rates, measured.others_share, clock)
    result: Row = {"case": case.fields(), "contender": name, **timed, "x_real_time": case.audio_seconds / timed["median"]}
    result |= {"setup_seconds": measured.setup_seconds, "check": measured.check}
    if measured.joules:
        result["joules_per_hour"] = statistics.median(measured.joules) / case.audio_seconds * 3600
    return result


def timing(seconds: list[float], work: Work, rates: list[Row], others_share: float, clock: str) -> Row:
    """Returns the median of runs, its spread, (slowest - fastest) / median, the floor by the machine's rates, and the canary's word."""
    median = statistics.median(seconds)
    flops, copy = (statistics.median(rate[key] for rate in rates) for key in ("flops", "copy"))
    floor = work.floor(flops, copy)
    return {
        "seconds": seconds,
        "median": median,
        "spread": (max(seconds) - min(seconds)) / median,
        "flops": flops,
        "copy": copy,
        "floor_seconds": floor,
        "share_of_floor": floor / median,
        "others_share": others_share,
        # CPU time leaves out the time that others had
        "disturbed": disturbance(others_share if clock == "wall" else 0.0, [rate["flops"] for rate in rates]),
    }
