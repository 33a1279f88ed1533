"""What every phase gets, and the two models that all of them work on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import EncodecConfig
from transformers import EncodecModel as Stock

from bench_lib.drawn import drawn_model
from encodec_fast import EncodecModel, demo
from encodec_fast.backends.triton_backend import TritonBackend
from encodec_fast.plan import Plan

Row = dict[str, Any]
MODELS = {"24 kHz": "demo", "48 kHz": "demo-48khz"}
PRECISIONS = ("parity", "fast")

TOY = dict(num_filters=4, hidden_size=16, codebook_dim=16, codebook_size=32, upsampling_ratios=[5, 4], target_bandwidths=[48.0])
TOY_48KHZ = dict(audio_channels=2, normalize=True, chunk_length_s=0.005, overlap=0.01, norm_type="time_group_norm", use_causal_conv=False)


class Item(NamedTuple):
    """A piece of a phase that may fail by itself.  rows: works, and gives what was found."""

    name: str
    rows: Callable[[], Iterable[Row]]


@dataclass(frozen=True)
class Setting:
    """arch: 'sm_90', ..., of the GPU, or the one to compile for where there is none.  toy: tiny models and short audio.

    scratch: a folder for what phases leave to each other.  results: the report so far, as JSON lines.
    """

    arch: str
    toy: bool
    scratch: Path
    results: Path

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def precisions(self) -> tuple[str, ...]:
        """Returns those that a phase goes through. To the interpreter tf32 x 3 is float32."""
        return PRECISIONS if not self.toy else ("parity", "fast")

    @property
    def repeats(self) -> int:
        """Returns the runs of one kernel on one input: what differs between them is a race, of which the interpreter has none."""
        return 5 if not self.toy else 2

    def same(self, a: Tensor, b: Tensor) -> bool:
        """Returns whether two tensors are equal to the bit; in the interpreter, whose products add as numpy likes, nearly."""
        if self.device.type == "cuda" or not a.is_floating_point():
            return torch.equal(a, b)
        return a.shape == b.shape and relative_error(a, b.double()) < 1e-5

    def config(self, model: str) -> EncodecConfig:
        """Returns the config of a model, a key of MODELS."""
        if not self.toy:
            return demo.demo_config(MODELS[model])
        return EncodecConfig(**TOY, **(TOY_48KHZ if model == "48 kHz" else {}))

    def samples(self, seconds: float, model: str = "24 kHz") -> int:
        """Returns the samples of a clip; a toy's have hundreds at most."""
        return int(seconds * self.config(model).sampling_rate) if not self.toy else max(60, min(180, int(90 * seconds)))

    def stock(self, model: str) -> Stock:
        """Returns transformers' own model on the device, float32; drawn at the first call of all phases, then read from scratch."""
        path, config = self.scratch / f"weights {model}{' toy' * self.toy}.pt", self.config(model)
        stock = Stock(config).eval()
        if not path.exists():
            pieces, length = (24, config.sampling_rate) if not self.toy else (8, 480)
            drawn = drawn_model(config, signals(config, pieces, length, self.device))
            partial = path.with_suffix(".partial")
            torch.save(drawn.state_dict(), partial)
            partial.replace(path)
        stock.load_state_dict(torch.load(path, map_location="cpu"))
        return stock.to(self.device)

    def ours(self, model: str, stock: Stock | None = None) -> EncodecModel:
        """Returns the drop-in class with the same weights."""
        stock = stock or self.stock(model)
        ours = EncodecModel(stock.config).eval()
        ours.load_state_dict(stock.state_dict())
        return ours.to(self.device)


class Codec:
    """encode and decode of one precision, straight on the prepared programs."""

    def __init__(self, plan: Plan, precision: str) -> None:
        backend = TritonBackend()
        self.encoder = backend.prepare(plan.encoder.stages, precision)
        self.decoder = backend.prepare(plan.decoder.stages, precision)
        self.quantizer = backend.prepare_quantizer(plan.quantizer)

    def encode(self, x: Tensor, num_quantizers: int) -> Tensor:
        return self.quantizer.encode(self.encoder.run(x), num_quantizers)

    def decode(self, codes: Tensor) -> Tensor:
        return self.decoder.run(self.quantizer.decode(codes))


def signals(config: EncodecConfig, clips: int, samples: int, device: torch.device, seed: int = 0) -> Tensor:
    """Returns audio [B, C, T], float32: voices of gliding pitch with pauses over faint noise, each clip its own.

    Made here and not read from files: a GPU machine may have nothing installed that reads them.
    """
    random = torch.Generator().manual_seed(seed)
    pitch, glide, rhythm, phase = (torch.rand(clips, 1, 1, generator=random).to(device, torch.float64) for _ in range(4))
    time = torch.arange(samples, device=device, dtype=torch.float64) / config.sampling_rate  # [T]
    cycles = (90 + 160 * pitch) * (time + 0.1 * glide * torch.sin(2 * math.pi * time / 0.7))
    voice = torch.zeros(clips, 1, samples, device=device, dtype=torch.float64)
    for harmonic in range(1, 17):
        voice += torch.sin(2 * math.pi * (harmonic * cycles + harmonic * phase)) / harmonic
    loudness = torch.sin(2 * math.pi * (2 + 3 * rhythm) * time + 6 * phase).clamp(min=0).sqrt()
    # integers first: randn of a CPU differs between machines in its last bits, and that of a GPU from both
    noise = torch.rand(clips, config.audio_channels, samples, generator=random).to(device, torch.float64) - 0.5
    return (0.1 * voice * loudness * (1 + 0.5 * noise) + 2e-3 * noise).float()


@contextmanager
def tf32(allowed: bool, benchmark: bool = False) -> Iterator[None]:
    """Sets torch's switches as they are by default (convolutions and LSTM in tf32) or for float32; cudnn.benchmark besides."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    # products outside convolutions stay in float32 by torch's default
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = allowed, False, benchmark
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before


@contextmanager
def poisoned() -> Iterator[None]:
    """Fills what is allocated without a value with NaN or -777777: an element that no kernel writes shows."""

    def filled(tensor: Tensor) -> Tensor:
        plain = type(tensor) is Tensor and tensor.device.type != "meta"
        return tensor.fill_(float("nan") if tensor.is_floating_point() else -777_777) if plain else tensor

    empty, new_empty = torch.empty, Tensor.new_empty
    torch.empty = lambda *sizes, **options: filled(empty(*sizes, **options))
    Tensor.new_empty = lambda *sizes, **options: filled(new_empty(*sizes, **options))
    try:
        yield
    finally:
        torch.empty, Tensor.new_empty = empty, new_empty


def relative_error(y: Tensor, truth: Tensor) -> float:
    """Returns the root mean square of the error, relative to the signal, as `encodec-fast verify` has it."""
    return ((y.double() - truth).square().sum() / truth.square().sum()).sqrt().item()
