"""Python programs that work for this one: started with its import path, told what to do by pickles on standard input.

Without torch. They are not multiprocessing's, which would import the caller's main module and whatever that imports.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import IO


def start(module: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts a process that runs `main()` of the module, with pipes to its standard input and from its standard output.

    It ignores Ctrl-C, which reaches every process of a terminal: its parent decides when it ends.
    environment: variables that it has besides this process's own.
    """
    # set before the import of the module, which may take seconds
    ignoring = "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    program = f"{ignoring}; sys.path[:] = sys.argv[1:]; from {module} import main; main()"
    command = [sys.executable, "-c", program, *sys.path]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **environment})


def take_output() -> IO[bytes]:
    """Returns standard output as a stream for messages, in the child; what a library prints goes to standard error from then on."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return output


def end_with_parent() -> None:
    """Ends this process, whatever it is doing, within about a second after its parent has ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def how_it_ended(code: int) -> str:
    """Describes a process's exit code in words."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"
