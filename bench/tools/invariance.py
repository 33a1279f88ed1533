"""How many codes change when the same audio is batched, threaded, padded, cut into pieces or streamed: transformers against ours.

    python bench/tools/invariance.py [FILE ...] [--model demo] [--bandwidth 6]

Each row compares with the same side's codes of the clip alone, in one piece, on one thread. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import EncodecModel as StockModel

from encodec_fast import EncodecModel, encode_pieces, load_model
from encodec_fast.audio import read_audio
from encodec_fast.demo import bundled_clips
from encodec_fast.verify import Reference

CLIPS = 8
PIECE_SECONDS = 2.0


def cut(audio: Tensor, count: int) -> list[Tensor]:
    """Returns `count` clips [C, T_i] of different lengths."""
    shares = torch.linspace(1.0, 2.0, count)
    ends = (shares.cumsum(0) / shares.sum() * audio.shape[1]).long().tolist()
    return [audio[:, start:end] for start, end in zip([0, *ends], ends)]


def changed(ours: list[Tensor], alone: list[Tensor]) -> str:
    """Returns 'changed of all' codes; a clip with more or fewer frames counts those as changed."""
    total = sum(codes.numel() for codes in alone)
    count = 0
    for codes, expected in zip(ours, alone):
        frames = min(codes.shape[-1], expected.shape[-1])
        count += int((codes[..., :frames] != expected[..., :frames]).sum())
        count += abs(codes.shape[-1] - expected.shape[-1]) * expected.shape[-2]
    return f"{count:,} of {total:,}"


def compared(model: EncodecModel, stock: StockModel, clips: list[Tensor], bandwidth: float) -> list[tuple[str, str, str]]:
    """Returns (what was done, codes of transformers that change, codes of ours that change).  clips: [C, T_i]."""
    rate = model.config.sampling_rate
    hop, piece = rate // model.config.frame_rate, int(PIECE_SECONDS * rate)
    shortest, longest = (choose(clip.shape[1] for clip in clips) for choose in (min, max))
    equal = [clip[:, :shortest] for clip in clips]
    padded = torch.stack([torch.nn.functional.pad(clip, (0, longest - clip.shape[1])) for clip in clips])
    mask = torch.stack([torch.arange(longest) < clip.shape[1] for clip in clips])

    def encode(side: StockModel) -> Callable[[Tensor], Tensor]:
        return lambda clip: side.encode(clip[None], bandwidth=bandwidth).audio_codes[0, 0]

    theirs, ours = encode(stock), encode(model)

    def in_threads(side: Callable[[Tensor], Tensor], count: int) -> list[Tensor]:
        torch.set_num_threads(count)
        codes = [side(clip) for clip in clips]
        torch.set_num_threads(1)
        return codes

    def stock_padded() -> list[Tensor]:
        codes = stock.encode(padded, mask, bandwidth).audio_codes[0]
        return [row[:, : -(-clip.shape[1] // hop)] for row, clip in zip(codes, clips)]

    def stock_pieces(clip: Tensor) -> Tensor:
        return torch.cat([theirs(part) for part in clip.split(piece, 1)], 1)

    def streamed(samples: int) -> list[Tensor]:
        return [torch.cat(list(encode_pieces(model, clip.split(samples, 1), bandwidth)), 1) for clip in clips]

    def batch(some: list[Tensor]) -> list[Tensor]:
        return [encoded.codes[0] for encoded in model.encode_batch(some, bandwidth)]

    alone = {side: [side(clip) for clip in clips] for side in (theirs, ours)}
    short = {side: [side(clip) for clip in equal] for side in (theirs, ours)}
    stock_equal = list(stock.encode(torch.stack(equal), bandwidth=bandwidth).audio_codes[0])
    stock_cut = [stock_pieces(clip) for clip in clips]
    rows = [(f"{CLIPS} clips of one length as a batch", changed(stock_equal, short[theirs]), changed(batch(equal), short[ours]))]
    for what, their_codes, own_codes in (
        ("2 threads", in_threads(theirs, 2), in_threads(ours, 2)),
        (f"{CLIPS} clips of different lengths as a batch", stock_padded(), batch(clips)),
        (f"in pieces of {PIECE_SECONDS:g} s", stock_cut, streamed(piece)),
        ("streamed, 20 ms at a time", None, streamed(rate // 50)),
    ):
        stock_found = changed(their_codes, alone[theirs]) if their_codes is not None else "not offered"
        rows.append((what, stock_found, changed(own_codes, alone[ours])))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="recordings (default: the bundled clips)")
    parser.add_argument("--model", default="demo", help="a 24 kHz model, as for encodec-fast (default demo)")
    parser.add_argument("--bandwidth", type=float, default=6.0, help="kbps (default 6)")
    options = parser.parse_args()

    model = load_model(options.model)
    stock = Reference(model, torch.float32).model
    stock.encoder._forward_hooks.clear()
    rate, files = model.config.sampling_rate, options.files or bundled_clips()
    audio = torch.cat([torch.from_numpy(read_audio(file, rate, model.config.audio_channels)[0]) for file in files], 1)
    torch.set_num_threads(1)
    with torch.no_grad():
        rows = compared(model, stock, cut(audio, CLIPS), options.bandwidth)
    print(f"{audio.shape[1] / rate:.1f} s of audio, {options.bandwidth:g} kbps, model {options.model}: codes that change\n")
    print("| | transformers | encodec_fast |\n|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
