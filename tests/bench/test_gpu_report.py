"""bench/gpu_report.py where there is no GPU: it survives what breaks its phases."""

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = ROOT / "bench" / "gpu_report.py"

pytestmark = pytest.mark.alone

PLANTED = """
import os, signal, time
from gpu.setting import Item

def planted(setting):
    yield Item("good", lambda: [{"value": 1}])
    yield Item("crash", lambda: os.kill(os.getpid(), signal.SIGSEGV))
    yield Item("error", lambda: 1 / 0)
    yield Item("hang", hang)
    yield Item("red", lambda: [{"passed": False}])
    yield Item("last", lambda: [{"value": float("nan")}])

def hang():
    yield {"value": 2}
    if os.fork() == 0:
        open(os.environ["CHILD_OF_HANG"], "w").write(str(os.getpid()))
    time.sleep(1000)

def stillborn(setting):
    raise OSError("no such thing")
"""


@pytest.fixture(scope="module")
def report_module():
    spec = importlib.util.spec_from_file_location("gpu_report", COMMAND)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_report"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(report_module, tmp_path, monkeypatch):
    """Runs a phase of the module above; gives the rows it left."""
    (tmp_path / "planted.py").write_text(PLANTED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CHILD_OF_HANG", str(tmp_path / "child"))
    report = report_module.Report(tmp_path / "report", tmp_path)
    options = argparse.Namespace(arch="sm_90", toy=False, has_gpu=False)

    def run(name, seconds, silence=5.0):
        report.start()
        report_module.run_phase(report_module.Phase(name, "planted", seconds, silence), report, options, time.monotonic() + 600)
        return report.rows(name)

    return run


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return f"{pid}" and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_crash_an_error_and_a_hang_cost_their_own_pieces_only(run, report_module, tmp_path):
    rows = run("planted", 300)
    found = {row["item"]: row for row in rows if "item" in row and "failed" not in row}
    failed = {row["item"]: row["failed"] for row in rows if "failed" in row}
    assert set(found) == {"good", "hang", "red", "last"} and found["last"]["value"] == "nan"
    assert "signal 11" in failed.pop("crash") and "ZeroDivisionError" in failed.pop("error") and "silent" in failed.pop("hang")
    assert not failed and [row for row in rows if "complete" in row]
    line, green = report_module.verdict(rows)
    assert not green and line.startswith("1 checks, 1 red; 3 pieces failed")
    assert not is_running(int((tmp_path / "child").read_text()))


def test_a_phase_that_can_not_begin_is_tried_once(run):
    rows = run("stillborn", 300)
    assert [row["failed"] for row in rows] == ["exit code 1: OSError: no such thing"]


def test_a_phase_whose_time_is_over_says_so(run):
    rows = run("planted", 0.2)
    assert any("over" in row.get("failed", "") or "over" in row.get("left_out", "") for row in rows)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_recurrence_runs_by_itself_for_the_profiler(report_module, tmp_path):
    command = [sys.executable, str(COMMAND), "--toy", "--only-stage", "encoder.5", "--out", str(tmp_path), "--scratch", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=report_module.environment(interpret=True))
    assert done.returncode == 0, done.stderr


def test_an_unknown_phase_is_named():
    done = subprocess.run([sys.executable, COMMAND, "--phases", "nobody"], capture_output=True, text=True)
    assert done.returncode == 2 and "nobody" in done.stderr
