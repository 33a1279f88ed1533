"""Trains the language model of the built-in model `demo`, and writes the asset that `encodec_fast.demo` loads.

Usage, with the recordings that fit_demo_model.py takes, in a folder `data` as its first lines say, and `pip install av`:

    python bench/tools/fit_demo_language_model.py data work encodec_fast/assets/demo_language_model.safetensors

Recordings become clips of about ten seconds, of which every third is taken. Each is played faster or slower, and at another loudness,
so that three readers sound like more. `encodec-fast tokenize` makes their codes at 6 kbps, `encodec-fast train-lm` the model.
A run that was cut off goes on. One thread: the same machine and libraries give the same bytes again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr
from fit_demo_model import ABOUT, RATE, log, recordings
from safetensors.torch import save_file

from encodec_fast.demo import demo_model
from encodec_fast.language_model.built_in import packed
from encodec_fast.language_model.loading import load_lm
from encodec_fast.plan.weights import weights_sha256

CLIP_SECONDS, TAKEN = 10, 3
SPEEDS, DECIBELS = (0.8, 1.25), (-16.0, 4.0)
TOKENIZE = "--model demo --threads 1 --workers 1"
TRAIN = (
    "--codec demo --dim 128 --layers 2 --steps 300 --batch-size 8 --learning-rate 2e-3 --held-out 0.06 --validation-steps 100 --device cpu"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder in which the Debian packages are unpacked")
    parser.add_argument("work", type=Path, help="folder for clips, codes and the run, 300 MB")
    parser.add_argument("asset", type=Path, help="the .safetensors to write")
    arguments = parser.parse_args()
    codes, run = tokenized(arguments.data, arguments.work, step=TAKEN, bandwidth=6), arguments.work / "run"
    subprocess.run(
        ["encodec-fast", "train-lm", codes, "--out", run, *TRAIN.split()], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    write_asset(run, arguments.asset)


def tokenized(data: Path, work: Path, step: int, bandwidth: int) -> Path:
    """Returns a folder with the codes of the clips, at that many kbps.  step: as of `write_clips`."""
    clips, codes = work / f"clips-{step}", work / f"codes-{bandwidth}"
    if not clips.is_dir():
        write_clips(data, clips, step)
    subprocess.run(["encodec-fast", "tokenize", clips, "--out", codes, "--bandwidth", str(bandwidth), *TOKENIZE.split()], check=True)
    return codes


def write_clips(data: Path, folder: Path, step: int) -> None:
    """Writes the clips as FLAC, the same ones each time.  step: between the numbers of those that are written."""
    unfinished = folder.with_name(folder.name + "-unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for index, clip in enumerate(joined(recordings(data))):
        speed, decibels = random.uniform(*SPEEDS), random.uniform(*DECIBELS)
        if index % step == 0:
            clip = soxr.resample(clip, RATE, RATE * speed) * 10 ** (decibels / 20)
            soundfile.write(unfinished / f"{index:04}.flac", np.clip(clip, -1, 1), RATE)
    unfinished.rename(folder)
    log(f"{index // step + 1} clips")


def joined(recordings: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields recordings end to end, in clips of CLIP_SECONDS or a little more; a rest that is shorter at the end is left out."""
    waiting: list[np.ndarray] = []
    for recording in recordings:
        waiting.append(recording)
        if sum(map(len, waiting)) >= CLIP_SECONDS * RATE:
            yield np.concatenate(waiting)
            waiting = []


def write_asset(run: Path, asset: Path) -> None:
    """Writes the model of a run as the package stores it, with the sources of its data."""
    about = ABOUT.replace("fit_demo_model.py", Path(__file__).name).replace("the weights of facebook/encodec_24khz", "published weights")
    tensors, metadata = packed(load_lm(run), weights_sha256(demo_model()), about)
    save_file(tensors, asset, metadata)
    log(f"asset written, {asset.stat().st_size} bytes")


if __name__ == "__main__":
    main()
