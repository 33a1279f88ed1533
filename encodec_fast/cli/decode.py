"""`encodec-fast decode`."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from encodec_fast.cli.one_file import is_npy, names_file, refuse_existing, row_of_npy, speaking_elsewhere
from encodec_fast.cli.terminal import RunProgress, report_failures, say, speed_line
from encodec_fast.dataset.options import BATCH_SECONDS

if TYPE_CHECKING:
    from encodec_fast.dataset.decoding import StoredRows
    from encodec_fast.dataset.run import Summary
    from encodec_fast.formats import ClipFailure, ClipRow, DatasetInfo
    from encodec_fast.model import EncodecModel

# Where AudioFolder looks for the columns of the files beside it
METADATA_FILE = "metadata.jsonl"


@command(
    "[bold]Examples[/bold]\n\nencodec-fast decode codes/ --out wavs/\n\nencodec-fast decode codes/ --out wavs/ --subtype FLOAT\n\n"
    "encodec-fast decode codes/ --id song.mp3 --out song.wav\n\nencodec-fast decode song.npy -o song.wav -m facebook/encodec_24khz\n\n"
    "The same command continues one that was interrupted.",
    resumes=True,
)
def decode(
    folder: Annotated[
        Path,
        typer.Argument(metavar="CODES", help="Folder that `encodec-fast tokenize` wrote, a shard of it, or one clip's .parquet or .npy."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="WAVS", help="Folder for the WAV files, named after the ids; NAME.wav for one clip; - for a pipe."
        ),
    ],
    id: Annotated[str | None, typer.Option("--id", metavar="ID", help="Only the clip of this id.")] = None,
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
    """Turn stored codes back into WAV files; go on where an earlier run ended.

    The weights must be those that made the codes; others are refused. Columns of the codes go into metadata.jsonl beside the files.
    """
    with checking_arguments():
        from encodec_fast.audio import WAV_SUBTYPES

        check_batch_seconds(batch_seconds)
        if subtype not in WAV_SUBTYPES:
            raise ValueError(f"--subtype is {subtype}; allowed are {', '.join(WAV_SUBTYPES)}.")
    arguments = (device, backend, threads)
    if names_file(out, (".wav",)):
        refuse_existing(out, overwrite)
        return _decode_one(folder, out, id, model, arguments, subtype)
    with checking_arguments():
        from encodec_fast.audio import wav_targets
        from encodec_fast.dataset.decoding import StoredRows

        if is_npy(folder):
            raise ValueError(f"{folder} holds one clip; give --out a name that ends in .wav.")
        info, rows = _info(folder), StoredRows(folder)
        chosen = range(len(rows.ids)) if id is None else [_index_of(id, rows, folder)]
        targets = wav_targets(out, rows.ids, overwrite)
        metadata = out / METADATA_FILE if info.columns and id is None else None
        left_alone = {*range(len(targets))} - {*chosen}
        done = set() if overwrite else _done(rows, targets, info, subtype, left_alone)
        if metadata is not None and not overwrite:
            _check_metadata(metadata, {target.relative_to(out).as_posix() for target in targets})
    with prepared_model(model or info.model_id, *arguments) as (loaded, model_id):
        _check_weights(loaded, model_id, folder, info)
        summary = decode_rows(
            rows,
            loaded,
            targets,
            batch_seconds=batch_seconds,
            subtype=subtype,
            metadata=metadata,
            weights_sha256=info.weights_sha256,
            skip=done | left_alone,
        )
    if summary.clips or not done:
        say(speed_line(summary))
    if done:
        say(f"decoded before: {len(done)} clips")
    say(f"wrote {summary.clips} WAV files to {out}")
    if summary.failures:
        report_failures(summary.failures)
        return CLIPS_FAILED
    return OK


def _info(codes: Path) -> DatasetInfo:
    from encodec_fast.formats.folder import read_info, read_info_of

    return read_info_of(codes) if codes.is_file() else read_info(codes, skip_damaged=True)


def _index_of(id: str, rows: StoredRows, folder: Path) -> int:
    if id not in rows.ids:
        raise ValueError(f"--id is {id!r}; {folder} has {len(rows.ids)} clips, such as {', '.join(map(repr, rows.ids[:3]))}.")
    return rows.ids.index(id)


def _check_weights(model: EncodecModel, model_id: str, codes: Path, info: DatasetInfo) -> None:
    from encodec_fast.plan.weights import weights_sha256

    found = weights_sha256(model)
    if found != info.weights_sha256:
        raise WrongArgument(
            f"{codes} was made by {info.model_id} with weights {info.weights_sha256[:16]}, "
            f"but {model_id} has weights {found[:16]}; give the model that made the codes."
        )


def _done(rows: StoredRows, targets: Sequence[Path], info: DatasetInfo, subtype: str, left_alone: Collection[int]) -> set[int]:
    """Returns which targets hold their row's audio already. Raises ValueError for one that holds other audio."""
    from encodec_fast.audio.wav import made_of
    from encodec_fast.dataset.decoding import digest_of
    from encodec_fast.formats import ClipRow

    there = {index for index, target in enumerate(targets) if index not in left_alone and target.is_file()}
    # rows are read only where there is something to compare
    for index, row in enumerate(rows) if there else ():
        if index not in there or not isinstance(row, ClipRow):
            continue
        if made_of(targets[index]) != digest_of(row, info.weights_sha256, subtype):
            raise ValueError(
                f"{targets[index]} exists already, and was not decoded from these codes as --subtype {subtype}; "
                "choose another --out or add --overwrite."
            )
    return there


def _check_metadata(path: Path, names: Collection[str]) -> None:
    """Raises ValueError for a file that an earlier run into this folder did not write."""
    if not os.path.lexists(path):
        return
    try:
        own = all(json.loads(line)["file_name"] in names for line in path.read_bytes().splitlines())
    except (OSError, ValueError, KeyError, TypeError):
        own = False
    if not own:
        raise ValueError(f"{path} exists already; choose another --out or add --overwrite.")


def _stored_row(codes: Path, id: str | None) -> tuple[DatasetInfo, ClipRow | ClipFailure]:
    """Returns the one row of a folder or shard, or that of the id, and what made it."""
    from encodec_fast.dataset.decoding import StoredRows

    with checking_arguments():
        info, rows = _info(codes), StoredRows(codes)
        if id is None and len(rows.ids) != 1:
            raise ValueError(f"{codes} holds {len(rows.ids)} clips, and --out is one file; choose a clip with --id, or name a folder.")
        index = 0 if id is None else _index_of(id, rows, codes)
        return info, next(itertools.islice(rows, index, None))


def _decode_one(codes: Path, out: Path, id: str | None, model: str | None, arguments: tuple[str, str, int], subtype: str) -> int:
    """Decodes one clip into a file, or to standard output."""
    from encodec_fast.audio.wav import put_wav
    from encodec_fast.dataset.decoding import decode as decode_batches
    from encodec_fast.formats import ClipFailure

    if id is not None and is_npy(codes):
        raise WrongArgument(f"--id is {id!r}, and {codes} holds one clip without an id; leave out --id.")
    with speaking_elsewhere(out) as pipe:
        stored = None if is_npy(codes) else _stored_row(codes, id)
        name = model or (stored[0].model_id if stored else None)
        if name is None:
            raise WrongArgument(f"{codes} does not say which model made it; name it with --model.")
        with prepared_model(name, *arguments) as (loaded, model_id):
            if stored is not None:
                _check_weights(loaded, model_id, codes, stored[0])
            ((row, audio),) = decode_batches(loaded, [stored[1] if stored else row_of_npy(codes, loaded)])
            if isinstance(row, ClipFailure) or audio is None or isinstance(audio, str):
                raise WrongArgument(f"{codes}: {row.reason if isinstance(row, ClipFailure) else audio}")
            put_wav(pipe or out, audio, row.sampling_rate, subtype)
            if pipe is None:
                say(f"wrote {out}: {row.duration:.1f} s")
    return OK


def decode_rows(
    rows: StoredRows,
    model: EncodecModel,
    targets: Sequence[Path],
    *,
    batch_seconds: float = BATCH_SECONDS,
    subtype: str = "PCM_16",
    metadata: Path | None = None,
    weights_sha256: str = "",
    skip: Collection[int] = (),
) -> Summary:
    """Decodes every row of a folder into its target file, with a progress bar; a row that can't be read or decoded is a failure.

    metadata: a file beside the targets that gets a JSON line for each, with its columns. Hugging Face's AudioFolder reads it.
    weights_sha256: noted in the files.  skip: indices of rows that are left out.
    """
    from encodec_fast.audio import write_wav
    from encodec_fast.dataset.decoding import decode, digest_of
    from encodec_fast.dataset.run import Summary
    from encodec_fast.formats import ClipFailure, ClipRow
    from encodec_fast.formats.atomic import write_atomically

    summary = Summary(planned_clips=len(targets) - len(skip), planned_seconds=rows.seconds or 0.0)
    start = time.perf_counter()
    lines: dict[int, str] = {}

    def note(index: int, row: ClipRow) -> None:
        if metadata is not None:
            file_name = targets[index].relative_to(metadata.parent).as_posix()
            lines[index] = json.dumps({"file_name": file_name, "id": row.id, **row.columns}, ensure_ascii=False) + "\n"

    def wanted() -> Iterator[ClipRow | ClipFailure]:
        for index, row in enumerate(rows):
            if index not in skip:
                yield row
                continue
            if isinstance(row, ClipRow):
                summary.planned_seconds = max(0.0, summary.planned_seconds - row.duration)
                note(index, row)

    with RunProgress() as bar:
        decoded: Iterator[Any] = decode(model, wanted(), batch_seconds=batch_seconds)
        indices = (index for index in range(len(targets)) if index not in skip)
        for index, (row, audio) in zip(indices, decoded, strict=True):
            if isinstance(row, ClipFailure):
                summary.failures.append(row)
            elif isinstance(audio, str):
                summary.failures.append(ClipFailure(row.id, row.path, audio))
            else:
                write_wav(targets[index], audio, row.sampling_rate, subtype, digest_of(row, weights_sha256, subtype))
                summary.clips += 1
                summary.seconds += row.duration
                summary.files.append(targets[index])
                note(index, row)
            summary.wall_seconds = time.perf_counter() - start
            bar.update(summary)
    if metadata is not None and lines:
        write_atomically(metadata, "".join(lines[index] for index in sorted(lines)).encode())
    return summary
