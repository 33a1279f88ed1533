"""Padding by index arithmetic, from a padded position to a sample of the unpadded signal."""

import torch
import triton
import triton.language as tl
from torch import Tensor


def reflect_length(length: int, pad_left: int, pad_right: int) -> int:
    """Returns the length of the signal that reflection sees: a signal shorter than its padding is first extended with zeros.

    Source: EncodecConv1d._pad1d, transformers 5.23 modeling_encodec.py.
    """
    return max(length, max(pad_left, pad_right) + 1)


def pad_ref(x: Tensor, pad_left: int, pad_right: int, pad_mode: str) -> Tensor:
    """Pads x [..., T] on both ends to [..., pad_left + T + pad_right].

    Source: EncodecConv1d._pad1d, transformers 5.23 modeling_encodec.py.
    """
    if pad_mode != "reflect":
        return torch.nn.functional.pad(x, (pad_left, pad_right), pad_mode)
    zeros = reflect_length(x.shape[-1], pad_left, pad_right) - x.shape[-1]
    extended = torch.nn.functional.pad(x, (0, zeros))
    padded = torch.nn.functional.pad(extended, (pad_left, pad_right), "reflect")
    return padded[..., : padded.shape[-1] - zeros]


@triton.jit
def padded_index(u, length, mirror, PAD_MODE: tl.constexpr):
    """Returns the position of the sample at padded position u; outside [0, length) the value is zero.

    mirror: `reflect_length` of the signal.
    """
    if PAD_MODE == "reflect":
        u = tl.where(u < 0, -u, u)
        u = tl.where(u >= mirror, 2 * (mirror - 1) - u, u)
    elif PAD_MODE == "replicate":
        u = tl.minimum(tl.maximum(u, 0), length - 1)
    return u
