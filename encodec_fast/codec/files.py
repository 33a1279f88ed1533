"""Compressed files whole: audio to bytes and back, and the same from stream to stream."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from torch import Tensor

from encodec_fast.audio import audio_blocks, open_audio, resample
from encodec_fast.codec.decoding import decoded_blocks
from encodec_fast.codec.encoding import encoded_segments, segment_samples
from encodec_fast.compression import version0
from encodec_fast.compression.choice import NOTHING, AtHand, choose_coder, coder_of
from encodec_fast.compression.coders import Coder
from encodec_fast.compression.container import ContainerReader, ContainerWriter, Lost, StoredSegment, decode_segments
from encodec_fast.compression.header import PREFIX, Header
from encodec_fast.compression.segments import CompressedFileError, Segment
from encodec_fast.compression.stock_language_model import StockLanguageModelCoder
from encodec_fast.compression.tables import Tables
from encodec_fast.compression.version0 import Version0File, Version0Header, write_version0
from encodec_fast.demo import DEMO_MODELS
from encodec_fast.language_model.model import LanguageModel
from encodec_fast.model import EncodecModel, known_bandwidth
from encodec_fast.plan.geometry import hop_length
from encodec_fast.plan.weights import weights_sha256
from encodec_fast.pretrained import load_model
from encodec_fast.sample_formats import sample_scale, scaled
from encodec_fast.serving.clips import levels_of

SEGMENT_SECONDS = 10.0
# Segments that a coder gets at once, where nobody waits for one
SEGMENTS_AT_ONCE = 16
# Of a file as it is read
BLOCK_SECONDS = 30.0
# That data sets are stored in, by formats.ecdc
SHARD_VERSION = 2
# Names of version 0, and where the official weights are
OFFICIAL = {"encodec_24khz": "facebook/encodec_24khz", "encodec_48khz": "facebook/encodec_48khz"}


def compress(
    audio: str | os.PathLike[str] | np.ndarray | Tensor,
    model: EncodecModel | str = "facebook/encodec_24khz",
    bandwidth: float = 6.0,
    *,
    sampling_rate: int | None = None,
    coder: str = "auto",
    segment: float = SEGMENT_SECONDS,
    tables: Tables | None = None,
    lm: LanguageModel | Coder | None = None,
    version: int = 1,
) -> bytes:
    """Returns audio as a compressed file: its codes, entropy-coded.

    audio: a file's path or URL; or samples [C, T], or [T] of a mono model, as `encode_batch` takes them.
    model: an EncodecModel, or what `load_model` takes.
    bandwidth: kbps before coding.
    sampling_rate: of samples, in Hz; None: the model's. Of a file it is in the file.
    coder: raw, static, adaptive, lm; "auto" is the best that needs nothing but `tables` and `lm`.
    segment: seconds that are coded by themselves: what a damaged byte costs, and what a seek goes by.
    tables: of `fit_tables`.  lm: a language model of `load_lm`, or a coder by one.
    version: 1, or 0 for a file that `encodec` 0.1.1 reads, with no checks, and raw bits unless coder is "lm".
    With "lm", a file of version 0 can be read on this machine, with this thread count and torch; with anything else it may not.
    Raises ValueError for other arguments, AudioError for a file that is no audio.
    Raises NotReproducible where a file of version 0 with "lm" could not be read right after writing.
    """
    loaded = load_model(model) if isinstance(model, str) else model
    with ExitStack() as stack:
        if isinstance(audio, str | os.PathLike):
            file = stack.enter_context(open_audio(audio))
            blocks: Iterable[np.ndarray] = audio_blocks(file, loaded.config.sampling_rate, loaded.config.audio_channels, BLOCK_SECONDS)
            original_rate = file.info.sampling_rate
        else:
            original_rate = sampling_rate or loaded.config.sampling_rate
            blocks = [_samples(audio, loaded, original_rate)]
        out = io.BytesIO()
        if version == 0:
            stock = version0_coder(coder, AtHand(tables, lm))
            out.write(compress_version0(blocks, loaded, bandwidth, stock))
        elif version == 1:
            settings = Settings(bandwidth, coder, segment, AtHand(tables, lm))
            compress_stream(blocks, out, loaded, settings, original_rate)
        else:
            raise ValueError(f"version is {version!r}; 0 and 1 are allowed.")
        return out.getvalue()


def decompress(
    data: bytes | str | os.PathLike[str],
    model: EncodecModel | str | None = None,
    *,
    tables: Tables | None = None,
    lm: LanguageModel | Coder | None = None,
    lost: list[Lost] | None = None,
) -> tuple[np.ndarray, int]:
    """Returns the audio of a compressed file, float32 [C, T], and its sampling rate in Hz.

    data: the file's bytes, or its path.
    model: that made it, or what `load_model` takes; None: the one that the file names.
    tables, lm: that it was coded with, where it was.
    lost: gets what damage cost, which is silence in the audio; None: damage raises.
    Raises CompressedFileError for a file that can't be read, for damage, and for another model than made it.
    """
    with ExitStack() as stack:
        file = io.BytesIO(data) if isinstance(data, bytes) else stack.enter_context(Path(data).open("rb"))
        opened = OpenedFile(file, AtHand(tables, lm))
        name = opened.model_name if model is None else model
        if name == "":
            raise CompressedFileError("it does not say which model made it; give that as model.")
        loaded = load_model(name) if isinstance(name, str) else name
        found: list[Lost] = []
        blocks = list(opened.decoded(loaded, found))
    if lost is None and found:
        raise CompressedFileError("; ".join(lost_text(each, opened.sampling_rate) for each in found) + ". Give `lost` to go on without.")
    if lost is not None:
        lost += found
    channels = loaded.config.audio_channels
    return np.concatenate([np.zeros((channels, 0), np.float32), *blocks], axis=1), opened.sampling_rate


@dataclass(frozen=True)
class Settings:
    """How a file is compressed; the words are those of `compress`.

    at_hand: its tables and lm.
    segments_at_once: that a coder gets together; 1 where each is to be written as soon as it is there.
    """

    bandwidth: float
    coder: str = "auto"
    segment: float = SEGMENT_SECONDS
    at_hand: AtHand = NOTHING
    segments_at_once: int = SEGMENTS_AT_ONCE

    def __post_init__(self) -> None:
        if not 0 < self.segment < 1e6:
            raise ValueError(f"segment is {self.segment:g}; seconds above 0 are needed.")

    def header(self, model: EncodecModel, original_rate: int) -> tuple[Header, Coder]:
        """Returns the header of a file of unknown length, and its coder.  original_rate: Hz, of the source."""
        config = model.config
        lm = self.at_hand.lm_coder if self.coder in ("auto", "lm") else None
        coder = choose_coder(self.coder, config.codebook_size, self.at_hand.tables, lm)
        header = Header(
            model=_public_name(model),
            weights_sha256=weights_sha256(model),
            sampling_rate=config.sampling_rate,
            channels=config.audio_channels,
            hop_length=hop_length(config),
            codebook_size=config.codebook_size,
            levels=levels_of(model.quantizer, known_bandwidth(config, self.bandwidth)),
            # as float32 holds it
            bandwidth=float(np.float32(self.bandwidth)),
            chunk_length=config.chunk_length,
            chunk_stride=config.chunk_stride,
            normalize=bool(config.normalize),
            segment_samples=segment_samples(config, self.segment),
            original_rate=original_rate,
            num_samples=None,
            coder=coder.name,
            coder_fingerprint=coder.fingerprint,
        )
        return header, coder


def compress_stream(
    blocks: Iterable[np.ndarray], out: IO[bytes], model: EncodecModel, settings: Settings, original_rate: int
) -> ContainerWriter:
    """Writes the compressed file of audio that comes in blocks; returns the writer, which knows sizes and the header.

    blocks: float32 [C, T_i], at the model's rate and channels.
    out: the stream; each segment is written when its audio has come, with `settings.segments_at_once`.
    """
    header, coder = settings.header(model, original_rate)
    writer = ContainerWriter(out, header, coder)
    segments = encoded_segments(model, blocks, settings.bandwidth, header.segment_samples)
    while batch := list(itertools.islice(segments, settings.segments_at_once)):
        writer.write(batch)
        out.flush()
    writer.finish()
    out.flush()
    return writer


def version0_coder(coder: str, at_hand: AtHand) -> StockLanguageModelCoder | None:
    """Returns what codes a file of version 0 by a language model: only where coder is "lm"; else None.

    Raises ValueError for a coder that version 0 lacks, and for what it has no use for.
    """
    if coder not in ("auto", "raw", "lm"):
        raise ValueError(f"coder is {coder!r}; version 0 has raw and lm.")
    if at_hand.tables is not None:
        raise ValueError("tables came; version 0 has none.")
    if coder == "lm":
        if at_hand.stock_coder is None:
            raise ValueError("coder is 'lm', which for version 0 needs a language model of `load_lm`; give one as lm, or take 'raw'.")
        return at_hand.stock_coder
    if at_hand.lm is not None:
        raise ValueError("lm came; version 0 is coded by it only where coder is 'lm', for other machines may not read that.")
    return None


def compress_version0(
    blocks: Iterable[np.ndarray], model: EncodecModel, bandwidth: float, lm: StockLanguageModelCoder | None = None
) -> bytes:
    """Returns the file that `encodec` 0.1.1 reads.  lm: codes by it; such a file holds as `where_it_holds` says.

    Raises ValueError for a model that is neither of its two, and as `write_version0` does.
    """
    name, stride = version0_name(model), model.config.chunk_stride
    segments = list(encoded_segments(model, blocks, known_bandwidth(model.config, bandwidth), stride or _one_segment(model)))
    if stride is None:
        codes = np.concatenate([each.codes for each in segments], axis=1)
        segments = [Segment(codes, None, 0, segments[-1].start + segments[-1].samples)]
    length = segments[-1].start + segments[-1].samples
    return write_version0(Version0Header(name, length, segments[0].codes.shape[0], lm is not None), segments, lm)


def version0_name(model: EncodecModel) -> str:
    """Returns the name that version 0 has for a model.  Raises ValueError where it has none."""
    config = model.config
    for name, known in version0.VERSION0_MODELS.items():
        geometry = (config.sampling_rate, config.audio_channels, bool(config.normalize), config.chunk_length, config.chunk_stride)
        wanted = (known.sampling_rate, known.channels, known.normalize, known.chunk_length, known.chunk_stride)
        if geometry == wanted and (hop_length(config), config.codebook_size) == (version0.HOP_LENGTH, 1 << version0.CODE_BITS):
            return name
    raise ValueError(f"model is of {config.sampling_rate} Hz; version 0 knows {' and '.join(version0.VERSION0_MODELS)} only.")


class OpenedFile:
    """A compressed file of either version that is read as a stream, and what it says of itself.

    file: at the file's beginning; it need not seek.
    at_hand: what its coder may need.
    Raises CompressedFileError for another kind of file, a damaged header, and a coder that lacks what it needs.
    """

    def __init__(self, file: IO[bytes], at_hand: AtHand = NOTHING):
        prefix = _peeked(file)
        again = cast(IO[bytes], _Again(prefix, file))
        self.version = prefix[4] if len(prefix) > 4 else -1
        if self.version == SHARD_VERSION:
            raise CompressedFileError("it is a shard of a data set's codes; `encodec-fast decode` reads it.")
        self._stored: Version0File | ContainerReader
        if self.version == 0:
            self._stored = Version0File(again, at_hand.stock_coder)
            geometry = self._stored.header.geometry
            self.sampling_rate, self.channels = geometry.sampling_rate, geometry.channels
            self.levels, self.num_samples = self._stored.header.levels, self._stored.header.num_samples
            self.coder = "lm" if self._stored.header.language_model else "raw"
            self.model_name = OFFICIAL[self._stored.header.model]
        else:
            self._stored = ContainerReader(again)
            header = self._stored.header
            self.sampling_rate, self.channels, self.levels = header.sampling_rate, header.channels, header.levels
            # 0 where nothing says so yet
            self.num_samples = self._stored.num_samples
            self.coder, self.model_name = header.coder, header.model
            self._coder = coder_of(header, at_hand.tables, at_hand.lm_coder if header.coder == "lm" else None)

    def check_model(self, model: EncodecModel) -> None:
        """Raises CompressedFileError for another model than made the file. Version 0 tells models apart by their rates only."""
        if isinstance(self._stored, Version0File):
            try:
                name = version0_name(model)
            except ValueError as error:
                raise CompressedFileError(str(error)) from error
            if name != self._stored.header.model:
                raise CompressedFileError(f"it was made by {self._stored.header.model}, this model is like {name}; give that model.")
            return
        header, found = self._stored.header, weights_sha256(model)
        if found != header.weights_sha256:
            named = header.model or "a local model"
            raise CompressedFileError(
                f"it was made by {named} with weights {header.weights_sha256[:16]}, this model has weights {found[:16]}; "
                "give the model that made it."
            )
        config = model.config
        told = (header.sampling_rate, header.channels, header.hop_length, header.codebook_size, header.chunk_length, header.chunk_stride)
        own = (config.sampling_rate, config.audio_channels, hop_length(config), config.codebook_size, config.chunk_length)
        if told != (*own, config.chunk_stride) or header.normalize != bool(config.normalize) or header.levels > len(model.quantizer.layers):
            raise CompressedFileError("its header contradicts the model of these weights.")

    def segments(self, at_once: int = SEGMENTS_AT_ONCE) -> Iterator[Segment | Lost]:
        """Yields the codes, and what is lost.  at_once: segments that are decoded together."""
        if isinstance(self._stored, Version0File):
            yield from self._stored
            return
        waiting: list[StoredSegment] = []
        for found in self._stored.segments():
            if isinstance(found, StoredSegment):
                waiting.append(found)
            if waiting and (isinstance(found, Lost) or len(waiting) >= at_once):
                yield from decode_segments(self._stored.header, self._coder, waiting)
                waiting = []
            if isinstance(found, Lost):
                yield found
        yield from decode_segments(self._stored.header, self._coder, waiting)
        self.num_samples = self._stored.num_samples

    def decoded(self, model: EncodecModel, lost: list[Lost], at_once: int = SEGMENTS_AT_ONCE) -> Iterator[np.ndarray]:
        """Yields the audio, float32 [C, T_i], end to end.

        lost: gets what damage cost; it is silence in the audio.
        Raises as `check_model` does.
        """
        self.check_model(model)

        def noted() -> Iterator[Segment | Lost]:
            for each in self.segments(at_once):
                if isinstance(each, Lost):
                    lost.append(each)
                yield each

        yield from decoded_blocks(model, noted())


def lost_text(lost: Lost, sampling_rate: int) -> str:
    """Returns what damage cost, as people read it."""
    start = lost.start / sampling_rate
    if not lost.samples:
        return f"at {start:.2f} s: {lost.reason}"
    return f"{start:.2f} s to {start + lost.samples / sampling_rate:.2f} s are lost: {lost.reason}"


class _Again(io.RawIOBase):
    """A file whose first bytes were read already, and come again."""

    def __init__(self, first: bytes, file: IO[bytes]):
        self._first, self._file = first, file
        if file.seekable():
            file.seek(-len(first), os.SEEK_CUR)
            self._first = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        if self._first:
            part, self._first = self._first[:size], self._first[size:]
            return part
        return self._file.read(size)

    def read1(self, size: int) -> bytes:
        """Returns what has come, `size` bytes at most."""
        if self._first:
            return self.read(size)
        read1: Any = getattr(self._file, "read1", self._file.read)
        return read1(size)


def _peeked(file: IO[bytes]) -> bytes:
    first = b""
    while len(first) < PREFIX.size and (part := file.read(PREFIX.size - len(first))):
        first += part
    return first


def _samples(audio: np.ndarray | Tensor, model: EncodecModel, rate: int) -> np.ndarray:
    """Returns samples as float32 [C, T] at the model's rate."""
    array = audio.detach().cpu().float().numpy() if isinstance(audio, Tensor) and audio.is_floating_point() else np.asarray(audio)
    array = scaled(array.astype(np.float32), sample_scale(array.dtype.name, "audio"))
    array = array[None] if array.ndim == 1 else array
    channels = model.config.audio_channels
    if array.ndim != 2 or array.shape[0] != channels or not array.shape[1]:
        raise ValueError(f"audio has shape {list(np.shape(audio))}, not [{channels}, T] with T > 0.")
    if not np.isfinite(array).all():
        raise ValueError("audio has samples that are NaN or infinite.")
    return resample(array, rate, model.config.sampling_rate)


def _public_name(model: EncodecModel) -> str:
    """Returns a model's name where others know it too: built in, or on the hub; a folder's says nothing elsewhere."""
    name = str(getattr(model, "name_or_path", ""))
    return name if name in DEMO_MODELS or (name.count("/") == 1 and not os.path.exists(name)) else ""


def _one_segment(model: EncodecModel) -> int:
    return segment_samples(model.config, SEGMENT_SECONDS)
