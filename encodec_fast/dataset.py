"""From audio files to stored codes: a reader, length-sorted batches, an encoder, and `run`, which joins them to a writer.

Each piece works alone. The order of the rows is the order of the files, whatever the threads and batches do.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import transformers

import encodec_fast
from encodec_fast.audio import AudioError, AudioFile, read_audio, utf8_name
from encodec_fast.chunks import encoded_length
from encodec_fast.dispatch import BackendError
from encodec_fast.explanation import explain
from encodec_fast.formats import ClipFailure, ClipRow, ClipWriter, DatasetInfo
from encodec_fast.model import EncodecModel, EncodedClip

# Clips are sorted by length inside windows of this many batches: enough for batches of near-equal clips, small in memory
WINDOW_BATCHES = 8
# ... and of at most this many clips, so that a folder of very short ones is written as it goes
WINDOW_CLIPS = 4096
THREAD_NAME = "encodec_fast reader"


Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Clip:
    """A clip ready for the model. samples: float32 [C, T] at the model's rate. original_rate: the file's, Hz."""

    file: AudioFile
    samples: np.ndarray
    original_rate: int

    @property
    def num_samples(self) -> int:
        return self.samples.shape[1]


def failure_of(file: AudioFile, reason: str) -> ClipFailure:
    """The failure of one file, its path as text that can be stored."""
    return ClipFailure(file.id, utf8_name(str(file.path)), reason)


class Reader:
    """Iterates over files in their order, as Clip or ClipFailure, while threads read ahead.

    Threads and not processes: decoding and resampling run in C without Python's lock. At most prefetch_seconds of audio
    (and one clip per thread) wait to be taken, so memory is bounded for clips of any length.
    """

    def __init__(
        self,
        files: Sequence[AudioFile],
        sampling_rate: int,
        channels: int,
        *,
        workers: int = 2,
        prefetch_seconds: float = 120.0,
    ):
        if workers < 1:
            raise ValueError(f"workers is {workers}; 1 or more.")
        self.files = files
        self.sampling_rate, self.channels = sampling_rate, channels
        self.workers = workers
        self.prefetch_samples = prefetch_seconds * sampling_rate

    def read(self, file: AudioFile) -> Clip | ClipFailure:
        """One file, here and now."""
        try:
            samples, info = read_audio(file.path, self.sampling_rate, self.channels)
        except AudioError as error:
            return failure_of(file, error.reason)
        except (OSError, MemoryError) as error:
            return failure_of(file, f"the file can't be read ({type(error).__name__}: {error}).")
        return Clip(file, samples, info.sampling_rate)

    def __iter__(self) -> Iterator[Clip | ClipFailure]:
        changed = threading.Condition()
        ready: dict[int, Clip | ClipFailure | BaseException] = {}
        taken = waiting_samples = 0
        stopped = False

        def may_take() -> bool:
            # files are taken in order, so the one that the consumer waits for never waits here
            return stopped or waiting_samples <= self.prefetch_samples

        def work() -> None:
            nonlocal taken, waiting_samples
            while True:
                with changed:
                    changed.wait_for(may_take)
                    if stopped or taken == len(self.files):
                        return
                    index, taken = taken, taken + 1
                try:
                    result: Clip | ClipFailure | BaseException = self.read(self.files[index])
                except BaseException as error:
                    result = error  # raised where the reader is iterated
                with changed:
                    ready[index] = result
                    waiting_samples += _samples(result)
                    changed.notify_all()

        threads = [threading.Thread(target=work, name=THREAD_NAME, daemon=True) for _ in range(min(self.workers, len(self.files)))]
        for thread in threads:
            thread.start()
        try:
            for index in range(len(self.files)):
                with changed:
                    while index not in ready:
                        changed.wait()
                    result = ready.pop(index)
                    waiting_samples -= _samples(result)
                    changed.notify_all()
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:
            with changed:
                stopped = True
                changed.notify_all()
            for thread in threads:
                thread.join()


def _samples(item: object) -> int:
    return item.num_samples if isinstance(item, Clip) else 0


def windows(clips: Iterable[Clip | ClipFailure], max_samples: float) -> Generator[list[Clip | ClipFailure], None, None]:
    """Runs of consecutive clips that hold max_samples or a little more, or WINDOW_CLIPS clips."""
    window: list[Clip | ClipFailure] = []
    samples = 0
    for clip in clips:
        window.append(clip)
        samples += _samples(clip)
        if samples >= max_samples or len(window) == WINDOW_CLIPS:
            yield window
            window, samples = [], 0
    if window:
        yield window


def batches(lengths: Mapping[int, int], max_samples: float) -> Iterator[list[int]]:
    """Keys of `lengths` (clip to samples) in batches of at most max_samples, longest clips first, equal ones together.

    A longer clip is a batch of its own. Nothing is padded, so a batch costs the sum of its lengths.
    """
    batch: list[int] = []
    samples = 0
    for key in sorted(lengths, key=lambda key: (-lengths[key], key)):
        if batch and samples + lengths[key] > max_samples:
            yield batch
            batch, samples = [], 0
        batch.append(key)
        samples += lengths[key]
    if batch:
        yield batch


class ClipEncoder:
    """Turns clips into rows of codes with one model at one bandwidth (kbps)."""

    def __init__(self, model: EncodecModel, bandwidth: float):
        if bandwidth not in model.config.target_bandwidths:
            raise ValueError(f"bandwidth is {bandwidth:g}; the model's are {bandwidth_list(model)} kbps.")
        self.model, self.bandwidth = model, bandwidth
        self._code_dtype = np.uint16 if model.config.codebook_size <= 1 << 16 else np.uint32

    def encode(self, clips: Sequence[Clip]) -> list[ClipRow | ClipFailure]:
        """One row per clip. If the model fails on a batch, its clips are tried one by one and only the culprits fail."""

        def encode_batch(batch: Sequence[Clip]) -> list[EncodedClip]:
            return self.model.encode_batch([torch.from_numpy(clip.samples) for clip in batch], self.bandwidth)

        return [
            failure_of(clip.file, f"the model can't encode it ({result}).") if isinstance(result, str) else self._row(clip, result)
            for clip, result in zip(clips, _each_or_reason(encode_batch, clips), strict=True)
        ]

    def _row(self, clip: Clip, encoded: EncodedClip) -> ClipRow:
        return ClipRow(
            id=clip.file.id,
            path=utf8_name(str(clip.file.path)),
            codes=encoded.codes.cpu().numpy().astype(self._code_dtype),
            scales=None if encoded.scales is None else encoded.scales.float().cpu().numpy(),
            num_samples=encoded.num_samples,
            last_frame_pad_length=encoded.last_frame_pad_length,
            sampling_rate=self.model.config.sampling_rate,
            original_rate=clip.original_rate,
            bandwidth=self.bandwidth,
        )


def _each_or_reason(call: Callable[[Sequence[Item]], Sequence[Result]], batch: Sequence[Item]) -> list[Result | str]:
    """call(batch); or, if that fails, call on each item alone: its result, or the reason why it has none.

    Raises BackendError where a backend that was asked for by name can't run: that is no clip's fault.
    """
    try:
        return [*call(batch)]
    except BackendError:
        raise
    # RuntimeError: what torch raises, out of memory included
    except (RuntimeError, ValueError, MemoryError) as error:
        if len(batch) > 1:
            return [result for item in batch for result in _each_or_reason(call, [item])]
        return [(str(error).splitlines() or [type(error).__name__])[0].rstrip(".")]


def bandwidth_list(model: EncodecModel) -> str:
    """The model's bandwidths for people: `1.5, 3, 6, 12, 24`."""
    return ", ".join(f"{bandwidth:g}" for bandwidth in model.config.target_bandwidths)


@dataclass
class Summary:
    """What a run did. clips: with codes. seconds: of their audio. wall_seconds: since the run began, reading included."""

    clips: int = 0
    seconds: float = 0.0
    wall_seconds: float = 0.0
    failures: list[ClipFailure] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    @property
    def times_real_time(self) -> float:
        """Seconds of audio per second of wall time."""
        return self.seconds / self.wall_seconds if self.wall_seconds else 0.0


def run(
    reader: Reader,
    encoder: ClipEncoder,
    writer: ClipWriter,
    *,
    batch_seconds: float = 60.0,
    progress: Callable[[Summary], None] | None = None,
) -> Summary:
    """Encodes every clip of the reader into the writer, closes the writer and says what was done.

    A clip that can't be read or encoded becomes a failure and stops nothing. batch_seconds: audio per call of the
    model. progress: called with the summary so far after each batch. The writer is closed whatever happens, so after a
    KeyboardInterrupt the clips written so far can be read.
    """
    start = time.perf_counter()
    summary = Summary()
    batch_samples = batch_seconds * encoder.model.config.sampling_rate

    def note(result: ClipRow | ClipFailure) -> None:
        if isinstance(result, ClipFailure):
            summary.failures.append(result)
        else:
            summary.clips += 1
            summary.seconds += result.duration

    with writer, closing(windows(reader, WINDOW_BATCHES * batch_samples)) as all_windows:
        for window in all_windows:
            results: dict[int, ClipRow | ClipFailure] = {}
            clips = {index: clip for index, clip in enumerate(window) if isinstance(clip, Clip)}
            for index, item in enumerate(window):
                if isinstance(item, ClipFailure):
                    results[index] = item
                    note(item)
            for batch in batches({index: clip.num_samples for index, clip in clips.items()}, batch_samples):
                for index, result in zip(batch, encoder.encode([clips[index] for index in batch]), strict=True):
                    results[index] = result
                    note(result)
                summary.wall_seconds = time.perf_counter() - start
                if progress is not None:
                    progress(summary)
            for index in range(len(window)):
                result = results[index]
                if isinstance(result, ClipFailure):
                    writer.write_failure(result)
                else:
                    writer.write(result)
        summary.files = writer.close()
    summary.wall_seconds = time.perf_counter() - start
    return summary


def dataset_info(model: EncodecModel, model_id: str, weights_sha256: str, options: Mapping[str, Any]) -> DatasetInfo:
    """What makes the codes of a run, for the metadata of its files. options: of the run, as JSON can hold them."""
    second = torch.zeros(1, model.config.audio_channels, model.config.sampling_rate, device=model.device)
    backends = dict.fromkeys(row.backend for row in explain(model, second).rows)
    return DatasetInfo(
        model_id=model_id,
        weights_sha256=weights_sha256,
        codebook_size=model.config.codebook_size,
        backend="+".join(backends),
        versions={
            "encodec_fast": encodec_fast.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        options=dict(options),
    )


def decode(model: EncodecModel, rows: Iterable[ClipRow], *, batch_seconds: float = 60.0) -> Iterator[tuple[ClipRow, np.ndarray | str]]:
    """Each row with its audio, float32 [C, num_samples], in the order of the rows; or with why it has none."""
    batch: list[ClipRow] = []
    seconds = 0.0
    for row in rows:
        if batch and seconds + row.duration > batch_seconds:
            yield from _decode_batch(model, batch)
            batch, seconds = [], 0.0
        batch.append(row)
        seconds += row.duration
    if batch:
        yield from _decode_batch(model, batch)


def _decode_batch(model: EncodecModel, rows: Sequence[ClipRow]) -> Iterator[tuple[ClipRow, np.ndarray | str]]:
    def decode_batch(batch: Sequence[ClipRow]) -> list[torch.Tensor]:
        return model.decode_batch([encoded_clip(row) for row in batch])

    problems = [_row_problem(row, model) for row in rows]
    good = [row for row, problem in zip(rows, problems, strict=True) if problem is None]
    decoded = iter(_each_or_reason(decode_batch, good) if good else [])
    for row, problem in zip(rows, problems, strict=True):
        audio = next(decoded) if problem is None else problem
        if isinstance(audio, str):
            yield row, audio if problem else f"the model can't decode it ({audio})."
        else:
            yield row, audio.float().cpu().numpy()


def _row_problem(row: ClipRow, model: EncodecModel) -> str | None:
    """Why the model can't decode the row, or None. On a GPU a code out of range would end the process."""
    config = model.config
    chunks, levels, frames = row.codes.shape
    if row.sampling_rate != config.sampling_rate:
        return f"the codes are of a {row.sampling_rate} Hz model, this is one of {config.sampling_rate} Hz."
    if levels > len(model.quantizer.layers):
        return f"the codes have {levels} levels, the model {len(model.quantizer.layers)}."
    if row.codes.size and int(row.codes.max()) >= config.codebook_size:
        return f"a code is {int(row.codes.max())}; the model has codes 0 ... {config.codebook_size - 1}."
    # the model's own arithmetic: chunks start every chunk_stride samples
    length = row.num_samples if config.chunk_length is None else min(row.num_samples, config.chunk_length)
    expected = (
        1 if config.chunk_length is None else -(-row.num_samples // config.chunk_stride),
        encoded_length(config, length),
    )
    if row.num_samples < 1 or (chunks, frames) != expected or (row.scales is not None) != bool(config.normalize):
        return f"codes of shape {list(row.codes.shape)} don't belong to a clip of {row.num_samples} samples."
    return None


def encoded_clip(row: ClipRow) -> EncodedClip:
    """The row as decode_batch takes it, on the CPU."""
    return EncodedClip(
        codes=torch.from_numpy(row.codes.astype(np.int64)),
        scales=None if row.scales is None else torch.from_numpy(row.scales),
        last_frame_pad_length=row.last_frame_pad_length,
        num_samples=row.num_samples,
    )
