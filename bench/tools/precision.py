"""How often a code differs from float64's, for every way of computing: `python bench/tools/precision.py [FILE ...] [--model NAME]`.

The truth is transformers in float64 on the same weights. Ways: transformers in float32, ours on each backend, products of rounded
operands with float32 sums (emulated: tf32 as CUDA's convolutions use it by default, bfloat16, float16), and the whole model cast to
bfloat16 and float16. The triton backend runs in Triton's interpreter, on a small model, for its interpreter takes minutes per second.

A frame counts once, at its first level that differs: the levels below quantize another residual. Its margin is the relative change
of the frame's embedding that would swap the two codes (encodec_fast/verify.py). Quality compares each way's decoded audio with that
of transformers in float32: signal-to-noise ratio, and the multi-resolution STFT distance of Yamamoto et al., arXiv 1910.11480.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# bench/, which holds bench_lib and gpu
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn
from transformers import EncodecModel

from bench_lib import results
from bench_lib.cases import stock_model
from bench_lib.contenders import CONTENDERS
from bench_lib.drawn import drawn_model
from bench_lib.machine import environment
from bench_lib.margins import Tally, Truth
from bench_lib.results import Row
from bench_lib.tables import precision_table
from encodec_fast import audio as audio_files
from encodec_fast import demo, use_backend
from encodec_fast.model import EncodecModel as Ours
from encodec_fast.pretrained import load_model

LOG_EDGES = [0.5 * step for step in range(-20, 3)]
FFT_SIZES = (512, 1024, 2048)
# Mantissa bits that each format keeps of float32's 23.
MANTISSA_BITS = {"tf32": 10, "bfloat16": 7, "float16": 10}


class Way:
    """One way of computing.  encode: clip [1, C, T] -> HF's output.  decode: that output -> audio [1, C, T] float32."""

    def __init__(self, name: str, how: str, model: EncodecModel, backend: str | None = None) -> None:
        self.name, self.how, self.model, self.backend = name, how, model, backend
        self.embeddings: list[Tensor] = []
        model.encoder.register_forward_hook(lambda module, args, output: self.embeddings.extend(output.split(1)))

    def _run(self, call: Callable[[], Any]) -> Any:
        if self.backend is None:
            return call()
        with use_backend(self.backend):
            return call()

    def encode(self, clip: Tensor, bandwidth: float) -> Any:
        """Returns transformers' output; the chunks' embeddings stay in `embeddings`."""
        self.embeddings = []
        return self._run(lambda: self.model.encode(clip.to(self.model.dtype), bandwidth=bandwidth))

    def decode(self, encoded: Any) -> Tensor:
        """Returns audio in float64, from codes and scales of any way."""
        scales = [None if scale is None else scale.to(self.model.dtype) for scale in encoded.audio_scales]
        extra = {"last_frame_pad_length": encoded.last_frame_pad_length} if "last_frame_pad_length" in encoded else {}
        return self._run(lambda: self.model.decode(encoded.audio_codes, scales, **extra)).audio_values.double()


def rounded(x: Tensor, kind: str) -> Tensor:
    """Returns float32 values rounded to the nearest that `kind` can hold, ties to even; tf32 has float32's range."""
    if kind != "tf32":
        return x.to(getattr(torch, kind)).float()
    dropped = 23 - MANTISSA_BITS[kind]
    bits = x.contiguous().view(torch.int32)
    bits = bits + (1 << (dropped - 1)) - 1 + ((bits >> dropped) & 1)
    return (bits >> dropped << dropped).view(torch.float32)


class RoundedLSTM(nn.Module):
    """nn.LSTM whose products take rounded operands and sum in float32, a step at a time."""

    def __init__(self, lstm: nn.LSTM, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.layers = [tuple(rounded(w, kind) if w.dim() == 2 else w for w in weights) for weights in lstm.all_weights]

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """Returns, for x [T, B, C], the last layer's states [T, B, C]."""
        for w_ih, w_hh, b_ih, b_hh in self.layers:
            inputs = rounded(x, self.kind) @ w_ih.T + b_ih + b_hh
            h, c, states = x.new_zeros(x.shape[1:]), x.new_zeros(x.shape[1:]), []
            for step in inputs:
                i, f, g, o = (step + rounded(h, self.kind) @ w_hh.T).chunk(4, -1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                states.append(h)
            x = torch.stack(states)
        return x, None


def emulate(model: EncodecModel, kind: str, search: bool) -> EncodecModel:
    """Returns the model with all products of rounded operands; `search` says whether those of the quantizer's search too."""
    for module in list(model.modules()):
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            if nn.utils.parametrize.is_parametrized(module, "weight"):
                nn.utils.parametrize.remove_parametrizations(module, "weight")
            module.weight.copy_(rounded(module.weight, kind))
            module.register_forward_pre_hook(lambda module, args: (rounded(args[0], kind),))
        for name, child in module.named_children():
            if isinstance(child, nn.LSTM):
                setattr(module, name, RoundedLSTM(child, kind))
    for layer in model.quantizer.layers if search else ():
        codebook = layer.codebook
        codebook.quantize = lambda x, codebook=codebook: _rounded_search(x, codebook.embed, kind)
    return model


def _rounded_search(x: Tensor, entries: Tensor, kind: str) -> Tensor:
    products = rounded(x, kind) @ rounded(entries, kind).T
    return (x.square().sum(1, keepdim=True) - 2 * products + entries.square().sum(1)).argmin(1)


def ways(stock: Callable[[], EncodecModel]) -> Iterator[Way]:
    """Yields all ways, one after another; each holds a model of its own.  Raises ValueError where the cpu backend can't run."""
    yield Way("transformers, float32", "run", stock())
    for backend in ("cpu", "torch"):
        missing = CONTENDERS[f"ours-{backend}"].missing(torch.device("cpu"))
        if missing:
            raise ValueError(f"the {backend} backend can't run: {missing}")
        ours = Ours(stock().config).eval()
        ours.load_state_dict(stock().state_dict())
        yield Way(f"encodec_fast, {backend}", "run", ours, backend)
    for kind in ("tf32", "float16", "bfloat16"):
        yield Way(f"{kind} products", "emulated", emulate(stock(), kind, search=False))
    yield Way("tf32 products, search too", "emulated", emulate(stock(), "tf32", search=True))
    for dtype in ("float16", "bfloat16"):
        yield Way(f"all of it in {dtype}", "run", stock().to(getattr(torch, dtype)))


def snr_db(audio: Tensor, reference: Tensor) -> float:
    """Returns the signal-to-noise ratio, infinite (as JSON has it: null in rows) for equal audio."""
    noise = (audio - reference).square().sum()
    return math.inf if noise == 0 else 10 * (reference.square().sum() / noise).log10().item()


def stft_distance(audio: Tensor, reference: Tensor) -> float:
    """Returns spectral convergence plus mean distance of log magnitudes, mean of three resolutions.  Both audios: [1, C, T]."""
    total = 0.0
    for size in FFT_SIZES:
        window = torch.hann_window(size, dtype=audio.dtype)
        ours, theirs = (
            torch.stft(side[0], size, size // 4, window=window, return_complex=True, pad_mode="constant").abs().clamp(min=1e-7)
            for side in (audio, reference)
        )
        total += ((ours - theirs).norm() / theirs.norm() + (ours.log() - theirs.log()).abs().mean()).item()
    return total / len(FFT_SIZES)


def study(stock: Callable[[], EncodecModel], clips: list[Tensor], bandwidth: float) -> Iterator[Row]:
    """Yields one row per way, then one with the margins of the truth."""
    exact = Way("float64", "run", stock().double())
    embed = torch.stack([layer.codebook.embed for layer in exact.model.quantizer.layers])
    truths: list[list[Truth]] = []
    for clip in clips:
        codes = exact.encode(clip, bandwidth).audio_codes
        truths.append([Truth(chunk, embed[: codes.shape[2]]) for chunk in exact.embeddings])
    levels = len(truths[0][0].codes)
    reference: list[tuple[Any, Tensor]] = []
    for way in ways(stock):
        tally, quality = Tally(levels), []
        try:
            for index, (clip, chunks) in enumerate(zip(clips, truths)):
                encoded = way.encode(clip, bandwidth)
                for chunk, truth in enumerate(chunks):
                    tally.add(truth, encoded.audio_codes[chunk, 0, :, : truth.x.shape[0]], way.embeddings[chunk])
                if len(reference) == index:  # the first way is the reference of all
                    reference.append((encoded, way.decode(encoded)))
                stock_encoded, stock_audio = reference[index]
                quality.append((way.decode(stock_encoded), way.decode(encoded), stock_audio))
        except (RuntimeError, ValueError) as error:  # torch lacks a kernel; transformers' overlap-add refuses float16, whose fade is 0
            yield {"contender": way.name, "how": way.how, "failed": f"{type(error).__name__}: {error}".splitlines()[0]}
            continue
        same, own, theirs = (torch.cat(column, -1) for column in zip(*quality))
        sound = {
            "decode_snr_db": finite(snr_db(same, theirs)),
            "decode_stft": stft_distance(same, theirs),
            "round_trip_snr_db": finite(snr_db(own, theirs)),
            "round_trip_stft": stft_distance(own, theirs),
        }
        yield {"contender": way.name, "how": way.how, **tally.row(), **sound}
    margins = torch.cat([truth.margins for chunks in truths for truth in chunks], 1)
    counts = torch.histc(
        margins.clamp(min=1e-30).log10().clamp(LOG_EDGES[0], LOG_EDGES[-1]), len(LOG_EDGES) - 1, LOG_EDGES[0], LOG_EDGES[-1]
    )
    quantiles = torch.quantile(margins, torch.tensor([0.001, 0.01, 0.5], dtype=torch.float64), dim=1)
    yield {
        "contender": "margins",
        "margin_histogram": {"log10_edges": LOG_EDGES, "counts": counts.long().tolist()},
        "margin_quantiles": {name: row.tolist() for name, row in zip(("0.001", "0.01", "0.5"), quantiles)},
    }


def finite(value: float) -> float | None:
    """Returns the value, or None for infinity, which JSON lacks: it stands for equal audio."""
    return value if math.isfinite(value) else None


def interpreted_rows() -> Iterator[Row]:
    """Yields the triton backend in Triton's interpreter on a small model; run with TRITON_INTERPRET=1."""
    from transformers import EncodecConfig

    from encodec_fast.plan.reader import read_plan
    from gpu.setting import TOY, Codec, signals

    config = EncodecConfig(**TOY)
    model = EncodecModel(config).eval()
    model.load_state_dict(drawn_model(config, signals(config, 8, 480, torch.device("cpu"))).state_dict())
    plan, clips = read_plan(model), 0.1 * torch.randn(2, 1, 240)
    levels = 2
    codec = Codec(plan, "parity")
    tallies = {"transformers, float32": Tally(levels), "encodec_fast, triton": Tally(levels)}
    exact = model.double().encoder(clips.double())
    model.float()
    for clip, embeddings in zip(clips[:, None], exact.split(1)):
        truth = Truth(embeddings, plan.quantizer.codebooks[:levels].double())
        own, theirs = codec.encoder.run(clip), model.encoder(clip)
        tallies["encodec_fast, triton"].add(truth, codec.quantizer.encode(own, levels)[:, 0], own)
        tallies["transformers, float32"].add(truth, model.quantizer.encode(theirs)[:levels, 0], theirs)
    for name, tally in tallies.items():
        yield {"contender": name, "how": "interpreted" if "triton" in name else "run", **tally.row()}


def in_interpreter() -> list[Row]:
    """Returns `interpreted_rows` of a process in which Triton interprets; it decides when a kernel is defined."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, __file__, "--interpreted"], env=environment, capture_output=True, text=True)
    if done.returncode:
        return [{"contender": "encodec_fast, triton", "how": "interpreted", "failed": done.stderr.strip().splitlines()[-1]}]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def clips_of(paths: list[Path], model: Any) -> list[Tensor]:
    """Returns audio [1, C, T] of each file, at the model's rate and channels, cut to a length that transformers can encode."""
    from encodec_fast.plan.geometry import reference_length

    clips = [torch.from_numpy(audio_files.read_audio(path, model.sampling_rate, model.audio_channels)[0])[None] for path in paths]
    return [clip[..., : reference_length(model, clip.shape[-1])] for clip in clips]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio", type=Path, nargs="*", help="audio files beside the bundled clips")
    parser.add_argument("--model", nargs="+", default=["demo", "demo-48khz"], help="built-in name, folder, or name on the hub")
    parser.add_argument("--seconds", type=float, default=1e9, help="the beginning of each clip only")
    parser.add_argument("--out", type=Path, default=results.RESULTS / "precision.jsonl")
    parser.add_argument("--interpreted", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    if options.interpreted:
        for row in interpreted_rows():
            print(json.dumps(row))
        return
    for name in options.model:

        def stock(name: str = name) -> EncodecModel:
            if name in demo.DEMO_MODELS:
                return stock_model(name)
            ours = load_model(name)
            model = EncodecModel(ours.config).eval()
            model.load_state_dict(ours.state_dict())
            return model

        config = stock().config
        paths = [*demo.bundled_clips(), *options.audio]
        clips = [clip[..., : int(options.seconds * config.sampling_rate)] for clip in clips_of(paths, config)]
        bandwidth = max(config.target_bandwidths)
        about = {"suite": "precision", "environment": environment(torch.get_num_threads()), "model": name}
        about["case"] = {"model": name, "bandwidth": bandwidth, "audio": [path.name for path in paths], "seconds": options.seconds}
        rows = [{**about, **row} for row in study(stock, clips, bandwidth)]
        results.append(options.out, rows)
        print(f"{name}, {bandwidth:g} kbps, {len(clips)} clips\n\n{precision_table(rows)}\n")
    about = {"suite": "precision", "environment": environment(1), "model": "small", "case": {"model": "small"}}
    rows = [{**about, **row} for row in in_interpreter()]
    results.append(options.out, rows)
    print(f"a small model, in Triton's interpreter\n\n{precision_table(rows)}")


if __name__ == "__main__":
    main()
