"""Every snippet of the README and of docs/ runs as it is written; links lead somewhere; the README is short."""

import functools
import os
import re
import shutil
import subprocess

import pytest
import soundfile
import torch

from encodec_fast import cli
from encodec_fast.demo import bundled_clips
from support.models import pair, small_config
from support.original_model import OriginalModel
from support.venvs import ROOT, create_clean_venv, run

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Its commands are held by tests/examples
LINKED = [*PAGES, ROOT / "examples" / "README.md", *sorted((ROOT / "docs" / "api").glob("*.md"))]
# Of the developers: their commands are CI's own, and those of bench/
WITH_SNIPPETS = [page for page in PAGES if page.name not in ("CONTRIBUTING.md", "benchmarks.md", "architecture.md", "verification.md")]
# What a page asks its reader to install besides
EXTRAS = {"other-runtimes": "onnx"}
README_WORDS = 1000


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A small model with the rates and bandwidths of the published one."""
    folder = tmp_path_factory.mktemp("model")
    config = small_config(
        sampling_rate=24_000, upsampling_ratios=[8, 5, 4, 2], codebook_size=1024, target_bandwidths=[1.5, 3.0, 6.0, 12.0, 24.0]
    )
    pair(config)[1].save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """The Python of somebody who installed the package, with an extra or "" for none, and nothing else."""

    @functools.cache
    def python_with(extra):
        python = create_clean_venv(tmp_path_factory.mktemp("reader"), extra)
        there = "import importlib.util; print([name for name in ('pytest', 'ray', 'datasets', 'onnx') if importlib.util.find_spec(name)])"
        assert run([python, "-Ic", there], python.parent) == f"{[extra] if extra else []}\n"
        return python

    return python_with


@pytest.fixture
def readers_folder(tmp_path):
    """What a reader has: recordings, and a checkpoint as the authors published it."""
    clips = [path for path in bundled_clips() if path.name.startswith("speech")]
    for folder in ("recordings", "corpus"):
        (tmp_path / folder).mkdir()
        for path in clips[:3]:
            shutil.copy(path, tmp_path / folder)
    samples, rate = soundfile.read(clips[0])
    for name in ("speech.wav", "corpus/song.mp3", "song.mp3", "recordings/one.wav"):
        soundfile.write(tmp_path / name, samples, rate)
    torch.save(OriginalModel(n_filters=4).weights(), tmp_path / "encodec_24khz-d7cc33bc.th")
    return tmp_path


@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=lambda page: page.stem)
@pytest.mark.venv
def test_the_snippets_of_a_page_run_as_they_are_written(page, reader, readers_folder, model_folder):
    if page.stem == "training-on-codes":
        arguments = ["tokenize", readers_folder / "corpus", "--out", readers_folder / "codes", "--model", model_folder]
        assert cli.main([str(each) for each in arguments]) == cli.OK
    command = [reader(EXTRAS.get(page.stem, "")), str(ROOT / "tests" / "support" / "doc_snippets.py"), str(page), str(model_folder)]
    done = subprocess.run(command, cwd=readers_folder, capture_output=True, text=True, env={**os.environ, "PYTHONSAFEPATH": "1"})
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings_that_are_there(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {target}"
        if heading:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w\- ]", "", each).lower().replace(" ", "-") for each in headings], f"{page.name}: {target}"


def test_the_readme_is_read_in_a_few_minutes():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= README_WORDS
