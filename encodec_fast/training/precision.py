"""In which numbers a step multiplies: float32, TF32 or bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

PRECISIONS = ("float32", "tf32", "bf16")


@contextmanager
def matrix_products(precision: str) -> Iterator[None]:
    """Lets float32 products of a GPU be TF32 where asked for, and be float32 where not, while it lasts.

    torch itself has convolutions in TF32 and matrix products in float32. On a CPU it changes nothing.
    """
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    # what bfloat16 does not reach, such as the losses, stays in float32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def networks_in(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Returns the context in which encoder, decoder and discriminator run: autocast for bf16.

    Raises ValueError for a name that is not of PRECISIONS.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; allowed are {', '.join(PRECISIONS)}.")
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def in_float32(found: Any) -> Any:
    """Returns a tensor, or lists of them, with bfloat16 as float32: losses are sums of many small numbers."""
    if isinstance(found, Tensor):
        return found.float() if found.dtype == torch.bfloat16 else found
    return [in_float32(each) for each in found]
