"""A run on a Ray cluster: Ray Data reads groups of batches, a pool of actors encodes them, Ray writes the shards.

Schedule, ledger, batches and shards are those of the local engine. So the rows are the same, and either continues the other's run.
Every node must reach the folder of the codes and the audio. The driver, which runs here, writes the ledger. A group that a dead node
or actor was working on has no line, and Ray gives it to another.
"""

from __future__ import annotations

import json
import logging
import math
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from encodec_fast.dataset.ledger import Ledger
from encodec_fast.dataset.options import TokenizeOptions
from encodec_fast.dataset.ray_stages import GroupEncoder, RayJob, read_group, write_group
from encodec_fast.dataset.records import Record
from encodec_fast.dataset.run import Summary
from encodec_fast.dataset.schedule import Schedule, schedule_of
from encodec_fast.dataset.writing import add_counts

# Audio of a group, which is sent from where it is read to an actor: 10 minutes at 24 kHz are 58 MB
GROUP_SECONDS = 600.0
# Of the cluster, that Ray sets aside for each task that reads or writes
READER_CPUS, WRITER_CPUS = 0.5, 0.25


class RayError(RuntimeError):
    """Ray is missing or can't be reached; the message says what to do."""


class RayLost(RuntimeError):
    """The cluster could not go on: a node or actor that nobody could take the place of; the message has Ray's own words."""


def connect(address: str | None) -> Any:
    """Connects to a cluster, or to one on this machine that is started for it; returns the module ray.

    Raises RayError if ray is not installed or nothing answers at the address.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RayError(f"{error}; pip install 'encodec-fast[ray]'.") from error
    if not ray.is_initialized():
        try:
            ray.init(
                address=address, include_dashboard=False if address is None else None, logging_level=logging.ERROR, log_to_driver=False
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise RayError(f"no Ray cluster at {address}: {error}. Start one with `ray start --head`.") from error
    return ray


def run_on_ray(job: RayJob, ledger: Ledger, address: str | None, progress: Callable[[Summary], None] | None = None) -> Summary:
    """Encodes everything that the ledger has left to do; returns what was done. Continues what either engine began.

    Raises RayError if there is no cluster. Raises LedgerError if another process is at work, ValueError for the ledger of one of several.
    """
    if ledger.count != 1:
        # each would do all of the work, and remove the shards of the others as leftovers
        raise ValueError(f"ledger is that of writer {ledger.index}/{ledger.count}; Ray deals out all of the work, for Ledger(out).")
    ray = connect(address)
    start, summary = time.perf_counter(), Summary()
    with ledger.writing(check=job.options.check):
        schedules, undone = ledger.schedules(), ledger.undone()
        summary.plan(schedules, undone, undone)
        nodes = _alive(ray)
        for row in _noticing_loss(ray, _pipeline(ray, job, _groups(schedules, [int(number) for number in undone], job.options))):
            for line in json.loads(row["lines"]):
                record = Record.from_json(line)
                ledger.append(record)
                _count(summary, record, job.out)
            if row["error"]:
                raise pickle.loads(row["error"])
            summary.wall_seconds = time.perf_counter() - start
            summary.reading, summary.waited = row["reading"], 0.0
            if progress is not None:
                progress(summary)
        ledger.write_failures()
    if lost := nodes - _alive(ray):
        summary.warnings.append(f"{len(lost)} of the {len(nodes)} nodes of the cluster went away; others did what they had begun.")
    summary.wall_seconds = time.perf_counter() - start
    return summary


def _alive(ray: Any) -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _noticing_loss(ray: Any, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields the rows. Raises RayLost where Ray gives up for lack of a node, an actor or memory; errors of a stage's code pass."""
    try:
        yield from rows
    except Exception as error:
        lost = _loss(ray.exceptions, error)
        if lost is None:
            raise
        lines = [line.strip() for line in str(lost).splitlines() if line.strip()] or [type(lost).__name__]
        raise RayLost(f"the Ray cluster could not go on: {' ... '.join(dict.fromkeys([lines[0], lines[-1]])).rstrip('.')}.") from error


def _loss(kinds: Any, error: BaseException) -> BaseException | None:
    """Returns the error of the cluster that is behind an error, or None."""
    of_stages = (kinds.RayTaskError, getattr(kinds, "UserCodeException", kinds.RayTaskError))
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, kinds.RayError) and not isinstance(cause, of_stages):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return None


def _count(summary: Summary, record: Record, out: str) -> None:
    summary.clips += record.clips
    summary.seconds += record.seconds
    summary.failures += record.failures
    summary.busy += record.busy
    if record.file is not None:
        summary.files.append(Path(out) / record.file)
    if record.verified is not None:
        summary.verified = add_counts(summary.verified, record.verified)


def _groups(schedules: Sequence[Schedule], batches: Sequence[int], options: TokenizeOptions) -> list[dict[str, Any]]:
    """Returns the batches with their tasks in groups of at most GROUP_SECONDS and rows_per_shard; a longer batch is its own group."""
    groups: list[dict[str, Any]] = []
    seconds, clips = math.inf, 0
    for number in batches:
        tasks = list(schedule_of(schedules, number).tasks(number))
        # long clips too: they don't travel, but are encoded. A group is what one actor does, and what its end costs
        length = sum(task.seconds for task in tasks)
        if seconds + length > GROUP_SECONDS or clips + len(tasks) > options.rows_per_shard:
            groups.append({"batches": []})
            seconds, clips = 0.0, 0
        groups[-1]["batches"].append((number, tasks))
        seconds, clips = seconds + length, clips + len(tasks)
    return [{"group": pickle.dumps(group["batches"])} for group in groups]


def _pipeline(ray: Any, job: RayJob, groups: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields a row per group, once it is on the disk."""
    if not groups:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    cluster = ray.cluster_resources()
    fitting = int(cluster.get("GPU", 0) / job.gpus) if job.gpus else max(1, int(cluster.get("CPU", 1)) // (2 * job.threads))
    actors = min(job.actors or max(1, fitting), len(groups))
    data = ray.data.from_items(groups, override_num_blocks=len(groups))
    data = data.map_batches(read_group, batch_size=1, fn_kwargs={"job": job}, num_cpus=READER_CPUS)
    pool = ray.data.ActorPoolStrategy(size=actors)
    needs = {"num_cpus": _cpus_of_encoder(cluster.get("CPU", 0), actors, job.threads), "num_gpus": job.gpus or None}
    data = data.map_batches(GroupEncoder, batch_size=1, fn_constructor_kwargs={"job": job}, compute=pool, **needs)
    data = data.map_batches(write_group, batch_size=1, fn_kwargs={"job": job}, num_cpus=WRITER_CPUS)
    yield from data.iter_rows()


def _cpus_of_encoder(cpus: float, actors: int, threads: int) -> float:
    """Returns the CPUs to set aside for each encoder: its threads, or less where a reader and a writer would find no room.

    Ray would wait for room for ever, and say nothing. A cluster without any CPU yet is one that grows.
    """
    room = (cpus - READER_CPUS - WRITER_CPUS) / actors
    if not cpus or room >= threads:
        return threads
    # Ray takes parts of one CPU only
    return max(WRITER_CPUS, math.floor(room) if room > 1 else math.floor(100 * room) / 100)
