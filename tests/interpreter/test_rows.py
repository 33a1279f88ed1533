"""Signals with channels last: what is applied to them, and the padding beside each clip."""

import pytest
import torch
from bounds import assert_close, assert_same_bits
from ops import among_longer_ones

from encodec_fast.kernels.rows import Norm, Padding, arrange_ref, arrange_triton, empty_rows, pad_rows_triton

PADDINGS = [
    Padding(),
    Padding(6, 0, "reflect"),
    Padding(2, 0, "reflect", 4),
    Padding(3, 3, "reflect", 2),
    Padding(1, 1, "constant"),
    Padding(4, 2, "replicate", 3),
]


def clips_of(rows, padding, lengths):
    """Each clip's rows with its padding."""
    for clip, length in enumerate(lengths):
        steps = padding.left + length + padding.right + -length % padding.stride
        yield rows.first(-padding.left)[clip, :steps]


@pytest.mark.parametrize("channels", [1, 2, 20])
@pytest.mark.parametrize("padding", PADDINGS, ids=str)
def test_every_length_is_padded_as_transformers_pads(padding, channels, sliced):
    for length in (1, 2, 3, 7, 8, 130):
        x = sliced(torch.randn(2, length, channels))
        rows = arrange_triton(x, padding)
        for ours, expected in zip(clips_of(rows, padding, [length] * 2), arrange_ref(x, padding), strict=True):
            assert_same_bits(ours, expected)


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
def test_padding_in_place_is_that_of_arranging(padding):
    lengths = [1, 3, 40]
    x, own = among_longer_ones(lengths, 5, 40)
    rows = empty_rows(x, 3, 40, 5, padding.left + 2, padding.tail + 1)
    rows.values[:] = x
    pad_rows_triton(rows, padding, own)
    arranged = arrange_triton(x, padding, lengths=own)
    for ours, expected in zip(clips_of(rows, padding, lengths), clips_of(arranged, padding, lengths), strict=True):
        assert_same_bits(ours, expected)


@pytest.mark.parametrize("activation", ["none", "elu"])
@pytest.mark.parametrize("other", ["none", "plain", "normed"])
def test_norms_sum_and_elu_come_before_the_padding(other, activation, sliced):
    padding = Padding(1, 1, "constant", 2)
    for length in (1, 33):
        x, second = sliced(torch.randn(2, length, 11)), sliced(torch.randn(2, length, 11))
        norms = [Norm(torch.rand(2, 2), torch.randn(11), torch.randn(11)) for _ in range(2)]
        more = {"none": {}, "plain": dict(other=second), "normed": dict(other=second, other_norm=norms[1])}[other]
        rows = arrange_triton(x, padding, norm=norms[0], activation=activation, **more)
        for ours, expected in zip(
            clips_of(rows, padding, [length] * 2), arrange_ref(x, padding, norm=norms[0], activation=activation, **more), strict=True
        ):
            assert_close(ours, expected)


def test_more_room_than_the_padding_takes_stays_free():
    rows = arrange_triton(torch.randn(2, 9, 3), Padding(2, 0, "reflect"), lead=5, tail=4)
    assert rows.lead == 5 and rows.tail == 4
    assert rows.buffer[:, :3].isnan().all() and rows.buffer[:, 14:].isnan().all() and not rows.values.isnan().any()


def test_of_a_signal_that_began_before_only_the_right_end_is_padded():
    padding = Padding(3, 0, "reflect", 4)
    rows = empty_rows(torch.empty(0), 1, 9, 2, 3, 3)
    rows.values[:] = torch.randn(1, 9, 2)
    # step 0 of the buffer is step 5 of the signal, whose 14 steps leave two of a stride
    pad_rows_triton(rows, padding, start=5)
    assert rows.buffer[:, :3].isnan().all()
    assert_same_bits(rows.buffer[:, 12:14], rows.values[:, [7, 6]])
