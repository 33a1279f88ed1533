"""Speed of tokenizing real clips of mixed lengths: python bench/dataset.py CLIPS [--model demo] [--threads 2] [--clips 300]

CLIPS: a folder of audio. Debian's asterisk-core-sounds-en-wav is a public set of 568 clips of 0.2 to 73 s, 25 minutes in all:

    apt-get download asterisk-core-sounds-en-wav && dpkg -x asterisk-core-sounds-en-wav_*.deb clips

Rows, in one process, --runs times in turn: the encoder alone on clips that are decoded already; `tokenize` with everything (headers,
decoding, resampling, shards, ledger); the usual script (transformers, a clip at a time, a .npy file per clip) on an evenly spread
share of the clips. Medians count. The codes of the last two are compared before a speed is printed. --soak N: memory over N short
clips instead.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
import transformers

import encodec_fast
from encodec_fast.corpus.sources import find_tasks, scan_seconds
from encodec_fast.corpus.tasks import Task, read_task
from encodec_fast.dataset.encoding import ClipEncoder, dataset_info
from encodec_fast.dataset.ledger import Ledger
from encodec_fast.dataset.options import BATCH_SECONDS, TokenizeOptions
from encodec_fast.dataset.run import Run, Summary, identity, plan
from encodec_fast.dataset.schedule import batches, order
from encodec_fast.formats.folder import load_codes
from encodec_fast.pretrained import load_model, weights_sha256

# The least share of the encoder's own rate that the whole run reaches, and the least factor over the usual script
SHARE, FACTOR = 0.85, 4.0


def encoder_rate(model: encodec_fast.EncodecModel, tasks: list[Task], bandwidth: float) -> float:
    """x real time of encoding alone, in the batches of a run."""
    ordered = order(tasks)
    numbers = batches([task.seconds for task in ordered], BATCH_SECONDS)
    clips = [read_task(task, model.config.sampling_rate, model.config.audio_channels) for task in ordered]
    encoder = ClipEncoder(model, bandwidth)
    start = time.perf_counter()
    for number in range(int(numbers[-1]) + 1):
        encoder.encode([clip for clip, own in zip(clips, numbers, strict=True) if own == number])
    return sum(task.seconds for task in tasks) / (time.perf_counter() - start)


def tokenize(
    model: encodec_fast.EncodecModel, source: str, out: Path, options: TokenizeOptions, limit: int | None = None
) -> tuple[Summary, float]:
    """The run's summary, and the seconds from listing the files to the last shard on the disk."""
    start = time.perf_counter()
    info = dataset_info(model, "bench", weights_sha256(model), {})
    ledger = Ledger(out)
    plan(ledger, identity(info, model, options, [source]), find_tasks([source]), options, limit=limit)
    summary = Run(model, info, ledger, options).run()
    return summary, time.perf_counter() - start


def usual_script(model: transformers.EncodecModel, tasks: list[Task], out: Path, bandwidth: float) -> float:
    """x real time of the loop that most people write. out: for its files."""
    rate, channels = model.config.sampling_rate, model.config.audio_channels
    start = time.perf_counter()
    for index, task in enumerate(tasks):
        samples = read_task(task, rate, channels).samples
        with torch.no_grad():
            codes = model.encode(torch.from_numpy(samples)[None], bandwidth=bandwidth).audio_codes
        np.save(out / f"{index}.npy", codes.numpy())
    return sum(task.seconds for task in tasks) / (time.perf_counter() - start)


def compare(tasks: list[Task], script: Path, out: Path) -> float:
    """Share of frames whose codes differ. Raises ValueError where that is more than near ties can explain."""
    rows = {row.id: row.codes for row in load_codes(out)}
    different = total = 0
    for index, task in enumerate(tasks):
        theirs = np.load(script / f"{index}.npy")[:, 0]
        different += int((theirs != rows[task.id]).any(1).sum())
        total += theirs.shape[0] * theirs.shape[2]
    if different > 1e-3 * total:
        raise ValueError(f"{different} of {total} frames differ from transformers: see `encodec-fast verify`")
    return different / total


def speed(options: argparse.Namespace) -> bool:
    """Prints the rows; whether both bars are held."""
    torch.set_num_threads(options.threads)
    model, _ = load_model(options.model)
    stock = transformers.EncodecModel(model.config).eval()
    stock.load_state_dict(model.state_dict())
    tasks = scan_seconds(find_tasks([options.clips]))
    share = tasks[:: max(1, len(tasks) // options.script_clips)]
    settings = TokenizeOptions(options.bandwidth, workers=options.workers)
    with tempfile.TemporaryDirectory() as folder:
        run, script = Path(folder) / "run", Path(folder) / "script"
        script.mkdir()
        usual_script(stock, share[:3], script, options.bandwidth)  # warm both up
        encoder_rate(model, tasks[:8], options.bandwidth)
        alone, whole, theirs, summaries = [], [], [], []
        for repeat in range(options.runs):
            alone.append(encoder_rate(model, tasks, options.bandwidth))
            summary, seconds = tokenize(model, options.clips, run / str(repeat), settings)
            whole.append(summary.seconds / seconds)
            summaries.append(summary)
            theirs.append(usual_script(stock, share, script, options.bandwidth))
        differing = compare(share, script, run / "0")
    encoder, ours, usual = (statistics.median(rates) for rates in (alone, whole, theirs))
    summary = summaries[-1]
    print(f"{len(tasks)} clips, {sum(task.seconds for task in tasks):.0f} s, model {options.model}, {options.bandwidth:g} kbps, ", end="")
    print(f"{options.threads} threads, {options.workers} readers, torch {torch.__version__}, transformers {transformers.__version__}")
    print("| row | x real time | bar |")
    print("|---|---|---|")
    print(f"| encoder alone, clips decoded | {encoder:.1f} | |")
    print(f"| tokenize, everything included | {ours:.1f} | {ours / encoder:.0%} of the encoder, at least {SHARE:.0%} |")
    print(f"| usual script, {len(share)} of the clips | {usual:.1f} | {ours / usual:.2f} x, at least {FACTOR:g} x |")
    print(f"frames that differ from transformers {differing:.1e}; readers {summary.reading:.0f} x real time; ", end="")
    print(f"the encoder waited {summary.waited / summary.wall_seconds:.1%} of the time; ", end="")
    print(f"slowest to fastest run: tokenize {min(whole):.1f} to {max(whole):.1f}, script {min(theirs):.1f} to {max(theirs):.1f}")
    return ours >= SHARE * encoder and ours >= FACTOR * usual


def soak(clips: int, threads: int) -> bool:
    """Prints the memory of a run over that many short clips, with a model of a few channels; whether it stays flat."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = transformers.EncodecConfig(
        sampling_rate=2400, num_filters=4, upsampling_ratios=[4, 2], hidden_size=8, codebook_size=16, target_bandwidths=[2.4]
    )
    model = encodec_fast.EncodecModel(config).eval()
    for layer in model.quantizer.layers:
        layer.codebook.embed.normal_()
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "clips", Path(folder) / "codes"
        source.mkdir()
        for index in range(100):
            soundfile.write(source / f"{index}.wav", 0.1 * np.random.default_rng(index).standard_normal(600), 2400)
        manifest = source / "clips.tsv"
        manifest.write_text("id\tpath\tduration\n" + "".join(f"{index:07d}\t{index % 100}.wav\t0.25\n" for index in range(clips)))
        info = dataset_info(model, "soak", weights_sha256(model), {})
        settings, ledger = TokenizeOptions(2.4, workers=1), Ledger(out)
        plan(ledger, identity(info, model, settings, [str(manifest)]), find_tasks([manifest]), settings)
        print("| clips | memory, MB |")
        print("|---|---|")
        seen: list[float] = []
        every = max(1, clips // 10)

        def note(summary: Summary) -> None:
            if summary.clips >= every * (len(seen) + 1):
                seen.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6)
                print(f"| {summary.clips} | {seen[-1]:.0f} |", flush=True)

        summary = Run(model, info, ledger, settings).run(note)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{summary.clips} clips in {summary.wall_seconds:.0f} s, peak {peak:.0f} MB")
    # the first tenth fills caches
    return seen[-1] < 1.05 * seen[1]


def start_up() -> float:
    """Seconds of `encodec-fast tokenize` to its first clip, with transformers, besides importing torch and loading the model."""
    script = (
        # the parts of torch that transformers' models import
        "import sys, time, torch, torch._dynamo, torch.distributed.tensor; start = time.perf_counter(); import transformers;"
        "from encodec_fast.corpus.reader import Reader; from encodec_fast.cli import main;"
        "from encodec_fast.corpus.sources import find_tasks, scan_seconds;"
        "from encodec_fast.dataset import run, encoding, ledger, writing;"
        "reader = Reader(24000, 1, workers=2); (clip,) = reader.read(scan_seconds(find_tasks(sys.argv[1:])));"
        "print(time.perf_counter() - start); assert clip.samples.shape == (1, 2400); reader.close()"
    )
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.wav"
        soundfile.write(clip, np.zeros(2400, np.float32), 24000)
        return float(subprocess.run([sys.executable, "-c", script, str(clip)], capture_output=True, text=True, check=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="?", help="folder of audio")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--bandwidth", type=float, default=6.0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--script-clips", type=int, default=100, help="clips that the usual script is timed on")
    parser.add_argument("--soak", type=int, metavar="N", help="memory over N short clips")
    options = parser.parse_args()
    if options.soak:
        return 0 if soak(options.soak, options.threads) else 1
    if options.clips is None:
        parser.error("CLIPS is needed")
    good = speed(options)
    print(f"start-up besides torch: {statistics.median(start_up() for _ in range(options.runs)):.1f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
