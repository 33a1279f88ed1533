"""Batches of any clips and clips of any length: the codes and the audio of each clip alone, within the memory allowed."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from encodec_fast import (
    EncodecModel,
    StreamingDecoder,
    StreamingEncoder,
    decode_pieces,
    encode_pieces,
    use_backend,
)
from encodec_fast.serving import memory
from encodec_fast.serving.prepared import PreparedNetwork
from encodec_fast.serving.route import route_encode
from support.configs import configs
from support.engine import engine
from support.models import audio_like, drawn_pair, is_error, outcome, pair, small_config, top_bandwidth

CONFIGS = [
    small_config(),
    small_config(pad_mode="replicate", trim_right_ratio=0.5, audio_channels=2),
    small_config(use_causal_conv=False, norm_type="time_group_norm", audio_channels=2),
    small_config(normalize=True, chunk_length_s=0.1, overlap=0.01, norm_type="time_group_norm", use_causal_conv=False),
]
MODELS = {}


def model_of(index: int):
    if index not in MODELS:
        MODELS[index] = pair(CONFIGS[index])[1]
    return MODELS[index]


@pytest.fixture(autouse=True)
def needs_engine():
    engine()


@pytest.fixture
def allowed():
    """Sets how much memory the models may take, and takes it back."""

    def allow(model, size):
        model.max_memory = size

    yield allow
    for model in MODELS.values():
        model.__dict__.pop("max_memory", None)


def alone(model, clip):
    return model.encode(clip[None], bandwidth=top_bandwidth(model))


def same_clip(encoded, output) -> bool:
    scales = [] if output.audio_scales[0] is None else [torch.cat(output.audio_scales).flatten()]
    own = [] if encoded.scales is None else [encoded.scales]
    return torch.equal(encoded.codes, output.audio_codes[:, 0]) and all(map(torch.equal, own, scales)) and len(own) == len(scales)


lengths = st.lists(st.one_of(st.integers(1, 30), st.integers(1, 900)), min_size=1, max_size=5)


@given(st.integers(0, len(CONFIGS) - 1), lengths, st.sampled_from([None, 1, 50_000]), st.integers(0, 99))
def test_a_clip_of_a_batch_is_the_clip_alone(index, sizes, max_memory, seed):
    model = model_of(index)
    clips = [audio_like(1, model.config.audio_channels, size, seed + i)[0] for i, size in enumerate(sizes)]
    expected = [alone(model, clip) for clip in clips]
    model.max_memory = max_memory
    try:
        encoded = model.encode_batch(clips, top_bandwidth(model))
        decoded = model.decode_batch(encoded)
    finally:
        model.max_memory = None
    for clip, own, output, audio in zip(clips, encoded, expected, decoded):
        assert same_clip(own, output)
        assert torch.equal(audio, model.decode_batch([own])[0]) and audio.shape == clip.shape


@given(configs(), lengths, st.integers(0, 99))
def test_a_clip_of_a_batch_is_the_clip_alone_in_any_config(config, sizes, seed):
    _, model = drawn_pair(config, seed)
    clips = [audio_like(1, config.audio_channels, size, seed + i)[0] for i, size in enumerate(sizes)]
    expected = [outcome(lambda clip=clip: alone(model, clip)) for clip in clips]
    # such as a group norm over one value, which alone is an error too
    possible = [(clip, output) for clip, output in zip(clips, expected) if not is_error(output)]
    encoded = model.encode_batch([clip for clip, _ in possible], top_bandwidth(model))
    assert all(same_clip(own, output) for own, (_, output) in zip(encoded, possible))
    sounds = [outcome(lambda own=own: model.decode_batch([own])[0]) for own in encoded]
    possible = [(own, sound) for own, sound in zip(encoded, sounds) if not is_error(sound)]
    for audio, (own, sound) in zip(model.decode_batch([own for own, _ in possible]), possible):
        assert torch.equal(audio, sound) and audio.shape[1] == own.num_samples


def test_neighbours_full_of_nan_change_nothing():
    for index in range(len(CONFIGS)):
        model = model_of(index)
        channels = model.config.audio_channels
        clip, noise = audio_like(1, channels, 500, 1)[0], torch.full((channels, 700), float("nan"))
        encoded = model.encode_batch([noise, clip, noise[:, :500]], top_bandwidth(model))[1]
        assert same_clip(encoded, alone(model, clip))


def test_threads_change_nothing():
    before = torch.get_num_threads()
    try:
        for index in range(len(CONFIGS)):
            model = model_of(index)
            clips = [audio_like(1, model.config.audio_channels, size, size)[0] for size in (900, 40, 333)]
            results = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(model.encode_batch(clips, top_bandwidth(model)))
            for other in results[1:]:
                assert all(torch.equal(a.codes, b.codes) for a, b in zip(results[0], other))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_long_audio_in_pieces_is_the_audio_whole(index, masked, allowed):
    model = model_of(index)
    audio = audio_like(2, model.config.audio_channels, 30_001, 3)
    mask = torch.arange(30_001) < torch.tensor([[30_001], [17_003]]) if masked else None
    bandwidth = top_bandwidth(model)
    whole = model.encode(audio, mask, bandwidth)
    with torch.no_grad():
        sound = model.decode(whole.audio_codes, [None], mask).audio_values
        allowed(model, 1)
        pieces = model.encode(audio, mask, bandwidth)
        assert torch.equal(pieces.audio_codes, whole.audio_codes) and pieces.keys() == whole.keys()
        assert torch.equal(model.decode(whole.audio_codes, [None], mask).audio_values, sound)


def test_no_piece_is_longer_than_the_memory_allowed(monkeypatch, allowed):
    model = model_of(0)
    audio = audio_like(1, 1, 50_000, 4)[0]
    pushed: list[int] = []
    original = PreparedNetwork.push

    def push(self, pieces, states, final):
        pushed.append(sum(piece.shape[1] for piece in pieces))
        return original(self, pieces, states, final)

    monkeypatch.setattr(PreparedNetwork, "push", push)
    rate = model.config.sampling_rate
    codec = route_encode(model, [audio[None]]).prepared
    per_sample = 4 * codec.network.network.stages[-1].out_channels / codec.network.network.hop_length
    allowed(model, int(per_sample * 3 * rate))
    model.encode_batch([audio], top_bandwidth(model))
    assert max(pushed) <= 3 * rate and sum(pushed) == 50_000


def test_the_torch_backend_cuts_only_what_does_not_fit(monkeypatch):
    model = model_of(0)
    audio = audio_like(1, 1, 20_000, 4)
    with use_backend("torch"):
        whole = model.encode(audio, bandwidth=top_bandwidth(model)).audio_codes
        assert torch.equal(model.encode_batch(list(audio), top_bandwidth(model))[0].codes, whole[:, 0])
    assert memory.budget(None, False, torch.device("cpu")) > memory.budget(None, True, torch.device("cpu"))


def test_hooks_on_the_encoder_see_the_batch():
    model, seen = model_of(0), []
    handle = model.encoder.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    try:
        model.encode_batch(list(audio_like(2, 1, 200, 0)), top_bandwidth(model))
    finally:
        handle.remove()
    assert seen


def test_free_memory_is_known_here():
    free = memory.free_bytes(torch.device("cpu"))
    assert 0 < free <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("index", [0, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_torch_s_default_dtype_changes_nothing(index, dtype):
    model = model_of(index)
    clips = [audio_like(1, model.config.audio_channels, size, size)[0] for size in (900, 333)]

    def results():
        encoded = model.encode_batch(clips, top_bandwidth(model))
        whole = model.encode(clips[0][None], bandwidth=top_bandwidth(model))
        sound = model.decode(whole.audio_codes, whole.audio_scales, last_frame_pad_length=0).audio_values
        streamed = [] if index else list(decode_pieces(model, encode_pieces(model, clips[0].split(100, 1), top_bandwidth(model))))
        return [*(clip.codes for clip in encoded), *model.decode_batch(encoded), whole.audio_codes, sound, *streamed]

    expected = results()
    torch.set_default_dtype(dtype)
    try:
        found = results()
    finally:
        torch.set_default_dtype(torch.float32)
    for own, other in zip(found, expected, strict=True):
        assert own.dtype == other.dtype and torch.equal(own, other)


def test_torch_s_default_device_changes_nothing():
    model = model_of(0)
    codes = model.encode_batch([audio_like(1, 1, 900, 1)[0]], top_bandwidth(model))
    sound = model.decode_batch(codes)[0]
    with torch.device("meta"):
        assert torch.equal(model.decode_batch(codes)[0], sound)
        assert torch.equal(model.encode_batch([audio_like_on_cpu(900)], top_bandwidth(model))[0].codes, codes[0].codes)


def audio_like_on_cpu(samples):
    with torch.device("cpu"):
        return audio_like(1, 1, samples, 1)[0]


def test_a_scale_is_applied_to_long_audio_too(allowed):
    model = model_of(0)
    codes, scale = model.encode(audio_like(2, 1, 3000, 5), bandwidth=top_bandwidth(model)).audio_codes, torch.tensor([[0.5], [2.0]])
    with torch.no_grad():
        expected = model.decode(codes, [scale]).audio_values
        allowed(model, 1)
        assert torch.equal(model.decode(codes, [scale]).audio_values, expected)


def test_codes_that_are_no_integers_are_an_error_of_hf_s_words(allowed):
    model = model_of(0)
    codes = model.encode(audio_like(1, 1, 3000, 5), bandwidth=top_bandwidth(model)).audio_codes
    with torch.no_grad():
        expected = outcome(lambda: model.decode(codes.float(), [None]))
        allowed(model, 1)
        assert is_error(expected) and outcome(lambda: model.decode(codes.float(), [None])) == expected
    with pytest.raises(ValueError, match=r"of stream 0 are .* not integers"):
        StreamingDecoder(model).push(codes[0, 0].float())


@pytest.mark.parametrize("width", [4, 16])
def test_codebooks_of_another_width_than_the_embeddings_are_an_error(width):
    config = small_config(codebook_dim=width)
    model = EncodecModel(config)
    audio = audio_like(1, 1, 900, 1)
    assert is_error(outcome(lambda: model.encode(audio)))
    assert is_error(outcome(lambda: model.encode_batch(list(audio))))
    with pytest.raises(ValueError, match="not as wide"):
        StreamingEncoder(model)


def test_a_layer_of_another_dtype_is_the_error_of_hf():
    theirs, ours = pair(small_config())
    audio = audio_like(1, 1, 900, 1)
    for model in (theirs, ours):
        model.encoder.layers[-3].half()
    expected = outcome(lambda: theirs.encode(audio))
    assert is_error(expected) and outcome(lambda: ours.encode(audio))[0] is expected[0]


def test_methods_and_modules_of_somebody_s_own_are_honoured_by_batches():
    _, model = pair(small_config())
    clip = audio_like(1, 1, 900, 1)[0]
    encoded = model.encode_batch([clip], top_bandwidth(model))
    model.quantizer.decode = lambda codes: torch.zeros(codes.shape[1], model.config.hidden_size, codes.shape[2])
    silent = model.decode(encoded[0].codes[:, None], [None]).audio_values
    assert torch.equal(model.decode_batch(encoded)[0], silent[0, :, :900])
    with pytest.raises(ValueError, match="a decode of its own"):
        StreamingDecoder(model)
    del model.quantizer.decode

    class Louder(type(model.encoder)):
        def forward(self, hidden_states):
            return 2 * super().forward(hidden_states)

    model.encoder.__class__ = Louder
    own = model.encode_batch([clip], top_bandwidth(model))[0]
    assert not torch.equal(own.codes, encoded[0].codes) and same_clip(own, alone(model, clip))
    model.encoder.__class__ = Louder.__base__
    model.encoder = torch.nn.Sequential(model.encoder, torch.nn.Identity())
    assert torch.equal(model.encode_batch([clip], top_bandwidth(model))[0].codes, encoded[0].codes)
