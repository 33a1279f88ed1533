"""The authors' package `encodec` 0.1.1, for tests that compare with it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any

import pytest


def original_module(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    """A module of the package, which needs no torchaudio for what is compared here. Skips where it is not installed."""
    missing = [name for name in ("encodec", "einops") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed: pip install --no-deps encodec einops")
    if importlib.util.find_spec("torchaudio") is None:
        # encodec.utils imports it at the top, for reading files only
        monkeypatch.setitem(sys.modules, "torchaudio", types.ModuleType("torchaudio"))
    return importlib.import_module(f"encodec.{name}")
