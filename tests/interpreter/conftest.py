"""The interpreter lane: every kernel on CPU tensors, in a process that has TRITON_INTERPRET=1 from its start.

    TRITON_INTERPRET=1 pytest tests/interpreter

Triton reads the variable when a kernel is decorated, so a process is of this lane or not; elsewhere the folder is not collected.
Two things are stricter here than in Triton's own interpreter:
- the product is one chain of FMAs per element (chain.c; needs a C compiler), as on a GPU's scalar units, or in tf32 what a
  matrix unit makes of it at its worst: operands and sums truncated. numpy's product adds in an order that depends on where
  in the matrix an element stands, and Triton's interpreter ignores the precision;
- new memory holds NaN, and bands around it show a write out of bounds.
"""

import ctypes
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import triton

from encodec_fast.backends.triton_backend import interpreter_problem

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]

elif problem := interpreter_problem(triton.__version__, np.__version__):
    pytest.exit(f"{problem}.", returncode=2)

else:
    # the quicker interpreter is a tool of bench/
    sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
    from bench_lib.interpreted import quicken

    quicken()

# products here are single-threaded, and the references are small
torch.set_num_threads(1)

# without a care for floating-point exceptions, of which nobody reads a flag, compilers take several columns at once
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fno-trapping-math", "-shared", "-fPIC")
GUARD = 64
POISON_INTEGER = -777_777


def _tf32(x):
    return (x.view(np.int32) & np.int32(-0x2000)).view(np.float32)


@functools.cache
def _library():
    """chain.c, compiled for this machine: numpy has no fused multiply-add."""
    with tempfile.TemporaryDirectory() as folder:
        made = os.path.join(folder, "chain.so")
        source = os.path.join(os.path.dirname(__file__), "chain.c")
        subprocess.run([os.environ.get("CC", "cc"), *FLAGS, "-o", made, source], check=True)
        return ctypes.CDLL(made)


def _product(name, a, b, acc):
    if a.ndim == 3:
        return np.stack([_product(name, *one) for one in zip(a, b, acc, strict=True)])
    assert a.shape[1] % 4 == 0
    addresses = (ctypes.c_void_p(x.ctypes.data) for x in (a, b, acc))
    getattr(_library(), name)(*addresses, *map(ctypes.c_long, (*a.shape, b.shape[1])))
    return acc


def _dot(builder, a, b, d, input_precision, max_num_imprecise_acc):
    from triton._C.libtriton import ir
    from triton.runtime.interpreter import TensorHandle

    left, right = (np.ascontiguousarray(x.data, dtype=np.float32) for x in (a, b))
    acc = np.array(d.data, dtype=np.float32, order="C")
    if input_precision == ir.INPUT_PRECISION.IEEE:
        return TensorHandle(_product("chain", left, right, acc), d.dtype.scalar)
    if input_precision == ir.INPUT_PRECISION.TF32x3:
        acc = _product("truncated", _tf32(left - _tf32(left)), _tf32(right), acc)
        acc = _product("truncated", _tf32(left), _tf32(right - _tf32(right)), acc)
    return TensorHandle(_product("truncated", _tf32(left), _tf32(right), acc), d.dtype.scalar)


def _masked_load(builder, ptrs, mask, other, cache_policy, is_volatile):
    from triton.runtime.interpreter import TensorHandle, _get_np_dtype

    dtype = ptrs.get_element_ty()
    addresses, inside = np.ascontiguousarray(ptrs.data), np.ascontiguousarray(mask.data)
    loaded = np.zeros(addresses.shape, _get_np_dtype(dtype)) if other is None else np.array(other.data, _get_np_dtype(dtype), order="C")
    assert addresses.shape == inside.shape == loaded.shape
    where = (ctypes.c_void_p(x.ctypes.data) for x in (addresses, inside, loaded))
    _library().load(*where, *map(ctypes.c_long, (loaded.size, loaded.itemsize)))
    return TensorHandle(loaded, dtype)


class Memory:
    """Hands out poisoned tensors between guard bands and knows the bands of all of them."""

    def __init__(self):
        self.blocks = []
        self.empty = torch.empty

    def allocate(self, shape, dtype):
        poison = float("nan") if dtype.is_floating_point else POISON_INTEGER
        count = int(np.prod(shape, dtype=np.int64))
        block = self.empty(count + 2 * GUARD, dtype=dtype).fill_(poison)
        if type(block) is torch.Tensor:  # not the stand-in that torch.compile traces with
            self.blocks.append((block, count))
        return block[GUARD : GUARD + count].view(tuple(shape))

    def check(self):
        for block, count in self.blocks:
            bands = torch.cat((block[:GUARD], block[GUARD + count :]))
            intact = bands.isnan().all() if block.dtype.is_floating_point else (bands == POISON_INTEGER).all()
            assert intact, f"a kernel wrote outside its output of {count} elements"


def _shape(size):
    return size[0] if len(size) == 1 and not isinstance(size[0], int) else size


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    """Poison and guard bands for everything that a launcher allocates."""
    from triton.runtime import interpreter

    memory = Memory()
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", _dot)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", _masked_load)
    new_empty, empty = torch.Tensor.new_empty, torch.empty

    def poisoned_new_empty(self, *size, dtype=None, **options):
        if options or type(self) is not torch.Tensor or self.device.type != "cpu":
            return new_empty(self, *size, dtype=dtype, **options)
        return memory.allocate(_shape(size), dtype or self.dtype)

    def poisoned_empty(*size, dtype=None, device=None, **options):
        if options or torch.device(device or "cpu").type != "cpu":
            return empty(*size, dtype=dtype, device=device, **options)
        return memory.allocate(_shape(size), dtype or torch.get_default_dtype())

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned_new_empty)
    monkeypatch.setattr(torch, "empty", poisoned_empty)
    torch.manual_seed(20220)
    yield memory
    monkeypatch.undo()
    memory.check()


@pytest.fixture
def sliced(memory):
    """Copies a tensor into a larger one of NaN, so that it is not contiguous and a read beside it shows."""

    def copy(x):
        shape = (x.shape[0], *(side + 3 for side in x.shape[1:]))
        around = memory.allocate(shape, x.dtype)
        view = around[(slice(None), *(slice(1, 1 + side) for side in x.shape[1:]))]
        return view.copy_(x)

    return copy
