"""`encodec-fast tokenize`: parses, calls encodec_fast.tokenize, and prints."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from encodec_fast.cli.app import (
    CLIPS_FAILED,
    KEPT,
    OK,
    BackendOption,
    BandwidthOption,
    BatchOption,
    DeviceOption,
    ModelOption,
    OverwriteOption,
    Stopped,
    ThreadsOption,
    WrongArgument,
    announce,
    check_batch_seconds,
    checking_arguments,
    command,
    prepared_model,
    quiet_transformers,
)
from encodec_fast.cli.one_file import names_file, one_row, read_clip, refuse_existing, speaking_elsewhere
from encodec_fast.cli.terminal import ProgressBar, RunProgress, complain, left_out_line, report_failures, say, summary_lines
from encodec_fast.dataset.options import BANDWIDTH, BATCH_SECONDS, CLIP_TIMEOUT, MAX_CLIP_BYTES
from encodec_fast.formats import FORMATS, joined
from encodec_fast.wording import counted

if TYPE_CHECKING:
    from typing_extensions import Self

    from encodec_fast.dataset.listening import HeardClip
    from encodec_fast.dataset.options import TokenizeOptions
    from encodec_fast.dataset.run import Summary
    from encodec_fast.dataset.tokenize import TokenizeProgress

# What --help puts together
SOURCES, STORED, RUN, SHARED, SPEED = "Sources", "What is stored", "The run", "Many processes, devices or machines", "Speed"

# Options of runs over folders; that of one file has no shards, ledger, report or writers beside it
FOR_FOLDERS = "limit retry_failed check format rows_per_shard shard_minutes shard devices engine address actors verify listen".split()

SourcesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="SRC",
        help="Audio files, folders, quoted patterns, manifests (.tsv .csv .jsonl, NeMo, lhotse, Kaldi), .tar, .parquet; or URLs of them.",
    ),
]
OutOption = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="DIR", help="Folder for the codes; NAME.npy or NAME.parquet for those of one file; - for a pipe."),
]
WorkersOption = Annotated[int, typer.Option(min=1, metavar="N", help="Processes that read and resample ahead.", rich_help_panel=SPEED)]
LongClipOption = Annotated[float, typer.Option(metavar="SECONDS", help="Longer clips run in pieces.", rich_help_panel=SPEED)]
AudioColumnOption = Annotated[str, typer.Option(metavar="NAME", help="Column of tables that holds the audio.", rich_help_panel=SOURCES)]
ColumnsOption = Annotated[
    str,
    typer.Option(
        metavar="NAMES", help="Columns of manifests and tables to store with the codes: all, none or text,speaker.", rich_help_panel=SOURCES
    ),
]
ClipTimeoutOption = Annotated[
    float, typer.Option(metavar="SECONDS", help="Reading a clip, or 30 s of a long one, may take.", rich_help_panel=SOURCES)
]
MaxClipOption = Annotated[int, typer.Option(min=1, metavar="BYTES", help="A larger file is an error.", rich_help_panel=SOURCES)]
ProtocolOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Open URLs of this protocol too; repeatable. Only for trusted sources.", rich_help_panel=SOURCES),
]
LimitOption = Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N clips, by id.", rich_help_panel=RUN)]
RetryOption = Annotated[bool, typer.Option("--retry-failed", help="Try those clips again that failed before.", rich_help_panel=RUN)]
CheckOption = Annotated[
    bool, typer.Option("--check", help="Read all codes that count as done; do again what is damaged.", rich_help_panel=RUN)
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only list what would be done, from the headers.", rich_help_panel=RUN)]
FormatOption = Annotated[str, typer.Option(metavar="NAME", help=f"{joined([*FORMATS], 'or')}.", rich_help_panel=STORED)]
EmbeddingsOption = Annotated[
    bool,
    typer.Option("--embeddings", help="Store what the encoder gives, before the quantizer, too: float16.", rich_help_panel=STORED),
]
RowsOption = Annotated[int, typer.Option(min=1, metavar="N", help="Clips per shard, at most.", rich_help_panel=STORED)]
MinutesOption = Annotated[
    float, typer.Option(metavar="MINUTES", help="A shard ends after this time: the most work a power cut costs.", rich_help_panel=STORED)
]
ShardOption = Annotated[
    str, typer.Option(metavar="I/N", help="This process's part. auto: as torchrun or SLURM say in the environment.", rich_help_panel=SHARED)
]
DevicesOption = Annotated[
    str | None,
    typer.Option(
        metavar="LIST", help="Several at once: cuda (all GPUs), cuda:0,cuda:1 or cpu,cpu (cores in groups).", rich_help_panel=SHARED
    ),
]
EngineOption = Annotated[
    str, typer.Option(metavar="NAME", help="local or ray: Ray Data on a cluster that shares the folders.", rich_help_panel=SHARED)
]
AddressOption = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="Of the Ray cluster. Default: one on this machine.", rich_help_panel=SHARED)
]
ActorsOption = Annotated[
    int, typer.Option(min=0, metavar="N", help="Encoders of the Ray engine. 0: as many as fit.", rich_help_panel=SHARED)
]
VerifyOption = Annotated[
    float, typer.Option(metavar="SHARE", help="Share of the clips to compare with transformers, 0 to 1.", rich_help_panel=RUN)
]
ReportOption = Annotated[bool, typer.Option("--report/--no-report", help="Write _report.html at the end.", rich_help_panel=RUN)]
ListenOption = Annotated[
    int,
    typer.Option(
        min=0, metavar="N", help="Clips to hear in the report: original, lowest, middle and highest bandwidth.", rich_help_panel=RUN
    ),
]


@command(
    "[bold]Examples[/bold]\n\n"
    "encodec-fast tokenize corpus/ --out codes/\n\n"
    "encodec-fast tokenize 'a/**/*.flac' b/ -o codes/ -m facebook/encodec_48khz -b 12\n\n"
    "encodec-fast tokenize train.jsonl 'shards/*.tar' data.parquet --out codes/ --devices cuda\n\n"
    "encodec-fast tokenize song.mp3 --out song.npy\n\n"
    "encodec-fast tokenize talk.mp3 --out codes/ --model demo    (no download)\n\n"
    "The same command continues a run that was interrupted, and adds clips that are new in the sources.",
    resumes=True,
)
def tokenize(
    context: typer.Context,
    sources: SourcesArgument,
    out: OutOption,
    model: ModelOption = "facebook/encodec_24khz",
    bandwidth: BandwidthOption = BANDWIDTH,
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    threads: ThreadsOption = 0,
    batch_seconds: BatchOption = BATCH_SECONDS,
    overwrite: OverwriteOption = False,
    workers: WorkersOption = 2,
    long_clip_seconds: LongClipOption = 300.0,
    audio_column: AudioColumnOption = "audio",
    columns: ColumnsOption = "all",
    clip_timeout: ClipTimeoutOption = CLIP_TIMEOUT,
    max_clip_bytes: MaxClipOption = MAX_CLIP_BYTES,
    allow_protocol: ProtocolOption = None,
    limit: LimitOption = None,
    retry_failed: RetryOption = False,
    check: CheckOption = False,
    dry_run: DryRunOption = False,
    format: FormatOption = "parquet",
    embeddings: EmbeddingsOption = False,
    rows_per_shard: RowsOption = 10_000,
    shard_minutes: MinutesOption = 10.0,
    shard: ShardOption = "auto",
    devices: DevicesOption = None,
    engine: EngineOption = "local",
    address: AddressOption = None,
    actors: ActorsOption = 0,
    verify: VerifyOption = 0.0,
    report: ReportOption = True,
    listen: ListenOption = 0,
) -> int:
    """Turn audio into EnCodec codes, one row per clip, in shards; go on where an earlier run ended.

    Reads WAV, FLAC, OGG, Opus, MP3 and what else libsndfile reads, at any rate. The rest is read by ffmpeg, if installed.

    Channels are mixed to the model's.
    """
    with checking_arguments():
        from encodec_fast.dataset.options import RayCluster, TokenizeOptions
        from encodec_fast.dataset.split import part_of_process

        check_batch_seconds(batch_seconds)
        if engine not in ("local", "ray"):
            raise ValueError(f"--engine is {engine!r}; allowed are local and ray.")
        options = TokenizeOptions(
            bandwidth,
            format=format,
            batch_seconds=batch_seconds,
            long_clip_seconds=long_clip_seconds,
            rows_per_shard=rows_per_shard,
            shard_seconds=60 * shard_minutes,
            workers=workers,
            audio_column=audio_column,
            verify_share=verify,
            check=check,
            clip_timeout=clip_timeout,
            max_clip_bytes=max_clip_bytes,
            protocols=tuple(allow_protocol or ()),
            columns=_columns(columns),
            embeddings=embeddings,
        )
        part, said = part_of_process(shard, os.environ)
        if engine == "ray":
            _check_alone(part, said, devices)
    if names_file(out, (".npy", ".parquet")):
        if len(sources) > 1:
            raise WrongArgument(f"{len(sources)} sources, and --out is one file; name a folder.")
        if given := _given(context, FOR_FOLDERS):
            verb = "mean" if len(given) > 1 else "means"
            raise WrongArgument(f"--out is one file, for which {joined(given, 'and')} {verb} nothing; name a folder.")
        if embeddings and out.suffix.lower() != ".parquet":
            raise WrongArgument(f"--embeddings: {out} holds codes alone; give NAME.parquet or a folder to --out.")
        if not dry_run:
            return tokenize_one(sources[0], out, options, model, device, backend, threads, overwrite)
    if dry_run:
        return show_preview(sources, out, options, limit)
    if said:
        say(f"shard {part[0]}/{part[1]}, as {said} say")
    with naming_ends(), RunDisplay((model, devices or device, backend, threads)) as display:
        if overwrite and part[1] > 1:
            raise ValueError("--overwrite with a --shard would remove the other shards' work; remove the folder instead.")
        summary = tokenize_sources(
            sources,
            out,
            model=model,
            device=_device(device, devices),
            backend=backend,
            threads=threads,
            part=part,
            ray=RayCluster(address, actors) if engine == "ray" else None,
            overwrite=overwrite,
            retry_failed=retry_failed,
            limit=limit,
            options=options,
            progress=display,
        )
    heard = hear(out, model, "auto" if devices else device, listen) if report and listen else []
    return finish(summary, out, report, heard)


def tokenize_one(
    source: str, out: Path, options: TokenizeOptions, model: str, device: str, backend: str, threads: int, overwrite: bool
) -> int:
    """Encodes one clip into a file of codes, or to standard output; returns the exit code."""
    refuse_existing(out, overwrite)
    with speaking_elsewhere(out) as pipe, prepared_model(model, device, backend, threads, options.bandwidth) as (loaded, model_id):
        from encodec_fast.dataset.columns import column_types
        from encodec_fast.dataset.engines import Engine
        from encodec_fast.formats.atomic import write_atomically
        from encodec_fast.formats.parquet import write_file
        from encodec_fast.formats.records import npy_bytes

        clip = read_clip(source, loaded, options)
        row = one_row(loaded, clip, options.bandwidth, options.embeddings)
        if pipe is None:
            out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix.lower() == ".parquet":
            info = Engine(loaded, model_id, options, [source]).info
            write_file(out, [row], replace(info, columns=column_types([clip.task])))
        else:
            data = npy_bytes(row.codes)
            if pipe is None:
                write_atomically(out, data)
            else:
                pipe.write(data)
        say(f"{row.duration:.1f} s at {options.bandwidth:g} kbps: codes {list(row.codes.shape)} (chunks, levels, frames)")
        if pipe is None:
            say(f"wrote {out}")
    return OK


def _check_alone(part: tuple[int, int], said: str, devices: str | None) -> None:
    """Raises ValueError if a run of the Ray engine is one of several, or has devices of its own."""
    if devices is not None:
        raise ValueError("--engine ray deals out the work to the devices of the cluster; leave out --devices.")
    if part[1] > 1:
        origin, remedy = (said, "start it once, with --shard 0/1") if said else ("--shard", "leave out --shard")
        share = f"{part[0]}/{part[1]}"
        raise ValueError(f"--engine ray deals out all of the work itself, and by {origin} this is shard {share}; {remedy}.")


def _device(device: str, devices: str | None) -> str | list[str]:
    """Returns the devices of --devices, else the one of --device, as `tokenize` takes them."""
    if devices is None:
        from encodec_fast.dataset.split import device_of_process

        return device_of_process(device, os.environ)
    from encodec_fast.dataset.devices import parse_devices

    return parse_devices(devices)


def _given(context: typer.Context, names: Sequence[str]) -> list[str]:
    """Returns those of the options that the command line names, as it names them."""
    sources = {name: context.get_parameter_source(name) for name in names}
    return [f"--{name.replace('_', '-')}" for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def _columns(names: str) -> tuple[str, ...] | None:
    """Returns what --columns names; None: all."""
    if names == "all":
        return None
    return () if names == "none" else tuple(name.strip() for name in names.split(",") if name.strip())


class RunDisplay:
    """Shows a run as it goes on: a bar of headers, then one of the codes. It is the `progress` of encodec_fast.tokenize.

    announced: model, device, backend and threads, to be said before it is loaded; None: it was.
    """

    def __init__(self, announced: tuple[str, str, str, int] | None = None):
        self._announced = announced
        self._headers: ProgressBar | None = None
        self._codes: RunProgress | None = None
        self._bar = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, progress: TokenizeProgress) -> None:
        if progress.phase == "model":
            if self._announced is not None:
                announce(*self._announced)
            quiet_transformers()
        elif progress.phase == "headers" and self._codes is None:
            self._show_headers(progress.done, progress.total)
        elif self._codes is not None and progress.summary is not None:
            self._codes.update(progress.summary)

    def _show_headers(self, done: int, total: int) -> None:
        if self._headers is None:
            self._headers = self._bar.enter_context(ProgressBar(total, "headers"))
        self._headers.update(done, total)
        if done >= total:
            self._bar.close()
            self._codes = self._bar.enter_context(RunProgress())


def show_preview(sources: Sequence[str], out: Path, options: TokenizeOptions, limit: int | None) -> int:
    """Prints what a run would do, from the headers alone; returns the exit code."""
    with checking_arguments(), RunDisplay() as display:
        from encodec_fast.dataset.tokenize import preview

        found = preview(sources, out, limit=limit, options=options, progress=display)
    say(f"{counted(found.clips, 'clip')}, {found.seconds / 3600:.2f} hours, the longest {found.longest:.1f} s")
    if found.known:
        say(f"{found.known} of them are known in {out} already")
    if found.columns:
        say(f"columns: {', '.join(f'{name} ({type_name})' for name, type_name in found.columns.items())}")
    if found.left_out:
        say(left_out_line(found.left_out))
    if found.failures:
        report_failures(found.failures)
        return CLIPS_FAILED
    return OK


def tokenize_sources(sources: Sequence[str], out: Path, **arguments: Any) -> Summary:
    """Calls encodec_fast.tokenize, which is imported here: --help has to be quick."""
    from encodec_fast.dataset.tokenize import tokenize

    return tokenize(sources, out, **arguments)


@contextmanager
def naming_ends() -> Iterator[None]:
    """Turns what ends a run midway into one line, and exit code 3; another process in the folder into exit code 2."""
    try:
        with checking_arguments():
            yield
    except RuntimeError as error:
        # loads torch, which is there if one of them was raised
        from encodec_fast.dataset.engines import RunStopped
        from encodec_fast.dataset.ray_engine import RayError

        if isinstance(error, RayError):
            raise WrongArgument(str(error)) from error
        if isinstance(error, RunStopped):
            raise Stopped(f"{error} {KEPT}") from error
        raise


def hear(out: Path, model: str, device: str, count: int) -> list[HeardClip]:
    """Returns clips of the run for its report; loads the model again, for which other processes may have done the work."""
    with checking_arguments():
        from encodec_fast.dataset.listening import heard_clips
        from encodec_fast.pretrained import load_model

        return heard_clips(out, load_model(model, device), count)


def finish(summary: Summary, out: Path, report: bool, heard: Sequence[HeardClip] = ()) -> int:
    """Prints what was done, and writes the report; returns the exit code.  heard: clips to listen to in it."""
    from encodec_fast.dataset.ledger import Ledger

    failures = Ledger(out).failures()
    for line in summary_lines(summary, len(failures)):
        say(line)
    for path in summary.files:
        say(f"wrote {path}")
    if report:
        from encodec_fast.dataset.report import write_report
        from encodec_fast.formats import FormatError

        try:
            say(f"wrote {write_report(out, heard)}")
        except FormatError as error:
            say(f"no report: {error}")
    for warning in summary.warnings:
        complain(warning)
    if failures:
        report_failures(failures)
    wrong = summary.verified is not None and (summary.verified["failed"] or summary.verified["changed"])
    return CLIPS_FAILED if failures or wrong else OK
