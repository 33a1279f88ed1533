"""The built-in models: one to listen to, one drawn; used codebooks, the same weights everywhere; and the bundled clips."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from transformers import EncodecConfig

from encodec_fast import EncodecModel, use_backend
from encodec_fast.audio import AUDIO_SUFFIXES, read_audio
from encodec_fast.demo import ASSETS, DEMO_MODELS, bundled_clips, demo_config, demo_model, fit_codebooks, fitting_audio, seed_weights
from encodec_fast.plan.weights import weights_sha256
from support.models import config_24khz, config_48khz, small_config
from support.venvs import ROOT


@pytest.fixture(scope="module", params=DEMO_MODELS)
def model(request):
    return demo_model(request.param)


def test_the_architectures_are_those_of_the_published_models():
    assert demo_config("demo").to_dict() == config_24khz().to_dict()
    assert demo_config("demo-48khz").to_dict() == config_48khz().to_dict()
    with pytest.raises(ValueError, match="demo and demo-48khz"):
        demo_config("demo-16khz")


def used_entries(model) -> list[int]:
    """How many entries of each level the 1,800 frames of the fitting audio use."""
    audio = fitting_audio(model.config)
    with torch.no_grad(), use_backend("reference"):
        codes = model.quantizer.encode(torch.cat([model.encoder(piece) for piece in audio.split(4)]))
    assert len(codes) == len(model.quantizer.layers)
    return [level.unique().numel() for level in codes]


def test_more_than_half_of_each_drawn_codebook_is_used_on_the_fitting_audio():
    used = used_entries(demo_model("demo-48khz"))
    assert min(used) > 1024 / 2, used


def test_the_fitted_codebooks_are_used_on_voices_that_they_never_saw():
    # frames of silence, of which these clips have many, share entries of the first level
    first, *others = used_entries(demo_model("demo"))
    assert first > 0.4 * 1024 and min(others) > 0.55 * 1024, (first, others)


def test_embeddings_of_drawn_weights_span_their_space_and_activations_keep_their_size():
    model = demo_model("demo-48khz")
    audio = fitting_audio(model.config)[::6]
    with torch.no_grad(), use_backend("reference"):
        sizes = []
        hooks = [layer.register_forward_hook(lambda *call: sizes.append(call[2].std().item())) for layer in model.encoder.layers]
        embeddings = model.encoder(audio).transpose(1, 2).flatten(0, 1)
        for hook in hooks:
            hook.remove()
    values = torch.linalg.svdvals(embeddings - embeddings.mean(0))
    assert values[-1] > 0.02 * values[0] and values[63] > 0.1 * values[0]
    assert all(0.5 < size < 2.5 for size in sizes), sizes


def test_the_decoded_audio_neither_clips_nor_vanishes(model):
    clip = fitting_audio(model.config)[0] * 0.1
    (encoded,) = model.encode_batch([clip], 6.0)
    (audio,) = model.decode_batch([encoded])
    assert audio.shape == clip.shape
    assert 0.3 < audio.std() / clip.std() < 3 and audio.abs().max() < 1.0


# Of the bundled speech, in dB, a little below what the weights give: whoever changes them says so here.
LEAST_SIGNAL_TO_NOISE = {1.5: 2.2, 3.0: 3.5, 6.0: 5.4, 12.0: 7.9, 24.0: 10.8}


def test_the_fitted_model_gives_back_speech_and_better_at_each_bandwidth():
    model = demo_model("demo")
    clips = [torch.from_numpy(read_audio(path, 24_000, 1)[0]) for path in bundled_clips() if path.name.startswith("speech")]
    measured = {}
    for bandwidth in model.config.target_bandwidths:
        decoded = model.decode_batch(model.encode_batch(clips, bandwidth))
        errors = sum((a - b).square().sum() for a, b in zip(clips, decoded, strict=True))
        measured[bandwidth] = float(10 * torch.log10(sum(clip.square().sum() for clip in clips) / errors))
    assert measured.keys() == LEAST_SIGNAL_TO_NOISE.keys()
    assert all(measured[bandwidth] >= least for bandwidth, least in LEAST_SIGNAL_TO_NOISE.items()), measured
    assert sorted(measured.values()) == list(measured.values())


def test_the_fitted_model_needs_no_fit_and_no_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("encodec_fast.demo.drawn_model", None)
    monkeypatch.setenv("ENCODEC_FAST_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    model = demo_model("demo")
    assert torch.equal(torch.rand(1), expected)
    assert not model.training and model.dtype == torch.float32
    assert not list(tmp_path.iterdir())


def test_the_fitted_weights_take_less_than_nine_megabytes():
    assert (ASSETS / "demo.safetensors").stat().st_size < 9_000_000


@pytest.mark.parametrize("peak", [0.0, 1e-4, 50.0])
def test_silence_whispers_and_clipped_speech_decode_to_numbers(peak):
    clip = peak * fitting_audio(demo_config("demo"))[0].sign()
    model = demo_model("demo")
    (audio,) = model.decode_batch(model.encode_batch([clip], 6.0))
    assert audio.isfinite().all() and audio.abs().max() < 10


def small_demo(threads: int) -> tuple[str, torch.Tensor]:
    """Hash of a small model made the demo's way with that many threads, and the next global random number."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        config = EncodecConfig(num_filters=8, hidden_size=32, codebook_size=64, target_bandwidths=[3.0])
        torch.manual_seed(5)
        with torch.random.fork_rng(devices=[]), torch.no_grad(), use_backend("reference"):
            model = EncodecModel(config).eval()
            generator = torch.Generator().manual_seed(1)
            seed_weights(model, generator)
            fit_codebooks(model.double(), fitting_audio(config, 300).double(), generator)
        return weights_sha256(model.float()), torch.rand(1)
    finally:
        torch.set_num_threads(before)


def test_the_weights_do_not_depend_on_the_number_of_threads():
    assert small_demo(1)[0] == small_demo(2)[0]


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """The whole way, on an architecture that takes a second less than the real ones; gives the cache, which is empty."""
    config = small_config(num_filters=4, sampling_rate=24_000, upsampling_ratios=[8, 5, 4, 2], target_bandwidths=[3.0])
    monkeypatch.setattr("encodec_fast.demo.demo_config", lambda name: config)
    monkeypatch.setenv("ENCODEC_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_demo_model_is_the_same_each_time_and_leaves_the_random_state_alone(tiny):
    torch.manual_seed(5)
    expected = torch.rand(1)
    models = []
    for cached in (False, True, False):
        if not cached:
            shutil.rmtree(tiny, ignore_errors=True)
        torch.manual_seed(5)
        models.append(demo_model("demo-48khz"))
        assert torch.equal(torch.rand(1), expected)
    assert len({weights_sha256(model) for model in models}) == 1
    assert all(not model.training and model.dtype == torch.float32 for model in models)


def test_a_demo_model_is_made_once_and_then_read(tiny, monkeypatch):
    first = demo_model("demo-48khz")
    (path,) = tiny.iterdir()
    monkeypatch.setattr("encodec_fast.demo.drawn_model", None)
    assert weights_sha256(demo_model("demo-48khz")) == weights_sha256(first)
    monkeypatch.undo()
    assert path.suffix == ".safetensors"


@pytest.mark.parametrize("damage", ["cut", "empty", "a bit"])
def test_a_damaged_cache_is_made_anew(tiny, damage):
    first = demo_model("demo-48khz")
    (path,) = tiny.iterdir()
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes({"cut": data[:-10], "empty": b"", "a bit": data}[damage])
    assert weights_sha256(demo_model("demo-48khz")) == weights_sha256(first)
    (path,) = tiny.iterdir()
    assert bytes(data) != path.read_bytes()


def test_without_a_place_for_the_cache_a_demo_model_is_made_each_time(tiny, monkeypatch):
    tiny.write_text("a file where the folder would be")
    assert demo_model("demo-48khz").dtype == torch.float32 and tiny.is_file()


def test_the_bundled_clips_are_real_audio_under_a_megabyte():
    clips = bundled_clips()
    infos = {path.stem: soundfile.info(path) for path in clips}
    assert sum(path.stat().st_size for path in clips) < 1_000_000
    assert infos["music_stereo"].samplerate == 48_000 and infos["music_stereo"].channels == 2
    speech = [info for name, info in infos.items() if name.startswith("speech")]
    assert {info.samplerate for info in speech} == {22_050, 24_000} and len(speech) >= 5
    assert any(info.frames % 320 for info in speech) and min(info.duration for info in speech) < 1.0
    for path in clips:
        assert path.suffix in AUDIO_SUFFIXES
        assert 0.02 < soundfile.read(path)[0].std() < 0.3


def test_the_music_clip_is_what_the_script_makes():
    script = "import runpy, sys; m = runpy.run_path(sys.argv[1])['music'](); sys.stdout.buffer.write(m.tobytes())"
    made = subprocess.run(
        [sys.executable, "-c", script, str(ROOT / "bench" / "tools" / "make_assets.py")], stdout=subprocess.PIPE, check=True
    ).stdout
    bundled = soundfile.read(next(path for path in bundled_clips() if path.stem == "music_stereo"))[0]
    # one step of 16 bits: another machine's sine may round the other way
    assert np.abs(np.frombuffer(made).reshape(-1, 2) - bundled).max() <= 1.01 / 32768
