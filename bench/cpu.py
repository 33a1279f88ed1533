"""Speed of a backend on the CPU beside stock transformers: `python bench/cpu.py [--backend cpu|torch] [--quick] [--threads 1 2]`.

Both answers are compared before the first run. Every row is a median of interleaved runs in this process, float32, same thread count
on both sides; "floor" is the arithmetic of the networks at the rate that torch.mm reaches between the runs. Weights are seeded; speed
does not depend on their values.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from encodec_fast.kernels.cpu import library as native

import encodec_fast
from encodec_fast import use_backend
from encodec_fast.demo import demo_config
from encodec_fast.plan import multiply_adds
from encodec_fast.plan_reader import read_plan

MATMUL_SIZE = 768
HOUR = 3600


@dataclass(frozen=True)
class Case:
    """One line of the table.  bars: the least factor over transformers at 1 and at 2 threads."""

    what: str
    batch: int
    seconds: float
    bandwidth: float
    bars: dict[int, float]
    stereo: bool = False


CASES = (
    Case("encode", 8, 10, 6.0, {1: 3.8, 2: 5.0}),
    Case("decode", 8, 10, 6.0, {1: 3.8, 2: 5.0}),
    Case("encode", 1, 10, 6.0, {1: 2.2, 2: 2.8}),
    Case("decode", 1, 10, 6.0, {1: 2.2, 2: 2.8}),
    Case("encode", 16, 2, 6.0, {2: 4.0}),
    Case("encode", 8, 10, 24.0, {2: 4.0}),
    Case("encode", 1, 10, 6.0, {1: 2.5, 2: 2.5}, stereo=True),
    Case("decode", 1, 10, 6.0, {1: 2.5, 2: 2.5}, stereo=True),
    Case("encode", 1, 60, 6.0, {2: 4.5}),
    Case("decode", 1, 60, 6.0, {2: 4.5}),
)


def pair(stereo: bool) -> tuple[transformers.EncodecModel, encodec_fast.EncodecModel]:
    """(stock, ours) with the same weights."""
    torch.manual_seed(0)
    config = demo_config("demo-48khz" if stereo else "demo")
    stock = transformers.EncodecModel(config).eval()
    for layer in stock.quantizer.layers:
        # a fresh model's codebooks are zeros, on which every answer is right
        layer.codebook.embed.normal_()
    ours = encodec_fast.EncodecModel(config).eval()
    ours.load_state_dict(stock.state_dict())
    return stock, ours


def call(model: transformers.EncodecModel, case: Case, audio: torch.Tensor) -> Callable[[], object]:
    """The measured call, without arguments."""
    if case.what == "encode":
        return lambda: model.encode(audio, bandwidth=case.bandwidth)
    encoded = model.encode(audio, bandwidth=case.bandwidth)
    scales, tail = encoded.audio_scales, encoded.last_frame_pad_length
    return lambda: model.decode(encoded.audio_codes, scales, last_frame_pad_length=tail)


def check(case: Case, theirs: Callable[[], object], own: Callable[[], object]) -> None:
    """Raises ValueError where our answer is not that of transformers: a speed is never printed beside a wrong one."""
    stock, ours = theirs()[0], own()[0]
    if case.what == "encode":
        wrong = (stock != ours).double().mean().item()
        if wrong > 1e-3:
            raise ValueError(f"{wrong:.1%} of the codes of {case} differ: see `encodec-fast verify`")
    elif (stock - ours).abs().max() > 1e-4 * stock.abs().max():
        raise ValueError(f"the audio of {case} differs: see `encodec-fast verify`")


def seconds_of(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def matmul_rate() -> float:
    """FLOP/s of torch.mm at the current thread count."""
    x = torch.ones(MATMUL_SIZE, MATMUL_SIZE)
    return 2 * MATMUL_SIZE**3 / seconds_of(lambda: x @ x)


def flops(model: encodec_fast.EncodecModel, case: Case) -> float:
    """Arithmetic of one call: networks, and the search of an encode."""
    plan, steps = read_plan(model), int(case.seconds * model.config.sampling_rate)
    network = plan.encoder if case.what == "encode" else plan.decoder
    length = steps if case.what == "encode" else plan.encoder.output_length(steps)
    total = 0
    for stage in network.stages:
        total += multiply_adds(stage, length)
        length = stage.output_length(length)
    if case.what == "encode":
        levels = model.quantizer.get_num_quantizers_for_bandwidth(case.bandwidth)
        total += length * levels * plan.quantizer.codebooks[0].numel()
    return 2.0 * case.batch * total


def measure(case: Case, threads: int, runs: int, backend: str) -> str:
    """The table's row, as text."""
    torch.set_num_threads(threads)
    stock, ours = pair(case.stereo)
    audio = 0.1 * torch.randn(case.batch, stock.config.audio_channels, int(case.seconds * stock.config.sampling_rate))
    stock_times, our_times, rates = [], [], []
    with torch.no_grad(), use_backend(backend):
        theirs, own = call(stock, case, audio), call(ours, case, audio)
        check(case, theirs, own)
        for _ in range(runs):
            stock_times.append(seconds_of(theirs))
            rates.append(matmul_rate())
            our_times.append(seconds_of(own))
            rates.append(matmul_rate())
    factor = statistics.median(a / b for a, b in zip(stock_times, our_times))
    time_of_ours = statistics.median(our_times)
    share = flops(ours, case) / statistics.median(rates) / time_of_ours
    spread = (max(our_times) - min(our_times)) / time_of_ours
    bar = case.bars[threads] if backend == "cpu" else 1.0
    name = f"{'48 kHz stereo ' if case.stereo else ''}{case.what}, B={case.batch}, {case.seconds:g} s, {case.bandwidth:g} kbps"
    audio_rate = case.batch * case.seconds / time_of_ours
    verdict = "" if factor >= bar else "  MISSED"
    return f"| {name} | {threads} | {audio_rate:.1f} | {factor:.2f} | {bar:g} | {share:.2f} | {spread:.0%} |{verdict}"


def load_seconds() -> float:
    """Seconds to read the plan of a 24 kHz model and pack it."""
    from encodec_fast.executors.cpu_executor import CpuExecutor

    _, model = pair(stereo=False)

    def load() -> None:
        plan, executor = read_plan(model), CpuExecutor()
        executor.prepare(plan.encoder.stages)
        executor.prepare(plan.decoder.stages)
        executor.prepare_quantizer(plan.quantizer)

    return min(seconds_of(load) for _ in range(3))


HOUR_SCRIPT = """
import json, resource, torch, encodec_fast
from encodec_fast import use_backend
torch.manual_seed(0)
model = encodec_fast.EncodecModel(encodec_fast.EncodecConfig()).eval()
audio = torch.zeros(1, 1, 24000 * SECONDS)
audio.normal_(std=0.1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
with torch.no_grad(), use_backend("cpu"):
    model.encode(audio[..., :24000], bandwidth=6.0)
    before = peak()
    model.encode(audio, bandwidth=6.0)
print(json.dumps(peak() - before))
"""


def hour_megabytes(seconds: int) -> float:
    """Peak memory above model and input of encoding one clip, in a process of its own."""
    script = HOUR_SCRIPT.replace("SECONDS", str(seconds))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=["cpu", "torch"], default="cpu", help="torch has to be no slower than transformers")
    parser.add_argument("--quick", action="store_true", help="clips of a fifth of the length, 3 runs, no hour")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    runs = 3 if options.quick else 7
    print(f"{platform.processor() or platform.machine()}, tier {native.tiers(native.load())[0]}, torch {torch.__version__}, ", end="")
    print(f"transformers {transformers.__version__}, float32, {runs} runs")
    print("| call | threads | x real time | x transformers | at least | share of floor | spread |")
    print("|---|---|---|---|---|---|---|")
    for case in CASES:
        if options.quick:
            case = Case(case.what, case.batch, max(1, case.seconds / 5), case.bandwidth, case.bars, case.stereo)
        for threads in options.threads:
            if threads in case.bars:
                print(measure(case, threads, runs, options.backend), flush=True)
    if options.backend != "cpu":
        return
    print(f"load and pack the 24 kHz model: {load_seconds():.2f} s (at most 0.5)")
    if not options.quick:
        print(f"peak memory of encoding an hour: {hour_megabytes(HOUR):.0f} MB (at most 300)")


if __name__ == "__main__":
    main()
