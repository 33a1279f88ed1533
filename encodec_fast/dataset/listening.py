"""A few clips of a data set at several bandwidths, to be heard in its report."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import soundfile
import torch

from encodec_fast.audio import AudioError
from encodec_fast.corpus.tasks import Task, read_task
from encodec_fast.dataset.ledger import Ledger
from encodec_fast.dataset.statistics import spread
from encodec_fast.model import EncodecModel

# The beginning of a clip says what it sounds like; a page of whole songs would not open
HEARD_SECONDS = 10.0


@dataclass(frozen=True)
class HeardClip:
    """The beginning of a clip. versions: what each is called, and its FLAC as base64; the original first."""

    id: str
    versions: list[tuple[str, str]]


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
        versions = [("original", _flac(clip.numpy(), config.sampling_rate))]
        for bandwidth in chosen:
            (audio,) = model.decode_batch(model.encode_batch([clip], bandwidth))
            versions.append((f"{bandwidth:g} kbps", _flac(audio.float().cpu().numpy(), config.sampling_rate)))
        yield HeardClip(task.id, versions)


def _flac(samples: np.ndarray, sampling_rate: int) -> str:
    data = io.BytesIO()
    soundfile.write(data, samples.T.clip(-1, 1), sampling_rate, format="FLAC", subtype="PCM_16")
    return base64.b64encode(data.getvalue()).decode()
