"""The reader of clips that a run's options ask for."""

from __future__ import annotations

from typing import Any

from encodec_fast.corpus.reader import Reader
from encodec_fast.dataset.options import TokenizeOptions


def reader_for(options: TokenizeOptions, sampling_rate: int, channels: int, workers: int, **amounts: Any) -> Reader:
    """Returns a reader at a model's rate (Hz) and channels, with the limits and names of the options.

    workers: processes that read.  amounts: how much is read at once or ahead, as Reader takes them.
    """
    return Reader(
        sampling_rate,
        channels,
        workers=workers,
        audio_column=options.audio_column,
        clip_timeout=options.clip_timeout,
        max_clip_bytes=options.max_clip_bytes,
        protocols=options.protocols,
        **amounts,
    )
