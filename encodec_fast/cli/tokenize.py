"""`encodec-fast tokenize`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    check_batch_seconds,
    checking_arguments,
    command,
    prepared_model,
)
from encodec_fast.cli.terminal import ProgressBar, RunProgress, complain, counted, report_failures, say, summary_lines
from encodec_fast.dataset.options import BATCH_SECONDS, CLIP_TIMEOUT, MAX_CLIP_BYTES
from encodec_fast.formats import FORMATS, joined

if TYPE_CHECKING:
    from encodec_fast.corpus.tasks import Task
    from encodec_fast.dataset.options import TokenizeOptions
    from encodec_fast.dataset.run import Summary
    from encodec_fast.model import EncodecModel

SOURCES = "What to read"
RUNNING = "How to run"
STORING = "What to store"


@command(
    "[bold]Examples[/bold]\n\n"
    "encodec-fast tokenize corpus/ --out codes/\n\n"
    "encodec-fast tokenize 'a/**/*.flac' b/ -o codes/ -m facebook/encodec_48khz -b 12\n\n"
    "encodec-fast tokenize train.jsonl 'shards/*.tar' data.parquet --out codes/ --devices cuda\n\n"
    "encodec-fast tokenize talk.mp3 --out codes/ --model demo    (no download)\n\n"
    "The same command continues a run that was interrupted, and adds clips that are new in the sources."
)
def tokenize(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC",
            help="Audio files, folders, quoted patterns, manifests (.tsv .csv .jsonl, NeMo, lhotse), .tar, .parquet; or URLs of them.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the codes.")],
    model: ModelOption = "facebook/encodec_24khz",
    bandwidth: BandwidthOption = 6.0,
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    threads: ThreadsOption = 0,
    batch_seconds: BatchOption = BATCH_SECONDS,
    overwrite: OverwriteOption = False,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Processes that read and resample ahead.")] = 2,
    long_clip_seconds: Annotated[float, typer.Option(metavar="SECONDS", help="Longer clips run in pieces.")] = 300.0,
    audio_column: Annotated[str, typer.Option(metavar="NAME", help="Column of tables that holds the audio.")] = "audio",
    clip_timeout: Annotated[float, typer.Option(metavar="SECONDS", help="Reading a clip, or 30 s of a long one, may take.")] = CLIP_TIMEOUT,
    max_clip_bytes: Annotated[int, typer.Option(min=1, metavar="BYTES", help="A larger file is an error.")] = MAX_CLIP_BYTES,
    allow_protocol: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Open URLs of this protocol too; repeatable. Only for trusted sources.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N clips, by id.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try those clips again that failed before.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Read all codes that count as done; do again what is damaged.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be done, from the headers.")] = False,
    format: Annotated[str, typer.Option(metavar="NAME", help=f"{joined([*FORMATS], 'or')}.")] = "parquet",
    packed: Annotated[bool, typer.Option("--packed", help="Codes in as few bits as they need: 10, not 16 (parquet).")] = False,
    rows_per_shard: Annotated[int, typer.Option(min=1, metavar="N", help="Clips per shard.")] = 10_000,
    shard_minutes: Annotated[
        float, typer.Option(metavar="MINUTES", help="A shard ends after this time: the most work a power cut costs.")
    ] = 10.0,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="This process's part. auto: as torchrun or SLURM say in the environment.")
    ] = "auto",
    devices: Annotated[
        str | None, typer.Option(metavar="LIST", help="Several at once: cuda (all GPUs), cuda:0,cuda:1 or cpu,cpu (cores in groups).")
    ] = None,
    engine: Annotated[str, typer.Option(metavar="NAME", help="local or ray: Ray Data on a cluster that shares the folders.")] = "local",
    address: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Of the Ray cluster. Default: one on this machine.")] = None,
    actors: Annotated[int, typer.Option(min=0, metavar="N", help="Encoders of the Ray engine. 0: as many as fit.")] = 0,
    verify: Annotated[float, typer.Option(metavar="SHARE", help="Share of the clips to compare with transformers, 0 to 1.")] = 0.0,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html at the end.")] = True,
) -> int:
    """Turn audio into EnCodec codes, one row per clip, in shards; go on where an earlier run ended.

    WAV, FLAC, OGG, Opus, MP3 and what else libsndfile reads, of any rate, and the rest by ffmpeg where it is installed; channels are
    mixed to the model's.
    """
    with checking_arguments():
        from encodec_fast.audio.files import allow_protocols
        from encodec_fast.corpus.sources import find_tasks
        from encodec_fast.dataset.options import TokenizeOptions
        from encodec_fast.dataset.split import local_rank, parse_shard, shard_of_environment

        check_batch_seconds(batch_seconds)
        if engine not in ("local", "ray"):
            raise ValueError(f"--engine is {engine!r}; allowed are local and ray.")
        options = TokenizeOptions(
            bandwidth,
            format=format,
            packed=packed,
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
        )
        allow_protocols(options.protocols)
        part, said = (parse_shard(shard), "") if shard != "auto" else _environment_shard(shard_of_environment(os.environ))
        if engine == "ray":
            _check_alone(part, said, devices)
        # before the model is loaded, which may take a while
        tasks = find_tasks(sources, audio_column)
        rank = local_rank(os.environ)
    if dry_run:
        return show_plan(tasks if limit is None else tasks[:limit], options, out)
    if said:
        say(f"shard {part[0]}/{part[1]}, as {said} say")
    if device == "auto" and rank is not None:
        device = _device_of_rank(rank)
    names = None
    if devices is not None:
        with checking_arguments():
            from encodec_fast.dataset.devices import parse_devices

            names = parse_devices(devices)
            device = names[0]
    with ending_on_signals(), prepared_model(model, device, backend, threads) as (loaded, model_id):
        summary = tokenize_sources(
            sources,
            loaded,
            model_id,
            out,
            options,
            tasks=tasks,
            part=part,
            devices=names,
            backend=backend,
            threads=threads,
            overwrite=overwrite,
            retry_failed=retry_failed,
            limit=limit,
            ray=None if engine == "local" else (address, actors),
        )
    return finish(summary, out, report)


def _environment_shard(found: tuple[int, int, str]) -> tuple[tuple[int, int], str]:
    index, count, said = found
    return (index, count), said


def _check_alone(part: tuple[int, int], said: str, devices: str | None) -> None:
    """Raises ValueError if the run of the Ray engine is to be one of several, or on several devices by name."""
    if devices is not None:
        raise ValueError("--engine ray deals out the work to the devices of the cluster; leave out --devices.")
    if part[1] > 1:
        origin, remedy = (said, "start it once, with --shard 0/1") if said else ("--shard", "leave out --shard")
        share = f"{part[0]}/{part[1]}"
        raise ValueError(f"--engine ray deals out all of the work itself, and by {origin} this is shard {share}; {remedy}.")


def _device_of_rank(rank: int) -> str:
    import torch

    return f"cuda:{rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


def show_plan(tasks: Sequence[Task], options: TokenizeOptions, out: Path) -> int:
    """What a run would do, from the headers alone."""
    from encodec_fast.corpus.sources import scan_seconds
    from encodec_fast.dataset.encoding import failure_of
    from encodec_fast.dataset.ledger import Ledger

    with ProgressBar(len(tasks), "headers") as bar:
        scanned = scan_seconds(tasks, options.audio_column, bar.update, options.max_clip_bytes, options.clip_timeout)
    seconds = [task.seconds for task in scanned if task.problem is None]
    failures = [failure_of(task, task.problem) for task in scanned if task.problem is not None]
    say(f"{counted(len(seconds), 'clip')}, {sum(seconds) / 3600:.2f} hours, the longest {max(seconds, default=0.0):.1f} s")
    new = len(Ledger(out).new_tasks(tasks))
    if new < len(scanned):
        say(f"{len(scanned) - new} of them are known in {out} already")
    if failures:
        report_failures(failures)
        return CLIPS_FAILED
    return OK


def tokenize_sources(
    sources: Sequence[str],
    model: EncodecModel,
    model_id: str,
    out: Path,
    options: TokenizeOptions,
    *,
    tasks: list[Task] | None = None,
    part: tuple[int, int] = (0, 1),
    devices: Sequence[str] | None = None,
    backend: str = "auto",
    threads: int = 0,
    overwrite: bool = False,
    retry_failed: bool = False,
    limit: int | None = None,
    ray: tuple[str | None, int] | None = None,
) -> Summary:
    """Plans and runs, with progress. tasks: of the sources, where they were listed already. devices: several at once.

    ray: (address, actors) of the Ray engine.
    """
    from encodec_fast.corpus.sources import find_tasks
    from encodec_fast.dataset.encoding import ClipEncoder, dataset_info
    from encodec_fast.dataset.ledger import Ledger
    from encodec_fast.dataset.run import Run, identity, plan
    from encodec_fast.formats import format_module
    from encodec_fast.pretrained import weights_sha256

    with checking_arguments():
        ClipEncoder(model, options.bandwidth)
        format_module(options.format)
        if overwrite and part[1] > 1:
            raise ValueError("--overwrite with a --shard would remove the other shards' work; remove the folder instead.")
        kept = {"bandwidth": options.bandwidth, "device": str(model.device), "sources": list(sources)}
        info = dataset_info(model, model_id, weights_sha256(model), kept)
        ledger = Ledger(out, *part)
        found = find_tasks(sources, options.audio_column) if tasks is None else tasks
        bar = ProgressBar(len(found), "headers")
        with bar:
            plan(
                ledger,
                identity(info, model, options, sources),
                found,
                options,
                overwrite=overwrite,
                retry_failed=retry_failed,
                limit=limit,
                progress=bar.update,
            )
    with stopping(out), RunProgress() as progress:
        if ray is not None:
            from encodec_fast.dataset.ray_engine import run_on_ray
            from encodec_fast.dataset.ray_stages import RayJob

            address, actors = ray
            config, gpus = model.config, 1.0 if model.device.type == "cuda" else 0.0
            job = RayJob(
                model_id,
                backend,
                info,
                options,
                str(out.absolute()),
                config.sampling_rate,
                config.audio_channels,
                threads or 1,
                gpus,
                actors,
            )
            return run_on_ray(job, ledger, address, progress.update)
        if devices is None:
            return Run(model, info, ledger, options).run(progress.update)
        from encodec_fast.dataset.devices import DeviceJob, core_groups, run_on_devices

        (index, count), groups = part, core_groups(devices)
        writers = [(index * len(devices) + number, count * len(devices)) for number in range(len(devices))]
        jobs = [
            DeviceJob(model_id, name, backend, threads, cores, info, options, str(out), *writer, ledger.run)
            for name, cores, writer in zip(devices, groups, writers, strict=True)
        ]
        return run_on_devices(jobs, progress.update)


@contextmanager
def stopping(out: Path) -> Iterator[None]:
    """Turns what ends a run midway into one line, and exit code 3; another process in the folder into exit code 2."""
    from encodec_fast.dataset.devices import DeviceError
    from encodec_fast.dataset.encoding import is_lost_gpu
    from encodec_fast.dataset.ledger import LedgerError
    from encodec_fast.dataset.ray_engine import RayError, RayLost

    try:
        with checking_arguments():
            try:
                yield
            except LedgerError:
                raise
            except RayError as error:
                raise ValueError(str(error)) from error
            except BrokenPipeError:
                raise
            except OSError as error:
                raise Stopped(f"{error.filename or out}: {error.strerror or error}. {KEPT}") from error
    except (DeviceError, RayLost) as error:
        raise Stopped(f"{error} {KEPT}") from error
    except RuntimeError as error:
        if not is_lost_gpu(error):
            raise
        raise Stopped(f"{str(error).splitlines()[0]}. {KEPT}") from error


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Lets SIGTERM, which schedulers send before they kill, and SIGHUP, of a terminal that closes, end the run as Ctrl-C does.

    That is after the shard that is open. A signal that is ignored, as SIGHUP under nohup, stays so.
    """
    names = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {name: signal.getsignal(name) for name in names if signal.getsignal(name) is not signal.SIG_IGN}

    def interrupt(*_: Any) -> None:
        # once: a second one, as systemd sends with SIGHUP, would end the finishing
        for name in before:
            signal.signal(name, signal.SIG_IGN)
        raise KeyboardInterrupt

    for name in before:
        signal.signal(name, interrupt)
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def finish(summary: Summary, out: Path, report: bool) -> int:
    """Tells what was done; the exit code."""
    from encodec_fast.dataset.ledger import Ledger

    failures = Ledger(out).failures()
    for line in summary_lines(summary, len(failures)):
        say(line)
    for path in summary.files:
        say(f"wrote {path}")
    if report:
        from encodec_fast.dataset.report import ReportError, write_report
        from encodec_fast.formats import FormatError

        try:
            say(f"wrote {write_report(out)}")
        except (ReportError, FormatError) as error:
            say(f"no report: {error}")
    for warning in summary.warnings:
        complain(warning)
    if failures:
        report_failures(failures)
    wrong = summary.verified is not None and (summary.verified["failed"] or summary.verified["changed"])
    return CLIPS_FAILED if failures or wrong else OK
