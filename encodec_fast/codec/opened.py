"""Compressed files of every version, opened: what they say of themselves, their codes, and their sound or a part of it."""

from __future__ import annotations

import io
import itertools
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any, cast

import numpy as np

from encodec_fast.audio.reading import PART_SLACK
from encodec_fast.codec.decoding import decoded_blocks
from encodec_fast.codec.encoding import streams
from encodec_fast.compression import version0
from encodec_fast.compression.choice import NOTHING, AtHand, coder_of
from encodec_fast.compression.container import ContainerReader, Lost, StoredSegment, decode_segments
from encodec_fast.compression.header import PREFIX
from encodec_fast.compression.segments import CompressedFileError, Segment
from encodec_fast.compression.version0 import Version0File, frames_of
from encodec_fast.model import EncodecModel
from encodec_fast.plan.geometry import hop_length
from encodec_fast.plan.weights import weights_sha256

# Segments that a coder gets at once, where nobody waits for one
SEGMENTS_AT_ONCE = 16
# That data sets are stored in, by formats.ecdc
SHARD_VERSION = 2
# Names of version 0, and where the official weights are
OFFICIAL = {"encodec_24khz": "facebook/encodec_24khz", "encodec_48khz": "facebook/encodec_48khz"}
# Before a part, of models that remember: the built-in one has the samples of the whole after 0.1 s
WARM_UP_SECONDS = 1.0


def version0_name(model: EncodecModel) -> str:
    """Returns the name that version 0 has for a model.  Raises ValueError where it has none."""
    config = model.config
    for name, known in version0.VERSION0_MODELS.items():
        geometry = (config.sampling_rate, config.audio_channels, bool(config.normalize), config.chunk_length, config.chunk_stride)
        wanted = (known.sampling_rate, known.channels, known.normalize, known.chunk_length, known.chunk_stride)
        if geometry == wanted and (hop_length(config), config.codebook_size) == (version0.HOP_LENGTH, 1 << version0.CODE_BITS):
            return name
    raise ValueError(f"model is of {config.sampling_rate} Hz; version 0 knows {' and '.join(version0.VERSION0_MODELS)} only.")


@dataclass(frozen=True)
class Part:
    """A part of a clip, in seconds.

    start: from the clip's beginning.  duration: None for all that follows.
    Raises ValueError for negative times, and for a duration of 0.
    """

    start: float = 0.0
    duration: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start < math.inf:
            raise ValueError(f"start is {self.start:g}; seconds from 0 on are needed.")
        if self.duration is not None and not 0 < self.duration < math.inf:
            raise ValueError(f"duration is {self.duration:g}; seconds above 0 are needed.")


WHOLE = Part()


class OpenedFile:
    """A compressed file of either version that is read as a stream, and what it says of itself.

    file: at the file's beginning; it need not seek.
    at_hand: what its coder may need.
    Raises CompressedFileError for another kind of file, a damaged header, and a coder that lacks what it needs.
    """

    def __init__(self, file: IO[bytes], at_hand: AtHand = NOTHING):
        prefix = _peeked(file)
        again = cast(IO[bytes], _Again(prefix, file))
        self.version = prefix[4] if len(prefix) > 4 else -1
        if self.version == SHARD_VERSION:
            raise CompressedFileError("it is a shard of a data set's codes; `encodec-fast decode` reads it.")
        self._stored: Version0File | ContainerReader
        if self.version == 0:
            self._stored = Version0File(again, at_hand.stock_coder)
            geometry = self._stored.header.geometry
            self.sampling_rate, self.channels = geometry.sampling_rate, geometry.channels
            self.levels, self.num_samples = self._stored.header.levels, self._stored.header.num_samples
            self.coder = "lm" if self._stored.header.language_model else "raw"
            self.model_name = OFFICIAL[self._stored.header.model]
        else:
            self._stored = ContainerReader(again)
            header = self._stored.header
            self.sampling_rate, self.channels, self.levels = header.sampling_rate, header.channels, header.levels
            # 0 where nothing says so yet
            self.num_samples = self._stored.num_samples
            self.coder, self.model_name = header.coder, header.model
            self._coder = coder_of(header, at_hand.tables, at_hand.lm_coder if header.coder == "lm" else None)

    def check_model(self, model: EncodecModel, weights: str | None = None) -> None:
        """Raises CompressedFileError for another model than made the file. Version 0 tells models apart by their rates only.

        weights: its `weights_sha256`, for who opens many files; None: it is computed.
        """
        if isinstance(self._stored, Version0File):
            try:
                name = version0_name(model)
            except ValueError as error:
                raise CompressedFileError(str(error)) from error
            if name != self._stored.header.model:
                raise CompressedFileError(f"it was made by {self._stored.header.model}, this model is like {name}; give that model.")
            return
        header, found = self._stored.header, weights_sha256(model) if weights is None else weights
        if found != header.weights_sha256:
            named = header.model or "a local model"
            raise CompressedFileError(
                f"it was made by {named} with weights {header.weights_sha256[:16]}, this model has weights {found[:16]}; "
                "give the model that made it."
            )
        config = model.config
        told = (header.sampling_rate, header.channels, header.hop_length, header.codebook_size, header.chunk_length, header.chunk_stride)
        own = (config.sampling_rate, config.audio_channels, hop_length(config), config.codebook_size, config.chunk_length)
        if told != (*own, config.chunk_stride) or header.normalize != bool(config.normalize) or header.levels > len(model.quantizer.layers):
            raise CompressedFileError("its header contradicts the model of these weights.")

    def segments(self, at_once: int = SEGMENTS_AT_ONCE) -> Iterator[Segment | Lost]:
        """Yields the codes, and what is lost.  at_once: segments that are decoded together."""
        if isinstance(self._stored, Version0File):
            yield from self._stored
            return
        waiting: list[StoredSegment] = []
        for found in self._stored.segments():
            if isinstance(found, StoredSegment):
                waiting.append(found)
            if waiting and (isinstance(found, Lost) or len(waiting) >= at_once):
                yield from decode_segments(self._stored.header, self._coder, waiting)
                waiting = []
            if isinstance(found, Lost):
                yield found
        yield from decode_segments(self._stored.header, self._coder, waiting)
        self.num_samples = self._stored.num_samples

    def decoded(
        self,
        model: EncodecModel,
        lost: list[Lost],
        at_once: int = SEGMENTS_AT_ONCE,
        part: Part = WHOLE,
        weights: str | None = None,
    ) -> Iterator[np.ndarray]:
        """Returns what yields the audio, float32 [C, T_i], end to end. The model is checked at once, before anything is written.

        lost: gets what damage cost; it is silence in the audio.
        part: only this; of a file that can seek, only what it needs is read.
        weights: as of `check_model`.
        Raises as that does. What it returns raises CompressedFileError where the clip ends before the part does.
        """
        self.check_model(model, weights)
        if part == WHOLE:
            return decoded_blocks(model, _noted(self.segments(at_once), lost))
        return self._decoded_part(model, lost, at_once, part)

    def _decoded_part(self, model: EncodecModel, lost: list[Lost], at_once: int, part: Part) -> Iterator[np.ndarray]:
        first, stop = self._bounds(part)
        config = model.config
        if not streams(model):
            lead = first
        elif config.chunk_length is not None:
            # a whole chunk before, of which the first one's fade is
            lead = config.chunk_length
        else:
            lead = round(WARM_UP_SECONDS * self.sampling_rate)
        items = _noted(self._from(max(0, first - lead), stop, at_once), lost)
        beginning = next(items, None)
        at = first if beginning is None else beginning.start
        count = 0
        for block in decoded_blocks(model, itertools.chain([] if beginning is None else [beginning], items)):
            own = block[:, max(0, first - at) : None if stop is None else max(0, stop - at)]
            at += block.shape[1]
            count += own.shape[1]
            if own.shape[1]:
                yield own
            if stop is not None and at >= stop:
                return
        self._check_part(part, count, lost)

    def samples_of(self, part: Part) -> int | None:
        """Returns how many samples a part has; None where the clip's length is not known yet.  Raises as `decoded` does."""
        first, stop = self._bounds(part)
        return min(self.num_samples, stop or self.num_samples) - first if self.num_samples else None

    def _bounds(self, part: Part) -> tuple[int, int | None]:
        """Returns the first sample of a part and the one behind its last, None for the clip's end."""
        first = round(part.start * self.sampling_rate)
        stop = None if part.duration is None else first + round(part.duration * self.sampling_rate)
        if stop == first:
            raise CompressedFileError(f"the part that is asked for, {part.duration:g} s, is shorter than a sample.")
        if self.num_samples:
            # before anything is decoded
            self._check_part(part, max(0, min(self.num_samples, stop or self.num_samples) - first), [])
        return first, stop

    def _check_part(self, part: Part, count: int, lost: list[Lost]) -> None:
        """Raises CompressedFileError where `count` samples are too few of a part, and no damage explains it."""
        if lost:
            return
        if not count:
            raise CompressedFileError(f"the clip ends before {part.start:g} s.")
        missing = 0.0 if part.duration is None else part.duration - count / self.sampling_rate
        if missing > PART_SLACK:
            shown = f"{missing:.2f}" if missing < 1e6 else f"{missing:g}"
            raise CompressedFileError(f"the clip ends {shown} s before the part that is asked for.")

    def _from(self, sample: int, stop: int | None, at_once: int) -> Iterator[Segment | Lost]:
        """Yields the segments from the one on that a sample lies in; all before `stop`, and maybe some behind it."""
        if isinstance(self._stored, ContainerReader):
            self._stored.seek(sample / self.sampling_rate)
            length = self._stored.header.segment_samples
            needed = at_once if stop is None else -(-(stop - sample) // length) + 1
            yield from self.segments(min(at_once, needed))
            return
        stored, header = self._stored, self._stored.header
        if not stored.can_seek:
            yield from stored
            return
        if header.geometry.chunk_stride is not None:
            for index in range(stored.index_at(sample / self.sampling_rate), len(stored)):
                yield stored.segment(index)
            return
        frames = frames_of(header.num_samples)
        last = frames if stop is None else min(frames, frames_of(stop) + 1)
        yield stored.frames(0, min(sample // version0.HOP_LENGTH, frames - 1), last)


def _noted(found: Iterable[Segment | Lost], lost: list[Lost]) -> Iterator[Segment | Lost]:
    for each in found:
        if isinstance(each, Lost):
            lost.append(each)
        yield each


def lost_text(lost: Lost, sampling_rate: int) -> str:
    """Returns what damage cost, as people read it."""
    start = lost.start / sampling_rate
    if not lost.samples:
        return f"at {start:.2f} s: {lost.reason}"
    return f"{start:.2f} s to {start + lost.samples / sampling_rate:.2f} s are lost: {lost.reason}"


class _Again(io.RawIOBase):
    """A file whose first bytes were read already, and come again."""

    def __init__(self, first: bytes, file: IO[bytes]):
        self._first, self._file = first, file
        if file.seekable():
            file.seek(-len(first), os.SEEK_CUR)
            self._first = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        if self._first:
            part, self._first = self._first[:size], self._first[size:]
            return part
        return self._file.read(size)

    def read1(self, size: int) -> bytes:
        """Returns what has come, `size` bytes at most."""
        if self._first:
            return self.read(size)
        read1: Any = getattr(self._file, "read1", self._file.read)
        return read1(size)


def _peeked(file: IO[bytes]) -> bytes:
    first = b""
    while len(first) < PREFIX.size and (part := file.read(PREFIX.size - len(first))):
        first += part
    return first
