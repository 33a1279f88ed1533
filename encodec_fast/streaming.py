"""Live streams: audio in pieces of any size in, codes out as soon as they are determined, and back.

The codes (and the audio) of a stream equal those of the whole clip.
They are equal bit for bit on the cpu and triton backends, to rounding on torch.
Only models whose layers read the past alone can stream: weight norm and causal convolutions, as in the 24 kHz model.

    encoder = StreamingEncoder(model, bandwidth=6.0)
    for samples in microphone:              # [T], any T
        (codes,) = encoder.push(samples)    # [K, F], F may be 0
    (codes,) = encoder.flush()
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encodec_fast.model import EncodecModel, known_bandwidth
from encodec_fast.plan import Network
from encodec_fast.plan.geometry import whole_clips_only
from encodec_fast.plan.weights import fingerprint
from encodec_fast.sample_formats import float_samples
from encodec_fast.serving.clips import levels_of
from encodec_fast.serving.prepared import PreparedCodec
from encodec_fast.serving.route import route_stream

# What a push takes: one tensor or array for all streams, or one for each, None where a stream has nothing new
Samples = Tensor | np.ndarray | Sequence[Tensor | np.ndarray | None]


class _Turn:
    """Admits one call at a time. A concurrent one is refused instead of queued, since no order would be right."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Turn, ()

    def __enter__(self) -> None:
        # ValueError, as Python raises for a generator that is already executing
        if not self._lock.acquire(blocking=False):
            raise ValueError(
                "these streams are already in a call of another thread, or were when this process was forked. A stream takes its pieces "
                "one after the other: make one StreamingEncoder or StreamingDecoder for each thread, or call it under a lock of your own."
            )

    def __exit__(self, *raised: object) -> None:
        self._lock.release()


class _Streams:
    """A batch of streams, each at its own position in time.  A concurrent call raises ValueError."""

    def __init__(self, model: EncodecModel, part: str, batch_size: int) -> None:
        if not isinstance(model, EncodecModel):
            raise TypeError(f"model: expected an encodec_fast.EncodecModel, got {type(model).__module__}.{type(model).__name__}.")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; 1 or more.")
        self.model = model
        self.batch_size = batch_size
        self._codec = _streamable(model, part)
        self._states = [self._codec.network.open() for _ in range(batch_size)]
        self._ended = [False] * batch_size
        self._turn = _Turn()

    @property
    def network(self) -> Network:
        """The stages that the streams run through, as data."""
        return self._codec.network.network

    def _push(self, pieces: Sequence[Tensor], final: Sequence[bool]) -> list[Tensor]:
        for index, (piece, ended) in enumerate(zip(pieces, self._ended)):
            if ended and (piece.shape[-1] or final[index]):
                raise ValueError(f"stream {index} has ended: reset it before it starts anew.")
        running = [index for index, ended in enumerate(self._ended) if not ended]
        states = [self._states[index] for index in running]
        outputs = self._codec.network.push([pieces[index] for index in running], states, [final[index] for index in running])
        for index in running:
            self._ended[index] = final[index]
        by_stream = dict(zip(running, outputs))
        nothing = pieces[0].new_empty(self.network.stages[-1].out_channels, 0)
        return [by_stream.get(index, nothing) for index in range(self.batch_size)]

    def _per_stream(self, name: str, given: Tensor | Sequence[Tensor | None], single: bool, nothing: Tensor) -> list[Tensor]:
        """Returns one piece per stream.  single: `given` belongs to a single stream.  nothing: replaces None."""
        pieces: Sequence[Any] = [given] if single and self.batch_size == 1 else list(given)
        if len(pieces) != self.batch_size:
            raise ValueError(f"{name}: {len(pieces)} pieces came for {self.batch_size} streams. Give each one, None for nothing new.")
        return [nothing if piece is None else piece for piece in pieces]

    def _last(self, mask: Sequence[bool] | Tensor | None) -> list[bool]:
        """Returns which streams a flush ends: those of the mask, or all that run for None."""
        return self._selected([not ended for ended in self._ended] if mask is None else mask)

    def _selected(self, mask: Sequence[bool] | Tensor | None) -> list[bool]:
        selected = [True] * self.batch_size if mask is None else [bool(value) for value in mask]
        if len(selected) != self.batch_size:
            raise ValueError(f"mask has {len(selected)} entries for {self.batch_size} streams.")
        return selected

    def reset(self, mask: Sequence[bool] | Tensor | None = None) -> None:
        """Restarts streams at time zero and drops their pending output: those where `mask` [batch_size] is true, None for all."""
        with self._turn:
            for index, chosen in enumerate(self._selected(mask)):
                if chosen:
                    self._states[index], self._ended[index] = self._codec.network.open(), False

    def state_dict(self) -> dict[str, Any]:
        """Returns all streams as nested lists of tensors, integers and strings, for `load_state_dict` in any process.

        `torch.save` accepts them.
        """
        with self._turn:
            saved = {
                **self._made_by(),
                "ended": [int(ended) for ended in self._ended],
                "streams": [self._codec.network.save(state) for state in self._states],
            }
        return {**saved, "checksum": _checksum(saved)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resumes from the streams of `state_dict`.

        Raises ValueError for another batch size, model, backend or direction, and for a state that was changed since.
        Raises it too for counts and sizes that no pushes lead to. The streams are unchanged then.
        A state without a checksum passes if its counts and sizes are right.
        """
        if not isinstance(state_dict, dict):
            raise ValueError(f"state_dict: expected what state_dict() returned, got {type(state_dict).__name__}.")
        for key, value in self._made_by().items():
            if state_dict.get(key) != value:
                raise ValueError(f"state_dict: {key} is {state_dict.get(key)!r}, here it is {value!r}.")
        saved = {key: value for key, value in state_dict.items() if key != "checksum"}
        if "checksum" in state_dict and state_dict["checksum"] != _checksum(saved):
            raise ValueError("state_dict: this is not the state that was saved: its checksum is another. Save it again.")
        streams, ended = state_dict.get("streams"), state_dict.get("ended")
        if not isinstance(streams, list) or len(streams) != self.batch_size:
            count = len(streams) if isinstance(streams, list) else "no"
            raise ValueError(f"state_dict: it has {count} streams, here are {self.batch_size}.")
        states = [self._codec.network.load(stream) for stream in streams]
        if ended != [int(self._codec.network.ended(state)) for state in states]:
            raise ValueError(f"state_dict: its streams ended as {ended!r}, and their states say otherwise.")
        with self._turn:
            self._states, self._ended = states, [bool(end) for end in ended]

    def _made_by(self) -> dict[str, Any]:
        """Returns what must match where a state is resumed."""
        return {"kind": type(self).__name__, "backends": self._backends(), "weights": fingerprint(self.network)}

    def _backends(self) -> list[str]:
        return [choice.backend for choice in self._codec.network.choices]


class StreamingEncoder(_Streams):
    """`batch_size` streams from audio to codes.  Model weights and backend are those at construction.

    model: one that reads the past alone: causal convolutions, weight norm, no chunks.
    bandwidth: kbps, None for the lowest, as in `encode`.
    batch_size: streams, each at a position of its own.
    num_quantizers: K, that the bandwidth stands for.
    embeddings: of the frames that the last `push` or `flush` returned, [D, F_b] per stream; what the codes were found for.
    Raises TypeError for a model that is no encodec_fast.EncodecModel.
    Raises ValueError for a bandwidth that the model lacks, and for a model that can't stream.
    """

    def __init__(self, model: EncodecModel, bandwidth: float | None = None, batch_size: int = 1) -> None:
        super().__init__(model, "encoder", batch_size)
        self.bandwidth = known_bandwidth(model.config, bandwidth)
        self.num_quantizers = levels_of(model.quantizer, self.bandwidth)
        self.embeddings: list[Tensor] = []

    def frames_ready(self, num_samples: int) -> int:
        """Returns how many frames a stream has returned after `num_samples`.

        The 24 kHz model returns none before its 2,240th sample (93 ms): the last convolution reflects its first 7 frames.
        From then on frame f, counted from 0, comes with sample 320 * (f + 1): no look-ahead beyond the frame.
        """
        return self.network.ready_length(num_samples)

    @torch.no_grad()
    def push(self, samples: Samples) -> list[Tensor]:
        """Returns codes [num_quantizers, F_b], int64, of the frames that these samples complete, one tensor per stream.

        samples: [batch_size, C, T] or, for a mono model, [batch_size, T]; [C, T] or [T] for a single stream.
        A list holds one tensor [C, T_b] or [T_b] per stream, with None where a stream has nothing new.

        Values are float32 in the model's scale, usually -1 ... 1.
        Raises ValueError for another shape and for samples of a stream that has ended.
        """
        with self._turn:
            return self._search(self._push(self._pieces(samples), [False] * self.batch_size))

    @torch.no_grad()
    def flush(self, mask: Sequence[bool] | Tensor | None = None) -> list[Tensor]:
        """Ends streams and returns their last codes: those where `mask` [batch_size] is true, None for all that run."""
        with self._turn:
            return self._search(self._push(self._pieces([None] * self.batch_size), self._last(mask)))

    def _search(self, embeddings: list[Tensor]) -> list[Tensor]:
        self.embeddings = embeddings
        return self._codec.quantizer.search_clips(embeddings, self.num_quantizers)

    def _pieces(self, samples: Samples) -> list[Tensor]:
        tensors: Tensor | list[Tensor | None]
        if isinstance(samples, Tensor | np.ndarray):
            tensors = torch.as_tensor(samples)
        else:
            tensors = [torch.as_tensor(piece) if isinstance(piece, np.ndarray) else piece for piece in samples]
        channels = self.model.config.audio_channels
        nothing = torch.empty(channels, 0, dtype=self.network.dtype, device=self.network.device)
        given = self._per_stream("samples", tensors, isinstance(tensors, Tensor) and tensors.dim() <= 2, nothing)
        network = self.network
        pieces = [float_samples(piece, f"samples of stream {index}", network.device, network.dtype) for index, piece in enumerate(given)]
        if channels == 1:
            pieces = [piece[None] if piece.dim() == 1 else piece for piece in pieces]
        for index, piece in enumerate(pieces):
            if piece.dim() != 2 or piece.shape[0] != channels:
                raise ValueError(f"samples of stream {index} have shape {list(piece.shape)}, not [{channels}, T].")
        return pieces


class StreamingDecoder(_Streams):
    """`batch_size` streams from codes to audio.  Model weights and backend are those at construction.

    model: one that reads the past alone, as for `StreamingEncoder`.
    batch_size: streams, each at a position of its own.
    Raises TypeError for a model that is no encodec_fast.EncodecModel, ValueError for one that can't stream.
    """

    def __init__(self, model: EncodecModel, batch_size: int = 1) -> None:
        super().__init__(model, "decoder", batch_size)

    def samples_ready(self, num_frames: int) -> int:
        """Returns how many samples a stream has returned after `num_frames`.

        The 24 kHz model returns nothing before its seventh frame, because the first convolution reflects six.
        That frame completes 2,240 samples, and each later one 320.
        """
        return self.network.ready_length(num_frames)

    @torch.no_grad()
    def push(self, codes: Tensor | Sequence[Tensor | None]) -> list[Tensor]:
        """Returns the audio [C, T_b] that these codes complete, one tensor per stream.

        codes: [batch_size, K, F], or [K, F] for a single stream.
        A list holds one [K_b, F_b] per stream, with None for nothing new.
        The audio has the model's dtype.
        Raises ValueError for another shape and for codes of a stream that has ended.
        Raises IndexError for a code outside its codebook; on a GPU the device asserts instead, as with transformers.
        """
        with self._turn:
            return self._push(self._embeddings(codes), [False] * self.batch_size)

    @torch.no_grad()
    def flush(self, mask: Sequence[bool] | Tensor | None = None) -> list[Tensor]:
        """Ends streams and returns their last audio: those where `mask` [batch_size] is true, None for all that run."""
        with self._turn:
            return self._push(self._embeddings([None] * self.batch_size), self._last(mask))

    def _embeddings(self, codes: Tensor | Sequence[Tensor | None]) -> list[Tensor]:
        nothing = torch.empty(1, 0, dtype=torch.int64, device=self.network.device)
        pieces = self._per_stream("codes", codes, isinstance(codes, Tensor) and codes.dim() == 2, nothing)
        levels = len(self.model.quantizer.layers)
        for index, piece in enumerate(pieces):
            if piece.dim() != 2 or not 1 <= piece.shape[0] <= levels:
                raise ValueError(f"codes of stream {index} have shape {list(piece.shape)}, not [K, F] with K from 1 to {levels}.")
            if piece.is_floating_point() or piece.is_complex() or piece.dtype == torch.bool:
                raise ValueError(f"codes of stream {index} are {piece.dtype}, not integers.")
        return [self._codec.quantizer.lookup_clip(piece.to(self.network.device, torch.int64)) for piece in pieces]


def encode_pieces(model: EncodecModel, pieces: Iterable[Tensor], bandwidth: float | None = None) -> Iterator[Tensor]:
    """Yields the codes [K, F_i] of one clip that comes in pieces [C, T_i] (or [T_i]).

    Codes, int64, are yielded as they are determined, the last ones after the clip's end.
    bandwidth: kbps, None for the lowest.
    Raises as `StreamingEncoder` and its `push` do, when the first codes are asked for.
    """
    encoder = StreamingEncoder(model, bandwidth)
    for piece in pieces:
        yield from (codes for codes in encoder.push(piece) if codes.shape[1])
    yield from (codes for codes in encoder.flush() if codes.shape[1])


def decode_pieces(model: EncodecModel, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yields the audio [C, T_i] of one clip whose codes come in pieces [K, F_i].

    It returns whole codec frames, so up to a frame more than was encoded.
    Raises as `StreamingDecoder` and its `push` do, when the first audio is asked for.
    """
    decoder = StreamingDecoder(model)
    for piece in pieces:
        yield from (audio for audio in decoder.push(piece) if audio.shape[1])
    yield from (audio for audio in decoder.flush() if audio.shape[1])


def _checksum(saved: Any, start: int = 0) -> int:
    """Returns the CRC-32 of all that a state holds; a single changed byte always changes it."""
    if isinstance(saved, dict):
        saved = [part for item in saved.items() for part in item]
    if isinstance(saved, (list, tuple)):
        start = zlib.crc32(f"[{len(saved)}".encode(), start)
        for part in saved:
            start = _checksum(part, start)
        return start
    if not isinstance(saved, Tensor):
        return zlib.crc32(f"{type(saved).__name__} {saved!r}".encode(), start)
    start = zlib.crc32(f"{saved.dtype} {list(saved.shape)}".encode(), start)
    return zlib.crc32(saved.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(), start)


def _streamable(model: EncodecModel, part: str) -> PreparedCodec:
    """Returns the prepared 'encoder' or 'decoder' with the quantizer.  Raises ValueError for a model that can't stream."""
    route = route_stream(model, getattr(model, part))
    reason: str | None = route.reason
    if route.prepared is not None:
        reason = route.prepared.not_streamable
    reason = whole_clips_only(model.config) or reason
    if route.prepared is None or reason is not None:
        remedy = "Use encode_batch and decode_batch, which take clips of any length and run a chunked model's chunks as common batches."
        raise ValueError(f"model: this one can't stream: {reason}. {remedy}")
    return route.prepared
