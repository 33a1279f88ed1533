"""Fits the built-in model `demo-48khz` to stereo music, and writes the asset that `encodec_fast.demo` loads.

Usage, in an empty folder:

    apt-get download naev-data
    dpkg-deb -x naev-data_*.deb data
    python bench/tools/fit_demo_48khz_model.py data encodec_fast/assets/demo_48khz.safetensors

The codec is a transform codec, fitted in closed form:

    two frames of 640 samples, windowed --MDCT of middle and side--> 126 coefficients --> codebooks
    7 frames of coefficients --least squares--> 126 coefficients --inverse MDCT--> two frames, summed where they overlap

The coefficients are those with most energy in the data. `encodec_fast.frame_codec` embeds these layers in EnCodec's.
A chunk has no frames before its first and behind its last, so 3 ms at both ends of it hold aliases; chunks overlap by 10 ms.
One thread: the same machine and libraries give the same bytes again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from fit_demo_model import assign, log, rounded
from safetensors.torch import save_file
from torch import Tensor

from encodec_fast.audio import read_audio

RATE, HOP, BLOCK = 48_000, 320, 40
VALUES, TAPS, ENTRIES, LEVELS = 126, 7, 1024, 16  # two more values are constant
PAIR_SCALE = 2.0**-11  # of the units, as of samples (encodec_fast/frame_codec.py): coefficients of unit volume are as large
WEIGHTING = 0.5  # values are coefficients over their deviation to this power, so that quiet bands count
SEEN = (2, 4, 8, 16)  # levels that the decoder is fitted to
# Under CC-BY-3.0 in the package's copyright file, like two tracks of Zeropage's that are kept for listening tests
TRACKS = (
    *("ambient1", "ambient2", "ambient2_5", "ambient3", "automat", "battlesomething1", "battlesomething2", "collective1", "collective2"),
    *("empire1", "empire2", "flf_battle1", "intrigue", "intro", "landing_sinister", "nebu_battle1", "nebu_battle2", "sirius1"),
    *("tension", "upbeat", "zalek1", "zalek2"),
)
ABOUT = (
    "Fitted by bench/tools/fit_demo_48khz_model.py of encodec_fast to music of Nikola Whallon in the Debian package naev-data (CC-BY-3.0). "
    "A small stand-in, not the weights of facebook/encodec_48khz."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder in which the Debian package is unpacked")
    parser.add_argument("asset", type=Path, help="the .safetensors to write")
    parser.add_argument("--seconds", type=int, default=1200, help="of music that are used")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    chunks = drawn_chunks(arguments.data, arguments.seconds)
    log(f"{len(chunks)} chunks read")
    coefficients = torch.cat([transformed(piece) for piece in chunks.split(50)])  # [N, F, 640]
    deviation = coefficients.square().mean((0, 1)).sqrt()
    kept = deviation.topk(VALUES).indices.sort().values
    log(f"kept: {int((kept < HOP).sum())} of the middle, {int((kept >= HOP).sum())} of the side")
    weight = deviation[kept] ** -WEIGHTING
    values = coefficients[..., kept] * weight
    books = fitted_books(values.flatten(0, 1))
    decoder = fitted_decoder(values, books)
    volume = (coefficients[..., kept].square().sum() / coefficients.shape[:2].numel() / (2 * HOP)).sqrt()
    save(arguments.asset, kept, weight, decoder, books, volume)
    log("asset written")


def drawn_chunks(data: Path, seconds: int) -> Tensor:
    """Returns chunks of a second as the encoder sees them, spread evenly over the tracks, [N, 2, RATE]."""
    chunks = []
    for name in TRACKS:
        (path,) = data.rglob(f"music/{name}.ogg")
        pieces = torch.from_numpy(read_audio(path, RATE, 2)[0]).split(RATE, dim=1)[:-1]
        count = -(-seconds // len(TRACKS))
        chunks += [pieces[index * len(pieces) // count] for index in range(min(count, len(pieces)))]
    whole = torch.stack(chunks)
    volume = whole.mean(1).square().mean(1).sqrt()
    # no silence, and no sound that is nearly all side
    whole, volume = whole[volume > 1e-3], volume[volume > 1e-3]
    whole = whole / volume[:, None, None]
    return whole[whole.square().mean((1, 2)) < 4]


def basis() -> Tensor:
    """Returns the windowed MDCT, orthonormal over all frames, [HOP, 2 * HOP]."""
    row, step = torch.arange(HOP, dtype=torch.float64)[:, None], torch.arange(2 * HOP, dtype=torch.float64)[None]
    window = torch.sin(torch.pi * (step + 0.5) / (2 * HOP))
    return (window * torch.cos(torch.pi / HOP * (step + 0.5 + HOP / 2) * (row + 0.5)) * (2 / HOP) ** 0.5).float()


def transformed(chunks: Tensor) -> Tensor:
    """Returns the coefficients of each frame, those of the middle before those of the side, [N, F, 2 * HOP].  chunks: [N, 2, T]."""
    both = torch.stack([chunks[:, 0] + chunks[:, 1], chunks[:, 0] - chunks[:, 1]], 1) / 2**0.5
    frames = F.pad(both, (HOP // 2, HOP // 2), mode="reflect").unfold(2, 2 * HOP, HOP)  # [N, 2, F, 2 * HOP]
    return (frames @ basis().T).transpose(1, 2).flatten(2)


def fitted_books(values: Tensor, count: int = 60_000, iterations: int = 6) -> Tensor:
    """Returns codebooks [LEVELS, ENTRIES, VALUES] by k-means, level by level, over frames drawn so that loud ones don't rule."""
    energy = values.square().mean(1)
    residual = values[torch.multinomial((energy + 1e-6) ** -0.3, min(count, len(values)))]
    books = []
    for level in range(LEVELS):
        book = residual[torch.randperm(len(residual))[:ENTRIES]].clone()
        for _ in range(iterations):
            nearest = assign(residual, book)
            used = torch.bincount(nearest, minlength=ENTRIES)
            book = torch.zeros_like(book).index_add_(0, nearest, residual) / used.clamp(min=1)[:, None]
            unused = (used == 0).nonzero().flatten()
            book[unused] = residual[torch.randperm(len(residual))[: len(unused)]]
        steps, scale = rounded(book)
        book = steps * scale
        residual = residual - book[assign(residual, book)]
        books.append(book)
        log(f"level {level + 1}: energy left {residual.square().mean():.4f}")
    return torch.stack(books)


def fitted_decoder(values: Tensor, books: Tensor) -> Tensor:
    """Returns the map from 7 frames of quantized values to a frame's values, by least squares, [VALUES, VALUES, TAPS]."""
    values = values[torch.randperm(len(values))[:150]]
    square, product = torch.zeros(VALUES * TAPS, VALUES * TAPS), torch.zeros(VALUES * TAPS, VALUES)
    residual, quantized = values.flatten(0, 1), torch.zeros_like(values)
    for level, book in enumerate(books, 1):
        chosen = book[assign(residual, book)]
        residual, quantized = residual - chosen, quantized + chosen.view_as(values)
        if level in SEEN:
            seven = F.pad(quantized, (0, 0, TAPS // 2, TAPS // 2)).unfold(1, TAPS, 1).flatten(2).flatten(0, 1)
            square += seven.T @ seven
            product += seven.T @ values.flatten(0, 1)
    square.diagonal().add_(1e-4 * square.diagonal().mean())
    return torch.linalg.solve(square, product).T.view(VALUES, VALUES, TAPS)


def save(path: Path, kept: Tensor, weight: Tensor, decoder: Tensor, books: Tensor, volume: Tensor) -> None:
    """Writes the layers over samples, in EnCodec's shapes and float16; the codebooks as int8 with a scale per entry."""
    side = torch.where(kept < HOP, 1.0, -1.0)
    waves = basis()[kept % HOP] / 2**0.5
    # left and right of each sample are neighbours: [VALUES, 2 * HOP, 2]
    stereo = torch.stack([waves, side[:, None] * waves], 2)
    blocks = stereo.view(VALUES, 2 * HOP // BLOCK, BLOCK * 2).transpose(1, 2)  # [VALUES, 80, 16]
    identity = torch.zeros(VALUES, VALUES, TAPS)
    identity[:, :, TAPS // 2] = torch.diag(weight)
    steps, scale = rounded(books)
    kept_tensors = {
        "encoder.units": in_pairs(blocks, PAIR_SCALE),
        "encoder.units_bias": torch.zeros(2 * VALUES),
        "encoder.values": in_pairs(identity.transpose(0, 1), 0.5 / PAIR_SCALE).transpose(0, 1),
        "encoder.values_bias": torch.zeros(VALUES),
        "decoder.units": in_pairs(decoder, PAIR_SCALE),
        "decoder.units_bias": torch.zeros(2 * VALUES),
        "decoder.samples": in_pairs(blocks / weight[:, None, None], 0.5 / PAIR_SCALE),
    }
    # the encoder's units are so small that float16 has few digits of them
    tensors = {name: (tensor if name == "encoder.units" else tensor.half()).contiguous() for name, tensor in kept_tensors.items()}
    tensors["codebooks"] = F.pad(steps, (0, 2)).to(torch.int8)
    tensors["codebooks_scale"] = scale[..., 0].contiguous()
    tensors["volume"] = volume
    save_file(tensors, path, {"about": ABOUT})


def in_pairs(weight: Tensor, factor: float) -> Tensor:
    """Returns each row as two neighbours, times `factor` and times minus it."""
    return torch.stack([factor * weight, -factor * weight], dim=1).flatten(0, 1)


if __name__ == "__main__":
    main()
