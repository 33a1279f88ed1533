"""The examples in Python, run as scripts in this process on small models and the tests' own audio."""

import math
import re
import runpy
import shlex
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import transformers

import encodec_fast
from encodec_fast.audio import write_wav
from support.corpora import RATE, put_clip, put_three, small_model
from support.models import audio_like, reference_model, small_config
from support.venvs import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture
def script(capsys, monkeypatch):
    """Runs `python examples/NAME ARGUMENTS` here; returns its exit code or last words, standard output and standard error."""
    threads, tf32, interrupt = torch.get_num_threads(), torch.backends.cudnn.allow_tf32, signal.getsignal(signal.SIGINT)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield run
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = tf32
    signal.signal(signal.SIGINT, interrupt)


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    """(a small model that can stream, the folder it is in)."""
    folder = tmp_path_factory.mktemp("codec")
    model = small_model()
    model.save_pretrained(folder)
    return model, folder


# Of all


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_help_names_the_defaults(script, path):
    code, out, _ = script(path.name, "--help")
    assert code == 0 and "default" in out and f"python examples/{path.name}" in out


def test_the_table_has_every_example_and_commands_that_their_parsers_take():
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")}
    folders = {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.glob("*/README.md")}
    assert files | folders == set(re.findall(r"\]\(([\w/]+\.\w+)\)", page))
    commands = re.findall(r"`python examples/(\w+\.py) ([^`]+)`", page)
    assert {name for name, _ in commands} == {path.name for path in EXAMPLES.glob("*.py")}
    for name, words in commands:
        runpy.run_path(str(EXAMPLES / name))["parse"](shlex.split(words))


# musicgen.py


@pytest.fixture(scope="module")
def musicgen_folder(tmp_path_factory):
    """A MusicGen of three small models, with random weights, fitted codebooks and a tokenizer of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    codec = reference_model(small_config())
    text = transformers.T5Config(vocab_size=8, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
    decoder = transformers.MusicgenDecoderConfig(
        vocab_size=16, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, num_codebooks=4, max_position_embeddings=512,
        pad_token_id=16, bos_token_id=16,
    )  # fmt: skip
    torch.manual_seed(0)
    parts = transformers.T5EncoderModel(text), codec, transformers.MusicgenForCausalLM(decoder)
    model = transformers.MusicgenForConditionalGeneration(text_encoder=parts[0], audio_encoder=parts[1], decoder=parts[2])
    model.generation_config.update(decoder_start_token_id=16, pad_token_id=16, bos_token_id=16)
    folder = tmp_path_factory.mktemp("musicgen")
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "a": 2, "slow": 3, "waltz": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("prompt", ["a slow waltz", "--unconditional"])
def test_musicgen_plays_as_long_as_asked_with_the_audio_of_transformers(script, musicgen_folder, tmp_path, prompt):
    wav = tmp_path / "music.wav"
    code, out, err = script("musicgen.py", prompt, "--model", musicgen_folder, "--output", wav, "--seconds", 0.5, "--device", "cpu")
    assert code == 0, err
    assert "with transformers: " in out and "with encodec_fast: " in out and "the audio is the same" in out
    samples, rate = soundfile.read(wav)
    assert rate == RATE and len(samples) == RATE // 2 and len(np.unique(samples)) > 100


def test_musicgen_writes_nothing_where_the_decoders_differ(script, musicgen_folder, tmp_path, monkeypatch):
    def accelerate(model):
        model.audio_encoder.decoder.layers[0].conv.bias.data += 0.1
        return SimpleNamespace(changes=[model])

    monkeypatch.setattr(encodec_fast, "accelerate", accelerate)
    wav = tmp_path / "music.wav"
    code, _, _ = script("musicgen.py", "--unconditional", "--model", musicgen_folder, "--output", wav, "--seconds", 0.1, "--device", "cpu")
    assert "the two decoders differ" in code and not wav.exists()


def test_musicgen_says_how_long_it_can_play(script, musicgen_folder):
    code, _, _ = script("musicgen.py", "--unconditional", "--model", musicgen_folder, "--seconds", 60)
    assert "--seconds is 60; this model plays 1.7 s at most" in code


# microphone.py


def test_a_streamed_file_has_the_codes_and_the_audio_of_the_whole_one(script, codec, tmp_path):
    model, folder = codec
    # at another rate, in stereo, and of no whole number of frames
    samples = audio_like(1, 2, 12_347, 3)[0]
    soundfile.write(tmp_path / "talk.wav", samples.numpy().T, 2 * RATE, subtype="FLOAT")
    ends = ["--input", tmp_path / "talk.wav", "--output", tmp_path / "again.wav", "--codes", tmp_path / "talk.npy"]
    code, out, _ = script("microphone.py", *ends, "--model", folder, "--bandwidth", 2.4)
    assert code == 0 and "2.40 kbps" in out and "x real time" in out and "latency" in out

    whole, _ = encodec_fast.audio.read_audio(tmp_path / "talk.wav", RATE, 1)
    (clip,) = model.encode_batch([whole], 2.4)
    assert np.array_equal(np.load(tmp_path / "talk.npy"), clip.codes.numpy()) and len(clip.codes.unique()) > 8
    write_wav(tmp_path / "whole.wav", model.decode_batch([clip])[0].numpy(), RATE)
    streamed, expected = (soundfile.read(tmp_path / name, dtype="int16")[0] for name in ("again.wav", "whole.wav"))
    assert np.array_equal(streamed, expected) and len(np.unique(expected)) > 100


def test_the_microphone_s_sound_comes_out_of_the_speaker(script, codec, monkeypatch):
    """The module's calls are those of sounddevice 0.5; no test has a sound card."""
    model, folder = codec
    said, played = audio_like(1, 1, RATE, 4)[0, 0].numpy(), []

    class Stream:
        def __init__(self, *, samplerate, channels, dtype, device, latency, blocksize=None):
            assert (samplerate, channels, dtype, device) == (RATE, 1, "float32", 7)
            self.at = 0

        def __enter__(self):
            return self

        def __exit__(self, *raised):
            pass

        def read(self, frames):
            self.at += frames
            return said[self.at - frames : self.at, None], False

        def write(self, samples):
            assert samples.dtype == np.float32 and samples.shape[1] == 1 and samples.flags.c_contiguous
            played.append(samples)

    monkeypatch.setitem(sys.modules, "sounddevice", SimpleNamespace(InputStream=Stream, OutputStream=Stream))
    code, out, _ = script("microphone.py", "--model", folder, "--bandwidth", 2.4, "--seconds", 1, "--sound-device", "7")
    assert code == 0 and "   1.00 s" in out
    assert np.array_equal(np.concatenate(played)[:, 0], model.decode_batch(model.encode_batch([said], 2.4))[0][0].numpy())


def test_without_sounddevice_the_microphone_says_what_to_install(script, codec, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    code, _, _ = script("microphone.py", "--model", codec[1], "--bandwidth", 2.4)
    assert "pip install sounddevice" in code and "--input FILE" in code


def test_a_model_of_chunks_is_refused_by_the_microphone(script, tmp_path):
    put_clip(tmp_path / "a.wav", 2400)
    code, _, _ = script("microphone.py", "--model", "demo-48khz", "--input", tmp_path / "a.wav", "--output", tmp_path / "b.wav")
    assert "can't stream" in code and not (tmp_path / "b.wav").exists()


# codes_lm.py


@pytest.fixture(scope="module")
def codes(codec, tmp_path_factory):
    """A folder of codes of three clips: 300, 600 and 41 frames of 2 levels."""
    folder = tmp_path_factory.mktemp("codes")
    encodec_fast.tokenize(put_three(folder / "clips"), folder / "codes", model=codec[1], bandwidth=2.4)
    return folder / "codes"


def losses(out):
    return {int(step): float(bits) for step, bits in re.findall(r"^step (\d+): ([\d.]+) bits per code", out, re.MULTILINE)}


SMALL_LM = "--levels 2 --crop-frames 64 --width 64 --layers 1 --learning-rate 1e-2 --save-every 5 --device cpu".split()


def test_a_language_model_learns_three_clips_goes_on_where_it_stopped_and_plays(script, codes, tmp_path):
    def train(checkpoint, *more):
        return script("codes_lm.py", codes, *SMALL_LM, "--checkpoint", tmp_path / checkpoint, *more)

    whole = losses(train("whole.pt", "--steps", 60)[1])
    # codebooks of 16 entries: 4 bits where nothing is known
    assert [*whole] == [*range(5, 65, 5)] and 3 < whole[5] < 5 and whole[60] < 0.6 * whole[5]

    first = losses(train("parts.pt", "--steps", 35)[1])
    code, out, err = train("parts.pt", "--steps", 60, "--sample", tmp_path / "played.wav", "--sample-seconds", 0.2)
    assert code == 0, err
    assert "goes on at step 35 of 60" in out and first | losses(out) == whole and 40 in losses(out)
    samples, rate = soundfile.read(tmp_path / "played.wav")
    assert rate == RATE and len(samples) == round(0.2 * RATE) and len(np.unique(samples)) > 100

    assert "was begun with --layers 1" in train("parts.pt", "--layers", 2)[0]


@pytest.fixture
def random_lm():
    """(a language model with random weights, 3 levels and 20 frames; its pattern)."""
    example = runpy.run_path(str(EXAMPLES / "codes_lm.py"))
    pattern = encodec_fast.TokenPattern("delay", 3, 16, offsets=True)
    torch.manual_seed(0)
    return example["CodesLM"](pattern, pattern.length(20), 64, 1), pattern


def test_sampled_codes_are_of_the_codebooks_also_where_they_are_random(random_lm):
    codes = random_lm[0].sample(20, 1.0, torch.Generator().manual_seed(0))
    assert codes.shape == (3, 20) and codes.min() >= 0 and codes.max() < 16 and len(codes.unique()) > 8


def test_the_surest_codes_step_by_step_are_the_likeliest_when_seen_at_once(random_lm):
    model, pattern = random_lm
    codes = model.sample(20, 1e-6, torch.Generator())
    tokens = pattern.encode(codes)[None]
    before = torch.nn.functional.pad(tokens, (1, 0), value=pattern.pad_token)[..., :-1]
    odds = model(before)[0].log_softmax(-1).transpose(0, 1)
    likeliest = odds.argmax(-1) + 16 * torch.arange(3)[:, None]
    is_code = tokens[0] != pattern.pad_token
    assert torch.equal(tokens[0][is_code], likeliest[is_code]) and len(codes.unique()) > 2
    torch.testing.assert_close(model.bits(tokens), -odds.amax(-1)[is_code].mean() / math.log(2))


def test_more_levels_than_the_folder_has_are_refused(script, codes, tmp_path):
    code, _, _ = script("codes_lm.py", codes, *SMALL_LM, "--levels", 5, "--checkpoint", tmp_path / "lm.pt")
    assert "levels is 5; " in code and not (tmp_path / "lm.pt").exists()
