"""The suite `dataset`: a folder of files to codes on disk, as whole processes: `encodec-fast tokenize` beside a loop over transformers.

The loop is what people write: read a file, resample it, encode it alone, save an array. Loading the model counts on both sides.
dataset.py looks into a run instead: the encoder alone beside reading, decoding and writing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cases import CACHE, stock_model, weights_file
from encodec_fast import demo
from encodec_fast.audio import audio_info
from harness import FLIPS_SHARE, FLIPS_SLACK, Row, WrongAnswer

COPIES = {"quick": 1, "readme": 8, "full": 40}
BANDWIDTH = 6.0

LOOP = """
import pathlib, sys
import numpy, soundfile, soxr, torch, transformers
folder, out, model, threads, bandwidth = sys.argv[1:]
torch.set_num_threads(int(threads))
model = transformers.EncodecModel.from_pretrained(model).eval()
with torch.no_grad():
    for path in sorted(pathlib.Path(folder).glob("*.flac")):
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        samples = samples.mean(1)
        if rate != model.config.sampling_rate:
            samples = soxr.resample(samples, rate, model.config.sampling_rate)
        codes = model.encode(torch.from_numpy(samples)[None, None], bandwidth=float(bandwidth)).audio_codes
        numpy.save(pathlib.Path(out) / path.stem, codes[:, 0].numpy())
"""


def model_folder() -> Path:
    """The 24 kHz built-in model, saved as transformers saves models."""
    folder = CACHE / weights_file("demo").stem
    if not (folder / "config.json").exists():
        stock_model("demo").save_pretrained(folder)
    return folder


def measure(copies: int, rounds: int, threads: int) -> Iterator[Row]:
    """One row per contender.  copies: of the bundled clips.  Raises WrongAnswer where the codes differ too often."""
    model = model_folder()
    with tempfile.TemporaryDirectory() as scratch:
        audio = Path(scratch) / "audio"
        audio.mkdir()
        for clip in demo.bundled_clips():
            for copy in range(copies):
                shutil.copy(clip, audio / f"{clip.stem}_{copy}.flac")
        seconds = sum(audio_info(path).duration for path in audio.glob("*.flac"))
        common = str(audio), str(Path(scratch) / "hf"), str(model)
        Path(common[1]).mkdir()
        ours = Path(scratch) / "ours"
        tokenize = [sys.executable, "-m", "encodec_fast.cli", "tokenize", str(audio), "--out", str(ours), "--model", str(model)]
        commands = {
            "hf": [sys.executable, "-c", LOOP, *common, str(threads), str(BANDWIDTH)],
            "ours": [*tokenize, "--bandwidth", str(BANDWIDTH)],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        check: Row = {}
        for _ in range(rounds):
            for name, command in commands.items():
                shutil.rmtree(ours, ignore_errors=True)
                times[name].append(_seconds(command, threads))
                if name == "ours":
                    check = compare(ours, Path(common[1]))
        for name, runs in times.items():
            median = sorted(runs)[len(runs) // 2]
            about = {"case": {"model": "demo", "files": len(list(audio.iterdir())), "audio_seconds": seconds, "bandwidth": BANDWIDTH}}
            yield {**about, "contender": name, "seconds": runs, "median": median, "x_real_time": seconds / median, "check": check}


def _seconds(command: list[str], threads: int) -> float:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    # from elsewhere: `-m` puts the current folder on the path, where kernels/ must not be
    done = subprocess.run(command, env=environment, cwd=CACHE, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(command[1:4])} failed: {done.stderr.strip()[-500:]}")
    return time.perf_counter() - start


def compare(ours: Path, theirs: Path) -> Row:
    """Frames of all files whose codes differ.  Raises WrongAnswer where they are too many, or a file is missing."""
    from encodec_fast.formats.folder import load_codes

    frames = flips = 0
    found = {Path(row.id).stem: np.asarray(row.codes) for row in load_codes(ours)}
    expected = {path.stem: np.load(path) for path in theirs.glob("*.npy")}
    if found.keys() != expected.keys():
        raise WrongAnswer(f"{len(found)} of {len(expected)} files have codes")
    for name, codes in expected.items():
        if codes.shape != found[name].shape:
            raise WrongAnswer(f"{name}: codes of shape {found[name].shape}, transformers gives {codes.shape}")
        differs = (codes != found[name]).any(1)
        frames, flips = frames + differs.size, flips + int(differs.sum())
    if flips > FLIPS_SLACK + FLIPS_SHARE * frames:
        raise WrongAnswer(f"{flips} of {frames} frames have other codes than those of transformers")
    return {"frames": frames, "flips": flips}
