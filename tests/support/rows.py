"""Rows of codes, and shards of them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from encodec_fast.formats import FORMATS, ClipRow, DatasetInfo, format_module
from encodec_fast.formats.packing import code_bits

INFO = DatasetInfo("model", "ab" * 32, 1024, "torch", {"torch": "2"}, {"bandwidth": 6.0, "sources": ["é"]})
# Name of a format, and whether its codes are packed, as earlier versions could have them.
KINDS = [*((format, False) for format in FORMATS), ("parquet", True)]


def row(index: int, shape=(1, 8, 75), scales=False, size=1024) -> ClipRow:
    """A clip of random codes, the same for each index."""
    codes = np.random.default_rng(index).integers(0, size, shape)
    return ClipRow(
        id=f"ü/{index}.wav",
        path=f"/data/ü/{index}.wav",
        codes=codes,
        scales=np.linspace(0.1, 1.0, shape[0], dtype=np.float32) if scales else None,
        num_samples=24_000 + index,
        last_frame_pad_length=3 if shape[0] > 1 else 0,
        sampling_rate=24_000,
        original_rate=44_100,
        bandwidth=6.0,
    )


def write(folder, rows, format="parquet", packed=False, name="part-00000000", info=INFO):
    """The path of a finished shard of the rows."""
    shard = format_module(format).Shard(folder, name, info)
    for each in rows:
        shard.write(each)
    path = shard.finish()
    if packed:
        pack(path, info.codebook_size)
    return path


def pack(path, codebook_size: int) -> None:
    """Stores a Parquet shard's codes packed, as earlier versions could."""
    table = pq.read_table(path)
    codes = [pack_codes(np.array(each), code_bits(codebook_size)) for each in table["codes"].to_pylist()]
    field = pa.field("codes", pa.binary(), nullable=False)
    pq.write_table(table.set_column(table.schema.get_field_index("codes"), field, [codes]), path, compression="zstd")


def pack_codes(codes: np.ndarray, bits: int) -> bytes:
    """The codes in C order, `bits` bits each, least significant bit first, the last byte filled up with zeros."""
    planes = (codes.reshape(-1, 1).astype(np.uint32) >> np.arange(bits, dtype=np.uint32)) & 1
    return np.packbits(planes.astype(np.uint8), bitorder="little").tobytes()
