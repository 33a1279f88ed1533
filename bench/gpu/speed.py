"""How fast is it? Every stage beside its floor and transformers' own modules; then whole calls, x real time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench_lib import results
from bench_lib.cases import stock_modules
from bench_lib.roofline import PEAKS, Peak, stage_label
from encodec_fast import use_precision
from encodec_fast.backends.triton_backend import MODES as PRODUCTS
from encodec_fast.backends.triton_backend import TritonBackend
from encodec_fast.backends.triton_layers import Signal
from encodec_fast.plan import LSTM, fused_bytes, multiply_adds
from encodec_fast.plan.reader import read_plan
from gpu.setting import MODELS, Codec, Item, Row, Setting, signals, tf32
from gpu.timing import in_turn, median, spread

# Clips of the stages: 32 of 10 s; of the 48 kHz model as many chunks of a second as 8 clips of 10 s have
STAGE_BATCH = {"24 kHz": (32, 10.0), "48 kHz": (88, 1.0)}
STAGE_SECONDS = 0.6
# (model, clips, seconds, kbps, with graphs); the shortest first, so that a run that is cut has the most rows
CASES = (
    ("24 kHz", 1, 1.0, 6.0, True),
    ("24 kHz", 1, 10.0, 6.0, True),
    ("24 kHz", 32, 10.0, 6.0, True),
    ("48 kHz", 8, 10.0, 6.0, False),
    ("24 kHz", 128, 10.0, 6.0, False),
)
CASE_SECONDS = 4.0


def stages(setting: Setting) -> Iterator[Item]:
    for batch in (1, 8, 32) if not setting.toy else (2,):
        yield Item(f"LSTM of {batch}", lambda b=batch: lstm_rows(setting, b))
    yield Item("24 kHz quantizer", lambda: quantizer_rows(setting))
    for model in MODELS:
        for part in ("encoder", "decoder"):
            yield Item(f"{model} {part}", lambda m=model, p=part: stage_rows(setting, m, p))


def stage_rows(setting: Setting, model: str, part: str) -> Iterator[Row]:
    """Yields times of each stage in each precision and transformers' modules with torch's defaults, in turn."""
    stock = setting.stock(model)
    plan, (clips, seconds) = read_plan(stock), STAGE_BATCH[model]
    clips = 2 if setting.toy else clips
    x = signals(stock.config, clips, setting.samples(seconds, model), setting.device)
    codecs = {precision: Codec(plan, precision) for precision in setting.precisions}
    if part == "decoder":
        x = codecs["parity"].encoder.run(x)
    network, modules = getattr(plan, part), getattr(stock, part)
    inputs = dict.fromkeys(codecs, Signal(x.transpose(1, 2)))
    projected = _projected(setting.arch, model, part)
    for index, stage in enumerate(network.stages):
        theirs = stock_modules(modules, stage.name)
        layers = {precision: getattr(codec, part).layers[index] for precision, codec in codecs.items()}
        calls: dict[str, Callable[[], Any]] = {
            name: lambda layer=layer, signal=inputs[name]: layer.run(signal, None) for name, layer in layers.items()
        }
        calls["transformers"] = lambda theirs=theirs: theirs(x)  # noqa: B023 (called in this round)
        with torch.no_grad(), tf32(True):
            times = in_turn(calls, setting.device, STAGE_SECONDS)
        work = clips * fused_bytes(stage, x.shape[2]), 2 * clips * multiply_adds(stage, x.shape[2])
        name = f"{part}.{stage_label(stage)}"
        row = _stage_row(setting, model, name, times, *work)
        yield row | {f"{way} projected ms": projected[way, name] for way in codecs if (way, name) in projected}
        inputs = {way: layer.run(inputs[way], None) for way, layer in layers.items()}
        with torch.no_grad():
            x = theirs(x)


def _projected(arch: str, model: str, part: str) -> dict[tuple[str, str], float]:
    """(precision, stage) to the ms that `bench/aot.py --write` stored for this architecture, this Triton and the clips that are timed."""
    import triton

    found: dict[tuple[str, str], float] = {}
    clips = {"24 kHz": 32, "48 kHz": 8}[model]
    name = {"24 kHz": "demo", "48 kHz": "demo-48khz"}[model]
    for row in results.read(results.RESULTS / "projected.jsonl"):
        about = row["arch"], row["model"], row["clips"], row["triton"]
        if about == (arch, name, clips, triton.__version__) and row["stage"].startswith(part):
            key = row["precision"], row["stage"]
            found[key] = found.get(key, 0.0) + row["ms"]
    return found


def _stage_row(setting: Setting, model: str, stage: str, times: dict[str, list[float]], moved: float, flops: float) -> Row:
    """ms of each way; of ours beside the floor of a perfectly fused stage at the vendor's figures, in ms."""
    peak = PEAKS.get(setting.arch)
    row: Row = {"model": model, "stage": stage}
    for way, runs in times.items():
        row[f"{way} ms"], row[f"{way} spread"] = median(runs), spread(runs)
        if peak is not None and way in PRODUCTS and PRODUCTS[way] in peak.flops:
            row[f"{way} floor ms"] = peak.milliseconds(moved, flops, PRODUCTS[way])
    return {**row, "GB": moved / 1e9, "GFLOP": flops / 1e9}


def lstm_rows(setting: Setting, batch: int) -> Iterator[Row]:
    """Yields times of the recurrence of 10 s, where latency counts and not work."""
    stock = setting.stock("24 kHz")
    network = read_plan(stock).encoder
    index = next(i for i, stage in enumerate(network.stages) if isinstance(stage, LSTM))
    stage, frames = network.stages[index], 750 if not setting.toy else 6
    x = torch.randn(batch, stage.in_channels, frames, device=setting.device)
    calls: dict[str, Callable[[], Any]] = {}
    for precision in setting.precisions:
        program = TritonBackend().prepare((stage,), precision)
        calls[precision] = lambda program=program: program.run(x)
    calls["transformers"] = lambda: stock_modules(stock.encoder, stage.name)(x)
    with torch.no_grad(), tf32(True):
        times = in_turn(calls, setting.device, STAGE_SECONDS)
    work = batch * fused_bytes(stage, frames), 2 * batch * multiply_adds(stage, frames)
    yield _stage_row(setting, "24 kHz", f"LSTM of {batch} x {frames} frames", times, *work)


def quantizer_rows(setting: Setting) -> Iterator[Row]:
    """Yields times of search and sum at 8 and at 32 levels, 32 clips of 750 frames."""
    stock = setting.stock("24 kHz")
    plan, codec = read_plan(stock), Codec(read_plan(stock), "parity")
    clips, seconds = (32, 10.0) if not setting.toy else (2, 1.0)
    x = codec.encoder.run(signals(stock.config, clips, setting.samples(seconds), setting.device))
    (books, entries, width), peak = plan.quantizer.codebooks.shape, PEAKS.get(setting.arch)
    for levels in sorted({min(8, books), books}):
        codes, count = codec.quantizer.encode(x, levels), x.shape[0] * x.shape[2]
        kbps = levels * stock.quantizer.frame_rate * (stock.config.codebook_size - 1).bit_length() / 1000
        search = {"parity": lambda k=levels: codec.quantizer.encode(x, k), "transformers": lambda b=kbps: stock.quantizer.encode(x, b)}
        add = {"parity": lambda c=codes: codec.quantizer.decode(c), "transformers": lambda c=codes: stock.quantizer.decode(c)}
        once = 4 * x.numel() + 8 * codes.numel()
        # the sum reads the entries it is asked for; the search reads |e|^2 and e as halves beside each entry
        work = {"encode": (search, once + 6 * levels * entries * width, 2 * count * levels * entries * width)}
        work["decode"] = (add, once + 4 * codes.numel() * width, count * levels * width)
        for name, (calls, moved, flops) in work.items():
            with torch.no_grad(), tf32(True):
                times = in_turn(calls, setting.device, STAGE_SECONDS)
            row = _stage_row(setting, "24 kHz", f"quantizer.{name}, {levels} levels x {count} frames", times, moved, flops)
            yield row | {"parity floor ms": _search_floor(peak, name, moved, flops)}


def _search_floor(peak: Peak | None, name: str, moved: float, flops: float) -> float | None:
    if peak is None:
        return None
    # the search scores in half precision, here counted as tf32, or in ieee where the architecture has no such product
    return peak.milliseconds(moved, flops, "tf32" if name == "encode" and "tf32" in peak.flops else "ieee")


def end_to_end(setting: Setting) -> Iterator[Item]:
    """Yields the public calls of both classes, answers compared first."""
    cases = CASES if not setting.toy else (("24 kHz", 2, 1.0, 48.0, False), ("48 kHz", 2, 1.7, 48.0, False))
    for model, clips, seconds, bandwidth, graphs in cases:
        name = f"{model}, {clips} x {seconds:g} s, {bandwidth:g} kbps"
        yield Item(name, lambda case=(model, clips, seconds, bandwidth, graphs): case_rows(setting, *case))


def case_rows(setting: Setting, model: str, clips: int, seconds: float, bandwidth: float, graphs: bool) -> Iterator[Row]:
    stock = setting.stock(model)
    audio = signals(stock.config, clips, setting.samples(seconds, model), setting.device)
    with torch.no_grad(), tf32(False):
        expected = stock.encode(audio, bandwidth=bandwidth)
    encodes: dict[str, Callable[[], Any]] = {}
    decodes: dict[str, Callable[[], Any]] = {}
    switches = {
        "transformers as it comes": dict(allowed=True),
        "transformers, float32": dict(allowed=False),
        "transformers, cudnn.benchmark": dict(allowed=True, benchmark=True),
    }
    for way, switch in switches.items():
        encodes[way], decodes[way] = _calls(stock, audio, bandwidth, expected, lambda s=switch: tf32(**s))
    failed: dict[str, str] = {}
    for precision in setting.precisions:
        for graph in (False, True) if graphs and setting.device.type == "cuda" else (False,):
            way = f"ours, {precision}{', graph' * graph}"
            ours = setting.ours(model, stock)
            ours.precision = precision
            try:
                if graph:
                    ours.cuda_graphs((clips, audio.shape[-1]))
                encodes[way], decodes[way] = _calls(ours, audio, bandwidth, expected, lambda p=precision: use_precision(p))
            except torch.OutOfMemoryError as error:
                failed[way] = str(error).splitlines()[0]
    frames = expected.audio_codes.shape[0] * clips * expected.audio_codes.shape[-1]
    flips = {way: int((call().audio_codes != expected.audio_codes).any(2).sum()) for way, call in encodes.items()}
    encode_times = in_turn(encodes, setting.device, CASE_SECONDS / 2)
    decode_times = in_turn(decodes, setting.device, CASE_SECONDS / 2)
    length = clips * seconds
    about = {"model": model, "clips": clips, "seconds": seconds, "bandwidth": bandwidth, "frames": frames}
    for way, runs in encode_times.items():
        decoding = decode_times[way]
        yield {
            **about,
            "way": way,
            "flipped_frames": flips[way],
            "encode ms": median(runs),
            "encode x real time": 1e3 * length / median(runs),
            "encode spread": spread(runs),
            "decode ms": median(decoding),
            "decode x real time": 1e3 * length / median(decoding),
            "decode spread": spread(decoding),
        }
    for way, reason in failed.items():
        yield {**about, "way": way, "failed": reason}


def _calls(
    model: Any, audio: Tensor, bandwidth: float, encoded: Any, setting: Callable[[], Any]
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """encode and decode without arguments, under what `setting` switches on for the time of the call."""
    extra = {"last_frame_pad_length": encoded.last_frame_pad_length} if "last_frame_pad_length" in encoded else {}

    def encode() -> Any:
        with torch.no_grad(), setting():
            return model.encode(audio, bandwidth=bandwidth)

    def decode() -> Any:
        with torch.no_grad(), setting():
            return model.decode(encoded.audio_codes, encoded.audio_scales, **extra)

    return encode, decode
