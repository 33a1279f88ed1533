"""Audio to codes and back, within a memory budget: the one driver of `encode`, `decode`, batches, chunks and long audio.

The input is a list of batches [B, C, T] of clips or chunks, each of its own length. Where the plan serves them, their clips run
together as far as the budget allows. Longest first, each at its own length; nothing is padded. A clip that alone exceeds the budget runs
in pieces of time with carried state. Each piece is searched at once. Elsewhere the modules run, batches of one shape together.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.models.encodec import modeling_encodec as hf

from encodec_fast.plan.geometry import hop_length
from encodec_fast.serving import memory
from encodec_fast.serving.functions import normalize
from encodec_fast.serving.prepared import PreparedCodec, PreparedNetwork
from encodec_fast.serving.route import route_decode, route_encode
from encodec_fast.transformers_versions import MASKS_FRAMES

# One batch of fewer samples is not worth a look at memory: three minutes of 24 kHz audio.
LONG_SAMPLES = 1 << 22

# Pieces of fewer steps would spend their time on carried state: the budget gives way.
LEAST_PIECE_SECONDS = 1.0

# Bound on the audio, first-layer activations and padding of the chunks that the modules run as one batch: 40 of the 48 kHz model.
CHUNK_BATCH_BYTES = 512 << 20

# Codes [B, K, F] of a batch, and the scale [B, 1] that was taken off its clips, or None.
Coded = tuple[Tensor, Tensor | None]
# Clips that run together; and the steps of a piece for a clip that exceeds the budget by itself, None for all others.
Groups = list[tuple[list[int], int | None]]


def levels_of(quantizer: hf.EncodecResidualVectorQuantizer, bandwidth: float | None) -> int:
    """Returns how many codebooks the bandwidth (kbps, None for all) uses."""
    return min(quantizer.get_num_quantizers_for_bandwidth(bandwidth), len(quantizer.layers))


def encode_clips(
    model: Any, batches: Sequence[Tensor], bandwidth: float | None, masks: Sequence[Tensor | None] | None = None
) -> list[Coded]:
    """Returns codes and scale of each batch [B, C, T] of audio.

    bandwidth: kbps, one that the model has; None: embeddings [B, D, F] instead of codes.
    masks: of each batch None or [B, 1 or C, T], which multiplies the audio.
    """
    masks = [None] * len(batches) if masks is None else masks
    if torch.compiler.is_compiling():
        return _encode_by_modules(model, batches, bandwidth, masks)
    route = route_encode(model, batches)
    if route.prepared is None:
        return _encode_by_modules(model, batches, bandwidth, masks)
    codec, network = route.prepared, route.prepared.network
    levels = None if bandwidth is None else levels_of(model.quantizer, bandwidth)

    # embeddings; a masked or normalised copy of the audio
    copied = network.in_channels * ((masks[0] is not None) + 2 * model.config.normalize)
    step_bytes = batches[0].element_size() * (network.out_channels / network.hop_length + copied)
    # the scale of a clip is that of the whole of it
    least = None if model.config.normalize else int(LEAST_PIECE_SECONDS * model.config.sampling_rate)
    groups = _groups(model, codec, [(batch.shape[0], batch.shape[2]) for batch in batches], step_bytes, least, network.in_channels)
    if groups is None:
        return [_encode_whole(codec, _masked(batches[0], masks[0]), levels, model.config.normalize)]

    clips = [(batch[row], None if mask is None else mask[row]) for batch, mask in zip(batches, masks) for row in range(batch.shape[0])]
    lengths = [clip.shape[1] for clip, _ in clips]
    scales: dict[int, Tensor] = {}

    def read(index: int, start: int, end: int) -> Tensor:
        clip, mask = clips[index]
        return _masked(clip[:, start:end], None if mask is None else mask[:, start:end])

    def read_whole(members: Sequence[int]) -> list[Tensor]:
        audio = [read(index, 0, lengths[index]) for index in members]
        return _normalized(audio, members, scales) if model.config.normalize else audio

    def after(embeddings: list[Tensor]) -> list[Tensor]:
        return embeddings if levels is None else codec.quantizer.search_clips(embeddings, levels)

    codes = _run(codec, lengths, groups, read, read_whole, after)
    scaled = [scales.get(index) for index in range(len(clips))]
    return [(torch.stack(own), _joined(some)) for own, some in zip(_by_batch(codes, batches), _by_batch(scaled, batches))]


def decode_clips(model: Any, batches: Sequence[Coded]) -> list[Tensor]:
    """Returns the audio [B, C, T] of each batch's codes and scale.

    Raises IndexError for a code outside its codebook; on a GPU the device stops there with an assertion, as with transformers.
    """
    audio: dict[int, Tensor] = {}
    by_levels = _alike(codes.shape[1:-1] for codes, _ in batches)
    for members in by_levels:
        audio |= zip(members, _decode_alike(model, [batches[index] for index in members]))
    return [audio[index] for index in range(len(batches))]


def _decode_alike(model: Any, batches: Sequence[Coded]) -> list[Tensor]:
    """Decodes as `decode_clips`, for batches of equally many levels."""
    if torch.compiler.is_compiling() or _wants_gradients(model.decoder):
        return _decode_by_modules(model, batches)
    route = route_decode(model, [codes for codes, _ in batches])
    if route.prepared is None:
        return _decode_by_modules(model, batches)
    try:
        audio = _decode_served(model, route.prepared, [codes for codes, _ in batches])
    except IndexError:
        # a code outside the codebook: the modules say so in their own words
        return _decode_by_modules(model, batches)
    return [batch if scale is None else batch * scale.view(-1, 1, 1) for batch, (_, scale) in zip(audio, batches)]


def _decode_served(model: Any, codec: PreparedCodec, batches: Sequence[Tensor]) -> list[Tensor]:
    network, quantizer = codec.network, codec.quantizer
    # embeddings, and a piece's audio by itself before it is in its place
    step_bytes = quantizer.quantizer.codebooks.element_size() * (quantizer.dim + network.out_channels * network.hop_length)
    with torch.no_grad():
        least = int(LEAST_PIECE_SECONDS * model.config.sampling_rate / network.hop_length)
        groups = _groups(model, codec, [(batch.shape[0], batch.shape[2]) for batch in batches], step_bytes, least, network.hop_length)
        if groups is None:
            return [network.run(quantizer.program.decode(batches[0].transpose(0, 1)))]
        clips = [codes for batch in batches for codes in batch.unbind(0)]
        lengths = [codes.shape[1] for codes in clips]

        def read(index: int, start: int, end: int) -> Tensor:
            return quantizer.lookup_clip(clips[index][:, start:end])

        audio = _run(codec, lengths, groups, read, lambda members: [read(index, 0, lengths[index]) for index in members], list)
    # stack copies, and this may be long
    return [own[0][None] if len(own) == 1 else torch.stack(own) for own in _by_batch(audio, batches)]


def _encode_whole(codec: PreparedCodec, audio: Tensor, levels: int | None, normalized: bool) -> Coded:
    """Returns codes, or without levels embeddings, and scale of one batch that is little enough to run whole."""
    scale = None
    if normalized:
        # only the scale of an input that asks for gradients carries one
        with torch.set_grad_enabled(torch.is_grad_enabled() and audio.requires_grad):
            audio, scale = normalize(audio)
    with torch.no_grad():
        embeddings = codec.network.run(audio)
        return (embeddings if levels is None else codec.quantizer.search(embeddings, levels).transpose(0, 1)), scale


def _run(
    codec: PreparedCodec,
    lengths: Sequence[int],
    groups: Groups,
    read: Callable[[int, int, int], Tensor],
    read_whole: Callable[[Sequence[int]], list[Tensor]],
    after: Callable[[list[Tensor]], list[Tensor]],
) -> list[Tensor]:
    """Returns what `after` makes of the network's output for each clip.

    groups: as `_groups` makes them.  read: the network's input [C, end - start] of clip `index` from step `start` to `end`.
    read_whole: its inputs [C, T_b] for some clips.
    """
    network, output_length = codec.network, codec.network.network.output_length
    results: dict[int, Tensor] = {}
    for members, piece in groups:
        if piece is None:
            # outside: the scale that this may find can carry a gradient
            inputs = read_whole(members)
            with torch.no_grad():
                results |= zip(members, after(network.run_clips(inputs)))
            continue
        (index,) = members
        with torch.no_grad():
            pieces = _pushed(network, lengths[index], piece, functools.partial(read, index))
            results[index] = _placed(map(after, pieces), output_length(lengths[index]))
    return [results[index] for index in range(len(lengths))]


def _groups(
    model: Any,
    codec: PreparedCodec,
    shapes: Sequence[tuple[int, int]],
    step_bytes: float,
    least: int | None,
    step_samples: int,
) -> Groups | None:
    """Returns which clips run together within the budget, and which in pieces; None for one batch that runs whole, as it is.

    shapes: (clips, steps) of each batch.  step_bytes: what a step of one clip takes beside the network's own activations.
    least: steps of a piece, None where none may be cut.  step_samples: samples of audio in a step.
    """
    lengths = [steps for clips, steps in shapes for _ in range(clips)]
    alone, held = len(shapes) == 1, codec.network.held_bytes + step_bytes
    if alone and model.max_memory is None and sum(lengths) * step_samples < LONG_SAMPLES:
        return None
    groups: list[list[int]] = []
    if model.max_memory is None and sum(lengths) * held <= memory.LITTLE_BYTES:
        steps, groups = sum(lengths), [list(range(len(lengths)))]
    else:
        steps = int(memory.budget(model.max_memory, codec.exact, codec.network.device) / held)
        taken = 0
        for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
            if not groups or taken + lengths[index] > steps:
                groups.append([])
                taken = 0
            groups[-1].append(index)
            taken += lengths[index]
    cuttable = least is not None and codec.not_streamable is None
    cut = [(group, max(least or 1, steps) if cuttable and lengths[group[0]] > steps else None) for group in groups]
    return None if alone and len(cut) == 1 and cut[0][1] is None else cut


def _pushed(network: PreparedNetwork, length: int, piece: int, read: Callable[[int, int], Tensor]) -> Iterator[list[Tensor]]:
    """Yields what the network gives for every piece of time of one clip."""
    states = [network.open()]
    for start in range(0, length, piece):
        end = min(start + piece, length)
        yield network.push([read(start, end)], states, [end == length])


def _placed(pieces: Iterable[list[Tensor]], length: int) -> Tensor:
    """Returns the pieces one behind the other, in a tensor made beforehand: nothing long is there twice."""
    whole: Tensor | None = None
    done = 0
    for (piece,) in pieces:
        whole = piece.new_empty(piece.shape[0], length) if whole is None else whole
        whole[:, done : done + piece.shape[1]] = piece
        done += piece.shape[1]
    assert whole is not None and done == length
    return whole


def _masked(audio: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the audio times its mask."""
    return audio if mask is None else mask * audio


def _normalized(audio: list[Tensor], members: Sequence[int], scales: dict[int, Tensor]) -> list[Tensor]:
    """Returns clips [C, T_b] of unit volume, and puts the scale [1] that was taken off each under its index."""
    clean: dict[int, Tensor] = {}
    for alike in _alike(clip.shape for clip in audio):
        made, scale = normalize(torch.stack([audio[at] for at in alike]))
        clean |= zip(alike, made)
        scales.update(zip((members[at] for at in alike), scale))
    return [clean[at] for at in range(len(audio))]


def _joined(scales: list[Tensor | None]) -> Tensor | None:
    """Returns the scales [1] of a batch's clips as [B, 1], or None where there are none."""
    found = [scale for scale in scales if scale is not None]
    return torch.stack(found) if found else None


def _by_batch(of_clips: Sequence[Any], batches: Sequence[Tensor]) -> Iterator[list[Any]]:
    """Yields what belongs to the clips of each batch."""
    each = iter(of_clips)
    for batch in batches:
        yield [next(each) for _ in range(batch.shape[0])]


def _alike(keys: Iterable[Hashable]) -> list[list[int]]:
    """Returns the indices of equal keys."""
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        members[key].append(index)
    return list(members.values())


def _wants_gradients(module: torch.nn.Module) -> bool:
    return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters())


def _encode_by_modules(model: Any, batches: Sequence[Tensor], bandwidth: float | None, masks: Sequence[Tensor | None]) -> list[Coded]:
    """Encodes as `encode_clips`, through the model's own `_encode_frame`: batches of one shape together."""
    if len(batches) == 1:
        # also keeps a compiled call free of its length, which grouping by shape would fix
        return [_encode_frame(model, _masked(batches[0], masks[0]), bandwidth)]
    results: dict[int, Coded] = {}
    for members in _common_batches(batches, first_layer_bytes(model.config)):
        codes, scale = _encode_frame(model, torch.cat([_masked(batches[index], masks[index]) for index in members]), bandwidth)
        size = batches[members[0]].shape[0]
        scales = [None] * len(members) if scale is None else scale.split(size)
        results |= zip(members, zip(codes.split(size), scales))
    return [results[index] for index in range(len(batches))]


def _encode_frame(model: Any, audio: Tensor, bandwidth: float | None) -> Coded:
    if bandwidth is None:
        audio, scale = normalize(audio) if model.config.normalize else (audio, None)
        return model.encoder(audio), scale
    return model._encode_frame(audio, bandwidth, *(torch.ones_like(audio, dtype=torch.bool),) * MASKS_FRAMES)


def _decode_by_modules(model: Any, batches: Sequence[Coded]) -> list[Tensor]:
    """Decodes as `decode_clips`, through the model's own `_decode_frame`: batches of one shape together."""
    scaled = {scale is not None for _, scale in batches}
    if len(batches) == 1 or len(scaled) > 1 or any(scale is not None and scale.numel() != codes.shape[0] for codes, scale in batches):
        return [model._decode_frame(codes, scale) for codes, scale in batches]
    results: dict[int, Tensor] = {}
    for members in _common_batches([codes for codes, _ in batches], first_layer_bytes(model.config) * hop_length(model.config)):
        codes = torch.cat([batches[index][0] for index in members])
        scale = torch.cat([batches[index][1].reshape(-1) for index in members]) if True in scaled else None  # type: ignore[union-attr]
        results |= zip(members, model._decode_frame(codes, scale).split(batches[members[0]][0].shape[0]))
    return [results[index] for index in range(len(batches))]


def first_layer_bytes(config: Any) -> int:
    """Returns the bytes per sample that a clip's first-layer activations take at most, input and output at once."""
    return 4 * 2 * max(config.num_filters, config.audio_channels)


def _common_batches(batches: Sequence[Tensor], step_bytes: int) -> list[list[int]]:
    """Returns the indices of batches of one shape that run as one, within CHUNK_BATCH_BYTES."""
    common: list[list[int]] = []
    for members in _alike(batch.shape for batch in batches):
        shape = batches[members[0]].shape
        size = max(1, CHUNK_BATCH_BYTES // max(1, shape[0] * shape[-1] * step_bytes))
        common.extend(members[at : at + size] for at in range(0, len(members), size))
    return common
