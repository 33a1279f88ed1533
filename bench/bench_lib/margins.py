"""Codes against those of float64: which differ, at which level first, and how close float64 itself was to the other code."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench_lib.results import Row
from encodec_fast.verify import code_margin


class Truth:
    """The float64 codes of one chunk, and their margins (encodec_fast/verify.py)."""

    def __init__(self, embeddings: Tensor, codebooks: Tensor) -> None:
        """embeddings: [1, D, F] float64.  codebooks: [K, N, D] float64, the levels in use."""
        self.x, self.codebooks = embeddings[0].T, codebooks
        residual, codes, margins = self.x, [], []
        for entries in codebooks:
            nearest = torch.cdist(residual, entries).topk(2, largest=False).indices  # [F, 2]
            codes.append(nearest[:, 0])
            margins.append(code_margin(residual, entries[nearest[:, 0]], entries[nearest[:, 1]], self.x))
            residual = residual - entries[nearest[:, 0]]
        self.codes, self.margins = torch.stack(codes), torch.stack(margins)  # [K, F]

    def flips(self, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the codes that differ [K, F], the level of each frame's first one [F] or K, and its margin [F].  codes: [K, F]."""
        differs = codes != self.codes
        levels = torch.arange(len(codes))[:, None]
        first = torch.where(differs, levels, len(codes)).amin(0)
        margins = torch.zeros(first.shape, dtype=torch.float64)
        for frame in (first < len(codes)).nonzero()[:, 0].tolist():
            level = int(first[frame])
            above = self.codebooks[torch.arange(level), self.codes[:level, frame]].sum(0)
            a, b = (self.codebooks[level, side[level, frame]] for side in (codes, self.codes))
            margins[frame] = code_margin(self.x[frame] - above, a, b, self.x[frame])
        return differs, first, margins


class Tally:
    """Sums over clips of one way."""

    def __init__(self, levels: int) -> None:
        self.frames = 0
        self.differing, self.first = [0] * levels, [0] * levels
        self.largest_margin = self.error = self.signal = 0.0

    def add(self, truth: Truth, codes: Tensor, embeddings: Tensor) -> None:
        """Counts a chunk's codes [K, F] and sums the error of its embeddings [1, D, F]."""
        differs, first, margins = truth.flips(codes)
        self.frames += codes.shape[1]
        self.largest_margin = max(self.largest_margin, margins.max().item())
        for level in range(len(codes)):
            self.differing[level] += int(differs[level].sum())
            self.first[level] += int((first == level).sum())
        exact = truth.x.T[None]
        self.error += (embeddings.double() - exact).square().sum().item()
        self.signal += exact.square().sum().item()

    def row(self) -> Row:
        """Returns the sums as plain data."""
        levels = [{"codes": self.frames, "differing": d, "first": f} for d, f in zip(self.differing, self.first)]
        return {
            "frames": self.frames,
            "flipped_frames": sum(self.first),
            "levels": levels,
            "largest_margin": self.largest_margin,
            "embedding_error": math.sqrt(self.error / self.signal),
        }
