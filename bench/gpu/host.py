"""What the machine around the GPU can do: a data set tokenized from files to shards, and the cpu backend on its cores."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from gpu.setting import Item, Row, Setting, signals
from gpu.timing import median

# Files of 10 s, and copies of each: ten minutes of audio that are read as an hour
FILES, FILE_SECONDS, COPIES = 60, 10.0, 6
NEEDED = ("soundfile", "soxr", "pyarrow", "typer", "rich")
THREADS = (1, 2, 4, 8, 16, 32, 64)


def tokenize(setting: Setting) -> Iterator[Item]:
    """Runs `encodec-fast tokenize` of FLAC files, as its user runs it."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing or setting.device.type != "cuda":
        reason = f"{', '.join(missing)} not installed" if missing else "no GPU"
        yield Item("tokenize", lambda: [{"readers": "", "left_out": reason}])
        return
    readers = sorted({min(4, os.cpu_count() or 1), os.cpu_count() or 1})
    for count in readers:
        yield Item(f"{count} readers", lambda n=count: [tokenized(setting, n)])


def corpus(setting: Setting) -> tuple[Path, float]:
    """Returns (folder of FLAC files, seconds of audio in all), written at the first call."""
    import soundfile

    folder, config = setting.scratch / "corpus", setting.config("24 kHz")
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        partial.mkdir(exist_ok=True)
        audio = signals(config, FILES, int(FILE_SECONDS * config.sampling_rate), setting.device)
        for index, clip in enumerate(audio.clamp(-1, 1).cpu().numpy()):
            for copy in range(COPIES):
                path = partial / f"{copy}-{index:03d}.flac"
                if copy:
                    shutil.copyfile(partial / f"0-{index:03d}.flac", path)
                else:
                    soundfile.write(path, clip.T, config.sampling_rate)
        partial.rename(folder)
    return folder, FILES * COPIES * FILE_SECONDS


def tokenized(setting: Setting, readers: int) -> Row:
    """Returns x real time of the whole command, and without what an empty run takes; how long the encoder worked and waited."""
    folder, seconds = corpus(setting)
    model, out = setting.scratch / "model", setting.scratch / f"codes-{readers}"
    if not model.exists():
        setting.ours("24 kHz").save_pretrained(model)
    shutil.rmtree(out, ignore_errors=True)
    program = "from encodec_fast.cli import main; main()"
    command = [sys.executable, "-c", program, "tokenize", str(folder), "--out", str(out), "--model", str(model), "--device", "cuda"]
    command += ["--workers", str(readers), "--no-report"]
    start = time.perf_counter()
    first = subprocess.run([*command[:-1], "--limit", "1", "--no-report"], capture_output=True, text=True, timeout=60)
    starting = time.perf_counter() - start
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    whole = time.perf_counter() - start
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stderr + done.stdout).strip().splitlines()
    return {
        "readers": readers,
        "audio s": seconds,
        "wall s": whole,
        "start s": starting,
        "x real time": seconds / whole,
        "x real time, started": seconds / max(whole - starting, 1e-9),
        "passed": first.returncode == done.returncode == 0,
        "said": " | ".join(said[-6:])[:600],
    }


def cpu(setting: Setting) -> Iterator[Item]:
    """Runs the cpu backend, compiled here, on more and more threads."""
    yield Item("build", lambda: [build()])
    cores = os.cpu_count() or 1
    for threads in [count for count in THREADS if count <= cores]:
        yield Item(f"{threads} threads", lambda n=threads: encoded(setting, n))


def build() -> Row:
    """Compiles the engine unless it is there; installs nothing."""
    from encodec_fast.kernels.cpu import build as engine

    built = engine.SOURCES / engine.LIBRARY
    if built.exists():
        return {"threads": "build", "passed": True, "found": "it was there"}
    start = time.perf_counter()
    engine.build(engine.SOURCES)
    return {"threads": "build", "passed": True, "found": f"compiled in {time.perf_counter() - start:.0f} s"}


def encoded(setting: Setting, threads: int) -> Iterator[Row]:
    """Yields x real time of encode and decode, 8 clips of 10 s at 6 kbps."""
    from encodec_fast import use_backend

    cpu_device = torch.device("cpu")
    ours = setting.ours("24 kHz").to(cpu_device)
    torch.set_num_threads(threads)
    clips, seconds = (8, 10.0) if not setting.toy else (2, 1.0)
    audio = signals(ours.config, clips, setting.samples(seconds), cpu_device)
    bandwidth = 6.0 if not setting.toy else ours.config.target_bandwidths[0]
    with torch.no_grad(), use_backend("cpu"):
        codes = ours.encode(audio, bandwidth=bandwidth).audio_codes
        times: dict[str, list[float]] = {"encode": [], "decode": []}
        for _ in range(3):
            for name, call in (("encode", lambda: ours.encode(audio, bandwidth=bandwidth)), ("decode", lambda: ours.decode(codes, [None]))):
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
    length = clips * setting.samples(seconds) / ours.config.sampling_rate
    yield {"threads": threads, **{f"{name} x real time": length / median(runs) for name, runs in times.items()}}
