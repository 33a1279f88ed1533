"""`encodec-fast decompress`: compressed files to WAV."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from encodec_fast.cli.app import (
    CLIPS_FAILED,
    OK,
    BackendOption,
    DeviceOption,
    OverwriteOption,
    ThreadsOption,
    checking_arguments,
    command,
    prepared_model,
)
from encodec_fast.cli.compress import SUFFIX, Job, LmOption, TablesOption, jobs_of, read_coders
from encodec_fast.cli.one_file import PIPE, names_file, refuse_existing, speaking_elsewhere
from encodec_fast.cli.terminal import ProgressBar, complain, report_failures, say, shown
from encodec_fast.wording import counted

if TYPE_CHECKING:
    import numpy as np

    from encodec_fast.codec.opened import OpenedFile, Part
    from encodec_fast.compression.choice import AtHand
    from encodec_fast.compression.container import Lost
    from encodec_fast.formats import ClipFailure
    from encodec_fast.model import EncodecModel


@command(
    "[bold]Examples[/bold]\n\nencodec-fast decompress song.ecdc --out song.wav\n\nencodec-fast decompress small/ --out wavs/\n\n"
    "encodec-fast decompress long.ecdc --start 3600 --duration 10 --out ten-seconds.wav\n\n"
    "encodec-fast compress talk.wav -o - | encodec-fast decompress - -o talk-6kbps.wav\n\n"
    "The same command continues one that was interrupted.",
    resumes=True,
)
def decompress(
    sources: Annotated[list[str], typer.Argument(metavar="ECDC", help="Files, folders, patterns; - is standard input.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="NAME", help="NAME.wav for one file, else a folder; - for a pipe. Default: beside one file."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", metavar="NAME", help="Default: the model that the file names.")] = None,
    tables: TablesOption = None,
    lm: LmOption = None,
    start: Annotated[float, typer.Option(metavar="SECONDS", help="Begin here; what lies before is not decoded.")] = 0.0,
    duration: Annotated[float | None, typer.Option(metavar="SECONDS", help="No more than this. Default: to the end.")] = None,
    subtype: Annotated[str, typer.Option(metavar="NAME", help="Samples as PCM_16, PCM_24 or FLOAT.")] = "PCM_16",
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    threads: ThreadsOption = 0,
    overwrite: OverwriteOption = False,
) -> int:
    """Turn compressed files back into WAV files; version 0 of encodec 0.1.1 too.

    Damage costs the segments that it lies in: they are silence, their times are named, and the exit code is 1.
    A pipe is played while it comes: each segment when its last byte is there.
    """
    with checking_arguments():
        from encodec_fast.audio import WAV_SUBTYPES
        from encodec_fast.codec.opened import OpenedFile, Part

        if subtype not in WAV_SUBTYPES:
            raise ValueError(f"--subtype is {subtype}; allowed are {', '.join(WAV_SUBTYPES)}.")
        part = Part(start, duration)
        jobs = _jobs(sources, out, overwrite)
        at_hand = read_coders(tables, lm)
        # a pipe can be opened once
        piped = OpenedFile(sys.stdin.buffer, at_hand) if jobs[0].source == PIPE else None
        done = set() if overwrite or piped is not None else _done(jobs, subtype, part)
        failures: list[ClipFailure] = []
        name = model or _model_name([piped] if piped is not None else _opened(jobs, at_hand, failures), jobs)
    if name is None:
        report_failures(failures)
        return CLIPS_FAILED
    with (
        speaking_elsewhere(jobs[0].target) as pipe,
        prepared_model(name, device, backend, threads) as (loaded, _),
        checking_arguments(),
    ):
        left = [job for job in jobs if job.id not in done]
        return _Run(loaded, at_hand, subtype, part, pipe, piped).all(left, len(done))


def _jobs(sources: Sequence[str], out: Path | None, overwrite: bool) -> list[Job]:
    """Returns what is to be done.  Raises ValueError for sources and an --out that don't go together."""
    if PIPE in sources:
        if len(sources) > 1:
            raise ValueError("- is standard input, which is one file; give it alone.")
        if out is None or not names_file(out, (".wav",)):
            raise ValueError(f"--out is {out}; a name that ends in .wav is needed, or - for standard output.")
        refuse_existing(out, overwrite)
        return [Job("standard input", PIPE, out)]
    from encodec_fast.audio import find_audio, wav_targets

    jobs = jobs_of(find_audio(sources, frozenset({SUFFIX})), out, ".wav", overwrite)
    if len(jobs) > 1 or jobs[0].target.parent == out:
        # refuses what is there and is not ours
        for job in jobs:
            wav_targets(job.target.parent, [job.target.name], overwrite)
    return jobs


def _opened(jobs: Sequence[Job], at_hand: AtHand, failures: list[ClipFailure]) -> Iterator[OpenedFile]:
    """Yields the files that can be read; the others are added to `failures`."""
    from encodec_fast.codec.opened import OpenedFile
    from encodec_fast.compression.segments import CompressedFileError
    from encodec_fast.formats import ClipFailure

    for job in jobs:
        try:
            with Path(job.source).open("rb") as file:
                yield OpenedFile(file, at_hand)
        except CompressedFileError as error:
            failures.append(ClipFailure(job.id, job.source, str(error)))


def _model_name(files: Iterable[OpenedFile], jobs: Sequence[Job]) -> str | None:
    """Returns the model that the first file names, which names one; None where no file could be read.

    A file of another model fails when its turn comes.
    """
    nameless = False
    for file in files:
        if file.model_name:
            return file.model_name
        nameless = True
    if nameless:
        raise ValueError(f"{jobs[0].source} does not say which model made it; name that with --model.")
    return None


def _digest(source: str, subtype: str, part: Part) -> str:
    """Returns what tells whether a WAV file was made of this compressed file."""
    from encodec_fast.codec.opened import WHOLE

    how = subtype if part == WHOLE else f"{subtype} {part.start} {part.duration}"
    return hashlib.sha256(Path(source).read_bytes() + how.encode()).hexdigest()[:32]


def _done(jobs: Sequence[Job], subtype: str, part: Part) -> set[str]:
    """Returns the ids of the files that have their audio already.  Raises ValueError for other audio under its name."""
    from encodec_fast.audio.wav import made_of

    there = [job for job in jobs if job.target.is_file()]
    for job in there:
        note = made_of(job.target)
        # of what is none of ours the source is not read
        if not note or note != _digest(job.source, subtype, part):
            raise ValueError(f"{job.target} exists already, and was not made of {job.source}; choose another --out or add --overwrite.")
    return {job.id for job in there}


class _Run:
    """A run over compressed files."""

    def __init__(
        self,
        model: EncodecModel,
        at_hand: AtHand,
        subtype: str,
        part: Part,
        pipe: IO[bytes] | None,
        piped: OpenedFile | None,
    ):
        from encodec_fast.plan.weights import weights_sha256

        self._model, self._at_hand, self._subtype, self._part, self._pipe, self._piped = model, at_hand, subtype, part, pipe, piped
        self._seconds, self._damaged = 0.0, 0
        # reading all of the weights takes as long as decoding some seconds
        self._weights = weights_sha256(model)

    def all(self, jobs: Sequence[Job], before: int) -> int:
        """Decompresses each into its file; returns the exit code.  before: files that an earlier run did."""
        from encodec_fast.compression.segments import CompressedFileError
        from encodec_fast.formats import ClipFailure

        written, failures = 0, list[ClipFailure]()
        with ExitStack() as stack:
            bar = stack.enter_context(ProgressBar(len(jobs), "files")) if len(jobs) > 1 else None
            for index, job in enumerate(jobs):
                try:
                    self._one(job)
                    written += 1
                except CompressedFileError as error:
                    failures.append(ClipFailure(job.id, job.source, str(error)))
                if bar is not None:
                    bar.update(index + 1)
        if before:
            say(f"decompressed before: {counted(before, 'file')}")
        if written:
            where = "" if self._pipe is not None else f", wrote {jobs[0].target if len(jobs) == 1 else counted(written, 'WAV file')}"
            say(f"{self._seconds:,.1f} s{where}")
        if failures:
            report_failures(failures)
        if self._damaged:
            complain(f"{counted(self._damaged, 'file')} with damage: what is lost is silence.")
        return CLIPS_FAILED if failures or self._damaged else OK

    def _one(self, job: Job) -> None:
        from encodec_fast.codec.opened import SEGMENTS_AT_ONCE, OpenedFile, lost_text

        lost: list[Lost] = []
        with ExitStack() as stack:
            opened = self._piped or OpenedFile(stack.enter_context(Path(job.source).open("rb")), self._at_hand)
            rate = opened.sampling_rate
            blocks = opened.decoded(self._model, lost, 1 if self._piped else SEGMENTS_AT_ONCE, self._part, self._weights)
            count = self._to_pipe(opened, blocks) if self._pipe is not None else self._to_file(job, blocks, opened)
        self._seconds += count / rate
        for each in lost:
            complain(f"{shown(job.id)}: {lost_text(each, rate)}")
        self._damaged += bool(lost)

    def _to_file(self, job: Job, blocks: Iterator[np.ndarray], opened: OpenedFile) -> int:
        from encodec_fast.audio.wav import write_wav_blocks

        note = "" if self._piped else _digest(job.source, self._subtype, self._part)
        return write_wav_blocks(job.target, blocks, opened.channels, opened.sampling_rate, self._subtype, note)

    def _to_pipe(self, opened: OpenedFile, blocks: Iterator[np.ndarray]) -> int:
        """Writes a WAV stream; each block as it comes."""
        from encodec_fast.audio.live import wav_header, wav_samples

        assert self._pipe is not None
        count = 0
        self._pipe.write(wav_header(opened.sampling_rate, opened.channels, self._subtype, opened.samples_of(self._part)))
        for block in blocks:
            self._pipe.write(wav_samples(block, opened.sampling_rate, self._subtype))
            self._pipe.flush()
            count += block.shape[1]
        return count
