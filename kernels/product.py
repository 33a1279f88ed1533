"""One step of a long sum of products: what its terms are multiplied in, and in which order they are added."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .modes import ProductMode

# Terms that are summed from zero before their sum is added to those before. It sets the order of summation, and with it the bits.
DEPTH = {ProductMode.IEEE: 16, ProductMode.SPLIT: 32, ProductMode.TF32: 32}


def split_matrix(matrix: Tensor, mode: ProductMode) -> Tensor:
    """The right side of a product as `add_product` reads it.

    matrix: [N, K] float32 or a half.  mode: not 'thin'.
    Returns [2, N, K] in split, the values rounded to tf32 and what that leaves; otherwise [1, N, K].
    """
    if mode != ProductMode.SPLIT:
        return matrix[None].contiguous()
    bits = matrix.contiguous().view(torch.int32)
    high = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
    return torch.stack((high, matrix - high))


def half_exponent(largest: Tensor) -> Tensor:
    """Of the power of two that takes `largest` to [2^14, 2^15), the end of what halves hold: smaller ones then keep their bits longest."""
    return 15 - torch.frexp(largest).exponent


@triton.jit
def tf32_rounded(x):
    """x rounded to the 11 bits of tf32, to nearest, ties away from zero, as cvt.rna.tf32."""
    return ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def load_weight(w_block, k, K, low, EVEN_K: tl.constexpr, MODE: tl.constexpr):
    """A block of the right side and, in split, of its low parts, which stand `low` elements further on; zero where k >= K."""
    if EVEN_K:
        w = tl.load(w_block)
    else:
        w = tl.load(w_block, mask=k < K, other=0.0)
    w_low = w
    if MODE == "split":
        if EVEN_K:
            w_low = tl.load(w_block + low)
        else:
            w_low = tl.load(w_block + low, mask=k < K, other=0.0)
    return w.to(tl.float32), w_low.to(tl.float32)


@triton.jit
def add_product(acc, a, b, b_low, MODE: tl.constexpr):
    """acc + a @ b, a [M, BLOCK_K], b [BLOCK_K, N]; b_low: what rounding to tf32 left of the right side, in split only.

    ieee and split sum the block's terms from zero and then add their sum: a sum of n terms is rounded along BLOCK_K + n / BLOCK_K
    additions instead of n, and a matrix unit, whose sums truncate, truncates no more than BLOCK_K of them. With worst-case truncation
    (terms cut to 24 bits at the largest of each four) the networks' largest error is 0.2 (encoder) and 0.5 (decoder) of that of
    transformers' float32.
    split: high and low parts hold 11 and 12 bits; the product of two low parts, 2^-24 of the whole, is left out. The small ones first.
    """
    if MODE == "ieee":
        # not 0, at which the compiler folds the addition into the product, and with it the block into the chain
        return acc + tl.dot(a, b, input_precision="ieee", max_num_imprecise_acc=a.shape[1])
    if MODE == "split":
        a_high = tf32_rounded(a)
        part = tl.dot(a - a_high, b, input_precision="tf32")
        part = tl.dot(a_high, b_low, part, input_precision="tf32")
        return acc + tl.dot(a_high, b, part, input_precision="tf32")
    return tl.dot(a, b, acc, input_precision="tf32")
