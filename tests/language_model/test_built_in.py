"""The bundled language model: what is stored is what codes, and the codes of `demo` find it."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from encodec_fast import compress, decompress
from encodec_fast.compression import choice
from encodec_fast.compression.adaptive import AdaptiveCoder
from encodec_fast.compression.choice import bundled_coder
from encodec_fast.compression.language_model_coder import LanguageModelCoder, LanguageModelUnavailable
from encodec_fast.compression.segments import CompressedFileError
from encodec_fast.demo import bundled_clips, demo_model
from encodec_fast.language_model.built_in import BUILT_IN, built_in_codec, packed, unpacked
from encodec_fast.language_model.model import LanguageModel, LanguageModelConfig
from encodec_fast.plan.weights import weights_sha256
from support.engine import engine


@pytest.fixture(scope="module")
def model():
    return demo_model()


@pytest.fixture(scope="module")
def clip(model):
    from encodec_fast.audio import read_audio

    speech = next(path for path in bundled_clips() if path.name.startswith("speech_es"))
    return read_audio(speech, 24_000, 1)[0][:, :36_000]


def test_its_matrices_err_by_half_a_step_at_most(tmp_path):
    torch.manual_seed(0)
    drawn = LanguageModel(LanguageModelConfig(2, 16, 8, 2, 1, 16, 5))
    tensors, metadata = packed(drawn, "ab" * 32, "about")
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    stored = unpacked(tmp_path / "a.safetensors")
    assert stored.config == drawn.config
    for name, weight in drawn.state_dict().items():
        kept = stored.state_dict()[name]
        if weight.dim() == 2:
            assert ((kept - weight).abs() <= weight.abs().amax(1, keepdim=True) / 127 * 0.501).all(), name
        else:
            assert torch.equal(kept, weight), name
    # rounded once, it is stored without error
    again, _ = packed(stored, "ab" * 32, "about")
    torch.testing.assert_close(stored.state_dict()["emb.0.weight"], again["emb.0.weight"] * again["emb.0.weight.scale"][:, None])


def test_it_is_small_names_its_sources_and_loads_in_a_second():
    assert BUILT_IN.stat().st_size < 3_000_000
    from safetensors import safe_open

    with safe_open(BUILT_IN, "pt") as file:
        about = file.metadata()["about"]
    assert all(name in about for name in ("festvox-ru", "asterisk-core-sounds-it-g722", "CC-BY-3.0", "BSD-like"))
    code = (
        "import time; from encodec_fast.language_model import built_in; start = time.process_time(); "
        "built_in.unpacked(built_in.BUILT_IN); print(time.process_time() - start)"
    )
    assert float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout) < 1


def test_it_knows_the_codes_of_the_built_in_model(model):
    assert built_in_codec() == weights_sha256(model)


def test_its_name_is_in_the_header_and_decompressing_finds_it(model, clip):
    engine()
    data = compress(clip, model, 6.0, coder="lm")
    assert unpacked(BUILT_IN).fingerprint() in data[:200]
    assert np.array_equal(decompress(data, model)[0], decompress(compress(clip, model, 6.0, coder="raw"), model)[0])


def test_another_language_model_is_not_taken_for_it(model, clip):
    engine()
    torch.manual_seed(0)
    other = LanguageModelCoder(LanguageModel(LanguageModelConfig(8, 1024, 16, 2, 1, 16, 5)))
    data = compress(clip, model, 6.0, lm=other)
    with pytest.raises(CompressedFileError, match="coded with the language model of SHA-256"):
        decompress(data, model)


def test_it_beats_an_adaptive_coder_that_begins_with_nothing(model, clip):
    engine()
    codes = model.encode(torch.from_numpy(clip)[None], bandwidth=6.0).audio_codes[0, 0].numpy()
    ours, nothing = (len(coder.encode([codes])[0]) for coder in (bundled_coder(weights_sha256(model), 8), AdaptiveCoder(1024)))
    assert ours < 0.97 * nothing


@pytest.mark.parametrize("bandwidth", [1.5, 6.0])
def test_the_shorter_of_it_and_the_adaptive_coder_is_taken(model, clip, bandwidth):
    engine()
    auto, *both = (compress(clip, model, bandwidth, coder=name) for name in ("auto", "lm", "adaptive"))
    assert auto in both and len(auto) == min(map(len, both)) < max(map(len, both))


def test_what_it_knows_less_of_goes_to_the_adaptive_coder(model):
    engine()
    # a hum that repeats: the model has learned speech
    hum = torch.sin(torch.arange(96_000) * 0.05)[None].numpy() * 0.3
    data, adaptive = compress(hum, model, 6.0), compress(hum, model, 6.0, coder="adaptive")
    assert data == adaptive and len(data) < len(compress(hum, model, 6.0, coder="lm"))


def test_more_levels_than_it_has_go_to_the_adaptive_coder(model, clip):
    engine()
    short = clip[:, :3200]
    assert compress(short, model, 12.0) == compress(short, model, 12.0, coder="adaptive")
    with pytest.raises(ValueError, match="6 kbps or less"):
        compress(short, model, 12.0, coder="lm")


def test_codes_of_other_weights_do_not_get_it():
    assert bundled_coder("ab" * 32, 8) is None


def test_without_the_engine_the_adaptive_coder_is_taken(model, clip, monkeypatch):
    def missing():
        raise LanguageModelUnavailable("no engine")

    monkeypatch.setattr(choice, "_built_in_coder", missing)
    short = clip[:, :3200]
    assert compress(short, model, 6.0) == compress(short, model, 6.0, coder="adaptive")
