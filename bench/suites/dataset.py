"""The suite `dataset`: files of audio to codes on disk, `encodec-fast tokenize` beside a loop over transformers.

The loop is what people write: read a file, resample it, encode it alone, save an array. By default both are whole processes over
copies of the bundled clips; loading the model counts on both sides.

`--clips DIR` looks into a run over real clips of mixed lengths instead, in one process. It prints the rate of the encoder alone, on
decoded clips. Beside it are `tokenize` with headers, decoding, resampling, shards and ledger, and the loop on a share of the clips.
Debian's asterisk-core-sounds-en-wav is a public set of 568 clips of 0.2 to 73 s, 25 minutes in all:

    apt-get download asterisk-core-sounds-en-wav && dpkg -x asterisk-core-sounds-en-wav_*.deb clips
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import soundfile
import torch
import transformers
from rich.console import Console
from torch import Tensor

from bench_lib import results
from bench_lib.cases import CACHE, DATASET_COPIES, stock_model, weights_file
from bench_lib.check import FLIPS_SHARE, FLIPS_SLACK, STRICT_SHARE, WrongAnswer, check_codes, judged_flips
from bench_lib.machine import environment
from bench_lib.results import Row
from encodec_fast import EncodecModel, demo
from encodec_fast.audio import audio_info, read_audio
from encodec_fast.corpus.sources import find_tasks, scan_seconds
from encodec_fast.corpus.tasks import Task, read_task
from encodec_fast.dataset.encoding import ClipEncoder, dataset_info
from encodec_fast.dataset.ledger import Ledger
from encodec_fast.dataset.options import BATCH_SECONDS, TokenizeOptions
from encodec_fast.dataset.run import Run, Summary, identity, plan
from encodec_fast.dataset.schedule import batches, order
from encodec_fast.formats.folder import load_codes
from encodec_fast.plan.weights import weights_sha256

BANDWIDTH = 6.0
# With --clips: the least share of the encoder's own rate that a run reaches, and its least factor over the loop.
SHARE, FACTOR = 0.85, 4.0
# Clips that the loop is timed on, and reading processes of the run.
LOOP_CLIPS, READERS = 100, 1

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

START = """
# the parts of torch that transformers' models import
import sys, time, torch, torch._dynamo, torch.distributed.tensor
start = time.perf_counter()
import transformers
from encodec_fast.corpus.reader import Reader
from encodec_fast.cli import main
from encodec_fast.corpus.sources import find_tasks, scan_seconds
from encodec_fast.dataset import run, encoding, ledger, writing
reader = Reader(24000, 1, workers=2)
(clip,) = reader.read(scan_seconds(find_tasks(sys.argv[1:])))
print(time.perf_counter() - start)
assert clip.samples.shape == (1, 2400)
reader.close()
"""


def run(options: argparse.Namespace, console: Console) -> None:
    """Measures and prints whole processes or, with --clips, the parts of a run.  Raises WrongAnswer where codes differ too often."""
    for threads in options.threads:
        if options.clips is not None:
            look_inside(str(options.clips), options.rounds, threads, console)
            continue
        about = {"suite": "dataset", "set": options.set, "environment": environment(threads)}
        for row in measure(DATASET_COPIES[options.set], options.rounds, threads):
            results.append(options.out, [{**about, **row}])
            case, check = row["case"], row["check"]
            what = f"{case['files']} files of {case['audio_seconds']:.0f} s in all, {threads} threads, {row['contender']}"
            found = f"{row['median']:.1f} s, {row['x_real_time']:.1f} x real time; {check['flips']} of {check['frames']} frames differ"
            console.print(f"{what}: {found}")


def measure(copies: int, rounds: int, threads: int) -> Iterator[Row]:
    """Yields a row per contender.  copies: of the bundled clips.  Raises WrongAnswer where the codes differ too often."""
    model = model_folder()
    with tempfile.TemporaryDirectory() as scratch:
        audio, theirs, ours = (Path(scratch) / name for name in ("audio", "hf", "ours"))
        audio.mkdir()
        theirs.mkdir()
        for clip in demo.bundled_clips():
            for copy in range(copies):
                shutil.copy(clip, audio / f"{clip.stem}_{copy}.flac")
        seconds = sum(audio_info(path).duration for path in audio.glob("*.flac"))
        tokenize = [sys.executable, "-m", "encodec_fast", "tokenize", str(audio), "--out", str(ours), "--model", str(model)]
        commands = {
            "hf": [sys.executable, "-c", LOOP, str(audio), str(theirs), str(model), str(threads), str(BANDWIDTH)],
            "ours": [*tokenize, "--bandwidth", str(BANDWIDTH)],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        check: Row = {}
        for _ in range(rounds):
            for name, command in commands.items():
                shutil.rmtree(ours, ignore_errors=True)
                times[name].append(process_seconds(command, threads))
                if name == "ours":
                    found = {Path(row.id).stem: np.asarray(row.codes) for row in load_codes(ours)}
                    expected = {path.stem: np.load(path) for path in theirs.glob("*.npy")}
                    check = compare(found, expected, lambda name: _clip(audio / f"{name}.flac"), FLIPS_SHARE, FLIPS_SLACK)
        for name, runs in times.items():
            median = sorted(runs)[len(runs) // 2]
            about = {"case": {"model": "demo", "files": len(list(audio.iterdir())), "audio_seconds": seconds, "bandwidth": BANDWIDTH}}
            yield {**about, "contender": name, "seconds": runs, "median": median, "x_real_time": seconds / median, "check": check}


def model_folder() -> Path:
    """Returns the folder of the 24 kHz built-in model, saved as transformers saves models."""
    folder = CACHE / weights_file("demo").stem
    if not (folder / "config.json").exists():
        stock_model("demo").save_pretrained(folder)
    return folder


def process_seconds(command: list[str], threads: int) -> float:
    """Returns the seconds that a process takes.  Raises ValueError where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    # from elsewhere: `-m` puts the current folder on the path, where kernels/ must not be
    done = subprocess.run(command, env=environment, cwd=CACHE, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(command[1:4])} failed: {done.stderr.strip()[-500:]}")
    return time.perf_counter() - start


def compare(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], audio: Callable[[str], Tensor], share: float, slack: int
) -> Row:
    """Returns frames and flips of all clips.  Raises WrongAnswer where flips are too many, float64 refutes one, or a clip is missing.

    ours, theirs: codes [1, K, F] by name.  audio: gives a clip [C, T] by its name, where codes differ.
    """
    if ours.keys() != theirs.keys():
        raise WrongAnswer(f"{len(ours)} of {len(theirs)} clips have codes")
    for name, codes in theirs.items():
        if codes.shape != ours[name].shape:
            raise WrongAnswer(f"{name}: codes of shape {ours[name].shape}, transformers gives {codes.shape}")
    pairs = {name: [torch.tensor(side[name], dtype=torch.int64)[:, None] for side in (ours, theirs)] for name in theirs}
    differing = {name: pair for name, pair in pairs.items() if not torch.equal(*pair)}
    stock = stock_model("demo") if differing else None
    all_ours, all_theirs = (torch.cat(side, -1) for side in zip(*pairs.values(), strict=True))
    return check_codes(
        all_ours,
        all_theirs,
        lambda: [flip for name, pair in differing.items() for flip in judged_flips(stock, audio(name)[None], BANDWIDTH, *pair)],
        share,
        slack,
    )


def _clip(path: Path) -> Tensor:
    config = demo.demo_config("demo")
    return torch.from_numpy(read_audio(path, config.sampling_rate, config.audio_channels)[0])


# --clips: one process, real clips


def look_inside(clips: str, rounds: int, threads: int, console: Console) -> None:
    """Prints rates of the encoder alone, of a whole run and of the loop, medians of runs in turn.  Raises WrongAnswer."""
    torch.set_num_threads(threads)
    stock = stock_model("demo")
    model = EncodecModel(stock.config).eval()
    model.load_state_dict(stock.state_dict())
    tasks = scan_seconds(find_tasks([clips]))
    share = tasks[:: max(1, len(tasks) // LOOP_CLIPS)]
    with tempfile.TemporaryDirectory() as folder:
        loop_rate(stock, share[:3])  # warms both up
        encoder_rate(model, tasks[:8])
        alone, whole, theirs = [], [], []
        for number in range(rounds):
            alone.append(encoder_rate(model, tasks))
            out = Path(folder) / str(number)
            summary, seconds = tokenize(model, clips, out)
            whole.append(summary.seconds / seconds)
            rate, codes = loop_rate(stock, share)
            theirs.append(rate)
        found = {row.id: np.asarray(row.codes) for row in load_codes(out) if row.id in codes}
    by_id = {task.id: task for task in share}
    check = compare(found, codes, lambda name: torch.from_numpy(_samples(by_id[name], model)), STRICT_SHARE, slack=0)
    encoder, ours, loop = (statistics.median(rates) for rates in (alone, whole, theirs))
    console.print(
        f"{len(tasks)} clips, {sum(task.seconds for task in tasks):.0f} s, {BANDWIDTH:g} kbps, {threads} threads, {READERS} readers, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )
    console.print(f"encoder alone, clips decoded: {encoder:.1f} x real time")
    console.print(
        f"tokenize, everything included: {ours:.1f} x, {ours / encoder:.0%} of the encoder{_missed(ours / encoder, SHARE, '.0%')}"
    )
    console.print(
        f"loop, {len(share)} of the clips: {loop:.1f} x; tokenize is {ours / loop:.2f} x as fast{_missed(ours / loop, FACTOR, 'g')}"
    )
    console.print(
        f"{check['flips']} of {check['frames']} frames differ; readers {summary.reading:.0f} x real time; the encoder waited "
        f"{summary.waited / summary.wall_seconds:.1%} of the time; tokenize {min(whole):.1f} to {max(whole):.1f} x, "
        f"loop {min(theirs):.1f} to {max(theirs):.1f} x"
    )
    console.print(f"start-up besides torch: {statistics.median(start_seconds() for _ in range(rounds)):.1f} s")


def _missed(value: float, least: float, form: str) -> str:
    return f" (at least {least:{form}})" + ("" if value >= least else "  [red]missed[/red]")


def encoder_rate(model: EncodecModel, tasks: list[Task]) -> float:
    """Returns x real time of encoding alone, in the batches of a run."""
    ordered = order(tasks)
    numbers = batches([task.seconds for task in ordered], BATCH_SECONDS)
    clips = [read_task(task, model.config.sampling_rate, model.config.audio_channels) for task in ordered]
    encoder = ClipEncoder(model, BANDWIDTH)
    start = time.perf_counter()
    for number in range(int(numbers[-1]) + 1):
        encoder.encode([clip for clip, own in zip(clips, numbers, strict=True) if own == number])
    return sum(task.seconds for task in tasks) / (time.perf_counter() - start)


def tokenize(model: EncodecModel, source: str, out: Path) -> tuple[Summary, float]:
    """Returns the run's summary, and the seconds from listing the files to the last shard on the disk."""
    start = time.perf_counter()
    options = TokenizeOptions(BANDWIDTH, workers=READERS)
    info = dataset_info(model, "bench", weights_sha256(model), {})
    ledger = Ledger(out)
    plan(ledger, identity(info, model, options, [source]), find_tasks([source]), options)
    summary = Run(model, info, ledger, options).run()
    return summary, time.perf_counter() - start


def loop_rate(model: transformers.EncodecModel, tasks: list[Task]) -> tuple[float, dict[str, np.ndarray]]:
    """Returns x real time of the loop that most people write, with a .npy file per clip, and the codes [1, K, F] by task."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        for index, task in enumerate(tasks):
            with torch.no_grad():
                codes = model.encode(torch.from_numpy(_samples(task, model))[None], bandwidth=BANDWIDTH).audio_codes
            found[task.id] = codes[:, 0].numpy()
            np.save(Path(folder) / f"{index}.npy", codes.numpy())
        return sum(task.seconds for task in tasks) / (time.perf_counter() - start), found


def _samples(task: Task, model: transformers.EncodecModel) -> np.ndarray:
    return read_task(task, model.config.sampling_rate, model.config.audio_channels).samples


def start_seconds() -> float:
    """Returns the seconds of `encodec-fast tokenize` to its first clip, besides importing torch and loading the model."""
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.wav"
        soundfile.write(clip, np.zeros(2400, np.float32), 24000)
        command = [sys.executable, "-c", START, str(clip)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
