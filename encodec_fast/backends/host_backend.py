"""The `host` backend: the CPU's backends for tensors on a device whose own results can't be relied on.

Inputs are copied to the CPU and outputs back; streams keep their state there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from encodec_fast.backends import registry
from encodec_fast.backends.base import Backend, Precision, QuantizerProgram, StageProgram
from encodec_fast.plan import Quantizer, Stage, moved, stage_tensors

CPU = torch.device("cpu")


class HostProgram(StageProgram):
    """Stages that run on the CPU for clips on any device."""

    def __init__(self, stages: tuple[Stage, ...], precision: Precision) -> None:
        self.device = stage_tensors(stages[0])[0].device
        own = tuple(moved(stage, CPU) for stage in stages)
        self.inner = _backend(own, stage_tensors(own[0])[0].dtype).prepare(own, precision)
        self.exact, self.activations_held = self.inner.exact, self.inner.activations_held

    def run(self, x: Tensor) -> Tensor:
        return self.inner.run(x.to(CPU)).to(self.device)

    def run_clips(self, clips: Sequence[Tensor]) -> list[Tensor]:
        return [output.to(self.device) for output in self.inner.run_clips([clip.to(CPU) for clip in clips])]

    def open(self) -> Any:
        return self.inner.open()

    def push(self, pieces: Sequence[Tensor], states: Sequence[Any], final: Sequence[bool]) -> list[Tensor]:
        return [output.to(self.device) for output in self.inner.push([piece.to(CPU) for piece in pieces], states, final)]

    def save(self, state: Any) -> Any:
        return self.inner.save(state)

    def load(self, saved: Any) -> Any:
        return self.inner.load(saved)

    def ended(self, state: Any) -> bool:
        return self.inner.ended(state)


class HostQuantizerProgram(QuantizerProgram):
    """Codebooks that are searched on the CPU."""

    def __init__(self, quantizer: Quantizer) -> None:
        self.device = quantizer.codebooks.device
        own = moved(quantizer, CPU)
        self.inner = _backend((own,), own.codebooks.dtype).prepare_quantizer(own)
        self.exact = self.inner.exact

    def encode(self, x: Tensor, num_quantizers: int) -> Tensor:
        return self.inner.encode(x.to(CPU), num_quantizers).to(self.device)

    def decode(self, codes: Tensor) -> Tensor:
        return self.inner.decode(codes.to(CPU)).to(self.device)


class HostBackend(Backend):
    """The CPU's preferred backend that takes all of the stages, behind two copies."""

    name = "host"
    has_kernels = False

    def unavailable(self) -> str | None:
        return None

    def refusal(self, stage: Stage | Quantizer, dtype: torch.dtype, device: torch.device) -> str | None:
        return None

    def prepare(self, stages: tuple[Stage, ...], precision: Precision = Precision.PARITY) -> HostProgram:
        return HostProgram(stages, precision)

    def prepare_quantizer(self, quantizer: Quantizer) -> HostQuantizerProgram:
        return HostQuantizerProgram(quantizer)

    def function_refusal(self, name: str, tensors: Sequence[Tensor]) -> str | None:
        return None

    def normalize(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        clean, scales = registry.get_backend("torch").normalize(audio.to(CPU))
        return clean.to(audio.device), scales.to(audio.device)

    def overlap_add(self, chunks: Sequence[Tensor], weight: Tensor, stride: int, length: int) -> Tensor:
        own = [chunk.to(CPU) for chunk in chunks]
        return registry.get_backend("torch").overlap_add(own, weight.to(CPU), stride, length).to(chunks[0].device)


def _backend(parts: Sequence[Stage | Quantizer], dtype: torch.dtype) -> Backend:
    """Returns the first backend of the CPU that takes all of them; torch's takes everything."""
    backends = [registry.get_backend(name) for name in registry.PREFERENCE["cpu"]]
    return next(each for each in backends if not each.unavailable() and not any(each.refusal(part, dtype, CPU) for part in parts))
