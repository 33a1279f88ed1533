"""Every phase of bench/gpu_report.py, on tiny models in the interpreter: minutes of one core."""

import importlib
import json
import os
import subprocess
import sys

import pytest

from support.lanes import needs_triton
from support.venvs import ROOT

COMMAND = ROOT / "bench" / "gpu_report.py"


@pytest.fixture(scope="module")
def toy_report(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy")
    command = [sys.executable, str(COMMAND), "--toy", "--out", str(out), "--minutes", "60"]
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return done, out


@needs_triton
def test_every_phase_runs_on_tiny_models_and_nothing_is_red(toy_report, monkeypatch):
    done, out = toy_report
    rows = [json.loads(line) for line in (out / "gpu_report.jsonl").read_text().splitlines()]
    bad = [row for row in rows if "failed" in row or row.get("passed") is False]
    assert not bad and done.returncode == 0, f"{bad}\n{done.stderr}\n{(out / 'gpu_report.log').read_text()[-6000:]}"
    monkeypatch.syspath_prepend(str(COMMAND.parent))
    assert {row["phase"] for row in rows} == {phase.name for phase in importlib.import_module("gpu_report").PHASES}
    # ours is measured on triton, whatever else could run it
    assert "cpu backend" not in (out / "gpu_report.log").read_text()


@needs_triton
def test_the_tables_fit_80_columns(toy_report):
    done, out = toy_report
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "ours, parity" in done.stdout and (out / "gpu_report.txt").read_text()


@needs_triton
def test_a_report_becomes_a_section_of_the_documentation(toy_report, monkeypatch):
    monkeypatch.syspath_prepend(str(COMMAND.parent))
    text = importlib.import_module("report").gpu_part(toy_report[1] / "gpu_report.jsonl")
    assert "| ours, parity |" in text and "sanitizer: memcheck: left out" in text
