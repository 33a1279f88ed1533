"""What NVIDIA's instruments say: hardware counters of the longest kernels, and memory and races of a small model."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bench_lib.roofline import stage_label
from encodec_fast.backends.triton_layers import Signal, lstm_refusal
from encodec_fast.plan import LSTM, Stage
from encodec_fast.plan.reader import read_plan
from gpu.setting import MODELS, PRECISIONS, Codec, Item, Row, Setting, signals

COMMAND = Path(__file__).parents[1] / "gpu_report.py"
# Counters by ncu's names; what a version of ncu lacks is left out of the row.
COUNTERS = {
    "gpu__time_duration.sum": "duration",
    "launch__registers_per_thread": "registers",
    "launch__occupancy_limit_registers": "blocks by registers",
    "launch__occupancy_limit_shared_mem": "blocks by shared memory",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps active %",
    "smsp__inst_executed.sum": "instructions",
    "smsp__issue_active.avg.pct_of_peak_sustained_active": "issue slots %",
    "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum": "shared wavefronts",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum": "shared conflicts",
    "smsp__sass_inst_executed_op_shared.sum": "shared instructions",
    "sm__inst_executed_pipe_tensor.sum": "tensor instructions",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active": "tensor pipe %",
    "sm__pipe_fma_cycles_active.avg.pct_of_peak_sustained_active": "multiply-add pipe %",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum": "global load sectors",
    "l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum": "global load requests",
    "dram__bytes_read.sum": "DRAM read",
    "dram__bytes_write.sum": "DRAM written",
}
LONGEST = 3
NCU_SECONDS, SANITIZER_SECONDS = 40, 45


def profile(setting: Setting) -> Iterator[Item]:
    """Runs ncu on the stages that took longest in parity, by the phase `stages`; on any others where that has no rows."""
    for part, index, name in longest(setting):
        yield Item(name, lambda p=part, i=index, n=name: counters(setting, p, i, n))


def longest(setting: Setting) -> list[tuple[str, int, str]]:
    """Returns (part, index, name) of stages of the 24 kHz model."""
    plan = read_plan(setting.stock("24 kHz"))
    stages: dict[str, tuple[str, int, Stage]] = {}
    for part, network in (("encoder", plan.encoder), ("decoder", plan.decoder)):
        for index, stage in enumerate(network.stages):
            stages[f"{part}.{stage_label(stage)}"] = part, index, stage
    times: dict[str, float] = {}
    for line in setting.results.read_text().splitlines() if setting.results.exists() else ():
        row = json.loads(line)
        if row.get("phase") == "stages" and row.get("model") == "24 kHz" and "parity ms" in row and row.get("stage") in stages:
            times[row["stage"]] = row["parity ms"]
    # the recurrence of the encoder is that of the decoder
    names = [name for name in stages if not (name.startswith("decoder") and isinstance(stages[name][2], LSTM))]
    chosen = sorted(names, key=lambda name: -times.get(name, 0.0))[:LONGEST]
    return [(*stages[name][:2], name) for name in chosen]


def counters(setting: Setting, part: str, index: int, name: str) -> Iterator[Row]:
    """Yields a row per kernel that the stage launches."""
    program = shutil.which("ncu")
    if program is None or setting.device.type != "cuda":
        yield {"stage": name, "left_out": "ncu is not installed" if program is None else "no GPU"}
        return
    command = [program, "--clock-control", "none", "--profile-from-start", "off", "--set", "full", "--csv", "--page", "raw"]
    command += [sys.executable, str(COMMAND), "--only-stage", f"{part}.{index}", "--out", str(setting.results.parent)]
    command += ["--scratch", str(setting.scratch)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=NCU_SECONDS)
    rows = _ncu_rows(done.stdout)
    if not rows:
        yield {"stage": name, "failed": f"ncu: exit code {done.returncode}: {(done.stdout + done.stderr).strip()[-400:]}"}
    for row in rows:
        yield {"stage": name, **row}


def _ncu_rows(output: str) -> list[Row]:
    """ncu's raw page: a line of names, one of units, one per kernel; whatever the program printed stands before."""
    lines = output.splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    names, units, *kernels = csv.reader(io.StringIO("\n".join(lines[start:])))
    rows = []
    for values in kernels:
        if len(values) != len(names):
            continue
        found = dict(zip(names, zip(values, units), strict=True))
        row: Row = {"kernel": found["Kernel Name"][0].split("(")[0], "grid": found.get("Grid Size", ("", ""))[0]}
        for counter, word in COUNTERS.items():
            if counter in found:
                value, unit = found[counter]
                row[f"{word} {unit}".strip() if word in ("duration", "DRAM read", "DRAM written") else word] = value
        rows.append(row)
    return rows


def run_stage(setting: Setting, place: str) -> None:
    """Runs one stage for ncu: warmed up, then once between the marks that ncu profiles between. place: 'encoder.3'."""
    part, index = place.split(".")
    stock = setting.stock("24 kHz")
    plan = read_plan(stock)
    codec = Codec(plan, "parity")
    program = getattr(codec, part)
    clips, seconds = (32, 10.0) if not setting.toy else (2, 1.0)
    x: Tensor = signals(stock.config, clips, setting.samples(seconds), setting.device)
    if part == "decoder":
        x = codec.encoder.run(x)
    signal = Signal(x.transpose(1, 2))
    for layer in program.layers[: int(index)]:
        signal = layer.run(signal, None)
    stage, layer = program.stages[int(index)], program.layers[int(index)]
    if isinstance(stage, LSTM) and lstm_refusal(stage, "split", x.device) is not None:
        # of hundreds of equal launches a few
        signal = Signal(signal.applied().values[:, :3].contiguous(), activation=signal.activation)
    layer.run(signal, None)
    if x.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
    layer.run(signal, None)
    if x.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def sanitizer(setting: Setting) -> Iterator[Item]:
    """Runs compute-sanitizer on encode and decode of the toy models, every allocation its own."""
    toy = replace(setting, toy=True)
    for model in MODELS:
        toy.stock(model)  # the weights are drawn here, where nothing watches every access
    for tool in ("memcheck", "racecheck"):
        yield Item(tool, lambda t=tool: [sanitized(setting, t)])


def sanitized(setting: Setting, tool: str) -> Row:
    program = shutil.which("compute-sanitizer")
    if program is None or setting.device.type != "cuda":
        return {"tool": tool, "left_out": "compute-sanitizer is not installed" if program is None else "no GPU"}
    command = [program, "--tool", tool, "--error-exitcode", "9", "--print-limit", "5"]
    command += [sys.executable, str(COMMAND), "--only-toy", "--toy", "--out", str(setting.results.parent)]
    command += ["--scratch", str(setting.scratch)]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=SANITIZER_SECONDS, env=environment)
    said = [line for line in done.stdout.splitlines() if line.startswith("=========")]
    return {"tool": tool, "passed": done.returncode == 0, "found": " | ".join(said[-4:])[:600] or done.stderr[-400:]}


def run_toy(setting: Setting) -> None:
    """Runs encode and decode of both toy models in every precision, once."""
    for model in MODELS:
        stock = setting.stock(model)
        plan = read_plan(stock)
        for precision in PRECISIONS:
            codec = Codec(plan, precision)
            x = signals(stock.config, 2, setting.samples(1.0, model), setting.device)
            codec.decode(codec.encode(x, len(stock.quantizer.layers)))
    if setting.device.type == "cuda":
        torch.cuda.synchronize()
