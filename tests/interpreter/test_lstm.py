"""The LSTM wavefront against torch.nn.LSTM."""

import pytest
import torch
from bounds import PRODUCTS, assert_close, assert_same_bits

from encodec_fast.kernels.lstm import lstm_ref, lstm_triton
from encodec_fast.kernels.lstm_weights import lstm_weights
from encodec_fast.kernels.rows import arrange_triton
from encodec_fast.kernels.tiles import Tile, lookup, lstm_tile


class Case:
    def __init__(self, width, layers, batch):
        self.lstm = torch.nn.LSTM(width, width, layers).requires_grad_(False)
        groups = self.lstm.all_weights
        self.matrices = [group[0] for group in groups], [group[1] for group in groups]
        self.bias = torch.stack([b_ih + b_hh for _, _, b_ih, b_hh in groups])
        self.hidden, self.cell = torch.zeros(layers, 2, batch, width), torch.zeros(layers, batch, width)

    def run(self, x, time=0, mode="split", tile=None, **options):
        """x, y: [B, T, H]."""
        rows = (tile or lstm_tile(x.device, x.shape[2], mode)).block_n
        weights = lstm_weights(*self.matrices, self.bias, mode, rows)
        return lstm_triton(arrange_triton(x), weights, self.hidden, self.cell, time, tile=tile, **options).values

    def reference(self, x):
        return lstm_ref(x, *self.matrices, self.bias, self.hidden, self.cell)

    def reset(self):
        self.hidden.zero_()
        self.cell.zero_()

    def exact(self, x):
        return self.lstm.double()(x.double().transpose(0, 1))[0].transpose(0, 1) + x.double()


@pytest.mark.parametrize("mode", ["ieee", "split", "tf32"])
@pytest.mark.parametrize(("width", "layers"), [(24, 1), (24, 2), (24, 3), (70, 2), (128, 2)])
def test_every_length_matches_torch(width, layers, mode, sliced):
    bound = PRODUCTS[mode]
    for batch, length in ((1, 1), (3, 2), (1, 9), (17, 3)):
        case = Case(width, layers, batch)
        x = sliced(torch.randn(batch, length, width))
        y = case.run(x, mode=mode)
        hidden, cell = case.hidden.clone(), case.cell.clone()
        case.reset()
        assert_close(case.reference(x), y, bound)
        assert_close(hidden, case.hidden, bound)
        assert_close(cell, case.cell, bound)
        assert_close(y, case.exact(x), bound)


def test_the_width_of_the_real_models_matches_torch():
    case = Case(512, 2, 1)
    x = torch.randn(1, 5, 512)
    elu = torch.nn.functional.elu
    assert_close(case.run(x, activation="elu"), elu(case.exact(x)))


@pytest.mark.parametrize("mode", ["ieee", "split"])
def test_production_tile_matches_torch(mode):
    case = Case(70, 2, 3)
    x = torch.randn(3, 4, 70)
    assert_close(case.run(x, mode=mode, tile=lookup("lstm", "sm_90", mode, 0)), case.exact(x))


@pytest.mark.parametrize("pieces", [(1, 1, 7), (4, 5), (3, 0, 6)])
def test_pieces_of_time_give_the_bits_of_the_whole(pieces):
    case = Case(24, 2, 2)
    x = torch.randn(2, 9, 24)
    whole = case.run(x)
    case.reset()
    done, parts = 0, []
    for piece in pieces:
        parts.append(case.run(x[:, done : done + piece], time=done))
        done += piece
    assert_same_bits(torch.cat(parts, 1), whole)


def test_a_clip_has_the_same_bits_alone_and_in_a_batch():
    tile = Tile(16, 32, 1, 1)
    case = Case(24, 2, 18)
    x = torch.randn(18, 4, 24)
    together = case.run(x, tile=tile)
    for clip, length in ((0, 4), (17, 2)):
        case.hidden, case.cell = torch.zeros(2, 2, 1, 24), torch.zeros(2, 1, 24)
        assert_same_bits(case.run(x[clip : clip + 1, :length], tile=tile), together[clip : clip + 1, :length])


def test_large_gates_saturate_without_nan():
    case = Case(16, 1, 1)
    x = 1e4 * torch.randn(1, 3, 16)
    assert_close(case.run(x), case.exact(x))


def test_weights_of_any_size_keep_their_bits():
    """Halves have five bits of exponent; the scale makes up for it."""
    x = torch.randn(1, 3, 24)
    for scale in (1e-6, 1e-3, 30.0):
        case = Case(24, 2, 1)
        for parameter in case.lstm.parameters():
            parameter.mul_(scale)
        case.bias = torch.stack([b_ih + b_hh for _, _, b_ih, b_hh in case.lstm.all_weights])
        assert_close(case.run(x), case.exact(x))


def test_states_too_small_for_halves_keep_their_bits():
    case = Case(24, 1, 1)
    state = 1e-4 * torch.randn(1, 24)
    case.hidden[0, 1] = state
    zeros = torch.zeros(1, 1, 24)
    y = case.run(zeros)
    lstm = case.lstm.double()
    assert_close(y, lstm(zeros.double(), (state.double()[None], zeros.double()))[0], 1e-6)
