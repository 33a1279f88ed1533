"""The ahead-of-time lane: every kernel compiled for GPUs that are not there.

    pytest tests/aot

Minutes of compiling: collected only where the command names this folder. Not under TRITON_INTERPRET=1, which replaces the compiler.
"""

import os
import sys
from pathlib import Path

# the model of what a kernel costs is a tool of bench/
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))


def pytest_ignore_collect(collection_path, config):
    here = Path(__file__).parent
    named = [Path(config.invocation_params.dir, argument.split("::")[0]).resolve() for argument in config.args]
    asked = any(path.is_relative_to(here) for path in named)
    return None if asked and os.environ.get("TRITON_INTERPRET") != "1" else True
