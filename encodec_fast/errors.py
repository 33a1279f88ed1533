"""Errors as other processes and people get them. No torch."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Returns the first line of the error's message without its full stop; its class where there is no message."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def portable_os_error(error: OSError) -> OSError:
    """Returns the error as every process can unpickle it: some subclasses need arguments that a pickle does not keep."""
    return OSError(str(error)) if error.errno is None else OSError(error.errno, error.strerror, error.filename)
