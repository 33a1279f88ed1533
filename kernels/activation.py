"""Pointwise functions that several kernels share.

`libdevice` has them too, but it is missing in the interpreter and on ROCm.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .modes import Activation


def activate_ref(x: Tensor, activation: Activation) -> Tensor:
    """Applies an activation to a tensor of any shape; ValueError for one that is not an `Activation`."""
    return _REFERENCES[Activation(activation)](x)


_REFERENCES = {Activation.NONE: lambda x: x, Activation.ELU: torch.nn.functional.elu}


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """Applies the activation that the string names."""
    if ACTIVATION == "elu":
        x = elu(x)
    else:
        tl.static_assert(ACTIVATION == "none", "an activation without its branch here")
    return x


@triton.jit
def elu(x):
    """Returns x where x > 0, else exp(x) - 1.

    The inner `where` keeps exp finite and passes NaN through, which `tl.minimum` would not.
    Near zero exp(x) - 1 cancels and leaves an error of 3e-8 for any small x. A Taylor series replaces it there.
    Its first omitted term is x^8 / 40320, under a tenth of an ulp of x at |x| = 0.25.
    """
    series = 1 / 2 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x * (1 / 720 + x / 5040))))
    return tl.where(x > 0, x, tl.where(x > -0.25, x + x * x * series, tl.exp(tl.where(x > 0, 0.0, x)) - 1.0))


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    """Returns tanh(x) to about 2 ulp.

    An odd polynomial serves near zero, where 1 - exp(-2|x|) cancels, and the quotient elsewhere.
    """
    square = x * x
    # the Taylor series omits terms from 0.0036 x^12 on, under half an ulp at |x| = 0.25
    near = x + x * square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835 - square * 1382 / 155925))))
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(x) < 0.25, near, tl.where(x < 0, -far, far))
