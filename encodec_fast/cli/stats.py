"""`encodec-fast stats`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encodec_fast.cli.app import OK, checking_arguments, command
from encodec_fast.cli.terminal import ProgressBar, console, say
from encodec_fast.wording import counted, hours_text

if TYPE_CHECKING:
    from rich.table import Table

    from encodec_fast.dataset.statistics import FolderStatistics


@command("[bold]Examples[/bold]\n\nencodec-fast stats codes/\n\nencodec-fast stats codes/ --sample --json > stats.json")
def stats(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `encodec-fast tokenize` wrote.")],
    sample: Annotated[bool, typer.Option("--sample", help="Read 64 shards at most, spread evenly, instead of all.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> int:
    """Show what a folder of codes holds: hours, tokens, bytes, the use of each codebook, lengths of clips."""
    with checking_arguments():
        from encodec_fast.dataset.statistics import folder_statistics

        if as_json:
            print(json.dumps(folder_statistics(folder, sample).to_json(), ensure_ascii=False, indent=1))
            return OK
        with ProgressBar(0, "shards") as bar:
            found = folder_statistics(folder, sample, bar.update)
    for line in _lines(found):
        say(line)
    for table in (_codebooks(found), _lengths(found)):
        console().print(table)
    return OK


def _lines(found: FolderStatistics) -> list[str]:
    lines = {
        "audio": f"{counted(found.clips, 'clip', ',')}, {hours_text(found.seconds)} hours",
        "tokens": f"{found.tokens:,} in {counted(len(found.codebooks), 'level', ',')}, {found.tokens_per_hour:,.0f} an hour",
        "bytes": f"{found.bytes:,} in {counted(found.shards, 'shard', ',')}, {found.bytes_per_hour / 1e6:,.2f} MB an hour",
        "failed": f"{counted(found.failed, 'clip', ',')}",
        "model": f"{found.model_id}, weights {found.weights_sha256[:16]}",
        "bandwidth": "-" if found.bandwidth is None else f"{found.bandwidth:g} kbps",
        "columns": ", ".join(f"{name} ({type_name})" for name, type_name in found.columns.items()) or "none",
    }
    if found.is_sample:
        clips, shards = counted(found.read_clips, "clip", ","), counted(found.read_shards, "shard", ",")
        lines["read"] = f"{clips} of {shards}; tokens and tables are of those"
    width = max(map(len, lines))
    return [f"{name:<{width}}  {value}" for name, value in lines.items()]


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _codebooks(found: FolderStatistics) -> Table:
    table = _table("\nCodebooks", "level", "tokens", f"used of {found.codebook_size}", "perplexity", "bits a code")
    for each in found.codebooks:
        table.add_row(str(each.level), f"{each.tokens:,}", f"{each.used:,}", f"{each.perplexity:,.1f}", f"{each.entropy:.2f}")
    return table


def _lengths(found: FolderStatistics) -> Table:
    table = _table("\nLengths", "from, s", "below, s", "clips", "hours")
    for each in found.lengths:
        high = "-" if each.high is None else f"{each.high:g}"
        table.add_row(f"{each.low:g}", high, f"{each.clips:,}", hours_text(each.seconds))
    return table
