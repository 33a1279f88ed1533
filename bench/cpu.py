"""Speed of a backend on the CPU beside stock transformers and OpenVINO: `python bench/cpu.py [--quick] [--runs 3] [--json FILE]`.

Both answers are compared before the first run. Every row is a median of interleaved runs in this process, float32, same thread count
on both sides; "floor" is the arithmetic of the networks at the rate that torch.mm reaches between the runs, and "bar asks" the share of
it that the least factor would take: above 1, the other side alone is too close to the floor. Weights are seeded; speed does not depend on
their values. OpenVINO (`pip install openvino`) runs the encoder network, converted from the same weights.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import transformers

import cases
import encodec_fast
from encodec_fast import use_backend
from encodec_fast.demo import demo_config
from encodec_fast.kernels.cpu import library as native
from encodec_fast.plan.reader import read_plan
from harness import SETTLE_S
from roofline import MachineRates, stage_work


@dataclass(frozen=True)
class Case:
    """Lines of the table.  bars: the least factor at each number of threads; share_bars: the least share of the floor."""

    what: str
    batch: int
    seconds: float
    bandwidth: float
    bars: dict[int, float]
    stereo: bool = False
    share_bars: dict[int, float] = field(default_factory=dict)


CASES = (
    Case("encode", 8, 10, 6.0, {1: 3.8, 2: 5.0}, share_bars={1: 0.90}),
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
ENCODERS = (
    Case("encoder", 8, 10, 6.0, {1: 1.3, 2: 1.3}),
    Case("encoder", 1, 10, 6.0, {1: 1.3, 2: 1.3}),
    Case("encoder", 16, 2, 6.0, {2: 1.3}),
    Case("encoder", 1, 60, 6.0, {2: 1.3}),
    Case("encoder", 1, 10, 6.0, {1: 1.3, 2: 1.3}, stereo=True),
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
    # idle threads of the call before spin for some milliseconds
    time.sleep(SETTLE_S)
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def flops(case: Case) -> float:
    """Arithmetic of one call: networks, and the search of an encode."""
    name, network_only = "demo-48khz" if case.stereo else "demo", case.what == "encoder"
    work = stage_work(cases.Case(name, "encode" if network_only else case.what, case.batch, case.seconds, case.bandwidth))
    return sum(stage.flops for stage in (work[:-1] if network_only else work))


@dataclass(frozen=True)
class Row:
    """One line of the table: `ours` against `other`, medians of interleaved runs."""

    call: str
    other: str
    threads: int
    x_real_time: float
    factor: float
    at_least: float
    share_of_floor: float
    share_at_least: float | None
    spread: float  # (slowest - fastest) / median of ours
    runs: int

    @property
    def share_asked(self) -> float:
        """The share of the floor at which the least factor would be met."""
        return self.at_least * self.share_of_floor / self.factor

    @property
    def met(self) -> bool:
        return self.factor >= self.at_least and (self.share_at_least is None or self.share_of_floor >= self.share_at_least)

    def text(self) -> str:
        share = f"{self.share_of_floor:.2f}" + (f" of {self.share_at_least:.2f}" if self.share_at_least else "")
        cells = [
            self.call,
            self.other,
            str(self.threads),
            f"{self.x_real_time:.1f}",
            f"{self.factor:.2f}",
            f"{self.at_least:g}",
            share,
            f"{self.share_asked:.2f}",
        ]
        return f"| {' | '.join(cells)} | {self.spread:.0%} | {'' if self.met else 'missed'} |"


def race(theirs: Callable[[], object], own: Callable[[], object], runs: int) -> tuple[list[float], list[float], float]:
    """(their seconds, ours, FLOP/s of torch.mm between the runs), interleaved."""
    machine = MachineRates(torch.device("cpu"))
    their_times, our_times, rates = [], [], []
    for _ in range(runs):
        their_times.append(seconds_of(theirs))
        rates.append(machine.flops())
        our_times.append(seconds_of(own))
        rates.append(machine.flops())
    return their_times, our_times, statistics.median(rates)


def row(case: Case, other: str, threads: int, times: tuple[list[float], list[float], float], work: float, at_least: float) -> Row:
    """The line of one race.  work: its FLOPs."""
    their_times, our_times, rate = times
    ours = statistics.median(our_times)
    name = f"{'48 kHz stereo ' if case.stereo else ''}{case.what}, B={case.batch}, {case.seconds:g} s"
    if case.what != "encoder":
        name += f", {case.bandwidth:g} kbps"
    return Row(
        name,
        other,
        threads,
        case.batch * case.seconds / ours,
        statistics.median(a / b for a, b in zip(their_times, our_times)),
        at_least,
        work / rate / ours,
        case.share_bars.get(threads),
        (max(our_times) - min(our_times)) / ours,
        len(our_times),
    )


def audio_of(case: Case, config: transformers.EncodecConfig) -> torch.Tensor:
    return 0.1 * torch.randn(case.batch, config.audio_channels, int(case.seconds * config.sampling_rate))


def against_transformers(case: Case, threads: int, runs: int, backend: str) -> Row:
    torch.set_num_threads(threads)
    stock, ours = pair(case.stereo)
    audio = audio_of(case, stock.config)
    with torch.no_grad(), use_backend(backend):
        theirs, own = call(stock, case, audio), call(ours, case, audio)
        check(case, theirs, own)
        times = race(theirs, own, runs)
    return row(case, "transformers", threads, times, flops(case), case.bars[threads] if backend == "cpu" else 1.0)


def against_openvino(case: Case, threads: int, runs: int) -> Row:
    """The encoder network alone, converted from the same weights, float32.  Raises ImportError without openvino."""
    import openvino

    torch.set_num_threads(threads)
    stock, ours = pair(case.stereo)
    audio = audio_of(case, stock.config)
    if case.stereo:  # as the model cuts it: chunks of a second
        audio = torch.cat(audio.split(stock.config.sampling_rate, dim=-1))
    with torch.no_grad(), use_backend("cpu"):
        converted = openvino.convert_model(torch.jit.trace(stock.encoder, audio, check_trace=False), input=list(audio.shape))
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        request = openvino.Core().compile_model(converted, "CPU", settings).create_infer_request()
        tensor = openvino.Tensor(audio.numpy(), shared_memory=True)

        def theirs() -> torch.Tensor:
            return torch.from_numpy(request.infer([tensor])[0])

        def own() -> torch.Tensor:
            return ours.encoder(audio)

        expected = stock.encoder(audio[:1])
        for answer in (theirs()[:1], own()[:1]):
            if (answer - expected).abs().max() > 1e-3 * expected.abs().max():
                raise ValueError(f"an answer to {case} differs from that of transformers")
        times = race(theirs, own, runs)
    return row(case, "openvino", threads, times, flops(case), case.bars[threads])


def load_seconds() -> float:
    """Seconds to read the plan of a 24 kHz model and pack it."""
    from encodec_fast.backends.cpu_backend import CpuBackend

    _, model = pair(stereo=False)

    def load() -> None:
        plan, backend = read_plan(model), CpuBackend()
        backend.prepare(plan.encoder.stages)
        backend.prepare(plan.decoder.stages)
        backend.prepare_quantizer(plan.quantizer)

    return min(seconds_of(load) for _ in range(3))


def hour_megabytes() -> float:
    """Peak memory of encoding an hour besides the model, the input and the codes, in a process of its own (Linux)."""
    command = [sys.executable, str(Path(__file__).with_name("long_clip.py")), "--hours", "1", "--encode-only", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "ENCODEC_FAST_BACKEND": "cpu"})
    return json.loads(done.stdout)["bytes_above"] / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=["cpu", "torch"], default="cpu", help="torch has to be no slower than transformers")
    parser.add_argument("--quick", action="store_true", help="clips of a fifth of the length, no hour")
    parser.add_argument("--runs", type=int, default=3, help="interleaved runs of each side")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path, help="also write each row as a JSON line")
    options = parser.parse_args()
    machine = {
        "machine": platform.processor() or platform.machine(),
        "tier": native.tiers(native.load())[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    lines = [json.dumps(machine)]
    print(", ".join(f"{key} {value}" for key, value in machine.items()), f"float32, {options.runs} runs", sep=", ")
    print("| call | against | threads | x real time | factor | at least | share of floor | bar asks | spread | |")
    print("|---|---|---|---|---|---|---|---|---|---|")

    def show(result: Row) -> None:
        print(result.text(), flush=True)
        lines.append(json.dumps(asdict(result) | {"met": result.met, "share_asked": result.share_asked}))

    shorten = 5 if options.quick else 1
    for case in CASES + (ENCODERS if options.backend == "cpu" else ()):
        case = replace(case, seconds=max(1, case.seconds / shorten))
        for threads in options.threads:
            if threads not in case.bars:
                continue
            if case.what == "encoder":
                show(against_openvino(case, threads, options.runs))
            else:
                show(against_transformers(case, threads, options.runs, options.backend))
    if options.backend == "cpu":
        seconds = load_seconds()
        lines.append(json.dumps({"load_seconds": seconds, "at_most": 0.5}))
        print(f"\nload and pack the 24 kHz model: {seconds:.2f} s (at most 0.5)", flush=True)
        if not options.quick:
            megabytes = hour_megabytes()
            lines.append(json.dumps({"hour_megabytes": megabytes, "at_most": 300}))
            print(f"peak memory of encoding an hour: {megabytes:.0f} MB (at most 300)")
    if options.json:
        options.json.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
