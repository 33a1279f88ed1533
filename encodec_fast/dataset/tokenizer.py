"""`EncodecTokenizer`: audio to codes as a picklable callable, for Ray Data, Hugging Face datasets and all that maps batches."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from encodec_fast.audio import AudioError, mix_channels, read_audio, resample
from encodec_fast.corpus.tasks import Clip, Task
from encodec_fast.dataset.encoding import ClipEncoder
from encodec_fast.dataset.options import BATCH_SECONDS
from encodec_fast.dataset.schedule import batches
from encodec_fast.formats import ClipFailure, ClipRow
from encodec_fast.sample_formats import sample_scale, scaled

# A shape with more of them in front is one whose channels come last.
MOST_CHANNELS = 8


class EncodecTokenizer:
    """Adds codes to batches of rows with audio. Picklable: the model is loaded in the process that first calls it.

        ds.map(EncodecTokenizer("facebook/encodec_24khz", 6.0), batched=True, batch_size=32)             # datasets
        ds.map_batches(EncodecTokenizer, fn_constructor_args=["facebook/encodec_24khz", 6.0],             # Ray Data
                       batch_size=32, concurrency=4, num_gpus=1)

    pretrained_model_name_or_path: as load_model takes it.  bandwidth: kbps.
    audio_column: holds, per row, a file's path or URL, or its bytes; or samples as an array [T] or [C, T], at the rate in the column
    `sampling_rate`; or what datasets' Audio feature gives, decoded or not. Integers of 8, 16 and 32 bits are scaled to +-1.0.
    batch_seconds: audio per call of the model.  device, backend: see load_model and use_backend.
    keep_audio: leaves the audio column in the result.
    """

    def __init__(
        self,
        pretrained_model_name_or_path: str = "facebook/encodec_24khz",
        bandwidth: float = 6.0,
        *,
        device: str = "auto",
        backend: str = "auto",
        audio_column: str = "audio",
        batch_seconds: float = BATCH_SECONDS,
        keep_audio: bool = False,
    ):
        self.pretrained_model_name_or_path, self.bandwidth = pretrained_model_name_or_path, bandwidth
        self.device, self.backend = device, backend
        self.audio_column, self.batch_seconds, self.keep_audio = audio_column, batch_seconds, keep_audio
        self._encoder: ClipEncoder | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_encoder": None}

    @property
    def encoder(self) -> ClipEncoder:
        """The encoder; the model is loaded at first use.

        Raises ModelNotFound if there is no such model, ValueError for a bandwidth it lacks.
        """
        if self._encoder is None:
            from encodec_fast.pretrained import load_model

            self._encoder = ClipEncoder(load_model(self.pretrained_model_name_or_path, self.device), self.bandwidth)
        return self._encoder

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the batch's columns and, per row: `codes` (integers, flat), `codes_shape` [n_chunks, K, F], `scales` [n_chunks] or [],
        `num_samples` and `last_frame_pad_length`. Where the audio can't be used, `codes` is empty and `error` says why.

        `np.array(row["codes"]).reshape(row["codes_shape"])` is what EncodecModel gives for that row alone.
        A single row, as `map` without `batched=True` gives it, comes back as a row.
        Raises KeyError if the audio column is missing.
        """
        if self.audio_column not in batch:
            raise KeyError(f"no column {self.audio_column!r} among {', '.join(batch)}; give audio_column=.")
        audio = batch[self.audio_column]
        if _is_one_row(audio, batch.get("sampling_rate")):
            rate = {"sampling_rate": [batch["sampling_rate"]]} if "sampling_rate" in batch else {}
            found = self({self.audio_column: [audio], **rate})
            kept = {name: value for name, value in batch.items() if self.keep_audio or name != self.audio_column}
            return {**kept, **{name: values[0] for name, values in found.items() if name not in batch}}
        rates = batch.get("sampling_rate", [None] * len(audio))
        clips = [self._clip(index, cell, rate) for index, (cell, rate) in enumerate(zip(audio, rates, strict=True))]
        rows = self._rows(clips)
        kept = {name: values for name, values in batch.items() if self.keep_audio or name != self.audio_column}
        return {**kept, **_columns(rows)}

    def _rows(self, clips: list[Clip | str]) -> list[ClipRow | str]:
        """Encodes longest first, batch_seconds at a time; returns the rows in the order of the clips."""
        from encodec_fast.serving import request

        rows: list[ClipRow | str] = [clip if isinstance(clip, str) else "" for clip in clips]
        whole = sorted((clip for clip in clips if not isinstance(clip, str)), key=lambda clip: -clip.num_samples)
        rate = self.encoder.model.config.sampling_rate
        numbers = batches([clip.num_samples / rate for clip in whole], self.batch_seconds)
        with request.prefer_backend(self.backend):
            for _, group in itertools.groupby(zip(numbers, whole, strict=True), key=lambda pair: pair[0]):
                own = [clip for _, clip in group]
                for clip, row in zip(own, self.encoder.encode(own), strict=True):
                    rows[int(clip.task.id)] = row.reason if isinstance(row, ClipFailure) else row
        return rows

    def _clip(self, index: int, cell: Any, rate: Any) -> Clip | str:
        """Returns the cell's samples at the model's rate and channels, or why there are none."""
        config = self.encoder.model.config
        task = Task(str(index), f"row {index}")
        if hasattr(cell, "get_all_samples"):  # datasets >= 4 gives a decoder of torchcodec
            decoded = cell.get_all_samples()
            cell = {"array": decoded.data.numpy(), "sampling_rate": decoded.sample_rate}
        if isinstance(cell, Mapping) and cell.get("array") is not None:
            cell, rate = cell["array"], cell["sampling_rate"]
        elif isinstance(cell, Mapping):
            cell = cell.get("bytes") or cell.get("path")
        try:
            if isinstance(cell, bytearray | memoryview):
                cell = bytes(cell)
            if isinstance(cell, str | bytes | os.PathLike):
                named = task.path if isinstance(cell, bytes) else None
                samples, info = read_audio(cell, config.sampling_rate, config.audio_channels, name=named)
                return Clip(task, samples, info.sampling_rate)
            return Clip(task, _samples(cell, rate, config), int(rate or config.sampling_rate))
        except AudioError as error:
            return error.reason
        except (OSError, ValueError, TypeError) as error:
            return f"the audio can't be used ({error})."


def _is_one_row(audio: Any, rate: Any) -> bool:
    """Tells whether a column's value is the audio of one row, and not a list of those of several."""
    if isinstance(rate, int | float | np.number):
        return True
    if isinstance(audio, Mapping | str | bytes | bytearray | memoryview | os.PathLike) or hasattr(audio, "get_all_samples"):
        return True
    if hasattr(audio, "__array__"):
        values = np.asarray(audio)
        return values.ndim == 1 and values.dtype.kind in "iufcb"
    return isinstance(audio, Sequence) and len(audio) > 0 and isinstance(audio[0], int | float | np.number)


def _samples(cell: Any, rate: Any, config: Any) -> np.ndarray:
    # torch's tensors and lists of numbers too; numbers of Python are floats
    given = np.asarray(cell) if hasattr(cell, "dtype") or hasattr(cell, "__array__") else np.asarray(cell, np.float32)
    samples = scaled(given.astype(np.float32, copy=False), sample_scale(given.dtype.name, "samples"))
    samples = samples[None] if samples.ndim == 1 else samples
    if samples.ndim != 2 or not samples.shape[1]:
        raise ValueError(f"samples of shape {list(samples.shape)}; [T] or [C, T] is needed, T > 0")
    if samples.shape[0] > MOST_CHANNELS >= samples.shape[1]:
        raise ValueError(f"samples of shape {list(samples.shape)}; channels come first, so transpose them")
    if rate is None:
        raise ValueError("samples without a sampling_rate")
    if not np.isfinite(samples).all():
        raise ValueError("samples are NaN or infinite")
    return resample(mix_channels(samples, config.audio_channels), int(rate), config.sampling_rate)


def _columns(rows: list[ClipRow | str]) -> dict[str, list[Any]]:
    good = [None if isinstance(row, str) else row for row in rows]
    return {
        # lists and not arrays: Ray and datasets store these as lists of integers, and arrays in types of their own
        "codes": [[] if row is None else row.codes.ravel().tolist() for row in good],
        "codes_shape": [[0, 0, 0] if row is None else list(row.codes.shape) for row in good],
        "scales": [[] if row is None or row.scales is None else row.scales.tolist() for row in good],
        "num_samples": [0 if row is None else row.num_samples for row in good],
        "last_frame_pad_length": [0 if row is None else row.last_frame_pad_length for row in good],
        "error": [row if isinstance(row, str) else "" for row in rows],
    }
