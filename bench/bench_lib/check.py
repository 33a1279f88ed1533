"""The check that every answer passes before it gets a time: it is that of transformers, but for ties that rounding decides.

Codes follow the rule of encodec_fast/verify.py. Only few frames may differ, each only where float64 can hardly tell the entries apart.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import EncodecModel

from bench_lib.cases import Case, audio_of, stock_model
from bench_lib.results import Row
from encodec_fast.verify import Flip, Reference, code_flips

# Frames that may differ. float32 in another order of summation flips about one frame in a thousand of the demo models
# (docs/benchmarks.md), and in a small case that may be one of few.
FLIPS_SHARE, FLIPS_SLACK = 0.005, 2
# Where a bar is set, and thousands of frames are compared.
STRICT_SHARE = 0.001
# Largest error of audio or embeddings, as a share of the peak.
LARGEST_ERROR = 1e-4


class WrongAnswer(Exception):
    """A contender's answer is not that of transformers: its speed is not printed."""


def check(case: Case, answer: Tensor, expected: Tensor, share: float = FLIPS_SHARE, slack: int = FLIPS_SLACK) -> Row:
    """Returns how far the answer to a case is from that of transformers.  Raises WrongAnswer where it is another one.

    answer, expected: codes [chunks, B, K, F] or audio [B, C, T].  share, slack: frames that may differ.
    """
    if case.call == "decode":
        return check_values(answer, expected)
    return check_codes(
        answer,
        expected,
        lambda: judged_flips(stock_model(case.model), audio_of(case), case.bandwidth, answer, expected),
        share,
        slack,
    )


def check_codes(ours: Tensor, theirs: Tensor, flips: Callable[[], list[Flip]], share: float = FLIPS_SHARE, slack: int = FLIPS_SLACK) -> Row:
    """Returns frames and flips, which are frames with any other code.  Raises WrongAnswer for many flips, or one that float64 refutes.

    ours, theirs: [chunks, B, K, F].  flips: judges the flips; called only where there are any.
    """
    _check_shapes(ours, theirs)
    differs = (ours != theirs).any(2)
    count, frames = int(differs.sum()), differs.numel()
    if count > slack + share * frames:
        raise WrongAnswer(f"{count} of {frames} frames have other codes than those of transformers")
    refuted = [flip for flip in flips() if not flip.explained] if count else []
    if refuted:
        worst = max(refuted, key=lambda flip: flip.margin / flip.bound)
        raise WrongAnswer(f"{len(refuted)} frames have codes that float64 refutes: margin {worst.margin:.1e}, bound {worst.bound:.1e}")
    return {"frames": frames, "flips": count}


def check_values(answer: Tensor, expected: Tensor) -> Row:
    """Returns the largest error of audio or embeddings, as a share of the peak.  Raises WrongAnswer above LARGEST_ERROR."""
    _check_shapes(answer, expected)
    error = ((answer - expected).abs().max() / expected.abs().max()).item()
    if not error <= LARGEST_ERROR:
        raise WrongAnswer(f"the values are {error:.1e} of the peak away from those of transformers; allowed is {LARGEST_ERROR:g}")
    return {"largest_error": error}


def _check_shapes(answer: Tensor, expected: Tensor) -> None:
    if answer.shape != expected.shape:
        raise WrongAnswer(f"the answer has shape {list(answer.shape)}, that of transformers {list(expected.shape)}")


@torch.no_grad()
def judged_flips(stock: EncodecModel, audio: Tensor, bandwidth: float, ours: Tensor, theirs: Tensor) -> list[Flip]:
    """Returns the first differing code of each frame, judged by embeddings of transformers in float64.

    audio: [B, C, T].  ours, theirs: [chunks, B, K, F]; of fewer frames than the audio has, the beginning.  Runs the clips that differ.
    """
    single, double = Reference(stock, torch.float32), Reference(stock, torch.float64)
    codebooks = torch.stack([layer.codebook.embed for layer in double.model.quantizer.layers])
    flips = []
    for clip in (ours != theirs).any(dim=(0, 2, 3)).nonzero()[:, 0].tolist():
        one = slice(clip, clip + 1)
        (_, rounded), (_, exact) = (side.encode(audio[one], bandwidth) for side in (single, double))
        for chunk, truth in enumerate(exact[: len(ours)]):
            frames = min(truth.shape[-1], ours.shape[-1])
            largest_error = (rounded[chunk] - truth).norm(dim=1).amax(-1)
            sides = (side[chunk, one, :, :frames] for side in (ours, theirs))
            flips += code_flips(*sides, truth[..., :frames], largest_error, codebooks, chunk, clip)
    return flips
