"""Handlers of signals for as long as a block runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Of a scheduler, and of a terminal that closes, where the system has it
ENDING = (signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


@contextmanager
def handling(handler: Callable[[int, Any], None], *names: signal.Signals) -> Iterator[None]:
    """Lets `handler` handle these signals. One that is ignored, as SIGHUP under nohup, stays so.

    In another than the main thread, where Python sets no handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {name: signal.getsignal(name) for name in names if signal.getsignal(name) is not signal.SIG_IGN}
    for name in before:
        signal.signal(name, handler)
    try:
        yield
    finally:
        for name, former in before.items():
            signal.signal(name, former)
