"""EncodecTokenizer: every way to hold audio gives the codes of that clip alone, or a reason."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import encodec_fast
from encodec_fast.audio import read_audio
from support.corpora import BANDWIDTH, RATE, put_clip, put_corpus, small_model


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


def codes_alone(model, path):
    return model.encode_batch([torch.from_numpy(read_audio(path, RATE, 1)[0])], BANDWIDTH)[0].codes.numpy()


@pytest.fixture(scope="module")
def expected(tokenizer, path):
    return codes_alone(tokenizer.encoder.model, path)


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


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return put_corpus(tmp_path_factory.mktemp("corpus"), [200 + 97 * (index * 7 % 40) for index in range(10)])


@pytest.fixture
def model(tokenizer):
    return tokenizer.encoder.model


def codes_of(batch):
    return [np.array(codes).reshape(shape) for codes, shape in zip(batch["codes"], batch["codes_shape"])]


def test_every_way_to_hold_audio_gives_the_codes_of_that_clip_alone(corpus, model, model_folder):
    tokenizer = pickle.loads(pickle.dumps(encodec_fast.EncodecTokenizer(str(model_folder), BANDWIDTH, device="cpu")))
    path = str(corpus / "0003.wav")
    samples = read_audio(path, RATE, 1)[0]
    cells = [
        path,
        open(path, "rb").read(),
        {"bytes": open(path, "rb").read(), "path": None},
        {"bytes": None, "path": path},
        {"array": samples[0], "sampling_rate": RATE},
    ]
    batch = tokenizer({"audio": cells, "text": list("abcde")})
    assert batch["text"] == list("abcde") and "audio" not in batch and batch["error"] == [""] * 5
    for codes in codes_of(batch):
        assert np.array_equal(codes, codes_alone(model, path))
    arrays = tokenizer({"audio": [samples, samples[0]], "sampling_rate": [RATE, RATE]})
    assert all(np.array_equal(codes, codes_alone(model, path)) for codes in codes_of(arrays))
    # a tokenizer that has been used is pickled without its model
    assert len(pickle.dumps(tokenizer)) < 2000


def test_audio_that_can_not_be_used_says_why_and_costs_its_row_only(corpus, model_folder):
    tokenizer = encodec_fast.EncodecTokenizer(str(model_folder), BANDWIDTH, device="cpu", batch_seconds=1.0)
    cells = ["gone.wav", b"words", None, np.full(9, np.nan), np.zeros(0), str(corpus / "0000.wav")]
    batch = tokenizer({"audio": cells, "sampling_rate": [RATE] * 6})
    reasons = ["can't be opened", "not audio", "", "NaN", "T > 0", ""]
    assert all(reason in error for reason, error in zip(reasons, batch["error"]))
    assert [bool(codes) for codes in batch["codes"]] == [False] * 5 + [True] and all(batch["error"][:5])
    with pytest.raises(KeyError, match="no column 'audio' among sound"):
        tokenizer({"sound": []})


def test_datasets_maps_it(corpus, model, model_folder):
    datasets = pytest.importorskip("datasets")
    paths = sorted(str(path) for path in corpus.glob("000*.wav"))
    rows = datasets.Dataset.from_dict({"audio": paths})
    mapped = rows.map(encodec_fast.EncodecTokenizer(str(model_folder), BANDWIDTH, device="cpu"), batched=True, batch_size=4)
    for row, path in zip(mapped, paths):
        assert np.array_equal(np.reshape(row["codes"], row["codes_shape"]), codes_alone(model, path))
