"""EncodecTokenizer: every way to hold audio gives the codes of that clip alone, or a reason."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import encodec_fast
from encodec_fast.audio import read_audio
from support.corpora import BANDWIDTH, RATE, put_clip, small_model


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    small_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(model_folder):
    return encodec_fast.EncodecTokenizer(str(model_folder), BANDWIDTH, device="cpu")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """16-bit samples, which every format below holds exactly."""
    return put_clip(tmp_path_factory.mktemp("audio") / "a.wav", 2000, subtype="PCM_16")


@pytest.fixture(scope="module")
def samples(path):
    return read_audio(path, RATE, 1)[0]


@pytest.fixture(scope="module")
def expected(tokenizer, samples):
    return tokenizer.encoder.model.encode_batch([torch.from_numpy(samples)], BANDWIDTH)[0].codes.numpy()


def cells(path, samples):
    data, whole = Path(path).read_bytes(), (samples * 32768).round()
    return {
        "a path": path,
        "bytes": data,
        "a bytearray": bytearray(data),
        "a memoryview": memoryview(data),
        "float32": samples[0],
        "float64": samples.astype(np.float64),
        "int16": whole.astype(np.int16),
        "int32": (whole * 65536).astype(np.int32),
        "a torch tensor": torch.from_numpy(whole[0].astype(np.int16)),
        "numbers": samples[0].tolist(),
        "an Audio feature": {"array": whole[0].astype(np.int16), "sampling_rate": RATE},
        "a path of one": {"bytes": None, "path": str(path)},
    }


@pytest.mark.parametrize("kind", [*cells(__file__, np.zeros((1, 9)))])
def test_every_way_to_hold_audio_gives_the_codes_of_that_clip(tokenizer, path, samples, expected, kind):
    cell = cells(path, samples)[kind]
    batch = tokenizer({"audio": [cell, cell], "sampling_rate": [RATE, RATE], "text": ["a", "b"]})
    assert batch["error"] == ["", ""] and batch["text"] == ["a", "b"]
    for codes, shape in zip(batch["codes"], batch["codes_shape"]):
        assert np.array_equal(np.reshape(codes, shape), expected)
    # unbatched, as `map` without batched=True gives it
    row = tokenizer({"audio": cell, "sampling_rate": RATE, "text": "a"})
    assert row["error"] == "" and row["text"] == "a" and row["sampling_rate"] == RATE and "audio" not in row
    assert np.array_equal(np.reshape(row["codes"], row["codes_shape"]), expected)


def test_a_batch_of_equal_lengths_in_one_array_is_a_batch(tokenizer, samples, expected):
    batch = tokenizer({"audio": np.stack([samples[0], samples[0]]), "sampling_rate": np.array([RATE, RATE])})
    assert len(batch["codes"]) == 2 and all(np.array_equal(np.reshape(codes, expected.shape), expected) for codes in batch["codes"])
    assert tokenizer({"audio": [], "sampling_rate": []})["codes"] == []


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (np.zeros((1, 50), np.complex64), "samples is complex64; floats with full scale 1.0"),
        (np.zeros((1, 50), np.int64), "samples is int64"),
        (np.zeros((1, 50), bool), "samples is bool"),
        (np.zeros((500, 2), np.float32), r"samples of shape \[500, 2\]; channels come first, so transpose them"),
        (np.zeros((1, 2, 500), np.float32), r"samples of shape \[1, 2, 500\]; \[T\] or \[C, T\] is needed"),
    ],
)
def test_what_would_be_noise_is_refused_with_the_remedy(tokenizer, cell, words):
    (error,) = tokenizer({"audio": [cell], "sampling_rate": [RATE]})["error"]
    assert re.search(words, error)


def test_a_row_keeps_its_audio_where_asked(model_folder, path, expected):
    row = encodec_fast.EncodecTokenizer(str(model_folder), BANDWIDTH, device="cpu", keep_audio=True)({"audio": path})
    assert row["audio"] == path and np.array_equal(np.reshape(row["codes"], row["codes_shape"]), expected)
