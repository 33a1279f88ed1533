"""The native kernels take no more instructions than stored: a slower kernel shows on a busy machine, too."""

import importlib
import json
import sys

import pytest

from support.venvs import ROOT

sys.path.insert(0, str(ROOT / "bench" / "tools"))
instructions = importlib.import_module("instructions")
sys.path.remove(str(ROOT / "bench" / "tools"))


def test_no_kernel_takes_more_instructions_than_stored():
    reason = instructions.missing()
    if reason:
        pytest.skip(reason)
    stored = json.loads(instructions.INSTRUCTIONS.read_text())
    if instructions.key() not in stored:
        pytest.skip(f"no counts are stored for {instructions.key()}: python bench/tools/instructions.py --store")
    risen = instructions.risen(instructions.count(), stored[instructions.key()])
    assert not risen, "\n".join(risen)


def test_a_rise_above_the_limit_is_named():
    stored = {"lstm": 1000, "search": 1000}
    assert instructions.risen({"lstm": 1029, "search": 500}, stored) == []
    assert instructions.risen({"lstm": 1031, "search": 1000}, stored)[0].startswith("lstm: 1031 instructions, +3.1%")
    assert instructions.risen({"lstm": 1000}, stored) == ["search: no longer counted"]
