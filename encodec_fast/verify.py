"""Evidence that ours is the same codec: ours, HF in float32 and HF in float64 on the same weights and audio.

Codes by contract: a code may differ from HF's only where float64 itself can hardly tell the two entries apart. Between these two
entries lies a plane halfway. The margin is the embedding's distance from it, as a share of the embedding's length. It is taken at the
frame's first level where the codes differ:

    margin = | |r - a|^2 - |r - b|^2 | / (2 |a - b| |x|)
    r residual before that level, x embedding, a and b the two entries, all float64

It is the relative change of the embedding that would swap the two codes, and must be below MARGIN_BOUND. HF's own float32 embeddings
can err by more than usual, as in near silence that `normalize` blows up. There the bound is ERRORS_BOUND times the largest
error of that chunk. To both comes the rounding of one float32 distance in the same unit. Later levels of that frame quantize another
residual and are not compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.models.encodec import modeling_encodec as hf

from encodec_fast.plan.geometry import reference_length

# float32 embeddings of both models err by up to 3e-6 of their length against float64 (random weights and speech); two such errors, and room
# for a clip whose LSTM state amplifies them, stay below this.
MARGIN_BOUND = 2e-5
# Ours may err a few times as much as HF's largest error and in the other direction.
ERRORS_BOUND = 4.0
# Rounding of a float32 distance |r|^2 - 2 r.e + |e|^2, relative to (|r| + |e|)^2: 8 units. It adds to the margin that two entries much
# closer to each other than to zero may be swapped at.
SEARCH_ROUNDOFF = 8 * 2**-23
# Root-mean-square error against float64, relative to the signal: ours may be HF's own times a factor, plus 4 units of float32 roundoff.
# The factor is for luck: where a clip is ill-conditioned and both err by 1e-5, other orders of summation gave 1.06 times HF's error.
ERROR_FACTOR, ERROR_SLACK = 1.5, 5e-7
# Ours and HF float32 err independently: about twice as many frames differ between them as between HF float32 and float64.
# 4 x plus 10 leaves room for small counts and catches a search that is wrong only near ties.
# Only distinct swaps count: in digital silence one near tie stands in every frame.
FLIPS_PER_REFERENCE_FLIP, FLIPS_SLACK = 4, 10


@dataclass(frozen=True)
class Flip:
    """The first differing code of one frame.

    clip, chunk, frame, level: where it is, counted from 0.  ours, reference: the two codes.
    margin: the relative change of the embedding that would swap the two.  bound: what it must not exceed.
    """

    clip: int
    chunk: int
    frame: int
    level: int
    ours: int
    reference: int
    margin: float
    bound: float

    @property
    def explained(self) -> bool:
        """Tells whether float64 itself can hardly tell the two entries apart."""
        return self.margin <= self.bound


@dataclass
class ErrorPair:
    """Errors against float64, of ours and of HF float32.

    ours, reference: relative errors, root mean square.  ours_max, reference_max: largest absolute errors.
    """

    ours: float
    reference: float
    ours_max: float
    reference_max: float

    @property
    def passed(self) -> bool:
        """Tells whether our error is at most 1.5 times HF's, and 5e-7 more."""
        return self.ours <= ERROR_FACTOR * self.reference + ERROR_SLACK


@dataclass
class VerifyReport:
    """What was compared and what came out; `str()` is a table, `passed` the verdict.

    bandwidth: kbps.  clips: how many.  codes: that were compared.  flips: the first code that differs, of each frame that has one.
    reference_flips: frames in which HF's codes in float32 and float64 differ.
    embeddings, waveform: errors of the encoder's output and of decoded audio.
    snr_db: of our audio against HF's, in dB.  cut: clips that were cut to a length that HF takes.
    """

    bandwidth: float
    clips: int = 0
    codes: int = 0
    flips: list[Flip] = field(default_factory=list)
    reference_flips: int = 0
    embeddings: ErrorPair | None = None
    waveform: ErrorPair | None = None
    snr_db: float = float("inf")
    cut: int = 0

    @property
    def passed(self) -> bool:
        """Tells whether every flip is a near tie, they are few, and the errors are bounded."""
        errors = all(pair.passed for pair in (self.embeddings, self.waveform) if pair is not None)
        swaps = {(flip.level, flip.ours, flip.reference) for flip in self.flips}
        few = len(swaps) <= FLIPS_PER_REFERENCE_FLIP * self.reference_flips + FLIPS_SLACK
        return self.codes > 0 and errors and few and all(flip.explained for flip in self.flips)

    def __str__(self) -> str:
        worst = max(self.flips, key=lambda flip: flip.margin / flip.bound, default=None)
        margin, bound = (worst.margin, worst.bound) if worst else (0.0, MARGIN_BOUND)
        lines = [
            f"{'PASS' if self.passed else 'FAIL'}  {self.clips} clips at {self.bandwidth} kbps, {self.codes} codes",
            f"  frames whose codes differ   ours / HF float32: {len(self.flips)}   HF float32 / HF float64: {self.reference_flips}",
            f"  largest margin of those     {margin:.1e} (bound {bound:.1e})",
        ]
        for name, pair in (("embedding", self.embeddings), ("waveform", self.waveform)):
            if pair is not None:
                lines.append(
                    f"  {name + ' error, relative rms':<27} ours {pair.ours:.2e}   HF float32 {pair.reference:.2e}   (against HF float64)"
                )
        if self.waveform is not None:
            lines.append(f"  waveform, largest error     ours {self.waveform.ours_max:.2e}   HF float32 {self.waveform.reference_max:.2e}")
            lines.append(f"  waveform SNR, ours / HF     {self.snr_db:.1f} dB")
        if self.cut:
            lines.append(f"  clips cut at the end        {self.cut}: HF itself fails where the last chunk ends inside the one before")
        for flip in self.flips[:10]:
            where = f"clip {flip.clip} chunk {flip.chunk} frame {flip.frame} level {flip.level}"
            lines.append(f"  {where}: ours {flip.ours}, HF {flip.reference}, margin {flip.margin:.1e}")
        if len(self.flips) > 10:
            lines.append(f"  and {len(self.flips) - 10} more")
        return "\n".join(lines)


class Errors:
    """Sums that an ErrorPair is made of."""

    def __init__(self) -> None:
        self.squares = [0.0, 0.0, 0.0]
        self.largest = [0.0, 0.0]

    def add(self, ours: Tensor, reference: Tensor, truth: Tensor) -> None:
        self.squares[2] += truth.pow(2).sum().item()
        for index, value in enumerate((ours, reference)):
            error = value.double() - truth
            self.squares[index] += error.pow(2).sum().item()
            self.largest[index] = max(self.largest[index], error.abs().max().item())

    def pair(self) -> ErrorPair:
        scale = self.squares[2] or 1.0
        ours, reference = ((square / scale) ** 0.5 for square in self.squares[:2])
        return ErrorPair(ours, reference, *self.largest)

    def snr_db(self) -> float:
        """Returns the signal-to-noise ratio of the first against the truth, in dB."""
        noise, signal = self.squares[0], self.squares[2]
        return float("inf") if noise == 0 else 10 * math.log10(signal / noise) if signal else -float("inf")


class Reference:
    """A stock transformers model with a model's weights, which also keeps the embeddings of its last encode."""

    def __init__(self, model: hf.EncodecModel, dtype: torch.dtype) -> None:
        with torch.random.fork_rng(devices=[]):
            self.model = hf.EncodecModel(model.config)
        self.model.load_state_dict(model.state_dict())
        self.model.to(device=model.device, dtype=dtype).eval()
        self.embeddings: list[Tensor] = []
        self.model.encoder.register_forward_hook(lambda module, args, output: self.embeddings.append(output))

    def encode(self, audio: Tensor, bandwidth: float) -> tuple[Any, list[Tensor]]:
        """Returns HF's output and the embeddings [B, D, F] of its chunks."""
        self.embeddings = []
        output = self.model.encode(audio.to(self.model.dtype), bandwidth=bandwidth)
        return output, self.embeddings


@torch.no_grad()
def verify(
    model: hf.EncodecModel,
    audio: Tensor | Sequence[Tensor],
    bandwidth: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Compares our codes, embeddings and decoded audio with stock HF in float32 and in float64, on the same weights.

    model: an `encodec_fast.EncodecModel`, float32.  audio: [B, C, T], run as one batch, or a list of [C, T], run one by one.
    bandwidth: kbps; None takes the highest, which compares every codebook.
    progress: called with the batches compared and all of them.

    A clip of a length that HF itself fails on is cut to the next shorter one that it takes.
    Raises TypeError for a model that is not ours, ValueError for one that is not float32.
    """
    from encodec_fast.model import EncodecModel

    if not isinstance(model, EncodecModel):
        raise TypeError(f"model: expected an encodec_fast.EncodecModel, got {type(model).__module__}.{type(model).__name__}.")
    if model.dtype != torch.float32:
        raise ValueError(f"model: expected float32 weights, got {model.dtype}; use model.float().")
    bandwidth = max(model.config.target_bandwidths) if bandwidth is None else bandwidth
    single, double = Reference(model, torch.float32), Reference(model, torch.float64)
    report = VerifyReport(bandwidth)
    embeddings, waveform, between = Errors(), Errors(), Errors()
    captured: list[Tensor] = []
    hook = model.encoder.register_forward_hook(lambda module, args, output: captured.append(output))
    try:
        batches = [audio] if isinstance(audio, Tensor) else [clip[None] for clip in audio]
        for number, batch in enumerate(batches):
            if progress is not None:
                progress(number, len(batches))
            length = reference_length(model.config, batch.shape[-1])
            report.cut += batch.shape[0] * (length < batch.shape[-1])
            batch = batch[..., :length].to(model.device)
            captured.clear()
            _compare_batch(model, single, double, batch, bandwidth, captured, report, (embeddings, waveform, between))
    finally:
        hook.remove()
    report.embeddings, report.waveform = embeddings.pair(), waveform.pair()
    report.snr_db = between.snr_db()
    return report


def _compare_batch(
    model: hf.EncodecModel,
    single: Reference,
    double: Reference,
    audio: Tensor,
    bandwidth: float,
    captured: list[Tensor],
    report: VerifyReport,
    errors: tuple[Errors, Errors, Errors],
) -> None:
    ours = model.encode(audio.float(), bandwidth=bandwidth)
    reference, reference_embeddings = single.encode(audio, bandwidth)
    truth, truth_embeddings = double.encode(audio, bandwidth)
    # ours ran the chunks in batches grouped by length: full chunks first, in order, then the ragged tail
    own_embeddings = [part for batch in captured for part in batch.split(audio.shape[0])]
    codebooks = torch.stack([layer.codebook.embed for layer in double.model.quantizer.layers])
    for index, exact in enumerate(truth_embeddings):
        frames = exact.shape[-1]
        ours_codes, reference_codes = (output.audio_codes[index, ..., :frames] for output in (ours, reference))
        report.codes += ours_codes.numel()
        largest_errors = (reference_embeddings[index] - exact).norm(dim=1).amax(-1)
        report.flips += code_flips(ours_codes, reference_codes, exact, largest_errors, codebooks, index, report.clips)
        report.reference_flips += int((reference_codes != truth.audio_codes[index, ..., :frames]).any(1).sum())
        errors[0].add(own_embeddings[index], reference_embeddings[index], exact)
    report.clips += audio.shape[0]
    extra = {"last_frame_pad_length": reference.last_frame_pad_length} if "last_frame_pad_length" in reference else {}
    decoded = [
        side.decode(reference.audio_codes, scales, **extra).audio_values
        for side, scales in (
            (model, reference.audio_scales),
            (single.model, reference.audio_scales),
            (double.model, [None if scale is None else scale.double() for scale in reference.audio_scales]),
        )
    ]
    errors[1].add(*decoded)
    errors[2].add(decoded[0], decoded[1], decoded[1].double())


def code_flips(
    ours: Tensor, reference: Tensor, exact: Tensor, largest_errors: Tensor, codebooks: Tensor, chunk: int = 0, first_clip: int = 0
) -> list[Flip]:
    """Returns the first differing code of each frame, with its margin in float64 and the bound on it.

    ours, reference: codes [B, K, F].  exact: embeddings [B, D, F], float64.  largest_errors: [B], of HF's embeddings in float32.
    codebooks: [K, N, D], float64.  chunk, first_clip: of the codes, for the flips' own fields.
    """
    flips = []
    differs = ours != reference
    for clip, frame in differs.any(1).nonzero().tolist():
        level = int(differs[clip, :, frame].int().argmax())
        x = exact[clip, :, frame]
        residual = x.clone()
        for below in range(level):
            residual -= codebooks[below, ours[clip, below, frame]]
        a, b = (codebooks[level, side[clip, level, frame]] for side in (ours, reference))
        codes = (int(ours[clip, level, frame]), int(reference[clip, level, frame]))
        bound = max(MARGIN_BOUND, ERRORS_BOUND * (largest_errors[clip] / x.norm()).item())
        rounding = SEARCH_ROUNDOFF * (residual.norm() + torch.maximum(a.norm(), b.norm())) ** 2
        bound += (rounding / (2 * (a - b).norm() * x.norm())).item()
        flips.append(Flip(first_clip + clip, chunk, frame, level, *codes, code_margin(residual, a, b, x).item(), bound))
    return flips


def code_margin(residual: Tensor, a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """Returns the relative change of the embeddings x that swaps the entries a and b for the residuals; all [..., D], float64."""
    gap = (residual - a).pow(2).sum(-1) - (residual - b).pow(2).sum(-1)
    # equal entries (duplicate rows) give 0 / 0: no embedding is on one side of them, which is the largest margin there is
    return (gap.abs() / (2 * (a - b).norm(dim=-1) * x.norm(dim=-1))).nan_to_num(nan=float("inf"))
