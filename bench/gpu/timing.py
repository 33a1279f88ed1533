"""Times on the device, taken in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def milliseconds(call: Callable[[], Any], device: torch.device) -> float:
    """Returns the time of one call: between events on a GPU, by the clock elsewhere."""
    if device.type != "cuda":
        began = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - began)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def in_turn(
    calls: Mapping[str, Callable[[], Any]], device: torch.device, seconds: float, rounds: int = 20, warm_up: int = 2
) -> dict[str, list[float]]:
    """Returns milliseconds of each run of each call, one after another, every second round in reverse.

    seconds: after this no new round begins; three are made in any case, one where nothing is measured (off a GPU).
    warm_up: runs of each before, which also compile.
    """
    on_gpu = device.type == "cuda"
    for _ in range(warm_up if on_gpu else 0):
        for call in calls.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.monotonic() + seconds
    for number in range(rounds if on_gpu else 1):
        if number >= 3 and time.monotonic() > end:
            break
        for name in calls if number % 2 == 0 else reversed(calls):
            times[name].append(milliseconds(calls[name], device))
    return times


def median(times: list[float]) -> float:
    return statistics.median(times)


def spread(times: list[float]) -> float:
    """Returns (slowest - fastest) / median."""
    return (max(times) - min(times)) / median(times)
