"""What type checkers and editors see: every public name has its type, and a user's script is checked by it."""

import importlib.util
import itertools
import json
import os
import subprocess
import sys

import pytest

import encodec_fast
from support.venvs import copy_package

SCRIPT = """
from pathlib import Path

import numpy as np
import torch
from typing_extensions import assert_type

import encodec_fast
from encodec_fast import CodesDataset, EncodecModel, EncodedClip, FolderStatistics, StreamingEncoder, TokenPattern

model = encodec_fast.load_model(Path("folder"), device="cpu")
assert_type(model, EncodecModel)
clips = model.encode_batch([torch.zeros(1, 100), np.zeros(100)], bandwidth=6.0)
assert_type(clips, list[EncodedClip])
assert_type(clips[0].codes, torch.Tensor)
assert_type(model.decode_batch(clips), list[torch.Tensor])
assert_type(StreamingEncoder(model, 6.0).push(torch.zeros(1, 100)), list[torch.Tensor])
summary = encodec_fast.tokenize("audio", "codes", model=model)
assert_type(summary.clips, int)
for row in encodec_fast.load_codes("codes"):
    assert_type(row.num_samples, int)
assert_type(encodec_fast.folder_statistics("codes"), FolderStatistics)
assert_type(len(CodesDataset("codes", pattern="delay")), int)
assert_type(TokenPattern("flatten", 8).encode(clips[0].codes), torch.Tensor)
with encodec_fast.use_backend("torch"):
    pass
"""
WRONG = """
import encodec_fast

encodec_fast.load_model("demo").encode_batch("a.wav", bandwidth="6")
encodec_fast.tokenise("a", "b")
encodec_fast.CodesDataset("codes", shufle=True)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The package as a wheel lays it out: checkers don't follow the hook of an editable install."""
    return copy_package(tmp_path_factory.mktemp("site"), "*.so", "*.cpp", "*.inl", "*.h", "assets")


def mypy(path, site):
    """(line, message) of each error and note."""
    environment = {**os.environ, "MYPYPATH": str(site)}
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--output", "json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=path.parent, env=environment)
    return [(found["line"], found["message"]) for found in map(json.loads, done.stdout.splitlines()) if found["file"] == path.name]


def pyright(path, site):
    """(line, message) of each error and note."""
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable, str(path)]
    (path.parent / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "standard", "extraPaths": [str(site)]}))
    done = subprocess.run(command, capture_output=True, text=True, cwd=path.parent)
    found = json.loads(done.stdout)["generalDiagnostics"]
    return [(each["range"]["start"]["line"] + 1, each["message"]) for each in found if each["severity"] in ("error", "information")]


NAMES = [name for name in encodec_fast.__all__ if name != "__version__"]
REVEALED = "".join(f"reveal_type(encodec_fast.{name})\n" for name in NAMES)


@pytest.fixture(scope="module", params=[mypy, pyright], ids=lambda checker: checker.__name__)
def found(request, tmp_path_factory, site):
    """What a checker says of the three texts as one script, by its number and their own lines: it takes a minute to begin."""
    if importlib.util.find_spec({"mypy": "mypy", "pyright": "basedpyright"}[request.param.__name__]) is None:
        pytest.skip(f"{request.param.__name__} is not installed")
    path = tmp_path_factory.mktemp("user") / "script.py"
    path.write_text(SCRIPT + WRONG + REVEALED)
    said = request.param(path, site)
    starts = [0, SCRIPT.count("\n"), (SCRIPT + WRONG).count("\n"), (SCRIPT + WRONG + REVEALED).count("\n")]
    return [[(line - start, text) for line, text in said if start < line <= end] for start, end in itertools.pairwise(starts)]


def test_a_user_s_script_is_checked_by_real_types(found):
    assert found[0] == []


def test_mistakes_of_a_script_are_found(found):
    assert {line for line, _ in found[1]} == {4, 5, 6}


def test_no_public_name_is_any(found):
    shown = dict(found[2])
    assert len(shown) == len(NAMES)
    for line, message in shown.items():
        kind = message.partition(" is ")[2].strip(' "') or message
        assert kind not in ("Any", "Unknown", "builtins.object"), f"{NAMES[line - 1]}: {message}"


def test_the_types_are_of_all_public_names():
    source = importlib.util.find_spec("encodec_fast").origin
    with open(source) as file:
        text = file.read()
    for name, home in encodec_fast._HOMES.items():
        assert f"    from {home} import {name} as {name}\n" in text
