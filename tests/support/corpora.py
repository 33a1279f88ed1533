"""Small folders of audio, a small model, and runs over them, for the tests of what tokenizes data sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from encodec_fast.audio import read_audio
from encodec_fast.corpus.reader import Reader
from encodec_fast.corpus.sources import find_tasks
from encodec_fast.dataset.encoding import dataset_info
from encodec_fast.dataset.ledger import Ledger
from encodec_fast.dataset.options import TokenizeOptions
from encodec_fast.dataset.run import Run, Summary, identity, plan
from encodec_fast.formats import ClipRow
from encodec_fast.formats.folder import load_codes
from encodec_fast.plan.weights import weights_sha256
from support.models import audio_like, pair, small_config

RATE = 2400
SMALL = {"sampling_rate": RATE, "codebook_size": 16, "target_bandwidths": [1.2, 2.4, 4.8]}
CHUNKED = {
    "audio_channels": 2,
    "normalize": True,
    "chunk_length_s": 1.0,
    "overlap": 0.01,
    "norm_type": "time_group_norm",
    "use_causal_conv": False,
}
BANDWIDTH = 2.4
# Samples of the good clips that `put_mixed` writes.
LENGTHS = [2400, 1, 7001, 2400, 311, 12_000, 2400, 5000]
# Samples of the clips that `put_three` writes.
THREE = {"a": 2400, "b": 4801, "c": 333}


def small_model(**changes: Any) -> Any:
    """An encodec_fast.EncodecModel with fitted codebooks that takes milliseconds."""
    return pair(small_config(**{**SMALL, **changes}))[1]


def put_clip(path: Path, samples: int, seed: int = 0, rate: int = RATE, **options: Any) -> Path:
    """A file of tones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(str(path), audio_like(1, 1, samples, seed)[0, 0].numpy(), rate, **{"subtype": "FLOAT", **options})
    return path


def put_corpus(folder: Path, lengths: list[int]) -> Path:
    """A folder with a clip of each length."""
    for index, samples in enumerate(lengths):
        put_clip(folder / f"{index:04d}.wav", samples, index)
    return folder


def put_mixed(folder: Path) -> Path:
    """A folder of clips of many lengths, with broken ones between."""
    put_corpus(folder, LENGTHS)
    (folder / "4b.wav").write_bytes(b"")
    (folder / "6b.wav").write_bytes(b"no audio")
    return folder


def put_three(folder: Path) -> Path:
    """A folder with three clips, each of its own tones: a.wav, b.wav, c.wav."""
    for seed, (name, samples) in enumerate(THREE.items()):
        put_clip(folder / f"{name}.wav", samples, seed)
    return folder


def put_table(path: Path, folder: Path, names: Any = tuple(THREE), column: str = "audio", group_rows: int = 2, **columns: Any) -> Path:
    """A table of the clips of the folder in row groups, and columns beside them."""
    cells = [{"bytes": (folder / f"{name}.wav").read_bytes(), "path": f"{name}.wav"} for name in names]
    table = pa.table({column: cells, **columns})
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=group_rows)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=group_rows)
    return path


def samples_of(folder: Path, name: str) -> np.ndarray:
    """[1, T] float32 of one of the three."""
    return read_audio(folder / f"{name}.wav", RATE, 1)[0]


def by_processes(**options: Any) -> Reader:
    """A reader with two reading processes."""
    return Reader(RATE, 1, workers=2, **options)


def tokenize(model: Any, sources: list[Any], out: Path, *, index: int = 0, count: int = 1, progress: Any = None, **changes: Any) -> Summary:
    """What `encodec-fast tokenize` does, in this process."""
    planned = {name: changes.pop(name) for name in ("overwrite", "retry_failed", "limit") if name in changes}
    options = TokenizeOptions(**{"bandwidth": BANDWIDTH, "workers": 0, **changes})
    info = dataset_info(model, "small", weights_sha256(model), {}, options.embeddings)
    ledger = Ledger(out, index, count)
    names = [str(source) for source in sources]
    plan(ledger, identity(info, model, options, names), find_tasks(names, columns=options.columns), options, **planned)
    return Run(model, replace(info, columns=ledger.columns), ledger, options).run(progress)


def content(out: Path) -> dict[str, tuple[bytes, tuple[int, ...], bytes, int, int]]:
    """Everything about every row of a data set, by id; fails where an id occurs twice."""
    rows: dict[str, tuple[bytes, tuple[int, ...], bytes, int, int]] = {}
    for row in load_codes(out):
        assert row.id not in rows, f"{row.id} is there twice"
        rows[row.id] = _content(row)
    return rows


def _content(row: ClipRow) -> tuple[bytes, tuple[int, ...], bytes, int, int]:
    scales, embeddings = (b"" if part is None else part.tobytes() for part in (row.scales, row.embeddings))
    return row.codes.astype(np.int64).tobytes() + embeddings, row.codes.shape, scales, row.num_samples, row.last_frame_pad_length
