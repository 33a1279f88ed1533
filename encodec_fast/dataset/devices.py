"""A run on several devices of one machine: a process for each, which takes its share of the batches."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from encodec_fast import processes
from encodec_fast.dataset.ledger import Ledger, LedgerError
from encodec_fast.dataset.options import TokenizeOptions
from encodec_fast.dataset.run import Run, Summary
from encodec_fast.dataset.writing import add_counts
from encodec_fast.errors import portable_os_error
from encodec_fast.formats import DatasetInfo
from encodec_fast.serving.request import BackendError


@dataclass(frozen=True)
class DeviceJob:
    """One process's part: what it loads, where it runs, which writer it is, of which run. cores: to stay on; None: all.

    threads: of the CPU engine; 0: as many as cores.
    """

    model: str
    device: str
    backend: str
    threads: int
    cores: tuple[int, ...] | None
    info: DatasetInfo
    options: TokenizeOptions
    out: str
    index: int
    count: int
    run: str | None = None


class DeviceError(RuntimeError):
    """A device's process ended before its part was done; the message says which and how."""


def parse_devices(text: str) -> list[str]:
    """Returns the devices of `cuda:0,cuda:1`; `cuda` stands for all GPUs, `cpu,cpu` for the cores in two groups. Raises ValueError."""
    import torch

    from encodec_fast.pretrained import torch_device

    devices: list[str] = []
    for name in text.split(","):
        if name.strip() == "cuda":
            devices += [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cuda"]
        else:
            devices.append(name.strip())
    for name in devices:
        torch_device(name)
    return devices


def core_groups(devices: Sequence[str]) -> list[tuple[int, ...] | None]:
    """Returns the cores of each device: the machine's are dealt out to the `cpu` ones. None: all, also where the system can't say."""
    groups = devices.count("cpu")
    if groups < 2 or not hasattr(os, "sched_getaffinity"):
        return [None] * len(devices)
    cores = sorted(os.sched_getaffinity(0))
    if groups > len(cores):
        raise ValueError(f"--devices names cpu {groups} times; there are {len(cores)} cores.")
    bounds = [len(cores) * index // groups for index in range(groups + 1)]
    own = iter([tuple(cores[first:end]) for first, end in pairwise(bounds)])
    return [next(own) if device == "cpu" else None for device in devices]


def run_on_devices(jobs: Sequence[DeviceJob], progress: Callable[[Summary], None] | None = None) -> Summary:
    """Runs the jobs side by side; returns the sum of what they did.

    Raises the LedgerError, OSError, BackendError or ValueError that one of them met, and DeviceError if one ended without finishing.
    The others are then stopped, and what they finished is kept.
    """
    messages: queue.Queue[tuple[int, Any]] = queue.Queue()
    processes = [_Child(job, number, messages) for number, job in enumerate(jobs)]
    latest: dict[int, Summary] = {}
    running = set(range(len(jobs)))
    try:
        while running:
            number, message = messages.get()
            if isinstance(message, Summary):
                latest[number] = message
                if progress is not None:
                    progress(_sum(list(latest.values())))
            elif isinstance(message, Exception):
                raise message
            elif message == 0:
                running.discard(number)
            else:
                raise DeviceError(f"the process on {jobs[number].device} ended with {message}; run again to go on from there.")
    finally:
        # all at once: each finishes its open shard
        for process in processes:
            process.stop()
        for process in processes:
            process.wait()
    return _sum(list(latest.values()))


class _Child:
    """A process that works on a job, and the thread that hears from it."""

    def __init__(self, job: DeviceJob, number: int, messages: queue.Queue[tuple[int, Any]]):
        threads = job.threads or len(job.cores or ())
        self._popen = processes.start("encodec_fast.dataset.devices", {"OMP_NUM_THREADS": str(threads)} if threads else {})
        assert self._popen.stdin is not None
        pickle.dump(job, self._popen.stdin)
        self._popen.stdin.flush()
        threading.Thread(target=self._listen, args=(number, messages), name="encodec_fast device", daemon=True).start()

    def _listen(self, number: int, messages: queue.Queue[tuple[int, Any]]) -> None:
        assert self._popen.stdout is not None
        try:
            while True:
                messages.put((number, pickle.load(self._popen.stdout)))
        except (EOFError, pickle.UnpicklingError):
            code = self._popen.wait()
            messages.put((number, processes.how_it_ended(code) if code else 0))

    def stop(self) -> None:
        """Asks for its end by closing the pipe."""
        assert self._popen.stdin is not None
        self._popen.stdin.close()

    def wait(self) -> None:
        self._popen.wait()


def _sum(summaries: Sequence[Summary]) -> Summary:
    """Returns what several writers did at the same time.  reading, encoding: rates of all together."""
    total = Summary()
    for summary in summaries:
        for each in fields(Summary):
            one, other = getattr(total, each.name), getattr(summary, each.name)
            if each.name in ("wall_seconds", "left", "done_before"):
                setattr(total, each.name, max(one, other))
            elif each.name == "left_out":
                # of the sources, which all writers share
                total.left_out = one or other
            elif each.name == "verified":
                total.verified = one if other is None else add_counts(one, other)
            else:
                setattr(total, each.name, one + other)
    # each writer counts the others' batches as left
    total.left = max(0, min(summary.left + summary.planned_clips for summary in summaries) - total.planned_clips)
    total.busy /= len(summaries)
    return total


def main() -> None:
    """Runs a device's process: a job on standard input, summaries or an error on standard output. It ends when its parent does."""
    # whatever it was for the parent
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    output, code = processes.take_output(), 0
    try:
        job: DeviceJob = pickle.load(sys.stdin.buffer)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        if job.cores is not None:
            os.sched_setaffinity(0, job.cores)
        work(job, lambda summary: _tell(output, summary))
    except KeyboardInterrupt:
        code = 130
    except (OSError, ValueError, BackendError) as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        code = 1
        # nobody hears it where the parent is gone
        with contextlib.suppress(OSError):
            _tell(output, _portable(error))
    # everything is on the disk: what the interpreter and torch do at their end could only fail, or wait for a thread that is gone
    sys.stderr.flush()
    os._exit(code)


class FinishOnSigterm:
    """From now on SIGTERM raises KeyboardInterrupt, so that the open shard is finished; before, it ends the process at once.

    Not while modules are being imported: C code in there may lose a KeyboardInterrupt, or be left half done by it.
    """

    def __init__(self) -> None:
        self._asked = False
        signal.signal(signal.SIGTERM, self._interrupt)

    def _interrupt(self, *_: Any) -> None:
        # once: a second one would end the finishing
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._asked = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raises the KeyboardInterrupt again that somebody's code lost."""
        if self._asked:
            raise KeyboardInterrupt


def _portable(error: Exception) -> Exception:
    """Returns the error as the parent can load it."""
    if isinstance(error, OSError):
        return portable_os_error(error)
    return next(kind for kind in (LedgerError, BackendError, ValueError) if isinstance(error, kind))(str(error))


def work(job: DeviceJob, tell: Callable[[Summary], None]) -> None:
    """Does the job in this process."""
    import torch
    from transformers.utils import logging

    from encodec_fast.dataset.encoding import check_made_alike
    from encodec_fast.pretrained import load_model
    from encodec_fast.serving import request

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if job.threads or job.cores:
        torch.set_num_threads(job.threads or len(job.cores or ()))
    with request.prefer_backend(job.backend):
        model = load_model(job.model, job.device)
        check_made_alike(model, job.info, job.device)
        run = Run(model, job.info, Ledger(job.out, job.index, job.count, job.run), job.options)
        finish = FinishOnSigterm()

        def progress(summary: Summary) -> None:
            finish.check()
            tell(summary)

        tell(run.run(progress))


def _tell(output: Any, message: Summary | Exception) -> None:
    pickle.dump(message, output)
    output.flush()


def _end_with_parent() -> None:
    # not sys.stdin: at exit the interpreter would wait for its lock
    while os.read(0, 4096):
        pass
    # not _thread.interrupt_main: that sends SIGINT, and to nobody where it is ignored, as in a script's background jobs
    os.kill(os.getpid(), signal.SIGTERM)
