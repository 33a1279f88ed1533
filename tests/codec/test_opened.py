"""A part of a compressed file: the samples that the whole has there, of the fewest bytes."""

import io

import numpy as np
import pytest

import encodec_fast
from encodec_fast.codec.files import compress, decompress
from encodec_fast.codec.opened import OpenedFile, Part
from encodec_fast.compression.segments import CompressedFileError
from support.corpora import CHUNKED
from support.models import audio_like, pair, small_config

RATE = 2400
PARTS = [(0.0, 0.3), (0.99, 0.5), (1.0, 1.0), (2.5, None), (3.37, 0.05), (3.2, 1e-3), (0.0, 4.0)]


@pytest.fixture(scope="module")
def chunked():
    """A model of chunks, and a clip of four seconds."""
    return pair(small_config(**CHUNKED))[1], audio_like(1, 2, 4 * RATE, 3)[0].numpy()


@pytest.fixture(scope="module")
def streamed():
    """A model that streams, and a clip of four seconds."""
    return pair(small_config())[1], audio_like(1, 1, 4 * RATE, 3)[0].numpy()


def cut(whole, start, duration):
    first = round(start * RATE)
    return whole[:, first : None if duration is None else first + round(duration * RATE)]


class Reads(io.BytesIO):
    """A file that counts the bytes that are read of it."""

    count = 0

    def read(self, size=-1):
        data = super().read(size)
        self.count += len(data)
        return data

    def read1(self, size=-1):
        data = super().read1(size)
        self.count += len(data)
        return data


@pytest.mark.parametrize("start, duration", PARTS)
@pytest.mark.parametrize("segment", [0.5, 1.9])
def test_a_part_of_chunks_is_that_of_the_whole_to_the_bit(chunked, segment, start, duration):
    model, clip = chunked
    data = compress(clip, model, 4.8, segment=segment)
    found, rate = decompress(data, model, start=start, duration=duration)
    assert rate == RATE and np.array_equal(found, cut(decompress(data, model)[0], start, duration))


@pytest.mark.parametrize("start, duration", PARTS)
def test_a_part_of_a_stream_is_that_of_the_whole_after_a_second(streamed, start, duration):
    model, clip = streamed
    data = compress(clip, model, 4.8, segment=0.2)
    found, _ = decompress(data, model, start=start, duration=duration)
    truth = cut(decompress(data, model)[0], start, duration)
    # what the LSTM still knows after a second, and rounding
    assert found.shape == truth.shape and np.abs(found - truth).max() <= 1e-5 * np.abs(truth).max()


def test_models_that_need_all_of_a_clip_get_it():
    model = pair(small_config(use_causal_conv=False, normalize=True))[1]
    clip = audio_like(1, 1, 5003, 3)[0].numpy()
    data = compress(clip, model, 4.8, segment=0.5)
    assert np.array_equal(decompress(data, model, start=1.2, duration=0.5)[0], cut(decompress(data, model)[0], 1.2, 0.5))


def test_a_part_is_read_by_the_index_alone(streamed):
    model, clip = streamed
    clip = np.tile(clip, (1, 60))
    data = compress(clip, model, 4.8, coder="raw", segment=1.0)
    file = Reads(data)
    part = Part(200.0, 0.5)
    opened = OpenedFile(file)
    assert sum(block.shape[1] for block in opened.decoded(model, [], part=part)) == RATE // 2 == opened.samples_of(part)
    # the header, the index, and reads of 64 KB
    assert len(data) > 100_000 and file.count < 0.8 * len(data)


def test_a_pipe_passes_over_what_lies_before(streamed):
    class Pipe(io.BytesIO):
        def seekable(self):
            return False

    model, clip = streamed
    data = compress(clip, model, 4.8, segment=0.2)
    blocks = list(OpenedFile(Pipe(data)).decoded(model, [], part=Part(2.5, 0.5)))
    assert np.array_equal(np.concatenate(blocks, axis=1), decompress(data, model, start=2.5, duration=0.5)[0])


@pytest.mark.parametrize(
    ("start", "duration", "message"),
    [
        (4.0, None, "the clip ends before 4 s"),
        (9.0, 1.0, "the clip ends before 9 s"),
        (3.5, 1.0, "the clip ends 0.50 s before the part that is asked for"),
        (0.0, 1e300, r"the clip ends 1e\+300 s before"),
        (1.0, 1e-5, "1e-05 s, is shorter than a sample"),
    ],
)
def test_a_part_that_is_not_there_is_named(streamed, start, duration, message):
    model, clip = streamed
    data = compress(clip, model, 4.8)
    with pytest.raises(CompressedFileError, match=message):
        decompress(data, model, start=start, duration=duration)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"start": -1.0}, "start is -1; seconds from 0 on"),
        ({"start": float("nan")}, "start is nan"),
        ({"duration": 0.0}, "duration is 0; seconds above 0"),
        ({"duration": float("inf")}, "duration is inf"),
    ],
)
def test_times_that_are_none_are_refused(streamed, wrong, message):
    with pytest.raises(ValueError, match=message):
        decompress(b"", streamed[0], **wrong)


def test_damage_elsewhere_does_not_touch_a_part(streamed):
    model, clip = streamed
    data = bytearray(compress(clip, model, 4.8, coder="raw", segment=0.5))
    marker = b"\xec\xdc\x5e\x67"
    data[data.index(marker) + 40] ^= 1
    truth = decompress(bytes(data), model, lost=[])[0]
    lost = []
    found, _ = decompress(bytes(data), model, start=2.0, duration=0.5, lost=lost)
    assert not lost and found.shape == (1, RATE // 2)
    assert np.abs(found - cut(truth, 2.0, 0.5)).max() <= 1e-5
    found, _ = decompress(bytes(data), model, start=0.25, duration=0.5, lost=lost)
    assert len(lost) == 1 and not found[:, : RATE // 4].any() and found[:, RATE // 4 :].any()


def test_a_part_of_version_0_is_read_at_its_computed_place(version0_models):
    for model, clip, levels in version0_models:
        data = compress(clip, model, 6.0, version=0)
        whole, rate = decompress(data, model)
        for start, duration in ((0.0, 0.1), (1.5, 0.25), (2.0, None)):
            first = round(start * rate)
            truth = whole[:, first : None if duration is None else first + round(duration * rate)]
            found, _ = decompress(data, model, start=start, duration=duration)
            assert found.shape == truth.shape and np.abs(found - truth).max() <= 1e-4 * np.abs(whole).max()
        file = Reads(data)
        opened = OpenedFile(file)
        for _ in opened.decoded(model, [], part=Part(2.0, 0.1)):
            pass
        assert opened.levels == levels and file.count < 0.75 * len(data)


@pytest.fixture(scope="module")
def version0_models():
    """(model, a clip of 2.5 s, levels at 6 kbps) of the two that version 0 knows: the built-in ones."""
    found = []
    for name, channels, levels in (("demo", 1, 8), ("demo-48khz", 2, 4)):
        model = encodec_fast.load_model(name)
        clip = audio_like(1, channels, model.config.sampling_rate * 5 // 2, 3)[0].numpy()
        found.append((model, clip, levels))
    return found
