"""Is it right? Every stage against float64, the laws that hold bit for bit, and what a precision does to the codes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench_lib.margins import Tally, Truth
from bench_lib.roofline import stage_label
from encodec_fast import EncodecModel
from encodec_fast.backends.torch_backend import TorchBackend
from encodec_fast.backends.triton_backend import TritonBackend
from encodec_fast.backends.triton_layers import LSTMLayer, lstm_refusal
from encodec_fast.kernels.lstm import lstm_triton
from encodec_fast.kernels.overlap_add import overlap_add_triton
from encodec_fast.kernels.rows import arrange_triton
from encodec_fast.kernels.rvq_encode import rvq_encode_triton
from encodec_fast.kernels.tiles import lookup, lstm_tile
from encodec_fast.plan import LSTM, Network
from encodec_fast.plan.reader import read_plan
from encodec_fast.serving.functions import fade_weight
from encodec_fast.verify import ERROR_FACTOR, ERROR_SLACK, verify
from gpu.setting import MODELS, PRECISIONS, Codec, Item, Row, Setting, poisoned, relative_error, signals, tf32

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def kernels(setting: Setting) -> Iterator[Item]:
    """Yields every stage of both models in every precision, on the signal that the stages before it give in float64."""
    for model in MODELS:
        # Triton's interpreter rounds bfloat16 wrongly
        for precision in (*PRECISIONS, *DTYPES) if not setting.toy else ("parity", "fast", "float16") if model == "24 kHz" else ("parity",):
            for part in ("encoder", "decoder"):
                yield Item(f"{model} {precision} {part}", lambda m=model, p=precision, n=part: stages(setting, m, p, n))
        yield Item(f"{model} quantizer", lambda m=model: quantizer(setting, m))
    yield Item("overlap-add", lambda: [overlap_add(setting)])


def stages(setting: Setting, model: str, precision: str, part: str) -> Iterator[Row]:
    """Yields errors against float64 of ours and of torch's own operations at the same dtype, tf32 off."""
    stock, dtype = setting.stock(model), DTYPES.get(precision, torch.float32)
    stock.to(dtype)
    network: Network = getattr(read_plan(stock), part)
    exact: Network = getattr(read_plan(copy.deepcopy(stock).double()), part)
    config, torch_backend = stock.config, TorchBackend()
    truth = signals(config, 3, setting.samples(1.0, model) - 37, setting.device).double()
    if part == "decoder":
        truth = _run(read_plan(copy.deepcopy(stock).double()).encoder, truth)
    for stage, exact_stage in zip(network.stages, exact.stages, strict=True):
        x = truth.to(dtype)
        program = TritonBackend().prepare((stage,), "parity" if precision in DTYPES else precision)
        with poisoned():
            runs = [program.run(x) for _ in range(setting.repeats)]
        expected = torch_backend.prepare((exact_stage,)).run(x.double())
        with tf32(False):
            theirs = torch_backend.prepare((stage,)).run(x)
        row: Row = {
            "model": model,
            "stage": f"{part}.{stage_label(stage)}",
            "precision": precision,
            "error": relative_error(runs[0], expected),
            "torch_error": relative_error(theirs, expected),
            "equal_runs": all(torch.equal(runs[0], run) for run in runs[1:]),
        }
        close = precision != "parity" or row["error"] <= ERROR_FACTOR * row["torch_error"] + ERROR_SLACK
        # NaN, of poison or of a sum, is in no order
        row["passed"] = row["equal_runs"] and close and row["error"] < 0.1
        yield row
        truth = expected


def _run(network: Network, x: Tensor) -> Tensor:
    return TorchBackend().prepare(network.stages).run(x)


def quantizer(setting: Setting, model: str) -> Iterator[Row]:
    """Compares codes with float64's by the margin of encodec_fast/verify.py; the sum of entries against float64's."""

    stock = setting.stock(model)
    plan = read_plan(stock)
    program, levels = TritonBackend().prepare_quantizer(plan.quantizer), plan.quantizer.codebooks.shape[0]
    x = _run(plan.encoder, signals(stock.config, 4, setting.samples(2.0, model), setting.device))
    truths = [Truth(clip[None].double().cpu(), plan.quantizer.codebooks.double().cpu()) for clip in x]
    for search in ("ieee", "rerank"):
        with poisoned():
            runs = [rvq_encode_triton(x, program.tables, levels, mode=search) for _ in range(setting.repeats)]
        tally = Tally(levels)
        for index, truth in enumerate(truths):
            tally.add(truth, runs[0][:, index].cpu(), x[index][None].cpu())
        found = tally.row()
        yield {
            "model": model,
            "stage": f"quantizer.encode {levels} levels",
            "precision": search,
            "frames": found["frames"],
            "flipped_frames": found["flipped_frames"],
            "largest_margin": found["largest_margin"],
            "equal_runs": all(torch.equal(runs[0], run) for run in runs[1:]),
            # embeddings are the same, so only the rounding of a distance can decide between two entries
            "passed": all(torch.equal(runs[0], run) for run in runs[1:]) and found["largest_margin"] < 1e-5,
        }
    codes = runs[0]
    with poisoned():
        sums = [program.decode(codes) for _ in range(setting.repeats)]
    expected = sum(plan.quantizer.codebooks[level].double()[codes[level]] for level in range(levels)).transpose(1, 2)
    equal = all(torch.equal(sums[0], other) for other in sums[1:])
    error = relative_error(sums[0], expected)
    row = {"model": model, "stage": f"quantizer.decode {levels} levels", "precision": "float32", "error": error, "equal_runs": equal}
    yield {**row, "passed": equal and error < 1e-6}


def overlap_add(setting: Setting) -> Row:
    """Compares with the sum of transformers' chunks, to the bit."""
    config = setting.config("48 kHz")
    length, stride = config.chunk_length, config.chunk_stride
    chunks = torch.randn(3, 2, config.audio_channels, length, device=setting.device)
    with poisoned():
        ours = overlap_add_triton(chunks, fade_weight(length, chunks), stride, 2 * stride + length)
    stock = setting.stock("48 kHz")
    theirs = stock._linear_overlap_add(list(chunks), stride)
    return {"stage": "overlap-add", "passed": torch.equal(ours, theirs), "error": relative_error(ours, theirs.double())}


def laws(setting: Setting) -> Iterator[Item]:
    """Yields what holds bit for bit."""
    for model in MODELS:
        yield Item(f"{model}: verify on this device", lambda m=model: [verified(setting, m)])
        yield Item(f"{model}: a clip alone, in a batch, among longer ones", lambda m=model: alone(setting, m))
        yield Item(f"{model}: a CUDA graph", lambda m=model: [graphs(setting, m)])
        yield Item(f"{model}: waits for the device", lambda m=model: [waits(setting, m)])
    yield Item("24 kHz: pieces of time", lambda: pieces(setting))
    yield Item("24 kHz: the recurrence in one launch", lambda: [recurrence(setting)])
    yield Item("24 kHz: two streams at once", lambda: [two_streams(setting)])
    yield Item("24 kHz: search by tensor cores", lambda: [rerank(setting)])
    yield Item("24 kHz: two devices", lambda: [two_devices(setting)])
    yield Item("24 kHz: torch.compile in one graph", lambda: [compiled(setting)])


def verified(setting: Setting, model: str) -> Row:
    """Runs encodec_fast.verify with torch's tf32 off: codes, embeddings and sound against transformers in float32 and float64."""
    ours = setting.ours(model)
    with tf32(False):
        report = verify(ours, signals(ours.config, 3, setting.samples(1.7, model), setting.device, seed=1))
    assert report.embeddings is not None and report.waveform is not None
    return {
        "law": f"{model}: same codec as transformers",
        "passed": report.passed,
        "found": f"{len(report.flips)} frames of {report.codes // len(ours.quantizer.layers)} differ, "
        f"embeddings {report.embeddings.ours:.1e} (theirs {report.embeddings.reference:.1e}), "
        f"sound {report.waveform.ours:.1e} ({report.waveform.reference:.1e})",
    }


def alone(setting: Setting, model: str) -> Iterator[Row]:
    stock = setting.stock(model)
    codec, levels = Codec(read_plan(stock), "parity"), len(stock.quantizer.layers)
    # more than a tile of the recurrence of few clips
    x = signals(stock.config, 11 if not setting.toy else 3, setting.samples(1.0, model) - 11, setting.device, seed=2)
    codes = codec.encode(x, levels)
    sound = codec.decode(codes)
    each = [codec.encode(clip[None], levels) for clip in x]
    yield _law(f"{model}: codes alone = in a batch", setting.same(codes, torch.cat(each, 1)))
    each_sound = torch.cat([codec.decode(own) for own in each])
    yield _law(f"{model}: sound alone = in a batch", setting.same(sound, each_sound))
    lengths = [x.shape[2] - index * (x.shape[2] // 7) for index in range(len(x))]
    embeddings = codec.encoder.run(x, lengths)
    same = True
    for index, length in enumerate(lengths):
        own = codec.encoder.run(x[index : index + 1, :, :length].contiguous())
        same &= setting.same(embeddings[index : index + 1, :, : own.shape[2]], own)
    yield _law(f"{model}: embeddings alone = among longer clips", same)


def pieces(setting: Setting) -> Iterator[Row]:
    """Cuts a clip anywhere, with carried state."""
    stock = setting.stock("24 kHz")
    codec = Codec(read_plan(stock), "parity")
    x = signals(stock.config, 1, setting.samples(1.0) + 5, setting.device, seed=3)
    embeddings = codec.encoder.run(x)
    quantized = codec.quantizer.decode(codec.quantizer.encode(embeddings, len(stock.quantizer.layers)))
    for name, program, signal in (("encoder", codec.encoder, x), ("decoder", codec.decoder, quantized)):
        whole = program.run(signal)
        for cuts in (1, 7):
            random = torch.Generator().manual_seed(cuts)
            places = sorted(torch.randint(1, signal.shape[2], (cuts,), generator=random).tolist())
            state, out = program.open(), []
            for begin, end in zip([0, *places], [*places, signal.shape[2]], strict=True):
                out += program.push([signal[0, :, begin:end]], [state], [end == signal.shape[2]])
            yield _law(f"24 kHz: {name} in {cuts + 1} pieces = whole", setting.same(torch.cat(out, 1), whole[0]))


def recurrence(setting: Setting) -> Row:
    """Compares one launch for all steps with one for each: the same arithmetic, in instructions that may truncate differently."""
    stock = setting.stock("24 kHz")
    stage = next(stage for stage in read_plan(stock).encoder.stages if isinstance(stage, LSTM))
    why = lstm_refusal(stage, "split", setting.device)
    layer = LSTMLayer(stage, "split", None)
    batch, steps = (20, 60) if not setting.toy else (2, 3)
    x = arrange_triton(torch.randn(batch, steps, stage.in_channels, device=setting.device))
    states = [layer.open(batch) for _ in range(2)]
    tile = lstm_tile(setting.device, stage.in_channels, "split")
    one, each = (
        lstm_triton(x, layer.weights, state.hidden, state.cell, tile=chosen).values
        for state, chosen in zip(states, (None, tile), strict=True)
    )
    error = max(relative_error(one, each), relative_error(states[0].cell, states[1].cell))
    found = f"differ by {error:.1e}" + ("" if why is None else f"; step by step both times: {why}")
    return {**_law("24 kHz: the recurrence in one launch = step by step", error <= 1e-6), "found": found}


def two_streams(setting: Setting) -> Row:
    """Runs recurrences that want more blocks at once than the device holds: each launch has to wait until all of its own fit."""
    law = "24 kHz: two streams at once = one after the other"
    if setting.device.type != "cuda":
        return {"law": law, "left_out": "no device with streams"}
    stock = setting.stock("24 kHz")
    program = TritonBackend().prepare(read_plan(stock).encoder.stages, "parity")
    inputs = [signals(stock.config, 4, setting.samples(2.0), setting.device, seed=seed) for seed in (5, 6)]
    expected = [program.run(x) for x in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    same = True
    for _ in range(5):
        torch.cuda.synchronize()
        found = []
        for stream, x in zip(streams, inputs, strict=True):
            with torch.cuda.stream(stream):
                found.append(program.run(x))
        torch.cuda.synchronize()
        same &= all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    return _law(law, same)


def rerank(setting: Setting) -> Row:
    """Checks the proof's assumption about tensor cores, and counts how often a block searches again."""
    stock = setting.stock("24 kHz")
    program = TritonBackend().prepare_quantizer(read_plan(stock).quantizer)
    levels, entries = len(stock.quantizer.layers), program.tables.codebooks
    x = _run(read_plan(stock).encoder, signals(stock.config, 8 if not setting.toy else 2, setting.samples(2.0), setting.device))
    # beside real embeddings, points almost halfway between two entries; the interpreter's float32 sums have no order to agree on there
    random = torch.Generator().manual_seed(0)
    first, second = (torch.randint(entries.shape[1], (x.shape[2],), generator=random).to(x.device) for _ in range(2))
    halfway = (entries[0, first] + entries[0, second]) / 2
    x = torch.cat((x, (halfway * (1 + 1e-7 * torch.randn_like(halfway))).T[None])) if not setting.toy else x
    tile = lookup("rvq_encode", setting.arch, "rerank", 1)
    again = torch.zeros(-(-x.shape[0] * x.shape[2] // tile.block_m), levels, dtype=torch.int32, device=x.device)
    found = rvq_encode_triton(x, program.tables, levels, mode="rerank", searched_again=again, tile=tile)
    ieee = rvq_encode_triton(x, program.tables, levels, mode="ieee")
    share = f"{again.float().mean():.2%} searched again"
    return {**_law("24 kHz: search by tensor cores = ieee", torch.equal(found, ieee)), "found": share}


def graphs(setting: Setting, model: str) -> Row:
    """Compares a model's `encode` and `decode` with `cuda_graphs` and without, also for a shape that has none."""
    if setting.device.type != "cuda":
        return {"law": f"{model}: a CUDA graph = launch by launch", "left_out": "only a CUDA device has graphs"}
    ours = setting.ours(model)
    x = signals(ours.config, 3, setting.samples(2.0, model), setting.device, seed=4)
    shapes = (x, x[:1], x[..., :-480])
    plain = [_both(ours, audio) for audio in shapes]
    ours.cuda_graphs((x.shape[0], x.shape[2]))
    same = [torch.equal(a, b) for audio, before in zip(shapes, plain, strict=True) for a, b in zip(before, _both(ours, audio), strict=True)]
    return _law(f"{model}: a CUDA graph = launch by launch", all(same))


def _both(ours: EncodecModel, audio: Tensor) -> tuple[Tensor, Tensor]:
    encoded = ours.encode(audio)
    extra = {"last_frame_pad_length": encoded.last_frame_pad_length} if "last_frame_pad_length" in encoded else {}
    return encoded.audio_codes, ours.decode(encoded.audio_codes, encoded.audio_scales, **extra).audio_values


def waits(setting: Setting, model: str) -> Row:
    """Counts how often an encode and a decode wait for the device, as torch's own watch counts."""
    if setting.device.type != "cuda":
        return {"law": f"{model}: host waits", "left_out": "no device to wait for"}
    ours, counts = setting.ours(model), {}
    stock = setting.stock(model)
    x = signals(ours.config, 2, setting.samples(2.0, model), setting.device)
    for name, net in (("ours", ours), ("transformers", stock)):
        encoded = net.encode(x)
        calls: dict[str, Callable[[], Any]] = {
            "encode": lambda net=net: net.encode(x),
            "decode": lambda net=net, e=encoded: net.decode(e.audio_codes, e.audio_scales),
        }
        for call, run in calls.items():
            run()
            counts[name, call] = _waits_of(run)
    found = ", ".join(f"{name} {call} {count}" for (name, call), count in counts.items())
    return {
        **_law(f"{model}: encode and decode wait for nothing", counts["ours", "encode"] == counts["ours", "decode"] == 0),
        "found": found,
    }


def _waits_of(call: Callable[[], Any]) -> int:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in seen)


def two_devices(setting: Setting) -> Row:
    """Compares codes on the second device, also after the first was used."""
    law = "24 kHz: two devices agree"
    if not torch.cuda.is_available() or torch.cuda.device_count() < 2:
        return {"law": law, "left_out": "fewer than two CUDA devices"}
    ours = setting.ours("24 kHz")
    x = signals(ours.config, 2, setting.samples(1.0), setting.device)
    first = ours.encode(x).audio_codes
    return _law(law, torch.equal(ours.to("cuda:1").encode(x.to("cuda:1")).audio_codes.cpu(), first.cpu()))


def compiled(setting: Setting) -> Row:
    """Compares the encoder under torch.compile(fullgraph=True) with the encoder itself, bit for bit."""
    ours = setting.ours("24 kHz")
    x = signals(ours.config, 2, setting.samples(0.5), setting.device)
    backend = "inductor" if setting.device.type == "cuda" else "eager"
    same = torch.equal(torch.compile(ours.encoder, fullgraph=True, backend=backend)(x), ours.encoder(x))
    return _law("24 kHz: torch.compile in one graph = eager", same)


def _law(law: str, passed: bool) -> Row:
    return {"law": law, "passed": passed}


def codes(setting: Setting) -> Iterator[Item]:
    """Yields what each way of computing does to the codes: stock as it comes, stock in float32 and in halves, ours."""
    for model in MODELS:
        yield Item(model, lambda m=model: code_rows(setting, m))


def code_rows(setting: Setting, model: str) -> Iterator[Row]:
    """Yields frames whose codes differ from float64's at all levels, and the share of codes that differ at each."""
    from encodec_fast import use_precision
    from encodec_fast.verify import Reference

    stock = setting.stock(model)
    config = stock.config
    length = config.chunk_length if config.chunk_length is not None else setting.samples(3.0)
    audio, bandwidth = signals(config, 8 if not setting.toy else 2, length, setting.device, seed=5), max(config.target_bandwidths)
    _, exact = Reference(stock, torch.float64).encode(audio, bandwidth)
    books = read_plan(stock).quantizer.codebooks.double().cpu()
    truths = [Truth(clip[None].cpu(), books) for clip in exact[0]]
    ways: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {}
    for name, dtype, allowed in (
        ("transformers as it comes, tf32", torch.float32, True),
        ("transformers, float32", torch.float32, False),
        ("transformers, float16", torch.float16, True),
        ("transformers, bfloat16", torch.bfloat16, True),
    ):
        ways[name] = lambda d=dtype, a=allowed: _codes_of(Reference(stock, d), audio, bandwidth, a)
    ours = Reference(stock, torch.float32)
    ours.model = setting.ours(model, stock)
    ours.model.encoder.register_forward_hook(lambda module, args, output: ours.embeddings.append(output))

    def own(precision: str) -> tuple[Tensor, Tensor]:
        with use_precision(precision):
            return _codes_of(ours, audio, bandwidth, True)

    ways |= {f"ours, {precision}": lambda p=precision: own(p) for precision in setting.precisions}
    for name, way in ways.items():
        try:
            found, embeddings = way()
        except RuntimeError as error:
            if "CUDA error" in str(error):
                raise
            yield {"model": model, "way": name, "failed": str(error).splitlines()[0]}
            continue
        tally = Tally(len(books))
        for index, truth in enumerate(truths):
            tally.add(truth, found[index].cpu(), embeddings[index : index + 1].cpu())
        yield {"model": model, "way": name, "bandwidth": bandwidth, **tally.row()}


def _codes_of(way: Any, audio: Tensor, bandwidth: float, allowed: bool) -> tuple[Tensor, Tensor]:
    """(codes [B, K, F], embeddings [B, D, F]) of one chunk of each clip. way: a `verify.Reference`."""
    with torch.no_grad(), tf32(allowed):
        output, embeddings = way.encode(audio, bandwidth)
    return output.audio_codes[0], embeddings[0]
