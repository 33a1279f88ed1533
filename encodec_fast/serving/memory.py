"""How much memory a call may take."""

from __future__ import annotations

import os
from pathlib import Path

import torch

# Enough that pieces cost nothing, little enough to forget about.
LITTLE_BYTES = 96 << 20
UNKNOWN_FREE_BYTES = 2 << 30


def budget(max_memory: int | None, exact: bool, device: torch.device) -> int:
    """Returns the bytes that a call may hold beside the model, its input and its result.

    max_memory: what the user allows. None: LITTLE_BYTES on a CPU where pieces leave the bits alone. Else half of the free memory: a GPU
    is filled, and audio is cut only where it must be.
    """
    if max_memory is not None:
        return max_memory
    return LITTLE_BYTES if exact and device.type == "cpu" else max(LITTLE_BYTES, free_bytes(device) // 2)


def free_bytes(device: torch.device) -> int:
    """Returns the bytes that are free on the device now."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    known = [available for available in (_meminfo_available(), _cgroup_available()) if available is not None]
    return min(known, default=UNKNOWN_FREE_BYTES)


def _meminfo_available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        # macOS and Windows have no such file; sysconf knows the pages on the former
        names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
        if "SC_AVPHYS_PAGES" not in names:
            return None
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _cgroup_available() -> int | None:
    """Returns the bytes that the container's limit leaves, or None without one (cgroup v2)."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - int(used))
