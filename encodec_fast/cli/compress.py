"""`encodec-fast compress`: audio to compressed files."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from encodec_fast.cli.app import (
    CLIPS_FAILED,
    MODEL,
    OK,
    BackendOption,
    BandwidthOption,
    DeviceOption,
    ModelOption,
    OverwriteOption,
    ThreadsOption,
    WrongArgument,
    checking_arguments,
    command,
    prepared_model,
)
from encodec_fast.cli.one_file import PIPE, names_file, refuse_existing, speaking_elsewhere
from encodec_fast.cli.terminal import ProgressBar, report_failures, say
from encodec_fast.dataset.options import BANDWIDTH
from encodec_fast.wording import counted

if TYPE_CHECKING:
    import numpy as np

    from encodec_fast.audio import AudioFile
    from encodec_fast.codec.files import Settings
    from encodec_fast.compression.choice import AtHand
    from encodec_fast.compression.coders import Coder
    from encodec_fast.compression.header import Header
    from encodec_fast.model import EncodecModel

    Headers = Sequence[tuple[Header, Coder]]

SUFFIX = ".ecdc"
# Of segments, in seconds: a file's, and those of a pipe, which are its latency
FILE_SEGMENT, LIVE_SEGMENT = 10.0, 1.0

TablesOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Tables of `fit_tables`, for static and adaptive.", rich_help_panel=MODEL)
]
LmOption = Annotated[
    Path | None,
    typer.Option("--lm", metavar="PATH", help="A language model, for lm. Default: for demo that of demo.", rich_help_panel=MODEL),
]


@command(
    "[bold]Examples[/bold]\n\nencodec-fast compress song.wav --out song.ecdc --bandwidth 6\n\n"
    "encodec-fast compress recordings/ --out small/\n\n"
    "ffmpeg -i talk.mp4 -f wav - | encodec-fast compress - -o talk.ecdc -b 3\n\n"
    "encodec-fast decompress small/ --out wavs/ turns them back. The same command continues one that was interrupted.",
    resumes=True,
)
def compress(
    sources: Annotated[list[str], typer.Argument(metavar="AUDIO", help="Files, folders, patterns; - is WAV from standard input.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="NAME", help="NAME.ecdc for one file, else a folder; - for a pipe. Default: beside one file."),
    ] = None,
    model: ModelOption = "facebook/encodec_24khz",
    bandwidth: BandwidthOption = BANDWIDTH,
    coder: Annotated[str, typer.Option(metavar="NAME", help="auto, raw, static, adaptive or lm. auto: the best that is at hand.")] = "auto",
    segment: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Coded by itself: what damage costs, and the latency of a pipe. Default: 10, of pipes 1."),
    ] = None,
    tables: TablesOption = None,
    lm: LmOption = None,
    version_0: Annotated[
        bool,
        typer.Option(
            "--version-0",
            help="Write what encodec 0.1.1 reads: no checks, no weights named; raw bits, or --coder lm, which only this machine with "
            "this thread count and torch can read.",
        ),
    ] = False,
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    threads: ThreadsOption = 0,
    overwrite: OverwriteOption = False,
) -> int:
    """Compress audio: EnCodec's codes, entropy-coded, checked and indexed.

    A pipe is written while its audio comes: each segment when its last sample is there.
    """
    live = PIPE in sources
    if live and len(sources) > 1:
        raise WrongArgument("- is standard input, which is one recording; give it alone.")
    seconds = segment if segment is not None else LIVE_SEGMENT if live else FILE_SEGMENT
    if version_0 and segment is not None:
        raise WrongArgument("--version-0 has no segments; leave out --segment.")
    with checking_arguments():
        from encodec_fast.compression.choice import CODERS

        if coder not in CODERS:
            raise ValueError(f"--coder is {coder!r}; allowed are {', '.join(CODERS)}.")
        if not 0 < seconds < 1e6:
            raise ValueError(f"--segment is {seconds:g}; seconds above 0 are needed.")
        jobs = _jobs(sources, out, overwrite)
        at_hand = read_coders(tables, lm)
        # the codes of demo have both in this package, which version 0 does not take
        bundled = model == "demo" and not version_0
        needs = {"static": ("--tables", tables or bundled), "lm": ("--lm", lm or bundled)}
        if coder in needs and not needs[coder][1]:
            raise ValueError(f"--coder is {coder}, which needs {needs[coder][0]}.")
        if version_0:
            from encodec_fast.codec.files import version0_coder

            version0_coder(coder, at_hand)
    with (
        speaking_elsewhere(jobs[0].target) as pipe,
        prepared_model(model, device, backend, threads, bandwidth) as (loaded, _),
        checking_arguments(),
    ):
        from encodec_fast.codec.files import SEGMENTS_AT_ONCE, Settings

        settings = Settings(bandwidth, coder, seconds, at_hand, 1 if live else SEGMENTS_AT_ONCE)
        if version_0:
            from encodec_fast.codec.files import version0_name

            version0_name(loaded)
        return _run(jobs, loaded, settings, pipe, version_0, overwrite)


@dataclass(frozen=True)
class Job:
    """A recording and the file that it becomes."""

    id: str
    source: str
    target: Path


@dataclass
class Totals:
    """What was written."""

    seconds: float = 0.0
    bytes: int = 0
    files: int = 0


def read_coders(tables: Path | None, lm: Path | None) -> AtHand:
    """Returns the tables and the language model of these files.  Raises ValueError or OSError for what can't be read."""
    from encodec_fast.compression.choice import AtHand
    from encodec_fast.compression.tables import read_tables
    from encodec_fast.language_model.loading import load_lm

    return AtHand(None if tables is None else read_tables(tables), None if lm is None else load_lm(lm))


def _jobs(sources: Sequence[str], out: Path | None, overwrite: bool) -> list[Job]:
    """Returns what is to be done.  Raises ValueError for sources and an --out that don't go together."""
    if [*sources] == [PIPE]:
        if out is None or not names_file(out, (SUFFIX,)):
            raise ValueError(f"--out is {out}; a name that ends in {SUFFIX} is needed, or - for standard output.")
        refuse_existing(out, overwrite)
        return [Job("standard input", PIPE, out)]
    from encodec_fast.audio import find_audio

    return jobs_of(find_audio(sources), out, SUFFIX, overwrite)


def jobs_of(files: Sequence[AudioFile], out: Path | None, suffix: str, overwrite: bool) -> list[Job]:
    """Returns a job for each file, into one file, a folder, or beside it.

    Raises ValueError for several files and an --out that is one. Raises WrongArgument for one that is there already.
    """
    from encodec_fast.audio import wav_paths

    if out is None and len(files) == 1:
        out = Path(files[0].path).with_suffix(suffix)
        if "://" in files[0].path:
            raise ValueError(f"{files[0].path} is a URL; name a file or folder with --out.")
    if out is None:
        raise ValueError(f"{len(files)} files need a folder; name it with --out.")
    if names_file(out, (suffix,)):
        if len(files) > 1:
            raise ValueError(f"--out is {out}, one file, for {len(files)}; name a folder.")
        refuse_existing(out, overwrite)
        return [Job(files[0].id, files[0].path, out)]
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out is {out}, which is no folder; a folder or a name that ends in {suffix} is needed.")
    names = wav_paths([file.id.removesuffix(SUFFIX) for file in files])
    return [Job(file.id, file.path, out / name.with_suffix(suffix)) for file, name in zip(files, names, strict=True)]


def _run(jobs: Sequence[Job], model: EncodecModel, settings: Settings, pipe: IO[bytes] | None, version_0: bool, overwrite: bool) -> int:
    from encodec_fast.audio import AudioError
    from encodec_fast.compression.segments import CompressedFileError
    from encodec_fast.formats import ClipFailure

    totals, failures, before = Totals(), list[ClipFailure](), 0
    single = len(jobs) == 1
    headers = [] if version_0 else settings.headers(model)
    with ExitStack() as stack:
        bar = None if single else stack.enter_context(ProgressBar(len(jobs), "files"))
        for index, job in enumerate(jobs):
            if job.target.exists() and not overwrite:
                _check_made_alike(job.target, headers)
                before += 1
            else:
                try:
                    _compress_one(job, model, settings, headers, pipe, totals)
                except AudioError as error:
                    failures.append(ClipFailure(job.id, job.source, error.reason))
                except CompressedFileError as error:
                    failures.append(ClipFailure(job.id, job.source, str(error)))
            if bar is not None:
                bar.update(index + 1)
    if totals.files:
        kbps = totals.bytes * 8 / 1000 / max(totals.seconds, 1e-9)
        of = "" if single else f"{counted(totals.files, 'file')}, "
        say(f"{of}{totals.seconds:,.1f} s at {settings.bandwidth:g} kbps: {totals.bytes:,} bytes, {kbps:.2f} kbps")
    if before:
        say(f"compressed before: {counted(before, 'file')}")
    if totals.files and pipe is None:
        say(f"wrote {jobs[0].target if single else counted(totals.files, 'file')}")
    if failures:
        report_failures(failures)
        return CLIPS_FAILED
    return OK


def _compress_one(job: Job, model: EncodecModel, settings: Settings, headers: Headers, pipe: IO[bytes] | None, totals: Totals) -> None:
    """Compresses one recording into its file, whole or not at all, or into the pipe as it comes.  headers: none for version 0."""
    from encodec_fast.codec.files import compress_stream, compress_version0, version0_coder
    from encodec_fast.formats.atomic import open_atomically

    with _opened(job, model) as (blocks, original_rate):
        if pipe is None:
            job.target.parent.mkdir(parents=True, exist_ok=True)
        with open_atomically(job.target) if pipe is None else nullcontext(pipe) as file:
            if headers:
                writer = compress_stream(blocks, file, model, settings, original_rate, headers)
                size, samples = writer.size, writer.num_samples
            else:
                lm = version0_coder(settings.coder, settings.at_hand)
                data = compress_version0(blocks, model, settings.bandwidth, lm)
                size = file.write(data)
                samples = _warn_of_version0(data)
    totals.seconds += samples / model.config.sampling_rate
    totals.bytes += size
    totals.files += 1


def _warn_of_version0(data: bytes) -> int:
    """Returns the samples of a version 0 file; says on standard error where it can't be read."""
    import io

    from encodec_fast.cli.terminal import complain
    from encodec_fast.compression.stock_language_model import where_it_holds
    from encodec_fast.compression.version0 import read_header, readable_by_encodec

    header = read_header(io.BytesIO(data))
    if not readable_by_encodec(header):
        complain(f"encodec 0.1.1 can't read a file of {header.num_samples} samples: it expects one frame more than its own writer gives.")
    if header.language_model:
        complain(where_it_holds())
    return header.num_samples


@contextmanager
def _opened(job: Job, model: EncodecModel) -> Iterator[tuple[Iterator[np.ndarray], int]]:
    """Yields the blocks of a recording at the model's rate and channels, and its own rate."""
    from encodec_fast.audio import audio_blocks, open_audio
    from encodec_fast.audio.live import live_blocks, read_wav_header
    from encodec_fast.codec.files import BLOCK_SECONDS

    rate, channels = model.config.sampling_rate, model.config.audio_channels
    if job.source == PIPE:
        wav = read_wav_header(sys.stdin.buffer, job.id)
        yield live_blocks(sys.stdin.buffer, wav, rate, channels, job.id), wav.sampling_rate
        return
    with open_audio(job.source) as file:
        yield audio_blocks(file, rate, channels, BLOCK_SECONDS), file.info.sampling_rate


def _check_made_alike(path: Path, headers: Headers) -> None:
    """Raises WrongArgument for a file that an earlier run with these arguments did not write.  headers: none for version 0."""
    from encodec_fast.compression.header import read_header
    from encodec_fast.compression.segments import CompressedFileError

    try:
        with path.open("rb") as file:
            found = read_header(file)
    except (OSError, CompressedFileError):
        found = None
    # length and rate are each recording's own
    alike = found is not None and any(replace(found, num_samples=None, original_rate=each.original_rate) == each for each, _ in headers)
    if not alike:
        raise WrongArgument(f"{path} exists already, and was not made like this; choose another --out or add --overwrite.")
