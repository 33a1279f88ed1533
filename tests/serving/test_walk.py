"""How far a call goes through the package: `python tests/serving/test_walk.py` prints every function on the way of an encode."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script

import encodec_fast
from encodec_fast import kernels
from support.engine import engine
from support.models import audio_like, pair, small_config

# Of one warm call. They were 256 calls in 14 files when each of encode, encode_batch, long audio and streams had a way of its own.
MOST_CALLS = {"encode": 55, "encode_batch": 65, "decode": 75}
MOST_FILES = {"encode": 8, "encode_batch": 9, "decode": 9}


def walked(call: Callable[[], object]) -> Counter[tuple[str, str]]:
    """(file, function) of the package to how often a warm call enters it."""
    homes = {Path(encodec_fast.__file__).parent: "encodec_fast", Path(kernels.__file__).parent: "kernels"}
    files: dict[str, str | None] = {}
    entered: Counter[tuple[str, str]] = Counter()

    def note(frame, event, argument):
        if event != "call":
            return
        name = frame.f_code.co_filename
        if name not in files:
            home = next((home for home in homes if Path(name).is_relative_to(home)), None)
            files[name] = None if home is None else f"{homes[home]}/{Path(name).relative_to(home).as_posix()}"
        if files[name] is not None:
            entered[files[name], frame.f_code.co_name] += 1

    call()
    call()
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(before)
    return entered


def calls() -> dict[str, Callable[[], object]]:
    model = pair(small_config())[1]
    audio = audio_like(1, 1, 2400, 3)
    codes = model.encode(audio).audio_codes
    return {
        "encode": lambda: model.encode(audio),
        "encode_batch": lambda: model.encode_batch([audio[0]]),
        "decode": lambda: model.decode(codes, [None]),
    }


@pytest.mark.parametrize("name", MOST_CALLS)
@torch.no_grad()
def test_a_warm_call_enters_few_functions_in_few_files(name):
    engine()
    entered = walked(calls()[name])
    files = {file for file, _ in entered}
    assert entered.total() <= MOST_CALLS[name], entered
    assert len(files) <= MOST_FILES[name], files


if __name__ == "__main__":
    with torch.no_grad():
        for name, call in calls().items():
            entered = walked(call)
            print(f"{name}: {entered.total()} calls, {len(entered)} functions, {len({file for file, _ in entered})} files")
            for (file, function), count in entered.items():
                print(f"{count:6}  {file}  {function}")
