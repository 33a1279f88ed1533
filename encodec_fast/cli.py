"""The command `encodec-fast`. Heavy packages are imported inside the commands, so that --help is quick."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

import encodec_fast
from encodec_fast.terminal import ProgressBar, complain, console, report_failures, say, speed_line

if TYPE_CHECKING:
    from encodec_fast.dataset import Summary
    from encodec_fast.formats import ClipFailure
    from encodec_fast.model import EncodecModel
    from encodec_fast.verify import VerifyReport

OK, CLIPS_FAILED, WRONG_ARGUMENT, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False)
# the class of typer's own complaints about arguments, which it doesn't export by itself
UsageError: Any = typer.BadParameter.__base__

ModelOption = Annotated[
    str,
    typer.Option("--model", "-m", metavar="NAME", help="Hugging Face name, local folder, or built in: demo, demo-48khz (untrained)."),
]
BandwidthOption = Annotated[float, typer.Option("--bandwidth", "-b", metavar="KBPS", help="Bandwidth in kbps.")]
DeviceOption = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:N. auto: the GPU if there is one.")]
BackendOption = Annotated[
    str, typer.Option(metavar="NAME", help="auto or one that `encodec-fast info` lists; it is used or the run stops.")
]
ThreadsOption = Annotated[int, typer.Option(min=0, metavar="N", help="CPU threads of the model. 0: torch's choice.")]
BatchOption = Annotated[float, typer.Option(metavar="SECONDS", help="Audio per call of the model, in seconds.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run wrote there.")]


class WrongArgument(Exception):
    """Ends the command with exit code 2 and this one line."""


@contextmanager
def checking_arguments() -> Iterator[None]:
    """Turns what the library says of a bad argument into WrongArgument."""
    from encodec_fast.dispatch import BackendError

    try:
        yield
    except (ValueError, BackendError) as error:
        raise WrongArgument(str(error)) from error
    except OSError as error:
        raise WrongArgument(f"{error.filename}: {error.strerror}." if error.filename else str(error)) from error


@contextmanager
def prepared_model(name: str, device: str, backend: str, threads: int) -> Iterator[tuple[EncodecModel, str]]:
    """The model and its id, with the backend in force for the block. Says what is being loaded."""
    with ExitStack() as stack:
        with checking_arguments():
            import torch
            from transformers.utils import logging

            from encodec_fast import dispatch
            from encodec_fast.demo import DEMO_MODELS
            from encodec_fast.pretrained import load_model

            # its progress bars and load reports; what matters of them comes back as errors
            logging.set_verbosity_error()
            logging.disable_progress_bar()
            if threads:
                torch.set_num_threads(threads)
            # "auto" leaves the choice to the environment variable
            if backend != "auto":
                stack.enter_context(dispatch.use_backend(backend))
            dispatch.requested()
            model, model_id = load_model(name, device)
        if model_id in DEMO_MODELS:
            say(f"model {model_id}: {DEMO_MODELS[model_id]}. For trying things out; its audio is not for listening.")
        yield model, model_id


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "encodec-fast tokenize corpus/ --out codes/\n\n"
    "encodec-fast tokenize 'a/**/*.flac' b/ -o codes/ -m facebook/encodec_48khz -b 12\n\n"
    "encodec-fast tokenize talk.mp3 --out codes/ --model demo    (no download)\n\n"
    "Exit code: 0 all clips done, 1 some clips failed (listed on standard error and in errors.parquet), 2 wrong argument."
)
def tokenize(
    sources: Annotated[list[str], typer.Argument(metavar="SRC", help="Audio files, folders (searched below) or quoted glob patterns.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the Parquet shards.")],
    model: ModelOption = "facebook/encodec_24khz",
    bandwidth: BandwidthOption = 6.0,
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    threads: ThreadsOption = 0,
    batch_seconds: BatchOption = 60.0,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Threads that read and resample ahead.")] = 2,
    rows_per_shard: Annotated[int, typer.Option(min=1, metavar="N", help="Clips per shard.")] = 10_000,
    overwrite: OverwriteOption = False,
) -> int:
    """Turn audio files into EnCodec codes, stored as Parquet: one row per clip.

    WAV, FLAC, OGG, Opus, MP3 and what else libsndfile reads, of any rate; channels are mixed to the model's.
    """
    with checking_arguments():
        from encodec_fast.audio import find_audio
        from encodec_fast.formats.parquet import shard_paths

        check_batch_seconds(batch_seconds)
        files = find_audio(sources)
        # before the model is loaded, which may take a while
        if shard_paths(out) and not overwrite:
            raise ValueError(f"--out {out} holds codes already; choose another folder or add --overwrite.")
    with prepared_model(model, device, backend, threads) as (loaded, model_id):
        options = {"bandwidth": bandwidth, "device": str(loaded.device), "batch_seconds": batch_seconds, "sources": sources}
        summary = tokenize_files(files, loaded, model_id, out, bandwidth, options, batch_seconds, workers, rows_per_shard, overwrite)
    say(speed_line(summary))
    for path in summary.files:
        say(f"wrote {path}")
    if summary.failures:
        report_failures(summary.failures)
        return CLIPS_FAILED
    return OK


def check_batch_seconds(batch_seconds: float) -> None:
    if not batch_seconds > 0:
        raise ValueError(f"--batch-seconds is {batch_seconds:g}; more than 0.")


def tokenize_files(
    files: Sequence[Any],
    model: EncodecModel,
    model_id: str,
    out: Path,
    bandwidth: float,
    options: dict[str, Any],
    batch_seconds: float = 60.0,
    workers: int = 2,
    rows_per_shard: int = 10_000,
    overwrite: bool = False,
) -> Summary:
    """Reads, encodes and writes the files with a progress bar."""
    from encodec_fast import dataset
    from encodec_fast.formats.parquet import ParquetShardWriter
    from encodec_fast.pretrained import weights_sha256

    with checking_arguments():
        encoder = dataset.ClipEncoder(model, bandwidth)
        info = dataset.dataset_info(model, model_id, weights_sha256(model), options)
        writer = ParquetShardWriter(out, info, rows_per_shard=rows_per_shard, overwrite=overwrite)
    config = model.config
    reader = dataset.Reader(files, config.sampling_rate, config.audio_channels, workers=workers)
    with ProgressBar(len(files)) as bar:
        return dataset.run(
            reader,
            encoder,
            writer,
            batch_seconds=batch_seconds,
            progress=lambda so_far: bar.update(so_far.clips + len(so_far.failures), so_far.times_real_time, so_far.wall_seconds),
        )


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "encodec-fast decode codes/ --out wavs/\n\n"
    "encodec-fast decode codes/ --out wavs/ --subtype FLOAT\n\n"
    "Exit code: 0 all clips done, 1 some clips failed (listed on standard error), 2 wrong argument."
)
def decode(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `encodec-fast tokenize` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="WAVS", help="Folder for the WAV files, named after the ids.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="NAME", help="Default: the model named in the codes' metadata.")
    ] = None,
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    threads: ThreadsOption = 0,
    batch_seconds: BatchOption = 60.0,
    subtype: Annotated[str, typer.Option(metavar="NAME", help="Samples as PCM_16, PCM_24 or FLOAT.")] = "PCM_16",
    overwrite: OverwriteOption = False,
) -> int:
    """Turn stored codes back into WAV files.

    The weights must be those that made the codes; others are refused.
    """
    with checking_arguments():
        from encodec_fast.audio import WAV_SUBTYPES, wav_paths
        from encodec_fast.formats.parquet import read_ids, read_info

        check_batch_seconds(batch_seconds)
        if subtype not in WAV_SUBTYPES:
            raise ValueError(f"--subtype is {subtype}; allowed are {', '.join(WAV_SUBTYPES)}.")
        info = read_info(folder)
        targets = [out / path for path in wav_paths(read_ids(folder))]
        existing = [path for path in targets if path.exists()]
        if existing and not overwrite:
            raise ValueError(f"{existing[0]} exists already; choose another --out or add --overwrite.")
    with prepared_model(model or info.model_id, device, backend, threads) as (loaded, model_id):
        from encodec_fast.pretrained import weights_sha256

        found = weights_sha256(loaded)
        if found != info.weights_sha256:
            raise WrongArgument(
                f"{folder} was made by {info.model_id} with weights {info.weights_sha256[:16]}, "
                f"but {model_id} has weights {found[:16]}; give the model that made the codes."
            )
        summary = decode_folder(folder, loaded, targets, batch_seconds, subtype)
    say(speed_line(summary))
    say(f"wrote {summary.clips} WAV files to {out}")
    if summary.failures:
        report_failures(summary.failures)
        return CLIPS_FAILED
    return OK


def decode_folder(
    folder: Path, model: EncodecModel, targets: Sequence[Path], batch_seconds: float = 60.0, subtype: str = "PCM_16"
) -> Summary:
    """Decodes every row of the folder into its target file, with a progress bar."""
    from encodec_fast import dataset
    from encodec_fast.audio import write_wav
    from encodec_fast.formats import ClipFailure
    from encodec_fast.formats.parquet import iter_rows

    summary = dataset.Summary()
    start = time.perf_counter()
    with ProgressBar(len(targets)) as bar:
        decoded = dataset.decode(model, iter_rows(folder), batch_seconds=batch_seconds)
        for target, (row, audio) in zip(targets, decoded, strict=True):
            if isinstance(audio, str):
                summary.failures.append(ClipFailure(row.id, row.path, audio))
            else:
                write_wav(target, audio, row.sampling_rate, subtype)
                summary.clips += 1
                summary.seconds += row.duration
                summary.files.append(target)
            summary.wall_seconds = time.perf_counter() - start
            bar.update(summary.clips + len(summary.failures), summary.times_real_time, summary.wall_seconds)
    return summary


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "encodec-fast verify --model demo\n\n"
    "encodec-fast verify recordings/ --model facebook/encodec_48khz --bandwidth 12\n\n"
    "Exit code: 0 the same codec, 1 not the same or a clip could not be read, 2 wrong argument."
)
def verify(
    sources: Annotated[
        list[str] | None, typer.Argument(metavar="AUDIO", help="Files, folders, patterns. Default: the bundled clips.")
    ] = None,
    model: ModelOption = "facebook/encodec_24khz",
    bandwidth: Annotated[
        float | None,
        typer.Option("--bandwidth", "-b", metavar="KBPS", help="Default: the highest, which compares every codebook."),
    ] = None,
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    threads: ThreadsOption = 0,
) -> int:
    """Compare codes and audio with Hugging Face transformers in float32 and float64, on your audio and weights."""
    with checking_arguments():
        from encodec_fast.audio import find_audio
        from encodec_fast.demo import bundled_clips

        files = find_audio(sources or bundled_clips())
    with prepared_model(model, device, backend, threads) as (loaded, _):
        if bandwidth is not None:
            with checking_arguments():
                from encodec_fast.dataset import ClipEncoder

                ClipEncoder(loaded, bandwidth)
        report, failures = verify_files(files, loaded, bandwidth)
    if report is not None:
        say(str(report))
    if failures:
        report_failures(failures)
    return OK if report is not None and report.passed and not failures else CLIPS_FAILED


def verify_files(files: Sequence[Any], model: EncodecModel, bandwidth: float | None) -> tuple[VerifyReport | None, list[ClipFailure]]:
    """The comparison with HF on the files that can be read (None if none can), and those that can't."""
    import torch

    from encodec_fast.dataset import Clip, Reader
    from encodec_fast.verify import verify as compare

    read = list(Reader(files, model.config.sampling_rate, model.config.audio_channels))
    clips = [torch.from_numpy(clip.samples) for clip in read if isinstance(clip, Clip)]
    failures = [failure for failure in read if not isinstance(failure, Clip)]
    return (compare(model, clips, bandwidth) if clips else None), failures


@app.command(epilog="[bold]Example[/bold]\n\nencodec-fast info")
def info() -> int:
    """Show versions, devices, and which backends can run here, or why not."""
    import os
    import platform

    import numpy
    import pyarrow
    import soundfile
    import torch
    import transformers

    from encodec_fast.dispatch import ENVIRONMENT_VARIABLE, backend_report

    lines = {
        "encodec_fast": encodec_fast.__version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
        "pyarrow": pyarrow.__version__,
        "soundfile": f"{soundfile.__version__}, libsndfile {soundfile.__libsndfile_version__}",
        "CPU": f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads",
        "GPU": "none that torch can use",
    }
    if torch.cuda.is_available():
        lines["GPU"] = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    for name, available, reason in backend_report():
        lines[f"backend {name}"] = "yes" if available else f"no: {reason}"
    lines[ENVIRONMENT_VARIABLE] = os.environ.get(ENVIRONMENT_VARIABLE) or "not set (auto)"
    width = max(map(len, lines))
    for name, value in lines.items():
        say(f"{name:<{width}}  {value}")
    return OK


@app.command(
    epilog="[bold]Example[/bold]\n\nencodec-fast demo --out encodec-demo\n\n"
    "Needs no download. Exit code: 0 the codes are Hugging Face's, 1 they are not."
)
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for codes and audio.")] = Path("encodec-fast-demo"),
    threads: ThreadsOption = 0,
) -> int:
    """Tokenize the bundled clips with the built-in models, decode them, and compare with Hugging Face transformers.

    Speech runs through the 24 kHz architecture and music through the 48 kHz stereo one, at 6 kbps. The models are
    untrained: speed and codes are real, the decoded audio is not for listening.
    """
    from encodec_fast.audio import find_audio, wav_paths
    from encodec_fast.demo import bundled_clips
    from encodec_fast.formats.parquet import read_ids

    bandwidth = 6.0
    columns: dict[str, dict[str, str]] = {}
    written: list[Path] = []
    passed = True
    for name, kind in (("demo", "speech"), ("demo-48khz", "music")):
        files = find_audio([path for path in bundled_clips() if path.name.startswith(kind)])
        with prepared_model(name, "cpu", "auto", threads) as (model, model_id):
            codes, wavs = out / name / "codes", out / name / "wavs"
            options = {"bandwidth": bandwidth, "command": "demo"}
            encoded = tokenize_files(files, model, model_id, codes, bandwidth, options, overwrite=True)
            decoded = decode_folder(codes, model, [wavs / path for path in wav_paths(read_ids(codes))])
            report, _ = verify_files(files, model, bandwidth)
        assert report is not None
        good = report.passed and not encoded.failures and not decoded.failures
        passed = passed and good
        columns[name] = demo_column(kind, model, encoded, decoded, report, good)
        written += [*encoded.files, *decoded.files]
    table = Table(title=f"Bundled clips at {bandwidth:g} kbps, on the CPU", title_justify="left", pad_edge=False)
    table.add_column("")
    for name in columns:
        table.add_column(name)
    for line in next(iter(columns.values())):
        table.add_row(line, *(column[line] for column in columns.values()))
    console().print(table)
    for path in written:
        say(f"wrote {path}")
    return OK if passed else CLIPS_FAILED


def demo_column(kind: str, model: EncodecModel, encoded: Summary, decoded: Summary, report: VerifyReport, good: bool) -> dict[str, str]:
    """The column of one model in the demo's table."""
    rate, channels = model.config.sampling_rate, model.config.audio_channels
    embeddings, waveform = report.embeddings, report.waveform
    assert embeddings is not None and waveform is not None
    return {
        "clips": f"{encoded.clips} {kind}, {encoded.seconds:.1f} s",
        "model": f"{rate // 1000} kHz {'stereo' if channels == 2 else 'mono'}, untrained",
        "tokenize": f"{encoded.times_real_time:.1f} x real time",
        "decode": f"{decoded.times_real_time:.1f} x real time",
        "codes compared with HF": f"{report.codes}",
        "frames that differ": f"{len(report.flips)}",
        "embedding error, ours / HF": f"{embeddings.ours:.1e} / {embeddings.reference:.1e}",
        "waveform error, ours / HF": f"{waveform.ours:.1e} / {waveform.reference:.1e}",
        "same codec as HF": "yes" if good else "NO",
    }


def version_callback(asked: bool) -> None:
    if asked:
        say(f"encodec-fast {encodec_fast.__version__}")
        raise typer.Exit()


@app.callback(
    epilog="[bold]Start here[/bold]\n\n"
    "encodec-fast demo                            try everything, no download\n\n"
    "encodec-fast tokenize corpus/ --out codes/   audio to codes\n\n"
    "encodec-fast decode codes/ --out wavs/       codes to audio\n\n"
    "Each command has its own --help."
)
def top_level(
    version: Annotated[
        bool, typer.Option("--version", callback=version_callback, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """EnCodec, several times faster: audio to codes and back, with the codes of Hugging Face transformers."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; an error is one line on standard error."""
    command: Callable[..., Any] = typer.main.get_command(app).main
    try:
        code = command(args=arguments, prog_name="encodec-fast", standalone_mode=False) or OK
    except UsageError as error:
        context = getattr(error, "ctx", None)
        name = context.command_path if context is not None else "encodec-fast"
        message = error.format_message().rstrip(".")
        if message:  # none for the bare command, which has shown its help instead
            complain(f"{name}: {message}. See {name} --help.")
        return WRONG_ARGUMENT
    except WrongArgument as error:
        complain(f"encodec-fast: {error}")
        return WRONG_ARGUMENT
    # typer makes an exit code of it, or Abort before 0.26
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:
        complain("encodec-fast: interrupted; the clips written so far are kept.")
    return code


if __name__ == "__main__":
    sys.exit(main())
