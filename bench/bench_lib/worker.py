"""One contender in a process of its own, told by JSON lines on standard input what to do; used by `harness`.

    {"do": "prepare", "case": {...}}   makes inputs, runs a first time     -> {"seconds": s}
    {"do": "answer", "path": p}        saves the answer of that run to p   -> {}
    {"do": "answer_in_pieces", ...}    answers a case that was not prepared, `clips` clips at a time
    {"do": "once", ...}                runs a case that was not prepared, after one of its first second
    {"do": "run", "times": n}          runs n times                       -> {"seconds": per run, "cpu_seconds", "wall_seconds": of all}

The contender `machine` has no cases: its run measures the rates of matrix products and of copies.
A failed command answers {"error": "..."}; the process goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

Message = dict[str, Any]
# cpu: the CPU time of this process, which on one thread is the wall time of an idle machine
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Worker:
    """Answers the commands of the harness."""

    def __init__(self, contender: str, device: torch.device, clock: Callable[[], float]) -> None:
        from bench_lib.contenders import CONTENDERS

        self.device, self.clock = device, clock
        self.contender = CONTENDERS[contender](device)
        self.case: Any = None
        self.call: Callable[[], Any] = lambda: None
        self.energy = energy_meter(device)

    def prepare(self, message: Message) -> Message:
        """Loads the model, makes the inputs and runs a first time, which is where some contenders compile."""
        from bench_lib.cases import Case

        self.call = lambda: None  # lets go of the inputs of the case before
        self.case = Case(**message["case"])
        start = time.perf_counter()
        self.call = self.contender.prepare(self.case)
        self.result = self.call()
        self.wait()
        return {"seconds": time.perf_counter() - start}

    def answer(self, message: Message) -> Message:
        """Saves the answer of the first run."""
        torch.save(self.contender.answer(self.case, self.result), message["path"])
        self.result = None
        return {}

    def answer_in_pieces(self, message: Message) -> Message:
        """Saves the answer to a case whose whole batch does not fit into memory."""
        from bench_lib.cases import Case

        torch.save(self.contender.answer_in_pieces(Case(**message["case"]), message["clips"]), message["path"])
        return {}

    def run(self, message: Message) -> Message:
        """Returns time per run by the chosen clock, CPU and wall time of all runs, joules per run where a meter is there."""
        joules = self.energy()
        cpu, wall, start = time.process_time(), time.perf_counter(), self.clock()
        for _ in range(message["times"]):
            self.call()
            self.wait()
        seconds, cpu, wall = self.clock() - start, time.process_time() - cpu, time.perf_counter() - wall
        answer = {"seconds": seconds / message["times"], "cpu_seconds": cpu, "wall_seconds": wall}
        if joules is not None:
            answer["joules"] = (self.energy() - joules) / message["times"]
        return answer

    def once(self, message: Message) -> Message:
        """Returns time and peak memory of a single run, after one of the clip's first second; for clips too long to run twice."""
        from bench_lib.cases import Case
        from bench_lib.machine import busy_seconds
        from bench_lib.resident import forget_peak, peak_bytes, resident_bytes

        case = Case(**message["case"])
        self.contender.prepare(replace(case, seconds=1))()
        self.case, self.call = case, self.contender.prepare(case)
        before = resident_bytes()
        forget_peak()
        busy, cpu, wall, start = busy_seconds(), time.process_time(), time.perf_counter(), self.clock()
        result = self.call()
        seconds, wall = self.clock() - start, time.perf_counter() - wall
        cpu, busy = time.process_time() - cpu, busy_seconds() - busy
        peak = peak_bytes() - before
        torch.save(self.contender.answer(case, result), message["path"])
        return {"seconds": seconds, "wall_seconds": wall, "cpu_seconds": cpu, "busy_seconds": busy, "peak_bytes": peak}

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Machine:
    """The rates that floors are computed from."""

    def __init__(self, device: torch.device, clock: Callable[[], float]) -> None:
        from bench_lib.roofline import MachineRates

        self.rates = MachineRates(device, clock)

    def run(self, message: Message) -> Message:
        """Returns FLOP/s and byte/s."""
        return self.rates.measure()


def energy_meter(device: torch.device) -> Callable[[], float | None]:
    """Returns a function: the joules that the GPU has used since its driver was loaded, or None where nothing counts them."""
    if device.type != "cuda":
        return lambda: None
    try:
        import pynvml
    except ImportError:
        return lambda: None
    pynvml.nvmlInit()
    # NVML counts all GPUs of the machine, torch those that CUDA_VISIBLE_DEVICES leaves: the UUID is common to both
    handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contender")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    options = parser.parse_args()
    # what libraries print must not end up between the answers
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    device = torch.device(options.device)
    clock = CLOCKS[options.clock]
    worker: Any = Machine(device, clock) if options.contender == "machine" else Worker(options.contender, device, clock)
    for line in sys.stdin:
        message = json.loads(line)
        try:
            reply = getattr(worker, message["do"])(message)
        except Exception as error:  # whatever a contender does wrong is its row in the table, not the end of the run
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
