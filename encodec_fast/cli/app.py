"""What the commands of `encodec-fast` share: options, exit codes, errors in one line, and loading a model."""

from __future__ import annotations

import errno
import functools
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from encodec_fast.cli.terminal import say
from encodec_fast.signals import ENDING, handling
from encodec_fast.wording import counted

if TYPE_CHECKING:
    from encodec_fast.model import EncodecModel

OK, CLIPS_FAILED, WRONG_ARGUMENT, STOPPED, FAULT, INTERRUPTED = 0, 1, 2, 3, 4, 130
# The table that every --help shows
EXIT_CODES = {
    OK: "everything is done; verify, demo: the codes are Hugging Face's",
    CLIPS_FAILED: "done, but some clips failed, which are listed; verify, demo: other codes than Hugging Face's",
    WRONG_ARGUMENT: "a wrong argument, source or folder, named in one line; or another process is at work in the folder",
    STOPPED: "stopped by the machine (a full disk, a lost GPU or node)",
    FAULT: "a fault of encodec_fast itself, with a traceback",
    INTERRUPTED: "interrupted by Ctrl-C, SIGTERM or SIGHUP",
}

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# What --help puts together
MODEL = "Model"

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="Hugging Face name, local folder, original checkpoint, or built in: demo, demo-48khz.",
        rich_help_panel=MODEL,
    ),
]
BandwidthOption = Annotated[float, typer.Option("--bandwidth", "-b", metavar="KBPS", help="Bandwidth in kbps.")]
DeviceOption = Annotated[
    str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:N. auto: the GPU if there is one.", rich_help_panel=MODEL)
]
BackendOption = Annotated[
    str,
    typer.Option(metavar="NAME", help="auto or one that `encodec-fast info` lists; it is used or the run stops.", rich_help_panel=MODEL),
]
ThreadsOption = Annotated[int, typer.Option(min=0, metavar="N", help="CPU threads of the model. 0: torch's choice.", rich_help_panel=MODEL)]
BatchOption = Annotated[float, typer.Option(metavar="SECONDS", help="Audio per call of the model, in seconds.", rich_help_panel=MODEL)]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run wrote there.")]


# the class of typer's own complaints about arguments, which it doesn't export by itself
UsageError: Any = typer.BadParameter.__base__


class WrongArgument(Exception):
    """Ends the command with exit code 2 and this one line."""


class Stopped(Exception):
    """Ends the command with exit code 3 and this one line: the machine, not the arguments, is in the way."""


# Errors that no other argument would avoid
_OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EPIPE}
# Ends the line of a command that stopped and goes on when it is given again
KEPT = "What was finished is kept, and the same command goes on from there."


class Fault(Exception):
    """Ends the command with exit code 4, after the traceback of its cause: nobody expected this."""


class Interrupted(Exception):
    """Ends the command with exit code 130 and this one line."""


def exit_code_table(resumes: bool = False) -> str:
    """Returns EXIT_CODES as the end of a --help.  resumes: the command goes on where it stopped."""
    rows = [f"{code}: {meaning}" for code, meaning in EXIT_CODES.items()]
    if resumes:
        rows.append(f"After {STOPPED}, {FAULT} and {INTERRUPTED}: {KEPT[0].lower()}{KEPT[1:]}")
    return "[bold]Exit codes[/bold]\n\n" + "\n\n".join(rows)


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Lets SIGTERM (of a scheduler) and SIGHUP (of a terminal that closes) end a command as Ctrl-C does.

    A data set's run ends after the shard that is open. A signal that is ignored, as SIGHUP under nohup, stays so.
    """

    def interrupt(*_: Any) -> None:
        # once: a second one, as systemd sends with SIGHUP, would end the finishing
        for name in ENDING:
            if signal.getsignal(name) is interrupt:
                signal.signal(name, signal.SIG_IGN)
        raise KeyboardInterrupt

    with handling(interrupt, *ENDING):
        yield


def command(examples: str, resumes: bool = False) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Adds a command to the app: with examples and the exit codes in its --help, and with one exit code for each kind of end.

    typer would take an EOFError for an interrupt. Where the standard output is closed it would end with 1, as if clips had failed.
    resumes: the same command goes on where it stopped, which the line of its end then says.
    """
    kept = f" {KEPT}" if resumes else ""

    def add(function: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(function)
        def ending(*arguments: Any, **options: Any) -> int:
            try:
                with ending_on_signals():
                    return function(*arguments, **options)
            except (WrongArgument, Stopped, UsageError, typer.Exit, typer.Abort):
                raise
            except KeyboardInterrupt as interrupt:
                raise Interrupted(f"interrupted.{kept}") from interrupt
            except BrokenPipeError as error:
                raise Stopped(f"the standard output was closed.{kept}") from error
            except OSError as error:
                raise Stopped(f"{error.filename}: {error.strerror}.{kept}" if error.filename else f"{error}.{kept}") from error
            except MemoryError as error:
                raise Stopped(f"there is not enough memory ({error}).{kept}") from error
            except Exception as error:
                raise Fault(f"{type(error).__name__}: {error}. This is a fault of encodec_fast, not of the audio.{kept}") from error

        app.command(epilog=f"{examples}\n\n{exit_code_table(resumes)}")(ending)
        return function

    return add


def check_batch_seconds(batch_seconds: float) -> None:
    if not batch_seconds > 0:
        raise ValueError(f"--batch-seconds is {batch_seconds:g}; more than 0.")


@contextmanager
def checking_arguments() -> Iterator[None]:
    """Turns what the library says of a bad argument into WrongArgument."""
    from encodec_fast.serving.request import BackendError

    try:
        yield
    except (ValueError, BackendError) as error:
        raise WrongArgument(str(error)) from error
    except OSError as error:
        if error.errno in _OF_THE_MACHINE:
            raise
        raise WrongArgument(f"{error.filename}: {error.strerror}." if error.filename else str(error)) from error


def quiet_transformers() -> None:
    """Turns off the progress bars and load reports of transformers; what matters of them comes back as errors."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def announce(model: str, device: str, backend: str, threads: int) -> None:
    """Says what is about to run, before anything loads; of a built-in model also what it is."""
    from encodec_fast.serving.request import ENVIRONMENT_VARIABLE

    chosen = os.environ.get(ENVIRONMENT_VARIABLE) or "auto" if backend == "auto" else backend
    say(f"model {model}, device {device}, backend {chosen}, {counted(threads, 'thread') if threads else 'threads by torch'}")
    from encodec_fast.demo import DEMO_MODELS

    if model in DEMO_MODELS:
        say(f"{model} is {DEMO_MODELS[model]}.")


@contextmanager
def prepared_model(
    name: str, device: str, backend: str, threads: int, bandwidth: float | None = None
) -> Iterator[tuple[EncodecModel, str]]:
    """Loads a model; yields it and its id, with the backend in force for the block. Says first what is about to run.

    bandwidth: that the model must have; checked before its weights are loaded, where its config is on this machine.
    """
    with ExitStack() as stack:
        with checking_arguments():
            if bandwidth is not None:
                from encodec_fast.dataset.engines import check_before_loading

                check_before_loading(name, device, bandwidth)
            announce(name, device, backend, threads)
            import torch

            from encodec_fast.pretrained import load_model
            from encodec_fast.serving import request

            quiet_transformers()
            if threads:
                torch.set_num_threads(threads)
            stack.enter_context(request.prefer_backend(backend))
            request.requested()
            model = load_model(name, device)
            if bandwidth is not None:
                from encodec_fast.dataset.encoding import check_bandwidth

                check_bandwidth(model.config, bandwidth)
        yield model, model.name_or_path
