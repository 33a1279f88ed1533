"""Resident memory of this process, now and at its peak. Linux; 0 elsewhere."""

from __future__ import annotations

import os
from pathlib import Path


def resident_bytes() -> int:
    """Returns the bytes that the process holds now."""
    return _status_bytes("VmRSS")


def peak_bytes() -> int:
    """Returns the most it has held since `forget_peak`, or since it started."""
    return _status_bytes("VmHWM")


def forget_peak() -> None:
    """Sets the peak back to what the process holds now."""
    if os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


def _status_bytes(key: str) -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024
