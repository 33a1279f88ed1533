"""What the commands of `encodec-fast` share: options, exit codes, errors in one line, a model ready to use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from encodec_fast.terminal import say

if TYPE_CHECKING:
    from encodec_fast.model import EncodecModel

OK, CLIPS_FAILED, WRONG_ARGUMENT, STOPPED, INTERRUPTED = 0, 1, 2, 3, 130

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False)

ModelOption = Annotated[
    str,
    typer.Option("--model", "-m", metavar="NAME", help="Hugging Face name, local folder, or built in: demo, demo-48khz (untrained)."),
]
BandwidthOption = Annotated[float, typer.Option("--bandwidth", "-b", metavar="KBPS", help="Bandwidth in kbps.")]
DeviceOption = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:N. auto: the GPU if there is one.")]
BackendOption = Annotated[
    str, typer.Option(metavar="NAME", help="auto or one that `encodec-fast info` lists; it is used or the run stops.")
]
ThreadsOption = Annotated[int, typer.Option(min=0, metavar="N", help="CPU threads of the model. 0: torch's choice.")]
BatchOption = Annotated[float, typer.Option(metavar="SECONDS", help="Audio per call of the model, in seconds.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run wrote there.")]


class WrongArgument(Exception):
    """Ends the command with exit code 2 and this one line."""


class Stopped(Exception):
    """Ends the command with exit code 3 and this one line: the machine, not the arguments, is in the way."""


def check_batch_seconds(batch_seconds: float) -> None:
    if not batch_seconds > 0:
        raise ValueError(f"--batch-seconds is {batch_seconds:g}; more than 0.")


@contextmanager
def checking_arguments() -> Iterator[None]:
    """Turns what the library says of a bad argument into WrongArgument."""
    from encodec_fast.backends import BackendError

    try:
        yield
    except (ValueError, BackendError) as error:
        raise WrongArgument(str(error)) from error
    except OSError as error:
        raise WrongArgument(f"{error.filename}: {error.strerror}." if error.filename else str(error)) from error


@contextmanager
def prepared_model(name: str, device: str, backend: str, threads: int) -> Iterator[tuple[EncodecModel, str]]:
    """The model and its id, with the backend in force for the block. Says what is being loaded."""
    with ExitStack() as stack:
        with checking_arguments():
            import torch
            from transformers.utils import logging

            from encodec_fast import backends
            from encodec_fast.demo import DEMO_MODELS
            from encodec_fast.pretrained import load_model

            # its progress bars and load reports; what matters of them comes back as errors
            logging.set_verbosity_error()
            logging.disable_progress_bar()
            if threads:
                torch.set_num_threads(threads)
            stack.enter_context(backends.prefer_backend(backend))
            backends.requested()
            model, model_id = load_model(name, device)
        if model_id in DEMO_MODELS:
            say(f"model {model_id}: {DEMO_MODELS[model_id]}. For trying things out; its audio is not for listening.")
        yield model, model_id
