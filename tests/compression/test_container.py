"""Version 1 of `.ecdc`: what is written is read, damage costs the segment that it lies in, and nothing is lost without a word."""

import io
from dataclasses import replace

import numpy as np
import pytest

from encodec_fast.compression import header as headers
from encodec_fast.compression.adaptive import AdaptiveCoder
from encodec_fast.compression.coders import NO_FINGERPRINT, RawCoder
from encodec_fast.compression.container import ContainerReader, ContainerWriter, Lost, StoredSegment, decode_segments
from encodec_fast.compression.header import Header, read_header
from encodec_fast.compression.segments import CompressedFileError, Segment
from support.original_package import original_module

MONO = Header("demo", "ab" * 32, 2400, 1, 8, 16, 3, 1.5, None, None, False, 80, 44_100, 300, "adaptive", NO_FINGERPRINT)
CHUNKED = replace(MONO, channels=2, chunk_length=48, chunk_stride=44, normalize=True, segment_samples=88, num_samples=300)
HEADERS = {"mono": MONO, "chunks": CHUNKED, "mono, length unknown": replace(MONO, num_samples=None), "one": replace(MONO, num_samples=70)}
by_header = pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)


def segments_of(header, total):
    """Random codes of a clip of `total` samples."""
    generator, segments = np.random.default_rng(1), []
    for start in range(0, total, header.segment_samples):
        samples = min(header.most_samples, total - start)
        codes = generator.integers(0, header.codebook_size, (header.levels, header.frames_of(samples)))
        # so that the adaptive coder has something to learn, but in the first one
        codes = codes if start == 0 else codes // 15
        scales = generator.random(len(header.chunks_of(samples)), np.float32) if header.normalize else None
        segments.append(Segment(codes, scales, start, samples))
    return segments


def coder_of(header):
    return AdaptiveCoder(header.codebook_size) if header.coder == "adaptive" else RawCoder(header.codebook_size)


class Stream(io.BytesIO):
    """Can't seek."""

    def seekable(self):
        return False


def written(header, segments):
    file = Stream()
    writer = ContainerWriter(file, header, coder_of(header))
    writer.write(segments[:2])
    writer.write(segments[2:])
    writer.finish()
    assert writer.size == len(file.getvalue())
    return file.getvalue()


def clip(header):
    segments = segments_of(header, header.num_samples or 300)
    return segments, written(header, segments)


def read(data):
    """(segments with their codes, what is lost) of a file, and the reader."""
    reader = ContainerReader(io.BytesIO(data))
    found = list(reader.segments())
    stored = [each for each in found if isinstance(each, StoredSegment)]
    decoded = decode_segments(reader.header, coder_of(reader.header), stored)
    return decoded, [each for each in found if isinstance(each, Lost)], reader


def same(found, truth):
    scales = (found.scales is None) == (truth.scales is None) and (truth.scales is None or np.array_equal(found.scales, truth.scales))
    return scales and np.array_equal(found.codes, truth.codes) and (found.start, found.samples) == (truth.start, truth.samples)


@by_header
def test_what_is_written_is_read(header):
    segments, data = clip(header)
    found, lost, reader = read(data)
    assert len(found) == len(segments) and all(map(same, found, segments)) and lost == []
    assert reader.header == header and reader.num_samples == (header.num_samples or 300)
    assert reader.has_index == header.indexed


@pytest.mark.parametrize("name", ["mono", "one"])
def test_a_length_that_was_not_known_is_put_in_where_the_stream_can_seek(name):
    header = HEADERS[name]
    segments, data = clip(header)
    file = io.BytesIO(b"before")
    file.seek(6)
    writer = ContainerWriter(file, replace(header, num_samples=None), coder_of(header))
    writer.write(segments)
    writer.finish()
    assert file.getvalue() == b"before" + data and writer.size == len(data)


def test_a_segment_that_its_coder_would_make_longer_is_raw():
    _, data = clip(MONO)
    stored = list(ContainerReader(io.BytesIO(data)).segments())
    assert [each.coded for each in stored] == [False, True, True, True]
    assert len(stored[0].payload) == RawCoder(16).size(3, 10)


def lost_segments(header, lost, total):
    """Numbers of the segments that lie in what is lost."""
    spans = [(each.start, each.start + each.samples) for each in lost]
    starts = range(0, total, header.segment_samples)
    return {number for number, start in enumerate(starts) if any(first <= start < end for first, end in spans)}


@by_header
def test_a_damaged_byte_anywhere_costs_one_segment_or_is_a_named_error(header):
    segments, data = clip(header)
    size, total = len(header.to_bytes()), header.num_samples or 300
    for position in range(len(data)):
        for flip in (1, 0x80, 0xFF):
            damaged = data[:position] + bytes([data[position] ^ flip]) + data[position + 1 :]
            if position < size:
                with pytest.raises(CompressedFileError):
                    read(damaged)
                continue
            found, lost, _ = read(damaged)
            missing = lost_segments(header, lost, total)
            assert lost and len(missing) <= 1, (position, lost)
            kept = {number: each for number, each in enumerate(segments) if number not in missing}
            if header.num_samples is None and len(found) < len(kept):
                # the last segment of unknown length: damage in it, or in the index, is told at the end
                assert len(found) == len(kept) - 1 and "damaged" in lost[-1].reason
                kept.popitem()
            assert len(found) == len(kept) and all(map(same, found, kept.values())), position


@by_header
def test_a_file_cut_anywhere_gives_what_came_and_tells_it(header):
    segments, data = clip(header)
    size = len(header.to_bytes())
    for length in range(len(data)):
        if length < size:
            with pytest.raises(CompressedFileError, match="cut short"):
                read(data[:length])
            continue
        found, lost, _ = read(data[:length])
        assert lost and all(map(same, found, segments)), length
        if header.num_samples is not None:
            assert lost_segments(header, lost, header.num_samples) == set(range(len(found), len(segments)))


@by_header
def test_a_stream_that_begins_or_goes_on_in_the_middle_is_found_again(header):
    segments, data = clip(header)
    size = len(header.to_bytes())
    junk = b"\xec\xdc\x5e\x67" + bytes(range(40))
    found, lost, _ = read(data[:size] + junk + data[size:])
    assert len(found) == len(segments) and lost[0].samples == 0 and "cost no sound" in lost[0].reason
    if len(segments) > 2:
        second = data.index(b"\xec\xdc\x5e\x67", data.index(b"\xec\xdc\x5e\x67") + 1)
        found, lost, _ = read(data[:size] + data[second + 5 :])
        assert all(map(same, found, segments[2:])) and (lost[0].start, lost[0].samples) == (0, 2 * header.segment_samples)


def test_bytes_behind_the_end_are_told():
    for header in (MONO, HEADERS["one"]):
        _, data = clip(header)
        _, lost, _ = read(data + b"x")
        assert "behind the end" in lost[-1].reason or "damaged" in lost[-1].reason


@by_header
@pytest.mark.parametrize("indexed", [True, False])
def test_seeking_gives_the_segment_of_a_time_and_what_follows(header, indexed):
    segments, data = clip(header)
    if not indexed and header.indexed:
        data = data[:-1]
    for number, segment in enumerate(segments):
        reader = ContainerReader(io.BytesIO(data))
        assert reader.seek((segment.start + 1) / header.sampling_rate) == number
        found = [each for each in reader.segments() if isinstance(each, StoredSegment)]
        assert [each.number for each in found] == list(range(number, len(segments)))


def test_with_an_index_nothing_is_read_that_is_passed_over():
    _, data = clip(MONO)
    damaged = bytearray(data)
    size = len(MONO.to_bytes())
    damaged[size : size + 60] = bytes(60)
    reader = ContainerReader(io.BytesIO(bytes(damaged)))
    reader.seek(160 / 2400)
    assert [each.number for each in reader.segments()] == [2, 3]


class Pipe(io.RawIOBase):
    """Gives a few bytes at a time, and notes how far it was read."""

    def __init__(self, data):
        self.data, self.position = data, 0

    def readable(self):
        return True

    def readinto(self, buffer):
        size = min(3, len(buffer), len(self.data) - self.position)
        buffer[:size] = self.data[self.position : self.position + size]
        self.position += size
        return size


def test_a_pipe_gives_each_segment_when_its_last_byte_has_come():
    _, data = clip(MONO)
    pipe = Pipe(data)
    reader = ContainerReader(pipe)
    ends = [start for start in range(len(data)) if data.startswith((b"\xec\xdc\x5e\x67", b"\xec\xdc\x1d\x78"), start)][1:]
    for end, stored in zip(ends, reader.segments()):
        assert stored.start == stored.number * 80 and pipe.position <= end + 2


def test_encodec_refuses_the_file_by_its_version(monkeypatch):
    compress = original_module(monkeypatch, "compress")
    with pytest.raises(ValueError, match="Version not supported"):
        compress.decompress(clip(MONO)[1])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"levels": 0}, "levels is 0"),
        ({"levels": 257}, "levels is 257"),
        ({"codebook_size": 1 << 20}, "codebook_size is"),
        ({"hop_length": 0}, "hop_length is 0"),
        ({"segment_samples": 81}, "a multiple of 8"),
        ({"segment_samples": 8 << 17}, "65536 frames at most"),
        ({"chunk_length": 48}, "both or none"),
        ({"chunk_length": 480, "chunk_stride": 40}, "chunk_length is 480"),
        ({"chunk_length": 40, "chunk_stride": 80}, "chunk_stride is 80"),
        ({"coder": "zip"}, "coder is 'zip'"),
        ({"bandwidth": float("nan")}, "bandwidth is nan"),
        ({"num_samples": 1 << 60}, "num_samples is"),
        ({"original_rate": 0}, "original_rate is 0"),
    ],
)
def test_a_header_out_of_bounds_is_named(changes, message):
    with pytest.raises(CompressedFileError, match=message):
        replace(MONO, **changes)


def resealed(data):
    """A header with a right checksum again."""
    body = data[:-4]
    return body + headers._CRC.pack(headers.crc32c(body))


def test_a_forged_header_with_a_right_checksum_is_named():
    data = bytearray(MONO.to_bytes())
    for position in range(9, len(data) - 4):
        for value in (0, 0xFF):
            forged = bytearray(data)
            forged[position] = value
            try:
                read_header(io.BytesIO(resealed(bytes(forged))))
            except CompressedFileError:
                continue


def test_segments_that_do_not_follow_are_not_written():
    segments = segments_of(MONO, 300)
    writer = ContainerWriter(io.BytesIO(), MONO, coder_of(MONO))
    with pytest.raises(CompressedFileError, match="from 0 on are next"):
        writer.write(segments[1:])
    writer.write(segments[:2])
    with pytest.raises(CompressedFileError, match="160 samples were written, the header announces 300"):
        writer.finish()
    with pytest.raises(CompressedFileError, match=r"outside 0 \.\.\. 15"):
        writer.write([replace(segments[2], codes=segments[2].codes + 16)])
    with pytest.raises(ValueError, match="header names the coder 'adaptive'"):
        ContainerWriter(io.BytesIO(), MONO, RawCoder(16))


class PlainErrors(AdaptiveCoder):
    """Speaks of what it can't read as a module does that knows no files."""

    def decode(self, payloads, frames, levels):
        try:
            return super().decode(payloads, frames, levels)
        except CompressedFileError as error:
            raise ValueError(str(error)) from error


@pytest.mark.parametrize("coder", [AdaptiveCoder(16), PlainErrors(16)], ids=["named", "plain"])
def test_a_payload_that_its_coder_cannot_read_costs_its_segment_alone(coder):
    _, data = clip(MONO)
    stored = list(ContainerReader(io.BytesIO(data)).segments())
    stored[2] = replace(stored[2], payload=stored[2].payload + bytes(20))
    found = decode_segments(MONO, coder, stored)
    assert [isinstance(each, Lost) for each in found] == [False, False, True, False]
    assert (found[2].start, found[2].samples) == (160, 80)
