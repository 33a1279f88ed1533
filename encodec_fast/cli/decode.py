"""`encodec-fast decode`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encodec_fast.cli.app import (
    CLIPS_FAILED,
    OK,
    BackendOption,
    BatchOption,
    DeviceOption,
    OverwriteOption,
    ThreadsOption,
    WrongArgument,
    check_batch_seconds,
    checking_arguments,
    command,
    prepared_model,
)
from encodec_fast.cli.terminal import ProgressBar, report_failures, say, speed_line
from encodec_fast.dataset.options import BATCH_SECONDS

if TYPE_CHECKING:
    from encodec_fast.dataset.decoding import StoredRows
    from encodec_fast.dataset.run import Summary
    from encodec_fast.model import EncodecModel

# Where AudioFolder looks for the columns of the files beside it
METADATA_FILE = "metadata.jsonl"


@command("[bold]Examples[/bold]\n\nencodec-fast decode codes/ --out wavs/\n\nencodec-fast decode codes/ --out wavs/ --subtype FLOAT")
def decode(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `encodec-fast tokenize` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="WAVS", help="Folder for the WAV files, named after the ids.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="NAME", help="Default: the model named in the codes' metadata.")
    ] = None,
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    threads: ThreadsOption = 0,
    batch_seconds: BatchOption = BATCH_SECONDS,
    subtype: Annotated[str, typer.Option(metavar="NAME", help="Samples as PCM_16, PCM_24 or FLOAT.")] = "PCM_16",
    overwrite: OverwriteOption = False,
) -> int:
    """Turn stored codes back into WAV files.

    The weights must be those that made the codes; others are refused. Columns of the codes go into metadata.jsonl beside the files.
    """
    with checking_arguments():
        from encodec_fast.audio import WAV_SUBTYPES, wav_targets
        from encodec_fast.dataset.decoding import StoredRows
        from encodec_fast.formats.folder import read_info

        check_batch_seconds(batch_seconds)
        if subtype not in WAV_SUBTYPES:
            raise ValueError(f"--subtype is {subtype}; allowed are {', '.join(WAV_SUBTYPES)}.")
        info = read_info(folder, skip_damaged=True)
        rows = StoredRows(folder)
        targets = wav_targets(out, rows.ids, overwrite)
        metadata = out / METADATA_FILE if info.columns else None
        if metadata is not None and os.path.lexists(metadata) and not overwrite:
            raise ValueError(f"{metadata} exists already; choose another --out or add --overwrite.")
    with prepared_model(model or info.model_id, device, backend, threads) as (loaded, model_id):
        from encodec_fast.plan.weights import weights_sha256

        found = weights_sha256(loaded)
        if found != info.weights_sha256:
            raise WrongArgument(
                f"{folder} was made by {info.model_id} with weights {info.weights_sha256[:16]}, "
                f"but {model_id} has weights {found[:16]}; give the model that made the codes."
            )
        summary = decode_rows(rows, loaded, targets, batch_seconds, subtype, metadata)
    say(speed_line(summary))
    say(f"wrote {summary.clips} WAV files to {out}")
    if summary.failures:
        report_failures(summary.failures)
        return CLIPS_FAILED
    return OK


def decode_rows(
    rows: StoredRows,
    model: EncodecModel,
    targets: Sequence[Path],
    batch_seconds: float = BATCH_SECONDS,
    subtype: str = "PCM_16",
    metadata: Path | None = None,
) -> Summary:
    """Decodes every row of a folder into its target file, with a progress bar; a row that can't be read or decoded is a failure.

    metadata: a file beside the targets that gets a JSON line for each, with its columns. Hugging Face's AudioFolder reads it.
    """
    from encodec_fast.audio import write_wav
    from encodec_fast.dataset.decoding import decode
    from encodec_fast.dataset.run import Summary
    from encodec_fast.formats import ClipFailure
    from encodec_fast.formats.atomic import write_atomically

    summary = Summary()
    start = time.perf_counter()
    lines: list[str] = []
    with ProgressBar(len(targets)) as bar:
        decoded = decode(model, rows, batch_seconds=batch_seconds)
        for target, (row, audio) in zip(targets, decoded, strict=True):
            if isinstance(row, ClipFailure):
                summary.failures.append(row)
            elif isinstance(audio, str):
                summary.failures.append(ClipFailure(row.id, row.path, audio))
            elif audio is not None:
                write_wav(target, audio, row.sampling_rate, subtype)
                summary.clips += 1
                summary.seconds += row.duration
                summary.files.append(target)
                if metadata is not None:
                    file_name = target.relative_to(metadata.parent).as_posix()
                    lines.append(json.dumps({"file_name": file_name, "id": row.id, **row.columns}, ensure_ascii=False) + "\n")
            summary.wall_seconds = time.perf_counter() - start
            bar.update(summary.clips + len(summary.failures), speed=f"{summary.times_real_time:.1f} x real time")
    if metadata is not None and lines:
        write_atomically(metadata, "".join(lines).encode())
    return summary
