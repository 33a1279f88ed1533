"""How to tokenize, as data that every process can be sent. No torch, so that those that only read or write start in a moment."""

from __future__ import annotations

from dataclasses import dataclass

# kbps, which both published models have
BANDWIDTH = 6.0
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

    What is stored. A run goes on with the same values only:
    bandwidth: kbps, one of the model's.
    format: of formats.FORMATS.
    batch_seconds: audio per call of the model.
    long_clip_seconds: longer clips are encoded in pieces, so that memory is bounded.
    audio_column: of tables, the column that holds the audio.
    columns: of manifests and tables, that are stored with the codes; None: all that hold text, numbers or booleans.
    embeddings: stores what the encoder gave, from before the quantizer, too: float16, 19 kB per second at 24 kHz.

    How it is run:
    rows_per_shard, shard_seconds: a shard has that many clips at most, and ends after that much time.
    workers: processes that read and resample ahead; 0: this process reads.
    prefetch_seconds: audio that is read ahead.
    verify_share: of the clips, 0 to 1, to be compared with transformers.
    check: reads all that counts as done, and does again what is damaged.
    clip_timeout: seconds that reading a clip, or 30 s of a long one, may take.
    max_clip_bytes: of a clip's file; a larger one is a failure.
    protocols: of URLs that are opened besides the usual ones. Only for sources that you trust.

    Raises ValueError for a size or time that is not above 0, or a shard_seconds below it; TypeError for one text in the place of names.
    """

    bandwidth: float = BANDWIDTH
    format: str = "parquet"
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
    columns: tuple[str, ...] | None = None
    embeddings: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_seconds", "long_clip_seconds", "prefetch_seconds", "rows_per_shard", "clip_timeout", "max_clip_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name):g}; more than 0.")
        if not self.shard_seconds >= 0:
            raise ValueError(f"shard_seconds is {self.shard_seconds:g}; 0 or more.")
        for name in ("columns", "protocols"):
            if isinstance(getattr(self, name), str):
                raise TypeError(f"{name} is the text {getattr(self, name)!r}; a tuple of names is needed.")


@dataclass(frozen=True)
class RayCluster:
    """A Ray cluster to work on.

    address: as `ray.init` takes it; None: the one that RAY_ADDRESS names or that runs on this machine, else one that is started here.
    actors: encoders; 0: as many as fit into the cluster.
    """

    address: str | None = None
    actors: int = 0
