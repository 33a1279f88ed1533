"""Packs recordings for a training run on a rented GPU: mono FLAC of at most 24 kHz, drawn at random, up to so many megabytes.

    python examples/train_h100/prepare.py recordings/ data/                     # data/train and data/validation, 50 MB together
    python examples/train_h100/prepare.py recordings/ data/ --megabytes 20 --seconds 8

Of each file its beginning is taken, so that many voices fit. 50 MB are about 45 minutes of speech at 16 kHz, or 30 at 24 kHz.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr

HIGHEST_RATE = 24_000


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path, help="a folder; files that libsndfile reads are taken, in its subfolders too")
    parser.add_argument("out", type=Path, help="folder that gets train/ and validation/")
    parser.add_argument("--megabytes", type=float, default=50.0, help="of both together, at most (default: %(default)g)")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a file, at most (default: %(default)g)")
    parser.add_argument("--validation-share", type=float, default=0.05, help="of the files, and no file is in both (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=0, help="of the order in which files are drawn (default: %(default)d)")
    return parser.parse_args(words)


def read(path: Path, seconds: float) -> tuple[np.ndarray, int]:
    """Returns the beginning of a file, float32 [T], channels averaged, and its rate, which is HIGHEST_RATE at most."""
    with soundfile.SoundFile(path) as file:
        rate = file.samplerate
        samples = file.read(round(seconds * rate), dtype="float32", always_2d=True).mean(axis=1)
    if rate > HIGHEST_RATE:
        samples, rate = soxr.resample(samples, rate, HIGHEST_RATE), HIGHEST_RATE
    return samples, rate


def main(arguments: argparse.Namespace) -> None:
    suffixes = {f".{name.lower()}" for name in soundfile.available_formats()} | {".oga", ".aif"}
    paths = sorted(path for path in arguments.recordings.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    random.Random(arguments.seed).shuffle(paths)
    every = max(2, round(1 / arguments.validation_share))
    folders = {name: arguments.out / name for name in ("train", "validation")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    seconds, left = dict.fromkeys(folders, 0.0), arguments.megabytes * 1e6
    for number, path in enumerate(paths):
        name = "validation" if number % every == 0 else "train"
        samples, rate = read(path, arguments.seconds)
        target = folders[name] / f"{number:06d}.flac"
        soundfile.write(target, samples, rate, subtype="PCM_16")
        left -= target.stat().st_size
        if left < 0:
            target.unlink()
            break
        seconds[name] += len(samples) / rate
    if not all(seconds.values()):
        raise SystemExit(f"{arguments.recordings}: {len(paths)} recordings are too few for both folders, or --megabytes is too low.")
    print(", ".join(f"{folders[name]}: {length / 60:.1f} minutes" for name, length in seconds.items()))


if __name__ == "__main__":
    main(parse())
