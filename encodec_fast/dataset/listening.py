"""A few clips of a data set at several bandwidths, to be heard in its report."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

from encodec_fast.audio import AudioError
from encodec_fast.corpus.tasks import Task, read_task
from encodec_fast.dataset.ledger import Ledger
from encodec_fast.dataset.statistics import spread
from encodec_fast.model import EncodecModel
from encodec_fast.pages import HEARD_SECONDS, HeardClip, HeardVersion, flac_text


def heard_clips(folder: str | os.PathLike[str], model: EncodecModel, count: int) -> list[HeardClip]:
    """Returns `count` clips, spread over a folder's run: as they were, and at the lowest, middle and highest bandwidth.

    Leaves out rows of tables, and clips that can't be read any more: then there are fewer.
    """
    ledger = Ledger(folder)
    failed = {failure.id for failure in ledger.failures()}
    tasks = [task for schedule in ledger.schedules() for task in schedule.tasks() if task.row is None and task.id not in failed]
    return list(_heard(spread(tasks, count), model))


def _heard(tasks: list[Task], model: EncodecModel) -> Iterator[HeardClip]:
    config = model.config
    bandwidths = sorted(config.target_bandwidths)
    chosen = sorted({bandwidths[0], bandwidths[len(bandwidths) // 2], bandwidths[-1]})
    for task in tasks:
        try:
            samples = read_task(task, config.sampling_rate, config.audio_channels).samples
        except (AudioError, OSError, ValueError):
            continue
        clip = torch.from_numpy(samples[:, : round(HEARD_SECONDS * config.sampling_rate)])
        versions = [HeardVersion("original", flac_text(clip.numpy(), config.sampling_rate))]
        for bandwidth in chosen:
            (audio,) = model.decode_batch(model.encode_batch([clip], bandwidth))
            versions.append(HeardVersion(f"{bandwidth:g} kbps", flac_text(audio.float().cpu().numpy(), config.sampling_rate)))
        yield HeardClip(task.id, versions)
