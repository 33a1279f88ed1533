"""`encodec-fast quality`."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encodec_fast.cli.app import (
    CLIPS_FAILED,
    OK,
    BackendOption,
    DeviceOption,
    ModelOption,
    OverwriteOption,
    ThreadsOption,
    WrongArgument,
    checking_arguments,
    command,
    prepared_model,
)
from encodec_fast.cli.one_file import refuse_existing
from encodec_fast.cli.readable import readable_clips
from encodec_fast.cli.terminal import ProgressBar, report_failures, say

if TYPE_CHECKING:
    import numpy as np

    from encodec_fast.corpus.tasks import Task
    from encodec_fast.formats import ClipFailure
    from encodec_fast.model import EncodecModel
    from encodec_fast.quality import QualityReport


@command(
    "[bold]Examples[/bold]\n\nencodec-fast quality recordings/ --model my-model --page quality.html\n\n"
    "encodec-fast quality speech.wav --bandwidth 3 --bandwidth 6 --json > quality.json"
)
def quality(
    sources: Annotated[list[str], typer.Argument(metavar="AUDIO", help="Files, folders, patterns.")],
    model: ModelOption = "facebook/encodec_24khz",
    bandwidth: Annotated[
        list[float] | None, typer.Option("--bandwidth", "-b", metavar="KBPS", help="May be given several times. Default: all of the model.")
    ] = None,
    clips: Annotated[int, typer.Option(min=1, metavar="N", help="Clips to measure at most, spread evenly over the sources.")] = 20,
    seconds: Annotated[float, typer.Option(metavar="SECONDS", help="Of each clip, from its beginning.")] = 30.0,
    page: Annotated[Path | None, typer.Option(metavar="NAME.html", help="Write a page to listen to, of 8 clips at most.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
    overwrite: OverwriteOption = False,
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    threads: ThreadsOption = 0,
) -> int:
    """Measure decoded audio against the recordings, per bandwidth: SI-SNR, STOI, mel distance, PESQ, use of the codebooks."""
    if not 0 < seconds < math.inf:
        raise WrongArgument(f"--seconds is {seconds:g}; a number above 0 is needed.")
    if page is not None:
        if not page.absolute().parent.is_dir():
            raise WrongArgument(f"--page is {page}; its folder is not there.")
        refuse_existing(page, overwrite)
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        with checking_arguments():
            from encodec_fast.corpus.sources import find_tasks
            from encodec_fast.dataset.statistics import spread

            tasks = spread(find_tasks(sources), clips)
        with prepared_model(model, device, backend, threads, bandwidth[0] if bandwidth else None) as (loaded, _):
            report, failures, names = measure_tasks(tasks, loaded, bandwidth, seconds, page is not None)
        if report is not None and page is not None:
            write_page(page, report, names)
    if report is not None:
        print(json.dumps(report.to_json(), ensure_ascii=False, allow_nan=False, indent=1)) if as_json else say(str(report))
    if failures:
        report_failures(failures)
    return CLIPS_FAILED if failures else OK


def measure_tasks(
    tasks: Sequence[Task], model: EncodecModel, bandwidths: Sequence[float] | None, seconds: float, listen: bool
) -> tuple[QualityReport | None, list[ClipFailure], list[str]]:
    """Measures the beginnings of the clips that can be read. Returns the report, or None without one, the failures, and the ids."""
    from encodec_fast.dataset.encoding import check_bandwidth
    from encodec_fast.quality import measure
    from encodec_fast.quality.page import HEARD_CLIPS

    failures: list[ClipFailure] = []
    names: list[str] = []
    length = max(1, round(seconds * model.config.sampling_rate))
    with checking_arguments():
        for bandwidth in bandwidths or []:
            check_bandwidth(model.config, bandwidth)

    def beginnings() -> Generator[np.ndarray, None, None]:
        for clip in readable_clips(tasks, model, failures):
            names.append(clip.task.id)
            yield clip.samples[:, :length]

    with contextlib.closing(beginnings()) as samples, ProgressBar(len(tasks)) as bar:
        first = next(samples, None)
        if first is None:
            return None, failures, names
        with checking_arguments():
            report = measure(
                model,
                itertools.chain([first], samples),
                bandwidths,
                listen=HEARD_CLIPS if listen else 0,
                progress=lambda done: bar.update(done + len(failures)),
            )
    return report, failures, names


def write_page(page: Path, report: QualityReport, names: Sequence[str]) -> None:
    """Writes the listening page, and says how large it is."""
    from encodec_fast.formats.atomic import write_atomically
    from encodec_fast.quality.page import listening_page

    data = listening_page(report, names[: len(report.heard)]).encode()
    say(f"wrote {write_atomically(page, data)} ({len(data) / 1e6:.1f} MB)")
