"""Batches of any clips, long clips and streams on the triton backend: the bits of each clip alone."""

import random

import pytest
import torch
from bounds import assert_same_bits

from encodec_fast import StreamingDecoder, StreamingEncoder, use_backend
from support.models import audio_like, pair, small_config, top_bandwidth

SMALL = dict(num_filters=2, hidden_size=8, codebook_size=16, upsampling_ratios=[5, 4], num_lstm_layers=1)


@pytest.fixture(scope="module")
def model():
    return pair(small_config(**SMALL))[1]


@pytest.fixture(autouse=True)
def on_triton():
    with use_backend("triton"):
        yield


def alone(model, clip):
    return model.encode(clip[None], bandwidth=top_bandwidth(model)).audio_codes[0, 0]


def test_a_clip_of_a_batch_is_the_clip_alone(model):
    clips = [audio_like(1, 1, length, length)[0] for length in (41, 1, 41)]
    encoded = model.encode_batch(clips, top_bandwidth(model))
    decoded = model.decode_batch(encoded)
    for clip, own, audio in zip(clips, encoded, decoded, strict=True):
        assert_same_bits(own.codes[0], alone(model, clip))
        assert_same_bits(audio, model.decode_batch([own])[0])


@pytest.mark.parametrize("seed", range(2))
def test_streams_of_one_batch_give_the_codes_of_their_clips(model, seed):
    rng = random.Random(seed)
    clips = [audio_like(1, 1, rng.randint(1, 60), seed + i)[0] for i in range(3)]
    encoder, at, got = StreamingEncoder(model, top_bandwidth(model), 3), [0, 0, 0], [[], [], []]
    turn = 0
    while any(at[i] < clips[i].shape[1] for i in range(3)):
        pieces = []
        for i, clip in enumerate(clips):
            size = 0 if turn < i else rng.randint(0, 35)
            pieces.append(clip[:, at[i] : at[i] + size])
            at[i] += pieces[-1].shape[1]
        for mine, codes in zip(got, encoder.push(pieces), strict=True):
            mine.append(codes)
        saved = encoder.state_dict()
        encoder = StreamingEncoder(model, top_bandwidth(model), 3)
        encoder.load_state_dict(saved)
        turn += 1
    for mine, clip, codes in zip(got, clips, encoder.flush(), strict=True):
        assert_same_bits(torch.cat([*mine, codes], 1), alone(model, clip))


def test_streams_that_started_at_different_times_run_as_one_batch(model, monkeypatch):
    encoder, clip = StreamingEncoder(model, top_bandwidth(model), 2), audio_like(1, 1, 240, 1)[0]
    encoder.push([clip, None])
    encoder.push([None, clip[:, :200]])
    batches = []
    program = encoder._codec.network.programs[0]
    original = program.push_batch

    def push_batch(x, state, final):
        batches.append(x.shape[0])
        return original(x, state, final)

    monkeypatch.setattr(program, "push_batch", push_batch)
    encoder.push([clip[:, :40], clip[:, :40]])
    assert batches == [2]


def test_a_decoded_stream_is_the_decoded_clip(model):
    codes = torch.randint(0, 16, (2, 2, 13), generator=torch.Generator().manual_seed(0))
    decoder = StreamingDecoder(model, 2)
    parts = [decoder.push(codes[..., a:b]) for a, b in ((0, 1), (1, 8), (8, 13))] + [decoder.flush()]
    whole = model.decode(codes[None], [None]).audio_values
    for stream in range(2):
        assert_same_bits(torch.cat([part[stream] for part in parts], 1), whole[stream])


def test_long_audio_in_pieces_is_the_audio_whole(model):
    audio = audio_like(1, 1, 510, 2)
    whole = model.encode(audio, bandwidth=top_bandwidth(model)).audio_codes
    rate, model.config.sampling_rate, model.max_memory = model.config.sampling_rate, 250, 1
    try:
        assert_same_bits(model.encode_batch(list(audio), top_bandwidth(model))[0].codes[0], whole[0, 0])
    finally:
        model.config.sampling_rate, model.max_memory = rate, None


def leaves_of(tree, path=()):
    """(path, value, the list that it stands in) of everything in nested lists that is none."""
    for at, part in enumerate(tree):
        yield from leaves_of(part, (*path, at)) if isinstance(part, list) else [((*path, at), part, tree)]


def with_leaf(tree, path, value):
    """A copy of the tree with another value there."""
    changed = list(tree)
    changed[path[0]] = with_leaf(tree[path[0]], path[1:], value) if path[1:] else value
    return changed


def forgeries_of(value, around):
    if isinstance(value, torch.Tensor):
        return [value.double(), torch.cat([value, value], -1)]
    if type(value) is not int:
        return []
    # whether an LSTM took an even number of steps may be either
    parity = isinstance(around[0], torch.Tensor) and around[0].dim() == 4
    return [other for other in (value - 1, value + 1, value + (1 << 30)) if not (parity and other in (0, 1))]


@pytest.mark.parametrize("steps", [5, 60])
@pytest.mark.parametrize("make", [StreamingEncoder, StreamingDecoder])
def test_a_forged_count_or_size_is_refused(model, make, steps):
    streams = make(model)
    streams.push(audio_like(1, 1, steps, 1)[0] if make is StreamingEncoder else torch.ones(1, steps // 4, dtype=torch.int64))
    state = streams.state_dict()
    del state["checksum"]
    streams.load_state_dict(state)
    for path, value, around in leaves_of(state["streams"]):
        for other in forgeries_of(value, around):
            with pytest.raises(ValueError, match="state"):
                streams.load_state_dict({**state, "streams": with_leaf(state["streams"], path, other)})
