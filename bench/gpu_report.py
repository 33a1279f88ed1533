"""Checks and times the triton backend on one GPU: python bench/gpu.py [--out gpu.json]

First the gate: codes and sound against Hugging Face in float64, with tf32 convolutions of torch off and on, and the laws
that hold bit for bit. Nothing is timed unless it is green. Then each stage beside its roofline, then encode and decode end
to end for Hugging Face eager and compiled and for ours, launch by launch and as a CUDA graph. Rows that do not fit into
--minutes are named as left out.

Without a GPU, `TRITON_INTERPRET=1 python bench/gpu.py --toy` runs the same code on a tiny model; its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from encodec_fast.kernels.rvq_encode import rvq_encode_triton
from encodec_fast.kernels.tiles import Tile, arch_of
from rich.console import Console
from rich.table import Table
from roofline import PEAKS
from torch import Tensor
from transformers import EncodecConfig
from transformers import EncodecModel as Reference

from encodec_fast import EncodecModel
from encodec_fast.executors.cuda_graphs import CudaGraphs
from encodec_fast.executors.triton_executor import PRECISIONS, TritonExecutor
from encodec_fast.executors.triton_layers import Signal
from encodec_fast.plan import Plan, fused_bytes, multiply_adds
from encodec_fast.plan_reader import read_plan
from encodec_fast.verify import ERROR_FACTOR, ERROR_SLACK

# Below this share of |r|^2 between the two nearest entries, float32 embeddings may choose either.
CODE_MARGIN = 1e-4
TOY = dict(num_filters=4, hidden_size=16, codebook_dim=16, codebook_size=32, upsampling_ratios=[3, 2], target_bandwidths=[160.0])

Row = dict[str, Any]


class Codec:
    """encode and decode of one precision, straight on the prepared programs."""

    def __init__(self, plan: Plan, precision: str) -> None:
        executor = TritonExecutor()
        self.encoder = executor.prepare(plan.encoder.stages, precision)
        self.decoder = executor.prepare(plan.decoder.stages, precision)
        self.quantizer = executor.prepare_quantizer(plan.quantizer)

    def encode(self, x: Tensor, num_quantizers: int) -> Tensor:
        return self.quantizer.encode(self.encoder.run(x), num_quantizers)

    def decode(self, codes: Tensor) -> Tensor:
        # the public check of the codes waits for the device
        return self.decoder.run(self.quantizer.launch_decode(codes))


def fitted_model(config: EncodecConfig, device: torch.device) -> Reference:
    """Random weights, entries drawn like the residuals of noise: a fresh model's codebooks are all zero and prove nothing."""
    torch.manual_seed(20220)
    model = Reference(config).eval()
    residual = model.encoder(torch.randn(1, config.audio_channels, 40_000 // (1 if config.num_filters > 4 else 40)))
    residual = residual.transpose(1, 2).reshape(-1, config.hidden_size)
    for layer in model.quantizer.layers:
        layer.codebook.embed.copy_(residual.mean(0) + residual.std(0) * torch.randn(layer.codebook.embed.shape))
        residual = residual - layer.codebook.embed[layer.codebook.quantize(residual)]
    return model.to(device)


def unexplained_codes(codes: Tensor, embeddings: Tensor, codebooks: Tensor) -> tuple[int, int]:
    """Codes that float64 refutes, and those it finds too close to call; a frame's levels after its first flip are not compared."""
    residual = embeddings.double().transpose(1, 2)
    alive = torch.ones(residual.shape[:2], dtype=torch.bool, device=codes.device)
    wrong = close = 0
    for chosen, entries in zip(codes, codebooks.double(), strict=False):
        distance = torch.cdist(residual, entries).square()
        nearest = distance.argmin(2)
        flipped = alive & (chosen != nearest)
        excess = (distance.gather(2, chosen[..., None])[..., 0] - distance.amin(2)) / residual.square().sum(2)
        wrong += int((flipped & (excess > CODE_MARGIN)).sum())
        close += int((flipped & (excess <= CODE_MARGIN)).sum())
        alive &= ~flipped
        residual = residual - entries[nearest]
    return wrong, close


def gate(model: Reference, plan: Plan, x: Tensor, num_quantizers: int) -> list[Row]:
    """One row per check; `passed` decides, except for the rows that only report."""
    rows: list[Row] = []
    truth = model.double().encoder(x.double())
    model.float()
    errors = {}
    for allow_tf32 in (False, True):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allow_tf32
        theirs = model.encoder(x)
        wrong, close = unexplained_codes(model.quantizer.encode(theirs)[:num_quantizers], truth, plan.quantizer.codebooks)
        errors[allow_tf32] = _error(theirs, truth)
        setting = "on" if allow_tf32 else "off"
        rows.append({"check": f"transformers, tf32 {setting}", "error": errors[allow_tf32], "wrong": wrong, "close": close})
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for precision in ("parity", "tf32x3", "fast"):
        codec = Codec(plan, precision)
        embeddings = codec.encoder.run(x)
        codes = codec.quantizer.encode(embeddings, num_quantizers)
        wrong, close = unexplained_codes(codes, truth, plan.quantizer.codebooks)
        row = {"check": f"encode, {precision}", "error": _error(embeddings, truth), "wrong": wrong, "close": close}
        if precision == "parity":
            row["passed"] = row["error"] <= ERROR_FACTOR * errors[False] + ERROR_SLACK and wrong == 0
        rows.append(row)
    codec = Codec(plan, "parity")
    codes = codec.encode(x, num_quantizers)
    alone = torch.cat([codec.encode(clip[None], num_quantizers) for clip in x], 1)
    rows.append({"check": "a clip has the same codes alone and in the batch", "passed": torch.equal(codes, alone)})
    rows.append(_rerank_row(codec, codec.encoder.run(x), num_quantizers))
    quantized = model.quantizer.decode(codes)
    theirs = model.decoder(quantized)
    truth = model.double().decoder(quantized.double())
    model.float()
    error, allowed = _error(codec.decode(codes), truth), ERROR_FACTOR * _error(theirs, truth) + ERROR_SLACK
    rows.append({"check": "decode, parity", "error": error, "passed": error <= allowed})
    if x.is_cuda:
        rows.append({"check": "CUDA graphs give the same codes and sound", "passed": graphs_agree(model, x)})
    return rows


def graphs_agree(model: Reference, x: Tensor) -> bool:
    """Whether a model's `encode` and `decode` give the same bits with `cuda_graphs` and without, also for a shape that has none."""
    ours = EncodecModel(model.config).eval().to(x.device)
    ours.load_state_dict(model.state_dict())

    def both(audio: Tensor) -> tuple[Tensor, Tensor]:
        encoded = ours.encode(audio)
        return encoded.audio_codes, ours.decode(encoded.audio_codes, encoded.audio_scales).audio_values

    shapes = (x, x[:1], x[..., :-1])
    plain = [both(audio) for audio in shapes]
    ours.cuda_graphs((x.shape[0], x.shape[2]))
    return all(torch.equal(a, b) for audio, before in zip(shapes, plain, strict=True) for a, b in zip(before, both(audio), strict=True))


def _rerank_row(codec: Codec, embeddings: Tensor, num_quantizers: int) -> Row:
    """Is the proof's assumption about tensor cores true here, and how often does a block search again?"""
    tile = Tile(16, 64, 0, 8, 2)
    blocks = -(-embeddings.shape[0] * embeddings.shape[2] // tile.block_m)
    again = torch.zeros(blocks, num_quantizers, dtype=torch.int32, device=embeddings.device)
    tables = codec.quantizer.tables
    reranked = rvq_encode_triton(embeddings, tables, num_quantizers, precision="rerank", searched_again=again, tile=tile)
    ieee = rvq_encode_triton(embeddings, tables, num_quantizers, precision="ieee")
    return {"check": f"rerank gives the codes of ieee, searching {again.float().mean():.2%} again", "passed": torch.equal(reranked, ieee)}


def _error(y: Tensor, truth: Tensor) -> float:
    """Root mean square, relative to the signal, as `encodec-fast verify` has it."""
    return ((y.double() - truth).square().sum() / truth.square().sum()).sqrt().item()


def median_seconds(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median time of a call; on a GPU between events, after a warm-up that also compiles."""
    for _ in range(min(3, repeats)):
        call()
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        else:
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def stage_rows(plan: Plan, x: Tensor, precision: str, repeats: int) -> list[Row]:
    """Time of each stage, with achieved memory traffic and arithmetic of the perfectly fused stage."""
    codec, peak, rows = Codec(plan, precision), PEAKS.get(arch_of(x.device)), []
    for name, program, signal in (
        ("encoder", codec.encoder, Signal(x)),
        ("decoder", codec.decoder, Signal(codec.encoder.run(x))),
    ):
        for stage, layer in zip(program.stages, program.layers, strict=True):
            batch, _, length = signal.values.shape
            seconds = median_seconds(lambda: layer.run(signal, None), x.device, repeats)  # noqa: B023 (called at once)
            moved, flops = batch * fused_bytes(stage, length), 2 * batch * multiply_adds(stage, length)
            rows.append(
                {
                    "stage": f"{name}.{stage.name} {type(stage).__name__} {stage.in_channels} -> {stage.out_channels}",
                    "precision": precision,
                    "ms": 1e3 * seconds,
                    "GB/s": moved / seconds / 1e9,
                    "TFLOP/s": flops / seconds / 1e12,
                    "roofline ms": peak.milliseconds(moved, flops, PRECISIONS[precision]) if peak else None,
                }
            )
            signal = layer.run(signal, None)
    return rows


def quantizer_rows(plan: Plan, x: Tensor, num_quantizers: int, repeats: int) -> list[Row]:
    """Time of the search and of the sum of entries, as `stage_rows`."""
    codec, peak = Codec(plan, "parity"), PEAKS.get(arch_of(x.device))
    embeddings = codec.encoder.run(x)
    codes = codec.quantizer.encode(embeddings, num_quantizers)
    entries, width = plan.quantizer.codebooks.shape[1:]
    read_once = 4 * embeddings.numel() + 8 * codes.numel()
    books = 4 * num_quantizers * entries * width
    # the sum reads the entries it is asked for; the search has |e|^2 and e rounded to tf32 beside each entry
    work = {
        "encode": (lambda: codec.quantizer.encode(embeddings, num_quantizers), read_once + 2 * books, 2 * codes.numel() * entries * width),
        "decode": (lambda: codec.quantizer.launch_decode(codes), read_once + 4 * codes.numel() * width, codes.numel() * width),
    }
    precision = {"rerank": "tf32"}.get(codec.quantizer.precision, codec.quantizer.precision)
    rows = []
    for name, (call, moved, flops) in work.items():
        seconds = median_seconds(call, x.device, repeats)
        rows.append(
            {
                "stage": f"quantizer.{name} {num_quantizers} x {entries} x {width}",
                "precision": codec.quantizer.precision if name == "encode" else "float32",
                "ms": 1e3 * seconds,
                "GB/s": moved / seconds / 1e9,
                "TFLOP/s": flops / seconds / 1e12,
                "roofline ms": peak.milliseconds(moved, flops, precision) if peak else None,
            }
        )
    return rows


def end_to_end_rows(
    model: Reference, plan: Plan, cases: list[tuple[int, float, int]], repeats: int, deadline: float, console: Console
) -> list[Row]:
    """x real time of encode and decode for each (clips, seconds, quantizers)."""
    config, device, rows = model.config, plan.encoder.device, []
    compiled: dict[str, Any] = {}
    if device.type == "cuda":
        compiled = {"encoder": torch.compile(model.encoder), "decoder": torch.compile(model.decoder)}
    for clips, seconds, quantizers in cases:
        x = torch.randn(clips, config.audio_channels, int(seconds * config.sampling_rate), device=device)
        codecs = {precision: Codec(plan, precision) for precision in ("parity", "tf32x3", "fast")}
        codes = codecs["parity"].encode(x, quantizers)
        ways: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
            "transformers": _reference_ways(model, model.encoder, model.decoder, x, codes),
            "transformers, tf32": _with_tf32(_reference_ways(model, model.encoder, model.decoder, x, codes)),
        }
        for precision, codec in codecs.items():
            ways[f"ours, {precision}"] = _ways(codec.encode, codec.decode, x, codes, quantizers)
            if device.type == "cuda":
                # the LSTM of `fast` is cuDNN's, which captures too
                encode, decode = CudaGraphs(lambda a, c=codec, q=quantizers: c.encode(a, q)), CudaGraphs(codec.decode)
                encode.capture(x)
                decode.capture(codes)
                ways[f"ours, {precision}, CUDA graph"] = (lambda e=encode, a=x: e(a), lambda d=decode, c=codes: d(c))
        if compiled:
            ways["transformers, compiled"] = _reference_ways(model, compiled["encoder"], compiled["decoder"], x, codes)
            ways["transformers, compiled, tf32"] = _with_tf32(ways["transformers, compiled"])
        for way, (encode_call, decode_call) in ways.items():
            if time.monotonic() > deadline:
                console.print(f"left out for want of time: {way} at {clips} x {seconds:g} s, {quantizers} quantizers")
                continue
            audio = clips * seconds
            rows.append(
                {
                    "clips": clips,
                    "seconds": seconds,
                    "quantizers": quantizers,
                    "way": way,
                    "encode x": audio / median_seconds(encode_call, device, repeats),
                    "decode x": audio / median_seconds(decode_call, device, repeats),
                }
            )
    return rows


def _ways(
    encode: Callable[[Tensor, int], Tensor], decode: Callable[[Tensor], Tensor], x: Tensor, codes: Tensor, quantizers: int
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    return lambda: encode(x, quantizers), lambda: decode(codes)


def _reference_ways(
    model: Reference, encoder: Any, decoder: Any, x: Tensor, codes: Tensor
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    # transformers searches as many levels as a bandwidth has
    bandwidth = codes.shape[0] * model.quantizer.frame_rate * (model.config.codebook_size - 1).bit_length() / 1000
    return lambda: model.quantizer.encode(encoder(x), bandwidth), lambda: decoder(model.quantizer.decode(codes))


def _with_tf32(ways: tuple[Callable[[], Tensor], Callable[[], Tensor]]) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """The same calls with torch's flags for tf32 set, as its default sets that of convolutions."""

    def call(way: Callable[[], Tensor]) -> Tensor:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        try:
            return way()
        finally:
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

    return lambda: call(ways[0]), lambda: call(ways[1])


def show(console: Console, title: str, rows: list[Row]) -> None:
    headings = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*headings, title=title)
    for row in rows:
        table.add_row(*(_cell(row.get(heading, "")) for heading in headings))
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "[red]NO"
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write all rows as JSON")
    parser.add_argument("--minutes", type=float, default=10, help="stop starting new rows after this")
    parser.add_argument("--toy", action="store_true", help="a tiny model and short clips, for the interpreter")
    arguments = parser.parse_args()
    reason = TritonExecutor().unavailable()
    if reason is not None:
        parser.exit(1, f"the triton backend can't run here: {reason}\n")
    console = Console(width=160)
    deadline = time.monotonic() + 60 * arguments.minutes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = EncodecConfig(**TOY) if arguments.toy else EncodecConfig()
    cases = [(2, 0.002, 2)] if arguments.toy else [(1, 10.0, 8), (8, 10.0, 8), (32, 10.0, 8), (32, 10.0, 32), (1, 1.0, 8), (128, 2.0, 8)]
    repeats = 1 if arguments.toy else 20
    quantizers = cases[0][2]
    with torch.no_grad():
        model = fitted_model(config, device)
        plan = read_plan(model)
        x = 0.1 * torch.randn(3, config.audio_channels, 60 if arguments.toy else 48_000, device=device)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
        results: dict[str, Any] = {"device": name, "arch": arch_of(device), "torch": torch.__version__}
        results["gate"] = gate(model, plan, x, quantizers)
        show(console, f"gate on {name}", results["gate"])
        if not all(row.get("passed", True) for row in results["gate"]):
            parser.exit(1, "the gate is red: nothing is timed\n")
        clips = torch.randn(2 if arguments.toy else 32, config.audio_channels, 60 if arguments.toy else 240_000, device=device)
        results["stages"] = [row for precision in ("parity", "fast") for row in stage_rows(plan, clips, precision, repeats)]
        results["stages"] += quantizer_rows(plan, clips, quantizers, repeats)
        show(console, f"stages, {clips.shape[0]} clips of {clips.shape[2]} samples", results["stages"])
        results["end to end"] = end_to_end_rows(model, plan, cases, repeats, deadline, console)
        show(console, "x real time", results["end to end"])
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
