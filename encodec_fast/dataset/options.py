"""How to tokenize, as data that every process can be sent. No torch, so that those that only read or write start in a moment."""

from __future__ import annotations

from dataclasses import dataclass

# Audio per call of the model, seconds: at the end of each call most of its threads have nothing left to do
BATCH_SECONDS = 120.0
# Blocks of a long clip, seconds
BLOCK_SECONDS = 30.0
# What one clip may take, as corpus.worker and audio have it, which load numpy
CLIP_TIMEOUT = 600.0
MAX_CLIP_BYTES = 64 << 30


@dataclass(frozen=True)
class TokenizeOptions:
    """How to tokenize; plain values, so that it can be sent to other processes.

    bandwidth: kbps. format: of formats.FORMATS. packed: codes in as few bits as they need. batch_seconds: audio per call of the
    model. long_clip_seconds: longer clips run in pieces. rows_per_shard, shard_seconds: a shard ends after that many clips, or that
    much time. workers: reading processes. prefetch_seconds: audio read ahead. audio_column: of tables. verify_share: of the clips,
    to be compared with transformers. check: read all that counts as done, and do again what is not sound. clip_timeout: seconds that
    reading a clip, or a block of a long one, may take. max_clip_bytes: of its file. protocols: of URLs that are opened besides the
    usual ones.
    """

    bandwidth: float
    format: str = "parquet"
    packed: bool = False
    batch_seconds: float = BATCH_SECONDS
    long_clip_seconds: float = 300.0
    rows_per_shard: int = 10_000
    shard_seconds: float = 600.0
    workers: int = 2
    prefetch_seconds: float = 240.0
    audio_column: str = "audio"
    verify_share: float = 0.0
    check: bool = False
    clip_timeout: float = CLIP_TIMEOUT
    max_clip_bytes: int = MAX_CLIP_BYTES
    protocols: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("batch_seconds", "long_clip_seconds", "prefetch_seconds", "rows_per_shard", "clip_timeout", "max_clip_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name):g}; more than 0.")
