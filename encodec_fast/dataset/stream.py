"""`CodesDataset`: stored codes as a torch IterableDataset, in stored or random order; and `collate`, which makes batches of its rows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from encodec_fast.dataset.ledger import Ledger
from encodec_fast.dataset.sharing import Segment, blocks, dealt, rows_between, windows
from encodec_fast.formats import ClipRow, FormatError
from encodec_fast.formats.folder import count_rows, read_info, read_shard, shards_of
from encodec_fast.patterns import Kind, TokenPattern

# A rank's rows are drawn from at least so many places of the folder, where it has as many rows
LEAST_BLOCKS = 16


class CodesDataset(IterableDataset[dict[str, Any]]):
    """Streams the rows of a folder of codes to a trainer: every row once an epoch, and the same number of them to each rank.

    A row is a dict: `id`, `audio_codes` int64 [n_chunks, K, F], `audio_scales` float32 [n_chunks] where the model normalizes, and the
    other fields of formats.ClipRow. Its columns (text, speaker, ...) are there by their names. Where the run kept embeddings, they are
    there too: float16 [n_chunks, D, F].
    With the ranks of torch.distributed, each has its share of the rows. The workers of a DataLoader divide it further.

    path: the --out folder of `encodec-fast tokenize`.
    shuffle: a random order for each epoch. Blocks of rows are drawn from all of the folder, and the rows of a buffer are mixed.
    buffer_size: rows in the buffer; each worker holds so many.
    seed: of the order.
    rank, world_size: this process's share; None: as torch.distributed says, if it is in use.
    drop_last: where the rows can't be shared evenly, leaves out up to world_size - 1 of them; else as many come twice.
    levels: only the first so many codebooks of each row.
    crop_frames: a piece of each longer row, `audio_codes` [1, K, crop_frames], with its first frame as `crop_start`. Chunks are laid
    end to end for it, and `audio_scales` is left out. At random where shuffle is True, else the first frames.
    pattern: adds `tokens` (see patterns.TokenPattern): a pattern, or a kind of it for the row's levels.

    Raises FormatError if there are no codes, ValueError for a wrong argument, or fewer rows than ranks with drop_last.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        shuffle: bool = False,
        buffer_size: int = 1024,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        drop_last: bool = False,
        levels: int | None = None,
        crop_frames: int | None = None,
        pattern: TokenPattern | Kind | None = None,
    ):
        for name, value in (("buffer_size", buffer_size), ("levels", levels), ("crop_frames", crop_frames), ("world_size", world_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; 1 or more is needed.")
        self.shards = [str(shard) for shard in shards_of(path)]
        self.info = read_info(path)
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.world_size = world_size if world_size is not None else torch.distributed.get_world_size() if distributed else 1
        self.rank = rank if rank is not None else torch.distributed.get_rank() if distributed else 0
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank is {self.rank} of {self.world_size}; 0 ... {self.world_size - 1} are allowed.")
        self.shuffle, self.buffer_size, self.seed, self.drop_last = shuffle, buffer_size, seed, drop_last
        self.levels, self.crop_frames = levels, crop_frames
        # a kind is made a pattern where the rows' levels are known
        self.pattern = TokenPattern(pattern, 1, self.info.codebook_size).kind if isinstance(pattern, str) else pattern
        self._counts = _row_counts(Path(path), self.shards)
        self._num_rows = sum(self._counts)
        if not len(self):
            raise ValueError(f"{path} has {self._num_rows} rows for {self.world_size} ranks; leave out drop_last, or take fewer ranks.")
        # shared: workers that live on see what set_epoch sets
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._resumed: tuple[int, int] | None = None
        self._given = {"epoch": 0, "rows": 0}

    def __len__(self) -> int:
        """Returns the rows of this rank, the same number for all ranks."""
        return self._num_rows // self.world_size if self.drop_last else -(-self._num_rows // self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next iteration, for every worker, as DistributedSampler's does.

        Without it each iteration in this process takes the next order, and one by workers the same.
        """
        self._epoch.fill_(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Returns where the iteration is, as torchdata's StatefulDataLoader asks for it after each batch."""
        return {**self._given, "order": self._order_id()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next iteration go on behind the rows that were given. Reads none of them again but those of one buffer.

        Raises ValueError for the state of another order: other rows, ranks, workers, seed or buffer.
        """
        stored, own = dict(state["order"]), self._order_id()
        if changed := [f"{name} was {stored.get(name)}, is {own[name]}" for name in own if stored.get(name) != own[name]]:
            raise ValueError(f"the state is of another order of rows: {'; '.join(changed)}.")
        self._resumed = int(state["epoch"]), int(state["rows"])
        self._given = {"epoch": self._resumed[0], "rows": self._resumed[1]}

    def _order_id(self) -> dict[str, Any]:
        worker = get_worker_info()
        names = ("shuffle", "buffer_size", "seed", "rank", "world_size", "drop_last")
        workers = {"worker": 0 if worker is None else worker.id, "workers": 1 if worker is None else worker.num_workers}
        return {"rows": self._num_rows, **{name: getattr(self, name) for name in names}, **workers}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        epoch, given = (int(self._epoch), 0) if self._resumed is None else self._resumed
        self._resumed = None
        if worker is None:
            self._epoch.fill_(epoch + 1)
        segments = self._share(epoch)
        if worker is not None:
            # in every rank the same numbers, so that all have the same batches
            first, end = (len(self) * part // worker.num_workers for part in (worker.id, worker.id + 1))
            segments = rows_between(segments, first, end)
        self._given = {"epoch": epoch, "rows": given}
        return self._rows(segments, epoch, given, self._given)

    def _share(self, epoch: int) -> list[Segment]:
        """Returns what this rank has of an epoch."""
        if not self.shuffle and self.world_size == 1:
            return [Segment(shard, 0, count) for shard, count in enumerate(self._counts) if count]
        most = min(self.buffer_size // 8, self._num_rows // (self.world_size * LEAST_BLOCKS))
        places = blocks(self._counts, max(1, most))
        if self.shuffle:
            # every rank draws the same order, and takes its own part of it
            order = [places[index] for index in np.random.default_rng([self.seed, epoch]).permutation(len(places))]
        else:
            order = dealt(places, self.world_size)
        return rows_between(order, self.rank * len(self), (self.rank + 1) * len(self), self._num_rows)

    def _rows(self, segments: list[Segment], epoch: int, skip: int, given: dict[str, int]) -> Iterator[dict[str, Any]]:
        """Yields the rows of the segments but the first `skip`.  given: what counts them."""
        for window, part in enumerate(windows(segments, self.buffer_size) if self.shuffle else [[each] for each in segments]):
            count = sum(segment.rows for segment in part)
            if skip >= count:
                skip -= count
                continue
            rows: Iterator[dict[str, Any]] = (row for segment in part for row in self._read(segment, epoch))
            if self.shuffle:
                held = list(rows)
                # of its first row: ranks and workers mix alike, whatever the window is to them
                random = np.random.default_rng([self.seed, epoch, window, part[0].shard, part[0].start])
                rows = iter([held[index] for index in random.permutation(len(held))])
            for row in rows:
                if skip:
                    skip -= 1
                    continue
                given["rows"] += 1
                yield row

    def _read(self, segment: Segment, epoch: int) -> Iterator[dict[str, Any]]:
        found = segment.start
        for row in read_shard(Path(self.shards[segment.shard]), segment.start, segment.stop):
            yield self._item(row, [self.seed, epoch, segment.shard, found])
            found += 1
        if found < segment.stop:
            raise FormatError(f"{self.shards[segment.shard]} has {found} rows and had {self._counts[segment.shard]}.")

    def _item(self, row: ClipRow, random: list[int]) -> dict[str, Any]:
        item = {name: value for name, value in vars(row).items() if name not in ("codes", "scales", "columns", "embeddings")}
        codes, scales, embeddings = row.codes[:, : self.levels], row.scales, row.embeddings
        if self.levels is not None and self.levels > row.codes.shape[1]:
            raise ValueError(f"levels is {self.levels}; {row.id} has {row.codes.shape[1]}.")
        if self.crop_frames is not None:
            start = 0
            if self.shuffle and row.frames > self.crop_frames:
                start = int(np.random.default_rng(random).integers(row.frames - self.crop_frames + 1))
            crop = slice(start, start + self.crop_frames)
            codes = row.frame_codes()[: self.levels, crop][None]
            whole = row.frame_embeddings()
            embeddings = None if whole is None else whole[:, crop][None]
            item |= {"crop_start": start, "last_frame_pad_length": 0}
            scales = None
        item |= {**row.columns, "audio_codes": torch.from_numpy(codes.astype(np.int64))}
        if scales is not None:
            item["audio_scales"] = torch.from_numpy(np.array(scales))
        if embeddings is not None:
            item["embeddings"] = torch.from_numpy(np.array(embeddings))
        if self.pattern is not None:
            item["tokens"] = _pattern_of(self.pattern, codes.shape[1], self.info.codebook_size).encode(_frames(item))
        return item

    @property
    def collate(self) -> Any:
        """The `collate` of this dataset's rows: pads codes with the number of entries, tokens with the pattern's `pad_token`."""
        return partial(_collate_of, self.info.codebook_size, self.pattern)


def collate(rows: Sequence[Mapping[str, Any]], pad: int = 0, token_pad: int = 0) -> dict[str, Any]:
    """Makes a batch of rows of CodesDataset, for `DataLoader(dataset, batch_size=..., collate_fn=collate)`.

    Returns `audio_codes` int64 [B, K, F], the chunks of a row end to end; `lengths` int64 [B] in frames; `mask` bool [B, F], True for
    frames of the row. With embeddings: float16 [B, D, F], 0 behind the end. With tokens: `tokens` [B, steps] or [B, K, steps],
    `token_lengths` and `token_mask`. All other fields are lists.
    pad: the code behind the end of a row.  token_pad: the token there.  Raises ValueError for rows of unequal numbers of levels.
    """
    batch: dict[str, Any] = {name: [row.get(name) for row in rows] for row in rows[:1] for name in row}
    batch |= dict(zip(("audio_codes", "lengths", "mask"), _padded([_frames(row) for row in rows], pad), strict=True))
    if "embeddings" in batch:
        batch["embeddings"], _, _ = _padded([_frames(row, "embeddings") for row in rows], 0)
    if "tokens" in batch:
        tokens = _padded([row["tokens"] for row in rows], token_pad)
        batch |= dict(zip(("tokens", "token_lengths", "token_mask"), tokens, strict=True))
    return batch


def _collate_of(codebook_size: int, pattern: TokenPattern | Kind | None, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Runs `collate` with the pads of a dataset; a function of the module, so that workers can be sent it."""
    if pattern is None:
        return collate(rows, codebook_size)
    return collate(rows, codebook_size, _pattern_of(pattern, rows[0]["audio_codes"].shape[1], codebook_size).pad_token)


def _pattern_of(pattern: TokenPattern | Kind, levels: int, codebook_size: int) -> TokenPattern:
    """Returns the pattern, or that of a kind for rows of so many levels."""
    return TokenPattern(pattern, levels, codebook_size) if isinstance(pattern, str) else pattern


def _frames(row: Mapping[str, Any], name: str = "audio_codes") -> Tensor:
    """Returns a row's codes, or embeddings, with its chunks end to end, [K or D, F]."""
    chunks: Tensor = row[name]
    return chunks.transpose(0, 1).flatten(1)[:, : chunks.shape[0] * chunks.shape[2] - row["last_frame_pad_length"]]


def _padded(rows: Sequence[Tensor], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the rows [..., T_b] as one tensor [B, ..., T], their lengths [B], and the mask [B, T]."""
    if len({row.shape[:-1] for row in rows}) > 1:
        raise ValueError(f"the rows have {sorted({row.shape[0] for row in rows})} levels; choose some of them with levels=.")
    lengths = torch.tensor([row.shape[-1] for row in rows])
    most = int(lengths.max())
    out = rows[0].new_full((len(rows), *rows[0].shape[:-1], most), pad)
    for index, row in enumerate(rows):
        out[index, ..., : row.shape[-1]] = row
    return out, lengths, torch.arange(most) < lengths[:, None]


def _row_counts(folder: Path, shards: Sequence[str]) -> list[int]:
    """Returns the rows of each shard: by the ledger, which knows at once, or else by the shard."""
    known = {record.file: record.clips for record in Ledger(folder).records()}
    return [known[name] if (name := os.path.basename(shard)) in known else count_rows(Path(shard)) for shard in shards]
