"""The launch that carries all steps of the recurrence, run on the CPU from its compiled code."""

import re

import pytest
import torch
from emulator import emulate, ptx

from encodec_fast.kernels import lstm, lstm_persistent
from encodec_fast.kernels.lstm_weights import lstm_weights
from encodec_fast.kernels.modes import Activation
from encodec_fast.kernels.rows import Rows, empty_rows
from projection import compile_ahead

ARCH = "sm_90"
BOUNDS = {"split": 2e-6, "tf32": 4e-3}


class Case:
    """A stack of layers, a batch and its state."""

    def __init__(self, width, layers, batch, length, precision="split"):
        torch.manual_seed(20220)
        self.lstm = torch.nn.LSTM(width, width, layers).requires_grad_(False)
        groups = self.lstm.all_weights
        self.w_ih, self.w_hh = [group[0] for group in groups], [group[1] for group in groups]
        self.bias = torch.stack([b_ih + b_hh for _, _, b_ih, b_hh in groups])
        self.weights = lstm_weights(self.w_ih, self.w_hh, self.bias, precision, 64)
        self.x = torch.randn(batch, length, width)
        self.gates = (self.x @ self.w_ih[0].T + self.bias[0]).transpose(0, 1)
        # not zero: states carried from before are read too
        self.hidden, self.cell = torch.rand(layers, 2, batch, width) - 0.5, torch.randn(layers, batch, width)

    def run(self, clips=slice(None), steps=slice(None), state=None, time=0, order=None):
        """y [B, T, H] and the state afterwards, of some clips and steps."""
        x = self.x[clips, steps]
        hidden, cell = (self.hidden[:, :, clips].clone(), self.cell[:, clips].clone()) if state is None else state
        rows, y = empty_rows(x, *x.shape, lead=2), empty_rows(x, *x.shape, lead=3, tail=1)
        rows.buffer.fill_(float("nan"))
        y.buffer.fill_(float("nan"))
        rows.values.copy_(x)
        gates = self.gates[steps, clips].contiguous()
        (launch,) = compile_ahead.record_launches(
            lambda: lstm_persistent.persistent_lstm(gates, rows, self.weights, hidden, cell, y, time, Activation.ELU), ARCH
        )
        emulate(launch, ARCH, order)
        assert y.buffer[:, :3].isnan().all() and y.buffer[:, -1].isnan().all()
        return y.values, (hidden, cell)

    def reference(self):
        hidden, cell = self.hidden.double().clone(), self.cell.double().clone()
        weights = [[w.double() for w in group] for group in (self.w_ih, self.w_hh)]
        y = lstm.lstm_ref(self.x.double(), *weights, self.bias.double(), hidden, cell, activation=Activation.ELU)
        return y, (hidden, cell)


def assert_near(actual, expected, bound):
    assert (actual.double() - expected).abs().max() <= bound * expected.abs().max()


@pytest.mark.parametrize(
    "width, layers, batch, precision",
    [(128, 2, 3, "split"), (128, 3, 18, "split"), (64, 1, 1, "split"), (256, 2, 2, "tf32"), (128, 2, 20, "tf32")],
)
def test_steps_match_the_reference(width, layers, batch, precision):
    case = Case(width, layers, batch, 3, precision)
    y, (hidden, cell) = case.run()
    expected, (expected_hidden, expected_cell) = case.reference()
    assert_near(y, expected, BOUNDS[precision])
    # the slot of the last step
    assert_near(hidden[:, 0], expected_hidden[:, 0], BOUNDS[precision])
    assert_near(cell, expected_cell, BOUNDS[precision])


def test_the_width_of_the_real_models_matches_the_reference():
    case = Case(512, 2, 1, 2)
    y, _ = case.run()
    assert_near(y, case.reference()[0], BOUNDS["split"])


def test_a_clip_has_the_same_bits_alone_in_a_batch_and_in_pieces():
    case = Case(128, 2, 17, 3)
    together, (hidden, cell) = case.run()
    for clip in (0, 16):
        clips = slice(clip, clip + 1)
        alone, state = case.run(clips)
        assert torch.equal(alone, together[clips])
        first, state = case.run(clips, slice(0, 2))
        rest, state = case.run(clips, slice(2, 3), state, time=2)
        assert torch.equal(torch.cat((first, rest), 1), alone)
        assert torch.equal(state[0][:, 0], hidden[:, 0, clips]) and torch.equal(state[1], cell[:, clips])


def test_the_order_in_which_blocks_come_does_not_matter():
    case = Case(128, 3, 2, 4)
    blocks = case.weights.blocks.shape[0]
    expected, _ = case.run()
    for order in (list(reversed(range(blocks))), torch.randperm(blocks).tolist()):
        assert torch.equal(case.run(order=order)[0], expected)


def test_a_clip_that_is_not_a_number_leaves_the_others_alone():
    case = Case(128, 2, 3, 3)
    expected, _ = case.run()
    case.gates[1, 1, 5] = float("nan")
    y, _ = case.run()
    assert torch.equal(y[[0, 2]], expected[[0, 2]])
    assert torch.equal(y[1, 0], expected[1, 0]) and y[1, 2].isnan().any()


@pytest.mark.parametrize("precision", BOUNDS)
def test_memory_is_ordered_around_the_barrier_of_the_grid(precision):
    """By the instructions: what the emulator can't show."""
    case = Case(128, 2, 3, 2, precision)
    gates, y = case.gates.contiguous(), empty_rows(case.x, *case.x.shape)
    (launch,) = compile_ahead.record_launches(
        lambda: lstm_persistent.persistent_lstm(gates, Rows(case.x, 0, 2), case.weights, case.hidden, case.cell, y, 0, Activation.ELU), ARCH
    )
    program = ptx.parse(compile_ahead.compiled(launch, ARCH).asm["ptx"])
    code = program.instructions
    signals = [index for index, one in enumerate(code) if one.stem == "red"]
    looks = [index for index, one in enumerate(code) if ".acquire" in one.opcode]
    assert len(signals) == 4 and len(looks) == 2
    for index in signals:
        # the stores of all threads, a barrier of the block, and the first thread tells
        assert code[index].opcode.startswith("red.release.gpu")
        before = [one.stem for one in code[:index] if one.stem in ("st", "bar")]
        assert before[-1] == "bar"
    for index in looks:
        assert code[index].opcode.startswith("ld.acquire.gpu")
        behind = [one.stem for one in code[index + 1 :] if one.stem in ("ld", "st", "bar") and "param" not in one.opcode]
        assert behind[0] == "bar"
    # states, which other blocks make, come in runs of 16 bytes and past the first-level cache
    runs = [one.opcode for first, last in program.loops() for one in code[first : last + 1] if re.match(r"ld\.global.*\.v4", one.opcode)]
    assert runs and all(".cg" in opcode for opcode in runs)


def test_a_block_that_never_comes_is_an_error_and_no_endless_wait(monkeypatch):
    case = Case(128, 2, 1, 2)
    blocks = case.weights.blocks.shape[0]
    monkeypatch.setattr(lstm_persistent, "MOST_LOOKS", 50)
    with pytest.raises(AssertionError, match="a trap"):
        case.run(order=list(range(blocks - 1)))
