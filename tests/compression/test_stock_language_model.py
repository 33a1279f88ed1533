"""Version 0 of `.ecdc` behind a language model, held against `encodec` 0.1.1 in both directions, in one process."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from encodec_fast.compression import stock_language_model
from encodec_fast.compression.segments import CompressedFileError, Segment
from encodec_fast.compression.stock_language_model import NotReproducible, StockLanguageModelCoder
from encodec_fast.compression.version0 import VERSION0_MODELS, Version0File, Version0Header, frames_of, read_version0, write_version0
from encodec_fast.language_model.model import LanguageModelConfig
from support.language_models import drawn_codes, drawn_language_model
from support.original_package import original_module

# Version 0 has 1,024 entries; windows that are over within a segment
CONFIG = LanguageModelConfig(codebooks=3, codebook_size=1024, dim=32, heads=4, layers=2, hidden=64, past_context=12)


@pytest.fixture(scope="module")
def model():
    return drawn_language_model(CONFIG)


@pytest.fixture(scope="module")
def coder(model):
    return StockLanguageModelCoder(model)


def clip_of(model, name, samples, levels=2):
    """A header and segments of codes that the model draws."""
    header = Version0Header(name, samples, levels, True)
    segments = []
    for index in range(header.segments):
        start, length = header.segment_samples(index)
        scales = np.array([0.5 + index], np.float32) if header.geometry.normalize else None
        segments.append(Segment(drawn_codes(model, frames_of(length), levels, index), scales, start, length))
    return header, segments


@pytest.fixture(scope="module")
def chunks(model):
    """A clip of two chunks."""
    return clip_of(model, "encodec_48khz", 47_520 + 4_000)


class StandIn:
    """What `encodec.compress` asks of a model: codes and a language model of our weights; it keeps the codes that are to be decoded."""

    bits_per_codebook = 10

    def __init__(self, name, language_model, frames=()):
        known, config = VERSION0_MODELS[name], language_model.config
        self.name, self.sample_rate, self.normalize = name, known.sampling_rate, known.normalize
        self.frame_rate = known.sampling_rate // 320
        self.segment_length, self.segment_stride = known.chunk_length, known.chunk_stride
        self.frames = frames
        from encodec.model import LMModel

        self._lm = LMModel(
            config.codebooks, config.codebook_size, config.dim, num_heads=config.heads, num_layers=config.layers,
            hidden_scale=config.hidden / config.dim, past_context=config.past_context,
        ).eval()  # fmt: skip
        self._lm.load_state_dict(language_model.state_dict())

    def to(self, device):
        return self

    def get_lm_model(self):
        return self._lm

    def encode(self, audio):
        return self.frames

    def decode(self, frames):
        self.frames = frames
        return torch.zeros(1, 1, 1)


@pytest.mark.parametrize(("name", "samples"), [("encodec_24khz", 12_345), ("encodec_24khz", 1), ("encodec_48khz", 47_520 + 4_000)])
def test_files_are_those_of_the_original_and_each_reads_the_others(monkeypatch, model, coder, name, samples):
    compress = original_module(monkeypatch, "compress")
    header, segments = clip_of(model, name, samples, levels=3 if samples == 12_345 else 2)
    data = write_version0(header, segments, coder)
    frames = [(torch.from_numpy(each.codes)[None], None if each.scales is None else torch.from_numpy(each.scales)) for each in segments]
    assert data == compress.compress(StandIn(name, model, frames), torch.zeros(1, samples), use_lm=True)
    assert len(data) < 0.8 * sum(each.codes.size for each in segments) * 10 / 8 + 100
    reader = StandIn(name, model)
    monkeypatch.setitem(compress.MODELS, name, lambda: reader)
    compress.decompress(data)
    ours = read_version0(data, coder)[1]
    for found, (codes, scale), truth in zip(ours, reader.frames, segments, strict=True):
        assert np.array_equal(found.codes, truth.codes) and torch.equal(codes[0], torch.from_numpy(truth.codes))
        assert (found.start, found.samples) == (truth.start, truth.samples)
        assert found.scales is None if scale is None else found.scales[0] == truth.scales[0] == scale.item()


def test_what_torch_does_not_give_twice_is_not_written(monkeypatch, model, coder):
    header, segments = clip_of(model, "encodec_24khz", 3_000)
    ends, calls = stock_language_model._ends, []

    def as_of_another_thread_count(probabilities):
        calls.append(None)
        found = ends(probabilities)
        # behind all of encoding: each code gives a little of its part to the one before
        if len(calls) > segments[0].codes.shape[1]:
            found = [[*(end + (1 << 10) for end in each[:-1]), each[-1]] for each in found]
        return found

    monkeypatch.setattr(stock_language_model, "_ends", as_of_another_thread_count)
    with pytest.raises(NotReproducible, match="Version 1 has no such fault"):
        write_version0(header, segments, coder)


def test_frames_anywhere_are_read_in_any_order(coder, chunks):
    header, segments = chunks
    stream = io.BytesIO(b"before" + write_version0(header, segments, coder))
    stream.seek(6)
    file = Version0File(stream, coder)
    for index, first, stop in ((1, 3, 9), (1, 0, 2), (0, 100, 150), (1, 12, 13)):
        part = file.frames(index, first, stop)
        assert np.array_equal(part.codes, segments[index].codes[:, first:stop]) and part.scales == segments[index].scales
        assert part.start == segments[index].start + 320 * first
    assert part.samples == 4_000 - 12 * 320


def test_a_stream_that_cannot_seek_is_read_in_order(coder, chunks):
    class Pipe(io.BytesIO):
        def seekable(self):
            return False

    header, segments = chunks
    file = Version0File(Pipe(write_version0(header, segments, coder)), coder)
    assert all(np.array_equal(found.codes, truth.codes) for found, truth in zip(file, segments, strict=True))
    with pytest.raises(CompressedFileError, match="can't seek"):
        file.segment(0)


def test_another_language_model_and_damage_give_errors_or_other_codes(model, coder):
    header, segments = clip_of(model, "encodec_24khz", 3_000)
    data = write_version0(header, segments, coder)
    begin, errors = len(header.to_bytes()), 0
    for place in range(begin, len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        try:
            (found,) = read_version0(bytes(damaged), coder)[1]
        except CompressedFileError as error:
            assert "written with another language model, machine, thread count or torch" in str(error)
            errors += 1
            continue
        # bits behind the last code's are filled up with zeros, which nothing reads
        assert 0 <= found.codes.min() <= found.codes.max() < 1024
        assert place == len(data) - 1 or not np.array_equal(found.codes, segments[0].codes)
    assert errors
    for length in range(begin, len(data), 5):
        with pytest.raises(CompressedFileError, match="cut short"):
            read_version0(data[:length], coder)
    with pytest.raises(CompressedFileError, match="goes on behind its last code"):
        read_version0(data + b"\0", coder)
    try:
        (found,) = read_version0(data, StockLanguageModelCoder(drawn_language_model(CONFIG, seed=1)))[1]
    except CompressedFileError:
        return
    assert not np.array_equal(found.codes, segments[0].codes)


def test_a_length_that_is_announced_and_not_there_takes_no_memory(coder):
    header = Version0Header("encodec_24khz", 1 << 40, 2, True)
    with pytest.raises(CompressedFileError, match="cut short"):
        read_version0(header.to_bytes() + bytes(20), coder)


def test_what_the_language_model_has_not_is_named(model, coder):
    header, segments = clip_of(model, "encodec_24khz", 3_000)
    data = write_version0(header, segments, coder)
    with pytest.raises(CompressedFileError, match="give that as --lm"):
        read_version0(data)
    with pytest.raises(CompressedFileError, match="have 2 levels, the language model 1"):
        read_version0(data, StockLanguageModelCoder(drawn_language_model(replace(CONFIG, codebooks=1))))
    with pytest.raises(CompressedFileError, match=r"outside 0 \.\.\. 1023"):
        coder.encode(np.full((2, 3), 1024))
    with pytest.raises(CompressedFileError, match="if and only if"):
        write_version0(header, segments)
