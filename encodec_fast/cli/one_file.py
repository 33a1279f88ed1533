"""One file in, one file out: what `tokenize`, `decode` and `roundtrip` do where --out names a file and not a folder."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from encodec_fast.cli.app import WrongArgument, checking_arguments

if TYPE_CHECKING:
    import numpy as np

    from encodec_fast.corpus.tasks import Clip, Task
    from encodec_fast.dataset.options import TokenizeOptions
    from encodec_fast.formats import ClipRow
    from encodec_fast.model import EncodecModel

# Standard input and output
PIPE = "-"


def names_file(out: Path, suffixes: tuple[str, ...]) -> bool:
    """Tells whether --out is a file of one of these suffixes, or standard output, and no folder."""
    return str(out) == PIPE or (out.suffix.lower() in suffixes and not out.is_dir())


@contextlib.contextmanager
def speaking_elsewhere(out: Path) -> Iterator[IO[bytes] | None]:
    """Yields standard output as bytes where --out is that, with every printed line on standard error; else None."""
    if str(out) != PIPE:
        yield None
        return
    pipe = sys.stdout.buffer
    with contextlib.redirect_stdout(sys.stderr):
        yield pipe
    pipe.flush()


def read_clip(source: str, model: EncodecModel, options: TokenizeOptions | None = None) -> Clip:
    """Reads the one clip that a source names, with its columns; `-` is standard input.

    options: what tells how to read; None: the usual ones.
    Raises WrongArgument for no clip, for several, and for one that can't be read.
    """
    from encodec_fast.audio import AudioError, read_audio
    from encodec_fast.corpus.reader import UnreadableClip
    from encodec_fast.corpus.tasks import Clip, Task
    from encodec_fast.dataset.options import TokenizeOptions
    from encodec_fast.dataset.reading import reader_for

    rate, channels = model.config.sampling_rate, model.config.audio_channels
    options = options or TokenizeOptions()
    if source == PIPE:
        try:
            samples, info = read_audio(sys.stdin.buffer.read(), rate, channels, name="standard input", max_bytes=options.max_clip_bytes)
        except AudioError as error:
            raise WrongArgument(f"{source}: {error.reason}") from error
        return Clip(Task("stdin", "standard input"), samples, info.sampling_rate)
    task = _one_task(source, options)
    # by a process of its own, which can be ended where a file never does
    with reader_for(options, rate, channels, workers=1) as reader:
        (clip,) = reader.read([task])
    if isinstance(clip, UnreadableClip):
        raise WrongArgument(f"{source}: {clip.reason}")
    assert isinstance(clip, Clip), clip  # long ones too come whole
    return clip


def _one_task(source: str, options: TokenizeOptions) -> Task:
    """Returns what the source holds, with typed columns. Raises WrongArgument unless it is one clip."""
    from encodec_fast.audio.files import allow_protocols
    from encodec_fast.corpus.sources import find_tasks
    from encodec_fast.dataset.columns import chosen_columns, column_types, with_typed_columns

    with checking_arguments():
        allow_protocols(options.protocols)
        tasks = find_tasks([source], options.audio_column, columns=options.columns)
        if len(tasks) > 1:
            raise WrongArgument(f"{source} holds {len(tasks)} clips, and --out is one file; name a folder.")
        if tasks[0].problem is not None:
            raise WrongArgument(f"{source}: {tasks[0].problem}")
        (task,) = chosen_columns(tasks, options.columns)
        return with_typed_columns(task, column_types([task]))


def one_row(model: EncodecModel, clip: Clip, bandwidth: float, embeddings: bool = False) -> ClipRow:
    """Returns the codes of a clip, with its embeddings on request.

    Raises WrongArgument for a bandwidth that the model lacks, and a clip that it can't encode.
    """
    from encodec_fast.dataset.encoding import ClipEncoder
    from encodec_fast.formats import ClipFailure

    with checking_arguments():
        (row,) = ClipEncoder(model, bandwidth, embeddings).encode([clip])
    if isinstance(row, ClipFailure):
        raise WrongArgument(f"{clip.task.id}: {row.reason}")
    return row


def refuse_existing(out: Path, overwrite: bool) -> None:
    """Raises WrongArgument for a file that is there, unless it may be replaced."""
    if str(out) != PIPE and out.exists() and not overwrite:
        raise WrongArgument(f"{out} exists already; choose another --out or add --overwrite.")


def is_npy(codes: Path) -> bool:
    """Tells whether the path names the codes of one clip and nothing else; `tokenize` takes NAME.NPY too."""
    return codes.suffix.lower() == ".npy"


def row_of_npy(path: Path, model: EncodecModel) -> ClipRow:
    """Returns the row of a `.npy` of codes, [n_chunks, K, F] or [K, F]. Raises WrongArgument for what is none, or lacks its scales."""

    from encodec_fast.formats import ClipRow
    from encodec_fast.formats.records import load_npy
    from encodec_fast.plan.geometry import hop_length

    config = model.config
    try:
        codes: np.ndarray[Any, Any] = load_npy(path.read_bytes())
    except (OSError, ValueError) as error:
        raise WrongArgument(f"{path}: no codes that can be read ({error}).") from error
    codes = codes[None] if codes.ndim == 2 else codes
    if codes.ndim != 3 or codes.dtype.kind not in "iu" or len(codes) != 1:
        raise WrongArgument(f"{path}: {codes.dtype} of shape {list(codes.shape)}; integer codes [1, K, F] or [K, F] are needed.")
    if config.normalize or config.chunk_length is not None:
        raise WrongArgument(f"{path}: a .npy holds no volumes, which this model needs; tokenize to a .parquet, and decode that.")
    samples, rate = codes.shape[2] * hop_length(config), config.sampling_rate
    return ClipRow(path.stem, str(path), codes, None, samples, 0, rate, rate, float(config.target_bandwidths[0]))
