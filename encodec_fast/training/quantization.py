"""Residual vector quantization while it is trained: the codebooks follow the encoder in the model's own buffers.

Zeghidour et al. 2021 (SoundStream, arXiv 2107.03312), Défossez et al. 2022 (EnCodec, arXiv 2210.13438, section 3.2).
transformers has the search only: no gradient passes its quantizer, and nothing moves its codebooks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from encodec_fast.serving import modules
from encodec_fast.training.distributed import (
    PairwiseSum,
    from_first_rank,
    least_over_ranks,
    place_of_rows,
    rows_of_all_ranks,
    sum_over_ranks,
)
from encodec_fast.training.losses import commitment_loss

# of encodec: added to each cluster's size before it divides
_SMOOTHING = 1e-5
# Cluster size of a new entry, in units of the least size of one that is alive. Unused, it is dead after 69 batches: 0.99^69 = 0.5.
_GRACE = 2.0


@dataclass(frozen=True)
class QuantizedBatch:
    """What the quantizer made of one batch.

    quantized: [B, D, F], the sum of the entries, with the gradient of the embeddings.  codes: [B, K, F], int64.
    commitment: scalar, see `losses.commitment_loss`.
    perplexity: [K], exp of the entropy of the codes of this batch on all ranks: between 1 and the codebook's size.
    replaced: [K], int64, entries that were dead and are vectors of this batch now.
    """

    quantized: Tensor
    codes: Tensor
    commitment: Tensor
    perplexity: Tensor
    replaced: Tensor


@dataclass(frozen=True)
class FoundEntries:
    """What the search found for a part of a batch, of R = B F vectors; without gradients.

    codes: [K, R].  entries: [R, D], their sums.  residuals: [K + 1, R, D], the input of each level and what the last leaves.
    """

    codes: Tensor
    entries: Tensor
    residuals: Tensor


class _StraightThrough(torch.autograd.Function):
    """Returns the quantized vectors; the gradient goes to the embeddings as it comes."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, quantized: Tensor) -> Tensor:
        # not z + (q - z), whose rounding the decoder would see in training only
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0], None


class QuantizerTrainer:
    """Quantizes batches and moves the codebooks after them, in the buffers of a model's `quantizer`.

    The input of level c is z_c = z - the entries before. Of all ranks' batches, n_i vectors z_c are at entry i, and s_i is their sum:

        cluster_size_i <- decay cluster_size_i + (1 - decay) n_i
        embed_avg_i    <- decay embed_avg_i + (1 - decay) s_i
        embed_i        <- embed_avg_i / smoothed cluster_size_i

    With m vectors per entry in a batch, an entry is dead when its cluster_size is below min(dead_below, dead_share m).
    Then a vector of the batch takes its place in all three buffers. encodec writes `embed` alone, which its next lines overwrite from
    `embed_avg`: its dead entries stay dead. It also has no `dead_share`, only 2, while a batch of 8 s has 600 vectors for 1024 entries:
    all would be dead. A batch of 64 s would make 2 a share of 0.43. On drifting mixtures of Gaussians, that left 1.2 to 1.5 times the
    error of 0.1.

    A codebook of zeros, as transformers makes it, starts by k-means on the first batch that uses it. One that was fitted without
    statistics, or edited since, gets statistics that lead to it. All else goes on from its buffers.
    Each step leaves the codebooks equal on all ranks, bit for bit.

    quantizer: `model.quantizer`.  seed: of the vectors that are drawn.
    Raises ValueError for numbers out of range.
    """

    def __init__(
        self,
        quantizer: Any,
        *,
        decay: float = 0.99,
        dead_below: float = 2.0,
        dead_share: float = 0.1,
        kmeans_iterations: int = 10,
        seed: int = 0,
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; allowed is 0 <= decay < 1.")
        if dead_below < 0 or not 0 <= dead_share < 1:
            raise ValueError(f"dead_below is {dead_below} and dead_share {dead_share}; allowed are 0 or more, and 0 <= dead_share < 1.")
        self.quantizer = quantizer
        self.decay, self.dead_below, self.dead_share, self.kmeans_iterations = decay, dead_below, dead_share, kmeans_iterations
        # on the CPU, so that every device draws the same
        self._generator = torch.Generator().manual_seed(seed)
        self._fresh = [not (book.embed.any() or book.cluster_size.any()) for book in self._books()]
        self._started_now = [False] * len(self._fresh)
        self._without_statistics = [not fresh and not _has_statistics(book) for fresh, book in zip(self._fresh, self._books())]

    def __call__(self, embeddings: Tensor, num_quantizers: int, update: bool = True) -> QuantizedBatch:
        """Returns the quantized batch; the codebooks move after it.

        embeddings: [B, D, F], of the encoder.  num_quantizers: the first levels, which are used and moved; equal on all ranks.
        update: False leaves the codebooks alone, for validation.

        Codes are those of `model.quantizer.encode` before the move. Raises ValueError for embeddings that are not finite, on all ranks
        alike and before anything is written; also for another shape and for levels that the model lacks.
        """
        if update:
            self.start([embeddings], num_quantizers)
        found = self.look_up(embeddings, num_quantizers)
        perplexity, replaced = self.move([found], update)
        quantized, commitment = self.straight_through(embeddings, found)
        batch, _, frames = embeddings.shape
        return QuantizedBatch(quantized, found.codes.view(-1, batch, frames).transpose(0, 1), commitment, perplexity, replaced)

    def lacks_start(self, num_quantizers: int) -> bool:
        """Tells whether codebooks of the first levels are zeros, for `start` to fit."""
        return any(self._fresh[:num_quantizers])

    @torch.no_grad()
    def start(self, parts: Sequence[Tensor], num_quantizers: int) -> None:
        """Fits codebooks of zeros by k-means to a batch, whose parts are embeddings [B, D, F]; where there are none, it does nothing."""
        if not self.lacks_start(num_quantizers):
            return
        for embeddings in parts:
            self._check(embeddings, num_quantizers)
        self._start(torch.cat([self._vectors(embeddings) for embeddings in parts]), num_quantizers)

    @torch.no_grad()
    def look_up(self, embeddings: Tensor, num_quantizers: int) -> FoundEntries:
        """Returns the nearest entries of the first levels; raises ValueError as a call does."""
        self._check(embeddings, num_quantizers)
        codes = self._search(embeddings.to(self._books()[0].embed.dtype), num_quantizers).flatten(1)
        return self._residuals(self._vectors(embeddings), codes)

    def straight_through(self, embeddings: Tensor, found: FoundEntries) -> tuple[Tensor, Tensor]:
        """Returns the quantized embeddings [B, D, F] and the commitment loss, both with the gradient of the embeddings."""
        batch, _, frames = embeddings.shape
        quantized = found.entries.view(batch, frames, -1).transpose(1, 2).to(embeddings.dtype)
        commitment = commitment_loss(_with_gradient(found.residuals[1:], embeddings))
        return _StraightThrough.apply(embeddings, quantized), commitment

    @torch.no_grad()
    def move(self, parts: Sequence[FoundEntries], update: bool = True) -> tuple[Tensor, Tensor]:
        """Moves the codebooks after a batch, and returns `perplexity` and `replaced` of it; both as of `QuantizedBatch`.

        parts: of the batch. All ranks have equally many.  update: False leaves the codebooks alone.
        """
        counts, sums = self._sums(parts)
        replaced = torch.zeros(len(counts), dtype=torch.int64, device=counts.device)
        if update:
            self._move(parts, counts, sums, replaced)
        return _perplexity(counts), replaced

    def state_dict(self) -> dict[str, Any]:
        """Returns what the model's buffers do not hold: the state of the generator."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on drawing as the trainer that gave `state_dict`; the codebooks come with the model's own state."""
        self._generator.set_state(state["generator"].cpu())

    def _books(self) -> list[Any]:
        return [layer.codebook for layer in self.quantizer.layers]

    def _check(self, embeddings: Tensor, num_quantizers: int) -> None:
        dim = self._books()[0].embed.shape[1]
        if embeddings.dim() != 3 or embeddings.shape[1] != dim or not embeddings.numel():
            raise ValueError(f"embeddings have shape {list(embeddings.shape)}; [B, {dim}, F] is needed, with at least one frame.")
        if not 1 <= num_quantizers <= len(self.quantizer.layers):
            raise ValueError(f"num_quantizers is {num_quantizers}; the model has the levels 1 ... {len(self.quantizer.layers)}.")
        # a rank that raised alone would leave the others waiting for it
        if not least_over_ranks(embeddings.detach().isfinite().all().int()):
            raise ValueError(
                "embeddings hold NaN or infinity, with which the codebooks would be lost. They are as they were before this batch. "
                "Look for it in the audio and in the encoder's weights, or lower the learning rate."
            )

    def _search(self, embeddings: Tensor, levels: int) -> Tensor:
        """Returns codes [K, B, F]: all levels at once on the model's own backend."""

        def reference() -> Tensor:
            residual, codes = embeddings, []
            for layer in self.quantizer.layers[:levels]:
                codes.append(layer.encode(residual))
                residual = residual - layer.decode(codes[-1])
            return torch.stack(codes)

        return modules.run_search(self.quantizer, embeddings, levels, reference)

    def _vectors(self, embeddings: Tensor) -> Tensor:
        """Returns the vectors [R, D] of embeddings [B, D, F], of the codebooks' dtype, which autocast leaves alone."""
        return embeddings.to(self._books()[0].embed.dtype).transpose(1, 2).reshape(-1, embeddings.shape[1])

    def _residuals(self, vectors: Tensor, codes: Tensor) -> FoundEntries:
        """Returns the sum of the entries, added up as `quantizer.decode` does, and each level's residual."""
        total, residuals = torch.zeros_like(vectors), [vectors]
        for book, own in zip(self._books(), codes):
            entries = F.embedding(own, book.embed)
            total = total + entries
            residuals.append(residuals[-1] - entries)
        return FoundEntries(codes, total, torch.stack(residuals))

    def _sums(self, parts: Sequence[FoundEntries]) -> tuple[Tensor, Tensor]:
        """Returns how many vectors of all parts and ranks each entry has, [K, N], and their sums, [K, N, D]."""
        levels, entries, whole = len(parts[0].codes), self._books()[0].embed.shape[0], PairwiseSum()
        for part in parts:
            inputs = part.residuals[:-1].flatten(0, 1)
            flat = (part.codes + entries * torch.arange(levels, device=part.codes.device)[:, None]).flatten()
            counts = torch.bincount(flat, minlength=levels * entries).to(inputs.dtype)
            sums = torch.zeros(levels * entries, inputs.shape[1], dtype=inputs.dtype, device=inputs.device).index_add_(0, flat, inputs)
            # one message for all levels
            whole.add([torch.cat([counts[:, None], sums], dim=1)])
        reduced = sum_over_ranks(whole.total()[0]).view(levels, entries, -1)
        return reduced[..., 0], reduced[..., 1:]

    def _start(self, vectors: Tensor, levels: int) -> None:
        """Fits codebooks of zeros to the vectors [R, D] of all ranks, level by level."""
        residual = rows_of_all_ranks(vectors)
        for level, book in enumerate(self._books()[:levels]):
            if self._fresh[level]:
                entries, counts = kmeans(residual, book.embed.shape[0], self.kmeans_iterations, self._generator)
                # a GPU adds in changing orders
                from_first_rank(entries)
                from_first_rank(counts)
                book.embed.copy_(entries)
                book.cluster_size.copy_(counts)
                # encodec stores the entries themselves, which the first move then divides by their counts
                book.embed_avg.copy_(entries * _smoothed(counts)[:, None])
                book.inited.fill_(1)
                self._fresh[level], self._started_now[level] = False, True
            residual = residual - book.embed[nearest(residual, book.embed)]

    def _move(self, parts: Sequence[FoundEntries], counts: Tensor, sums: Tensor, replaced: Tensor) -> None:
        """Moves the codebooks after the sums of all ranks' vectors; sets `replaced`, [K], to how many entries each level replaced."""
        levels, entries = counts.shape
        mean = counts[0].sum() / entries

        books = self._books()[:levels]
        for book, lacks in zip(books, self._without_statistics):
            if lacks:
                book.cluster_size.copy_(mean.expand_as(book.cluster_size))
                book.embed_avg.copy_(book.embed * _smoothed(book.cluster_size)[:, None])
        self._without_statistics[:levels] = [False] * levels

        sizes = torch.stack([book.cluster_size for book in books]).lerp_(counts, 1 - self.decay)
        averages = torch.stack([book.embed_avg for book in books]).lerp_(sums, 1 - self.decay)
        embeds = averages / _smoothed(sizes)[..., None]
        # after a start by k-means an entry without vectors waits for the next batch: this one's have all got theirs
        waiting = torch.tensor(self._started_now[:levels], device=counts.device)
        self._started_now[:levels] = [False] * levels
        limit = (self.dead_share * mean).clamp(max=self.dead_below)
        dead = (sizes < limit) & ~waiting[:, None]
        if dead.any():
            inputs = torch.cat([part.residuals[:-1] for part in parts], dim=1)
            replaced.copy_(self._replace(dead, limit, inputs, sizes, averages, embeds))
        for book, size, average, embed in zip(books, sizes, averages, embeds):
            book.cluster_size.copy_(size)
            book.embed_avg.copy_(average)
            book.embed.copy_(embed)

    def _replace(self, dead: Tensor, limit: Tensor, inputs: Tensor, sizes: Tensor, averages: Tensor, embeds: Tensor) -> Tensor:
        """Puts vectors of all ranks' batches in the place of dead entries [K, N]; returns how many per level, [K]."""
        rows = inputs.shape[1]
        first, total = place_of_rows(rows, dead.device)
        # no vector twice in a level, for the second entry would be as dead: the rest wait for the next batch
        dead = dead & (dead.cumsum(1) <= total)
        level, entry = dead.nonzero(as_tuple=True)
        order = torch.randperm(total, generator=self._generator).to(dead.device)
        row = order[dead.cumsum(1)[level, entry] - 1] - first
        # a vector lies on one rank, and the others add zeros
        here = ((row >= 0) & (row < rows))[:, None]
        vectors = sum_over_ranks(torch.where(here, inputs[level, row.clamp(0, rows - 1)], 0.0))
        sizes[level, entry] = _GRACE * limit
        embeds[level, entry] = vectors
        averages[level, entry] = vectors * _smoothed(sizes)[level, entry, None]
        return dead.sum(1)


def kmeans(vectors: Tensor, entries: int, iterations: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns entries [N, D] fitted to vectors [R, D] by Lloyd's iterations, and how many vectors are nearest to each, [N].

    It begins with vectors drawn at random, each once before any comes twice. An entry that no vector is nearest to stays where it is.
    """
    rows = len(vectors)
    rounds = [torch.randperm(rows, generator=generator) for _ in range(-(-entries // rows))]
    means = vectors[torch.cat(rounds)[:entries].to(vectors.device)]
    for _ in range(iterations):
        codes = nearest(vectors, means)
        counts = torch.bincount(codes, minlength=entries).to(vectors.dtype)
        sums = torch.zeros_like(means).index_add_(0, codes, vectors)
        means = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), means)
    return means, torch.bincount(nearest(vectors, means), minlength=entries).to(vectors.dtype)


def nearest(vectors: Tensor, entries: Tensor) -> Tensor:
    """Returns the nearest of the entries [N, D] for each of the vectors [R, D], int64 [R]."""
    return (entries.square().sum(1) - 2 * vectors @ entries.T).argmin(1)


def _smoothed(sizes: Tensor) -> Tensor:
    """Returns cluster sizes [..., N] none of which is zero, of nearly the same sum.

    (n_i + eps) / (n + N eps) n,  n = sum of n_i
    """
    total = sizes.sum(-1, keepdim=True)
    return (sizes + _SMOOTHING) / (total + sizes.shape[-1] * _SMOOTHING) * total


def _has_statistics(book: Any) -> bool:
    """Tells whether the averages of a codebook lead to its entries."""
    if not book.cluster_size.sum() > 0:
        return False
    entries = book.embed_avg / _smoothed(book.cluster_size)[:, None]
    return bool(torch.allclose(entries, book.embed, rtol=1e-2, atol=1e-3 * float(book.embed.abs().max())))


def _with_gradient(residuals: Tensor, embeddings: Tensor) -> Tensor:
    """Returns residuals [K, R, D] unchanged, each with the gradient of the embeddings [B, D, F] that it is a part of."""
    rows = embeddings.transpose(1, 2).reshape(residuals.shape[1:])
    return residuals + (rows - rows.detach())


def _perplexity(counts: Tensor) -> Tensor:
    shares = counts / counts.sum(1, keepdim=True)
    return torch.special.entr(shares).sum(1).exp()
