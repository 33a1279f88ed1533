"""The drop-in `EncodecModel`: transformers' own class, with the work inside its encoder, quantizer and decoder done by the plan."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.encodec import modeling_encodec as hf

from encodec_fast import chunks, exported
from encodec_fast.backends import torch_export
from encodec_fast.backends.base import Precision
from encodec_fast.plan import Plan
from encodec_fast.plan.geometry import chunks_of, encoded_length
from encodec_fast.plan.reader import read_plan
from encodec_fast.plan.weights import forget
from encodec_fast.sample_formats import float_samples, sample_scale
from encodec_fast.serving import compiled, modules
from encodec_fast.serving.clips import Coded, decode_clips, encode_clips, levels_of
from encodec_fast.serving.functions import overlap_add
from encodec_fast.serving.prepared import capturing
from encodec_fast.serving.request import known_precision
from encodec_fast.serving.route import call_reason, is_exporting, owns_frames
from encodec_fast.transformers_versions import ENCODER_FIELDS, MASKS_FRAMES, SCALE_DIMS


class _Network(compiled.Enrolled):
    """Mixed into HF's encoder and decoder: the forward runs on the plan."""

    precision = Precision.PARITY

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        if compiled.traceable(self, hidden_states):
            return compiled.run_network(hidden_states, compiled.number_of(self))
        return modules.run_network(self, hidden_states, super().forward)  # type: ignore[misc]


class EncodecEncoder(_Network, hf.EncodecEncoder):
    """SEANet encoder whose forward runs on the plan."""


class EncodecDecoder(_Network, hf.EncodecDecoder):
    """SEANet decoder whose forward runs on the plan."""


class EncodecResidualVectorQuantizer(compiled.Enrolled, hf.EncodecResidualVectorQuantizer):
    """Residual vector quantizer whose search and sum run on the plan."""

    def encode(self, embeddings: Tensor, bandwidth: float | None = None) -> Tensor:
        levels = levels_of(self, bandwidth)
        if compiled.traceable(self, embeddings):
            return compiled.run_search(embeddings, levels, compiled.number_of(self))
        reference = super().encode
        return modules.run_search(self, embeddings, levels, lambda: reference(embeddings, bandwidth))

    def decode(self, codes: Tensor) -> Tensor:
        if compiled.traceable(self, codes):
            return compiled.run_lookup(codes, compiled.number_of(self))
        return modules.run_lookup(self, codes, super().decode)


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
    embeddings: [n_chunks, D, F], float, what the codes were found for; None unless they were asked for.
    """

    codes: Tensor
    scales: Tensor | None
    last_frame_pad_length: int
    num_samples: int
    embeddings: Tensor | None = None

    def to(self, device: torch.device | str) -> EncodedClip:
        """Returns the same clip on another device."""
        scales, embeddings = (None if part is None else part.to(device) for part in (self.scales, self.embeddings))
        return replace(self, codes=self.codes.to(device), scales=scales, embeddings=embeddings)


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
        """'parity' (the default), 'tf32x3' or 'fast', see `backends.base.Precision`; `use_precision` overrides it for a block.

        Setting it raises ValueError for another name. It is no part of the config or the weights, and `copy.deepcopy` keeps it.
        """
        own: Precision = getattr(self.encoder, "precision", Precision.PARITY)
        return own.value

    @precision.setter
    def precision(self, name: str) -> None:
        for part in (self.encoder, self.decoder):
            part.precision = known_precision(name, "precision")

    @torch.no_grad()
    def cuda_graphs(self, *buckets: tuple[int, int]) -> list[tuple[int, ...]]:
        """Captures the encoder and the decoder as CUDA graphs for buckets of (batch, samples); returns the shapes captured.

        `encode` and `decode` of such a batch then replay them: the same bits, two replays in the place of hundreds of launches.
        Every other shape runs launch by launch, with one line in the log. Weights and precision are those of this moment: after a
        change the graphs are gone, which is logged; call `cuda_graphs` again. A graph keeps the memory of its activations.
        Raises ValueError for a model that is not on a CUDA device. Also for a bucket other than two positive integers, and for audio that
        runs in pieces of time. Raises BackendError where a stage does not run on the triton backend.
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
        for part in (self.encoder, self.decoder):
            # the gate says so where a call finds the graphs gone
            part.__dict__["_has_graphs"] = True
        return captured

    def refresh(self) -> None:
        """Reads the weights anew at the next call: to be called after an edit that leaves no trace.

        Whatever torch counts is seen without it: replaced, moved and cast tensors, edits in place, `load_state_dict`. An edit through
        `.data` or through numpy is not counted. On a CPU it is seen if it changes the first, middle or last word of a tensor. Any other,
        and any on a GPU, is not.
        """
        for part in (self.encoder, self.decoder, self.quantizer):
            forget(part)

    def plan(self) -> Plan:
        """Returns the model as data, read now.  Raises Unplannable where a submodule was replaced by something foreign."""
        return read_plan(self)

    def _encode_frame(self, input_values: Tensor, *args: Any) -> tuple[Tensor, Tensor | None]:
        if is_exporting():
            return super()._encode_frame(input_values, *args)
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
        """Encodes as HF's `encode`; chunks run as common batches, long audio of a causal model in pieces of time.

        input_values: [B, C, T], in the model's dtype, full scale +-1.0.
        padding_mask: [B, T] or [B, C, T], 0 where a clip was padded; None: nowhere.
        bandwidth: kbps, None for the lowest.
        return_dict: False gives a tuple; None: as the config says.

        Returns `audio_codes`, int64 [n_chunks, B, K, F], and `audio_scales`, a tensor for each chunk, or None where the model does not
        normalize. Newer versions of transformers add `last_frame_pad_length`. Exported by torch, the scales of chunks are one tensor.
        Raises ValueError for a bandwidth that the model lacks, and for other than one or two channels.
        """
        if not isinstance(input_values, Tensor) or owns_frames(self):
            return super().encode(input_values, padding_mask, bandwidth, return_dict)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        bandwidth = self.config.target_bandwidths[0] if bandwidth is None else bandwidth
        if self._is_whole(input_values, padding_mask, bandwidth):
            mask = None if padding_mask is None else padding_mask.view(input_values.shape[0], -1, input_values.shape[-1]).bool()
            with torch_export.any_length() if is_exporting() and not torch.compiler.is_dynamo_compiling() else nullcontext():
                ((codes, scale),) = encode_clips(self, [input_values], bandwidth, [mask])
                # as HF stacks: the result is contiguous
                return _encoder_output(torch.stack([codes]), [scale], 0, return_dict=return_dict)
        if is_exporting() and not torch.compiler.is_dynamo_compiling() and self.config.chunk_length is not None:
            found = exported.encode_chunks(self, input_values, padding_mask, bandwidth)
            if found is not None:
                return hf.EncodecEncoderOutput(*found) if return_dict else found
        # batches of chunks need a place to put their codes, which a functional transform has not
        if not torch.compiler.is_compiling() and call_reason(input_values) is not None:
            return super().encode(input_values, padding_mask, bandwidth, return_dict)
        walk = chunks.EncodeWalk(self)
        codes, _, *padded = hf.EncodecModel.encode(walk, input_values, padding_mask, bandwidth, False)
        coded = encode_clips(self, walk.chunks, walk.bandwidth)
        for index, (chunk, _) in enumerate(coded):
            codes[index, ..., : chunk.shape[-1]] = chunk
        return _encoder_output(codes, [scale for _, scale in coded], *padded, return_dict=return_dict)

    def _is_whole(self, audio: Tensor, padding_mask: Tensor | None, bandwidth: float) -> bool:
        """Returns whether the audio is one frame of HF's `encode`, in a call that HF accepts.

        HF multiplies by a mask of ones where there is none, which changes nothing and copies the audio twice.
        """
        batch, channels, samples = audio.shape if audio.dim() == 3 else (0, 0, 0)
        if self.config.chunk_length is not None or samples == 0 or channels not in (1, 2) or bandwidth not in self.config.target_bandwidths:
            return False
        if padding_mask is None:
            return True
        if MASKS_FRAMES or not isinstance(padding_mask, Tensor):
            return False
        return tuple(padding_mask.shape) in ((batch, samples), (batch, 1, samples), (batch, channels, samples))

    @functools.wraps(hf.EncodecModel.decode)
    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """Decodes as HF's `decode`; chunks run as common batches, long audio of a causal model in pieces of time.

        audio_codes: int64 [n_chunks, B, K, F], of `encode`.
        audio_scales: those of `encode`, one for each chunk.
        padding_mask: [B, T]; cuts the audio to the length T.
        return_dict: False gives a tuple; None: as the config says.
        last_frame_pad_length: that of `encode`, where the installed transformers knows it.

        Returns `audio_values`, [B, C, T], in the model's dtype.
        Raises ValueError for several chunks of a model that is not chunked.
        """
        codes = kwargs.get("audio_codes", args[0] if args else None)
        if not isinstance(codes, Tensor) or codes.dim() < 3 or owns_frames(self):
            return super().decode(*args, **kwargs)
        if is_exporting() and not torch.compiler.is_dynamo_compiling():
            return exported.decode_any_length(self, *args, **kwargs)
        return hf.EncodecModel.decode(chunks.DecodeWalk(self), *args, **kwargs)

    @torch.no_grad()
    def encode_batch(
        self, waveforms: Sequence[Tensor | np.ndarray], bandwidth: float | None = None, *, embeddings: bool = False
    ) -> list[EncodedClip]:
        """Returns the codes of clips of any lengths, each what `encode` gives for that clip alone.

        waveforms: [C, T] each, or [T] for a mono model, tensors or arrays; moved to the model's device and dtype. Integers of 8, 16 and
        32 bits are scaled to +-1.0.
        bandwidth: kbps, None for the lowest.
        embeddings: keeps the encoder's output too, from before the quantizer; see `dequantize_batch` for what is behind it.

        Clips and chunks of one length run together, nothing is padded. Bits are independent of the batch where the backend promises it
        (`explain` says which does); on the torch backend they may differ as between any two batch sizes.
        Raises ValueError for a bandwidth the model lacks, an empty clip or a clip of the wrong number of channels; TypeError for other
        numbers, such as int64 and complex ones, and for what is no array.
        """
        if getattr(waveforms, "ndim", 2) < 2:
            raise TypeError(f"waveforms is one clip of shape {list(waveforms.shape)}; give a list of clips.")  # type: ignore[attr-defined]
        bandwidth = known_bandwidth(self.config, bandwidth)
        whole = [self._clip(waveform, index) for index, waveform in enumerate(waveforms)]
        if not whole:
            return []
        cuts = [chunks_of(self.config, clip.shape[1]) for clip in whole]
        parts = [clip[None, :, start : start + length] for clip, cut in zip(whole, cuts) for length, start in cut]
        if not embeddings:
            coded = iter(encode_clips(self, parts, bandwidth))
            return [_joined([next(coded) for _ in cut], clip.shape[1]) for clip, cut in zip(whole, cuts)]
        embedded = encode_clips(self, parts, None)
        searched = [self.quantizer.encode(part, bandwidth).transpose(0, 1) for part, _ in embedded]
        coded, kept = iter(zip(searched, (scale for _, scale in embedded))), iter(part for part, _ in embedded)
        clips = [_joined([next(coded) for _ in cut], clip.shape[1]) for clip, cut in zip(whole, cuts)]
        return [replace(clip, embeddings=stacked([next(kept) for _ in cut])) for clip, cut in zip(clips, cuts)]

    @torch.no_grad()
    def dequantize_batch(self, encoded: Sequence[EncodedClip]) -> list[Tensor]:
        """Returns the embeddings [n_chunks, D, F] that each clip's codes stand for: the sums of their entries, which the decoder takes.

        encoded: clips of `encode_batch`, on any device.
        """
        return [self.quantizer.decode(clip.codes.to(self.device).transpose(0, 1)) for clip in encoded]

    @torch.no_grad()
    def decode_batch(self, encoded: Sequence[EncodedClip]) -> list[Tensor]:
        """Returns the audio [C, num_samples] of each clip, what `decode` gives for that clip alone.  Bits: as in `encode_batch`.

        encoded: clips of `encode_batch`, on any device; the audio is on the model's, in its dtype.
        Raises ValueError for codes or scales that are not of such a clip by such a model.
        """
        moved = [clip.to(self.device) for clip in encoded]
        cuts = [chunks_of(self.config, clip.num_samples) for clip in moved]
        parts = []
        for index, (clip, cut) in enumerate(zip(moved, cuts)):
            self._check_fits(clip, index, cut)
            scales = [None] * len(cut) if clip.scales is None else [scale[None] for scale in clip.scales]
            frames = [encoded_length(self.config, length) for length, _ in cut]
            parts += [(codes[None, :, :count], scale) for codes, scale, count in zip(clip.codes, scales, frames)]
        decoded = iter(decode_clips(self, parts))
        waveforms = []
        for clip, cut in zip(moved, cuts):
            audio = [next(decoded) for _ in cut]
            if self.config.chunk_length is not None:
                audio = [overlap_add(audio, self.config.chunk_stride, clip.num_samples)]
            waveforms.append(audio[0][0, :, : clip.num_samples])
        return waveforms

    def _check_fits(self, clip: EncodedClip, index: int, cut: Sequence[tuple[int, int]]) -> None:
        """Raises ValueError unless codes and scales are of a clip of that length by such a model.  cut: the clip's chunks."""
        frames, shape = encoded_length(self.config, cut[0][0]) if cut else 0, list(clip.codes.shape)
        if len(shape) != 3 or not cut or shape[0] != len(cut) or shape[2] < frames:
            chunks = f"[{len(cut)}, K, {frames}]"
            raise ValueError(f"encoded[{index}] has codes {shape}; this model's of {clip.num_samples} samples are {chunks}.")
        if (clip.scales is not None) != bool(self.config.normalize):
            has = "no scales, which this model needs" if clip.scales is None else "scales, which this model lacks"
            raise ValueError(f"encoded[{index}] has {has}: another model encoded it.")

    def _clip(self, waveform: Tensor | np.ndarray, index: int) -> Tensor:
        channels, name = self.config.audio_channels, f"waveforms[{index}]"
        if isinstance(waveform, np.ndarray):
            sample_scale(waveform.dtype.name, name)  # torch has no words for some of numpy's dtypes
            waveform = torch.as_tensor(waveform)
        if not isinstance(waveform, Tensor):
            raise TypeError(f"{name} is a {type(waveform).__name__}; a tensor or array of samples is needed.")
        clip = waveform[None] if waveform.dim() == 1 else waveform
        if clip.dim() != 2 or clip.shape[0] != channels or clip.shape[1] == 0:
            turned = " Channels come first: transpose it." if clip.dim() == 2 and clip.shape[1] == channels else ""
            raise ValueError(f"{name} has shape {list(waveform.shape)}, not [{channels}, T] with T > 0.{turned}")
        # of the models' own dtype nothing is to be asked
        return clip.to(self.device) if clip.dtype == self.dtype else float_samples(clip, name, self.device, self.dtype)


def _joined(coded: list[Coded], num_samples: int) -> EncodedClip:
    """Puts the chunks of one clip together."""
    frames = [codes.shape[-1] for codes, _ in coded]
    codes = stacked([codes for codes, _ in coded])
    scales = [scale.reshape(-1) for _, scale in coded if scale is not None]
    return EncodedClip(codes, torch.cat(scales) if scales else None, frames[0] - frames[-1], num_samples)


def stacked(chunks: list[Tensor]) -> Tensor:
    """Returns what belongs to the chunks of a clip, [n_i, ..., F_i] each, as one tensor; shorter ones are filled up with zeros."""
    return torch.cat([F.pad(chunk, (0, chunks[0].shape[-1] - chunk.shape[-1])) for chunk in chunks])


def known_bandwidth(config: Any, bandwidth: float | None) -> float:
    """Returns the bandwidth, the lowest for None.  Raises ValueError for one that the model lacks."""
    if bandwidth is None:
        return config.target_bandwidths[0]
    if bandwidth not in config.target_bandwidths:
        raise ValueError(f"bandwidth: the model has no {bandwidth!r} kbps. Choose one of {list(config.target_bandwidths)}.")
    return bandwidth


def _encoder_output(codes: Tensor, scales: list[Tensor | None], *padded: int, return_dict: bool) -> Any:
    """Returns HF's output of `encode`.  codes: [n_chunks, B, K, F].  padded: frames that pad the last chunk, where HF tells them."""
    if scales[0] is not None and SCALE_DIMS == 3:
        scales = [scale if scale is None else scale.view(-1, 1, 1) for scale in scales]
    values = (codes, scales, *padded)[:ENCODER_FIELDS]
    return hf.EncodecEncoderOutput(*values) if return_dict else values
