"""Residual search and lookup of the cpu backend against transformers' own quantizer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from encodec_fast.backends.cpu_backend import CpuBackend
from encodec_fast.kernels.cpu import library as native
from encodec_fast.plan import Quantizer
from support.engine import engine

# A float32 distance to 128 dimensions errs by about 128 * 2^-24 of |x|^2: nearer entries may swap.
MARGIN = 1e-5


def program(codebooks: Tensor):
    engine()
    return CpuBackend().prepare_quantizer(Quantizer(codebooks))


def random_codebooks(levels: int, size: int, dim: int) -> Tensor:
    generator = torch.Generator().manual_seed(levels * size + dim)
    return torch.randn(levels, size, dim, generator=generator) * 0.8 ** torch.arange(levels)[:, None, None]


def vectors(batch: int, dim: int, frames: int) -> Tensor:
    return torch.randn(batch, dim, frames, generator=torch.Generator().manual_seed(frames))


def codes_of_transformers(x: Tensor, codebooks: Tensor) -> Tensor:
    """EncodecEuclideanCodebook.quantize over the levels, transformers 5.23: x [B, D, F] -> [K, B, F]."""
    residual, codes = x.transpose(1, 2), []
    for embed in codebooks:
        dist = -(residual.pow(2).sum(-1, keepdim=True) - 2 * residual @ embed.t() + embed.pow(2).sum(-1))
        codes.append(dist.max(-1).indices)
        residual = residual - embed[codes[-1]]
    return torch.stack(codes)


@pytest.mark.parametrize("shape", [(8, 1024, 128), (3, 1000, 37), (2, 5, 3), (1, 1, 1)])
@pytest.mark.parametrize("frames", [1, 47, 48, 49, 211])
def test_every_code_is_the_nearest_entry_to_within_rounding(shape, frames):
    codebooks, x = random_codebooks(*shape), vectors(2, shape[2], frames)
    codes = program(codebooks).encode(x, shape[0])
    assert codes.shape == (shape[0], 2, frames)
    assert codes.dtype == torch.int64
    residual = x.transpose(1, 2)
    for level, embed in enumerate(codebooks):
        distances = torch.cdist(residual.double(), embed.double()) ** 2
        chosen = distances.gather(-1, codes[level][..., None])[..., 0]
        assert ((chosen - distances.amin(-1)) <= MARGIN * residual.double().pow(2).sum(-1)).all()
        residual = residual - embed[codes[level]]


def test_ties_go_to_the_lowest_entry():
    codebooks = random_codebooks(2, 64, 16)
    codebooks[:, 40:] = codebooks[:, 8:32]
    codes = program(codebooks).encode(vectors(1, 16, 500), 2)
    assert codes.max() < 40
    assert (codes >= 8).any()
    assert program(torch.zeros(1, 1024, 8)).encode(vectors(1, 8, 50), 1).max() == 0


@pytest.mark.parametrize("spread", [0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("copies", [3, 25])
def test_entries_that_are_nearly_one_are_told_apart_in_float32(spread, copies, monkeypatch):
    # the search by integers can't; avx512_emulated searches without it
    generator = torch.Generator().manual_seed(copies)
    centres = random_codebooks(1, 40, 128)
    codebooks = centres.repeat_interleave(copies, 1)
    codebooks = codebooks * (1 + spread * torch.randn(codebooks.shape, generator=generator))
    x = centres.repeat(1, 5, 1).transpose(1, 2)
    x = x + 0.1 * torch.randn(x.shape, generator=generator)
    found = {}
    for tier in native.tiers(engine()):
        monkeypatch.setenv(native.ISA_VARIABLE, tier)
        found[tier] = program(codebooks).encode(x, 1)
    assert all(torch.equal(codes, found["baseline"]) for codes in found.values()), found
    assert torch.equal(found["baseline"][0, 0] // copies, torch.arange(200) % 40)
    if spread == 0:
        assert (found["baseline"] % copies == 0).all()


@pytest.mark.parametrize("step", [-2, -1, 1, 2])
def test_roundings_to_integers_that_all_err_one_way_lose_no_entry(step, monkeypatch):
    # scaled by one, nearly all by half a unit: 1.2 times one side's bound between two entries that are nearly as near
    monkeypatch.delenv(native.ISA_VARIABLE, raising=False)
    half = torch.arange(128) < 64
    codebooks = torch.stack([torch.where(half, 2800.499, 0.0), torch.where(half, 0.0, 2799.501)])[None]
    x = torch.where(half, 2800.499, 2800.501).double()
    shift = ((x - codebooks[0, 0]).square().sum() - (x - codebooks[0, 1]).square().sum()) / (2 * (codebooks[0, 0] - codebooks[0, 1])[0])
    x[0] += shift + step
    x = x.float()
    nearest = (codebooks[0].double() - x.double()).square().sum(-1).argmin()
    assert nearest == (step < 0)
    assert program(codebooks).encode(x[None, :, None], 1).item() == nearest


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e25])
def test_wild_values_take_the_entry_that_transformers_takes(value):
    codebooks, x = random_codebooks(3, 32, 8), vectors(2, 8, 60)
    x[0, 3, 10] = value
    x[1, :, 50] = value
    assert torch.equal(program(codebooks).encode(x, 3), codes_of_transformers(x, codebooks))
    codebooks[1, 7, 2] = value
    assert torch.equal(program(codebooks).encode(x, 2), codes_of_transformers(x, codebooks[:2]))


def test_tiers_and_threads_agree(monkeypatch):
    codebooks, x = random_codebooks(4, 1000, 33), vectors(3, 33, 450)
    expected = None
    before = torch.get_num_threads()
    for tier in native.tiers(engine()):
        monkeypatch.setenv(native.ISA_VARIABLE, tier)
        for threads in (1, 3):
            torch.set_num_threads(threads)
            codes = program(codebooks).encode(x, 4)
            torch.set_num_threads(before)
            expected = codes if expected is None else expected
            assert torch.equal(codes, expected), (tier, threads)


def test_fewer_levels_are_the_first_ones():
    quantizer = program(random_codebooks(8, 256, 32))
    x = vectors(2, 32, 70)
    assert torch.equal(quantizer.encode(x, 3), quantizer.encode(x, 8)[:3])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_lookup_has_the_bits_of_transformers(dtype):
    codebooks = random_codebooks(8, 64, 17)
    codes = torch.randint(0, 64, (6, 3, 400), generator=torch.Generator().manual_seed(0), dtype=dtype)
    expected = torch.zeros(())
    for level, rows in enumerate(codes):
        expected = expected + torch.nn.functional.embedding(rows, codebooks[level]).permute(0, 2, 1)
    assert torch.equal(program(codebooks).decode(codes), expected)


@pytest.mark.parametrize("code", [-1, 64])
def test_a_code_outside_the_codebook_is_an_index_error(code):
    codes = torch.zeros(2, 1, 5, dtype=torch.int64)
    codes[1, 0, 4] = code
    with pytest.raises(IndexError, match="index out of range in self"):
        program(random_codebooks(2, 64, 8)).decode(codes)
