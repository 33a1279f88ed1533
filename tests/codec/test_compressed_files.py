"""Audio to compressed bytes and back: the codes and the audio are those of the batch methods, whatever the segments."""

import io
import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

import encodec_fast
from encodec_fast.codec.files import Settings, compress, compress_stream, decompress
from encodec_fast.codec.opened import OpenedFile
from encodec_fast.compression.choice import AtHand
from encodec_fast.compression.coders import NO_FINGERPRINT
from encodec_fast.compression.container import Lost
from encodec_fast.compression.header import read_header
from encodec_fast.compression.language_model_coder import LanguageModelCoder
from encodec_fast.compression.segments import CompressedFileError, Segment
from encodec_fast.compression.tables import fit_tables
from encodec_fast.language_model.model import LanguageModelConfig
from encodec_fast.plan.weights import weights_sha256
from support.corpora import CHUNKED
from support.engine import engine
from support.language_models import SMALL as SMALL_LM
from support.language_models import drawn_language_model
from support.models import audio_like, config_24khz, config_48khz, pair, small_config

SMALL = {"num_filters": 4, "hidden_size": 8}
CONFIGS = {
    "streams": (small_config(), 4.8),
    "chunks": (small_config(**CHUNKED), 4.8),
    "whole clips": (small_config(use_causal_conv=False, normalize=True), 4.8),
}


@pytest.fixture(scope="module")
def models():
    return {name: pair(config)[1] for name, (config, _) in CONFIGS.items()}


@pytest.fixture(params=CONFIGS)
def case(request, models):
    """(model, bandwidth, a clip of a length that fills neither segments nor frames)."""
    model, bandwidth = models[request.param], CONFIGS[request.param][1]
    samples = {"streams": 5003, "chunks": 2400 * 3 + 123, "whole clips": 5003}[request.param]
    return model, bandwidth, audio_like(1, model.config.audio_channels, samples, 3)[0].numpy()


def filled(config):
    """A model of 1,024 entries that are drawn, not fitted, which takes a while: codes are all there."""
    model, generator = encodec_fast.EncodecModel(config).eval(), torch.Generator().manual_seed(1)
    for layer in model.quantizer.layers:
        layer.codebook.embed.copy_(torch.randn(layer.codebook.embed.shape, generator=generator))
    return model


def batch_audio(model, clip, bandwidth):
    return model.decode_batch(model.encode_batch([clip], bandwidth))[0].numpy()


@pytest.mark.parametrize("segment", [0.01, 0.7, 2.0, 100.0])
def test_the_audio_is_that_of_the_batch_methods_to_the_bit(case, segment):
    model, bandwidth, clip = case
    data = compress(clip, model, bandwidth, segment=segment)
    audio, rate = decompress(data, model)
    assert rate == model.config.sampling_rate
    assert np.array_equal(audio, batch_audio(model, clip, bandwidth))


# lengths whose last chunk ends inside the one before
@pytest.mark.parametrize("samples", [1, 2375, 2376, 2377, 2399, 2400, 2401, 4752, 4765])
def test_chunks_at_the_ends_of_clips_are_those_of_the_batch_methods(models, samples):
    model = models["chunks"]
    clip = audio_like(1, 2, samples, 5)[0].numpy()
    for segment in (0.5, 1.9):
        audio, _ = decompress(compress(clip, model, 4.8, segment=segment), model)
        assert np.array_equal(audio, batch_audio(model, clip, 4.8))


@pytest.mark.parametrize("samples", [1, 7, 8, 9, 160, 161])
def test_short_clips_come_back(models, samples):
    model = models["streams"]
    clip = audio_like(1, 1, samples, 5)[0].numpy()
    audio, _ = decompress(compress(clip, model, 4.8, segment=0.05), model)
    assert np.array_equal(audio, batch_audio(model, clip, 4.8))


def test_the_stream_is_the_file_whatever_the_blocks(case):
    model, bandwidth, clip = case
    settings = Settings(bandwidth, segment=0.9)
    whole, pieces = io.BytesIO(), io.BytesIO()
    compress_stream([clip], whole, model, settings, 44_100)
    cuts = [0, 1, 2, 700, 701, 2400, clip.shape[1]]
    blocks = [clip[:, first:last] for first, last in itertools.pairwise(cuts)]
    writer = compress_stream(blocks, pieces, model, Settings(bandwidth, segment=0.9, segments_at_once=1), 44_100)
    assert pieces.getvalue() == whole.getvalue() and writer.size == len(whole.getvalue())
    assert writer.header.num_samples == clip.shape[1] and writer.header.original_rate == 44_100


def test_every_coder_gives_the_same_audio(models):
    model = models["streams"]
    clip = audio_like(1, 1, 6000, 9)[0].numpy()
    codes = model.encode_batch([clip], 12.0)[0].codes[0].numpy()
    tables = fit_tables([codes], model.config.codebook_size, weights_sha256(model))
    sizes = {}
    for coder, given in (("raw", None), ("static", tables), ("adaptive", None), ("adaptive", tables), ("auto", None)):
        data = compress(clip, model, 4.8, coder=coder, tables=given)
        assert np.array_equal(decompress(data, model, tables=given)[0], batch_audio(model, clip, 4.8))
        sizes[coder, given is not None] = len(data)
    assert sizes["auto", False] == sizes["adaptive", False] < sizes["raw", False]
    assert sizes["static", True] < sizes["raw", False]


class OtherCoder:
    """A coder with weights, as a language model's is."""

    name = "lm"
    fingerprint = b"\x07" * 32

    def encode(self, segments):
        return [bytes(codes.astype(np.uint8).tobytes()) for codes in segments]

    def decode(self, payloads, frames, levels):
        return [np.frombuffer(data, np.uint8).reshape(levels, count).astype(np.int64) for data, count in zip(payloads, frames, strict=True)]


def test_a_file_that_needs_weights_or_tables_names_them(models):
    model = models["streams"]
    clip = audio_like(1, 1, 900, 9)[0].numpy()
    data = compress(clip, model, 4.8, lm=OtherCoder())
    assert OpenedFile(io.BytesIO(data), AtHand(lm=OtherCoder())).coder == "lm"
    assert decompress(data, model, lm=OtherCoder())[0].shape == (1, 900)
    with pytest.raises(CompressedFileError, match="the language model of SHA-256 0707070707070707"):
        decompress(data, model)
    other = OtherCoder()
    other.fingerprint = NO_FINGERPRINT
    with pytest.raises(CompressedFileError, match="those given have 0000000000000000"):
        decompress(data, model, lm=other)
    tables = fit_tables([np.zeros((4, 5), int)], 16, weights_sha256(model))
    data = compress(clip, model, 4.8, coder="static", tables=tables)
    with pytest.raises(CompressedFileError, match=f"the tables of SHA-256 {tables.fingerprint.hex()[:16]}"):
        decompress(data, model)


def test_a_lost_segment_is_silence_and_is_named(case):
    model, bandwidth, clip = case
    data = bytearray(compress(clip, model, bandwidth, coder="raw", segment=0.9))
    marker = b"\xec\xdc\x5e\x67"
    second = data.index(marker, data.index(marker) + 1)
    data[second + 40] ^= 1
    with pytest.raises(CompressedFileError, match="are lost: a segment is damaged"):
        decompress(bytes(data), model)
    lost: list[Lost] = []
    audio, rate = decompress(bytes(data), model, lost=lost)
    (gap,) = lost
    assert audio.shape == clip.shape and gap.samples == gap.start and abs(gap.samples - 0.9 * rate) < 0.1 * rate
    assert not audio[:, gap.start : gap.start + gap.samples].any()
    truth = batch_audio(model, clip, bandwidth)
    if model.config.use_causal_conv:
        # what lies before does not know of what comes
        assert np.array_equal(audio[:, : gap.start - 100], truth[:, : gap.start - 100])
    # what lies behind is decoded by itself
    behind = [each for each in OpenedFile(io.BytesIO(bytes(data))).segments() if isinstance(each, Segment) and each.start > gap.start]
    start = gap.start + gap.samples
    assert behind[0].start == start and np.abs(audio[:, start:] - truth[:, start:]).mean() < np.abs(truth[:, start:]).mean()


def test_a_forged_length_is_an_error_and_no_silence_of_years(models):
    model = models["streams"]
    data = compress(audio_like(1, 1, 900, 3)[0], model, 4.8)
    header = read_header(io.BytesIO(data))
    forged = replace(header, num_samples=1 << 32).to_bytes() + data[len(header.to_bytes()) :]
    begin = time.process_time()
    with pytest.raises(CompressedFileError, match="are lost"):
        decompress(forged, model)
    assert time.process_time() - begin < 5


def test_a_file_of_chunks_loses_the_sound_of_its_segment_alone(models):
    model = models["chunks"]
    clip = audio_like(1, 2, 2400 * 4, 3)[0].numpy()
    data = bytearray(compress(clip, model, 4.8, segment=1.0))
    data[len(data) // 2] ^= 1
    lost: list[Lost] = []
    audio, _ = decompress(bytes(data), model, lost=lost)
    truth = batch_audio(model, clip, 4.8)
    changed = np.flatnonzero((audio != truth).any(axis=0))
    # and the fade into its neighbours
    assert lost[0].start <= changed[0] and changed[-1] < lost[0].start + lost[0].samples + 24


def test_files_and_tensors_are_taken_as_arrays_are(models, tmp_path):
    model = models["streams"]
    clip = audio_like(1, 1, 2000, 3)[0]
    expected = compress(clip.numpy(), model, 4.8)
    assert compress(clip, model, 4.8) == compress(clip[0], model, 4.8) == expected
    soundfile.write(tmp_path / "a.wav", clip[0].numpy(), 2400, subtype="FLOAT")
    assert compress(tmp_path / "a.wav", model, 4.8) == expected
    (tmp_path / "a.ecdc").write_bytes(expected)
    assert np.array_equal(decompress(tmp_path / "a.ecdc", model)[0], batch_audio(model, clip, 4.8))
    assert OpenedFile(io.BytesIO(compress(clip, model, 4.8, sampling_rate=4800))).num_samples == 1000


def test_version_0_goes_both_ways():
    for config, samples, channels in ((config_24khz(**SMALL), 6720, 1), (config_48khz(**SMALL), 96_000, 2)):
        model = filled(config)
        clip = audio_like(1, channels, samples, 3)[0].numpy()
        data = compress(clip, model, 6.0, version=0)
        assert data[:5] == b"ECDC\0"
        assert np.array_equal(decompress(data, model)[0], batch_audio(model, clip, 6.0))


def test_wrong_arguments_are_named(models):
    model = models["streams"]
    clip = audio_like(1, 1, 900, 9)[0].numpy()
    data = compress(clip, model, 4.8)
    for call, message in (
        (lambda: compress(clip, model, 5.0), "the model has no 5.0 kbps"),
        (lambda: compress(clip, model, 4.8, coder="zip"), "coder is 'zip'"),
        (lambda: compress(clip, model, 4.8, coder="static"), "needs tables"),
        (lambda: compress(clip, model, 4.8, coder="lm"), "needs a language model"),
        (lambda: compress(clip, model, 4.8, segment=0), "segment is 0"),
        (lambda: compress(clip, model, 4.8, version=2), "version is 2"),
        (lambda: compress(clip, model, 4.8, version=0), "version 0 knows"),
        (lambda: compress(np.zeros((2, 10)), model, 4.8), r"audio has shape \[2, 10\]"),
        (lambda: compress(np.full(10, np.nan), model, 4.8), "NaN"),
        (lambda: decompress(data), "does not say which model made it"),
        (lambda: decompress(data, models["chunks"]), "give the model that made it"),
        (lambda: decompress(b"RIFF" + bytes(100), model), "begins with b'RIFF'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_raw_bits_take_little_of_the_audios_time():
    # the whole container, as it is written and read: 2,000 x real time and more
    codes = np.random.default_rng(0).integers(0, 1024, (8, 75 * 100))
    model = encodec_fast.EncodecModel(config_24khz(**SMALL))
    header, coder = Settings(6.0, "raw").headers(model)[0]
    from encodec_fast.compression.container import ContainerReader, ContainerWriter, decode_segments

    out = io.BytesIO()
    begin = time.process_time()
    writer = ContainerWriter(out, header, coder)
    for start in range(0, 7500, 750):
        writer.write([Segment(codes[:, start : start + 750], None, start * 320, 240_000)])
    writer.finish()
    decode_segments(writer.header, coder, list(ContainerReader(io.BytesIO(out.getvalue())).segments()))
    assert time.process_time() - begin < 100 / 500


def test_memory_is_bounded_by_segments_and_not_by_the_clip(models):
    model = models["streams"]
    taken = 0

    def blocks():
        nonlocal taken
        for _ in range(60):
            taken += 1
            yield np.zeros((1, 600), np.float32)

    class Out(io.BytesIO):
        def write(self, data):
            written.append((taken, len(data)))
            return super().write(data)

    written = []
    compress_stream(blocks(), Out(), model, Settings(4.8, segment=1.0, segments_at_once=1), 2400)
    # a segment of 2,400 samples when its fourth block has come
    assert [count for count, _ in written[1:16]] == list(range(4, 64, 4))


def test_version_0_is_coded_by_a_language_model_on_request_alone():
    model = filled(config_24khz(**SMALL))
    clip = audio_like(1, 1, 3_000, 3)[0].numpy()
    lm = drawn_language_model(LanguageModelConfig(codebooks=2, codebook_size=1024, dim=32, heads=4, layers=1, hidden=64, past_context=12))
    data = compress(clip, model, 1.5, coder="lm", lm=lm, version=0)
    assert b'"lm": true' in data
    assert np.array_equal(decompress(data, model, lm=lm)[0], batch_audio(model, clip, 1.5))
    for lacks in (None, OtherCoder()):
        with pytest.raises(CompressedFileError, match="give that as --lm"):
            decompress(data, model, lm=lacks)
        with pytest.raises(ValueError, match="needs a language model of `load_lm`"):
            compress(clip, model, 1.5, coder="lm", lm=lacks, version=0)
    plain = compress(clip, model, 1.5, version=0)
    assert np.array_equal(decompress(plain, model, lm=OtherCoder())[0], batch_audio(model, clip, 1.5))
    with pytest.raises(ValueError, match="only where coder is 'lm'"):
        compress(clip, model, 1.5, lm=lm, version=0)
    with pytest.raises(ValueError, match="coder is 'adaptive'; version 0 has raw and lm"):
        compress(clip, model, 1.5, coder="adaptive", version=0)
    with pytest.raises(ValueError, match="tables came"):
        compress(clip, model, 1.5, tables=fit_tables([np.zeros((2, 5), int)], 1024, weights_sha256(model)), version=0)


def test_a_language_model_is_taken_as_its_coder_is(models):
    engine()
    model = models["streams"]
    clip = audio_like(1, 1, 900, 9)[0].numpy()
    lm = drawn_language_model(replace(SMALL_LM, codebooks=4, codebook_size=model.config.codebook_size))
    data = compress(clip, model, 4.8, lm=lm)
    assert data == compress(clip, model, 4.8, lm=LanguageModelCoder(lm))
    assert np.array_equal(decompress(data, model, lm=lm)[0], batch_audio(model, clip, 4.8))


@pytest.mark.parametrize("rate", [0, -5, 22050.5, 1 << 25])
def test_rates_that_there_are_none_of_are_named(models, rate):
    with pytest.raises(ValueError, match=f"sampling_rate is {rate}; whole Hz"):
        compress(np.zeros((1, 100), np.float32), models["streams"], 4.8, sampling_rate=rate)


def test_a_path_in_place_of_a_language_model_is_named(models):
    with pytest.raises(TypeError, match=r"lm is 'lm/'; a language model is needed, as load_lm\('lm/'\) gives it"):
        compress(np.zeros((1, 100), np.float32), models["streams"], 4.8, lm="lm/")
