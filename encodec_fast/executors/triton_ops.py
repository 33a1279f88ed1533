"""Prepared programs as `torch.library` operators with fakes, so that `torch.compile` sees one opaque call instead of launches.

Importing this module registers the operators; `triton_program` imports it, which only `TritonExecutor.prepare` does.
"""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

# A program enters a graph by name: a graph holds no Python objects, and a program made anew (because a weight changed)
# has a new name, which the graph is guarded by. Not by number: `dynamic=True` would take that for a size.
_programs: WeakValueDictionary[str, Any] = WeakValueDictionary()
_numbers = itertools.count()


def register(program: Any) -> str:
    """The name by which the operators know a program, for as long as it lives."""
    name = f"program {next(_numbers)}"
    _programs[name] = program
    return name


@torch.library.custom_op("encodec_fast::run_stages", mutates_args=())
def run_stages(x: Tensor, program: str) -> Tensor:
    """Whole clips [B, C_in, T] -> [B, C_out, T_out] through a prepared run of stages."""
    return _programs[program].launch(x)


@run_stages.register_fake
def _(x: Tensor, program: str) -> Tensor:
    stages = _programs[program]
    return x.new_empty(x.shape[0], stages.out_channels, stages.output_length(x.shape[2]))


@torch.library.custom_op("encodec_fast::quantize", mutates_args=())
def quantize(x: Tensor, num_quantizers: int, program: str) -> Tensor:
    """Codes [num_quantizers, B, F] of embeddings [B, D, F]."""
    return _programs[program].launch_encode(x, num_quantizers)


@quantize.register_fake
def _(x: Tensor, num_quantizers: int, program: str) -> Tensor:
    return x.new_empty(num_quantizers, x.shape[0], x.shape[2], dtype=torch.int64)


@torch.library.custom_op("encodec_fast::dequantize", mutates_args=())
def dequantize(codes: Tensor, program: str) -> Tensor:
    """Embeddings [B, D, F] of codes [K, B, F]."""
    return _programs[program].launch_decode(codes)


@dequantize.register_fake
def _(codes: Tensor, program: str) -> Tensor:
    codebooks = _programs[program].tables.codebooks
    return codebooks.new_empty(codes.shape[1], codebooks.shape[2], codes.shape[2])
