"""The compiled engine under test, or the reason why a test can't have it."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from encodec_fast.backends.cpu_backend import CpuBackend, CpuStageProgram
from encodec_fast.kernels.cpu import library as native
from encodec_fast.plan import Network


def engine():
    """The loaded library.  Skips where it was not compiled, except in CI, where that is a failure."""
    try:
        return native.load()
    except native.LibraryMissing as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))


def prepared(network: Network) -> CpuStageProgram:
    """All stages of the network on the cpu backend."""
    engine()
    return CpuBackend().prepare(network.stages)


def pushed(program: CpuStageProgram, x: Tensor, cuts: list[int]) -> Tensor:
    """What pushing x [B, C, T] in pieces that end at `cuts` gives, one after the other."""
    batch = x.shape[0]
    states = [program.open() for _ in range(batch)]
    ends = [0, *sorted(cuts), x.shape[-1]]
    pieces = [
        torch.stack(program.push(x[..., a:b].unbind(0), states, [i + 2 == len(ends)] * batch)) for i, (a, b) in enumerate(pairwise(ends))
    ]
    return torch.cat(pieces, -1)
