"""rvq_encode and rvq_decode: codes against the reference and against each other, sums against transformers."""

import pytest
import torch
from bounds import assert_same_bits
from transformers import EncodecConfig
from transformers.models.encodec.modeling_encodec import EncodecResidualVectorQuantizer

from encodec_fast.kernels.modes import SearchMode
from encodec_fast.kernels.rvq_decode import rvq_decode_ref, rvq_decode_triton
from encodec_fast.kernels.rvq_encode import rvq_encode_ref, rvq_encode_triton, search_tables
from encodec_fast.kernels.tiles import Tile, lookup

# Two entries this close in float64, as a share of |r|^2, may be told apart either way: 2^-24 times the 128 terms of a sum.
MARGIN = 1e-5


def codebooks(levels, entries, dim):
    """Entries that shrink from level to level, as those of a trained quantizer do."""
    return torch.randn(levels, entries, dim) * 0.7 ** torch.arange(levels)[:, None, None]


def wrong_codes(codes, x, tables):
    """How many codes are neither the float64 choice nor within MARGIN of it, given the levels before."""
    residual, wrong = x.double().transpose(1, 2), 0
    for level, chosen in enumerate(codes):
        entries = tables.codebooks[level].double()
        distance = torch.cdist(residual, entries).square()
        excess = distance.gather(2, chosen[..., None])[..., 0] - distance.amin(2)
        wrong += int((excess > MARGIN * residual.square().sum(2)).sum())
        residual = residual - entries[chosen]
    return wrong


@pytest.mark.parametrize("mode", SearchMode)
@pytest.mark.parametrize(("entries", "dim"), [(1024, 128), (100, 24), (17, 5)])
def test_codes_are_nearest_for_any_size_and_length(entries, dim, mode, sliced):
    tables = search_tables(codebooks(3, entries, dim))
    for batch, length in ((1, 1), (3, 5), (1, 127), (1, 128), (2, 65)):
        x = sliced(torch.randn(batch, dim, length))
        codes = rvq_encode_triton(x, tables, 3, mode=mode)
        assert codes.shape == (3, batch, length)
        assert wrong_codes(codes, x, tables) == 0


def test_codes_equal_the_reference_on_separated_data(sliced):
    tables = search_tables(codebooks(8, 64, 128))
    x = sliced(torch.randn(2, 128, 40))
    assert_same_bits(rvq_encode_triton(x, tables, 8, mode="ieee"), rvq_encode_ref(x, tables, 8))


@pytest.mark.parametrize("arch", ["sm_90", "gfx942"])
@pytest.mark.parametrize("many", [0, 1])
def test_production_tiles_give_the_codes_of_the_large_tile(arch, many):
    tables = search_tables(codebooks(2, 256, 128))
    x = torch.randn(1, 128, 70)
    for mode in ("ieee", "rerank"):
        tile = lookup("rvq_encode", arch, mode, many)
        assert_same_bits(rvq_encode_triton(x, tables, 2, mode=mode, tile=tile), rvq_encode_triton(x, tables, 2, mode="ieee"))


@pytest.mark.parametrize("mode", SearchMode)
@pytest.mark.parametrize("apart", [3, 200], ids=["in one block", "in two blocks"])
def test_of_equal_entries_the_lowest_index_wins(mode, apart):
    books = codebooks(1, 300, 32)
    books[0, 40 + apart] = books[0, 40]
    x = books[:, 40:41].transpose(1, 2).repeat(1, 1, 9) + 0.01 * torch.randn(1, 32, 9)
    codes = rvq_encode_triton(x, search_tables(books), 1, mode=mode, tile=Tile(16, 128, 1, 1))
    assert (codes == 40).all()


@pytest.mark.parametrize("mode", SearchMode)
def test_codebooks_of_zeros_give_code_zero(mode):
    codes = rvq_encode_triton(torch.randn(1, 16, 5), search_tables(torch.zeros(2, 64, 16)), 2, mode=mode)
    assert (codes == 0).all()


@pytest.mark.parametrize("mode", SearchMode)
def test_a_frame_with_nan_gets_code_zero_and_leaves_its_neighbours_alone(mode):
    tables = search_tables(codebooks(2, 64, 16))
    x = torch.randn(1, 16, 40)
    clean = rvq_encode_triton(x, tables, 2, mode=mode)
    x[0, 3, 7] = float("nan")
    codes = rvq_encode_triton(x, tables, 2, mode=mode)
    assert (codes[:, 0, 7] == 0).all()
    rest = torch.arange(40) != 7
    assert_same_bits(codes[..., rest], clean[..., rest])


def near_ties(entries, dim, gap):
    """Codebook and frames where several entries lie within `gap` of the nearest distance."""
    books = torch.randn(1, entries, dim)
    frames = torch.randn(1, dim, 64)
    # moving an entry along a direction orthogonal to the frame changes its distance by the square of the step
    for frame in range(0, 64, 4):
        base = books[0, frame * 2]
        frames[0, :, frame] = base + 0.3 * torch.randn(dim)
        for twin in (1, 2):
            books[0, frame * 2 + twin] = base + gap * torch.randn(dim)
    return search_tables(books), frames


@pytest.mark.parametrize("slots", [16, 256])
@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-6, 0.0])
def test_rerank_gives_the_codes_of_ieee_on_near_ties(gap, slots):
    tables, x = near_ties(256, 64, gap)
    again = torch.zeros(1, 1, dtype=torch.int32)
    codes = rvq_encode_triton(x, tables, 1, mode="rerank", searched_again=again, tile=Tile(64, slots, 1, 1))
    assert_same_bits(codes, rvq_encode_triton(x, tables, 1, mode="ieee"))
    assert again.item() == 1, "the data was built to need the second search"


def test_rerank_finds_the_nearest_two_in_one_slot():
    """Of entries 3 and 19, which share a slot of 16, the farther one is the second nearest of all."""
    books = torch.randn(1, 64, 16)
    books[0, 19] = books[0, 3] + 1e-3 * torch.randn(16)
    x = books[:, 3:4].transpose(1, 2) + 1e-4 * torch.randn(1, 16, 8)
    for tables, frames in ((search_tables(books), x), (search_tables(books.flip(1)), x)):
        codes = rvq_encode_triton(frames, tables, 1, mode="rerank", tile=Tile(16, 16, 1, 1))
        assert_same_bits(codes, rvq_encode_triton(frames, tables, 1, mode="ieee"))


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e-4, 1e4, 1e15, 1e30])
def test_rerank_gives_the_codes_of_ieee_at_any_size(size):
    books = size * codebooks(2, 64, 16)
    x = size * torch.randn(1, 16, 40)
    x[0, :, 3] = 0
    tables = search_tables(books)
    assert_same_bits(rvq_encode_triton(x, tables, 2, mode="rerank"), rvq_encode_triton(x, tables, 2, mode="ieee"))


def test_rerank_gives_the_codes_of_ieee_where_float32_ends():
    """Sums of products next to 2^128: one order of summation overflows where another does not."""
    signs = torch.randn(2, 512).sign().double()
    frame, aside = signs[0] * (1 + 0.2 * torch.rand(512)), signs[1] * (1 + 0.1 * torch.rand(512))
    frame *= (1.5 * 2.0**127) ** 0.5 / frame.norm()
    aside -= frame * (aside @ frame) / (frame @ frame)
    aside *= (0.3 * 2.0**127) ** 0.5 / aside.norm()
    books = 2.0**40 * torch.randn(1, 64, 512)
    books[0, 10], books[0, 20] = frame / 1.5 + aside, 0.99 * frame / 1.5
    tables, tile = search_tables(books), Tile(64, 64, 1, 1)
    x = torch.stack([(frame * (1 + step * 2.0**-27)).float() for step in range(-1600, 1600)], 1)[None]
    codes = rvq_encode_triton(x, tables, 1, mode="rerank", tile=tile)
    assert_same_bits(codes, rvq_encode_triton(x, tables, 1, mode="ieee", tile=tile))


def unscaled(tables):
    """The rounded entries, float64."""
    return tables.rounded.double() * tables.bounds[:, 3, None, None].double()


def test_halves_alone_would_choose_otherwise_on_near_ties():
    tables, x = near_ties(256, 64, 1e-4)
    rounded = tables._replace(codebooks=unscaled(tables).float())
    assert not torch.equal(rvq_encode_triton(x, rounded, 1, mode="ieee"), rvq_encode_triton(x, tables, 1, mode="ieee"))


@pytest.mark.parametrize("slots", [64, 1024])
def test_rerank_searches_again_rarely(slots):
    tables = search_tables(codebooks(4, 1024, 128))
    x = torch.randn(1, 128, 512)
    again = torch.zeros(32, 4, dtype=torch.int32)
    tile = Tile(16, slots, 1, 1)
    codes = rvq_encode_triton(x, tables, 4, mode="rerank", searched_again=again, tile=tile)
    assert_same_bits(codes, rvq_encode_triton(x, tables, 4, mode="ieee"))
    assert again.float().mean() < 0.1


def test_bounds_of_the_proof_hold():
    tables = search_tables(codebooks(2, 512, 128))
    x = torch.randn(300, 128) * 2
    power = torch.ldexp(torch.ones(300, 1), 15 - torch.frexp(x.abs().amax(1, keepdim=True)).exponent)
    rounded = (x * power).half().double() / power
    u = 2.0**-24
    for level in range(2):
        max_e, max_error, max_rounded = tables.bounds[level, :3].double()
        exact = tables.squares[level].double() - 2 * x.double() @ tables.codebooks[level].double().T
        scored = tables.squares[level] - 2 * (rounded @ unscaled(tables)[level].T).float()
        bound = 2 * ((x - rounded).norm(dim=1) * max_e + rounded.norm(dim=1) * max_error)
        bound += 2 * (128 * 2.0**-21 + 2 * u) * rounded.norm(dim=1) * max_rounded + 2 * u * max_e**2
        error = (scored.double() - exact).abs().amax(1)
        assert (error <= bound).all()
        # a bound a hundred times too wide would prove nothing and always search again
        assert error.max() > 0.02 * bound.min()


def test_codes_do_not_depend_on_the_batch():
    tables = search_tables(codebooks(3, 100, 24))
    x = torch.randn(3, 24, 37)
    together = rvq_encode_triton(x, tables, 3, mode="ieee", tile=Tile(16, 64, 1, 1))
    for clip in range(3):
        alone = rvq_encode_triton(x[clip : clip + 1], tables, 3, mode="ieee", tile=Tile(16, 64, 1, 1))
        assert_same_bits(together[:, clip : clip + 1], alone)


def test_wrong_arguments_are_named():
    tables = search_tables(codebooks(2, 64, 16))
    with pytest.raises(ValueError, match=r"x must be \[B, 16, F\]"):
        rvq_encode_triton(torch.randn(1, 15, 5), tables, 2, mode="ieee")
    with pytest.raises(ValueError, match="num_quantizers must be between 1 and the 2 codebooks, got 3"):
        rvq_encode_triton(torch.randn(1, 16, 5), tables, 3, mode="ieee")
    with pytest.raises(ValueError, match="mode must be one of"):
        rvq_encode_triton(torch.randn(1, 16, 5), tables, 2, mode="tf32")


@pytest.mark.parametrize("levels", [1, 8, 32])
def test_decode_is_transformers_sum_bit_for_bit(levels, sliced):
    config = EncodecConfig()
    quantizer = EncodecResidualVectorQuantizer(config)
    books = codebooks(32, 1024, 128)
    for layer, book in zip(quantizer.layers, books, strict=True):
        layer.codebook.embed.copy_(book)
    codes = sliced(torch.randint(0, 1024, (levels, 3, 37)))
    y = rvq_decode_triton(codes, books)
    assert_same_bits(y, quantizer.decode(codes))
    assert_same_bits(y, rvq_decode_ref(codes, books))
    assert_same_bits(rvq_decode_triton(codes, books, tile=Tile(16, 0, 4, 2)), y)


def test_decode_clamps_what_lies_outside():
    books = codebooks(2, 64, 16)
    codes = torch.tensor([[[-5, 64, 10**12]], [[0, 63, 1]]])
    assert_same_bits(rvq_decode_triton(codes, books), rvq_decode_ref(codes, books))


def test_decode_of_no_frames_is_empty():
    assert rvq_decode_triton(torch.zeros(2, 1, 0, dtype=torch.int64), codebooks(2, 64, 16)).shape == (1, 16, 0)
