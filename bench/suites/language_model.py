"""The suite `lm`: coding by a language model, beside that of `encodec` 0.1.1 with the same random weights of the published sizes.

Its heads are scaled, so that what it predicts is as peaked as what a trained one does; codes are drawn from the model itself. What a
contender wrote, it reads back before it is timed. `encodec` codes one clip at a time, so it has no rows of several clips.
"""

from __future__ import annotations

import argparse
import importlib
import io
import statistics
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from rich.console import Console

from bench_lib import cases, results
from bench_lib.check import WrongAnswer
from bench_lib.contenders.original import Original, allow_import
from bench_lib.machine import busy_seconds, disturbance, environment, others_share
from bench_lib.results import Row
from encodec_fast import compress, decompress
from encodec_fast.compression.coders import Coder, RawCoder
from encodec_fast.compression.language_model_coder import LanguageModelCoder
from encodec_fast.demo import demo_model
from encodec_fast.language_model.model import LanguageModel, LanguageModelConfig

OURS, THEIRS = "ours-cpu", "encodec"
# Of the random heads, as torch draws them.
HEAD_SCALE = 6
SECONDS = {"quick": 1, "readme": 10, "full": 10}
# Short calls are repeated until a run takes so long.
LEAST_SECONDS = 0.2
HOP = 320

Calls = dict[str, tuple[Callable[[], Any], Callable[[], Any]]]  # contender -> encode, decode


@dataclass(frozen=True)
class Case:
    """What is timed.  what: the coder alone, or whole files.  clips: coded at once, each of so many seconds."""

    what: str
    model: str
    clips: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.what}, {self.model}, {self.clips} x {self.seconds:g} s"


class Geometry:
    """Codes of one of the published models at 6 kbps, and both language models over them, of the same random weights.

    segments: frames of a clip's segments. `encodec` codes each of the 48 kHz model's chunks by itself, and so do we here.
    """

    def __init__(self, name: str, seconds: int) -> None:
        self.name, self.seconds = name, seconds
        self.stereo = name == "48 kHz"
        self.levels, rate = (4, 150) if self.stereo else (8, 75)
        self.segments = [rate] * seconds if self.stereo else [rate * seconds]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = LanguageModelConfig(codebooks=16, past_context=525) if self.stereo else LanguageModelConfig()
            self.model = LanguageModel(config).eval()
        with torch.no_grad():
            for head in self.model.linears:
                head.weight.mul_(HEAD_SCALE)
                head.bias.mul_(HEAD_SCALE)
        self.coder = LanguageModelCoder(self.model)

    def clip(self, seed: int) -> list[np.ndarray]:
        """Returns the codes [K, F] of a clip's segments, as often as the model expects them: random bytes, decoded."""
        random = np.random.default_rng(seed)
        # more bytes than raw codes have
        payloads = [random.bytes(2 * self.levels * frames) for frames in self.segments]
        decoders = [self.coder.decoder(payload, self.levels) for payload in payloads]
        return [decoder.pull(frames) for decoder, frames in zip(decoders, self.segments, strict=True)]

    @cached_property
    def theirs(self) -> Any:
        """The language model of `encodec`."""
        from encodec.model import LMModel

        config = self.model.config
        model = LMModel(config.codebooks, config.codebook_size, config.dim, num_layers=config.layers, past_context=config.past_context)
        model.load_state_dict(self.model.state_dict())
        return model.eval()


def run(options: argparse.Namespace, console: Console) -> None:
    """Measures and prints every case."""
    missing = Original.missing(torch.device("cpu"))
    allow_import()
    if missing:
        console.print(f"{THEIRS}: {missing}")
    seconds = SECONDS[options.set]
    for threads in options.threads:
        about = {"suite": "lm", "set": options.set, "environment": environment(threads, clock=options.clock)}
        kept, before = results.kept(options, about), torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.no_grad():
                for case, calls in _cases(seconds, theirs=missing is None):
                    if any(results.key({**about, "case": {**asdict(case), "call": "encode"}, "contender": OURS}) == key for key in kept):
                        console.print(f"{case}, {threads} threads: done before")
                        continue
                    rows = measure(case, calls, options.rounds)
                    results.append(options.out, ({**about, **row} for row in rows))
                    show(console, case, threads, rows)
        finally:
            torch.set_num_threads(before)


def _cases(seconds: int, theirs: bool) -> Iterator[tuple[Case, Calls]]:
    for name in ("24 kHz", "48 kHz"):
        geometry = Geometry(name, seconds)
        for clips in (1, 16):
            segments = [segment for seed in range(clips) for segment in geometry.clip(seed)]
            calls: Calls = {OURS: _coder_calls(geometry.coder, segments)}
            if theirs and clips == 1:
                calls[THEIRS] = _their_calls(geometry, segments)
            yield Case("LM coder", name, clips, seconds), calls
        if name == "24 kHz":
            yield Case("whole file", name, 1, seconds), _whole_calls(geometry, theirs)
            yield Case("raw coder", name, 1, seconds), {OURS: _coder_calls(RawCoder(1024), geometry.clip(0))}


def _coder_calls(coder: Coder, segments: list[np.ndarray]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    levels, frames, payloads = len(segments[0]), [segment.shape[1] for segment in segments], coder.encode(segments)
    _same(coder.decode(payloads, frames, levels), segments)
    return lambda: coder.encode(segments), lambda: coder.decode(payloads, frames, levels)


def _their_calls(geometry: Geometry, segments: list[np.ndarray]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The loops of `encodec.compress` around a codec that has the codes already."""
    from encodec.compress import compress_to_file, decompress_from_file

    read: list[np.ndarray] = []
    samples = HOP * sum(segment.shape[1] for segment in segments)
    chunk = samples // len(segments)
    frames = [(torch.from_numpy(segment)[None], torch.ones(1) if geometry.stereo else None) for segment in segments]

    def decoded(found: list[tuple[torch.Tensor, Any]]) -> torch.Tensor:
        read[:] = [codes[0].numpy() for codes, _ in found]
        return torch.zeros(1, 1, samples)

    codec = types.SimpleNamespace(
        name=f"encodec_{geometry.name.replace(' kHz', 'khz')}",
        encode=lambda wav: frames,
        decode=decoded,
        get_lm_model=lambda: geometry.theirs,
        normalize=geometry.stereo,
        bits_per_codebook=10,
        sample_rate=48_000 if geometry.stereo else 24_000,
        frame_rate=150 if geometry.stereo else 75,
        segment_length=chunk if geometry.stereo else None,
        segment_stride=chunk if geometry.stereo else None,
    )
    codec.to = lambda device: codec

    def encode() -> bytes:
        out = io.BytesIO()
        compress_to_file(codec, torch.zeros(1, samples), out, use_lm=True)
        return out.getvalue()

    def decode() -> None:
        with _as_published(codec):
            decompress_from_file(io.BytesIO(written))

    written = encode()
    decode()
    _same(read, segments)
    return encode, decode


def _whole_calls(geometry: Geometry, theirs: bool) -> Calls:
    """Audio to a file and back."""
    model = demo_model("demo")
    audio = cases.audio_of(cases.Case("demo", "encode", 1, geometry.seconds, 6))[0]
    own = compress(audio, model, 6.0, coder="lm", lm=geometry.coder)
    if decompress(own, model, lm=geometry.coder)[0].shape != tuple(audio.shape):
        raise WrongAnswer("the decompressed audio has another length")
    calls: Calls = {
        OURS: (
            lambda: compress(audio, model, 6.0, coder="lm", lm=geometry.coder),
            lambda: decompress(own, model, lm=geometry.coder),
        )
    }
    if theirs:
        from encodec.compress import compress_to_file, decompress_from_file

        original = Original("cpu").load("demo")
        original.name = "encodec_24khz"
        original.set_target_bandwidth(6.0)
        original.get_lm_model = lambda: geometry.theirs

        def encode() -> bytes:
            out = io.BytesIO()
            compress_to_file(original, audio, out, use_lm=True)
            return out.getvalue()

        def decode() -> Any:
            with _as_published(original):
                return decompress_from_file(io.BytesIO(written))

        written = encode()
        if decode()[0].shape != audio.shape:
            raise WrongAnswer(f"{THEIRS}: the decompressed audio has another length")
        calls[THEIRS] = encode, decode
    return calls


@contextmanager
def _as_published(codec: Any) -> Iterator[None]:
    """Lets `encodec` take this model where a file names a published one, which it would download."""
    # `encodec.compress` is a function as well
    published = importlib.import_module("encodec.compress").MODELS
    before = dict(published)
    published[codec.name] = lambda: codec
    try:
        yield
    finally:
        published.update(before)


def _same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    if len(found) != len(expected) or not all(np.array_equal(one, other) for one, other in zip(found, expected)):
        raise WrongAnswer("the codes that were read are not those that were written")


def measure(case: Case, calls: Calls, rounds: int) -> list[Row]:
    """Returns a row for each contender and direction; the contenders take turns."""
    times: dict[tuple[str, int], list[float]] = {}
    others: dict[tuple[str, int], list[float]] = {}
    for index in range(rounds):
        turns = [(name, way) for name in calls for way in (0, 1)]
        for turn in turns if index % 2 == 0 else turns[::-1]:
            busy, cpu, start = busy_seconds(), time.process_time(), time.perf_counter()
            times.setdefault(turn, []).append(timed(calls[turn[0]][turn[1]]))
            share = others_share(busy_seconds() - busy, time.process_time() - cpu, time.perf_counter() - start)
            others.setdefault(turn, []).append(share)
    rows = []
    for (name, way), seconds in times.items():
        median = statistics.median(seconds)
        rows.append(
            {
                "case": {**asdict(case), "call": ("encode", "decode")[way]},
                "contender": name,
                "seconds": seconds,
                "median": median,
                "spread": (max(seconds) - min(seconds)) / median,
                "x_real_time": case.clips * case.seconds / median,
                "disturbed": disturbance(statistics.median(others[name, way]), [1.0]),
            }
        )
    return rows


def timed(call: Callable[[], Any]) -> float:
    """Returns the seconds of one call: of as many as take LEAST_SECONDS, their mean."""
    start, done = time.perf_counter(), 0
    while done == 0 or time.perf_counter() - start < LEAST_SECONDS:
        call()
        done += 1
    return (time.perf_counter() - start) / done


def show(console: Console, case: Case, threads: int, rows: list[Row]) -> None:
    """Prints a line for each row."""
    for row in rows:
        mark = f"  * {row['disturbed']}" if row["disturbed"] else ""
        console.print(
            f"{case}, {threads} threads, {row['case']['call']}, {row['contender']}: {row['x_real_time']:.1f} x real time, "
            f"spread {row['spread']:.0%}{mark}"
        )
