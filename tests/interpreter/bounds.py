"""The tolerances of this lane: one place, a reason per number."""

import torch

# Largest error allowed, as a share of the reference's largest value. A chain of n float32 FMAs errs by about 6e-8 sqrt(n)
# of the sum of magnitudes; the longest here has 4096 terms, and the reference itself errs as much as the kernel.
FLOAT32 = 4e-6
# By precision of the products. tf32: operands cut to 10 bits, 2 * 2^-10 of a term, less in the sum. split: the low halves of both operands
# are kept, their product is not, and sums of 32 terms are truncated.
PRODUCTS = {"ieee": FLOAT32, "split": FLOAT32, "tf32": 4e-3}
# Output rounded to 10 bits.
FLOAT16 = 2e-3
# Whole networks: root mean square error against float64, as a multiple of that of transformers' own float32 run: what the package promises
# (encodec_fast/verify.py). Measured with matrix units at their worst (chain.c), over two seeds and sounds: encoder 0.94 and 0.95,
# decoder 0.47 and 1.05; with products in float32 0.94 and 0.98, 0.47 and 0.75.
NETWORK_RATIO = 1.5
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
