"""What runs on the nodes of a Ray cluster: functions that read and write, for which torch is not loaded, and actors that encode."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from encodec_fast.corpus.reader import Reader
from encodec_fast.corpus.tasks import Task
from encodec_fast.dataset.ledger import Ledger, LedgerError
from encodec_fast.dataset.options import BLOCK_SECONDS, TokenizeOptions
from encodec_fast.dataset.reading import reader_for
from encodec_fast.dataset.records import Record
from encodec_fast.dataset.writing import ShardWriter
from encodec_fast.errors import portable_os_error
from encodec_fast.formats import DatasetInfo


@dataclass(frozen=True)
class RayJob:
    """What every reading, encoding and writing stage has to know.

    threads: CPUs, and threads of the engine, per actor. gpus: per actor. actors: of the pool; 0: as many as fit into the cluster.
    """

    model: str
    backend: str
    info: DatasetInfo
    options: TokenizeOptions
    out: str
    sampling_rate: int
    channels: int
    threads: int = 1
    gpus: float = 0.0
    actors: int = 0


class MemoryLedger(Ledger):
    """Collects the lines of shards instead of writing them: the driver does that."""

    def __init__(self, out: str):
        super().__init__(out)
        self.lines: list[str] = []

    def append(self, record: Record) -> None:
        self.lines.append(record.to_json())


def _carried(error: Exception) -> Exception:
    """Returns the error as the driver can load and name it: Ray would wrap it, and lose what class it was."""
    return portable_os_error(error) if isinstance(error, OSError) else LedgerError(str(error))


def _reader(job: RayJob, tasks: Sequence[Task]) -> Reader:
    """Returns a reader with a process of its own: a file that ends it, or never ends, costs its clip and not this stage."""
    options = job.options
    amounts = {"long_seconds": options.long_clip_seconds, "block_seconds": BLOCK_SECONDS}
    return reader_for(options, job.sampling_rate, job.channels, min(1, len(tasks)), **amounts)


def read_group(batch: dict[str, Any], job: RayJob) -> dict[str, Any]:
    """Returns the group with its clips, decoded, in place of its tasks; a long clip stays a task."""
    batches = pickle.loads(batch["group"][0])
    tasks = [task for _, tasks in batches for task in tasks]
    short = [task for task in tasks if task.seconds <= job.options.long_clip_seconds]
    with _reader(job, short) as reader:
        read = reader.read(short)
        clips = [next(read) if task.seconds <= job.options.long_clip_seconds else task for task in tasks]
        sizes = [(number, len(tasks)) for number, tasks in batches]
        return {"group": [pickle.dumps((sizes, clips))], "reading": [reader.rates.times_real_time]}


class GroupEncoder:
    """An actor: the model, and what it makes of groups."""

    def __init__(self, job: RayJob):
        import torch

        from encodec_fast.dataset.encoding import ClipEncoder, check_made_alike
        from encodec_fast.pretrained import load_model
        from encodec_fast.serving import request

        torch.set_num_threads(job.threads)
        model = load_model(job.model, "cuda" if job.gpus else "cpu")
        self._encoder, self._job = ClipEncoder(model, job.options.bandwidth, job.options.embeddings), job
        with request.prefer_backend(job.backend):
            check_made_alike(self._encoder.model, job.info, "this node")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        from encodec_fast.dataset.batches import BatchEncoder
        from encodec_fast.dataset.verification import ShareVerifier
        from encodec_fast.serving import request

        job, options = self._job, self._job.options
        sizes, items = pickle.loads(batch["group"][0])
        verifier = ShareVerifier(self._encoder.model, options.bandwidth, options.verify_share)
        long_ones = [item for item in items if isinstance(item, Task)]
        with _reader(job, long_ones) as reader, request.prefer_backend(job.backend):
            read = reader.read(long_ones)
            clips = (next(read) if isinstance(item, Task) else item for item in items)
            finished = list(BatchEncoder(self._encoder, verifier).finished(sizes, clips))
        return {"group": [pickle.dumps(finished)], "reading": batch["reading"]}


def write_group(batch: dict[str, Any], job: RayJob) -> dict[str, Any]:
    """Writes the group's shards; returns the ledger's lines of them, and the error, pickled, that ended it early, if any."""
    ledger, options = MemoryLedger(job.out), job.options
    error = b""
    try:
        with ShardWriter(ledger, job.info, format=options.format, rows_per_shard=options.rows_per_shard, shard_seconds=math.inf) as writer:
            for finished in pickle.loads(batch["group"][0]):
                writer.put(finished)
    except (OSError, LedgerError) as refused:
        error = pickle.dumps(_carried(refused))
    return {"lines": [json.dumps(ledger.lines)], "reading": batch["reading"], "error": [error]}
