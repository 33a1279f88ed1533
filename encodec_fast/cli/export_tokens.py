"""`encodec-fast export-tokens`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from encodec_fast.cli.app import OK, OverwriteOption, checking_arguments, command
from encodec_fast.cli.terminal import ProgressBar, say


@command(
    "[bold]Examples[/bold]\n\nencodec-fast export-tokens codes/ --out train.bin\n\n"
    "encodec-fast export-tokens codes/ -o train.bin --pattern coarse_first --levels 4"
)
def export_tokens(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `encodec-fast tokenize` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="NAME.bin", help="File of tokens; its index goes beside it.")],
    pattern: Annotated[
        str, typer.Option(metavar="NAME", help="flatten: frame by frame. coarse_first: all frames of level 1, then of level 2, ...")
    ] = "flatten",
    levels: Annotated[int | None, typer.Option(min=1, metavar="K", help="Only the first K levels. Default: all.")] = None,
    offsets: Annotated[bool, typer.Option("--offsets/--no-offsets", help="Tell the levels apart: add (level - 1) x codebook size.")] = True,
    separator: Annotated[bool, typer.Option("--separator/--no-separator", help="A token behind each clip.")] = True,
    overwrite: OverwriteOption = False,
) -> int:
    """Write the codes as one memory-mapped file of tokens, as GPT-style trainers read it.

    In Python: encodec_fast.open_tokens("train.bin"), or numpy.memmap("train.bin", dtype="uint16").
    """
    with checking_arguments():
        from encodec_fast.dataset import token_file

        with ProgressBar(0, "shards") as bar:
            found = token_file.export_tokens(
                folder,
                out,
                pattern=pattern,  # type: ignore[arg-type]  # checked there
                levels=levels,
                offsets=offsets,
                separator=separator,
                overwrite=overwrite,
                progress=bar.update,
            )
    say(f"wrote {out}: {len(found.tokens):,} tokens, {found.tokens.dtype}, of {len(found):,} clips; vocabulary {found.vocabulary_size:,}")
    return OK
