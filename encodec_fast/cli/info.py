"""`encodec-fast info`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import encodec_fast
from encodec_fast.cli.app import OK, command
from encodec_fast.cli.terminal import say

# What each extra brings, by the name of its package
EXTRAS = {
    "fsspec": "URLs",
    "matplotlib": "pictures of the report",
    "onnx": "graphs for other runtimes",
    "ray": "the Ray engine",
    "triton": "kernels for GPUs",
}
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@command("[bold]Example[/bold]\n\nencodec-fast info")
def info() -> int:
    """Show versions, devices, what is installed, and which backends can run here, or why not."""
    lines = dict(_lines())
    width = max(map(len, lines))
    for name, value in lines.items():
        say(f"{name:<{width}}  {value}")
    return OK


def _lines() -> Iterator[tuple[str, str]]:
    import numpy
    import pyarrow
    import soundfile
    import torch
    import transformers
    from huggingface_hub import constants

    from encodec_fast.audio.ffmpeg import ffmpeg_program
    from encodec_fast.backends.registry import backend_report, get_backend
    from encodec_fast.serving.request import ENVIRONMENT_VARIABLE

    yield "encodec_fast", f"{encodec_fast.__version__}, in {Path(__file__).parents[1]}"
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "torch", torch.__version__
    yield "transformers", transformers.__version__
    yield "numpy", numpy.__version__
    yield "pyarrow", pyarrow.__version__
    yield "soundfile", f"{soundfile.__version__}, libsndfile {soundfile.__libsndfile_version__}"
    yield "CPU", f"{_cpu_name()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    yield "GPU", ", ".join(gpus) or "none that torch can use"
    for name, available, reason in backend_report():
        text = "yes" if available else f"no: {reason}"
        if available and len(precisions := get_backend(name).precisions) > 1:
            text += f", in precision {', '.join(known.value for known in precisions)}"
        yield f"backend {name}", text
    yield "CPU engine", _engine()
    yield ENVIRONMENT_VARIABLE, os.environ.get(ENVIRONMENT_VARIABLE) or "not set (auto)"
    yield "ffmpeg", _ffmpeg(ffmpeg_program())
    for package, purpose in EXTRAS.items():
        yield f"extra {package}", f"{_version(package) or 'not installed'} ({purpose})"
    yield "models from the hub", constants.HF_HUB_CACHE
    offline = [name for name in _OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]
    yield "offline", f"yes, by {' and '.join(offline)}" if offline else "no"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    """Returns what the processor is called, as far as the system tells."""
    try:
        named = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    except OSError:
        named = []
    return named[0] if named else platform.processor() or platform.machine()


def _engine() -> str:
    """Returns the engine's file, when it was built, and the instruction set that it takes here."""
    from encodec_fast.kernels.cpu import library

    path = library.SOURCES / library.LIBRARY
    try:
        tiers = library.tiers(library.load())
    except (library.LibraryMissing, library.EngineError) as error:
        return f"none: {error}"
    forced = library.requested_tier()
    tier = f"{forced.decode()} (by {library.ISA_VARIABLE})" if forced else tiers[0]
    built = time.strftime("%Y-%m-%d", time.localtime(path.stat().st_mtime))
    return f"instruction set {tier}, of {', '.join(tiers)}; built {built}, interface {library.ABI}, {path}"


def _ffmpeg(program: str | None) -> str:
    if program is None:
        return "not installed: AAC, M4A, WebM and what else libsndfile doesn't read is refused; pip install 'encodec-fast[ffmpeg]'"
    try:
        said = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=10).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        said = []
    return f"{said[2] if len(said) > 2 else 'of unknown version'}, {program}"
