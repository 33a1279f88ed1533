"""The drop-in `EncodecModel`: transformers' own class, with the work inside its encoder, quantizer and decoder done by the plan."""

from __future__ import annotations

import functools
import inspect
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.encodec import modeling_encodec as hf
from transformers.utils import ModelOutput

from encodec_fast import chunks
from encodec_fast.plan import Plan
from encodec_fast.plan.cache import forget
from encodec_fast.plan.reader import read_plan
from encodec_fast.serving import clips, compiled, reasons, request, route
from encodec_fast.serving.prepared import capturing


class EncodecEncoder(compiled.Enrolled, hf.EncodecEncoder):
    """SEANet encoder whose forward runs on the plan."""

    precision = "parity"

    def forward(self, hidden_states: Tensor) -> Tensor:
        if compiled.traceable(self, hidden_states):
            return compiled.run_network(hidden_states, compiled.number_of(self))
        return route.run_network(self, hidden_states, super().forward)


class EncodecDecoder(compiled.Enrolled, hf.EncodecDecoder):
    """SEANet decoder whose forward runs on the plan."""

    precision = "parity"

    def forward(self, hidden_states: Tensor) -> Tensor:
        if compiled.traceable(self, hidden_states):
            return compiled.run_network(hidden_states, compiled.number_of(self))
        return route.run_network(self, hidden_states, super().forward)


class EncodecResidualVectorQuantizer(compiled.Enrolled, hf.EncodecResidualVectorQuantizer):
    """Residual vector quantizer whose search and sum run on the plan."""

    def encode(self, embeddings: Tensor, bandwidth: float | None = None) -> Tensor:
        levels = chunks.levels_of(self, bandwidth)
        if compiled.traceable(self, embeddings):
            return compiled.run_search(embeddings, levels, compiled.number_of(self))
        reference = super().encode
        return route.run_search(self, embeddings, levels, lambda: reference(embeddings, bandwidth))

    def decode(self, codes: Tensor) -> Tensor:
        if compiled.traceable(self, codes):
            return compiled.run_lookup(codes, compiled.number_of(self))
        return route.run_lookup(self, codes, super().decode)


FAST_PARTS = {
    hf.EncodecEncoder: EncodecEncoder,
    hf.EncodecDecoder: EncodecDecoder,
    hf.EncodecResidualVectorQuantizer: EncodecResidualVectorQuantizer,
}


@dataclass(frozen=True)
class EncodedClip:
    """One clip's codes.

    codes: [n_chunks, K, F], int64; one chunk unless the model is chunked.  scales: [n_chunks], float, or None.
    last_frame_pad_length: frames of zeros at the end of the last chunk.  num_samples: length of the clip.
    """

    codes: Tensor
    scales: Tensor | None
    last_frame_pad_length: int
    num_samples: int

    def to(self, device: torch.device | str) -> EncodedClip:
        """The same clip on another device."""
        return replace(self, codes=self.codes.to(device), scales=None if self.scales is None else self.scales.to(device))


class EncodecModel(hf.EncodecModel):
    """`transformers.EncodecModel`, several times faster: same constructor, weights, signatures, outputs and errors.

    Beyond it: `encode_batch` and `decode_batch` for clips of any lengths, `precision`, `cuda_graphs`, `plan()` for the model as data.

    max_memory: bytes that `encode`, `decode` and the batch methods may hold beside the model, their input and their result; longer
    audio of a causal model runs in pieces of time with carried state (one second at least). None: 96 MiB on the cpu backend; half
    of the free memory on GPUs, and on the torch backend, where pieces may change bits. `decode` under grad mode is not cut.
    """

    max_memory: int | None = None

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for part in (self.encoder, self.decoder, self.quantizer):
            part.__class__ = FAST_PARTS[type(part)]
            compiled.enroll(part)

    @property
    def precision(self) -> str:
        """'parity' (the default), 'tf32x3' or 'fast', see `request.PRECISIONS`; `use_precision` overrides it for a block.

        Setting it raises ValueError for another name. It is no part of the config or the weights, and `copy.deepcopy` keeps it.
        """
        return getattr(self.encoder, "precision", "parity")

    @precision.setter
    def precision(self, name: str) -> None:
        for part in (self.encoder, self.decoder):
            part.precision = request.known_precision(name, "precision")

    @torch.no_grad()
    def cuda_graphs(self, *buckets: tuple[int, int]) -> list[tuple[int, ...]]:
        """Captures the encoder and the decoder as CUDA graphs for buckets of (batch, samples); returns the shapes captured.

        From then on `encode` and `decode` of such a batch replay them, the same bits with two replays in the place of hundreds of
        launches; every other shape runs launch by launch, with one line in the log. Weights and precision are those of the moment: after
        a change the graphs are gone, which is logged, and `cuda_graphs` is to be called again. A graph keeps the memory of its activations.
        Raises ValueError for a model that is not on a CUDA device, for a bucket that is not two positive integers and for audio so long
        that it runs in pieces of time; BackendError where a stage does not run on the triton backend.
        """
        for bucket in buckets:
            if len(bucket) != 2 or min(bucket) < 1:
                raise ValueError(f"cuda_graphs: a bucket is (batch, samples), both at least 1; got {bucket!r}.")
        if self.device.type != "cuda":
            raise ValueError(f"cuda_graphs: the model is on {self.device}, and only a CUDA device has graphs. Call model.to('cuda') first.")
        return [shape for bucket in buckets for shape in self._capture(*bucket)]

    def _capture(self, batch: int, samples: int) -> list[tuple[int, ...]]:
        audio = torch.zeros(batch, self.config.audio_channels, samples, dtype=self.dtype, device=self.device)
        with capturing() as captured:
            encoded = self.encode(audio)
            count = len(captured)
            extra = {"last_frame_pad_length": encoded.last_frame_pad_length} if "last_frame_pad_length" in encoded else {}
            self.decode(encoded.audio_codes, encoded.audio_scales, **extra)
        if not 0 < count < len(captured):
            raise ValueError(
                f"cuda_graphs: {batch} clips of {samples} samples run in pieces of time or on the reference modules, which no graph holds. "
                "explain() tells which; for the former raise max_memory or lower the bucket."
            )
        return captured

    def refresh(self) -> None:
        """Reads the weights anew at the next call: to be called after an edit that leaves no trace.

        Whatever torch counts is seen without it: replaced, moved and cast tensors, edits in place, `load_state_dict`. An edit through
        `.data` or through numpy is not counted. On a CPU it is seen where it changes the first, the middle or the last word of a tensor,
        elsewhere, and on a GPU, it is not.
        """
        for part in (self.encoder, self.decoder, self.quantizer):
            forget(part)

    def plan(self) -> Plan:
        """The model as data, read now.  Raises Unplannable where a submodule was replaced by something foreign."""
        return read_plan(self)

    def _encode_frame(self, input_values: Tensor, *args: Any) -> tuple[Tensor, Tensor | None]:
        # codes carry no gradient; only the scale of an input that asks for one does
        with torch.set_grad_enabled(torch.is_grad_enabled() and input_values.requires_grad):
            # a traced call must not depend on the length, which the order of summation does
            if self.config.normalize and not torch.compiler.is_compiling():
                return chunks.encode_normalized(self, input_values, *args)
            return super()._encode_frame(input_values, *args)

    def encode(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        bandwidth: float | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """HF's `encode`; the chunks of a chunked model run as common batches, long audio of a causal one in pieces of time."""
        if not self._walks_apply(input_values):
            return super().encode(input_values, padding_mask, bandwidth, return_dict)
        walk = chunks.EncodeWalk(self)
        # HF multiplies by a mask of ones here, which changes nothing and copies the audio twice: it walks one sample instead
        whole = self.config.chunk_length is None and _is_mask(padding_mask, input_values)
        walked = input_values[..., :1] if whole else input_values
        walked_mask = padding_mask[..., :1] if whole and padding_mask is not None else padding_mask
        output = hf.EncodecModel.encode(walk, walked, walked_mask, bandwidth, return_dict)
        if not whole:
            return _with_codes(output, chunks.encode_chunks(self, walk.chunks, walk.bandwidth))
        mask = None if padding_mask is None else padding_mask.view(input_values.shape[0], -1, input_values.shape[-1]).bool()
        codes = self._encode_long(input_values, mask, walk.levels())
        if codes is not None:
            return _with_codes(output, [(codes, None)])
        masked = input_values if mask is None else mask * input_values
        return _with_codes(output, chunks.encode_chunks(self, [(masked, inside) for _, inside in walk.chunks], walk.bandwidth))

    def _encode_long(self, audio: Tensor, mask: Tensor | None, levels: int) -> Tensor | None:
        """Codes [B, K, F] of audio long enough to think of memory, or None."""
        short = self.max_memory is None and audio.numel() < LONG_SAMPLES
        if short or self.config.normalize or torch.compiler.is_compiling():
            return None
        with torch.no_grad():
            codes = clips.encode_clips(self, audio.unbind(0), levels, None if mask is None else mask.unbind(0))
        return None if codes is None else torch.stack(codes)

    @functools.wraps(hf.EncodecModel.decode)
    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """HF's `decode`; the chunks of a chunked model run as common batches, long audio of a causal one in pieces of time."""
        codes = kwargs.get("audio_codes", args[0] if args else None)
        if self.config.chunk_length is None or not self._walks_apply(codes):
            return super().decode(*args, **kwargs)
        return hf.EncodecModel.decode(chunks.DecodeWalk(self), *args, **kwargs)

    def _decode_frame(self, codes: Tensor, scale: Tensor | None = None) -> Tensor:
        # HF says what is wrong with codes that are no tensor
        audio = self._decode_long(codes) if isinstance(codes, Tensor) else None
        if audio is None:
            return super()._decode_frame(codes, scale)
        return audio if scale is None else audio * scale.view(-1, 1, 1)

    def _decode_long(self, codes: Tensor) -> Tensor | None:
        """Audio [B, C, T] of codes [B, K, F] long enough to think of memory, where no gradient is wanted; or None."""
        short = self.max_memory is None and codes.shape[0] * codes.shape[-1] * chunks.hop_length(self.config) < LONG_SAMPLES
        if short or self.config.normalize or torch.compiler.is_compiling():
            return None
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.decoder.parameters()):
            return None
        audio = clips.decode_clips(self, codes.unbind(0))
        if audio is None:
            return None
        # stack copies, and this is long
        return audio[0][None] if len(audio) == 1 else torch.stack(audio)

    def _walks_apply(self, tensor: Any) -> bool:
        # somebody's own _encode_frame must see HF's own loop, and so must a traced call
        overridden = "_encode_frame" in self.__dict__ or "_decode_frame" in self.__dict__
        overridden = overridden or type(self)._encode_frame is not EncodecModel._encode_frame
        overridden = overridden or type(self)._decode_frame is not EncodecModel._decode_frame
        if overridden or not isinstance(tensor, Tensor) or tensor.dim() < 3:
            return False
        return torch.compiler.is_compiling() or reasons.call_reason(tensor) is None

    @torch.no_grad()
    def encode_batch(self, waveforms: Sequence[Tensor], bandwidth: float | None = None) -> list[EncodedClip]:
        """The codes of clips of any lengths, each what `encode` gives for that clip alone.

        waveforms: [C, T] each, or [T] for a mono model; moved to the model's device and dtype.  bandwidth: kbps, None for the lowest.
        Clips and chunks of one length run together, nothing is padded. Bits are independent of the batch where the backend promises it
        (`explain` says which does); on the torch backend they may differ as between any two batch sizes.
        Raises ValueError for a bandwidth the model lacks, an empty clip or a clip of the wrong number of channels.
        """
        bandwidth = known_bandwidth(self.config, bandwidth)
        whole = [self._clip(waveform, index) for index, waveform in enumerate(waveforms)]
        if not whole:
            return []
        audio = [clip[:, start : start + length] for clip in whole for length, start in self._chunks_of(clip.shape[-1])]
        results = iter(self._encode_chunks(audio, bandwidth))
        return [self._join_chunks([next(results) for _ in self._chunks_of(clip.shape[-1])], clip.shape[-1]) for clip in whole]

    def _encode_chunks(self, audio: list[Tensor], bandwidth: float) -> list[tuple[Tensor, Tensor | None]]:
        """(codes [1, K, F], scale [1, 1] or None) of whole clips or chunks [C, T]."""
        if self._walks_apply(audio[0][None]):
            scales = [None] * len(audio)
            clean = audio
            if self.config.normalize:
                clean, scales = zip(*(chunks.normalized(chunk[None]) for chunk in audio))  # type: ignore[assignment]
                clean = [chunk[0] for chunk in clean]
            codes = clips.encode_clips(self, clean, chunks.levels_of(self.quantizer, bandwidth))
            if codes is not None:
                return [(part[None], scale) for part, scale in zip(codes, scales)]
        walked = [(chunk[None], (torch.ones_like(chunk[None], dtype=torch.bool),) * _MASKS_INSIDE) for chunk in audio]
        return chunks.encode_chunks(self, walked, bandwidth)

    @torch.no_grad()
    def decode_batch(self, encoded: Sequence[EncodedClip]) -> list[Tensor]:
        """The audio [C, num_samples] of each clip, what `decode` gives for that clip alone.  Bits: as in `encode_batch`."""
        moved = [clip.to(self.device) for clip in encoded]
        walked: list[tuple[Tensor, Tensor | None]] = []
        for clip in moved:
            for index, (length, _) in enumerate(self._chunks_of(clip.num_samples)):
                codes = clip.codes[index, :, : chunks.encoded_length(self.config, length)]
                walked.append((codes, None if clip.scales is None else clip.scales[index]))
        decoded = iter(self._decode_chunks(walked))
        waveforms = []
        for clip in moved:
            frames = [next(decoded) for _ in self._chunks_of(clip.num_samples)]
            if self.config.chunk_length is not None:
                frames = [chunks.overlap_add(frames, self.config.chunk_stride, clip.num_samples)]
            waveforms.append(frames[0][0, :, : clip.num_samples])
        return waveforms

    def _decode_chunks(self, walked: list[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
        """Audio [1, C, T] of (codes [K, F], scale [] or None) of whole clips or chunks, in order."""
        results: list[Any] = [None] * len(walked)
        by_levels: dict[int, list[int]] = defaultdict(list)
        for index, (codes, _) in enumerate(walked):
            by_levels[codes.shape[0]].append(index)
        for members in by_levels.values():
            applies = self._walks_apply(walked[members[0]][0][None])
            audio = clips.decode_clips(self, [walked[index][0] for index in members]) if applies else None
            if audio is None:
                scaled = [(codes[None], None if scale is None else scale.reshape(1)) for codes, scale in (walked[i] for i in members)]
                audio = [part[0] for part in chunks.decode_chunks(self, scaled)]
            else:
                scales = [walked[index][1] for index in members]
                audio = [part if scale is None else part * scale for part, scale in zip(audio, scales)]
            for index, part in zip(members, audio):
                results[index] = part[None]
        return results

    def _clip(self, waveform: Tensor, index: int) -> Tensor:
        channels = self.config.audio_channels
        clip = waveform[None] if waveform.dim() == 1 else waveform
        if clip.dim() != 2 or clip.shape[0] != channels or clip.shape[1] == 0:
            raise ValueError(f"waveforms[{index}] has shape {list(waveform.shape)}, not [{channels}, T] with T > 0.")
        return clip.to(self.device, self.dtype)

    def _chunks_of(self, num_samples: int) -> list[tuple[int, int]]:
        """(length, start) of the chunks that HF's `encode` cuts a clip into."""
        chunk_length = self.config.chunk_length
        if chunk_length is None:
            return [(num_samples, 0)]
        return [(min(chunk_length, num_samples - at), at) for at in range(0, num_samples, self.config.chunk_stride)]

    def _join_chunks(self, results: list[tuple[Tensor, Tensor | None]], num_samples: int) -> EncodedClip:
        frames = [codes.shape[-1] for codes, _ in results]
        codes = torch.cat([F.pad(codes, (0, frames[0] - codes.shape[-1])) for codes, _ in results])
        scales = [scale.reshape(-1) for _, scale in results if scale is not None]
        return EncodedClip(codes, torch.cat(scales) if scales else None, frames[0] - frames[-1], num_samples)


def known_bandwidth(config: Any, bandwidth: float | None) -> float:
    """The bandwidth, the lowest for None.  Raises ValueError for one that the model lacks."""
    if bandwidth is None:
        return config.target_bandwidths[0]
    if bandwidth not in config.target_bandwidths:
        raise ValueError(f"bandwidth: the model has no {bandwidth} kbps. Choose one of {list(config.target_bandwidths)}.")
    return bandwidth


def _is_mask(padding_mask: Tensor | None, audio: Tensor) -> bool:
    """Whether the mask is none or one that HF's `encode` multiplies with this audio, which has samples."""
    batch, channels, samples = audio.shape
    if samples == 0 or padding_mask is None:
        return samples > 0
    if _MASKS_INSIDE or not isinstance(padding_mask, Tensor):
        return False
    return tuple(padding_mask.shape) in ((batch, samples), (batch, 1, samples), (batch, channels, samples))


# Less than this is not worth the look at memory: three minutes of 24 kHz audio.
LONG_SAMPLES = 1 << 22

# transformers before 4.53 hands the padding mask to _encode_frame
_MASKS_INSIDE = int("padding_mask" in inspect.signature(hf.EncodecModel._encode_frame).parameters)


def _with_codes(output: Any, results: list[tuple[Tensor, Tensor | None]]) -> Any:
    """HF's output with its placeholder codes and scales replaced; the zeros it padded the last chunk with stay."""
    as_dict = isinstance(output, ModelOutput)
    codes, _, *rest = output.to_tuple() if as_dict else output
    if len(results) == 1:
        codes = results[0][0][None]
    else:
        for index, (chunk_codes, _) in enumerate(results):
            codes[index, ..., : chunk_codes.shape[-1]] = chunk_codes
    scales = [scale for _, scale in results]
    if not as_dict:
        return (codes, scales, *rest)
    output["audio_codes"], output["audio_scales"] = codes, scales
    return output
