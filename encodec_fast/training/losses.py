"""Losses of EnCodec (Défossez et al. 2022, arXiv 2210.13438, section 3.4), each a function of a few lines.

x is the recording and y the model's audio, both [B, C, T]. Logits and features are lists over the K discriminators.
The balancer divides each gradient by its norm, so that constant factors of these losses are without effect there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from encodec_fast.training.distributed import mean_over_parts


def time_loss(x: Tensor, y: Tensor) -> Tensor:
    """Returns the mean distance of the samples.

    l_t = |x - y|_1 / (B C T)
    """
    return (x - y).abs().mean()


def generator_loss(fake: Sequence[Tensor]) -> Tensor:
    """Returns the generator's hinge loss of the logits D_k(y).

    l_g = 1/K sum_k mean max(0, 1 - D_k(y))
    """
    return torch.stack([F.relu(1 - logits).mean() for logits in fake]).mean()


def discriminator_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Returns the discriminators' hinge loss of the logits D_k(x) and D_k(y).

    L_d = 1/K sum_k mean max(0, 1 - D_k(x)) + mean max(0, 1 + D_k(y))
    """
    return torch.stack([F.relu(1 - true).mean() + F.relu(1 + false).mean() for true, false in zip(real, fake)]).mean()


def feature_norms(real: Sequence[Sequence[Tensor]]) -> Tensor:
    """Returns the mean of |D_k^l(x)| for each of the features, [K L]."""
    return torch.stack([x.detach().abs().mean() for own in real for x in own])


def feature_loss(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]], norms: Tensor | None = None) -> Tensor:
    """Returns the relative distance of the discriminators' features, by which no layer counts more for being louder.

        l_feat = 1/(K L) sum_k sum_l |D_k^l(x) - D_k^l(y)|_1 / |D_k^l(x)|_1

    norms: `feature_norms` of the whole batch, where x is a part of it. None: x of all ranks is the batch.
    Those of x are targets: no gradient goes to them. With norms of all parts, the parts' mean is the loss of all clips.
    """
    if norms is None:
        norms = mean_over_parts([feature_norms(real)])
    pairs = [(x.detach(), y) for own, other in zip(real, fake) for x, y in zip(own, other)]
    # features of zeros on digital silence would divide by zero
    return (torch.stack([(x - y).abs().mean() for x, y in pairs]) / norms.clamp(min=1e-8)).mean()


def commitment_loss(residuals: Tensor) -> Tensor:
    """Returns how far the input of each level is from its entry.

    residuals: [K, ...], z_c - q_c(z_c) of each level c, with the gradient of z_c and none of q_c.

        l_w = sum_c mean |z_c - q_c(z_c)|^2, the mean over vectors and dimensions.

    The paper sums over levels; encodec and audiocraft take their mean, which weighs a level less the more there are.
    """
    return residuals.square().flatten(1).mean(1).sum()


class MelLoss(nn.Module):
    """The distance of mel spectrograms at several widths of the window.

        l_f = 1/S sum_i mean |S_i(x) - S_i(y)| + a_i rms(S_i(x) - S_i(y)),  i = 5 ... 11, a_i = 1

    S_i has `mels` bands of the magnitudes of an STFT. Its Hann window has 2^i samples, is divided by its norm, and moves by 2^i / 4.
    Both means are of each clip and channel, so that a loss does not depend on the batch.
    The paper does not say which spectrum it means. Power would let loud frames rule; audiocraft's also takes logarithms.

    Bands are triangles of height 1 on the HTK scale, from 0 Hz to half the rate: torchaudio's default, which audiocraft uses. In short
    windows many lie between two bins and are empty: 36 of 64 at 32 samples. They stay empty, as with the authors, and count in the mean.
    Padding is audiocraft's: reflection by 3/8 of the window on both sides, zeros to fill the last window.

    dtype: of the audio.
    """

    def __init__(
        self,
        sampling_rate: int,
        exponents: Sequence[int] = range(5, 12),
        mels: int = 64,
        alpha: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.exponents, self.mels, self.alpha = tuple(exponents), mels, alpha
        for exponent in self.exponents:
            width = 1 << exponent
            window = torch.hann_window(width, dtype=torch.float64)
            self.register_buffer(f"window_{exponent}", (window / window.norm()).to(dtype), persistent=False)
            bands = mel_bands(sampling_rate, width, mels)
            # empty bands are zero on both sides
            self.register_buffer(f"bands_{exponent}", bands[bands.any(dim=1)].to(dtype), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the loss of the recording x and the audio y, both [B, C, T].

        Raises ValueError for shapes that differ, and for audio that is too short for the widest window.
        """
        if x.shape != y.shape:
            raise ValueError(f"x has shape {list(x.shape)} and y {list(y.shape)}; both must have the same.")
        least = _padding(1 << max(self.exponents)) + 1
        if x.shape[-1] < least:
            raise ValueError(
                f"The audio has {x.shape[-1]} samples; a window of {1 << max(self.exponents)} needs {least}. "
                "Take longer clips or smaller exponents."
            )
        return torch.stack([self._distance(exponent, x, y) for exponent in self.exponents]).mean()

    def spectrum(self, exponent: int, audio: Tensor) -> Tensor:
        """Returns the bands of audio [B, C, T] that are not empty, [B * C, bands, ceil(4 T / 2^exponent)]."""
        width = 1 << exponent
        window, bands = self.get_buffer(f"window_{exponent}"), self.get_buffer(f"bands_{exponent}")
        audio, side = audio.flatten(0, 1), _padding(width)
        last = -(audio.shape[-1] + 2 * side - width) % (width // 4)
        padded = F.pad(F.pad(audio, (side, side), "reflect"), (0, last))
        return (_Magnitudes.apply(padded.unfold(1, width, width // 4) * window) @ bands.T).transpose(1, 2)

    def _distance(self, exponent: int, x: Tensor, y: Tensor) -> Tensor:
        difference = self.spectrum(exponent, x) - self.spectrum(exponent, y)
        count = self.mels * difference.shape[-1]
        l1, l2 = (torch.linalg.vector_norm(difference, order, dim=(1, 2)) for order in (1, 2))
        return (l1 / count + self.alpha * l2 / count**0.5).mean()


class _Magnitudes(torch.autograd.Function):
    """Returns the magnitudes of the Fourier transform of real frames [..., n], n even: [..., n // 2 + 1].

    The gradient of bin k is s_k / |s_k|, and 0 at 0. In half the time of torch's own operations: its magnitude makes a complex tensor,
    and its backward transform takes all n complex bins.
    """

    @staticmethod
    def forward(ctx: Any, frames: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(frames)
        real, imaginary = torch.view_as_real(spectrum).unbind(-1)
        magnitudes = (real.square() + imaginary.square()).sqrt_()
        ctx.save_for_backward(spectrum, magnitudes)
        return magnitudes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        spectrum, magnitudes = ctx.saved_tensors
        directions = spectrum * (grad_outputs[0] / magnitudes.clamp(min=1e-20))
        # the inverse transform counts all bins twice but the first and the last
        directions[..., 1:-1] *= 0.5
        return torch.fft.irfft(directions, norm="forward")


def _padding(width: int) -> int:
    """Returns the samples of reflection on each side."""
    return (width - width // 4) // 2


def mel_bands(sampling_rate: int, width: int, mels: int) -> Tensor:
    """Returns the weight of each bin of an STFT in each band, float64 [mels, width // 2 + 1].

    mel(f) = 2595 log10(1 + f / 700). Band m rises from the m-th of equidistant points to the next and falls to the one after.
    """
    half = sampling_rate / 2
    top = 2595 * torch.log10(torch.tensor(1 + half / 700, dtype=torch.float64))
    edges = 700 * (10 ** (torch.linspace(0, 1, mels + 2, dtype=torch.float64) * top / 2595) - 1)
    bins = torch.linspace(0, half, width // 2 + 1, dtype=torch.float64)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)
