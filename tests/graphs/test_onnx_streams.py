"""Streaming graphs and graphs of fixed shapes: the whole clip's codes and audio, in pieces of any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encodec_fast import cli
from encodec_fast.graphs.check import Graph, OnnxCodec, OnnxStreams, check_export
from encodec_fast.graphs.export import export
from encodec_fast.plan.geometry import hop_length
from encodec_fast.serving.clips import levels_of
from encodec_fast.streaming import StreamingDecoder, StreamingEncoder
from support.command import run
from support.configs import configs
from support.models import audio_like, config_48khz, drawn_pair, pair, small_config, top_bandwidth

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

CONFIGS = {
    "24 kHz": small_config(),
    "constant": small_config(pad_mode="constant", upsampling_ratios=[3, 5], kernel_size=5, last_kernel_size=3),
    "replicate": small_config(pad_mode="replicate", use_conv_shortcut=False, num_residual_layers=3, num_lstm_layers=1),
    "stereo, dilated": small_config(audio_channels=2, residual_kernel_size=5, dilation_growth_rate=3),
}


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def models(request):
    """(stock model, ours)"""
    return pair(request.param)


def streamed(model, folder, **options):
    """Writes streaming graphs, which are valid, and returns the folder."""
    for path in export(model, folder, stream=True, **options):
        onnx.checker.check_model(str(path), full_check=True)
    return folder


def constant_shapes(path):
    """Tells whether a graph has neither lengths that a call chooses nor nodes that compute shapes, and no graph inside."""
    graph = onnx.load(path).graph
    dims = [dim for each in (*graph.input, *graph.output) for dim in each.type.tensor_type.shape.dim]
    return all(dim.dim_value for dim in dims) and not {node.op_type for node in graph.node} & {"Shape", "Range", "Loop", "Mod"}


def test_pieces_have_the_codes_and_the_audio_of_transformers(models, tmp_path):
    reference, ours = models
    streamed(ours, tmp_path)
    hop, channels = hop_length(reference.config), reference.config.audio_channels
    lengths = [frames * hop + extra for frames in (11, 12, 24) for extra in (0, 1, hop // 2, hop - 1)]
    for piece in (1, 3, 11):
        clips = [audio_like(1, channels, length, length)[0] for length in lengths]
        report = check_export(OnnxStreams(tmp_path, piece), reference, clips)
        print(piece, report)
        assert report.passed and report.codes > 600


@pytest.mark.parametrize("frames", [1, 3, 12])
def test_pieces_of_fixed_shapes_have_them_too(models, tmp_path, frames):
    reference, ours = models
    streamed(ours, tmp_path, frames=frames)
    assert all(constant_shapes(path) for path in tmp_path.glob("*.onnx"))
    clips = [audio_like(1, reference.config.audio_channels, 40 * hop_length(reference.config), seed)[0] for seed in range(2)]
    report = check_export(OnnxStreams(tmp_path), reference, clips)
    print(report)
    assert report.passed and report.codes > 300


@pytest.mark.parametrize("config", [*CONFIGS.values(), config_48khz(num_filters=4, hidden_size=8, codebook_size=16)])
@pytest.mark.parametrize("frames", [1, 2, 25])
def test_clips_of_fixed_shapes_have_the_codes_and_the_audio_of_any_shape(config, tmp_path, frames):
    """Of one frame too, which is shorter than its padding."""
    reference, ours = pair(config)
    export(ours, tmp_path / "any")
    for path in export(ours, tmp_path / "fixed", frames=frames):
        onnx.checker.check_model(str(path), full_check=True)
        assert constant_shapes(path)
    whole, fixed = OnnxCodec(tmp_path / "any"), OnnxCodec(tmp_path / "fixed")
    audio = audio_like(1, config.audio_channels, frames * hop_length(config), frames)
    for bandwidth in config.target_bandwidths:
        levels = levels_of(reference.quantizer, bandwidth)
        (codes, scale), (expected, _) = fixed.encode(audio, levels), whole.encode(audio, levels)
        assert codes.shape == expected.shape and (codes != expected).any(1).sum() <= 1
        assert torch.allclose(fixed.decode(expected, scale), whole.decode(expected, scale), atol=1e-6)
    report = check_export(fixed, reference, [audio_like(1, config.audio_channels, 60 * hop_length(config), 1)[0]])
    assert all(flip.explained for flip in report.flips) and report.codes > 0


def test_streams_of_a_batch_begin_when_they_like(tmp_path):
    """A zero row of the state is a stream that begins."""
    _, ours = pair(CONFIGS["24 kHz"])
    streamed(ours, tmp_path)
    encoder, hop = Graph(tmp_path / "encoder_stream.onnx", 1), hop_length(ours.config)
    audio = audio_like(2, 1, 24 * hop, 0)
    whole = StreamingEncoder(ours, top_bandwidth(ours))
    levels, state = whole.num_quantizers, torch.zeros(2, encoder.shapes["state"][1])
    found = encoder(audio=audio[..., : 8 * hop], state=state, num_quantizers=levels)
    # the second stream begins anew
    state = found["next_state"] * torch.tensor([[1.0], [0.0]])
    later = encoder(audio=audio[..., 8 * hop : 16 * hop], state=state, num_quantizers=levels)["codes"]
    expected = [torch.cat(whole.push(audio[0, :, : 16 * hop]) + whole.flush(), 1)[:, 8:]]
    whole.reset()
    expected.append(torch.cat(whole.push(audio[1, :, 8 * hop : 16 * hop]) + whole.flush(), 1))
    assert (later != torch.stack(expected)).any(1).sum() <= 1 and len(later.unique()) > 5


# each example writes and opens graphs for a second or more
@settings(max_examples=settings.default.max_examples // 12)
@given(configs(streamable=True), st.integers(1, 9), st.integers(0, 40), st.integers(0, 99))
def test_any_config_that_streams_has_the_codes_and_the_audio_of_our_streams(tmp_path_factory, config, piece, more, seed):
    # the other ratios are refused
    config.trim_right_ratio = 1.0
    reference, ours = drawn_pair(config, seed)
    folder = streamed(ours, tmp_path_factory.mktemp("streams"))
    streams, hop = OnnxStreams(folder, piece), hop_length(config)
    first = max(int(streams.graph(part).metadata["stream_first_frames"]) for part in ("encoder", "decoder"))
    audio = audio_like(1, config.audio_channels, max(first, piece) * hop + more, seed)
    encoder, decoder = StreamingEncoder(ours, top_bandwidth(ours)), StreamingDecoder(ours)
    codes = torch.cat(encoder.push(audio[0]) + encoder.flush(), 1)
    found, _ = streams.encode(audio, encoder.num_quantizers)
    assert found.shape[1:] == codes.shape
    report = check_export(streams, reference, [audio[0]], top_bandwidth(reference))
    assert report.passed, report
    assert torch.allclose(streams.decode(codes[None])[0], torch.cat(decoder.push(codes) + decoder.flush(), 1), atol=1e-5)


def test_a_first_piece_that_is_too_short_is_an_error(tmp_path):
    _, ours = pair(CONFIGS["24 kHz"])
    streamed(ours, tmp_path)
    encoder, hop = Graph(tmp_path / "encoder_stream.onnx", 1), hop_length(ours.config)
    first, size = int(encoder.metadata["stream_first_frames"]), encoder.shapes["state"][1]
    assert first == 7 == int(Graph(tmp_path / "decoder_stream.onnx", 1).metadata["stream_first_frames"])
    encoder(audio=torch.zeros(1, 1, first * hop), state=torch.zeros(1, size), num_quantizers=2)
    with pytest.raises(Exception, match="out of data bounds"):
        encoder(audio=torch.zeros(1, 1, (first - 1) * hop), state=torch.zeros(1, size), num_quantizers=2)


def test_models_that_can_not_stream_and_frames_below_one_are_refused(tmp_path):
    refused = {
        "it scales every clip by the volume": config_48khz(num_filters=4, hidden_size=8, codebook_size=16),
        "it encodes chunks of 2400 samples": small_config(chunk_length_s=1.0, overlap=0.01),
        "looks ahead": small_config(use_causal_conv=False),
        "normalises over the whole clip": small_config(norm_type="time_group_norm"),
        "trims its left end": small_config(trim_right_ratio=0.3),
    }
    for words, config in refused.items():
        with pytest.raises(ValueError, match=words):
            export(pair(config)[1], tmp_path, stream=True)
    with pytest.raises(ValueError, match="frames is 0; 1 or more"):
        export(pair(small_config())[1], tmp_path, frames=0)
    assert not list(tmp_path.iterdir())


def test_openvino_carries_streams_of_fixed_shapes(tmp_path):
    openvino = pytest.importorskip("openvino")
    _, ours = pair(CONFIGS["24 kHz"])
    streamed(ours, tmp_path, frames=8)
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    model, graph = core.compile_model(str(tmp_path / "encoder_stream.onnx"), "CPU"), Graph(tmp_path / "encoder_stream.onnx", 1)
    audio = audio_like(1, 1, 24 * hop_length(ours.config), 0)
    states = [np.zeros((1, graph.shapes["state"][1]), np.float32)] * 2
    for piece in audio.split(8 * hop_length(ours.config), 2):
        theirs = model({"audio": piece.numpy(), "state": states[0]})
        own = graph(audio=piece.contiguous(), state=torch.from_numpy(states[1]))
        assert (theirs[model.output("codes")] != own["codes"].numpy()).any(1).sum() <= 1
        states = [theirs[model.output("next_state")], own["next_state"].numpy()]
        assert np.allclose(*states, atol=1e-4)


def test_the_command_writes_and_verifies_streams(tmp_path, capsys):
    config = small_config(sampling_rate=24_000, upsampling_ratios=[8, 5, 4, 2], target_bandwidths=[1.5, 6.0])
    pair(config)[1].save_pretrained(tmp_path / "model")
    given = ("export", tmp_path / "model", "--out", tmp_path / "graphs", "--stream", "--verify")
    code, out, err = run(capsys, *given, "--frames", 4)
    assert code == cli.OK and "encoder_stream_start.onnx" in out and "PASS" in out, out + err
    code, _, err = run(capsys, *given)
    assert code == cli.WRONG_ARGUMENT and "encoder_stream.onnx exists already" in err
