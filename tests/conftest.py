"""Stops the run where kernels/ would shadow Hugging Face's package of that name; lets Ctrl-C and hangups through; hypothesis profiles."""

import importlib.util
import signal
import sys
from pathlib import Path

from hypothesis import settings

import support  # noqa: F401 puts the benchmarks' own models within reach of all tests

_KERNELS = Path(__file__).resolve().parents[1] / "kernels"
_spec = importlib.util.find_spec("kernels")
if _spec is not None and str(_KERNELS) in map(str, _spec.submodule_search_locations or ()):
    # SystemExit, for pytest wraps every other exception of a conftest in a traceback.
    sys.exit(
        "The repository root is on sys.path, so transformers would import ./kernels as Hugging Face's `kernels` "
        "package: run `pytest`, not `python -m pytest`, and leave the root out of PYTHONPATH."
    )

# What a shell runs in the background is started with SIGINT ignored, what nohup runs with SIGHUP, and so are their children: those that
# tests interrupt would go on.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


# Files of minutes, the longest first: begun last, they would keep one process waiting for the other.
SLOW = (
    "test_cpu_native.py",
    "test_ahead_of_time_lane.py",
    "test_interpreter_lane.py",
    "test_gpu_report_phases.py",
    "test_cli.py",
    "test_compat.py",
    "test_packaging.py",
    "test_torch_export.py",
    "test_types.py",
    "test_bench.py",
    "test_threads_and_forks.py",
    "test_documentation.py",
    "test_devices.py",
    "test_resume.py",
)


def pytest_collection_modifyitems(items):
    rank = {name: number for number, name in enumerate(SLOW)}
    items.sort(key=lambda item: rank.get(item.path.name, len(SLOW)))


# `pytest --hypothesis-profile=thorough --hypothesis-seed=1 tests/test_model_configs.py` is the run whose figures are quoted.
settings.register_profile("default", max_examples=50, deadline=None)
settings.register_profile("thorough", max_examples=2000, deadline=None)
