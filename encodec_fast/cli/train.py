"""`encodec-fast train`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from encodec_fast.cli.app import OK, WrongArgument, checking_arguments, command, quiet_transformers
from encodec_fast.cli.terminal import FAILURES_SHOWN, ProgressBar, complain, say, shown
from encodec_fast.wording import counted


def _print_config(asked: bool) -> None:
    if asked:
        from encodec_fast.training.config import default_toml

        say(default_toml())
        raise typer.Exit()


@command(
    "[bold]Examples[/bold]\n\nencodec-fast train --print-config               a config with every key, to be edited\n\n"
    "encodec-fast train speech.toml --out runs/speech\n\n"
    "torchrun --nproc-per-node 8 -m encodec_fast train speech.toml --out runs/speech     a GPU for each rank",
    resumes=True,
)
def train(
    source: Annotated[Path, typer.Argument(metavar="CONFIG", help="A TOML file, such as --print-config writes.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the run; one with a checkpoint is gone on with.")],
    steps: Annotated[int | None, typer.Option(min=1, metavar="N", help="Updates in all, in the place of the config's.")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", callback=_print_config, is_eager=True, help="Print a config with every key and its default.")
    ] = False,
) -> int:
    """Train a model, from scratch or from any model that can be loaded.

    DIR gets config.toml, checkpoint.pt, metrics.csv, report.html with sound before and after, and model/ for transformers and every
    command here. Ctrl-C and SIGTERM end with a checkpoint; the same command goes on from it, on a CPU to the same bits.
    """
    with checking_arguments():
        from encodec_fast.training.config import read_config

        try:
            config = read_config(source)
        except ImportError as error:
            raise WrongArgument(str(error)) from error
        if steps is not None:
            config = replace(config, steps=steps)
        from encodec_fast.training.run import train as run
        from encodec_fast.training.validation import has_stoi

        quiet_transformers()
        # torchrun's; the first rank alone speaks
        if int(os.environ.get("RANK", "0")) > 0:
            run(config, out)
            return OK
        if config.validation_audio and not has_stoi():
            say("no STOI in validation: pip install 'encodec-fast[train]'")
        with ProgressBar(config.steps, "steps") as bar:
            summary = run(config, out, progress=bar.update)
    for task in summary.left_out[:FAILURES_SHOWN]:
        complain(f"left out: {shown(task.id)}: {shown(task.problem or '')}")
    if len(summary.left_out) > FAILURES_SHOWN:
        complain(f"left out: {len(summary.left_out) - FAILURES_SHOWN} more.")
    say(f"{counted(summary.steps, 'step')}, {summary.steps - summary.first} of them now; the model is in {summary.model}")
    if summary.report.exists():
        say(f"with sound and curves: {summary.report}")
    if (found := summary.validation) is not None:
        stoi = "" if found.stoi is None else f", STOI {found.stoi:.3f}"
        use = ", ".join(f"{share:.0%}" for share in found.use)
        say(f"validation: mel {found.mel:.4f}, SI-SNR {found.si_snr:.2f} dB{stoi}; entries used by level: {use}")
    return OK
