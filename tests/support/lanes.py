"""Starts a lane of the Triton kernels as a pytest process of its own.

Triton decides when a kernel is decorated whether it is interpreted or compiled, so no lane can run inside another process.
"""

import importlib.util
import os
import subprocess
import sys

import pytest

from support.venvs import ROOT

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def run_lane(folder, **variables):
    # not `python -m pytest`, which puts the repository root on sys.path
    pytest_main = "import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", pytest_main, str(ROOT / "tests" / folder), "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONSAFEPATH": "1", **variables}
    for name in [name for name in environment if name.startswith(("PYTEST_", "COV_"))]:
        del environment[name]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-20_000:]}\n{done.stderr[-5_000:]}"
