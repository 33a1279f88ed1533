"""The wheel, made from the sdist, and an editable install, each in an environment of its own; and the two commands of the README."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

import encodec_fast
from support.venvs import ROOT, build_distributions, copy_source, create_venv, pip_install, run

_USE = """
import importlib.metadata, importlib.util, json
import torch, transformers
import encodec_fast, encodec_fast.kernels

config = encodec_fast.EncodecConfig(
    num_filters=4, hidden_size=8, codebook_size=16, upsampling_ratios=[4, 2], target_bandwidths=[24.0]
)
torch.manual_seed(0)
theirs = transformers.EncodecModel(config).eval()
for layer in theirs.quantizer.layers:
    layer.codebook.embed.normal_()
ours = encodec_fast.EncodecModel(config).eval()
ours.load_state_dict(theirs.state_dict())
audio = torch.randn(1, 1, 800)
with torch.no_grad():
    codes, expected = ours.encode(audio).audio_codes, theirs.encode(audio).audio_codes
kernels = importlib.util.find_spec("kernels")
print(json.dumps({
    "package": encodec_fast.__file__,
    "kernels": encodec_fast.kernels.__file__,
    "top_level_kernels": kernels and list(kernels.submodule_search_locations),
    "version": importlib.metadata.version("encodec-fast"),
    "same_codes": torch.equal(codes, expected),
    "different_codes": len(codes.unique()),
}))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return copy_source(tmp_path_factory.mktemp("packaging") / "source")


@pytest.fixture(scope="module")
def distributions(source, tmp_path_factory):
    return build_distributions(source, tmp_path_factory.mktemp("dist"))


class Install(NamedTuple):
    python: Path  # interpreter of an environment that holds nothing else
    home: Path  # the folder that the package must come from
    report: dict  # what _USE printed there


@pytest.fixture(scope="module", params=["wheel", "editable"])
def install(request, source, distributions, tmp_path_factory) -> Install:
    folder = tmp_path_factory.mktemp(request.param)
    python = create_venv(folder)
    # the editable one without an engine, for the wheel has one, and CI's own installation is an editable one with it
    what, environment = {"wheel": ([distributions[1]], {}), "editable": (["-e", source], {"CXX": "false"})}[request.param]
    pip_install(python, "--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed", *what, **environment)
    report = json.loads(run([python, "-Ic", _USE], folder))
    return Install(python, source if request.param == "editable" else folder, report)


@pytest.mark.venv
def test_an_install_runs_from_its_own_files(install):
    assert Path(install.report["package"]).is_relative_to(install.home)
    assert Path(install.report["kernels"]).is_relative_to(install.home)
    assert install.report["version"] == encodec_fast.__version__


@pytest.mark.venv
def test_an_install_gives_the_codes_of_transformers(install):
    assert install.report["different_codes"] > 1
    assert install.report["same_codes"]


@pytest.mark.venv
def test_an_install_adds_no_top_level_package_named_kernels(install):
    folders = install.report["top_level_kernels"] or []
    assert not [folder for folder in folders if Path(folder).is_relative_to(install.home)]


@pytest.mark.venv
def test_an_install_has_the_command(install, tmp_path):
    assert "tokenize" in run([install.python.with_name("encodec-fast"), "--help"], tmp_path)


@pytest.mark.venv
def test_the_wheel_holds_every_source_file_and_nothing_else(source, distributions):
    sources = [
        *source.glob("encodec_fast/**/*.py"),
        *source.glob("encodec_fast/assets/*.flac"),
        *source.glob("encodec_fast/assets/*.safetensors"),
        *source.glob("encodec_fast/assets/*.ecdt"),
        *source.glob("encodec_fast/**/*.html"),
    ]
    sources += [source / "encodec_fast/py.typed"]
    kernels = [path for path in source.glob("kernels/**/*") if path.suffix in (".py", ".cpp", ".h", ".inl")]
    expected = {path.relative_to(source).as_posix() for path in sources}
    expected |= {f"encodec_fast/{path.relative_to(source).as_posix()}" for path in kernels}
    if any(map(shutil.which, ("c++", "g++", "clang++"))):
        expected.add("encodec_fast/kernels/cpu/encodec_cpu.so")
    with zipfile.ZipFile(distributions[1]) as wheel:
        assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected


@pytest.mark.venv
def test_the_sdist_holds_what_its_tests_need(source, distributions):
    expected = {path.relative_to(source).as_posix() for path in source.glob("tests/**/*.py")}
    expected |= {path.relative_to(source).as_posix() for path in source.glob("examples/**/*") if path.is_file()}
    expected |= {"mkdocs.yml"} | {path.relative_to(source).as_posix() for path in source.glob("docs/**/*") if path.is_file()}
    expected |= {".ci/run", ".dockerignore", "Dockerfile", "LICENSE", "README.md", "constraints.txt", "pyproject.toml", "setup.py"}
    with tarfile.open(distributions[0]) as sdist:
        assert expected <= {name.partition("/")[2] for name in sdist.getnames()}


def test_a_build_that_fails_leaves_no_engine_of_an_earlier_one(source, tmp_path):
    own = Path(shutil.copytree(source, tmp_path / "source"))
    stale = own / "build" / "lib" / "encodec_fast" / "kernels" / "cpu" / "encodec_cpu.so"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of an earlier version")
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", own / "build" / "lib"]
    done = subprocess.run(command, cwd=own, env={**os.environ, "CXX": "false"}, capture_output=True, text=True)
    assert done.returncode == 0 and "installing without the CPU engine" in done.stdout + done.stderr
    assert not stale.exists() and (own / "build" / "lib" / "encodec_fast" / "kernels" / "cpu" / "library.py").exists()


def built_wheel(source, folder, **environment):
    """(wheel, output) of pip, which shows nothing of what a build that succeeds says."""
    own = Path(shutil.copytree(source, folder / "source"))
    command = [sys.executable, "-Im", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", folder / "dist", own]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (folder / "dist").iterdir()
    return wheel, done.stdout + done.stderr


def test_pip_shows_that_a_wheel_lacks_the_engine(source, tmp_path):
    wheel, output = built_wheel(source, tmp_path, CXX="false")
    assert wheel.name == f"encodec_fast-{encodec_fast.__version__}-0_without_cpu_engine-py3-none-any.whl" and wheel.name in output
    with zipfile.ZipFile(wheel) as found:
        assert not [name for name in found.namelist() if name.endswith(".so")]


def test_a_wheel_for_another_machine_has_its_name_and_its_engine(source, tmp_path):
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None:
        pytest.skip("needs g++-aarch64-linux-gnu")
    wheel, _ = built_wheel(source, tmp_path, CXX=compiler, _PYTHON_HOST_PLATFORM="linux-aarch64")
    assert wheel.name == f"encodec_fast-{encodec_fast.__version__}-py3-none-linux_aarch64.whl"
    with zipfile.ZipFile(wheel) as found:
        engine = found.read("encodec_fast/kernels/cpu/encodec_cpu.so")
    # e_machine of the ELF header is EM_AARCH64, and the tier is there
    assert int.from_bytes(engine[18:20], "little") == 183 and b"neon" in engine


@pytest.mark.parametrize(
    "command",
    [
        "pip install -c constraints.txt . && encodec-fast demo",
        "pip install -c constraints.txt -e '.[dev]' && pytest",
    ],
)
def test_the_readme_holds_the_command(command):
    assert command in (ROOT / "README.md").read_text().splitlines()


def test_ci_runs_the_test_command_of_the_readme():
    assert "pip install -c constraints.txt -e '.[dev]' && pytest" in (ROOT / ".ci/run").read_text()


def test_the_image_is_built_of_files_that_are_there_and_sent():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") and "--from=" not in line for name in line.split()[1:-1]]
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert len(copied) > 5 and all((ROOT / name).exists() for name in copied)
    assert sent == {*copied}


def test_every_direct_dependency_is_pinned():
    project = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]
    # `dev` takes in the other extras by the package's own name
    extras = [lines for extra, lines in project["optional-dependencies"].items() if extra != "bench"]
    names = {re.match(r"[\w-]+", line).group() for lines in (project["dependencies"], *extras) for line in lines} - {"encodec-fast"}
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    # each CUDA build of torch accepts one version of triton only
    assert names - pinned == {"triton"}


def test_pytest_stops_where_the_root_is_on_the_path():
    with pytest.raises(AssertionError, match="run `pytest`, not `python -m pytest`"):
        run([sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/test_imports.py"], ROOT)
