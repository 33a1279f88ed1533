"""Pointwise functions that several kernels share; `libdevice` has them too, but neither the interpreter nor ROCm do."""

import triton
import triton.language as tl


@triton.jit
def elu(x):
    """x where x > 0, else exp(x) - 1.  The inner `where` keeps exp finite and lets NaN through, which `tl.minimum` would not.

    Near zero exp(x) - 1 would cancel and leave an error of 3e-8 however small x is; there a Taylor series takes its place, whose first
    term left out is x^8 / 40320, under a tenth of an ulp of x at |x| = 0.25.
    """
    series = 1 / 2 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x * (1 / 720 + x / 5040))))
    return tl.where(x > 0, x, tl.where(x > -0.25, x + x * x * series, tl.exp(tl.where(x > 0, 0.0, x)) - 1.0))


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    """tanh to about 2 ulp of its value: an odd polynomial near zero, where 1 - exp(-2|x|) cancels, the quotient elsewhere."""
    square = x * x
    # Taylor series; the first term left out is 0.0036 x^12, under half an ulp at |x| = 0.25
    near = x + x * square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835 - square * 1382 / 155925))))
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(x) < 0.25, near, tl.where(x < 0, -far, far))
