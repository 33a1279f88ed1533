"""`encode` and `decode` under `torch.export`: in the place of HF's loops over chunks all of them as one batch.

Then their number is a size like any other, which each call chooses.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers.models.encodec import modeling_encodec as hf

from encodec_fast import chunks
from encodec_fast.backends import torch_export, torch_export_chunks
from encodec_fast.plan.geometry import encoded_length, hop_length
from encodec_fast.plan.reader import read_network, read_quantizer
from encodec_fast.serving.clips import levels_of
from encodec_fast.serving.modules import exported_part
from encodec_fast.transformers_versions import PADS_LAST_FRAME, SCALE_DIMS


def encode_chunks(model: Any, audio: Tensor, mask: Tensor | None, bandwidth: float) -> tuple[Tensor, Tensor | None, int] | None:
    """Returns codes [n_chunks, B, K, F], scales [n_chunks, B, 1] or None, and the frames that pad the last chunk, as HF's `encode` does.

    The scales are one tensor, for the length of a list can't be dynamic.
    Returns None where the reference modules must be exported, which is logged.
    The exported program raises RuntimeError for lengths whose chunks HF can't stack.
    """
    if not PADS_LAST_FRAME:
        return None
    network, quantizer = exported_part(model.encoder, read_network), exported_part(model.quantizer, read_quantizer)
    if network is None or quantizer is None:
        return None
    config, (batch, channels, length) = model.config, audio.shape
    # HF's own checks
    hf.EncodecModel.encode(chunks.EncodeWalk(model), audio.new_zeros(1, channels, 1), None, bandwidth, False)
    with torch_export.any_length():
        if mask is not None:
            # no `view` to the audio's sizes, for those of the mask are other symbols
            audio = audio * (mask if mask.dim() == 3 else mask[:, None]).bool()
        rows, lengths = torch_export_chunks.cut(audio, config.chunk_length, config.chunk_stride)
        count, scales = lengths.shape[0], None
        lengths = _for_each(lengths, batch)
        if config.normalize:
            rows, flat = torch_export.normalize(rows, lengths)
            scales = flat.view(count, batch, *[1] * (SCALE_DIMS - 1))
        embeddings, frames = torch_export.run_clips(network, rows, lengths)
        assert frames is not None
        codes = torch_export.search(quantizer, embeddings, levels_of(model.quantizer, bandwidth)).transpose(0, 1)
        codes = torch_export.before_end(torch_export.in_order(codes), frames)
        codes = codes.view(count, batch, codes.shape[1], codes.shape[2])
        _check_chunks(frames.view(count, batch)[:, :1] == codes.shape[3], "input_values: transformers can't stack the codes of chunks of")
        last = encoded_length(config, length - (count - 1) * config.chunk_stride)
        return codes, scales, codes.shape[3] - last


def decode_any_length(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Decodes as HF's `decode` does.

    HF asks whether the padding mask is shorter than the audio, which fixes the answer in the exported graph.
    """
    call = inspect.signature(hf.EncodecModel.decode).bind(chunks.DecodeWalk(model), *args, **kwargs)
    mask = call.arguments.pop("padding_mask", None)
    with torch_export.any_length():
        output = _decode_chunks(model, call) if model.config.chunk_length is not None else None
        if output is None:
            output = hf.EncodecModel.decode(*call.args, **call.kwargs)
        if mask is None:
            return output
        # a slice would ask whether it is the whole
        steps = torch.arange(torch.sym_min(mask.shape[-1], output[0].shape[-1]), device=output[0].device)
        audio = output[0].index_select(-1, steps)
    return (audio,) if isinstance(output, tuple) else type(output)(audio)


def _decode_chunks(model: Any, call: inspect.BoundArguments) -> Any:
    """Returns the output of HF's `decode` of a model with chunks; None where the reference modules must be exported, which is logged."""
    network, quantizer = exported_part(model.decoder, read_network), exported_part(model.quantizer, read_quantizer)
    if network is None or quantizer is None:
        return None
    call.apply_defaults()
    codes, scales, return_dict = (call.arguments[name] for name in ("audio_codes", "audio_scales", "return_dict"))
    count, batch, levels, longest = codes.shape
    last = longest - call.arguments.get("last_frame_pad_length", 0)
    frames = _for_each(torch.where(torch.arange(count, device=codes.device)[:, None] < count - 1, longest, last), batch)
    codes = torch_export.in_order(codes).view(-1, levels, longest)
    embeddings = torch_export.look_up(quantizer, codes.transpose(0, 1))
    audio, _ = torch_export.run_clips(network, embeddings, frames)
    audio = audio.view(count, batch, audio.shape[1], audio.shape[2])
    if isinstance(scales, (list, tuple)):
        scales = None if scales[0] is None else torch.stack(list(scales))
    if scales is not None:
        audio = audio * scales.view(count, batch, 1, 1)
    config = model.config
    most = (encoded_length(config, config.chunk_length) * hop_length(config) - 1) // config.chunk_stride + 1
    steps = network.output_length(last)
    within = audio.shape[3] <= torch.arange(count - 1, -1, -1, device=codes.device) * config.chunk_stride + steps
    _check_chunks(within[:, None], "audio_codes: transformers can't add a chunk that ends after the last, as those do of")
    audio = torch_export_chunks.joined(audio, config.chunk_stride, most, steps)
    return_dict = config.return_dict if return_dict is None else return_dict
    return hf.EncodecDecoderOutput(audio) if return_dict else (audio,)


def _check_chunks(right: Tensor, error: str) -> None:
    """Makes the graph raise unless all chunks but the last are right, which are so for all lengths but few.  right: [n_chunks, 1]."""
    last = torch.arange(right.shape[0], device=right.device)[:, None] >= right.shape[0] - 1
    torch._assert_async((right | last).all(), f"{error} this length. `encode_batch` and `decode_batch` take it.")


def _for_each(lengths: Tensor, batch: torch_export.Size) -> Tensor:
    """Returns lengths [n_chunks, 1] for each chunk of each clip, [n_chunks * B, 1, 1]."""
    return torch_export.in_order(lengths.expand(lengths.shape[0], batch)).view(-1, 1, 1)
