"""A share of a run's clips, encoded again by transformers in float32 and float64 and compared by verify's contract."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from encodec_fast.corpus.tasks import Clip
from encodec_fast.formats import ClipRow
from encodec_fast.model import EncodecModel
from encodec_fast.verify import verify

# HF runs a clip whole, and several times slower: no more than this of a longer one is compared, seconds
COMPARED_SECONDS = 30.0
# Clips per comparison, which sets up two reference models
CLIPS_AT_ONCE = 8


class ShareVerifier:
    """Compares the clips whose id falls into `share` (0 ... 1): the same ones in every run."""

    def __init__(self, model: EncodecModel, bandwidth: float, share: float):
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"verify is {share:g}; a share of the clips is needed, 0 ... 1.")
        self._model, self._bandwidth, self._share = model, bandwidth, share
        self._clips: list[torch.Tensor] = []
        self._changed = 0

    def add(self, clip: Clip, row: ClipRow) -> dict[str, Any] | None:
        """Collects a clip and its row; returns the counts of a comparison once CLIPS_AT_ONCE have come together, else None."""
        if not self._chosen(clip.task.id):
            return None
        samples = torch.from_numpy(clip.samples)
        alone = self._model.encode_batch([samples], self._bandwidth)[0]
        self._changed += int((alone.codes.cpu().numpy() != row.codes).any(1).sum())
        self._clips.append(samples[:, : round(COMPARED_SECONDS * self._model.config.sampling_rate)])
        return self.compare() if len(self._clips) >= CLIPS_AT_ONCE else None

    def compare(self) -> dict[str, Any] | None:
        """Compares the clips that were collected; returns the counts, or None if there are none.

        clips, codes: compared. flips: frames whose codes differ from HF's. reference_flips: from HF in float64, of HF's own.
        failed: comparisons that verify doesn't pass. changed: frames whose stored codes are not those of the clip alone.
        worst_margin: of the flips, as a share of its bound.
        """
        if not self._clips:
            return None
        report = verify(self._model, self._clips, self._bandwidth)
        counts = {
            "clips": report.clips,
            "codes": report.codes,
            "flips": len(report.flips),
            "reference_flips": report.reference_flips,
            "failed": int(not report.passed),
            "changed": self._changed,
            "worst_margin": max((flip.margin / flip.bound for flip in report.flips), default=0.0),
        }
        self._clips, self._changed = [], 0
        return counts

    def _chosen(self, id: str) -> bool:
        place = int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big")
        return place < self._share * 2**64
