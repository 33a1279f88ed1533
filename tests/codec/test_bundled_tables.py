"""The bundled tables of the codes of `demo`: files of that model begin with them, and nobody has to name them."""

import io

import numpy as np
import pytest
import torch

from encodec_fast import compress, decompress
from encodec_fast.audio import read_audio
from encodec_fast.codec import files
from encodec_fast.compression.adaptive import AdaptiveCoder
from encodec_fast.compression.choice import BUNDLED_TABLES, bundled_tables
from encodec_fast.compression.coders import NO_FINGERPRINT
from encodec_fast.compression.header import read_header
from encodec_fast.compression.segments import CompressedFileError
from encodec_fast.compression.tables import fit_tables
from encodec_fast.demo import bundled_clips, demo_model
from encodec_fast.plan.weights import weights_sha256


@pytest.fixture(scope="module")
def model():
    return demo_model()


@pytest.fixture(scope="module")
def clip():
    speech = next(path for path in bundled_clips() if path.name.startswith("speech_de"))
    return read_audio(speech, 24_000, 1)[0]


def codes_of(model, clip, bandwidth):
    return model.encode(torch.from_numpy(clip)[None], bandwidth=bandwidth).audio_codes[0, 0].numpy()


def fingerprint(data):
    return read_header(io.BytesIO(data)).coder_fingerprint


def test_they_know_every_level_of_the_built_in_model(model):
    tables = bundled_tables(weights_sha256(model))
    assert tables is not None and (tables.levels, tables.codebook_size) == (len(model.quantizer.layers), model.config.codebook_size)
    assert tables.to_bytes() == BUNDLED_TABLES.read_bytes() and len(tables.to_bytes()) < 700_000
    assert any(tables.contexts)


def test_codes_of_other_weights_do_not_get_them():
    assert bundled_tables("ab" * 32) is None


@pytest.mark.parametrize("bandwidth, share", [(1.5, 0.9), (6.0, 0.9), (24.0, 0.97)])
def test_a_file_begins_with_them_and_is_shorter_than_one_that_learns_from_nothing(model, clip, bandwidth, share):
    data = compress(clip, model, bandwidth, coder="adaptive")
    assert fingerprint(data) == bundled_tables(weights_sha256(model)).fingerprint
    codes = codes_of(model, clip, bandwidth)
    nothing, (payload,) = AdaptiveCoder(1024).encode([codes])[0], AdaptiveCoder(1024, bundled_tables(weights_sha256(model))).encode([codes])
    assert payload in data and len(payload) < share * len(nothing)
    assert np.array_equal(decompress(data, model)[0], decompress(compress(clip, model, bandwidth, coder="raw"), model)[0])


def test_static_needs_no_tables_of_the_caller(model, clip):
    data = compress(clip, model, 6.0, coder="static")
    assert len(data) < len(compress(clip, model, 6.0, coder="raw"))
    assert np.array_equal(decompress(data, model)[0], decompress(compress(clip, model, 6.0, coder="raw"), model)[0])


def test_tables_that_are_given_are_taken_and_needed_to_read(model, clip):
    own = fit_tables([codes_of(model, clip, 6.0)], 1024, weights_sha256(model))
    data = compress(clip, model, 6.0, coder="static", tables=own)
    assert fingerprint(data) == own.fingerprint
    assert np.array_equal(decompress(data, model, tables=own)[0], decompress(compress(clip, model, 6.0, coder="raw"), model)[0])
    with pytest.raises(CompressedFileError, match="coded with the tables of SHA-256"):
        decompress(data, model)


def test_files_that_began_without_are_read(model, clip, monkeypatch):
    with monkeypatch.context() as without:
        without.setattr(files, "bundled_tables", lambda weights: None)
        data = compress(clip, model, 6.0, coder="adaptive")
    assert fingerprint(data) == NO_FINGERPRINT
    assert np.array_equal(decompress(data, model)[0], decompress(compress(clip, model, 6.0), model)[0])
