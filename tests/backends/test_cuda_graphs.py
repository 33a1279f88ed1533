"""CUDA graphs: which shapes are captured, what is replayed, what falls back and says so. On stand-ins for torch's graphs."""

from __future__ import annotations

import contextlib
import logging
import types

import pytest
import torch

from encodec_fast import BackendError, use_backend
from encodec_fast.backends import cuda_graphs
from encodec_fast.backends.cuda_graphs import CudaGraphs
from encodec_fast.backends.torch_backend import TorchProgram
from encodec_fast.serving import prepared, request
from support.models import audio_like, config_48khz, pair, small_config


class FakeGraph:
    """Replays the work that ran while it was recorded: `work(x)` into the output that the capture made."""

    def __init__(self):
        self.replays = 0

    def pool(self):
        return "pool"

    def replay(self):
        self.replays += 1
        self.y.copy_(self.work(self.x))


@pytest.fixture
def fake_cuda(monkeypatch):
    """torch.cuda with graphs that run on the CPU; yields the graphs made and the pools they were given."""
    made = []

    @contextlib.contextmanager
    def graph(recorded, pool=None, stream=None):
        recorded.stream = stream
        made.append((recorded, pool))
        yield

    stream = types.SimpleNamespace(wait_stream=lambda other: None, wait_event=lambda event: None, record_event=lambda: "event")

    def new_stream(device):
        return types.SimpleNamespace(device=device, wait_stream=lambda other: None)

    cuda = types.SimpleNamespace(
        CUDAGraph=FakeGraph,
        Event=object,
        Stream=new_stream,
        current_stream=lambda device: stream,
        device=lambda device: contextlib.nullcontext(),
        stream=lambda stream: contextlib.nullcontext(),
        graph=graph,
    )
    monkeypatch.setattr(cuda_graphs, "torch", types.SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True))
    yield made


def recorded(made, work):
    """Tells the fake graphs what they hold."""
    calls = []

    def run(x):
        y = work(x)
        calls.append(tuple(x.shape))
        if made and not hasattr(made[-1][0], "y"):
            made[-1][0].x, made[-1][0].y, made[-1][0].work = x, y, work
        return y

    return run, calls


def test_a_graph_is_captured_on_a_stream_of_its_own_device(fake_cuda):
    run, _ = recorded(fake_cuda, lambda x: x)
    x = torch.zeros(2, 3)
    CudaGraphs(run).capture(x)
    assert fake_cuda[0][0].stream.device == x.device


def test_a_captured_shape_is_replayed_and_any_other_runs_with_one_line(fake_cuda, caplog):
    run, calls = recorded(fake_cuda, lambda x: 2 * x + 1)
    graphs = CudaGraphs(run)
    graphs.capture(torch.zeros(2, 3))
    graphs.capture(torch.zeros(2, 3))
    assert len(fake_cuda) == 1, "a shape is captured once"
    calls.clear()
    first, second = torch.randn(2, 3), torch.randn(2, 3)
    a, b = graphs(first), graphs(second)
    assert calls == [], "a replay runs nothing anew"
    assert torch.equal(a, 2 * first + 1) and torch.equal(b, 2 * second + 1), "results are copies: the second left the first alone"
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(graphs(torch.ones(1, 3)), torch.full((1, 3), 3.0))
        assert torch.equal(graphs(torch.ones(2, 3).double()), torch.full((2, 3), 3.0).double())
    assert calls == [(1, 3), (1, 3), (2, 3)]
    assert caplog.text.count("no CUDA graph was captured for (1, 3)") == 1
    assert caplog.text.count("no CUDA graph was captured for (2, 3)") == 1


def test_graphs_share_one_pool(fake_cuda):
    graphs = CudaGraphs(recorded(fake_cuda, torch.neg)[0])
    for size in (1, 2):
        graphs.capture(torch.zeros(size))
    assert [pool for _, pool in fake_cuda] == [None, "pool"]


def test_a_tensor_elsewhere_can_not_be_captured():
    with pytest.raises(ValueError, match="x is on cpu; only a CUDA device has graphs"):
        CudaGraphs(torch.neg).capture(torch.zeros(1))


class Noted:
    """Stands in for CudaGraphs: notes what was captured and what was asked for."""

    def __init__(self, run):
        self.run, self.captured, self.asked = run, [], []

    def capture(self, x):
        self.captured.append(tuple(x.shape))

    def __call__(self, x):
        self.asked.append(tuple(x.shape))
        return self.run(x)


@pytest.fixture
def noted(monkeypatch):
    made = []
    monkeypatch.setattr(prepared, "CudaGraphs", lambda run: made.append(Noted(run)) or made[-1])
    monkeypatch.setattr(TorchProgram, "capturable", True)
    with use_backend("torch"):
        yield made


def test_a_bucket_captures_encoder_and_decoder(noted):
    model = pair(small_config())[1]
    assert model._capture(2, 410) == [(2, 1, 410), (2, 8, 52)]
    encoder, decoder = noted
    with torch.no_grad():
        codes = model.encode(audio_like(2, 1, 410, 0)).audio_codes
        model.decode(codes, [None])
    assert encoder.asked[-1] == (2, 1, 410) and decoder.asked[-1] == (2, 8, 52)
    assert len(encoder.captured) == len(decoder.captured) == 1


def test_a_bucket_of_a_chunked_model_captures_its_chunks(noted):
    model = pair(config_48khz(num_filters=2, hidden_size=8, codebook_size=16, target_bandwidths=[2.4]))[1]
    shapes = model._capture(1, 60_000)
    assert [shape for shape in shapes if shape[1] == 2] == [(1, 2, 48_000), (1, 2, 12_480)]


def test_clips_of_one_length_in_a_batch_use_the_graph(noted):
    model = pair(small_config())[1]
    model._capture(2, 410)
    model.encode_batch(list(audio_like(2, 1, 410, 0)))
    assert noted[0].asked[-1] == (2, 1, 410)


def test_new_weights_drop_the_graphs_and_say_so(noted, caplog):
    request._logged.clear()
    model = pair(small_config())[1]
    model._capture(1, 400)
    with torch.no_grad():
        model.encoder.layers[0].conv.bias.add_(1)
        before = len(noted[0].asked)
        model.encoder(audio_like(1, 1, 400, 0))
    assert len(noted[0].asked) == before
    assert "the CUDA graphs of EncodecEncoder are of other weights or another precision; call cuda_graphs again" in caplog.text


def test_what_can_not_be_captured_is_named():
    model = pair(small_config())[1]
    with pytest.raises(ValueError, match=r"cuda_graphs: a bucket is \(batch, samples\), both at least 1; got \(0, 24000\)"):
        model.cuda_graphs((0, 24_000))
    with pytest.raises(ValueError, match="cuda_graphs: the model is on cpu, and only a CUDA device has graphs"):
        model.cuda_graphs((1, 24_000))
    with use_backend("torch"), pytest.raises(BackendError, match="can hold the triton backend only, and this network runs on torch"):
        model._capture(1, 400)
    with use_backend("reference"), pytest.raises(ValueError, match="run in pieces of time or on the reference modules"):
        model._capture(1, 400)
