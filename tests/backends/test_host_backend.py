"""The host backend: what runs on the CPU for a device whose results can't be relied on. No such device is at hand here."""

from __future__ import annotations

import itertools

import pytest
import torch

import encodec_fast
from encodec_fast import BackendError, StreamingEncoder, use_backend
from encodec_fast.backends.base import Precision
from encodec_fast.backends.host_backend import HostProgram, HostQuantizerProgram
from encodec_fast.plan.reader import read_network, read_quantizer
from encodec_fast.serving import route
from encodec_fast.serving.request import Request
from support.models import audio_like, config_48khz, pair, small_config, top_bandwidth

MPS = torch.device("mps")


@pytest.fixture(scope="module", params=["24 kHz", "48 kHz"])
def model(request):
    small = {"num_filters": 4, "hidden_size": 8, "codebook_size": 16, "target_bandwidths": [3.0, 6.0]}
    return pair(small_config() if request.param == "24 kHz" else config_48khz(**small))[1]


def test_codes_and_audio_are_those_of_the_cpu(model):
    clips = [audio_like(1, model.config.audio_channels, length, length)[0] for length in (5000, 700, 5000)]
    expected = model.encode_batch(clips, top_bandwidth(model), embeddings=True)
    with use_backend("host"):
        found = model.encode_batch(clips, top_bandwidth(model), embeddings=True)
        audio = model.decode_batch(found)
        rows = encodec_fast.explain(model, clips[0][None]).rows
    for one, other, sound, whole in zip(found, expected, audio, model.decode_batch(expected), strict=True):
        assert torch.equal(one.codes, other.codes) and torch.equal(one.embeddings, other.embeddings) and torch.equal(sound, whole)
        assert len(one.codes.unique()) > 1
    assert {row.backend for row in rows} == {"host"}


def test_streams_keep_their_state_there():
    model = pair(small_config())[1]
    clip = audio_like(1, 1, 900, 1)[0]
    with use_backend("host"):
        encoder, codes = StreamingEncoder(model, top_bandwidth(model)), []
        for start, end in itertools.pairwise([0, 100, 101, 600]):
            codes += encoder.push(clip[:, start:end])
        saved, encoder = encoder.state_dict(), StreamingEncoder(model, top_bandwidth(model))
        encoder.load_state_dict(saved)
        codes += [*encoder.push(clip[:, 600:]), *encoder.flush()]
    assert torch.equal(torch.cat(codes, 1), model.encode_batch([clip], top_bandwidth(model))[0].codes[0])


def test_outputs_go_back_to_where_the_weights_are(model):
    network, quantizer = read_network(model.encoder), read_quantizer(model.quantizer)
    program, codebooks = HostProgram(network.stages, Precision.PARITY), HostQuantizerProgram(quantizer)
    # meta holds no values: nothing but the way back can be seen of it
    program.device = codebooks.device = torch.device("meta")
    audio = audio_like(2, model.config.audio_channels, 800, 0)
    embeddings = program.inner.run(audio)
    assert program.run(audio).is_meta and program.run(audio).shape == embeddings.shape
    assert all(output.is_meta for output in program.run_clips(list(audio)))
    assert all(output.is_meta for output in program.push(list(audio), [program.open(), program.open()], [True, True]))
    codes = codebooks.inner.encode(embeddings, 2)
    assert codebooks.encode(embeddings, 2).is_meta and codebooks.decode(codes).is_meta


def test_apple_s_gpus_are_served_by_it_with_the_reason(model):
    stage = read_network(model.encoder).stages[0]
    choice = route._choose(stage, torch.float32, MPS, Request("auto", False))
    assert choice.backend == "host" and choice.reason.startswith("torch: its codes are wrong on mps")
    # a preference gives way, a demand does not
    assert route._choose(stage, torch.float32, MPS, Request("cpu", False)).backend == "host"
    with pytest.raises(BackendError, match="'torch' was asked for but can't run this call: its codes are wrong on mps"):
        route._choose(stage, torch.float32, MPS, Request("torch", True))


def test_what_one_stage_keeps_from_the_engine_runs_in_torch():
    odd = pair(small_config(upsampling_ratios=[3, 2], kernel_size=5))[1].double()
    clip = audio_like(1, 1, 600, 0)[0].double()
    with use_backend("host"):
        (found,) = odd.encode_batch([clip])
    assert torch.equal(found.codes, odd.encode_batch([clip])[0].codes)
