"""Version 0 of `.ecdc`, held against `encodec` 0.1.1 in both directions."""

import io
import json
import random

import numpy as np
import pytest
import torch

from encodec_fast.compression import version0
from encodec_fast.compression.segments import CompressedFileError, Segment
from encodec_fast.compression.version0 import Version0File, Version0Header, frames_of, read_version0, write_version0
from support.original_package import original_module

# Codebooks of each bandwidth
LEVELS = {"encodec_24khz": (2, 4, 8, 16, 32), "encodec_48khz": (2, 4, 8, 16)}


class StandIn:
    """What `encodec.compress` asks of a model: it gives codes instead of encoding, and keeps those that are to be decoded."""

    bits_per_codebook = 10

    def __init__(self, name, frames=()):
        known = version0.VERSION0_MODELS[name]
        self.name, self.sample_rate, self.normalize = name, known.sampling_rate, known.normalize
        self.frame_rate = known.sampling_rate // 320
        self.segment_length, self.segment_stride = known.chunk_length, known.chunk_stride
        self.frames = frames

    def to(self, device):
        return self

    def encode(self, audio):
        return self.frames

    def decode(self, frames):
        self.frames = frames
        return torch.zeros(1, 1, 1)


def drawn(seed, samples=None):
    """A header and segments of random codes, with the lengths of full and of cut chunks."""
    rng = random.Random(seed)
    name = rng.choice(sorted(LEVELS))
    header = Version0Header(
        name, samples or rng.choice([1, 319, 320, 321, 47_520, 47_521, 48_000, 48_001, 95_100, rng.randrange(1, 60_000)]), 2
    )
    header = Version0Header(name, header.num_samples, rng.choice(LEVELS[name]))
    generator, segments = np.random.default_rng(seed), []
    for index in range(header.segments):
        start, length = header.segment_samples(index)
        codes = generator.integers(0, 1024, (header.levels, frames_of(length)))
        scales = generator.random(1, np.float32) if header.geometry.normalize else None
        segments.append(Segment(codes, scales, start, length))
    return header, segments


def as_original(segments):
    tensors = [(torch.from_numpy(each.codes)[None], each.scales) for each in segments]
    return [(codes, None if scales is None else torch.from_numpy(scales)) for codes, scales in tensors]


def file_of_the_original(compress, header, segments):
    return compress.compress(StandIn(header.model, as_original(segments)), torch.zeros(1, header.num_samples), use_lm=False)


def assert_same_segments(found, expected):
    assert len(found) == len(expected)
    for ours, truth in zip(found, expected):
        assert np.array_equal(ours.codes, truth.codes)
        assert (ours.start, ours.samples) == (truth.start, truth.samples)
        assert (ours.scales is None) == (truth.scales is None) and (truth.scales is None or ours.scales[0] == truth.scales[0])


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_files_are_those_of_the_original_and_each_reads_the_others(monkeypatch, first):
    compress = original_module(monkeypatch, "compress")
    for seed in range(first, first + 50):
        header, segments = drawn(seed)
        data = write_version0(header, segments)
        assert data == file_of_the_original(compress, header, segments)
        assert_same_segments(read_version0(data)[1], segments)
        if version0.readable_by_encodec(header):
            reader = StandIn(header.model)
            monkeypatch.setitem(compress.MODELS, header.model, lambda reader=reader: reader)
            compress.decompress(data)
            assert all(torch.equal(codes[0], torch.from_numpy(each.codes)) for (codes, _), each in zip(reader.frames, segments))


@pytest.mark.parametrize("name, samples", [("encodec_24khz", 6720), ("encodec_24khz", 26_880), ("encodec_48khz", 54_240)])
def test_lengths_that_the_original_cannot_read_are_told_and_read(monkeypatch, name, samples):
    compress = original_module(monkeypatch, "compress")
    header = Version0Header(name, samples, 4)
    segments = [
        Segment(np.full((4, frames_of(length)), 7), np.ones(1, np.float32) if header.geometry.normalize else None, start, length)
        for start, length in map(header.segment_samples, range(header.segments))
    ]
    data = file_of_the_original(compress, header, segments)
    monkeypatch.setitem(compress.MODELS, name, lambda: StandIn(name))
    with pytest.raises(EOFError):
        compress.decompress(data)
    assert not version0.readable_by_encodec(header)
    assert_same_segments(read_version0(data)[1], segments)
    assert version0.readable_by_encodec(Version0Header(name, samples + 1, 4))


@pytest.mark.parametrize("seed", range(4))
def test_frames_anywhere_are_read_without_the_rest(seed):
    header, segments = drawn(seed, samples=100_000)
    # what is not asked for is damaged
    index = len(segments) - 1
    frames = segments[index].codes.shape[1]
    first, stop = frames // 3, frames // 3 + 5
    data = bytearray(write_version0(header, segments))
    begin = len(header.to_bytes()) + header.segment_bytes(index)[0] + (4 if header.geometry.normalize else 0)
    bits = 10 * header.levels
    for position in (*range(len(header.to_bytes()), begin - 4), *range(begin, begin + first * bits // 8)):
        data[position] ^= 255
    for position in range(begin + -(-stop * bits // 8), len(data)):
        data[position] ^= 255
    file = Version0File(io.BytesIO(bytes(data)))
    part = file.frames(index, first, stop)
    assert np.array_equal(part.codes, segments[index].codes[:, first:stop])
    assert (part.start, part.samples) == (segments[index].start + 320 * first, 320 * 5)


def test_a_time_gives_its_chunk():
    header = Version0Header("encodec_48khz", 200_000, 2)
    segments = [Segment(np.zeros((2, frames_of(n)), int), np.ones(1, np.float32), s, n) for s, n in map(header.segment_samples, range(5))]
    file = Version0File(io.BytesIO(write_version0(header, segments)))
    assert [file.index_at(seconds) for seconds in (-1, 0, 0.98, 0.99, 3.0, 1e6)] == [0, 0, 0, 1, 3, 4]


def test_a_stream_that_cannot_seek_is_read_in_order():
    class Pipe(io.BytesIO):
        def seekable(self):
            return False

    header, segments = drawn(3, samples=120_000)
    assert_same_segments(list(Version0File(Pipe(write_version0(header, segments)))), segments)


def test_a_file_cut_anywhere_is_an_error():
    header, segments = drawn(1, samples=1_000)
    data = write_version0(header, segments)
    for length in range(len(data)):
        with pytest.raises(CompressedFileError, match="cut short"):
            read_version0(data[:length])
    with pytest.raises(CompressedFileError, match="longer than its header says"):
        read_version0(data + b"\0")


def forged(**changes):
    fields = {"m": "encodec_24khz", "al": 320, "nc": 8, "lm": False, **changes}
    text = json.dumps(fields).encode()
    return version0.PREFIX.pack(b"ECDC", 0, len(text)) + text + bytes(10)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"RIFF" + bytes(20), "begins with b'RIFF'"),
        (b"ECDC\x02" + bytes(20), "has version 2"),
        (b"ECDC\0\xff\xff\xff\xff" + bytes(20), "said to have 4294967295 bytes"),
        (b"ECDC\0\0\0\0\x02[]", "an object with m, al, nc, lm"),
        (b"ECDC\0\0\0\0\x02{]", "no JSON"),
        (b"ECDC\0\0\0\x08\x00" + b"[" * 2048, "no JSON"),
        (forged(m="encodec_32khz"), "the model is 'encodec_32khz'"),
        (forged(al=0), "num_samples is 0"),
        (forged(al=True), "num_samples is True"),
        (forged(al=1 << 60), "num_samples is"),
        (forged(al=1 << 40), "cut short"),
        (forged(nc=33), "levels is 33"),
        (forged(nc=8.0), "levels is 8.0"),
        (forged(lm=1), "language_model is 1"),
        (forged(lm=True), "give that as --lm"),
    ],
)
def test_a_header_that_says_nothing_sensible_is_named(data, message):
    with pytest.raises(CompressedFileError, match=message.replace("(", r"\(")):
        read_version0(data)


def test_codes_that_do_not_belong_are_not_written():
    header, segments = drawn(2, samples=1000)
    codes = segments[0].codes.copy()
    codes[0, 0] = 1024
    with pytest.raises(CompressedFileError, match=r"each 0 \.\.\. 1023"):
        write_version0(header, [Segment(codes, segments[0].scales, 0, 1000)])
    with pytest.raises(CompressedFileError, match="0 segments came"):
        write_version0(header, [])
