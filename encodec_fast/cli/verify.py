"""`encodec-fast verify`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from encodec_fast.cli.app import (
    CLIPS_FAILED,
    OK,
    BackendOption,
    DeviceOption,
    ModelOption,
    ThreadsOption,
    WrongArgument,
    checking_arguments,
    command,
    prepared_model,
)
from encodec_fast.cli.readable import readable_clips
from encodec_fast.cli.terminal import ProgressBar, report_failures, say

if TYPE_CHECKING:
    from encodec_fast.corpus.tasks import Task
    from encodec_fast.formats import ClipFailure
    from encodec_fast.model import EncodecModel
    from encodec_fast.verify import VerifyReport


@command(
    "[bold]Examples[/bold]\n\n"
    "encodec-fast verify --model demo\n\n"
    "encodec-fast verify recordings/ --model facebook/encodec_48khz --bandwidth 12"
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
        from encodec_fast.corpus.sources import find_tasks
        from encodec_fast.demo import bundled_clips

        tasks = find_tasks(sources or bundled_clips())
    with prepared_model(model, device, backend, threads, bandwidth) as (loaded, _):
        # whose codes are not those of float32
        if str(loaded.dtype) != "torch.float32":
            raise WrongArgument(f"{model}: its weights are {loaded.dtype}, and verify needs float32; save model.float() and give that.")
        report, failures = verify_tasks(tasks, loaded, bandwidth)
    if report is not None:
        say(str(report))
    if failures:
        report_failures(failures)
    return OK if report is not None and report.passed and not failures else CLIPS_FAILED


def verify_tasks(tasks: Sequence[Task], model: EncodecModel, bandwidth: float | None) -> tuple[VerifyReport | None, list[ClipFailure]]:
    """Compares with HF on the files that can be read. Returns the report, or None without such a file, and the failures."""
    import torch

    from encodec_fast.verify import verify as compare

    failures: list[ClipFailure] = []
    clips = [torch.from_numpy(clip.samples) for clip in readable_clips(tasks, model, failures)]
    if not clips:
        return None, failures
    with ProgressBar(len(clips), "clips compared") as bar:
        return compare(model, clips, bandwidth, bar.update), failures
