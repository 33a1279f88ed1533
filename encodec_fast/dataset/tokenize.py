"""`tokenize`: sources of audio to a folder of codes, in one call. The command of that name parses its options, calls it and prints."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from encodec_fast.audio.files import allow_protocols
from encodec_fast.corpus.sources import find_tasks, scan_seconds
from encodec_fast.dataset.columns import chosen_columns, column_types
from encodec_fast.dataset.ledger import Ledger
from encodec_fast.dataset.options import RayCluster, TokenizeOptions
from encodec_fast.formats import ClipFailure, format_module

if TYPE_CHECKING:
    from encodec_fast.dataset.run import Summary
    from encodec_fast.model import EncodecModel

Source = str | os.PathLike[str]


@dataclass(frozen=True)
class TokenizeProgress:
    """How far a run is.

    phase: what goes on: "model", it is loaded; "headers", the lengths of clips are read; "codes", clips are encoded.
    done, total: clips of that phase, failed ones included. Of "headers" the last call has done equal to total.
    summary: of the run so far; it changes while the run goes on. None before the first batch.
    """

    phase: Literal["model", "headers", "codes"]
    done: int
    total: int
    summary: Summary | None = None


ProgressCallback = Callable[[TokenizeProgress], None]


def tokenize(
    sources: Source | Sequence[Source],
    out: str | os.PathLike[str],
    *,
    model: EncodecModel | Source = "facebook/encodec_24khz",
    bandwidth: float | None = None,
    format: str | None = None,
    device: str | Sequence[str] = "auto",
    backend: str = "auto",
    threads: int = 0,
    part: tuple[int, int] = (0, 1),
    ray: RayCluster | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    limit: int | None = None,
    options: TokenizeOptions | None = None,
    progress: ProgressCallback | None = None,
) -> Summary:
    """Encodes every clip of the sources into a folder of codes, one row per clip; goes on where an earlier call ended.

        summary = encodec_fast.tokenize("recordings/", "codes/", model="facebook/encodec_24khz")
        rows = encodec_fast.load_codes("codes/")

    The run may end at any moment: by Ctrl-C, kill, a full disk or a power cut. Shards that were finished stay, and the same call does
    the rest. It adds clips that are new in the sources. The rows do not depend on interruptions, devices or parts.
    A clip that can't be read or encoded stops nothing: it stands in `failures`, and in `.encodec_fast/errors.jsonl` of the folder.

    sources: files, folders, patterns, manifests, tar shards, tables, or URLs of them; see corpus.sources.find_tasks.
    out: folder of the shards; made if it is not there. Read it with load_codes or CodesDataset.
    model: name or folder, as load_model takes it; or a model in memory, which is stored under its `name_or_path`.
    bandwidth: kbps, one of the model's; None: that of `options`, by default 6.
    format: of formats.FORMATS; None: that of `options`, by default parquet.
    device: "auto", "cpu", "cuda" or "cuda:1". Several in a list work at once, in a process each; "cpu" twice halves the cores.
    backend: as use_backend takes it; "auto" leaves the choice to ENCODEC_FAST_BACKEND.
    threads: CPU threads of the model; 0: torch's choice.
    part: (index, count), where `count` processes share the work; each calls with its own index, from 0.
    ray: the cluster that does the work instead of this process.
    overwrite: removes what an earlier run wrote into `out`, and nothing else.
    retry_failed: tries the clips again that failed before.
    limit: only the first clips by id, this many.
    options: everything else.
    progress: called as the run goes on. What it raises ends the run as an interrupt does.

    Returns what was done: clips, failures, seconds of audio, shards (`files`), wall seconds and more; see dataset.run.Summary.
    Raises:
        ValueError: an argument is wrong, or the model can't serve it.
        LedgerError (a ValueError): `out` holds codes that were made otherwise, or another process is at work there.
        FileNotFoundError: a source is not there.
        BackendError: the backend can't run.
        RayError: there is no cluster.
        RunStopped: the machine ended the run: a full disk, a lost GPU, a lost node.
    """
    names, settings = _names(sources), _settings(options, bandwidth, format)
    _check_split(device, part, ray, overwrite)
    _check_limit(limit)
    allow_protocols(settings.protocols)
    left_out: Counter[str] = Counter()
    tasks = find_tasks(names, settings.audio_column, left_out, settings.columns)
    # loads torch, which takes seconds: a source that is not there is named before
    from encodec_fast.dataset import engines

    tell = progress or _tell_nobody
    with engines.working_with(threads, backend):
        engines.check_before_loading(model, device, settings.bandwidth)
        tell(TokenizeProgress("model", 0, len(tasks)))
        loaded, model_id = engines.loaded_model(model, device, named=ray is not None or not isinstance(device, str))
        tell(TokenizeProgress("headers", 0, len(tasks)))
        engine = engines.Engine(loaded, model_id, settings, names, device, backend, threads, ray)
        ledger = Ledger(out, *part)
        scheduled = engine.plan(
            ledger,
            tasks,
            overwrite=overwrite,
            retry_failed=retry_failed,
            limit=limit,
            progress=lambda done, total: tell(TokenizeProgress("headers", done, total)),
        )
        tell(TokenizeProgress("headers", scheduled, scheduled))
        summary = engine.run(
            ledger,
            lambda so_far: tell(TokenizeProgress("codes", so_far.clips + len(so_far.failures), so_far.planned_clips, so_far)),
        )
    summary.left_out = dict(left_out)
    return summary


@dataclass(frozen=True)
class Preview:
    """What `tokenize` would do, from the headers alone.

    clips: that can be read.  seconds, longest: of audio, of all of them and of the longest one.  failures: clips that can't be read.
    known: clips that the folder knows already.  left_out: as in Summary.  columns: of the sources, that are stored, and their types.
    """

    clips: int
    seconds: float
    longest: float
    failures: list[ClipFailure]
    known: int
    left_out: dict[str, int]
    columns: dict[str, str]


def preview(
    sources: Source | Sequence[Source],
    out: str | os.PathLike[str],
    *,
    limit: int | None = None,
    options: TokenizeOptions | None = None,
    progress: ProgressCallback | None = None,
) -> Preview:
    """Reads the headers of the sources, and writes nothing. Arguments and errors are those of `tokenize`."""
    settings, tell = options or TokenizeOptions(), progress or _tell_nobody
    _check_limit(limit)
    allow_protocols(settings.protocols)
    left_out: Counter[str] = Counter()
    tasks = find_tasks(_names(sources), settings.audio_column, left_out, settings.columns)
    columns = column_types(chosen_columns(tasks, settings.columns))
    tasks = tasks[:limit]
    tell(TokenizeProgress("headers", 0, len(tasks)))
    scanned = scan_seconds(
        tasks,
        settings.audio_column,
        lambda done: tell(TokenizeProgress("headers", done, len(tasks))),
        settings.max_clip_bytes,
        settings.clip_timeout,
    )
    seconds = [task.seconds for task in scanned if task.problem is None]
    failures = [ClipFailure(task.id, task.shown_path, task.problem) for task in scanned if task.problem is not None]
    known = len(scanned) - len(Ledger(out).new_tasks(tasks))
    return Preview(len(seconds), sum(seconds), max(seconds, default=0.0), failures, known, dict(left_out), columns)


def _check_limit(limit: int | None) -> None:
    # a negative one would leave out the last clips
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; 1 or more is needed, or None for all clips.")


def _tell_nobody(progress: TokenizeProgress) -> None:
    pass


def _names(sources: Source | Sequence[Source]) -> list[str]:
    names = [os.fspath(source) for source in ([sources] if isinstance(sources, str | os.PathLike) else sources)]
    if not names:
        raise ValueError("sources is empty; name a file, folder, pattern, manifest, tar shard or table.")
    return names


def _settings(options: TokenizeOptions | None, bandwidth: float | None, format: str | None) -> TokenizeOptions:
    settings = options or TokenizeOptions()
    if bandwidth is not None:
        settings = replace(settings, bandwidth=bandwidth)
    if format is not None:
        settings = replace(settings, format=format)
    format_module(settings.format)
    return settings


def _check_split(device: str | Sequence[str], part: tuple[int, int], ray: RayCluster | None, overwrite: bool) -> None:
    """Raises ValueError for arguments that split the work in ways that don't go together."""
    index, count = part
    if not 0 <= index < count:
        raise ValueError(f"part is {index}/{count}; allowed are 0/{count} ... {count - 1}/{count}.")
    if not isinstance(device, str) and not device:
        raise ValueError("device is an empty list; name a device, or leave it out for the GPU if there is one.")
    if ray is not None and not isinstance(device, str):
        raise ValueError(f"device is {[*device]}, and ray deals out the work to the devices of its cluster; leave out device.")
    if ray is not None and count > 1:
        raise ValueError(f"part is {index}/{count}, and ray deals out all of the work; leave out part.")
    if overwrite and count > 1:
        raise ValueError(
            f"overwrite is True and part is {index}/{count}: it would remove the other parts' work; remove the folder instead."
        )
