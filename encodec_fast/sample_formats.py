"""What samples of each number format mean: full scale is +-1.0 for the models, and 32,768 for 16-bit integers."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

Array = TypeVar("Array", bound=Any)

# Name of a dtype, in numpy and torch: the value of silence, and full scale above it. As WAV files store them.
_INTEGERS = {"int8": (0, 1 << 7), "uint8": (1 << 7, 1 << 7), "int16": (0, 1 << 15), "int32": (0, 1 << 31)}
_FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})


def sample_scale(dtype: str, name: str) -> tuple[int, int] | None:
    """Returns (silence, full scale) of integer samples, None for floats, whose full scale is 1.0.

    dtype: its name.  name: of the argument, for the message.  Raises TypeError for what is no format of samples.
    """
    if dtype in _FLOATS:
        return None
    if dtype not in _INTEGERS:
        raise TypeError(f"{name} is {dtype}; floats with full scale 1.0 are needed, or integers of {', '.join(_INTEGERS)}.")
    return _INTEGERS[dtype]


def float_samples(samples: Tensor, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Returns the samples on the device, in the dtype, with full scale +-1.0.  name: of the argument.  Raises TypeError."""
    scale = sample_scale(str(samples.dtype).removeprefix("torch."), name)
    return samples.to(device, dtype) if scale is None else scaled(samples.to(device, torch.float32), scale).to(dtype)


def scaled(samples: Array, scale: tuple[int, int] | None) -> Array:
    """Returns float32 samples, a tensor or an array, with full scale +-1.0.  scale: as `sample_scale` gives it."""
    if scale is None:
        return samples
    silence, full_scale = scale
    return (samples - silence) / full_scale
