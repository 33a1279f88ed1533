"""Offsets past 2^31 elements, from strides that are themselves less."""

import pytest
import torch
from bounds import assert_same_bits
from encodec_fast.kernels.causal_conv1d import causal_conv1d_triton
from encodec_fast.kernels.lstm import lstm_triton
from encodec_fast.kernels.residual_block import residual_block_triton
from encodec_fast.kernels.rvq_encode import rvq_encode_triton, search_tables
from encodec_fast.kernels.transposed_conv1d import phase_weight, transposed_conv1d_triton

FAR = 2**30
CHANNELS = 3


def conv(x):
    return causal_conv1d_triton(x, torch.ones(2, CHANNELS, 3), None, pad_left=2, elu=True, precision="ieee")


def residual(x):
    shapes = ((2, CHANNELS, 3), (2,), (CHANNELS, 2, 1), (CHANNELS,))
    return residual_block_triton(x, *(torch.ones(shape) for shape in shapes), None, None, pad_left=2, precision="ieee")


def transposed(x):
    weight = phase_weight(torch.ones(CHANNELS, 2, 4), 2)
    return transposed_conv1d_triton(x, weight, None, kernel=4, stride=2, trim_left=0, trim_right=2, precision="ieee")


def lstm(x):
    weight, state = torch.ones(1, 2 * CHANNELS, 4 * CHANNELS), torch.zeros(1, 2, x.shape[0], CHANNELS)
    return lstm_triton(x, torch.ones(4 * CHANNELS, CHANNELS), weight, torch.zeros(1, 12), state, state[:, 0].clone(), precision="ieee")


def search(x):
    torch.manual_seed(0)
    return rvq_encode_triton(x, search_tables(torch.randn(2, 16, CHANNELS)), 2, precision="ieee")


@pytest.mark.parametrize("kernel", [conv, residual, transposed, lstm, search], ids=lambda kernel: kernel.__name__)
@pytest.mark.parametrize("along", ["clips", "channels"])
def test_elements_far_apart_are_found(kernel, along, memory):
    # 4 GiB of address space, of which a few pages are ever touched
    block = memory.empty(2 * FAR + 64, dtype=torch.float16)
    shape, strides = ((3, CHANNELS, 12), (FAR, 12, 1)) if along == "clips" else ((1, CHANNELS, 12), (1, FAR, 1))
    x = block.as_strided(shape, strides)
    near = torch.randn(shape).half()
    x.copy_(near)
    assert_same_bits(kernel(x), kernel(near))
