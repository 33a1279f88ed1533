"""Clips of any lengths through the encoder and the search, and back, within a memory budget.

Clips run together as far as the budget allows, longest first, each at its own length; nothing is padded. A clip that alone
exceeds the budget runs in pieces of time with carried state, the search behind the encoder in each piece.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.models.encodec import modeling_encodec as hf

from encodec_fast.plan import not_streamable
from encodec_fast.serving import memory, reasons, request, route
from encodec_fast.serving.prepared import PreparedNetwork, PreparedQuantizer

# Pieces of fewer steps would spend their time on carried state: the budget gives way.
LEAST_PIECE_SECONDS = 1.0


@dataclass(frozen=True)
class PreparedCodec:
    """A network and the quantizer, ready for clips."""

    network: PreparedNetwork
    quantizer: PreparedQuantizer

    @property
    def exact(self) -> bool:
        """Whether a clip's bits are independent of batch and pieces."""
        return self.network.exact and self.quantizer.program.exact

    @property
    def not_streamable(self) -> str | None:
        """Why clips can't run in pieces of time, or None."""
        return not_streamable(self.network.network.stages)


def prepare_codec(network: nn.Module, quantizer: nn.Module, clip: Tensor) -> PreparedCodec | str:
    """The encoder or decoder with the quantizer for clips like `clip`, or why only the modules themselves can run them."""
    for module in (network, quantizer):
        reason = reasons.reference_reason(module, clip, request.requested(module)) or reasons.own_hook_reason(module)
        if reason is not None:
            return reason
    prepared = route.prepare_network(network, request.requested(network))
    codebooks = route.prepare_quantizer(quantizer, request.requested(quantizer))
    if isinstance(prepared, str) or isinstance(codebooks, str):
        return prepared if isinstance(prepared, str) else str(codebooks)
    stages = prepared.network.stages
    width = stages[0].in_channels if isinstance(network, hf.EncodecDecoder) else stages[-1].out_channels
    if width != codebooks.quantizer.codebooks.shape[2]:
        return "its codebooks are not as wide as its embeddings"
    return PreparedCodec(prepared, codebooks)


def encode_clips(model: Any, clips: Sequence[Tensor], num_quantizers: int, mask: Sequence[Tensor] | None = None) -> list[Tensor] | None:
    """Codes [num_quantizers, F_b] of clips [C, T_b] as the encoder takes them; None where only the modules themselves can run them.

    mask: [C or 1, T_b] each, multiplied with the clip.
    """
    codec = prepare_codec(model.encoder, model.quantizer, clips[0])
    if isinstance(codec, str) or not _fits(codec.network.network, clips):
        return None
    network, sample_bytes = codec.network.network, clips[0].element_size()
    embeddings = sample_bytes * network.stages[-1].out_channels / network.hop_length
    masked = 0 if mask is None else sample_bytes * clips[0].shape[0]

    def read(index: int, start: int, end: int) -> Tensor:
        piece = clips[index][:, start:end]
        return piece if mask is None else mask[index][:, start:end] * piece

    def search(parts: list[Tensor]) -> list[Tensor]:
        return codec.quantizer.search_clips(parts, num_quantizers)

    least = int(LEAST_PIECE_SECONDS * model.config.sampling_rate)
    groups = _groups(codec, [clip.shape[1] for clip in clips], embeddings + masked, least, model.max_memory)
    return _run(codec, [clip.shape[1] for clip in clips], groups, read, search)


def decode_clips(model: Any, codes: Sequence[Tensor]) -> list[Tensor] | None:
    """Audio [C, T_b] of codes [K, F_b]; None where only the modules themselves can run them.

    All clips have equally many levels.  Raises IndexError for a code outside its codebook; on a GPU the device stops
    there with an assertion, as with transformers.
    """
    codec = prepare_codec(model.decoder, model.quantizer, codes[0])
    if isinstance(codec, str):
        return None
    network, codebooks = codec.network.network, codec.quantizer.quantizer.codebooks
    if any(reasons.codes_mismatch(part, codebooks) or reasons.single_value_reason(network, part[None]) for part in codes):
        return None
    # embeddings, and a piece's audio by itself before it is in its place
    frame_bytes = codebooks.element_size() * (codebooks.shape[2] + network.stages[-1].out_channels * network.hop_length)
    lengths = [part.shape[1] for part in codes]
    least = int(LEAST_PIECE_SECONDS * model.config.sampling_rate / network.hop_length)
    groups = _groups(codec, lengths, frame_bytes, least, model.max_memory)
    return _run(codec, lengths, groups, lambda index, start, end: codec.quantizer.lookup_clip(codes[index][:, start:end]), list)


def _run(
    codec: PreparedCodec,
    lengths: Sequence[int],
    groups: Sequence[tuple[list[int], int | None]],
    read: Callable[[int, int, int], Tensor],
    after: Callable[[list[Tensor]], list[Tensor]],
) -> list[Tensor]:
    """What `after` makes of the network's output for each clip.

    read: the network's input [C, end - start] of clip `index` from step `start` to `end`.
    """
    network, output_length = codec.network, codec.network.network.output_length
    results: dict[int, Tensor] = {}
    for members, piece in groups:
        if piece is None:
            results |= zip(members, after(network.run_clips([read(index, 0, lengths[index]) for index in members])))
            continue
        (index,) = members
        pieces = _pushed(network, lengths[index], piece, functools.partial(read, index))
        results[index] = _placed(map(after, pieces), output_length(lengths[index]))
    return [results[index] for index in range(len(lengths))]


def _fits(network: Any, clips: Sequence[Tensor]) -> bool:
    """Whether the network takes the clips; where not, the modules say so in their own words."""
    return not any(
        reasons.mismatch(clip[None], network.stages[0].in_channels, network.dtype, network.device)
        or clip.shape[1] == 0
        or reasons.single_value_reason(network, clip[None])
        for clip in clips
    )


def _groups(
    codec: PreparedCodec, lengths: Sequence[int], step_bytes: float, least: int, max_memory: int | None
) -> list[tuple[list[int], int | None]]:
    """Clips that run together; and the steps of a piece for a clip that exceeds the budget by itself, None for all others.

    step_bytes: what a step of one clip takes beside the network's own activations.  least: steps of a piece.
    """
    held = codec.network.held_bytes + step_bytes
    if max_memory is None and sum(lengths) * held <= memory.LITTLE_BYTES:
        return [(list(range(len(lengths))), None)]
    steps = int(memory.budget(max_memory, codec.exact, codec.network.network.device) / held)
    groups: list[list[int]] = []
    taken = 0
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if not groups or taken + lengths[index] > steps:
            groups.append([])
            taken = 0
        groups[-1].append(index)
        taken += lengths[index]
    cuttable = codec.not_streamable is None
    return [(group, max(least, steps) if cuttable and lengths[group[0]] > steps else None) for group in groups]


def _pushed(network: PreparedNetwork, length: int, piece: int, read: Callable[[int, int], Tensor]) -> Iterator[list[Tensor]]:
    """What the network gives for every piece of time of one clip."""
    states = [network.open()]
    for start in range(0, length, piece):
        end = min(start + piece, length)
        yield network.push([read(start, end)], states, [end == length])


def _placed(pieces: Iterable[list[Tensor]], length: int) -> Tensor:
    """The pieces one behind the other, in a tensor made beforehand: nothing long is there twice."""
    whole: Tensor | None = None
    done = 0
    for (part,) in pieces:
        whole = part.new_empty(part.shape[0], length) if whole is None else whole
        whole[:, done : done + part.shape[1]] = part
        done += part.shape[1]
    assert whole is not None and done == length
    return whole
