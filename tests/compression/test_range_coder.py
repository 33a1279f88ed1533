"""The range coder against exact arithmetic, with the frequencies that make it hard."""

import math
import random
from fractions import Fraction

import pytest

from encodec_fast.compression.range_coder import MOST_TOTAL, RangeDecoder, RangeEncoder


def drawn_symbols(seed, count=400):
    """(start, frequency, total) of symbols: even, certain, nearly impossible, of the greatest total."""
    rng = random.Random(seed)
    symbols = []
    for _ in range(count):
        total = rng.choice([1, 2, 3, 1024, (1 << 22) * 1024 + 1024, MOST_TOTAL, rng.randrange(1, MOST_TOTAL)])
        frequency = rng.choice([1, total, rng.randrange(1, total + 1)])
        symbols.append((rng.choice([0, total - frequency, rng.randrange(total - frequency + 1)]), frequency, total))
    return symbols


def encoded(symbols):
    encoder = RangeEncoder()
    for symbol in symbols:
        encoder.encode(*symbol)
    return encoder.finish()


@pytest.mark.parametrize("seed", range(30))
def test_symbols_come_back(seed):
    symbols = drawn_symbols(seed)
    decoder = RangeDecoder(encoded(symbols))
    for start, frequency, total in symbols:
        assert start <= decoder.target(total) < start + frequency
        decoder.take(start, frequency)
    assert decoder.at_end


def exact_interval(symbols):
    """The interval of the coder as fractions of 1, by the rule of its steps without any carry or byte."""
    low, width, unit = Fraction(0), (1 << 64) - 1, Fraction(1, 1 << 64)
    for start, frequency, total in symbols:
        step = width // total
        low += step * start * unit
        width = step * frequency
        while width < 1 << 56:
            width <<= 8
            unit /= 256
    return low, width * unit


@pytest.mark.parametrize("seed", range(10))
def test_the_bytes_are_the_shortest_number_in_the_exact_interval(seed):
    symbols = drawn_symbols(seed, 60)
    data = encoded(symbols)
    low, width = exact_interval(symbols)
    value = Fraction(int.from_bytes(data, "big"), 256 ** len(data))
    assert low <= value < low + width
    shorter = 256 ** (len(data) - 1) if data else 1
    assert not data or math.ceil(low * shorter) >= (low + width) * shorter


@pytest.mark.parametrize("seed", range(10))
def test_the_interval_is_as_wide_as_the_symbols_are_likely(seed):
    symbols = drawn_symbols(seed)
    bits = sum(math.log2(total) - math.log2(frequency) for _, frequency, total in symbols)
    _, width = exact_interval(symbols)
    spent = math.log2(width.denominator) - math.log2(width.numerator)
    # the range is 2**56 or more and the total 2**40 or less, so that a step loses 2**-16 of itself at most
    assert bits - 1e-6 <= spent <= bits + len(symbols) * 2**-15.5


def test_a_carry_walks_back_over_full_bytes():
    # the first symbols bring low near the end of a byte's range, the last one lifts it over
    symbols = [(254, 1, 256)] + [(255, 1, 256)] * 20 + [(MOST_TOTAL - 1, 1, MOST_TOTAL)] * 3
    found = []
    for count in range(len(symbols) + 1):
        decoder = RangeDecoder(encoded(symbols[:count]))
        for start, frequency, total in symbols[:count]:
            assert start <= decoder.target(total) < start + frequency
            decoder.take(start, frequency)
        found.append(len(encoded(symbols[:count])))
    assert found == sorted(found)


def test_nothing_takes_no_byte():
    assert encoded([]) == b"" == encoded([(0, 5, 5)] * 1000)


def test_bytes_too_many_are_told():
    symbols = drawn_symbols(1, 20)
    decoder = RangeDecoder(encoded(symbols) + bytes(9))
    for start, frequency, total in symbols:
        decoder.target(total)
        decoder.take(start, frequency)
    assert not decoder.at_end
