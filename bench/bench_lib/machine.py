"""This machine: what each row says of it, how busy it is, and how much memory is free."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch

from bench_lib.results import Row
from encodec_fast.serving.memory import free_bytes

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "transformers", "encodec", "onnxruntime", "openvino", "triton", "numpy")
# What other processes may take of the machine's cores, and how far the matrix product may fall behind its median, before a
# measurement is marked. An idle machine shows up to 2 % and 8 %.
OTHERS_LIMIT, SLOWDOWN_LIMIT = 0.05, 0.8
# A whole call may use this share of the memory that is free when it starts.
MEMORY_SHARE = 0.6


def disturbance(others_share: float, flop_rates: list[float]) -> str | None:
    """Returns what the canary says: that the machine was not ours alone, or None."""
    if others_share > OTHERS_LIMIT:
        return f"other processes used {others_share:.0%} of the cores"
    slowest = min(flop_rates) / statistics.median(flop_rates)
    if slowest < SLOWDOWN_LIMIT:
        return f"the matrix product fell to {slowest:.0%} of its median rate"
    return None


def others_share(busy: float, own: float, elapsed: float) -> float:
    """Returns the share of all cores that other processes used, at least 0.

    busy: seconds that all cores worked, by `busy_seconds`.  own: CPU seconds of what was measured.  elapsed: seconds that it took.
    """
    return max(0.0, busy - own) / max(elapsed * (os.cpu_count() or 1), 1e-9)


def busy_seconds() -> float:
    """Returns the seconds that all cores of this machine have worked since it started, those stolen by its host included; 0 off Linux."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, stat.read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def room() -> float:
    """Returns the bytes that a whole call may use now."""
    return MEMORY_SHARE * free_bytes(torch.device("cpu"))


def environment(threads: int, device: str = "cpu", clock: str = "wall") -> Row:
    """Returns machine, versions, revision and command, as every row of results carries them."""
    machine = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": platform.system(),
        "arch": platform.machine(),
    }
    if device == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    versions = {name: metadata.version(name) for name in PACKAGES if _is_installed(name)}
    return {
        "machine": machine,
        "threads": threads,
        "clock": clock,
        "dtype": "float32",
        "tier": _tier(),
        "python": platform.python_version(),
        "versions": versions,
        "revision": revision(),
        "command": " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def revision() -> str:
    """Returns the short hash of the commit, with a + where tracked files other than results differ from it; "" outside a git checkout."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    return commit + "+" * bool(_git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results"))


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "CPU part"))]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_gib() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _tier() -> str | None:
    from encodec_fast.kernels.cpu import library

    try:
        engine = library.load()
    except library.LibraryMissing:
        return None
    requested = library.requested_tier()
    return requested.decode() if requested else library.tiers(engine)[0]
