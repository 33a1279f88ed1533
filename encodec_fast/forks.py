"""Locks that a forked child can acquire, whoever held them at the fork."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from functools import cache


class ForkSafeLock:
    """A reentrant lock that is free in a forked child, where no thread that held it exists.

    abandoned: called in a child whose lock such a thread held; what the lock guards is half done there.
    """

    def __init__(self, abandoned: Callable[[], None] | None = None) -> None:
        self._lock = threading.RLock()
        self._abandoned = abandoned
        _watch_forks()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *raised: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Frees the lock for this thread. A forked child calls it while it has no other thread."""
        if self._lock.acquire(blocking=False):
            self._lock.release()
            return
        self._lock = threading.RLock()
        if self._abandoned is not None:
            self._abandoned()


_locks: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()


@cache
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):  # Windows has no fork
        os.register_at_fork(after_in_child=_renew_all)


def _renew_all() -> None:
    for lock in list(_locks):
        lock.renew()
