"""The coder by a language model: its Transformer and its range coder run in the native engine, which has the same bits on every machine.

Nothing else can read these payloads. In torch a probability's last bits depend on the machine, the threads and the batch.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterable, Sequence
from ctypes import c_int64, c_void_p
from typing import TYPE_CHECKING

import numpy as np

from encodec_fast.kernels.cpu import library as native

if TYPE_CHECKING:
    from encodec_fast.language_model.model import LanguageModel

# Segments that are on their way at once for each thread: each holds up to 4 MB of keys and values of the published model
_SEGMENTS_OF_A_THREAD = 32
_FINGERPRINT = 32
# What the engine counts: 330 days at 75 Hz
_MOST_FRAMES = 2**31 - 1


class LanguageModelUnavailable(ValueError):
    """The native engine is not there, and nothing else codes by a language model; the message says how to get it."""


class LanguageModelCoder:
    """Codes segments by a language model. A payload depends on its segment and the weights alone, and is read by the same weights alone.

    model: its weights are copied.  threads: of each call; None: as many as torch has at that time.
    Raises LanguageModelUnavailable where the engine is not there.
    """

    name = "lm"

    def __init__(self, model: LanguageModel, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}; 1 or more, or None, is needed.")
        try:
            self._library = native.load()
        except native.LibraryMissing as missing:
            raise LanguageModelUnavailable(f"coding by a language model needs the native engine: {missing}") from missing
        self.config, self.fingerprint, self._threads = model.config, model.fingerprint(), threads
        self._handle = native.check_handle(self._library, _new_model(self._library, model))
        _close_with(self, self._library.encodec_lm_free, self._handle)

    def encode(self, segments: Sequence[np.ndarray]) -> list[bytes]:
        """Returns the payload of each segment.

        segments: codes [K, F], integers; K up to the model's codebooks.  Raises ValueError for other shapes, types or codes.
        """
        payloads, together = [], _SEGMENTS_OF_A_THREAD * self.threads
        for first in range(0, len(segments), together):
            part = [_checked(codes, self.config.codebooks) for codes in segments[first : first + together]]
            encoders = [self.encoder(*codes.shape) for codes in part]
            self._encode(encoders, part)
            payloads += [encoder.finish() for encoder in encoders]
        return payloads

    def decode(self, payloads: Sequence[bytes], frames: Sequence[int], levels: int) -> list[np.ndarray]:
        """Returns the codes [levels, F] of each payload, int64.

        frames: of each segment.  Raises ValueError for a payload that is longer than its frames.
        A damaged payload may also give other codes.
        """
        if len(frames) != len(payloads):
            raise ValueError(f"{len(payloads)} payloads came with {len(frames)} numbers of frames; each payload needs its own.")
        segments: list[np.ndarray] = []
        together = _SEGMENTS_OF_A_THREAD * self.threads
        for first in range(0, len(payloads), together):
            part = frames[first : first + together]
            decoders = [self.decoder(payload, levels, count) for payload, count in zip(payloads[first:], part)]
            segments += self._decode(decoders, part)
            for index, decoder in enumerate(decoders, first):
                if not decoder.used_up:
                    raise ValueError(f"payload {index} is longer than {frames[index]} frames of {levels} levels are; it is damaged.")
        return segments

    def encoder(self, levels: int, most_frames: int | None = None) -> SegmentEncoder:
        """Returns what encodes a segment of so many levels piece by piece.  most_frames: of it, if they are known; few take less memory."""
        _check_levels(levels, self.config.codebooks)
        return SegmentEncoder(self, self._library.encodec_segment_encode(self._handle, levels, _most(most_frames)))

    def decoder(self, payload: bytes, levels: int, most_frames: int | None = None) -> SegmentDecoder:
        """Returns what decodes a payload piece by piece.  most_frames: as of `encoder`."""
        _check_levels(levels, self.config.codebooks)
        size = len(payload)
        return SegmentDecoder(self, self._library.encodec_segment_decode(self._handle, levels, _most(most_frames), bytes(payload), size))

    def load_encoder(self, saved: bytes) -> SegmentEncoder:
        """Returns the encoder that `save` wrote, here or on another machine.  Raises ValueError for other bytes and other weights."""
        return SegmentEncoder(self, self._load(saved))

    def load_decoder(self, saved: bytes) -> SegmentDecoder:
        """Returns the decoder that `save` wrote, here or on another machine.  Raises ValueError for other bytes and other weights."""
        return SegmentDecoder(self, self._load(saved))

    @property
    def threads(self) -> int:
        """The threads of the next call."""
        if self._threads is None:
            import torch

            return torch.get_num_threads()
        return self._threads

    def _load(self, saved: bytes) -> int:
        if saved[:_FINGERPRINT] != self.fingerprint:
            raise ValueError("this state was saved with the weights of another language model.")
        state = saved[_FINGERPRINT:]
        handle = self._library.encodec_segment_load(self._handle, state, len(state))
        if handle is None:
            raise ValueError(f"this is not the saved state of a segment: {self._library.encodec_error().decode()}.")
        return handle

    def _encode(self, encoders: Sequence[SegmentEncoder], segments: Sequence[np.ndarray]) -> None:
        codes = [np.ascontiguousarray(each, np.int64) for each in segments]
        frames = _ints(each.shape[1] for each in codes)
        handles, data = _handles(encoders), _addresses(codes)
        done = self._library.encodec_encode(handles, len(codes), data, frames, frames, self.threads)
        if done < 0:
            raise ValueError(self._library.encodec_error().decode())

    def _decode(self, decoders: Sequence[SegmentDecoder], frames: Sequence[int]) -> list[np.ndarray]:
        for count in frames:
            if count < 0:
                raise ValueError(f"frames is {count}; 0 or more is needed.")
        codes = [np.empty((each.levels, count), np.int64) for each, count in zip(decoders, frames)]
        lengths = _ints(frames)
        handles, data = _handles(decoders), _addresses(codes)
        done = self._library.encodec_decode(handles, len(codes), data, lengths, lengths, self.threads)
        if done < 0:
            raise ValueError(self._library.encodec_error().decode())
        return codes


class _Segment:
    """Holds a segment that is on its way through the engine."""

    _DECODES = False

    def __init__(self, coder: LanguageModelCoder, handle: int | None) -> None:
        self.coder = coder  # the engine's state points into the coder's model
        self.handle = native.check_handle(coder._library, handle)
        _close_with(self, coder._library.encodec_segment_close, self.handle)
        self.levels: int = coder._library.encodec_segment_levels(self.handle, self._DECODES)
        if not self.levels:
            raise ValueError(f"this is not the saved state of {'a decoder' if self._DECODES else 'an encoder'}, but of its counterpart.")

    def save(self) -> bytes:
        """Returns the state between two pieces, 2 MB for the published model at 24 kHz; the same on every machine."""
        library = self.coder._library
        size = native.check(library, library.encodec_segment_save(self.handle, None, 0))
        state = ctypes.create_string_buffer(size)
        native.check(library, library.encodec_segment_save(self.handle, state, size))
        return self.coder.fingerprint + state.raw


class SegmentEncoder(_Segment):
    """Encodes a segment piece by piece, to the bytes of the whole."""

    def push(self, codes: np.ndarray) -> bytes:
        """Returns the bytes that are settled after these codes [K, F]; they follow those before.  Raises ValueError as `encode` does."""
        codes = _checked(codes, self.coder.config.codebooks)
        if codes.shape[0] != self.levels:
            raise ValueError(f"codes have {codes.shape[0]} levels; the segment has {self.levels}.")
        self.coder._encode([self], [codes])
        return self._take(final=False)

    def finish(self) -> bytes:
        """Returns the last bytes; the segment ends."""
        return self._take(final=True)

    def _take(self, final: bool) -> bytes:
        library = self.coder._library
        size = native.check(library, library.encodec_segment_bytes(self.handle, final, None, 0))
        taken = ctypes.create_string_buffer(size)
        native.check(library, library.encodec_segment_bytes(self.handle, final, taken, size))
        return taken.raw


class SegmentDecoder(_Segment):
    """Decodes a payload piece by piece."""

    _DECODES = True

    def pull(self, frames: int) -> np.ndarray:
        """Returns the codes [K, F] of the next frames, int64."""
        return self.coder._decode([self], [frames])[0]

    @property
    def used_up(self) -> bool:
        """Whether all of the payload was read; after the last frame it must be."""
        return self.coder._library.encodec_segment_used_up(self.handle) == 1


def _new_model(library: ctypes.CDLL, model: LanguageModel) -> int | None:
    """Returns the engine's model, whose weights it copies in the order that `encodec_lm_new` names."""
    from encodec_fast.language_model.model import position_divisors

    config, state = model.config, model.state_dict()
    layer = ("self_attn.in_proj_", "self_attn.out_proj.", "linear1.", "linear2.", "norm1.", "norm2.")
    parts = ["transformer.norm_in.", *(f"transformer.layers.{n}.{part}" for n in range(config.layers) for part in layer)]
    parts += [f"linears.{level}." for level in range(config.codebooks)]
    names = [f"emb.{level}.weight" for level in range(config.codebooks)]
    names += [f"{part}{kind}" for part in parts for kind in ("weight", "bias")]
    arrays = [np.ascontiguousarray(state[name].detach().float().cpu().numpy()) for name in names]
    divisors = np.array(position_divisors(config.dim), np.float32)
    sizes = native.LanguageModelSizes(**{name: getattr(config, name) for name, _ in native.LanguageModelSizes._fields_})
    return library.encodec_lm_new(native.requested_tier(), sizes, _addresses(arrays), divisors.ctypes.data)


def _checked(codes: np.ndarray, most_levels: int) -> np.ndarray:
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.dtype.kind not in "iu":
        raise ValueError(f"a segment's codes are {codes.dtype}, {list(codes.shape)}; integers [levels, frames] are needed.")
    _check_levels(codes.shape[0], most_levels)
    return codes


def _check_levels(levels: int, most: int) -> None:
    if not 1 <= levels <= most:
        raise ValueError(f"levels is {levels}; the language model codes 1 ... {most}.")


def _most(frames: int | None) -> int:
    return _MOST_FRAMES if frames is None else frames


def _close_with(owner: object, close: Callable[[int], None], handle: int) -> None:
    """Gives a handle back once its owner is gone."""
    # not at exit, where daemon threads may still be at work in it: the memory goes with the process
    weakref.finalize(owner, close, handle).atexit = False


def _handles(segments: Sequence[_Segment]) -> ctypes.Array[c_void_p]:
    return (c_void_p * len(segments))(*(segment.handle for segment in segments))


def _addresses(arrays: Sequence[np.ndarray]) -> ctypes.Array[c_void_p]:
    return (c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


def _ints(values: Iterable[int]) -> ctypes.Array[c_int64]:
    items = list(values)
    return (c_int64 * len(items))(*items)
