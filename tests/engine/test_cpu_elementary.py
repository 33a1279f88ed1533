"""The engine's own exp, elu, sigmoid, tanh and gelu over all float32 exponents."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from encodec_fast.kernels.cpu import library as native
from support.engine import engine

# kernels/cpu/simd/elementary.inl states these, in units in the last place.
BOUNDS = {"exp": 1.0, "elu": 1.0, "sigmoid": 2.5, "tanh": 2.6}
# And this of gelu, by its test's own measure: 23.6 at -3.3, by the rounding of a large exponent.
GELU_BOUND = 24.0
EXACT = {
    "exp": np.exp,
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
}


def evaluate(function: str, x: np.ndarray, tier: str) -> np.ndarray:
    library, out = engine(), np.empty_like(x)
    status = library.encodec_map(tier.encode(), native.FUNCTIONS[function], x.ctypes.data, out.ctypes.data, x.size)
    native.check(library, status)
    return out


def samples(function: str) -> np.ndarray:
    """Values of every exponent and sign, and many where the functions bend."""
    generator = np.random.default_rng(0)
    exponents = np.arange(255, dtype=np.uint32).repeat(4000) << 23
    magnitudes = (exponents + generator.integers(0, 1 << 23, exponents.size, dtype=np.uint32)).view(np.float32)
    bends = generator.uniform(-20, 20, 400_000).astype(np.float32)
    x = np.concatenate([magnitudes, -magnitudes, bends, bends / 20])
    return x[x <= 0] if function == "exp" else x


@pytest.mark.parametrize("function", BOUNDS)
def test_error_stays_within_the_stated_bound(function):
    x = samples(function)
    with np.errstate(over="ignore", under="ignore"):
        exact = EXACT[function](x.astype(np.longdouble))
    unit = np.spacing(np.abs(exact).astype(np.float32)).astype(np.longdouble)
    error = np.abs(evaluate(function, x, native.tiers(engine())[0]) - exact) / unit
    assert error.max() <= BOUNDS[function], f"{error.max():.2f} at {x[error.argmax()]!r}"


def test_gelu_errs_by_little_of_what_a_sum_of_such_values_rounds():
    """In units of 2^-24 of the value, and of a thousandth: far below zero it comes to nothing."""
    x = samples("gelu")
    x = x[np.abs(x) < 1e30]
    exact = x * (0.5 * torch.special.erfc(torch.from_numpy(-x.astype(np.float64) / np.sqrt(2))).numpy())
    error = np.abs(evaluate("gelu", x, native.tiers(engine())[0]) - exact) / (2.0**-24 * np.maximum(np.abs(exact), 1e-3))
    assert error.max() <= GELU_BOUND, f"{error.max():.2f} at {x[error.argmax()]!r}"


@pytest.mark.parametrize("function", [*BOUNDS, "gelu"])
def test_tiers_agree(function):
    x = samples(function)[::7]
    first, *others = native.tiers(engine())
    for tier in others:
        assert evaluate(function, x, tier).tobytes() == evaluate(function, x, first).tobytes(), tier


@pytest.mark.parametrize(
    ("function", "expected"),
    [("elu", [np.nan, np.inf, -1, 0, 0]), ("sigmoid", [np.nan, 1, 0, 0.5, 0.5]), ("tanh", [np.nan, 1, -1, 0, -0.0])],
)
def test_special_values(function, expected):
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], dtype=np.float32)
    for tier in native.tiers(engine()):
        np.testing.assert_array_equal(evaluate(function, x, tier), np.array(expected, dtype=np.float32))
