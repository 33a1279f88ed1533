"""Clips of any lengths through the encoder and the search, and back, within a memory budget.

Clips run together as far as the budget allows, longest first, each at its own length; nothing is padded. A clip that alone
exceeds the budget runs in pieces of time with carried state, the search behind the encoder in each piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from encodec_fast import dispatch, memory
from encodec_fast.plan import not_streamable

# Pieces of fewer steps would spend their time on carried state: the budget gives way.
LEAST_PIECE_SECONDS = 1.0


@dataclass(frozen=True)
class PreparedCodec:
    """A network and the quantizer, ready for clips."""

    network: dispatch.PreparedNetwork
    quantizer: dispatch.PreparedQuantizer

    @property
    def exact(self) -> bool:
        """Whether a clip's bits are independent of batch and pieces."""
        return self.network.exact and self.quantizer.choice.backend != "torch"

    @property
    def not_streamable(self) -> str | None:
        """Why clips can't run in pieces of time, or None."""
        return not_streamable(self.network.network.stages)


def prepare_codec(network: nn.Module, quantizer: nn.Module, clip: Tensor) -> PreparedCodec | str:
    """The encoder or decoder with the quantizer for clips like `clip`, or why only the modules themselves can run them."""
    for module in (network, quantizer):
        reason = dispatch.reference_reason(module, clip, dispatch.requested(module)) or dispatch.own_hook_reason(module)
        if reason is not None:
            return reason
    prepared = dispatch.prepare_network(network, dispatch.requested(network))
    codebooks = dispatch.prepare_quantizer(quantizer, dispatch.requested(quantizer))
    if isinstance(prepared, str) or isinstance(codebooks, str):
        return prepared if isinstance(prepared, str) else str(codebooks)
    return PreparedCodec(prepared, codebooks)


def encode_clips(model: Any, clips: Sequence[Tensor], num_quantizers: int, mask: Sequence[Tensor] | None = None) -> list[Tensor] | None:
    """Codes [num_quantizers, F_b] of clips [C, T_b] as the encoder takes them; None where only the modules themselves can run them.

    mask: [C or 1, T_b] each, multiplied with the clip.
    """
    codec = prepare_codec(model.encoder, model.quantizer, clips[0])
    if isinstance(codec, str) or not _fits(codec.network.network, clips):
        return None
    network, quantizer = codec.network, codec.quantizer
    embedding_bytes = clips[0].element_size() * network.network.stages[-1].out_channels / network.network.hop_length
    held = network.held_bytes + embedding_bytes + (0 if mask is None else clips[0].element_size() * clips[0].shape[0])

    def masked(index: int, start: int, end: int) -> Tensor:
        piece = clips[index][:, start:end]
        return piece if mask is None else mask[index][:, start:end] * piece

    def search(embeddings: list[Tensor]) -> list[Tensor]:
        codes = quantizer.program.encode(torch.cat(embeddings, 1)[None], num_quantizers)[:, 0]
        return list(codes.split([part.shape[1] for part in embeddings], 1))

    results: list[Any] = [None] * len(clips)
    least = int(LEAST_PIECE_SECONDS * model.config.sampling_rate)
    for members, piece in _groups([clip.shape[1] for clip in clips], held, codec, model, least):
        if piece is None:
            found = search(network.run_clips([masked(index, 0, clips[index].shape[1]) for index in members]))
        else:
            found = _joined(_pushed(codec, members, [clips[index].shape[1] for index in members], piece, masked, search))
        for index, codes in zip(members, found):
            results[index] = codes
    return results


def decode_clips(model: Any, codes: Sequence[Tensor]) -> list[Tensor] | None:
    """Audio [C, T_b] of codes [K, F_b]; None where only the modules themselves can run them.

    All clips have equally many levels.  Raises IndexError for a code outside its codebook.
    """
    codec = prepare_codec(model.decoder, model.quantizer, codes[0])
    if isinstance(codec, str):
        return None
    network, quantizer = codec.network, codec.quantizer
    codebooks = quantizer.quantizer.codebooks
    if codes[0].shape[0] > codebooks.shape[0] or network.network.stages[0].in_channels != codebooks.shape[2]:
        return None
    if any(dispatch.single_value_reason(network.network, part[None]) for part in codes):
        return None
    hop = network.network.hop_length
    result = codebooks.element_size() * network.network.stages[-1].out_channels * hop
    held = network.held_bytes + codebooks.element_size() * codebooks.shape[2]

    def lookup(index: int, start: int, end: int) -> Tensor:
        return quantizer.program.decode(codes[index][:, None, start:end])[0]

    results: list[Any] = [None] * len(codes)
    least = int(LEAST_PIECE_SECONDS * model.config.sampling_rate / hop)
    # a piece's audio is there twice, by itself and in its place
    for members, piece in _groups([part.shape[1] for part in codes], held + result, codec, model, least):
        if piece is None:
            found = network.run_clips([lookup(index, 0, codes[index].shape[1]) for index in members])
        else:
            lengths = [codes[index].shape[1] for index in members]
            pieces = _pushed(codec, members, lengths, piece, lookup, lambda parts: parts)
            found = _placed(pieces, [network.network.output_length(length) for length in lengths])
        for index, audio in zip(members, found):
            results[index] = audio
    return results


def _fits(network: Any, clips: Sequence[Tensor]) -> bool:
    """Whether the network takes the clips; where not, the modules say so in their own words."""
    return not any(
        dispatch.mismatch(clip[None], network.stages[0].in_channels, network.dtype, network.device)
        or clip.shape[1] == 0
        or dispatch.single_value_reason(network, clip[None])
        for clip in clips
    )


def _groups(lengths: list[int], held: float, codec: PreparedCodec, model: Any, least: int) -> Iterator[tuple[list[int], int | None]]:
    """Clips that run together, and the steps of a piece where they run in pieces.

    held: bytes that a step of one clip takes while it is worked on.
    """
    if model.max_memory is None and sum(lengths) * held <= memory.LITTLE_BYTES:
        yield list(range(len(lengths))), None
        return
    steps = int(memory.budget(model.max_memory, codec.exact, codec.network.network.device) / held)
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    cuttable = codec.not_streamable is None
    group: list[int] = []
    taken = 0
    for index in order:
        if group and taken + lengths[index] > steps:
            yield group, _piece(lengths, group, steps, cuttable, least)
            group, taken = [], 0
        group.append(index)
        taken += lengths[index]
    if group:
        yield group, _piece(lengths, group, steps, cuttable, least)


def _piece(lengths: list[int], group: list[int], steps: int, cuttable: bool, least: int) -> int | None:
    fits = sum(lengths[index] for index in group) <= steps
    return None if fits or not cuttable else max(least, steps // len(group))


def _pushed(
    codec: PreparedCodec,
    members: list[int],
    lengths: list[int],
    piece: int,
    read: Callable[[int, int, int], Tensor],
    after: Callable[[list[Tensor]], list[Tensor]],
) -> Iterator[list[Tensor]]:
    """What every piece of time gives, one output per clip of `members`."""
    states = [codec.network.open() for _ in members]
    for start in range(0, max(lengths), piece):
        final = [start < length <= start + piece for length in lengths]
        parts = [read(index, min(start, length), min(start + piece, length)) for index, length in zip(members, lengths)]
        yield after(codec.network.push(parts, states, final))


def _joined(pieces: Iterator[list[Tensor]]) -> list[Tensor]:
    return [torch.cat(parts, -1) for parts in zip(*pieces)]


def _placed(pieces: Iterator[list[Tensor]], lengths: list[int]) -> list[Tensor]:
    """As `_joined`, into tensors made beforehand: the audio is never there twice."""
    whole: list[Tensor] = []
    done = [0] * len(lengths)
    for parts in pieces:
        whole = whole or [part.new_empty(part.shape[0], length) for part, length in zip(parts, lengths)]
        for index, part in enumerate(parts):
            whole[index][:, done[index] : done[index] + part.shape[1]] = part
            done[index] += part.shape[1]
    return whole
