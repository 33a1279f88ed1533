"""The tolerances of this lane: one place, a reason per number."""

import torch

# Largest error allowed, as a share of the reference's largest value. A chain of n float32 FMAs errs by about 6e-8 sqrt(n)
# of the sum of magnitudes; the longest here has 4096 terms, and the reference itself errs as much as the kernel.
FLOAT32 = 4e-6
# Products of operands cut to 10 bits: 2 * 2^-10 of a term, less in the sum.
TF32 = 4e-3
# The low halves of both operands are kept, their product is not.
TF32X3 = 6e-6
# Output rounded to 10 bits.
FLOAT16 = 2e-3
# Whole networks: our largest error, as a multiple of that of transformers' own float32 run; both against float64. Measured: encoder
# 0.24 (24 kHz) and 0.49 (48 kHz), decoder 0.4 and 0.93; over four more seeds and sounds 0.36 to 0.52 and 0.33 to 0.79. Sums in blocks
# (kernels/product.py) and an ELU without cancellation round less than the library does; with one chain per sum and exp(x) - 1 the
# same cases gave 0.9 to 2.0.
NETWORK_RATIO = 1.0
# Below this share of |r|^2 between the two nearest entries, float32 embeddings may choose either.
CODE_MARGIN = 1e-4


def assert_close(actual, expected, bound=FLOAT32):
    """Equal up to `bound` of the largest expected value; NaN nowhere."""
    assert actual.shape == expected.shape
    if expected.numel() == 0:
        return
    error = (actual.double() - expected.double()).abs().max()
    limit = bound * max(1e-3, expected.double().abs().max().item())
    assert error <= limit, f"error {error:.3g} is over {limit:.3g}"


def assert_same_bits(actual, expected):
    assert actual.shape == expected.shape
    assert torch.equal(actual, expected), f"{(actual != expected).sum()} of {expected.numel()} elements differ"
