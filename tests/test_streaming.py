"""Streams: any pieces, any neighbours, any interruption, and the codes of the whole clip."""

from __future__ import annotations

import copy
import io
import itertools
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from encodec_fast import EncodecModel, StreamingDecoder, StreamingEncoder, decode_pieces, encode_pieces, use_backend
from support.configs import configs
from support.engine import engine
from support.models import audio_like, config_24khz, drawn_pair, pair, small_config, top_bandwidth

CONFIGS = [
    small_config(),
    small_config(pad_mode="constant", trim_right_ratio=0.3, upsampling_ratios=[3, 5]),
    small_config(pad_mode="replicate", use_conv_shortcut=False, num_residual_layers=3, num_lstm_layers=1),
    small_config(audio_channels=2, residual_kernel_size=5, dilation_growth_rate=3, kernel_size=1, last_kernel_size=9),
]
MODELS = {}


def model_of(index: int):
    if index not in MODELS:
        MODELS[index] = pair(CONFIGS[index])[1]
    return MODELS[index]


@pytest.fixture(autouse=True)
def needs_engine():
    engine()


def cuts_of(length: int, shares: list[float]) -> list[tuple[int, int]]:
    bounds = [0, *sorted(int(share * length) for share in shares), length]
    return list(itertools.pairwise(bounds))


def whole_codes(model, clip):
    return model.encode(clip[None], bandwidth=top_bandwidth(model)).audio_codes[0, 0]


streams = st.lists(st.tuples(st.integers(1, 400), st.lists(st.floats(0, 1), min_size=3, max_size=3)), min_size=1, max_size=4)


@given(st.integers(0, len(CONFIGS) - 1), streams, st.integers(0, 99))
def test_streams_of_one_batch_give_the_codes_of_their_clips(index, plan, seed):
    model = model_of(index)
    clips = [audio_like(1, model.config.audio_channels, length, seed + i)[0] for i, (length, _) in enumerate(plan)]
    encoder, got = StreamingEncoder(model, top_bandwidth(model), len(clips)), [[] for _ in clips]

    # stream i starts i rounds late, and ends when its own pieces do
    def pieces_of(i, clip, shares):
        return [None] * i + [clip[:, a:b] for a, b in cuts_of(clip.shape[1], shares)]

    pieces = [pieces_of(i, clip, shares) for i, (clip, (_, shares)) in enumerate(zip(clips, plan))]
    for turn in range(max(map(len, pieces))):
        results = encoder.push([mine[turn] if turn < len(mine) else None for mine in pieces])
        last = [turn == len(mine) - 1 for mine in pieces]
        for mine, *parts in zip(got, results, encoder.flush(last)):
            mine += parts
    for mine, clip in zip(got, clips):
        assert torch.equal(torch.cat(mine, 1), whole_codes(model, clip))


@given(configs(streamable=True), st.integers(1, 500), st.lists(st.floats(0, 1), max_size=5), st.integers(0, 99))
def test_a_stream_of_any_config_gives_the_codes_of_its_clip(config, length, shares, seed):
    _, model = drawn_pair(config, seed)
    clip = audio_like(1, config.audio_channels, length, seed)[0]
    pieces = [clip[:, a:b] for a, b in cuts_of(length, shares)]
    codes = list(encode_pieces(model, pieces, top_bandwidth(model)))
    whole = model.encode(clip[None], bandwidth=top_bandwidth(model))
    assert torch.equal(torch.cat(codes, 1), whole.audio_codes[0, 0])
    with torch.no_grad():
        audio = torch.cat(list(decode_pieces(model, codes)), 1)
        assert torch.equal(audio, model.decode(whole.audio_codes, [None]).audio_values[0])


@given(st.integers(0, len(CONFIGS) - 1), st.integers(1, 60), st.lists(st.floats(0, 1), max_size=5), st.integers(0, 99))
def test_a_decoded_stream_is_the_decoded_clip(index, frames, shares, seed):
    model = model_of(index)
    codes = torch.randint(0, model.config.codebook_size, (2, 3, frames), generator=torch.Generator().manual_seed(seed))
    decoder = StreamingDecoder(model, 2)
    parts = [decoder.push(codes[..., a:b]) for a, b in cuts_of(frames, shares)]
    parts.append(decoder.flush())
    whole = model.decode(codes[None], [None]).audio_values
    for stream in range(2):
        assert torch.equal(torch.cat([part[stream] for part in parts], 1), whole[stream])


@pytest.mark.parametrize("index", range(len(CONFIGS)))
def test_frames_and_samples_come_when_they_are_announced(index):
    model = model_of(index)
    encoder, decoder = StreamingEncoder(model), StreamingDecoder(model)
    clip = audio_like(1, model.config.audio_channels, 120, 1)[0]
    frames = 0
    for samples in range(1, 121):
        frames += encoder.push(clip[:, samples - 1 : samples])[0].shape[1]
        assert frames == encoder.frames_ready(samples)
    samples = 0
    for frames in range(1, 40):
        samples += decoder.push(torch.zeros(1, 1, dtype=torch.int64))[0].shape[1]
        assert samples == decoder.samples_ready(frames)


def test_the_24khz_model_looks_ahead_no_further_than_its_frame():
    model = EncodecModel(config_24khz())
    encoder, decoder = StreamingEncoder(model), StreamingDecoder(model)
    assert [encoder.frames_ready(samples) for samples in (2239, 2240, 2559, 2560)] == [0, 7, 7, 8]
    assert [decoder.samples_ready(frames) for frames in (6, 7, 8)] == [0, 2240, 2560]


def test_neighbours_full_of_nan_change_nothing():
    model, clip = model_of(0), audio_like(1, 1, 300, 2)[0]
    encoder = StreamingEncoder(model, top_bandwidth(model), 3)
    noise = torch.full((1, 300), float("nan"))
    parts = [encoder.push([noise[:, a : a + 50], clip[:, a : a + 50], noise[:, a : a + 20]])[1] for a in range(0, 300, 50)]
    parts.append(encoder.flush()[1])
    assert torch.equal(torch.cat(parts, 1), whole_codes(model, clip))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_a_stream_goes_on_from_its_saved_state(backend):
    model, clip = model_of(0), audio_like(2, 1, 400, 3)
    with use_backend(backend):
        first, second = (StreamingEncoder(copied, top_bandwidth(model), 2) for copied in (model, copy.deepcopy(model)))
        expected = [first.push(clip[..., :170]), first.push(clip[..., 170:])]
        first.reset()
        parts = [first.push(clip[..., :170])]
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second.load_state_dict(torch.load(file, weights_only=True))
        parts.append(second.push(clip[..., 170:]))
    for stream in range(2):
        assert all(torch.equal(part[stream], other[stream]) for part, other in zip(parts, expected))


OTHER_PROCESS = """
import sys, torch
from encodec_fast import StreamingEncoder
from support.models import top_bandwidth
from test_streaming import model_of
model = model_of(0)
encoder = StreamingEncoder(model, top_bandwidth(model))
state, samples = torch.load(sys.argv[1], weights_only=True)
encoder.load_state_dict(state)
torch.save([*encoder.push(samples), *encoder.flush()], sys.argv[1])
"""


def test_a_stream_goes_on_in_another_process(tmp_path):
    model, clip = model_of(0), audio_like(1, 1, 400, 4)[0]
    encoder = StreamingEncoder(model, top_bandwidth(model))
    (start,) = encoder.push(clip[:, :233])
    torch.save((encoder.state_dict(), clip[:, 233:]), tmp_path / "stream.pt")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, "-c", OTHER_PROCESS, tmp_path / "stream.pt"], check=True, env=environment)
    rest = torch.load(tmp_path / "stream.pt")
    assert torch.equal(torch.cat([start, *rest], 1), whole_codes(model, clip))


def test_a_state_of_something_else_is_refused():
    encoder = StreamingEncoder(model_of(0), batch_size=2)
    state = encoder.state_dict()
    with pytest.raises(ValueError, match="streams, here are 1"):
        StreamingEncoder(model_of(0)).load_state_dict(state)
    with pytest.raises(ValueError, match="kind is 'StreamingEncoder'"):
        StreamingDecoder(model_of(0), 2).load_state_dict(state)
    other = copy.deepcopy(model_of(0))
    with torch.no_grad():
        other.encoder.layers[0].conv.parametrizations.weight.original0.mul_(2.0)
    with pytest.raises(ValueError, match="weights"):
        StreamingEncoder(other, batch_size=2).load_state_dict(state)
    with use_backend("torch"), pytest.raises(ValueError, match="backends"):
        StreamingEncoder(model_of(0), batch_size=2).load_state_dict(state)
    state["streams"][0][0][0] = state["streams"][0][0][0][:-1]
    with pytest.raises(ValueError, match="not the state"):
        encoder.load_state_dict(state)


def leaves_of(tree, path=()):
    """(path, value) of everything in nested dicts and lists that is neither."""
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if parts is None:
        yield path, tree
    else:
        yield from (leaf for key, part in parts for leaf in leaves_of(part, (*path, key)))


def with_leaf(tree, path, value):
    """A copy of the tree with another value there."""
    if not path:
        return value
    changed = copy.copy(tree)
    changed[path[0]] = with_leaf(tree[path[0]], path[1:], value)
    return changed


def flips_of(value):
    """The leaf with each of its bytes changed, or as the next whole numbers."""
    if isinstance(value, torch.Tensor):
        content = value.contiguous().view(torch.uint8) if value.dim() else value[None].view(torch.uint8)[0]
        for at in range(content.numel()):
            flipped = content.clone()
            flipped.view(-1)[at] ^= 1 << at % 8
            yield flipped.view(value.dtype)
    elif isinstance(value, int):
        yield from (value - 1, value + 1)


TINY = small_config(num_filters=2, hidden_size=4, codebook_size=8, num_lstm_layers=1, trim_right_ratio=0.3)


def streams_with_a_past(make, piece):
    """Two streams of different ages, on the backend in force."""
    made = make(pair(TINY)[1], batch_size=2)
    made.push([piece(23), None])
    made.push([None, piece(9)])
    return made


PIECES = {
    StreamingEncoder: lambda steps: audio_like(1, 1, steps, steps)[0],
    StreamingDecoder: lambda frames: torch.ones(1, frames, dtype=torch.int64),
}


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("make", list(PIECES))
def test_a_state_with_any_byte_changed_is_refused(make, backend):
    with use_backend(backend):
        streams = streams_with_a_past(make, PIECES[make])
        state = streams.state_dict()
        tried = 0
        for path, value in leaves_of(state):
            for flipped in flips_of(value):
                tried += 1
                with pytest.raises(ValueError, match="state"):
                    streams.load_state_dict(with_leaf(state, path, flipped))
        assert tried > 400
        streams.load_state_dict(state)


@pytest.mark.parametrize("make", list(PIECES))
def test_a_forged_count_of_the_engine_is_refused(make):
    streams = streams_with_a_past(make, PIECES[make])
    state = streams.state_dict()
    del state["checksum"]
    ((content,),) = state["streams"][0]
    # the mark, the clip's length and end, its outputs of the first stages, their h and c, and the first stage's place
    for at, step in itertools.product(range(10), (-1, 1)):
        forged = content.clone()
        forged[8 * at : 8 * at + 8].view(torch.int64).add_(step)
        with pytest.raises(ValueError, match="not the state"):
            streams.load_state_dict(with_leaf(state, ("streams", 0, 0, 0), forged))


@pytest.mark.parametrize("make", list(PIECES))
def test_a_forged_count_or_size_of_the_torch_backend_is_refused(make):
    with use_backend("torch"):
        streams = streams_with_a_past(make, PIECES[make])
        state = streams.state_dict()
        del state["checksum"]
        for path, value in leaves_of(state):
            if isinstance(value, torch.Tensor):
                forged = [torch.cat([value, value], 1), value.double()]
            else:
                forged = [-1, 1 << 40] if type(value) is int else []
            for other in forged:
                with pytest.raises(ValueError, match="state"):
                    streams.load_state_dict(with_leaf(state, path, other))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_a_state_without_a_checksum_goes_on(backend):
    with use_backend(backend):
        streams = streams_with_a_past(StreamingEncoder, PIECES[StreamingEncoder])
        state = streams.state_dict()
        (expected, _), _ = streams.push([PIECES[StreamingEncoder](50), None]), state.pop("checksum")
        streams.load_state_dict(state)
        assert torch.equal(streams.push([PIECES[StreamingEncoder](50), None])[0], expected)


def test_a_state_of_an_ended_stream_stays_ended():
    streams = streams_with_a_past(StreamingEncoder, PIECES[StreamingEncoder])
    streams.flush([True, False])
    state = streams.state_dict()
    streams.reset()
    streams.load_state_dict(state)
    with pytest.raises(ValueError, match="stream 0 has ended"):
        streams.push([PIECES[StreamingEncoder](5), None])
    del state["checksum"]
    with pytest.raises(ValueError, match="ended as"):
        streams.load_state_dict({**state, "ended": [0, 0]})


@pytest.mark.parametrize("state", [None, [], {}, {"kind": "StreamingEncoder"}])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(ValueError, match="state_dict"):
        StreamingEncoder(model_of(0)).load_state_dict(state)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (small_config(normalize=True), "normalize=True"),
        (small_config(norm_type="time_group_norm"), "normalises over the whole clip"),
        (small_config(use_causal_conv=False), "looks ahead"),
        (small_config(chunk_length_s=0.1, overlap=0.0), "chunks of"),
    ],
)
def test_a_model_that_cannot_stream_says_why_and_what_to_use(config, reason):
    model = EncodecModel(config)
    for stream in (StreamingEncoder, StreamingDecoder):
        with pytest.raises(ValueError, match=f"can't stream: .*{reason}.*encode_batch"):
            stream(model)


def test_bad_calls_name_the_argument():
    model = model_of(0)
    encoder = StreamingEncoder(model, batch_size=2)
    with pytest.raises(ValueError, match="1 pieces came for 2 streams"):
        encoder.push([torch.zeros(5)])
    with pytest.raises(ValueError, match=r"stream 1 have shape \[2, 5\], not \[1, T\]"):
        encoder.push([None, torch.zeros(2, 5)])
    with pytest.raises(ValueError, match="mask has 3 entries"):
        encoder.flush([True, False, True])
    with pytest.raises(ValueError, match="bandwidth"):
        StreamingEncoder(model, 7.7)
    with pytest.raises(ValueError, match="batch_size is 0"):
        StreamingEncoder(model, batch_size=0)
    with pytest.raises(TypeError, match=r"expected an encodec_fast\.EncodecModel"):
        StreamingEncoder(torch.nn.Linear(1, 1))
    encoder.flush([True, False])
    with pytest.raises(ValueError, match="stream 0 has ended"):
        encoder.push(torch.zeros(2, 1, 9))
    encoder.reset([True, False])
    encoder.push(torch.zeros(2, 1, 9))
    with pytest.raises(ValueError, match=r"shape \[99, 3\]"):
        StreamingDecoder(model).push(torch.zeros(99, 3, dtype=torch.int64))
    with pytest.raises(IndexError):
        StreamingDecoder(model).push(torch.full((1, 3), 99999))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_the_embeddings_of_a_push_are_those_of_its_frames(backend):
    model, clip = model_of(3), audio_like(1, 2, 700, 5)[0]
    with use_backend(backend):
        (whole,) = model.encode_batch([clip], top_bandwidth(model), embeddings=True)
        encoder, codes, kept = StreamingEncoder(model, top_bandwidth(model)), [], []
        for a, b in itertools.pairwise([0, 1, 250, 251, 700]):
            codes += encoder.push(clip[:, a:b])
            kept += encoder.embeddings
            assert kept[-1].shape == (model.config.hidden_size, codes[-1].shape[1])
        encoder.flush()
        kept += encoder.embeddings
    assert torch.allclose(torch.cat(kept, 1), whole.embeddings[0], atol=1e-6) and sum(each.shape[1] > 0 for each in kept) > 1
    assert backend == "torch" or torch.equal(torch.cat(kept, 1), whole.embeddings[0])


def test_arrays_are_pieces_too():
    model, clip = model_of(0), audio_like(1, 1, 500, 5)[0]
    for pieces in (clip.numpy(), clip[0].numpy(), [clip.numpy()]):
        encoder = StreamingEncoder(model, top_bandwidth(model))
        assert torch.equal(torch.cat([*encoder.push(pieces), *encoder.flush()], 1), whole_codes(model, clip))


def test_generators_of_pieces_in_and_out():
    model, clip = model_of(0), audio_like(1, 1, 500, 5)[0]
    pieces = list(encode_pieces(model, (clip[:, a : a + 37] for a in range(0, 500, 37)), top_bandwidth(model)))
    assert torch.equal(torch.cat(pieces, 1), whole_codes(model, clip)) and len(pieces) > 3
    audio = torch.cat(list(decode_pieces(model, iter(pieces))), 1)
    assert torch.equal(audio, model.decode(torch.cat(pieces, 1)[None, None], [None]).audio_values[0])


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
def test_ten_thousand_pushes_leave_memory_as_it_was():
    model, rng = model_of(0), random.Random(0)
    encoder = StreamingEncoder(model, top_bandwidth(model), 3)
    audio = audio_like(3, 1, 64, 6)

    def push_at_random(times):
        for _ in range(times):
            encoder.push([audio[b, :, : rng.randrange(64)] for b in range(3)])
            if rng.random() < 0.02:
                encoder.reset([rng.random() < 0.5 for _ in range(3)])

    push_at_random(2000)
    before = resident_bytes()
    push_at_random(10_000)
    # 8,000 states of this model would be 12 MB; what the allocator keeps is under one
    assert resident_bytes() - before < 2 << 20
