"""CUDA graphs of prepared programs: one replay instead of all launches.

No graph has run on a device yet. The capture follows torch's documented steps.
`bench/gpu_report.py` compares its results bit by bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from encodec_fast.forks import ForkSafeLock

log = logging.getLogger(__name__)


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    x: Tensor
    y: Tensor


class CudaGraphs:
    """Replays `run(x)` for captured shapes; others run without a graph, with one line in the log.

    run: a function of one tensor whose launches depend on its shape alone and wait for nothing.
    `TritonProgram.run` is one, and so is a chain of `run`, `encode` and `decode` of prepared programs.
    Calls from several threads and streams take turns: a graph has one input and one output buffer, and all graphs share memory.
    """

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        self._run = run
        self._captured: dict[tuple[object, ...], _Captured] = {}
        self._missed: set[tuple[object, ...]] = set()
        self._lock = ForkSafeLock()
        self._pool: object = None
        self._free: torch.cuda.Event | None = None

    def capture(self, x: Tensor) -> None:
        """Captures the shape, dtype and device of x, unless that is done.  Raises ValueError for a tensor that is not on a CUDA device."""
        if not x.is_cuda:
            raise ValueError(f"x is on {x.device}; only a CUDA device has graphs")
        with self._lock, torch.cuda.device(x.device):
            if _key(x) not in self._captured:
                self._captured[_key(x)] = self._record(x)

    def _record(self, x: Tensor) -> _Captured:
        static = x.contiguous().clone()
        # compiles and loads the kernels before the capture, on a separate stream, as torch.cuda.graph asks
        stream = torch.cuda.Stream(x.device)
        stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._run(static)
        torch.cuda.current_stream(x.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # one pool is enough: graphs of one CudaGraphs never run together, and each result is copied before the next replay.
        # The stream is of this device: torch's own belongs to the device that is current at its first use.
        with torch.cuda.graph(graph, pool=self._pool, stream=stream):  # type: ignore[arg-type]
            y = self._run(static)
        self._pool = graph.pool()
        return _Captured(graph, static, y)

    def __call__(self, x: Tensor) -> Tensor:
        """Returns run(x) as a fresh tensor, with the same bits as without a graph."""
        captured = self._captured.get(_key(x))
        if captured is None:
            if _key(x) not in self._missed:
                self._missed.add(_key(x))
                log.warning("no CUDA graph was captured for %s; it runs launch by launch", tuple(x.shape))
            return self._run(x)
        with self._lock, torch.cuda.device(x.device):
            stream = torch.cuda.current_stream(x.device)
            if self._free is not None:
                stream.wait_event(self._free)
            captured.x.copy_(x)
            captured.graph.replay()
            y = captured.y.clone()
            self._free = stream.record_event()
            return y


def _key(x: Tensor) -> tuple[object, ...]:
    return (*x.shape, x.dtype, x.device)
