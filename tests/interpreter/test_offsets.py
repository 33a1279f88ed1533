"""Offsets past 2^31 elements, from strides that are themselves less."""

import pytest
import torch
from bounds import assert_same_bits

from encodec_fast.kernels.causal_conv1d import causal_conv1d_triton, conv_matrix
from encodec_fast.kernels.lstm import lstm_triton
from encodec_fast.kernels.lstm_weights import lstm_weights
from encodec_fast.kernels.residual_block import residual_block_triton
from encodec_fast.kernels.rows import Padding, Rows, arrange_triton
from encodec_fast.kernels.rvq_encode import rvq_encode_triton, search_tables
from encodec_fast.kernels.transposed_conv1d import phase_matrix, transposed_conv1d_triton

FAR = 2**30
CHANNELS = 3


def arranged(x):
    return arrange_triton(x.transpose(1, 2), Padding(2, 0, "reflect"), activation="elu").values


def search(x):
    torch.manual_seed(0)
    return rvq_encode_triton(x, search_tables(torch.randn(2, 16, CHANNELS)), 2, mode="ieee")


@pytest.mark.parametrize("kernel", [arranged, search], ids=lambda kernel: kernel.__name__)
@pytest.mark.parametrize("along", ["clips", "channels"])
def test_elements_far_apart_are_found(kernel, along, memory):
    # 4 GiB of address space, of which a few pages are ever touched
    block = memory.empty(2 * FAR + 64, dtype=torch.float16)
    shape, strides = ((3, CHANNELS, 12), (FAR, 12, 1)) if along == "clips" else ((1, CHANNELS, 12), (1, FAR, 1))
    x = block.as_strided(shape, strides)
    near = torch.randn(shape).half()
    x.copy_(near)
    assert_same_bits(kernel(x), kernel(near))


def conv(rows):
    weight = torch.ones(20, CHANNELS, 3).half()
    return causal_conv1d_triton(rows, conv_matrix(weight, "tf32"), None, Padding(2), kernel=3, mode="tf32").values


def thin(rows):
    weight = torch.ones(2, CHANNELS, 3).half()
    return causal_conv1d_triton(rows, conv_matrix(weight, "thin"), None, Padding(2), kernel=3, mode="thin").values


def residual(rows):
    matrices = [conv_matrix(torch.ones(shape).half(), "tf32") for shape in ((2, CHANNELS, 3), (CHANNELS, 2, 1))]
    parameters = matrices[0], None, matrices[1], None, None, None
    return residual_block_triton(rows, *parameters, Padding(2), mode="tf32").values


def transposed(rows):
    matrix = phase_matrix(torch.ones(CHANNELS, 2, 4).half(), 2, "tf32")
    return transposed_conv1d_triton(rows, matrix, None, kernel=4, stride=2, trim_left=0, trim_right=2, mode="tf32").values


def lstm(rows):
    matrix, state = torch.ones(4 * CHANNELS, CHANNELS).half(), torch.zeros(1, 2, rows.buffer.shape[0], CHANNELS)
    weights = lstm_weights([matrix], [matrix], torch.zeros(1, 4 * CHANNELS), "tf32", 64)
    return lstm_triton(rows, weights, state, state[:, 0].clone()).values


@pytest.mark.parametrize("kernel", [conv, thin, residual, transposed, lstm], ids=lambda kernel: kernel.__name__)
def test_clips_far_apart_are_found(kernel, memory):
    block = memory.empty(2 * FAR + 64, dtype=torch.float16)
    near = arrange_triton(torch.randn(3, 12, CHANNELS).half(), Padding(2))
    far = Rows(block.as_strided(near.buffer.shape, (FAR, CHANNELS, 1)), near.lead, near.length)
    far.buffer.copy_(near.buffer)
    assert_same_bits(kernel(far), kernel(near))
