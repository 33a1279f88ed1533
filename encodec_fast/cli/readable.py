"""Clips of commands that look at audio one by one: what can be read, and a failure for each of the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from encodec_fast.corpus.tasks import Clip, Task
    from encodec_fast.formats import ClipFailure
    from encodec_fast.model import EncodecModel


def readable_clips(tasks: Sequence[Task], model: EncodecModel, failures: list[ClipFailure]) -> Iterator[Clip]:
    """Yields whole clips at the model's rate and channels. Those that can't be read are added to `failures`."""
    from encodec_fast.corpus.reader import LongClip, Reader, UnreadableClip
    from encodec_fast.dataset.encoding import failure_of

    with Reader(model.config.sampling_rate, model.config.audio_channels, workers=1) as reader:
        for clip in reader.read(tasks):
            assert not isinstance(clip, LongClip)
            if isinstance(clip, UnreadableClip):
                failures.append(failure_of(clip.task, clip.reason))
            else:
                yield clip
