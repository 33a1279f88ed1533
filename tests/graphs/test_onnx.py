"""ONNX graphs: valid, of any batch and length, with the codes and the audio of transformers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, reject, settings
from hypothesis import strategies as st

import encodec_fast
from encodec_fast import cli
from encodec_fast.graphs.builder import GraphBuilder
from encodec_fast.graphs.check import Graph, OnnxCodec, check_export
from encodec_fast.graphs.export import export
from encodec_fast.graphs.stages import activated
from encodec_fast.kernels.modes import Activation
from encodec_fast.plan.geometry import chunks_of, encoded_length, hop_length
from encodec_fast.plan.weights import weights_sha256
from encodec_fast.serving.clips import levels_of
from support.command import run
from support.configs import configs
from support.models import audio_like, config_48khz, drawn_pair, pair, small_config, top_bandwidth

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CONFIGS = {
    "24 kHz": small_config(),
    "48 kHz": config_48khz(num_filters=4, hidden_size=8, codebook_size=16, target_bandwidths=[3.0, 6.0]),
    "constant": small_config(pad_mode="constant", trim_right_ratio=0.3, upsampling_ratios=[3, 5]),
    "replicate": small_config(pad_mode="replicate", use_conv_shortcut=False, num_residual_layers=3, num_lstm_layers=1),
    "stereo, looks ahead": small_config(use_causal_conv=False, audio_channels=2, residual_kernel_size=5, dilation_growth_rate=3),
}


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def exported(request, tmp_path_factory):
    """(stock model, folder of its graphs)"""
    reference, ours = pair(request.param)
    folder = tmp_path_factory.mktemp("graphs")
    export(ours, folder)
    return reference, folder


def test_the_files_are_valid_and_hardly_larger_than_the_weights(exported):
    reference, folder = exported
    book = sum(layer.codebook.embed.numel() for layer in reference.quantizer.layers)
    for name, part in (("encoder", reference.encoder), ("decoder", reference.decoder)):
        onnx.checker.check_model(str(folder / f"{name}.onnx"), full_check=True)
        stored = onnx.load(folder / f"{name}.onnx")
        floats = sum(np.prod(tensor.dims) for tensor in stored.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)
        # of each weight norm the folded weight alone
        folded = sum(each.numel() for each in part.parameters()) - sum(
            each.numel() for key, each in part.named_parameters() if key.endswith(("original0", "weight_g"))
        )
        assert floats <= 1.02 * (folded + book) + 64


def test_codes_and_audio_of_every_length_are_those_of_transformers(exported):
    reference, folder = exported
    channels, longest = reference.config.audio_channels, reference.config.chunk_length or 5000
    lengths = [*range(1, 120), 319, 320, 321, 359, 1000, min(longest, 5000)]
    clips = [audio_like(1, channels, length, length)[0] for length in lengths if length <= longest]
    report = check_export(OnnxCodec(folder), reference, clips)
    print(report)
    assert report.passed and report.codes > 1000


@pytest.mark.parametrize("kind", ["24 kHz", "48 kHz"])
def test_codes_of_all_bandwidths_are_those_of_transformers_at_1000_lengths_and_in_long_clips(tmp_path, kind):
    reference, ours = pair(CONFIGS[kind])
    export(ours, tmp_path)
    codec, rate, draw = OnnxCodec(tmp_path), CONFIGS[kind].sampling_rate, np.random.default_rng(0)
    # a chunk at most
    longest = int(CONFIGS[kind].chunk_length_s or 60) * rate
    lengths = [*range(1, 1001), *(int(length) for length in draw.integers(1001, longest, 3))]
    differing = {}
    for length in lengths if kind == "24 kHz" else [*lengths[::9], *lengths[-3:]]:
        clip = audio_like(1, reference.config.audio_channels, length, length)
        bandwidth = reference.config.target_bandwidths[length % len(reference.config.target_bandwidths)]
        codes, _ = codec.encode(clip, levels_of(reference.quantizer, bandwidth))
        expected = reference.encode(clip, torch.ones_like(clip), bandwidth).audio_codes[0]
        assert codes.shape == expected.shape
        if not torch.equal(codes, expected):
            differing[length] = check_export(codec, reference, [clip[0]], bandwidth)
    print(differing)
    assert len(differing) < 20 and all(flip.explained for report in differing.values() for flip in report.flips)


def test_a_long_clip_s_norms_err_no_more_than_those_of_transformers(tmp_path):
    """The sums of a second at 48 kHz, over 32 channels."""
    config = config_48khz(num_filters=32, upsampling_ratios=[2, 2], hidden_size=8, num_lstm_layers=1, codebook_size=16)
    config.update({"target_bandwidths": [config.frame_rate * 4 * 1.0001 / 1000]})
    reference, ours = pair(config)
    export(ours, tmp_path)
    report = check_export(OnnxCodec(tmp_path), reference, [audio_like(1, 2, 48_000, 0)[0]])
    print(report)
    assert report.passed and 60 < report.snr_db < 200


def test_the_volume_of_a_whole_chunk_errs_in_the_last_bits_of_float32(tmp_path):
    export(pair(CONFIGS["48 kHz"])[1], tmp_path)
    audio = audio_like(1, 2, 48_000, 48_000)
    _, scale = OnnxCodec(tmp_path).encode(audio, 1)
    exact = audio.double().mean(1).square().mean().sqrt()
    assert abs(scale.item() / exact.item() - 1) < 2e-7


def test_a_batch_has_the_codes_of_its_clips(exported):
    reference, folder = exported
    codec, levels = OnnxCodec(folder), levels_of(reference.quantizer, None)
    for batch, length in ((2, 1), (3, 700), (5, 1001)):
        audio = audio_like(batch, reference.config.audio_channels, length, batch)
        codes, scale = codec.encode(audio, levels)
        assert codes.shape == (batch, levels, encoded_length(reference.config, length)) and codes.dtype == torch.int64
        whole = codec.decode(codes, scale)
        for index in range(batch):
            (own, own_scale), one = codec.encode(audio[index : index + 1], levels), slice(index, index + 1)
            # onnxruntime chooses its order of summation by the shape
            assert (own != codes[one]).any(1).sum() <= 1
            assert torch.allclose(codec.decode(codes[one], None if scale is None else scale[one]), whole[one], atol=1e-5)
            assert scale is None or torch.allclose(own_scale, scale[one])


def test_the_number_of_levels_is_an_input(exported):
    reference, folder = exported
    codec, audio = OnnxCodec(folder), audio_like(1, reference.config.audio_channels, 900, 0)
    every, _ = codec.encode(audio, levels_of(reference.quantizer, None))
    assert codec.quantizers_of_bandwidth == {
        f"{bandwidth:g}": levels_of(reference.quantizer, bandwidth) for bandwidth in reference.config.target_bandwidths
    }
    for levels in codec.quantizers_of_bandwidth.values():
        codes, scale = codec.encode(audio, levels)
        assert torch.equal(codes, every[:, :levels]) and len(every.unique()) > 1
        assert codec.decode(codes, scale).shape[-1] == hop_length(reference.config) * every.shape[-1]


def test_metadata_tell_what_the_host_has_to_do(exported):
    reference, folder = exported
    facts = OnnxCodec(folder).metadata
    assert facts["weights_sha256"] == weights_sha256(reference) and int(facts["sampling_rate"]) == reference.config.sampling_rate
    assert json.loads(facts["config"])["upsampling_ratios"] == list(reference.config.upsampling_ratios)
    length, stride = json.loads(facts["chunk_length"]), json.loads(facts["chunk_stride"])
    assert (length, stride) == (reference.config.chunk_length, reference.config.chunk_stride)
    samples = 3 * (length or 1000) + 7
    starts = [(samples, 0)] if length is None else [(min(length, samples - at), at) for at in range(0, samples, stride)]
    assert starts == chunks_of(reference.config, samples)


@settings(max_examples=25)
@given(configs(), st.integers(1, 600), st.integers(0, 99))
def test_graphs_of_any_config_have_the_codes_of_transformers(tmp_path_factory, config, length, seed):
    reference, ours = drawn_pair(config, seed)
    folder = tmp_path_factory.mktemp("graphs")
    export(ours, folder)
    clip = audio_like(1, config.audio_channels, length, seed)[0]
    try:
        report = check_export(OnnxCodec(folder), reference, [clip], top_bandwidth(reference))
    except ValueError as error:
        # a norm over one value, which torch refuses
        assert "Expected more than 1 value" in str(error)
        reject()
    print(report)
    assert report.passed


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_elu_keeps_the_digits_of_small_values(runtime, tmp_path):
    pytest.importorskip(runtime)
    graph = GraphBuilder("elu")
    graph.output(
        activated(graph, Activation.ELU, graph.input("x", onnx.TensorProto.FLOAT, ["values"])), "y", onnx.TensorProto.FLOAT, ["values"]
    )
    onnx.save(graph.model({}), tmp_path / "elu.onnx")
    x = torch.cat([torch.randn(1000, generator=torch.manual_seed(0)) * scale for scale in (1e-9, 1e-6, 1e-3, 1, 30)])
    y = _run(runtime, tmp_path / "elu.onnx", x)
    # 8 units: a few of each of its operations
    assert torch.allclose(y.double(), F.elu(x.double()), rtol=8 * 2**-23, atol=0)


def _run(runtime: str, path: Path, x: torch.Tensor) -> torch.Tensor:
    if runtime == "onnxruntime":
        return Graph(path, threads=1)(x=x)["y"]
    import openvino

    return torch.from_numpy(openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({"x": x.numpy()})["y"])


def test_openvino_reads_the_same_files(exported):
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("needs openvino")
    import openvino

    reference, folder = exported
    core, audio = openvino.Core(), audio_like(2, reference.config.audio_channels, 1001, 1)
    # it takes bfloat16 where a processor has it
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    encoder, codec = core.compile_model(str(folder / "encoder.onnx"), "CPU"), OnnxCodec(folder)
    levels = levels_of(reference.quantizer, None)
    codes = torch.from_numpy(encoder({"audio": audio.numpy(), "num_quantizers": np.array(levels)})[encoder.output("codes")])
    expected, scale = codec.encode(audio, levels)
    assert codes.shape == expected.shape and (codes != expected).any(1).sum() <= 2
    decoder = core.compile_model(str(folder / "decoder.onnx"), "CPU")
    given = {"codes": expected.numpy()} | ({} if scale is None else {"scale": scale.numpy()})
    assert np.allclose(decoder(given)[decoder.output("audio")], codec.decode(expected, scale), atol=1e-4)


def test_what_can_not_be_written_is_named_and_nothing_is_replaced(tmp_path, monkeypatch):
    model = pair(small_config())[1]
    with pytest.raises(ValueError, match="format is 'tflite'; allowed is onnx"):
        encodec_fast.export(model, tmp_path, format="tflite")
    encodec_fast.export(model, tmp_path)
    with pytest.raises(ValueError, match=r"encoder.onnx exists already; choose another folder, or overwrite=True"):
        encodec_fast.export(model, tmp_path)
    assert [path.name for path in encodec_fast.export(model, tmp_path, overwrite=True)] == ["encoder.onnx", "decoder.onnx"]
    model.encoder.layers[0] = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"model: layers\.0 is a Identity, which is no part of an EncodecModel"):
        encodec_fast.export(model, tmp_path / "other")


def test_the_command_writes_and_verifies(tmp_path, capsys):
    config = small_config(sampling_rate=24_000, upsampling_ratios=[8, 5, 4, 2], target_bandwidths=[1.5, 6.0])
    pair(config)[1].save_pretrained(tmp_path / "model")
    code, out, err = run(capsys, "export", tmp_path / "model", "--out", tmp_path / "graphs", "--verify")
    assert code == cli.OK and "decoder.onnx" in out and "PASS" in out, out + err
    code, _, err = run(capsys, "export", tmp_path / "model", "--out", tmp_path / "graphs")
    assert code == cli.WRONG_ARGUMENT and "exists already" in err


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.startswith(("onnx", "encodec_fast.graphs"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'encodec-fast\[onnx\]'"):
        export(pair(small_config())[1], tmp_path)
