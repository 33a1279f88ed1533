"""Starts the two lanes of the Triton kernels, each as a pytest process of its own.

Triton decides when a kernel is decorated whether it is interpreted or compiled, so neither lane can run inside another process.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

pytestmark = [pytest.mark.alone, pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")]


def run_lane(folder, **variables):
    # not `python -m pytest`, which puts the repository root on sys.path
    pytest_main = "import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", pytest_main, str(TESTS / folder), "-q", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist") is not None and folder == "interpreter":
        command += ["-n", str(min(4, os.cpu_count() or 1))]
    environment = {**os.environ, "PYTHONSAFEPATH": "1", **variables}
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-20_000:]}\n{done.stderr[-5_000:]}"


def test_interpreter_lane():
    run_lane("interpreter", TRITON_INTERPRET="1")


def test_ahead_of_time_lane():
    run_lane("aot", TRITON_INTERPRET="0")
