"""The language model's arithmetic as docs/ecdc.md describes it, in numpy: each operation rounded once to float32, in the order there."""

from __future__ import annotations

import math

import numpy as np

from encodec_fast.language_model.model import LanguageModel, position_divisors

F = np.float32
# Of e^r and of -log(erfc(t)) / t, the highest power first
_EXP = "0x1.9e7d6p-13 0x1.6d3aap-10 0x1.1112d4p-7 0x1.5554f8p-5 0x1.555554p-3 0x1p-1"
_GELU = (
    "-0x1.5f4e6ep-31 0x1.d7c27p-26 -0x1.1c2c06p-21 0x1.9754ccp-18 -0x1.830bp-15 0x1.fe5e32p-13 -0x1.d10cfp-11 0x1.037cd2p-9 "
    "-0x1.9cf272p-12 -0x1.382038p-6 0x1.a4e086p-4 0x1.45f358p-1 0x1.20dd74p+0"
)


def fma(a, b, c):
    """a * b + c, rounded once: the product is exact in double, and its sum's rounding there hardly ever shows."""
    return F(np.asarray(a, np.float64) * np.asarray(b, np.float64) + np.asarray(c, np.float64))


def polynomial(x, coefficients):
    first, *others = (F(float.fromhex(each)) for each in coefficients.split())
    y = np.full_like(x, first)
    for each in others:
        y = fma(x, y, each)
    return y


def exponential(x):
    """e^x of x <= 0."""
    x = np.maximum(x, F(-104))
    shifted = fma(x, F(float.fromhex("0x1.715476p+0")), F(1.5 * 2**23))
    n = shifted - F(1.5 * 2**23)
    r = fma(n, F(-float.fromhex("0x1.62e4p-1")), x)
    r = fma(n, F(-float.fromhex("0x1.7f7d1cp-20")), r)
    poly = fma(r * r, polynomial(r, _EXP), r)
    shift = n.astype(int) + 256
    first, second = (np.exp2(F(each - 128)) for each in (shift // 2, shift - shift // 2))
    return (first + poly * first) * second


def gelu(x):
    z = np.abs(x) * F(float.fromhex("0x1.6a09e6p-1"))
    tail = F(0.5) * exponential(-(z * polynomial(np.minimum(z, F(5)), _GELU)))
    return np.where(x > 0, fma(-x, tail, x), x * tail)


def lanes(terms):
    """The sum of terms: each goes to one of 16 lanes by its place, and the lanes are halved."""
    sums = np.zeros(16, F)
    for place, term in enumerate(terms):
        sums[place % 16] = sums[place % 16] + term
    return halved(sums)


def halved(sums):
    for half in (8, 4, 2, 1):
        sums = sums[:half] + sums[half : 2 * half]
    return sums[0]


def norm(x, weight, bias):
    mean = lanes(x) / F(len(x))
    x = x - mean
    squares = np.zeros(16, F)
    for place, value in enumerate(x):
        squares[place % 16] = fma(value, value, squares[place % 16])
    scale = F(1) / np.sqrt(halved(squares) / F(len(x)) + F(1e-5))
    return fma(x * scale, weight, bias)


def linear(x, weight, bias, added=None):
    """weight [out, in] times x, plus bias: chains of 256 terms."""
    total = bias
    for first in range(0, len(x), 256):
        chain = total if first == 0 else np.zeros_like(bias)
        for k in range(first, min(first + 256, len(x))):
            chain = fma(x[k], weight[:, k], chain)
        total = chain if first == 0 else chain + total
    return total if added is None else total + added


def positions(position, dim):
    phase = F(position) / np.array(position_divisors(dim), F)
    phase = phase.astype(np.float64)
    return np.concatenate([np.cos(phase), np.sin(phase)]).astype(F)


def described_logits(model: LanguageModel, codes: np.ndarray) -> np.ndarray:
    """Logits [F, K, N] of codes [K, F]."""
    config, w = model.config, {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    width = config.dim // config.heads
    scale = F(1 / math.sqrt(width))
    kept, found = [], []
    for number in range(config.layers):
        bias = w[f"transformer.layers.{number}.self_attn.in_proj_bias"]
        kept.append([(bias[config.dim : 2 * config.dim], bias[2 * config.dim :])])
    before = np.zeros(len(codes), int)
    for frame in range(codes.shape[1]):
        x = w["emb.0.weight"][before[0]]
        for level in range(1, len(codes)):
            x = x + w[f"emb.{level}.weight"][before[level]]
        x = norm(x, w["transformer.norm_in.weight"], w["transformer.norm_in.bias"]) + positions(frame, config.dim)
        for number, keys in enumerate(kept):
            p = f"transformer.layers.{number}."
            weight, bias = w[p + "self_attn.in_proj_weight"].copy(), w[p + "self_attn.in_proj_bias"].copy()
            weight[: config.dim] *= scale
            bias[: config.dim] *= scale
            query, key, value = np.split(linear(x, weight, bias), 3)
            keys.append((key, value))
            attended = attention(query, keys, max(0, len(keys) - 1 - config.past_context), config.heads, width)
            summed = linear(attended, w[p + "self_attn.out_proj.weight"], w[p + "self_attn.out_proj.bias"], x)
            x = norm(summed, w[p + "norm1.weight"], w[p + "norm1.bias"])
            hidden = gelu(linear(x, w[p + "linear1.weight"], w[p + "linear1.bias"]))
            x = norm(linear(hidden, w[p + "linear2.weight"], w[p + "linear2.bias"], x), w[p + "norm2.weight"], w[p + "norm2.bias"])
        found.append([linear(x, w[f"linears.{k}.weight"], w[f"linears.{k}.bias"]) for k in range(len(codes))])
        before = codes[:, frame] + 1
    return np.array(found)


def attention(query, keys, oldest, heads, width):
    out = np.empty_like(query)
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        scores = np.zeros(len(keys) - oldest, F)
        for d in range(width):
            scores = fma(query[own][d], np.array([key[own][d] for key, _ in keys[oldest:]]), scores)
        weights = exponential(scores - scores.max())
        # lanes go by the number of a key in its segment
        total = lanes(np.concatenate([np.zeros(oldest % 16, F), weights]))
        summed = np.zeros(width, F)
        for weight, (_, value) in zip(weights, keys[oldest:], strict=True):
            summed = fma(weight, value[own], summed)
        out[own] = summed / total
    return out
