"""The built-in models, which give back speech and music; and the bundled clips."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from bench_lib.drawn import fitting_audio
from encodec_fast import use_backend
from encodec_fast.audio import AUDIO_SUFFIXES, read_audio
from encodec_fast.demo import ASSETS, DEMO_MODELS, bundled_clips, demo_config, demo_model
from support.models import config_24khz, config_48khz
from support.venvs import ROOT


@pytest.fixture(scope="module", params=DEMO_MODELS)
def model(request):
    return demo_model(request.param)


def test_the_architectures_are_those_of_the_published_models():
    assert demo_config("demo").to_dict() == config_24khz().to_dict()
    assert demo_config("demo-48khz").to_dict() == config_48khz().to_dict()
    with pytest.raises(ValueError, match="demo and demo-48khz"):
        demo_config("demo-16khz")


# Of 1,024 entries, on 24 s of voices or 12 s of sounds that they never saw. Frames of silence, of which these clips have many, share
# entries of the first level.
LEAST_ENTRIES_USED = {"demo": (0.4, 0.55), "demo-48khz": (0.15, 0.2)}


@pytest.mark.parametrize("name", DEMO_MODELS)
def test_the_codebooks_are_used_on_sounds_that_they_never_saw(name):
    model = demo_model(name)
    audio = fitting_audio(model.config)
    with torch.no_grad(), use_backend("reference"):
        codes = model.quantizer.encode(torch.cat([model.encoder(piece) for piece in audio.split(4)]))
    first, *others = (level.unique().numel() / 1024 for level in codes)
    assert len(others) + 1 == len(model.quantizer.layers)
    assert first > LEAST_ENTRIES_USED[name][0] and min(others) > LEAST_ENTRIES_USED[name][1], (first, others)


def test_the_decoded_audio_neither_clips_nor_vanishes(model):
    clip = fitting_audio(model.config)[0] * 0.1
    (encoded,) = model.encode_batch([clip], 6.0)
    (audio,) = model.decode_batch([encoded])
    assert audio.shape == clip.shape
    assert 0.3 < audio.std() / clip.std() < 3 and audio.abs().max() < 1.0


# Of the bundled speech and music, in dB, a little below what the weights give: whoever changes them says so here.
LEAST_SIGNAL_TO_NOISE = {
    "demo": {1.5: 1.7, 3.0: 3.0, 6.0: 4.8, 12.0: 7.0, 24.0: 9.4},
    "demo-48khz": {3.0: 6.0, 6.0: 8.2, 12.0: 10.3, 24.0: 11.9},
}


@pytest.mark.parametrize("name, kind", [("demo", "speech"), ("demo-48khz", "music")])
def test_a_model_gives_back_what_it_is_for_and_better_at_each_bandwidth(name, kind):
    model, measured = demo_model(name), {}
    rate, channels = model.config.sampling_rate, model.config.audio_channels
    clips = [torch.from_numpy(read_audio(path, rate, channels)[0]) for path in bundled_clips() if path.name.startswith(kind)]
    for bandwidth in model.config.target_bandwidths:
        decoded = model.decode_batch(model.encode_batch(clips, bandwidth))
        errors = sum((a - b).square().sum() for a, b in zip(clips, decoded, strict=True))
        measured[bandwidth] = float(10 * torch.log10(sum(clip.square().sum() for clip in clips) / errors))
    assert measured.keys() == LEAST_SIGNAL_TO_NOISE[name].keys()
    assert all(measured[bandwidth] >= least for bandwidth, least in LEAST_SIGNAL_TO_NOISE[name].items()), measured
    assert sorted(measured.values()) == list(measured.values())


def test_a_model_is_ready_to_use_and_leaves_the_random_state_alone(model):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    demo_model("demo-48khz")
    assert torch.equal(torch.rand(1), expected)
    assert not model.training and model.dtype == torch.float32


def test_the_weights_take_less_than_nine_megabytes_each():
    assert max(path.stat().st_size for path in ASSETS.glob("*.safetensors")) < 9_000_000


@pytest.mark.parametrize("peak", [0.0, 1e-4, 50.0])
def test_silence_whispers_and_clipped_speech_decode_to_numbers(peak, model):
    clip = peak * fitting_audio(model.config)[0].sign()
    (audio,) = model.decode_batch(model.encode_batch([clip], 6.0))
    assert audio.isfinite().all() and audio.abs().max() < max(10, 3 * peak)


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
