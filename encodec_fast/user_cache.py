"""Where what takes long to make, and is the same every time, is kept between processes."""

from __future__ import annotations

import os
from pathlib import Path

# Names another folder than the user's own.
ENVIRONMENT_VARIABLE = "ENCODEC_FAST_CACHE"


def cache_folder() -> Path:
    """Returns the folder, which need not be there: that of the environment, else below the user's cache, as Hugging Face's."""
    if chosen := os.environ.get(ENVIRONMENT_VARIABLE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "encodec_fast"
