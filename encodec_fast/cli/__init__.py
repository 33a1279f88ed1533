"""The command `encodec-fast`, a module per subcommand. Heavy packages are imported inside the commands, so that --help is quick."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

import encodec_fast
from encodec_fast.cli.app import (
    CLIPS_FAILED,
    FAULT,
    INTERRUPTED,
    OK,
    STOPPED,
    WRONG_ARGUMENT,
    Fault,
    Interrupted,
    Stopped,
    UsageError,
    WrongArgument,
    app,
    exit_code_table,
)
from encodec_fast.cli.terminal import complain, say

# each adds its command to the app, in the order of --help
from encodec_fast.cli import tokenize, decode, roundtrip, compress, decompress, stats, export_tokens  # isort: skip
from encodec_fast.cli import export, convert, train, train_lm, verify, quality, info, demo  # isort: skip

__all__ = [
    "CLIPS_FAILED",
    "FAULT",
    "INTERRUPTED",
    "OK",
    "STOPPED",
    "WRONG_ARGUMENT",
    "app",
    "compress",
    "convert",
    "decode",
    "decompress",
    "demo",
    "export",
    "export_tokens",
    "info",
    "main",
    "quality",
    "roundtrip",
    "stats",
    "tokenize",
    "train",
    "train_lm",
    "verify",
]


def version_callback(asked: bool) -> None:
    if asked:
        say(f"encodec-fast {encodec_fast.__version__}")
        raise typer.Exit()


@app.callback(
    epilog="[bold]Start here[/bold]\n\n"
    "encodec-fast demo                            try everything, no download\n\n"
    "encodec-fast tokenize corpus/ --out codes/   audio to codes\n\n"
    "encodec-fast decode codes/ --out wavs/       codes to audio\n\n"
    "Each command has its own --help.\n\n" + exit_code_table()
)
def top_level(
    version: Annotated[
        bool, typer.Option("--version", callback=version_callback, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """EnCodec, several times faster: audio to codes and back, with the codes of Hugging Face transformers."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code, one of app.EXIT_CODES; an error is one line on standard error."""
    try:
        return _run(arguments)
    except BrokenPipeError:
        # where standard error is closed too
        return STOPPED
    finally:
        _leave_closed_output()


def _run(arguments: Sequence[str] | None) -> int:
    run: Callable[..., Any] = typer.main.get_command(app).main
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _refuse_empty(given)
        code = run(args=given, prog_name="encodec-fast", standalone_mode=False) or OK
    except UsageError as error:
        context = getattr(error, "ctx", None)
        name = context.command_path if context is not None else "encodec-fast"
        message = error.format_message().rstrip(".")
        if message:  # none for the bare command, which has shown its help instead
            complain(f"{name}: {message}. See {name} --help.")
        return WRONG_ARGUMENT
    except WrongArgument as error:
        complain(f"encodec-fast: {error}")
        return WRONG_ARGUMENT
    except Stopped as error:
        complain(f"encodec-fast: {error}")
        return STOPPED
    except Fault as error:
        traceback.print_exception(error.__cause__)
        complain(f"encodec-fast: {error}")
        return FAULT
    except Interrupted as error:
        complain(f"encodec-fast: {error}")
        return INTERRUPTED
    # before a command began: typer makes an exit code of it, or Abort before 0.26
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:
        complain("encodec-fast: interrupted.")
    return code


def _refuse_empty(arguments: list[str]) -> None:
    """Raises WrongArgument for an argument that is empty: no command takes one, and a path of it would be this folder."""
    for index, argument in enumerate(arguments):
        if argument == "" or (argument.startswith("-") and argument.endswith("=")):
            name = argument.rstrip("=") or (arguments[index - 1] if index and arguments[index - 1].startswith("-") else "")
            where = f"the value of {name}" if name else "an argument"
            raise WrongArgument(f"{where} is empty, as from a shell variable that is not set.")


def _leave_closed_output() -> None:
    """Lets standard output end in nothing where its reader is gone: the interpreter would fail to flush it, with exit code 120."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
