"""The `triton` backend: NVIDIA and AMD GPUs, and CPU tensors under Triton's interpreter for tests."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from encodec_fast.backends.base import Backend, Precision
from encodec_fast.kernels.modes import ProductMode, SearchMode
from encodec_fast.plan import LSTM, Quantizer, Stage, stage_weights

if TYPE_CHECKING:
    from encodec_fast.backends.triton_program import TritonProgram, TritonQuantizerProgram

# Modes of the convolutions' products and, with halves instead of tf32, of the recurrence's.
# On gfx942 'ieee' is the matrix cores' own.
# Split operands reach float32's accuracy on matrix units, so 'parity' uses them wherever there are such units.
MODES = {Precision.PARITY: ProductMode.SPLIT, Precision.TF32X3: ProductMode.SPLIT, Precision.FAST: ProductMode.TF32}
_IN_WORDS = {ProductMode.IEEE: "float32", ProductMode.SPLIT: "3 x tf32", ProductMode.TF32: "tf32"}
# A recurrence multiplies halves, and a scale makes up for their narrow exponents.
_RECURRENCE_IN_WORDS = {ProductMode.IEEE: "float32", ProductMode.SPLIT: "3 x float16", ProductMode.TF32: "float16"}

# Wider codebook entries do not fit on the chip together with a block of residuals.
MAX_CODEBOOK_DIM = 512


class TritonBackend(Backend):
    name = "triton"
    precisions = tuple(MODES)

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed; pip install triton (Linux; CUDA and ROCm builds of torch bring it along)"
        if _interpreted():
            import numpy
            import triton

            return interpreter_problem(triton.__version__, numpy.__version__)
        if torch.cuda.is_available():
            return None
        return "no CUDA or ROCm device is visible to torch"

    def refusal(self, stage: Stage | Quantizer, dtype: torch.dtype, device: torch.device) -> str | None:
        refused = _refused_tensors(dtype, device)
        if refused is not None:
            return refused
        if isinstance(stage, Quantizer):
            dim = stage.codebooks.shape[2]
            return f"codebook dimension {dim} is over {MAX_CODEBOOK_DIM}" if dim > MAX_CODEBOOK_DIM else None
        mixed = {weight.dtype for weight in stage_weights(stage)} - {dtype}
        return f"weights of {mixed.pop()} for an input of {dtype}" if mixed else None

    def prepare(self, stages: tuple[Stage, ...], precision: Precision = Precision.PARITY) -> TritonProgram:
        from encodec_fast.backends.triton_program import TritonProgram

        weight = stage_weights(stages[0])[0]
        return TritonProgram(stages, _product_mode(precision, weight.dtype, weight.device), library_lstm=precision == Precision.FAST)

    def prepare_quantizer(self, quantizer: Quantizer) -> TritonQuantizerProgram:
        from encodec_fast.backends.triton_program import TritonQuantizerProgram

        return TritonQuantizerProgram(quantizer, _search_mode(quantizer.codebooks.device))

    def function_refusal(self, name: str, tensors: Sequence[Tensor]) -> str | None:
        if name != "overlap_add":
            return super().function_refusal(name, tensors)
        return _refused_tensors(tensors[0].dtype, tensors[0].device)

    def overlap_add(self, chunks: Sequence[Tensor], weight: Tensor, stride: int, length: int) -> Tensor:
        """Runs `Backend.overlap_add` in one launch, bit-equal to transformers."""
        from encodec_fast.backends.triton_program import device_of
        from encodec_fast.kernels.overlap_add import overlap_add_triton

        first, steps = chunks[0], chunks[0].shape[-1]
        stacked = torch.stack([torch.nn.functional.pad(chunk, (0, steps - chunk.shape[-1])) for chunk in chunks])
        with device_of(first):
            return overlap_add_triton(stacked, weight, stride, length)

    def products(self, stage: Stage | Quantizer, dtype: torch.dtype, device: torch.device, precision: Precision) -> str:
        if isinstance(stage, Quantizer):
            return "float16, proven equal to float32" if _search_mode(device) == SearchMode.RERANK else "float32"
        if isinstance(stage, LSTM):
            return _recurrence_in_words(stage, _product_mode(precision, dtype, device), precision == Precision.FAST, device)
        return _IN_WORDS[_product_mode(precision, dtype, device)]


def _recurrence_in_words(stage: LSTM, mode: ProductMode, library_lstm: bool, device: torch.device) -> str:
    from encodec_fast.backends.triton_layers import lstm_refusal

    by_library = library_lstm and lstm_refusal(stage, mode, device) is not None
    return "the library's recurrence" if by_library else _RECURRENCE_IN_WORDS[mode]


def _refused_tensors(dtype: torch.dtype, device: torch.device) -> str | None:
    if device.type != "cuda" and not (device.type == "cpu" and _interpreted()):
        return f"tensors on {device.type}: the triton backend runs on CUDA and ROCm devices"
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"dtype {dtype}: the kernels compute in float32 from float32, float16 or bfloat16"
    if dtype == torch.bfloat16 and _interpreted():
        return "Triton's interpreter rounds bfloat16 wrongly"
    return None


def interpreter_problem(triton: str, numpy: str) -> str | None:
    """Returns why this version of Triton's interpreter fails with this version of NumPy, or None.

    The interpreter passes an array of one element to `range`, which NumPy 2.4 refuses.
    """
    if _release(triton) < (3, 7) and _release(numpy) >= (2, 4):
        return f"the interpreter of triton {triton} fails with numpy {numpy}; pip install 'triton>=3.7' or 'numpy<2.4'"
    return None


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _product_mode(precision: Precision, dtype: torch.dtype, device: torch.device) -> ProductMode:
    # halves are exact in tf32
    return _legal(ProductMode.TF32 if dtype in (torch.float16, torch.bfloat16) else MODES[precision], device)


def _legal(mode: ProductMode, device: torch.device) -> ProductMode:
    """Returns the mode asked for, or ieee where the architecture has no such product."""
    from encodec_fast.kernels.tiles import arch_of

    arch = arch_of(device)
    if arch == "gfx942":
        return ProductMode.IEEE if mode == ProductMode.SPLIT else mode
    if arch.startswith("gfx") or arch in ("sm_70", "sm_72", "sm_75"):
        return ProductMode.IEEE
    return mode


def _search_mode(device: torch.device) -> SearchMode:
    """Returns rerank where there are tensor cores, otherwise ieee; the proof of rerank keeps the codes of ieee."""
    from encodec_fast.kernels.tiles import arch_of

    has_units = not arch_of(device).startswith("gfx") and _legal(ProductMode.TF32, device) == ProductMode.TF32
    return SearchMode.RERANK if has_units else SearchMode.IEEE
