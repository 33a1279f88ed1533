"""The drop-in tests again, with the oldest transformers that is supported.

The newest one needs no lane of its own: constraints.txt pins it, so the environment that runs this file has it.
"""

import hashlib
import importlib.metadata
import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from support.venvs import ROOT, copy_package, create_venv, pip_install, run

# The last versions that transformers 4.37.2 accepts, numpy < 2 among them.
_OLDEST = ("transformers==4.37.2", "huggingface-hub==0.36.2", "numpy==1.26.4", "tokenizers==0.15.2")
_DROP_IN = ("test_model*.py", "test_acceleration*.py", "test_checkpoints*.py")


@pytest.fixture(scope="module")
def oldest(pytestconfig) -> Path:
    """The interpreter of an environment with _OLDEST in front of this one's packages, kept in pytest's cache."""
    if sys.version_info >= (3, 13):
        pytest.skip("numpy 1.26 and tokenizers 0.15, which transformers 4.37.2 needs, have no wheels for Python 3.13")
    content = "\n".join([*_OLDEST, sys.version, sysconfig.get_path("purelib")])
    folder = pytestconfig.cache.mkdir("venvs") / hashlib.sha256(content.encode()).hexdigest()[:16]
    if not folder.exists():
        # Made under a name of its own and renamed, so that an interrupted or a second run never leaves half of one.
        making = folder.with_name(f"{folder.name}.{os.getpid()}")
        try:
            pip_install(create_venv(making), *_OLDEST)
            making.rename(folder)
        except AssertionError as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"pip could not install {', '.join(_OLDEST)}: {str(error).splitlines()[-1]}")
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A folder that holds the package as its wheel installs it, and nothing else."""
    return copy_package(tmp_path_factory.mktemp("compat"))


@pytest.mark.venv
def test_the_drop_in_tests_pass_with_the_oldest_transformers(oldest, package, tmp_path):
    env = {"PYTHONPATH": str(package)}
    script = "import encodec_fast as e, numpy as n, transformers as t; print(t.__version__, n.__version__, e.__file__)"
    here = str(package / "encodec_fast" / "__init__.py")
    assert run([oldest, "-c", script], tmp_path, env).split() == ["4.37.2", "1.26.4", here]

    tests = sorted(path for pattern in _DROP_IN for path in (ROOT / "tests").glob(pattern))
    assert tests
    # From another folder, since `python -m pytest` puts the current one on sys.path.
    options = ["-q", "--maxfail=3", "--tb=short", "-p", "no:cacheprovider", "--rootdir", ROOT, "-c", ROOT / "pyproject.toml"]
    print(run([oldest, "-m", "pytest", *options, *tests], tmp_path, env, seconds=1200))


def test_this_environment_has_the_newest_transformers():
    installed = importlib.metadata.version("transformers")
    newest = re.findall(r"^transformers==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if installed not in newest and not os.environ.get("CI"):
        pytest.skip(f"transformers {' or '.join(newest)} of constraints.txt is missing, {installed} is installed")
    assert installed in newest
