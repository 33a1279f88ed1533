"""All backends, which of them a device prefers, and which this machine can use."""

from __future__ import annotations

import importlib
from functools import cache

from encodec_fast.backends.base import Backend

# One line per backend. The order is the order of `encodec-fast info`.
BACKENDS = {
    "cpu": ("encodec_fast.backends.cpu_backend", "CpuBackend"),
    "triton": ("encodec_fast.backends.triton_backend", "TritonBackend"),
    "torch": ("encodec_fast.backends.torch_backend", "TorchBackend"),
    "host": ("encodec_fast.backends.host_backend", "HostBackend"),
}
# By type of device; the last one refuses nothing there
PREFERENCE = {"cpu": ("cpu", "torch"), "cuda": ("triton", "torch"), "mps": ("torch", "host")}
OTHERS = ("torch",)


@cache
def get_backend(name: str) -> Backend:
    """Returns the single instance of a backend; imports its module at first use."""
    module, attribute = BACKENDS[name]
    return getattr(importlib.import_module(module), attribute)()


def backend_report() -> list[tuple[str, bool, str]]:
    """Returns (name, available, why not) of every backend on this machine."""
    reasons = [(name, get_backend(name).unavailable()) for name in BACKENDS]
    return [(name, reason is None, reason or "") for name, reason in reasons]
