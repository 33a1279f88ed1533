"""Coders of segments: codes come back, sizes are those of the frequencies, and damage stays inside the codebook."""

import hashlib
import math

import numpy as np
import pytest

from encodec_fast.compression import adaptive
from encodec_fast.compression.adaptive import AdaptiveCoder
from encodec_fast.compression.coders import NO_FINGERPRINT, RawCoder, StaticCoder
from encodec_fast.compression.segments import CompressedFileError
from encodec_fast.compression.tables import FRAME_BEFORE, LEVEL_ABOVE, fit_tables, frequencies_of, read_tables

WEIGHTS = "ab" * 32


def codes_like(seed, levels, frames, entries=1024):
    """[levels, frames] with frequent codes, stretches that repeat, and levels that depend on the one above."""
    generator = np.random.default_rng(seed)
    codes = np.minimum(generator.geometric(min(1.0, 20 / entries), (levels, frames)) - 1, entries - 1)
    for level in range(levels):
        for frame in range(1, frames):
            if generator.random() < 0.3:
                codes[level, frame] = codes[level, frame - 1]
            if level and generator.random() < 0.2:
                codes[level, frame] = codes[level - 1, frame] * 7 % entries
    return codes


FITTED_TO = [codes_like(seed, 4, 500) for seed in range(3)]
TABLES = fit_tables(FITTED_TO, 1024, WEIGHTS)
ORDER_1 = fit_tables(FITTED_TO, 1024, WEIGHTS, order=1)
CODERS = {
    "raw": RawCoder(1024),
    "static": StaticCoder(TABLES),
    "static, order 1": StaticCoder(ORDER_1),
    "adaptive": AdaptiveCoder(1024),
    "adaptive with tables": AdaptiveCoder(1024, TABLES),
    "adaptive with tables of order 1": AdaptiveCoder(1024, ORDER_1),
}
by_coder = pytest.mark.parametrize("coder", CODERS.values(), ids=CODERS)


@by_coder
def test_codes_come_back(coder):
    segments = [codes_like(7, 4, frames) for frames in (0, 1, 2, 7, 150)]
    decoded = coder.decode(coder.encode(segments), [each.shape[1] for each in segments], 4)
    assert all(np.array_equal(found, truth) and found.dtype == np.int64 for found, truth in zip(decoded, segments, strict=True))


@by_coder
def test_the_bytes_of_a_segment_depend_on_it_alone(coder):
    segments = [codes_like(seed, 2, 20 + seed) for seed in range(4)]
    assert coder.encode(segments) == [coder.encode([each])[0] for each in segments]


@by_coder
def test_any_bytes_are_codes_of_the_codebook_or_a_named_error(coder):
    generator = np.random.default_rng(3)
    for size in (0, 1, 5, 25, 26, 200):
        try:
            (codes,) = coder.decode([generator.bytes(size)], [10], 2)
        except CompressedFileError:
            continue
        assert codes.shape == (2, 10) and 0 <= codes.min() <= codes.max() < 1024


@by_coder
def test_bytes_behind_the_codes_are_an_error(coder):
    (data,) = coder.encode([codes_like(1, 4, 30)])
    with pytest.raises(CompressedFileError):
        coder.decode([data + bytes(10)], [30], 4)


@pytest.mark.parametrize("entries", [1, 2, 3, 16, 1000, 1024])
def test_codebooks_of_any_size_come_back(entries):
    codes = codes_like(2, 3, 40, entries)
    for coder in (RawCoder(entries), AdaptiveCoder(entries)):
        assert np.array_equal(coder.decode(coder.encode([codes]), [40], 3)[0], codes)


def test_a_raw_code_that_the_codebook_lacks_is_named():
    with pytest.raises(CompressedFileError, match=r"a code is 15; the codebook has 0 \.\.\. 9"):
        RawCoder(10).decode([b"\x0f"], [1], 1)


def test_static_takes_the_cross_entropy_of_its_tables():
    codes = codes_like(11, 4, 400)
    p = TABLES.frequencies / TABLES.frequencies.sum(axis=1, keepdims=True)
    bits = -sum(math.log2(p[level, code]) for level, row in enumerate(codes) for code in row.tolist())
    assert bits / 8 <= len(CODERS["static"].encode([codes])[0]) <= bits / 8 + 1.2


def test_adaptive_learns_what_repeats():
    period = np.tile(np.random.default_rng(0).integers(0, 1024, (4, 25)), 12)
    noise = np.random.default_rng(0).integers(0, 1024, (4, 300))
    raw = len(CODERS["raw"].encode([noise])[0])
    assert len(CODERS["adaptive"].encode([period])[0]) < 0.3 * raw
    # and what does not costs little
    assert len(CODERS["adaptive"].encode([noise])[0]) < 1.02 * raw


def test_tables_help_where_the_audio_is_like_theirs():
    like_them = [codes_like(20, 4, 75)]
    assert len(CODERS["adaptive with tables"].encode(like_them)[0]) < 0.95 * len(CODERS["adaptive"].encode(like_them)[0])


def test_adaptive_stays_within_the_range_coders_total(monkeypatch):
    totals = []
    encode = adaptive.RangeEncoder.encode
    monkeypatch.setattr(adaptive.RangeEncoder, "encode", lambda self, *symbol: (totals.append(symbol[2]), encode(self, *symbol)))
    for name in ("adaptive", "adaptive with tables", "adaptive with tables of order 1"):
        CODERS[name].encode([codes_like(5, 4, 200), np.zeros((2, 300), int)])
    AdaptiveCoder(1).encode([np.zeros((2, 300), int)])
    assert totals and max(totals) < 1 << 40


def test_the_bits_of_adaptive_are_those_that_files_have():
    # files that are written already must be read: these digests never change
    codes = np.stack([(np.arange(300) ** 2 * (level + 1) // 17) % 1024 for level in range(4)])
    digests = [hashlib.sha256(CODERS[name].encode([codes])[0]).hexdigest()[:16] for name in ("raw", "adaptive")]
    assert digests == ["66f584e54b128f5f", "532e36aa0aadeece"]


def test_tables_come_back_from_their_file(tmp_path):
    (tmp_path / "tables").write_bytes(TABLES.to_bytes())
    found = read_tables(tmp_path / "tables")
    assert np.array_equal(found.steps, TABLES.steps) and found.weights_sha256 == WEIGHTS
    assert found.fingerprint == TABLES.fingerprint == hashlib.sha256(TABLES.to_bytes()).digest()


def test_damaged_tables_are_named():
    data = TABLES.to_bytes()
    for damaged in (b"", data[:10], data[:-1], data + b"\0", b"ECDC" + data[4:], data[:4] + b"\x09" + data[5:]):
        with pytest.raises(CompressedFileError, match="tables"):
            read_tables(damaged)


def test_tables_are_near_the_frequencies_they_are_fitted_to():
    codes = codes_like(1, 2, 4000)
    tables = fit_tables([codes], 1024, WEIGHTS)
    counts = np.bincount(codes[0], minlength=1024)
    common = counts > 20
    found, wanted = tables.frequencies[0][common], counts[common]
    ratio = found / found.sum() / (wanted / wanted.sum())
    assert 0.96 < ratio.min() <= ratio.max() < 1.04
    assert np.array_equal(frequencies_of(np.array([0, 15, 16, 255])), [16, 31, 32, 31 << 15])


def test_tables_of_too_few_levels_or_other_codebooks_are_named():
    assert CODERS["raw"].fingerprint == NO_FINGERPRINT != CODERS["static"].fingerprint
    with pytest.raises(CompressedFileError, match="5 levels, the tables 4"):
        CODERS["static"].encode([codes_like(1, 5, 3)])
    with pytest.raises(ValueError, match="tables have 1024 entries"):
        AdaptiveCoder(16, TABLES)
    with pytest.raises(ValueError, match="no frames"):
        fit_tables([], 1024, WEIGHTS)
    with pytest.raises(ValueError, match="outside 0"):
        fit_tables([np.array([[1024]])], 1024, WEIGHTS)


def behind(context, frames=3000):
    """[2, frames] of 64 entries, of which level 1 follows what stands in its context in seven of eight frames."""
    generator = np.random.default_rng(frames)
    codes = generator.integers(0, 64, (2, frames))
    for frame in range(1, frames):
        if generator.random() < 7 / 8:
            codes[1, frame] = (codes[0, frame] if context == "above" else codes[1, frame - 1]) // 8 * 8 + generator.integers(8)
    return codes


@pytest.mark.parametrize("context, kind", [("above", LEVEL_ABOVE), ("before", FRAME_BEFORE)])
def test_order_1_finds_the_context_that_tells_most(context, kind):
    fitted_to = [behind(context, 20_000)]
    tables = fit_tables(fitted_to, 64, WEIGHTS, order=1)
    assert tables.contexts[0] is None and tables.contexts[1].kind == kind
    codes = behind(context, 2000)
    coders = [StaticCoder(fit_tables(fitted_to, 64, WEIGHTS)), StaticCoder(tables), AdaptiveCoder(64), AdaptiveCoder(64, tables)]
    order_0, order_1, adaptive_alone, adaptive_behind = (len(coder.encode([codes])[0]) for coder in coders)
    # 12 bits a frame; of order 1 those of the eight codes that are likely: 3, and 0.9 for whether it is one of them
    assert order_1 < 0.86 * order_0 and adaptive_behind < 0.95 * adaptive_alone


def test_order_1_takes_the_cross_entropy_of_its_tables():
    tables = fit_tables([behind("above")], 64, WEIGHTS, order=1)
    codes, context = behind("above", 500), tables.contexts[1]
    alone, classes = tables.frequencies, frequencies_of(context.steps)
    p = [alone[0][codes[0]] / alone[0].sum(), classes[context.classes[codes[0]], codes[1]] / classes.sum(axis=1)[context.classes[codes[0]]]]
    bits = -np.log2(p).sum()
    assert bits / 8 <= len(StaticCoder(tables).encode([codes])[0]) <= bits / 8 + 1.2


def test_codes_that_no_context_tells_keep_order_0():
    tables = fit_tables([np.random.default_rng(0).integers(0, 64, (3, 500))], 64, WEIGHTS, order=1)
    assert tables.contexts == (None, None, None)
    # a first frame and level has no context
    assert len(StaticCoder(ORDER_1).encode([np.zeros((4, 1), int)])[0]) < 8


def test_tables_of_order_1_come_back_from_their_file():
    found = read_tables(ORDER_1.to_bytes())
    assert found.to_bytes() == ORDER_1.to_bytes() and found.fingerprint == ORDER_1.fingerprint != TABLES.fingerprint
    codes = codes_like(9, 4, 50)
    assert StaticCoder(found).encode([codes]) == CODERS["static, order 1"].encode([codes])
    assert any(context is not None for context in found.contexts)


def test_tables_of_order_1_that_are_damaged_are_named_or_are_tables():
    tables = fit_tables([behind("above", 200)], 64, WEIGHTS, order=1)
    data, codes = tables.to_bytes(), behind("above", 20)
    for length in range(len(data)):
        with pytest.raises(CompressedFileError, match="tables"):
            read_tables(data[:length])
    refused = 0
    for place in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[place] ^= 0x55
        try:
            found = read_tables(bytes(damaged))
        except CompressedFileError:
            refused += 1
            continue
        assert found.fingerprint != tables.fingerprint
        coder = StaticCoder(found)
        assert np.array_equal(coder.decode(coder.encode([codes]), [20], 2)[0], codes)
    # the head, both levels' contexts, and classes that are not there
    assert refused > 20


def test_orders_that_there_are_none_of_are_refused():
    with pytest.raises(ValueError, match="order is 2; 0 and 1"):
        fit_tables(FITTED_TO, 1024, WEIGHTS, order=2)
    with pytest.raises(ValueError, match="codebook_size is 65536; order 1 takes 4096"):
        fit_tables(FITTED_TO, 1 << 16, WEIGHTS, order=1)
