"""The `triton` backend: NVIDIA and AMD GPUs, and CPU tensors under Triton's interpreter for tests."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

import torch

from encodec_fast.executors.base import Executor
from encodec_fast.plan import LSTM, Quantizer, Stage, stage_weights

if TYPE_CHECKING:
    from encodec_fast.executors.triton_stages import TritonProgram, TritonQuantizerProgram

# What the products of the convolutions and of the recurrence are computed in.
#   parity   float32 FMAs; on gfx942 the matrix cores' own float32. The codes of contract 2, and the same bits for a clip in any batch.
#   tf32x3   three tf32 products for each float32 one: about twice float32's error, on tensor cores.
#   fast     one tf32 product, and cuDNN's recurrence: other codes than Hugging Face's float32.
PRECISIONS = {"parity": "ieee", "tf32x3": "tf32x3", "fast": "tf32"}

# Wider codebook entries do not fit on the chip together with a block of residuals.
MAX_CODEBOOK_DIM = 512


class TritonExecutor(Executor):
    """precision: 'parity', 'tf32x3' or 'fast'."""

    name = "triton"

    def __init__(self, precision: str = "parity") -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {tuple(PRECISIONS)}, got {precision!r}")
        self.precision = precision

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed; pip install triton (Linux; CUDA and ROCm builds of torch bring it along)"
        if _interpreted() or torch.cuda.is_available():
            return None
        return "no CUDA or ROCm device is visible to torch"

    def refusal(self, stage: Stage | Quantizer, dtype: torch.dtype, device: torch.device) -> str | None:
        if device.type != "cuda" and not (device.type == "cpu" and _interpreted()):
            return f"tensors on {device.type}: the triton backend runs on CUDA and ROCm devices"
        if isinstance(stage, Quantizer):
            dim = stage.codebooks.shape[2]
            return f"codebook dimension {dim} is over {MAX_CODEBOOK_DIM}" if dim > MAX_CODEBOOK_DIM else None
        if dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return f"dtype {dtype}: the kernels compute in float32 from float32, float16 or bfloat16"
        if dtype == torch.bfloat16 and _interpreted():
            return "Triton's interpreter rounds bfloat16 wrongly"
        mixed = {weight.dtype for weight in stage_weights(stage)} - {dtype}
        return f"weights of {mixed.pop()} for an input of {dtype}" if mixed else None

    def prepare(self, stages: tuple[Stage, ...]) -> TritonProgram:
        from encodec_fast.executors.triton_stages import TritonProgram

        weight = stage_weights(stages[0])[0]
        # products of two halves are exact in tf32
        half = weight.dtype in (torch.float16, torch.bfloat16)
        precision = "tf32" if half else PRECISIONS[self.precision]
        library_lstm = self.precision == "fast" and any(isinstance(stage, LSTM) for stage in stages)
        return TritonProgram(stages, _legal(precision, weight.device), library_lstm)

    def prepare_quantizer(self, quantizer: Quantizer) -> TritonQuantizerProgram:
        from encodec_fast.executors.triton_stages import TritonQuantizerProgram

        return TritonQuantizerProgram(quantizer, _search_precision(quantizer.codebooks.device))


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _legal(precision: str, device: torch.device) -> str:
    """The precision asked for, or ieee where the architecture has no such product."""
    from encodec_fast.kernels.tiles import arch_of

    arch = arch_of(device)
    if arch == "gfx942":
        return "ieee" if precision == "tf32x3" else precision
    if arch.startswith("gfx") or arch in ("sm_70", "sm_72", "sm_75"):
        return "ieee"
    return precision


def _search_precision(device: torch.device) -> str:
    """Tensor cores and the proof that the codes are those of ieee, or ieee itself where no tensor core has tf32."""
    from encodec_fast.kernels.tiles import arch_of

    return "ieee" if arch_of(device).startswith("gfx") else {"tf32": "rerank"}.get(_legal("tf32", device), "ieee")
