"""What the user asked for: a backend and a precision.

    auto       the first backend of the device's preference that can run the stage
    a name     that backend or an error; `use_backend` in code, ENCODEC_FAST_BACKEND for the process
    reference  the Hugging Face modules themselves: for calls that only they can serve (hooks, tracing, autocast, foreign modules)

And in which precision products are computed: `use_precision` for a block, `model.precision` for a model, else parity.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import NamedTuple, TypeVar

from torch import nn

from encodec_fast.backends import registry
from encodec_fast.backends.base import Precision

logger = logging.getLogger("encodec_fast")

ENVIRONMENT_VARIABLE = "ENCODEC_FAST_BACKEND"

REFERENCE = "reference"
T = TypeVar("T")

_requested: ContextVar[str | None] = ContextVar("encodec_fast_backend", default=None)
_precision: ContextVar[Precision | None] = ContextVar("encodec_fast_precision", default=None)
_logged: set[str] = set()


class BackendError(RuntimeError):
    """A backend that was asked for by name can't run the call."""


class Request(NamedTuple):
    """What the user asked for.  strict: a limit of the named backend is an error, not a reason to fall back."""

    backend: str
    strict: bool
    precision: Precision = Precision.PARITY


def use_backend(name: str) -> AbstractContextManager[None]:
    """Runs the block on one backend: "auto", "cpu", "triton", "torch", "host" or "reference".

    Raises ValueError for another name and BackendError where the backend can't run a call: here a name is a demand.
    Holds for the current thread or task only.
    """
    return during(_requested, _known(name, "use_backend"))


def use_precision(name: str) -> AbstractContextManager[None]:
    """Runs the block in "parity", "tf32x3" or "fast" (see `Precision`), whatever the models' own `precision` says.

    A wish, not a demand: a backend that knows parity only computes that, and says so once.
    Raises ValueError for another name. Holds for the current thread or task only.
    """
    return during(_precision, known_precision(name, "use_precision"))


@contextmanager
def during(variable: ContextVar[T], value: T) -> Iterator[None]:
    """Sets the variable for the block, in the current thread or task only."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


@contextmanager
def prefer_backend(name: str) -> Iterator[None]:
    """Runs the block as `use_backend` does; but "auto", the default of options, leaves the choice to ENCODEC_FAST_BACKEND."""
    with nullcontext() if name == "auto" else use_backend(name):
        yield


def requested(module: nn.Module | None = None) -> Request:
    """Returns what is in force: `use_backend`, else ENCODEC_FAST_BACKEND, else auto; `use_precision`, else the module's own."""
    own: Precision = getattr(module, "precision", Precision.PARITY)
    precision = _precision.get() or own
    name = _requested.get()
    if name is not None:
        return Request(name, True, precision)
    name = os.environ.get(ENVIRONMENT_VARIABLE)
    return Request(_known(name, ENVIRONMENT_VARIABLE) if name else "auto", False, precision)


def known_precision(name: str, source: str) -> Precision:
    """Returns the precision of that name.  Raises ValueError naming the source where there is none."""
    try:
        return Precision(name)
    except ValueError:
        choices = ", ".join(known.value for known in Precision)
        raise ValueError(f"{source}: {name!r} is not a precision. Choose one of {choices}.") from None


def _known(name: str, source: str) -> str:
    names = ("auto", *registry.BACKENDS, REFERENCE)
    if name not in names:
        raise ValueError(f"{source}: {name!r} is not a backend. Choose one of {', '.join(names)}.")
    return name


def log_once(message: str) -> None:
    """Logs one warning per distinct message and process."""
    if message not in _logged:
        _logged.add(message)
        logger.warning(message)
