"""Codes as sequences of tokens: what each pattern looks like, and that each is inverted exactly."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from encodec_fast.patterns import TokenPattern

KINDS = ("flatten", "coarse_first", "delay", "parallel")
CODES = torch.tensor([[0, 1, 2], [3, 2, 1]])


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (TokenPattern("flatten", 2, 4, offsets=False), [0, 3, 1, 2, 2, 1]),
        (TokenPattern("flatten", 2, 4), [0, 7, 1, 6, 2, 5]),
        (TokenPattern("coarse_first", 2, 4, offsets=False), [0, 1, 2, 3, 2, 1]),
        (TokenPattern("coarse_first", 2, 4), [0, 1, 2, 7, 6, 5]),
        (TokenPattern("delay", 2, 4), [[0, 1, 2, 4], [4, 3, 2, 1]]),
        (TokenPattern("delay", 2, 4, offsets=True), [[0, 1, 2, 8], [8, 7, 6, 5]]),
        (TokenPattern("parallel", 2, 4), [[0, 1, 2], [3, 2, 1]]),
        (TokenPattern("parallel", 2, 4, offsets=True), [[0, 1, 2], [7, 6, 5]]),
    ],
    ids=str,
)
def test_each_pattern_is_what_its_paper_draws(pattern, expected):
    assert pattern.encode(CODES).tolist() == expected
    assert pattern.encode(CODES).shape[-1] == pattern.length(3)


PATTERNS = st.builds(
    TokenPattern, st.sampled_from(KINDS), st.integers(1, 9), st.sampled_from([1, 2, 1024, 65536]), st.sampled_from([None, True, False])
)


@given(PATTERNS, st.integers(0, 12), st.lists(st.integers(0, 3), max_size=2), st.integers(0, 2**31))
def test_every_pattern_is_inverted_exactly(pattern, frames, batch, seed):
    shape = (*batch, pattern.levels, frames)
    codes = torch.randint(0, pattern.codebook_size, shape, generator=torch.Generator().manual_seed(seed))
    tokens = pattern.encode(codes)
    assert tokens.shape == (*batch, *(() if pattern.is_one_stream else (pattern.levels,)), pattern.length(frames))
    assert not tokens.numel() or (0 <= int(tokens.min()) and int(tokens.max()) < pattern.vocabulary_size)
    assert torch.equal(pattern.decode(tokens), codes)
    if pattern.has_offsets:
        levels = torch.arange(pattern.levels)[:, None].expand(shape[-2:])
        assert set((tokens[tokens != pattern.pad_token] // pattern.codebook_size).tolist()) <= set(levels.flatten().tolist())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.uint16])
def test_codes_of_any_integer_dtype_are_taken(dtype):
    pattern = TokenPattern("flatten", 2, 4)
    assert torch.equal(pattern.encode(CODES.to(dtype)), pattern.encode(CODES))
    assert torch.equal(pattern.decode(pattern.encode(CODES).to(dtype)), CODES)


def test_the_input_is_not_changed_and_not_shared():
    pattern = TokenPattern("parallel", 2, 4)
    codes = CODES.clone()
    pattern.encode(codes).zero_()
    assert torch.equal(codes, CODES)
    tokens = CODES.clone()
    pattern.decode(tokens).zero_()
    assert torch.equal(tokens, CODES)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: TokenPattern("late", 2), ValueError, "kind is 'late'; allowed are flatten, coarse_first, delay, parallel"),
        (lambda: TokenPattern("delay", 0), ValueError, "1 or more"),
        (lambda: TokenPattern("delay", 3, 4).encode(CODES), ValueError, r"shape \[2, 3\]; \[..., 3, F\] is needed"),
        (lambda: TokenPattern("delay", 2, 3).encode(CODES), ValueError, "entry 3 of its codebook; the entries are 0 ... 2"),
        (lambda: TokenPattern("delay", 2, 4).encode(CODES - 1), ValueError, "entry -1"),
        (lambda: TokenPattern("delay", 2, 4).encode(CODES.float()), TypeError, "codes are torch.float32"),
        (lambda: TokenPattern("delay", 2, 4).decode(CODES.float()), TypeError, "tokens are torch.float32"),
        (lambda: TokenPattern("flatten", 2, 4).decode(torch.tensor([0, 7, 1])), ValueError, "3 tokens are no whole number of frames"),
        (lambda: TokenPattern("flatten", 2, 4).decode(torch.tensor([4, 0])), ValueError, "entry 4|entry -4"),
        (lambda: TokenPattern("delay", 2, 4).decode(torch.tensor([[4, 1], [4, 3]])), ValueError, "entry 4"),
        (lambda: TokenPattern("delay", 4, 4).decode(torch.zeros(4, 2, dtype=torch.long)), ValueError, "2 steps are fewer than the 3"),
        (lambda: TokenPattern("parallel", 4, 4).decode(torch.zeros(3, 2, dtype=torch.long)), ValueError, r"\[..., 4, steps\]"),
    ],
)
def test_what_is_no_code_or_token_is_an_error_that_says_why(call, error, words):
    with pytest.raises(error, match=words):
        call()
