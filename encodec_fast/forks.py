"""Locks that a forked child can take, whoever held them when it was made."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from functools import cache


class ForkSafeLock:
    """A reentrant lock that is free in a forked child, which has none of the threads that may have held it.

    abandoned: called in such a child where one did; what the lock guards is half done there.
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
        """Makes the lock one that this thread can take; for a forked child, while it has no other."""
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
