"""`encodec-fast convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from encodec_fast.cli.app import OK, OverwriteOption, checking_arguments, command, quiet_transformers
from encodec_fast.cli.terminal import say


@command(
    "[bold]Examples[/bold]\n\nencodec-fast convert encodec_24khz-d7cc33bc.th --out my-model\n\n"
    "encodec-fast convert compression_state_dict.bin -o my-model\n\nencodec-fast convert my-model --out my-model.th"
)
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A checkpoint of encodec, audiocraft or encodec-pytorch, a local folder, or a Hugging Face name."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="NAME", help="A folder for transformers; or NAME.th (.pt, .bin), as encodec saves it."),
    ],
    overwrite: OverwriteOption = False,
) -> int:
    """Convert a model between the original checkpoints and Hugging Face folders.

    The codes stay the same. Every command takes an original checkpoint as --model too.
    """
    with checking_arguments():
        from encodec_fast.checkpoints import check_target, write_folder, write_original
        from encodec_fast.checkpoints.writing import is_file_name
        from encodec_fast.pretrained import load_model

        check_target(out, overwrite)
        quiet_transformers()
        model = load_model(source)
        if is_file_name(out):
            write_original(model, out)
        else:
            write_folder(model, out)
    config = model.config
    say(
        f"wrote {out}: {config.sampling_rate / 1000:g} kHz, {'mono' if config.audio_channels == 1 else 'stereo'}, "
        f"{', '.join(f'{each:g}' for each in config.target_bandwidths)} kbps"
    )
    return OK
