"""Virtual environments for the lanes that need one of their own, and the builds that go into them.

Each sees the packages of the running environment behind its own, so that torch is never installed twice.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
_NOT_SOURCE = (".*_cache", ".cache", ".git", ".hypothesis", "*.egg-info", "*.so", "*venv", "__pycache__", "build", "dist", "node_modules")


def run(command: list[str | Path], cwd: Path, extra_env: Mapping[str, str] | None = None, seconds: float = 600) -> str:
    """Standard output of `command`, run in `cwd` without this environment's PYTHON* variables.

    Raises AssertionError with the end of all its output if it exits other than 0.
    """
    __tracebackhide__ = True
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | dict(extra_env or {})
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=seconds)
    output = "\n".join((done.stdout + done.stderr).splitlines()[-80:])
    assert done.returncode == 0, f"exit code {done.returncode} from {' '.join(map(str, command))}\n{output}"
    return done.stdout


def _empty_venv(folder: Path) -> tuple[Path, Path]:
    """The interpreter of a new environment, and the folder of its packages."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    return python, Path(run([python, "-Ic", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip())


def create_venv(folder: Path) -> Path:
    """The interpreter of a new virtual environment in `folder`."""
    python, own = _empty_venv(folder)
    # Folders named in a .pth file come behind the folder it stands in; their own .pth files, those of editable installs
    # among them, are not read.
    parents = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (own / "parent.pth").write_text("\n".join(parents) + "\n")
    return python


def create_clean_venv(folder: Path, extra: str = "") -> Path:
    """The interpreter of an environment that holds this tree as its wheel does, and what pyproject.toml says that it needs; no more.

    extra: one that is installed too.  The packages are links to those of the running environment.
    """
    python, own = _empty_venv(folder)
    for distribution in _needed("encodec-fast", {}, extra).values():
        for name in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (own / name).exists():
                (own / name).symlink_to(distribution.locate_file(name))
    copy_package(own)
    return python


def copy_package(folder: Path, *left_out: str) -> Path:
    """`folder`, which then holds this tree as its wheel does, with the engine that is built here.  left_out: patterns of names."""
    without = shutil.ignore_patterns("__pycache__", *left_out)
    shutil.copytree(ROOT / "encodec_fast", folder / "encodec_fast", ignore=without)
    shutil.copytree(ROOT / "kernels", folder / "encodec_fast" / "kernels", ignore=without)
    return folder


def _needed(name: str, found: dict[str, metadata.Distribution], extra: str = "") -> dict[str, metadata.Distribution]:
    """The distributions that one needs with an extra, or "" for none, by name, and those that they need."""
    for text in metadata.requires(name) or ():
        needed = Requirement(text)
        if needed.name not in found and (needed.marker is None or needed.marker.evaluate({"extra": extra})):
            found[needed.name] = metadata.distribution(needed.name)
            _needed(needed.name, found)
    return found


def pip_install(python: Path, *arguments: str | Path, **environment: str) -> None:
    """Installs into the environment of `python` with the pip of this one, even what this one already has."""
    # of thousands of modules a few are imported; `run` lets imports keep what they compile
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install", "--quiet", "--no-compile"]
    run([*pip, *arguments], python.parents[1], environment)


def copy_source(folder: Path) -> Path:
    """A copy of this tree without anything that builds and tests left in it: stale files would reach the builds."""
    return Path(shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*_NOT_SOURCE)))


def build_distributions(source: Path, folder: Path) -> tuple[Path, Path]:
    """The sdist of `source` and the wheel built from that sdist, both in `folder`."""
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source], source.parent)
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel
