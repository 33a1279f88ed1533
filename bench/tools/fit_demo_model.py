"""Fits the built-in model `demo` to recordings of speech, and writes the asset that `encodec_fast.demo` loads.

Usage, in an empty folder and with `pip install av` for G.722:

    apt-get download festvox-ru asterisk-core-sounds-it-g722 asterisk-core-sounds-ru-g722
    for package in *.deb; do dpkg-deb -x "$package" data; done
    python bench/tools/fit_demo_model.py data encodec_fast/assets/demo.safetensors

The codec works on whole frames of 320 samples, so that fitting it is cheap:

    frame --DCT--> 200 coefficients --[512 ELU units]--> 128 values --codebooks--> [512 ELU units] --DCT--> frame

The encoder's units see this frame and the one before, its values seven frames of units. The decoder's units see seven
frames of values, a frame two of units. Of both, 200 are ELU(x) for small x, which is all but x: the linear path. 128 pairs
ELU(x), ELU(-x) bend a value each: large coefficients are coded less finely than small ones. That is worth 0.06 of STOI at
24 kbps. The other 56 are free to be anything. `encodec_fast.demo` embeds these layers exactly in EnCodec's.

Two steps: a closed form (DCT, bends, k-means), then gradient steps on all of it, whose codebooks follow as moving means.
K-means once more at the end made it worse. One thread: the same machine and libraries give the same bytes again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from encodec_fast.audio import read_audio

RATE, HOP = 24_000, 320
COEFFICIENTS = 200  # of a frame's DCT, to 7.5 kHz: recordings of 16 kHz say nothing beyond
VALUES, TAPS, ENTRIES, LEVELS = 128, 7, 1024, 32
UNITS = 512  # the linear ones, those that bend upwards, those that bend downwards, the free ones
UPWARDS, DOWNWARDS = slice(COEFFICIENTS, COEFFICIENTS + VALUES), slice(COEFFICIENTS + VALUES, COEFFICIENTS + 2 * VALUES)
HISTORY = 2 * TAPS  # frames before the first that a decoded frame depends on
SPREAD = 0.2  # deviation of a normalised coefficient
LINEAR_SCALE = 2.0**-6  # of the linear units: below zero ELU(x) is x + x^2 / 2, and a deviation is 0.003
# u deviations become SLOPE u + STEP bend(u / SCALE), with the odd bend(z) = ELU(z) - ELU(-z) - z, which is 1 - exp(-z) for z > 0:
# much like a power of 0.8. What undoes it within 9 % for u of 0.02 to 8 is of the same form.
SLOPE, STEP, SCALE = 0.5, 0.5, 0.4
UNSLOPE, UNSTEP, UNSCALE = 2.765, -4.065, 1.82
WEIGHTING = 0.4  # the k-means distance sees deviations to this power, so that quiet bands count
LEVELS_DRAWN, LEVELS_WEIGHT = (2, 4, 8, 16, 32), (0.1, 0.17, 0.2, 0.23, 0.3)
# Adam moves every weight alike. Behind the bends outputs are larger than behind the linear paths, so these weights move less.
LEARNING_RATE, SHARES = 2e-4, {"value": 0.15, "ununit": 0.3}
FOLDERS = (
    "usr/share/festival/voices/russian/msu_ru_nsh_clunits/wav",
    "usr/share/asterisk/sounds/it_IT_m_Carlo",
    "usr/share/asterisk/sounds/ru_RU_f_IvrvoiceRU",
)
G722_RATE = 16_000
# Goes with the file, in its metadata.
ABOUT = (
    "Fitted by bench/tools/fit_demo_model.py of encodec_fast to recordings in the Debian packages festvox-ru "
    "(Copyright (c) 2005 Nickolay V. Shmyrev, BSD-like licence), asterisk-core-sounds-it-g722 (Copyright 2012 Carlo Flora, "
    "http://www.carloflora.com, CC-BY-3.0) and asterisk-core-sounds-ru-g722 (Copyright 2010 Maxim Topal, "
    "http://www.ivrvoice.ru, CC-BY-3.0). A small stand-in, not the weights of facebook/encodec_24khz."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder in which the Debian packages are unpacked")
    parser.add_argument("asset", type=Path, help="the .safetensors to write")
    parser.add_argument("--steps", type=int, default=3200, help="gradient steps")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    audio = np.concatenate([np.pad(clip, (0, -len(clip) % HOP)) for clip in recordings(arguments.data)])
    frames = torch.from_numpy(audio).view(-1, HOP)
    codec = FrameCodec(frames)
    fit_books(codec, frames, count=30_000, iterations=3)
    codec.save(arguments.asset)
    log("asset of the closed form written")
    train(codec, frames, arguments.steps)
    codec.save(arguments.asset)
    log("asset written")


def log(text: str) -> None:
    print(f"{time.process_time():7.0f} s  {text}", flush=True)


def recordings(data: Path) -> Iterator[np.ndarray]:
    """Yields every recording of half a second or more, [T] float32 at RATE, in the order of their names."""
    for path in (path for folder in FOLDERS for path in sorted((data / folder).rglob("*.*"))):
        clip = g722(path) if path.suffix == ".g722" else read_audio(path, RATE, 1)[0][0]
        if len(clip) >= RATE // 2:
            yield clip


def g722(path: Path) -> np.ndarray:
    """Returns a file of raw G.722, [T] float32 at RATE."""
    import av

    with av.open(str(path), format="g722") as container:
        pieces = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    samples = np.concatenate([np.zeros(0, np.int16), *pieces]).astype(np.float32) / 32768
    return soxr.resample(samples, G722_RATE, RATE) if len(samples) else samples


def cosines() -> Tensor:
    """Returns the first COEFFICIENTS rows of the orthonormal DCT-II of a frame, [COEFFICIENTS, HOP]."""
    row, column = torch.arange(COEFFICIENTS)[:, None], torch.arange(HOP)[None]
    basis = torch.cos(torch.pi * row * (2 * column + 1) / (2 * HOP)) * (2 / HOP) ** 0.5
    basis[0] /= 2**0.5
    return basis


class FrameCodec(nn.Module):
    """The codec on frames; the first that `decode` gives of what `encode` gave is the one behind HISTORY."""

    def __init__(self, frames: Tensor) -> None:
        super().__init__()
        basis = cosines()
        deviation = (frames @ basis.T).square().mean(0).sqrt()
        # of the band that is coded, so that bands the recordings lack are not amplified
        deviation = deviation.clamp(min=float(deviation[100:VALUES].mean()) / 2)
        self.analysis = basis * (SPREAD / deviation)[:, None]
        self.synthesis = basis * (deviation / SPREAD)[:, None]
        generator = torch.Generator().manual_seed(1)

        def drawn(*shape: int, scale: float) -> Tensor:
            return torch.randn(*shape, generator=generator) * scale

        linear = torch.arange(VALUES)
        unit = drawn(UNITS, 2 * COEFFICIENTS, scale=0.5 * (2 * COEFFICIENTS) ** -0.5 / SPREAD)
        unit[: DOWNWARDS.stop] = 0
        unit[:COEFFICIENTS, COEFFICIENTS:] = torch.eye(COEFFICIENTS)
        value = torch.zeros(VALUES, UNITS, TAPS)
        weight = (deviation[:VALUES] / deviation[:VALUES].max()) ** WEIGHTING
        value[linear, linear, -1] = weight / SPREAD * (SLOPE - STEP / SCALE)
        unvalue = drawn(UNITS, VALUES, TAPS, scale=(VALUES * TAPS) ** -0.5)
        unvalue[: DOWNWARDS.stop] = 0
        unvalue[linear, linear, -1] = SPREAD / weight * (UNSLOPE - UNSTEP / UNSCALE)
        ununit = torch.zeros(2 * COEFFICIENTS, UNITS)
        ununit[:COEFFICIENTS, :COEFFICIENTS] = torch.eye(COEFFICIENTS)
        for side, sign in ((UPWARDS, 1), (DOWNWARDS, -1)):
            bent = side.start + linear
            unit[bent, COEFFICIENTS + linear] = sign / (SCALE * SPREAD)
            value[linear, bent, -1] = sign * weight * STEP
            unvalue[bent, linear, -1] = sign / (weight * UNSCALE)
            ununit[linear, bent] = sign * SPREAD * UNSTEP
        self.unit, self.unit_bias = nn.Parameter(unit), nn.Parameter(torch.zeros(UNITS))
        self.value, self.value_bias = nn.Parameter(value), nn.Parameter(torch.zeros(VALUES))
        self.unvalue, self.unvalue_bias = nn.Parameter(unvalue), nn.Parameter(torch.zeros(UNITS))
        self.ununit, self.ununit_bias = nn.Parameter(ununit), nn.Parameter(torch.zeros(2 * COEFFICIENTS))
        self.books = torch.zeros(LEVELS, ENTRIES, VALUES)
        self.counts = torch.ones(LEVELS, ENTRIES)

    def encode(self, frames: Tensor) -> Tensor:
        """Returns values [B, VALUES, F - TAPS].  frames: [B, F, HOP]."""
        coefficients = frames @ self.analysis.T
        pairs = torch.cat([coefficients[:, :-1], coefficients[:, 1:]], dim=-1)
        units = activated(F.linear(pairs, self.unit, self.unit_bias))
        return F.conv1d(units.transpose(1, 2), self.value, self.value_bias)

    def decode(self, values: Tensor) -> Tensor:
        """Returns frames [B, F - TAPS, HOP].  values: [B, VALUES, F]."""
        units = activated(F.conv1d(values, self.unvalue, self.unvalue_bias).transpose(1, 2))
        # one unit is constant in the asset: it carries the bias, which differs from sample to sample of a frame
        both = F.linear(units[..., :-1], self.ununit[:, :-1], self.ununit_bias)
        return (both[:, 1:, :COEFFICIENTS] + both[:, :-1, COEFFICIENTS:]) @ self.synthesis

    def quantize(self, values: Tensor, levels: int, move: float = 0.0) -> tuple[Tensor, Tensor]:
        """Returns the quantised values [R, VALUES] and the mean relative error of the levels.  values: [R, VALUES].

        move: share by which entries, of all levels, move to the mean of their values; entries without values are drawn anew.
        """
        residual, quantised, error = values.detach(), torch.zeros_like(values), torch.zeros(())
        for level in range(LEVELS if move else levels):
            book = self.books[level]
            nearest = assign(residual, book)
            chosen = book[nearest]
            if level < levels:
                quantised = quantised + chosen
                error = error + (values - quantised).square().mean() / residual.square().mean().detach() / levels
            if move:
                count = torch.bincount(nearest, minlength=ENTRIES).float()
                total = torch.zeros_like(book).index_add_(0, nearest, residual)
                old = self.counts[level][:, None] * (1 - move)
                book.copy_((book * old + move * total) / (old + move * count[:, None]))
                self.counts[level].mul_(1 - move).add_(count, alpha=move)
                unused = (self.counts[level] < 0.1 * len(values) / ENTRIES).nonzero().flatten()
                if len(unused):
                    book[unused] = residual[torch.randint(len(residual), (len(unused),))]
                    self.counts[level][unused] = len(values) / ENTRIES
            residual = residual - chosen
        return quantised, error

    def save(self, path: Path) -> None:
        """Writes the layers over samples, in EnCodec's shapes and float16; the codebooks as int8 with a scale per entry."""
        blocks = HOP // 8
        with torch.no_grad():
            unit = (self.unit.view(UNITS, 2, COEFFICIENTS) @ self.analysis).view(UNITS, 16, blocks).transpose(1, 2)
            samples = (self.ununit.T.view(UNITS, 2, COEFFICIENTS) @ self.synthesis).view(UNITS, 16, blocks).transpose(1, 2)
            unvalue, unvalue_bias = self.unvalue.clone(), self.unvalue_bias.clone()
            samples[-1] = (self.ununit_bias.view(2, COEFFICIENTS) @ self.synthesis).view(16, blocks).T
            unvalue[-1], unvalue_bias[-1] = 0, 1
            scale = torch.ones(UNITS, 1, 1)
            scale[:COEFFICIENTS] = LINEAR_SCALE
            kept = {
                "encoder.units": (unit * scale).half(),
                "encoder.units_bias": self.unit_bias * scale.flatten(),
                "encoder.values": (self.value / scale.transpose(0, 1)).half(),
                "encoder.values_bias": self.value_bias,
                "decoder.units": (unvalue * scale).half(),
                "decoder.units_bias": unvalue_bias * scale.flatten(),
                "decoder.samples": (samples / scale).half(),
            }
        kept = {name: tensor.detach().contiguous() for name, tensor in kept.items()}
        steps, scale = rounded(self.books)
        kept["codebooks"] = steps.to(torch.int8)
        kept["codebooks_scale"] = scale[..., 0].contiguous()
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(kept, path, {"about": ABOUT})


def activated(units: Tensor) -> Tensor:
    """Returns the outputs of the units.  units: [..., UNITS]."""
    linear, others = units.split([COEFFICIENTS, UNITS - COEFFICIENTS], dim=-1)
    return torch.cat([F.elu(linear * LINEAR_SCALE) / LINEAR_SCALE, F.elu(others)], dim=-1)


def rounded(book: Tensor) -> tuple[Tensor, Tensor]:
    """Returns entries as whole numbers from -127 to 127, and the scale of each entry, [..., 1].  book: [..., VALUES]."""
    scale = book.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (book / scale).round(), scale


def assign(values: Tensor, book: Tensor) -> Tensor:
    """Returns the index of the nearest entry for each of the values, [R]."""
    energy = book.square().sum(1)
    return torch.cat([torch.addmm(energy, piece, book.T, alpha=-2).argmin(1) for piece in values.split(8192)])


@torch.no_grad()
def drawn_frames(frames: Tensor, count: int) -> Tensor:
    """Returns `count` indices of frames, drawn with probability 1 / energy^0.4 so that loud frames don't rule."""
    energy = frames.square().mean(1)
    probability = (energy + 1e-7) ** -0.4 * (energy > 1e-7)
    probability[: 2 * HISTORY] = 0
    probability[energy < 1e-6] *= 0.02
    return torch.multinomial(probability, count)


@torch.no_grad()
def windows(frames: Tensor, index: Tensor, history: int) -> Tensor:
    """Returns the frames at the indices with those before them, [R, history + 1, HOP]."""
    return frames[index[:, None] + torch.arange(-history, 1)]


@torch.no_grad()
def fit_books(codec: FrameCodec, frames: Tensor, count: int, iterations: int) -> None:
    """Fits the codebooks by k-means, level by level, to frames at three loudnesses."""
    index = drawn_frames(frames, count)
    residual = torch.cat(
        [
            codec.encode(windows(frames, piece, TAPS) * gain)[..., 0]
            for piece, gain in zip(index.split(1000), [1.0, 0.5, 1.4] * count, strict=False)
        ]
    )
    for level, book in enumerate(codec.books):
        book.copy_(residual[torch.randperm(count)[:ENTRIES]])
        for _ in range(iterations):
            nearest = assign(residual, book)
            used = torch.bincount(nearest, minlength=ENTRIES)
            book.copy_(torch.zeros_like(book).index_add_(0, nearest, residual) / used.clamp(min=1)[:, None])
            unused = (used == 0).nonzero().flatten()
            book[unused] = residual[torch.randperm(count)[: len(unused)]]
        nearest = assign(residual, book)
        residual -= book[nearest]
        codec.counts[level] = torch.bincount(nearest, minlength=ENTRIES).float() + 1e-3
        codec.counts[level] *= 900 / count  # a batch of `train`
    log(f"codebooks fitted, energy left {residual.square().mean():.2e}")


def mel_filters(window: int, bands: int) -> Tensor:
    """Returns triangular filters [window / 2 + 1, bands] evenly spaced in mel from 60 Hz up."""
    frequency = torch.linspace(0, RATE / 2, window // 2 + 1)
    mel = torch.linspace(*(2595 * np.log10(1 + np.array([60.0, RATE / 2]) / 700)).tolist(), bands + 2)
    edge = 700 * (10 ** (mel / 2595) - 1)
    up = (frequency[:, None] - edge[:-2]) / (edge[1:-1] - edge[:-2])
    down = (edge[2:] - frequency[:, None]) / (edge[2:] - edge[1:-1])
    return torch.minimum(up, down).clamp(min=0)


def octave_filters(window: int) -> Tensor:
    """Returns 15 bands of a third of an octave from 150 Hz, [window / 2 + 1, 15]."""
    frequency = torch.linspace(0, RATE / 2, window // 2 + 1)[:, None]
    centre = 150 * 2 ** (torch.arange(15) / 3)
    return ((frequency >= centre * 2 ** (-1 / 6)) & (frequency < centre * 2 ** (1 / 6))).float()


class Loss:
    """Distance of decoded speech from the original: compressed mel spectra, error by band, envelopes of third octaves.

    The last term is 1 - the correlation of envelopes over 0.4 s, the idea of the measure STOI.
    """

    SCALES = ((256, 24), (512, 40), (1024, 64), (2048, 80))

    def __init__(self) -> None:
        self.mel = [(window, mel_filters(window, bands)) for window, bands in self.SCALES]
        self.octaves = octave_filters(1024)

    def __call__(self, theirs: Tensor, ours: Tensor, analysis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the three terms.  theirs, ours: [B, F, HOP]; analysis: [C, HOP]."""
        error = ((ours - theirs) @ analysis.T).square().sum((1, 2)) / ((theirs @ analysis.T).square().sum((1, 2)) + 1e-3)
        size = theirs.square().mean((1, 2), keepdim=True).sqrt() + 1e-3
        theirs, ours = (theirs / size).flatten(1), (ours / size).flatten(1)
        mel = torch.zeros(())
        for window, filters in self.mel:
            powers = [spectrum(x, window, window // 2, window) @ filters for x in (theirs, ours)]
            a, b = ((power + 1e-3).pow(0.2) for power in powers)
            mel = mel + (a - b).abs().mean() / a.mean().detach() / len(self.mel)
        a, b = ((spectrum(x, 1024, HOP, 614) @ self.octaves + 1e-6).sqrt() for x in (theirs, ours))
        return mel, error.mean(), 1 - envelope_correlation(a, b)


def spectrum(x: Tensor, window: int, hop: int, length: int) -> Tensor:
    """Returns the power of the short-time spectrum, [B, frames, bins].  x: [B, T]."""
    shape = torch.hann_window(length)
    transformed = torch.stft(x, window, hop, length, shape, center=False, return_complex=True)
    return (transformed.real.square() + transformed.imag.square()).transpose(1, 2)


def envelope_correlation(theirs: Tensor, ours: Tensor, length: int = 30) -> Tensor:
    """Returns the mean correlation of the envelopes over stretches of `length` frames.  theirs, ours: [B, F, bands]."""
    loudness = theirs.square().sum(-1)
    a, b = (x.unfold(1, length, 5) for x in (theirs, ours))
    b = b * (a.norm(dim=-1, keepdim=True) / (b.norm(dim=-1, keepdim=True) + 1e-6))
    b = torch.minimum(b, a * (1 + 10**0.75))
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    correlation = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1) + 1e-5)
    heard = (loudness > 1e-4 * loudness.amax(1, keepdim=True)).float().unfold(1, length, 5).mean(-1)
    return (correlation.mean(-1) * heard).sum() / heard.sum()


def train(codec: FrameCodec, frames: Tensor, steps: int) -> None:
    """Moves the parameters by Adam over stretches of speech at random loudness and number of levels."""
    loss, batch, length = Loss(), 8, 112 + HISTORY
    parameters = list(codec.parameters())
    groups = [{"params": [each], "lr": LEARNING_RATE * SHARES.get(name.split("_")[0], 1)} for name, each in codec.named_parameters()]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 50) * (1 - step / steps))
    seen: list[list[float]] = []
    for step in range(steps):
        start = torch.randint(len(frames) - length, (batch,))
        gain = 10 ** (torch.empty(batch, 1, 1).uniform_(-16, 4) / 20)
        clips = frames[start[:, None] + torch.arange(length)] * gain
        clips = clips / clips.abs().amax((1, 2), keepdim=True).clamp(min=1)
        levels = LEVELS_DRAWN[int(torch.multinomial(torch.tensor(LEVELS_WEIGHT), 1))]
        values = codec.encode(clips)  # [B, VALUES, F - TAPS]
        flat = values.transpose(1, 2).reshape(-1, VALUES)
        quantised, commitment = codec.quantize(flat, levels, move=0.01)
        through = (flat + (quantised - flat).detach()).view(batch, -1, VALUES).transpose(1, 2)
        decoded = codec.decode(through)
        mel, error, envelope = loss(clips[:, HISTORY:], decoded, codec.analysis)
        # the logarithm, for envelopes of many levels err less and would count less
        total = 2 * mel + 0.6 * error + 0.55 * torch.log(envelope + 1e-3) + 0.2 * commitment
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        seen.append([float(term.detach()) for term in (mel, error, envelope, commitment)])
        if step % 100 == 99:
            log(f"step {step + 1}: " + " ".join(f"{value:.4f}" for value in np.mean(seen[-100:], axis=0)))


if __name__ == "__main__":
    main()
