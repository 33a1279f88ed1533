"""The Triton kernels compiled for GPUs that are not there: `tests/aot`, in a process of its own."""

from support.lanes import needs_triton, run_lane

pytestmark = needs_triton


def test_ahead_of_time_lane():
    run_lane("aot", TRITON_INTERPRET="0")
