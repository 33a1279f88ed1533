"""How many codes change when the same audio is batched, threaded, padded, cut into pieces or streamed: transformers against ours.

    python bench/tools/invariance.py [FILE ...] [--model demo] [--bandwidth 6]

Each row compares with the same side's codes of the clip alone, in one piece, on one thread. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from encodec_fast import encode_pieces, load_model
from encodec_fast.audio import read_audio
from encodec_fast.demo import bundled_clips
from encodec_fast.verify import Reference

CLIPS = 8
PIECE_SECONDS = 2.0


def cut(audio: Tensor, count: int) -> list[Tensor]:
    """`count` clips [C, T_i] of different lengths."""
    shares = torch.linspace(1.0, 2.0, count)
    ends = (shares.cumsum(0) / shares.sum() * audio.shape[1]).long().tolist()
    return [audio[:, start:end] for start, end in zip([0, *ends], ends)]


def changed(ours: list[Tensor], alone: list[Tensor]) -> str:
    """'changed of all' codes; a clip with more or fewer frames counts those as changed."""
    total = sum(codes.numel() for codes in alone)
    count = 0
    for codes, expected in zip(ours, alone):
        frames = min(codes.shape[-1], expected.shape[-1])
        count += int((codes[..., :frames] != expected[..., :frames]).sum())
        count += abs(codes.shape[-1] - expected.shape[-1]) * expected.shape[-2]
    return f"{count:,} of {total:,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="recordings (default: the bundled clips)")
    parser.add_argument("--model", default="demo", help="a 24 kHz model, as for encodec-fast (default demo)")
    parser.add_argument("--bandwidth", type=float, default=6.0, help="kbps (default 6)")
    options = parser.parse_args()

    model, _ = load_model(options.model)
    stock = Reference(model, torch.float32).model
    stock.encoder._forward_hooks.clear()
    rate, bandwidth = model.config.sampling_rate, options.bandwidth
    files = options.files or bundled_clips()
    audio = torch.cat([torch.from_numpy(read_audio(file, rate, model.config.audio_channels)[0]) for file in files], 1)
    clips = cut(audio, CLIPS)
    shortest = min(clip.shape[1] for clip in clips)
    equal = [clip[:, :shortest] for clip in clips]
    longest = max(clip.shape[1] for clip in clips)
    padded = torch.stack([torch.nn.functional.pad(clip, (0, longest - clip.shape[1])) for clip in clips])
    mask = torch.stack([torch.arange(longest) < clip.shape[1] for clip in clips])
    hop = rate // model.config.frame_rate
    piece = int(PIECE_SECONDS * rate)

    def encode(side) -> Callable[[Tensor], Tensor]:
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

    def batch(some: list[Tensor]) -> list[Tensor]:
        return [encoded.codes[0] for encoded in model.encode_batch(some, bandwidth)]

    torch.set_num_threads(1)
    with torch.no_grad():
        alone = {side: [side(clip) for clip in clips] for side in (theirs, ours)}
        short = {side: [side(clip) for clip in equal] for side in (theirs, ours)}
        rows = [
            (
                f"{CLIPS} clips of one length as a batch",
                changed(list(stock.encode(torch.stack(equal), bandwidth=bandwidth).audio_codes[0]), short[theirs]),
                changed(batch(equal), short[ours]),
            ),
            ("2 threads", changed(in_threads(theirs, 2), alone[theirs]), changed(in_threads(ours, 2), alone[ours])),
            (f"{CLIPS} clips of different lengths as a batch", changed(stock_padded(), alone[theirs]), changed(batch(clips), alone[ours])),
            (
                f"in pieces of {PIECE_SECONDS:g} s",
                changed([stock_pieces(clip) for clip in clips], alone[theirs]),
                changed([torch.cat(list(encode_pieces(model, clip.split(piece, 1), bandwidth)), 1) for clip in clips], alone[ours]),
            ),
            (
                "streamed, 20 ms at a time",
                "not offered",
                changed([torch.cat(list(encode_pieces(model, clip.split(rate // 50, 1), bandwidth)), 1) for clip in clips], alone[ours]),
            ),
        ]
    print(f"{audio.shape[1] / rate:.1f} s of audio, {bandwidth:g} kbps, model {options.model}: codes that change\n")
    print("| | transformers | encodec_fast |\n|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
