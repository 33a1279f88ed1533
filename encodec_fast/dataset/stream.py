"""`CodesDataset`: stored codes as a torch IterableDataset, in stored or random order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from encodec_fast.formats import FormatError
from encodec_fast.formats.folder import read_shard, shard_paths


class CodesDataset(IterableDataset[dict[str, Any]]):
    """Streams the rows of a folder of codes: `id`, `audio_codes` int64 [n_chunks, K, F], `audio_scales` [n_chunks] or None, and the
    other fields of formats.ClipRow. Its columns (text, speaker, ...) are there by their names.

    path: the --out folder of `encodec-fast tokenize`. shuffle: a random order, another one in each epoch: rows are drawn from
    `open_shards` shards at a time (stored order is by length) and from a buffer of `buffer_size`. seed: of it. rank, world_size: this
    process's part of the shards; by default as torch.distributed says, if it is in use. The workers of a DataLoader share the part.
    Raises FormatError if there are no codes.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        shuffle: bool = False,
        buffer_size: int = 4096,
        open_shards: int = 8,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ):
        if buffer_size < 1 or open_shards < 1:
            raise ValueError(f"buffer_size and open_shards are {buffer_size} and {open_shards}; 1 or more.")
        self.shards = [str(shard) for shard in shard_paths(path)]
        if not self.shards:
            raise FormatError(f"{path}: no shards in this folder; give the --out folder of `encodec-fast tokenize`.")
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = rank if rank is not None else torch.distributed.get_rank() if distributed else 0
        self.world_size = world_size if world_size is not None else torch.distributed.get_world_size() if distributed else 1
        self.shuffle, self.buffer_size, self.open_shards, self.seed = shuffle, buffer_size, open_shards, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next iteration, as DistributedSampler's does; without it each iteration takes the next."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch, self._epoch = self._epoch, self._epoch + 1
        # every process draws the same order of shards and takes its own ones of them
        order = np.random.default_rng([self.seed, epoch])
        shards = [self.shards[index] for index in order.permutation(len(self.shards))] if self.shuffle else self.shards
        worker = get_worker_info()
        part, parts = (self.rank, self.world_size)
        if worker is not None:
            part, parts = part * worker.num_workers + worker.id, parts * worker.num_workers
        own = shards[part::parts]
        rows = self._shuffled(own, np.random.default_rng([self.seed, epoch, part])) if self.shuffle else self._stored(own)
        return rows

    def _stored(self, shards: list[str]) -> Iterator[dict[str, Any]]:
        for shard in shards:
            for row in read_shard(Path(shard)):
                yield _tensors(row)

    def _shuffled(self, shards: list[str], random: np.random.Generator) -> Iterator[dict[str, Any]]:
        buffer: list[Any] = []
        for row in self._interleaved(shards, random):
            if len(buffer) < self.buffer_size:
                buffer.append(row)
                continue
            index = int(random.integers(len(buffer)))
            drawn, buffer[index] = buffer[index], row
            yield _tensors(drawn)
        random.shuffle(buffer)
        for row in buffer:
            yield _tensors(row)

    def _interleaved(self, shards: list[str], random: np.random.Generator) -> Iterator[Any]:
        """Yields rows of open_shards shards at a time, each from a random one of them."""
        waiting = iter(shards)
        opened = [read_shard(Path(shard)) for _, shard in zip(range(self.open_shards), waiting, strict=False)]
        while opened:
            index = int(random.integers(len(opened)))
            row = next(opened[index], None)
            if row is not None:
                yield row
                continue
            shard = next(waiting, None)
            if shard is None:
                del opened[index]
            else:
                opened[index] = read_shard(Path(shard))


def _tensors(row: Any) -> dict[str, Any]:
    fields = {name: value for name, value in vars(row).items() if name not in ("codes", "scales", "columns")}
    scales = None if row.scales is None else torch.from_numpy(np.array(row.scales))
    return {**fields, **row.columns, "audio_codes": torch.from_numpy(row.codes.astype(np.int64)), "audio_scales": scales}
