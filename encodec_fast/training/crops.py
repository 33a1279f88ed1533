"""The stream of crops that a model is trained on: crop n is a function of the seed and n, whoever reads it and whenever."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from encodec_fast.audio import AudioError
from encodec_fast.corpus.reader import LongClip, Reader, UnreadableClip
from encodec_fast.corpus.tasks import Task

# Read on both sides of a crop and cut off: a resampler rings where its input begins and ends, at 8 kHz up to 0.18 off within 20 ms.
# Behind that a crop differs from the file resampled whole by 3e-7.
MARGIN_SECONDS = 0.02
# Draws of gains for a sum that clips; then it is brought to full scale
_MOST_DRAWS = 100
# 2^-53: a float64 in [0, 1) has 53 bits
_UNIT = 2.0**-53


@dataclass(frozen=True)
class Part:
    """A stretch of a clip.  task: what is read.  start: of the stretch within the clip, seconds.  lead: seconds that are read before it."""

    task: Task
    start: float
    lead: float


@dataclass(frozen=True)
class Crop:
    """What crop `number` is summed of."""

    number: int
    parts: tuple[Part, ...]

    def __str__(self) -> str:
        return " + ".join(f"{part.task.shown_path} ({part.task.id}) at {part.task.start + part.lead:.4f} s" for part in self.parts)


@dataclass(frozen=True)
class CropPlan:
    """Draws crops of clips, each instant of audio as often as any other.

    tasks: with their lengths.  seconds: of a crop.  mix_share: probability of a sum of 2 to mix_files clips.
    gain_db: range of each clip's gain.

    Random numbers are those of Philox at a counter made of the crop's number. So a crop depends on no other one.
    Raises ValueError where no task has a length.
    """

    tasks: Sequence[Task]
    seconds: float
    seed: int = 0
    mix_share: float = 0.5
    mix_files: int = 2
    gain_db: tuple[float, ...] = (-10.0, 6.0)

    def __post_init__(self) -> None:
        ends = np.cumsum([task.seconds for task in self.tasks], dtype=np.float64)
        if not len(ends) or not ends[-1] > 0:
            raise ValueError(f"tasks are {len(self.tasks)} clips without audio; at least one that can be read is needed.")
        object.__setattr__(self, "_ends", ends)

    def crop(self, number: int) -> Crop:
        """Returns crop `number`, from 0 on."""
        drawn = self._uniform(number, 0, 2 + 2 * self.mix_files)
        clips = 2 + int(drawn[1] * (self.mix_files - 1)) if drawn[0] < self.mix_share else 1
        return Crop(number, tuple(self._part(place, offset) for place, offset in drawn[2:].reshape(-1, 2)[:clips]))

    def mix(self, crop: Crop, sounds: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the sum of the parts' audio, each at its gain, without clipping.

        sounds: float32 [C, T] of each part. Gains are drawn again while the sum exceeds full scale. Where it still does after 100 draws,
        it is divided by its peak.
        """
        low, high = self.gain_db
        for draw in range(_MOST_DRAWS):
            gains = 10 ** ((low + (high - low) * self._uniform(crop.number, 1 + draw, len(sounds))) / 20)
            mixed: np.ndarray = sum(gain * sound for gain, sound in zip(gains.astype(np.float32), sounds))
            peak = float(np.abs(mixed).max())
            if peak <= 1:
                return mixed
        return mixed / np.float32(peak)

    def fingerprint(self) -> str:
        """Returns eight hexadecimal digits of the clips' ids and lengths: equal where a run may go on."""
        crc = 0
        for task in self.tasks:
            crc = zlib.crc32(f"{task.id}\0{task.seconds:.4f}\n".encode(), crc)
        return f"{crc:08x}"

    def _part(self, place: float, offset: float) -> Part:
        ends: np.ndarray = self._ends  # type: ignore[attr-defined]
        # clips without audio end where the one before does, and are passed over
        task = self.tasks[min(int(np.searchsorted(ends, place * ends[-1], side="right")), len(ends) - 1)]
        start = offset * max(0.0, task.seconds - self.seconds)
        lead = min(MARGIN_SECONDS, start)
        wanted, left = lead + self.seconds + MARGIN_SECONDS, lead + task.seconds - start
        # to the end where a header's length may be an estimate
        duration = None if task.duration is None and left <= wanted else min(wanted, left)
        return Part(replace(task, start=task.start + start - lead, duration=duration, seconds=min(wanted, left)), start, lead)

    def _uniform(self, number: int, draw: int, size: int) -> np.ndarray:
        """Returns numbers in [0, 1), float64 [size]. They are made of raw bits, since numpy's distributions may change."""
        bits = np.random.Philox(key=self.seed, counter=[0, 0, draw, number]).random_raw(size)
        return (bits >> np.uint64(11)) * _UNIT


def read_crops(plan: CropPlan, reader: Reader, numbers: Iterable[int], samples: int) -> Iterator[tuple[Crop, np.ndarray]]:
    """Yields the crops of the numbers, which may have no end, each with its audio, float32 [C, samples].

    A clip that is shorter ends in zeros.
    Raises AudioError for a part that can't be read, which names the file and where the part lies.
    """
    drawn: deque[Crop] = deque()

    def tasks() -> Iterator[Task]:
        """Yields what to read, in a thread of the reader's."""
        for number in numbers:
            crop = plan.crop(number)
            drawn.append(crop)
            yield from (part.task for part in crop.parts)

    clips = reader.read(tasks())
    try:
        for clip in clips:
            crop = drawn.popleft()
            sounds = [clip, *islice(clips, len(crop.parts) - 1)]
            firsts = [round(part.lead * reader.sampling_rate) for part in crop.parts]
            yield crop, plan.mix(crop, [_samples(sound, crop.number, first, samples) for sound, first in zip(sounds, firsts)])
    finally:
        clips.close()  # type: ignore[attr-defined]


def _samples(clip: object, number: int, first: int, samples: int) -> np.ndarray:
    if isinstance(clip, UnreadableClip):
        where = f" At {clip.task.start:.4f} s, for crop {number}."
        raise AudioError(clip.task.shown_path, f"{clip.reason}{where} Repair the file or leave it out.")
    assert not isinstance(clip, LongClip)
    found: np.ndarray = clip.samples[:, first : first + samples]  # type: ignore[attr-defined]
    return np.pad(found, ((0, 0), (0, samples - found.shape[1])))
