"""The multi-scale STFT discriminator, with the names of weights of `encodec.msstftd`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# of the paper, for 24 kHz
WINDOWS = (2048, 1024, 512, 256, 128)
_SLOPE = 0.2


class MultiScaleSTFTDiscriminator(nn.Module):
    """One discriminator for each width of the STFT's window.

    Its state dict is that of `encodec.msstftd.MultiScaleSTFTDiscriminator` with the same arguments, and its outputs are the same.

    filters: channels of each layer.
    in_channels: of one input. 1: the channels of stereo audio are judged apart, as in the paper; 2: together.
    n_ffts: widths of the windows; the hop is a quarter. encodec's own default is (1024, 2048, 512), its paper's the five here.
    kernel_size: in time and frequency, both odd; (3, 9) as in encodec's code, where its paper says 3 x 8.
    dilations: in time, a layer each, which also halves the frequencies.

    Raises ValueError for even kernels and for windows that a quarter does not divide.
    """

    def __init__(
        self,
        filters: int = 32,
        in_channels: int = 1,
        n_ffts: Sequence[int] = WINDOWS,
        kernel_size: tuple[int, int] = (3, 9),
        dilations: Sequence[int] = (1, 2, 4),
    ) -> None:
        super().__init__()
        if min(kernel_size) < 1 or any(size % 2 == 0 for size in kernel_size):
            raise ValueError(f"kernel_size is {kernel_size}; both must be odd, so that a frame stays in its place.")
        if not n_ffts or min(n_ffts) < 4 or any(width % 4 for width in n_ffts):
            raise ValueError(f"n_ffts is {list(n_ffts)}; multiples of 4 are needed, for the hop is a quarter.")
        self.in_channels, self.n_ffts = in_channels, tuple(n_ffts)
        self.discriminators = nn.ModuleList(_Discriminator(filters, in_channels, width, kernel_size, dilations) for width in n_ffts)

    @classmethod
    def for_rate(cls, sampling_rate: int, filters: int = 32) -> MultiScaleSTFTDiscriminator:
        """Returns the paper's for a sampling rate: its windows are as long in time as those of 24 kHz, doubled at 48 kHz."""
        factor = 2.0 ** round(math.log2(sampling_rate / 24_000))
        return cls(filters, n_ffts=[int(width * factor) for width in WINDOWS])

    def forward(self, audio: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Returns logits and features of audio [B, C, T].

        The logits are a tensor [B', 1, frames, bins] for each window, B' = B * C / in_channels. The features are a list for each window,
        with a tensor [B', filters, frames, bins] of each layer but the last.
        Raises ValueError for other shapes, and for audio shorter than the widest window.
        """
        if audio.dim() != 3 or audio.shape[1] % self.in_channels:
            raise ValueError(f"audio has shape {list(audio.shape)}; [B, C, T] is needed, with C a multiple of {self.in_channels}.")
        if audio.shape[-1] < max(self.n_ffts):
            raise ValueError(f"audio has {audio.shape[-1]} samples; the widest window is {max(self.n_ffts)}. Take longer clips.")
        audio = audio.reshape(-1, self.in_channels, audio.shape[-1])
        logits, features = zip(*(discriminator(audio) for discriminator in self.discriminators))
        return list(logits), list(features)

    def compile_layers(self) -> None:
        """Lets torch.compile make the kernels of the convolutions. A batch of another shape is compiled anew; the STFT stays as it is."""
        for discriminator in self.discriminators:
            # complex numbers, which inductor makes no code for, are left outside
            discriminator.judge = torch.compile(discriminator.judge, dynamic=False)  # type: ignore[arg-type, assignment]


class _Discriminator(nn.Module):
    def __init__(self, filters: int, in_channels: int, n_fft: int, kernel: tuple[int, int], dilations: Sequence[int]) -> None:
        super().__init__()
        self.spec_transform = _Spectrogram(n_fft)
        square = (kernel[0], kernel[0])
        # encodec leaves the first layer without weight norm
        layers = [_Layer(_PlainConv(2 * in_channels, filters, kernel))]
        layers += [_Layer(_WeightNormConv(filters, filters, kernel, (1, 2), (dilation, 1))) for dilation in dilations]
        self.convs = nn.ModuleList([*layers, _Layer(_WeightNormConv(filters, filters, square))])
        self.conv_post = _Layer(_WeightNormConv(filters, 1, square))

    def forward(self, audio: Tensor) -> tuple[Tensor, list[Tensor]]:
        spectrum = self.spec_transform(audio)
        judged: tuple[Tensor, list[Tensor]] = self.judge(torch.cat([spectrum.real, spectrum.imag], dim=1).transpose(2, 3))
        return judged

    def judge(self, hidden: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns logits and features of real and imaginary parts as channels, [B, 2 C, frames, bins]."""
        features = []
        for layer in self.convs:
            hidden = F.leaky_relu(layer(hidden), _SLOPE)
            features.append(hidden)
        return self.conv_post(hidden), features


class _Spectrogram(nn.Module):
    """Runs an STFT whose frames are divided by the window's norm; in the place of torchaudio's, for the name of its window."""

    def __init__(self, n_fft: int) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(n_fft))

    def forward(self, audio: Tensor) -> Tensor:
        """Returns the spectrum of audio [B, C, T]: complex [B, C, bins, frames]."""
        window = self.get_buffer("window")
        width = window.shape[0]
        spectrum = torch.stft(audio.flatten(0, 1), width, width // 4, window=window / window.norm(), center=False, return_complex=True)
        return spectrum.unflatten(0, audio.shape[:2])


class _Layer(nn.Module):
    """Holds a convolution under the name that it has in encodec's NormConv2d."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(x)
        return result


class _PlainConv(nn.Conv2d):
    """Runs a convolution over time and frequency that keeps both lengths."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1), dilation: tuple[int, int] = (1, 1)
    ) -> None:
        padding = ((kernel[0] - 1) * dilation[0] // 2, (kernel[1] - 1) * dilation[1] // 2)
        super().__init__(inputs, outputs, kernel, stride, padding, dilation)


class _WeightNormConv(_PlainConv):
    """Runs it with weight norm under the names of torch's old one, which encodec uses and torch means to remove."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        direction = self.weight.detach()
        del self.weight
        self.weight_g = nn.Parameter(direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
        self.weight_v = nn.Parameter(direction)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch._weight_norm(self.weight_v, self.weight_g, 0)
        return self._conv_forward(x, weight, self.bias)
