"""Compressed files whole: audio to bytes and back, and the same from stream to stream."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
from torch import Tensor

from encodec_fast.audio import audio_blocks, open_audio, resample
from encodec_fast.codec.encoding import encoded_segments, segment_samples
from encodec_fast.codec.opened import SEGMENTS_AT_ONCE, OpenedFile, Part, lost_text, version0_name
from encodec_fast.compression.choice import NOTHING, AtHand, bundled_coder, bundled_tables, choose_coder
from encodec_fast.compression.coders import Coder
from encodec_fast.compression.container import ContainerWriter, Lost
from encodec_fast.compression.header import MOST_RATE, Header
from encodec_fast.compression.segments import CompressedFileError, Segment
from encodec_fast.compression.stock_language_model import StockLanguageModelCoder
from encodec_fast.compression.tables import Tables
from encodec_fast.compression.version0 import Version0Header, write_version0
from encodec_fast.demo import DEMO_MODELS
from encodec_fast.language_model.model import LanguageModel
from encodec_fast.model import EncodecModel, known_bandwidth
from encodec_fast.plan.geometry import hop_length
from encodec_fast.plan.weights import weights_sha256
from encodec_fast.pretrained import load_model
from encodec_fast.sample_formats import sample_scale, scaled
from encodec_fast.serving.clips import levels_of

SEGMENT_SECONDS = 10.0
# Of a file as it is read
BLOCK_SECONDS = 30.0


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
    coder: raw, static, adaptive, lm; "auto" is the best that is at hand, judged by the first segments.
    segment: seconds that are coded by themselves: what a damaged byte costs, and what a seek goes by.
    tables: of `fit_tables`; None: for `demo` the bundled ones.
    lm: a language model of `load_lm`, or a coder by one; None: for `demo` at up to 6 kbps the bundled one.
    version: 1, or 0 for a file that `encodec` 0.1.1 reads, with no checks, and raw bits unless coder is "lm".
    With "lm", a file of version 0 can be read on this machine, with this thread count and torch; with anything else it may not.
    Raises ValueError for other arguments, AudioError for a file that is no audio.
    Raises NotReproducible where a file of version 0 with "lm" could not be read right after writing.
    """
    if sampling_rate is not None and not (sampling_rate == int(sampling_rate) and 1 <= sampling_rate <= MOST_RATE):
        raise ValueError(f"sampling_rate is {sampling_rate}; whole Hz of 1 ... {MOST_RATE} are needed, or None for the model's.")
    loaded = load_model(model) if isinstance(model, str) else model
    with ExitStack() as stack:
        if isinstance(audio, str | os.PathLike):
            file = stack.enter_context(open_audio(audio))
            blocks: Iterable[np.ndarray] = audio_blocks(file, loaded.config.sampling_rate, loaded.config.audio_channels, BLOCK_SECONDS)
            original_rate = file.info.sampling_rate
        else:
            original_rate = loaded.config.sampling_rate if sampling_rate is None else int(sampling_rate)
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
    start: float = 0.0,
    duration: float | None = None,
    lost: list[Lost] | None = None,
) -> tuple[np.ndarray, int]:
    """Returns the audio of a compressed file, float32 [C, T], and its sampling rate in Hz.

    data: the file's bytes, or its path.
    model: that made it, or what `load_model` takes; None: the one that the file names.
    tables, lm: that it was coded with, where it was.
    start, duration: of the part wanted, in seconds. Only what it needs is read and decoded, from a little before it on.
    lost: gets what damage cost, which is silence in the audio; None: damage raises.
    Raises CompressedFileError for a file that can't be read, for damage, and for another model than made it.
    Raises it too for a part that the clip ends before.
    """
    part = Part(start, duration)
    with ExitStack() as stack:
        file = io.BytesIO(data) if isinstance(data, bytes) else stack.enter_context(Path(data).open("rb"))
        opened = OpenedFile(file, AtHand(tables, lm))
        name = opened.model_name if model is None else model
        if name == "":
            raise CompressedFileError("it does not say which model made it; give that as model.")
        loaded = load_model(name) if isinstance(name, str) else name
        found: list[Lost] = []
        blocks = []
        for block in opened.decoded(loaded, found, part=part):
            blocks.append(block)
            # not the silence of years that a forged header may announce
            if lost is None and found:
                break
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

    def headers(self, model: EncodecModel) -> list[tuple[Header, Coder]]:
        """Returns the headers that a file may have, each with its coder; the shortest one's is taken.

        There are two where "auto" has the bundled language model, which knows speech: `adaptive` is better at some music and noises.
        They are of a source of unknown length at the model's rate.
        """
        config, weights, tables = model.config, weights_sha256(model), self.at_hand.tables
        levels = levels_of(model.quantizer, known_bandwidth(config, self.bandwidth))
        given = self.at_hand.lm_coder if self.coder in ("auto", "lm") else None
        # a language model and tables that are given are meant to be used
        bundled = given is None and (self.coder == "lm" or (self.coder == "auto" and tables is None))
        lm = bundled_coder(weights, levels) if bundled else given
        tables = bundled_tables(weights) if tables is None else tables
        names = ["lm", "adaptive"] if self.coder == "auto" and bundled and lm is not None else [self.coder]
        coders = [choose_coder(name, config.codebook_size, tables, lm) for name in names]
        header = Header(
            model=_public_name(model),
            weights_sha256=weights,
            sampling_rate=config.sampling_rate,
            channels=config.audio_channels,
            hop_length=hop_length(config),
            codebook_size=config.codebook_size,
            levels=levels,
            # as float32 holds it
            bandwidth=float(np.float32(self.bandwidth)),
            chunk_length=config.chunk_length,
            chunk_stride=config.chunk_stride,
            normalize=bool(config.normalize),
            segment_samples=segment_samples(config, self.segment),
            original_rate=config.sampling_rate,
            num_samples=None,
            coder=coders[0].name,
            coder_fingerprint=coders[0].fingerprint,
        )
        return [(replace(header, coder=coder.name, coder_fingerprint=coder.fingerprint), coder) for coder in coders]


def compress_stream(
    blocks: Iterable[np.ndarray],
    out: IO[bytes],
    model: EncodecModel,
    settings: Settings,
    original_rate: int,
    headers: Sequence[tuple[Header, Coder]] | None = None,
) -> ContainerWriter:
    """Writes the compressed file of audio that comes in blocks; returns the writer, which knows sizes and the header.

    blocks: float32 [C, T_i], at the model's rate and channels.
    out: the stream; each segment is written when its audio has come, with `settings.segments_at_once`.
    headers: of `settings.headers`, made once for many files: that reads all of the model's weights.
    """
    headers = settings.headers(model) if headers is None else headers
    headers = [(replace(header, original_rate=original_rate), coder) for header, coder in headers]
    segments = encoded_segments(model, blocks, settings.bandwidth, headers[0][0].segment_samples)
    batch = list(itertools.islice(segments, settings.segments_at_once))
    writer = ContainerWriter(out, *_shortest(headers, batch))
    while batch:
        writer.write(batch)
        out.flush()
        batch = list(itertools.islice(segments, settings.segments_at_once))
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


def _shortest(headers: Sequence[tuple[Header, Coder]], segments: Sequence[Segment]) -> tuple[Header, Coder]:
    """Returns the header whose coder needs the fewest bytes for a file's first segments; of equal ones the first."""
    if len(headers) == 1:
        return headers[0]
    codes = [segment.codes for segment in segments]
    return min(headers, key=lambda each: sum(map(len, each[1].encode(codes))))


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
