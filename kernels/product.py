"""One step of a long sum of products: the precision of its terms and the order in which they are added."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .modes import ProductMode

# Terms summed from zero before their sum joins the running one. This sets the order of summation, and with it the bits.
DEPTH = {ProductMode.IEEE: 16, ProductMode.SPLIT: 32, ProductMode.TF32: 32}


def split_matrix(matrix: Tensor, mode: ProductMode) -> Tensor:
    """Lays out the right operand of a product as `add_product` reads it.

    matrix: [N, K] float32 or a half.  mode: not 'thin'.
    Returns [2, N, K] in split, the values rounded to tf32 and the remainders; otherwise [1, N, K].
    """
    if mode != ProductMode.SPLIT:
        return matrix[None].contiguous()
    bits = matrix.contiguous().view(torch.int32)
    high = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
    return torch.stack((high, matrix - high))


def half_exponent(largest: Tensor) -> Tensor:
    """Returns the exponent of the power of two that scales `largest` to [2^14, 2^15).

    That is the end of the range of halves, where smaller values keep their bits longest.
    """
    return 15 - torch.frexp(largest).exponent


@triton.jit
def tf32_rounded(x):
    """Rounds x to the 11 bits of tf32, to nearest, ties away from zero, as cvt.rna.tf32."""
    return ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def load_weight(w_block, k, K, low, EVEN_K: tl.constexpr, MODE: tl.constexpr):
    """Loads a block of the right operand and, in split, of its low parts; zero where k >= K.

    low: elements from the high to the low parts.
    """
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
    """Returns acc + a @ b.

    a: [M, BLOCK_K].  b: [BLOCK_K, N].  b_low: remainder of b after rounding to tf32, in split only.
    ieee and split sum the block's terms from zero and then add that sum.
    A sum of n terms is then rounded along `BLOCK_K + n / BLOCK_K` additions instead of n.
    A matrix unit truncates its sums, and here it truncates no more than BLOCK_K of them.
    Worst-case truncation cuts terms to 24 bits at the largest of each four.
    The networks' largest error is then 0.2 (encoder) and 0.5 (decoder) of that of transformers' float32.
    split: high and low parts hold 11 and 12 bits. The product of two low parts, 2^-24 of the whole, is omitted. Small products are added
    first.
    """
    if MODE == "ieee":
        # with 0 the compiler would fold the addition into the product, and the block into the running sum
        return acc + tl.dot(a, b, input_precision="ieee", max_num_imprecise_acc=a.shape[1])
    if MODE == "split":
        a_high = tf32_rounded(a)
        part = tl.dot(a - a_high, b, input_precision="tf32")
        part = tl.dot(a_high, b_low, part, input_precision="tf32")
        return acc + tl.dot(a_high, b, part, input_precision="tf32")
    return tl.dot(a, b, acc, input_precision="tf32")
