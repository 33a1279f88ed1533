"""The Triton kernels in the interpreter: `tests/interpreter`, in a process of its own."""

from support.lanes import needs_triton, run_lane

pytestmark = needs_triton


def test_interpreter_lane():
    run_lane("interpreter", TRITON_INTERPRET="1")
