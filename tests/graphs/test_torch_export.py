"""What torch exports of a model: one graph for any batch and length, with the codes and the audio of transformers."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from torch import nn
from torch.export import Dim

from encodec_fast import exportable
from encodec_fast.backends import torch_export
from encodec_fast.kernels.modes import Activation
from encodec_fast.plan.geometry import encoded_length
from encodec_fast.serving import request
from encodec_fast.verify import Errors, Reference, VerifyReport, code_flips
from support.models import audio_like, config_48khz, pair, small_config, top_bandwidth

pytestmark = pytest.mark.skipif(torch_export.too_old() is not None, reason=str(torch_export.too_old()))

# As few layers as have every kind of stage: exporting takes as long as there are operations
CONFIGS = {
    "24 kHz": small_config(num_filters=2, target_bandwidths=[4.8]),
    "48 kHz": config_48khz(num_filters=4, hidden_size=4, codebook_size=16, upsampling_ratios=[5], num_lstm_layers=1),
    "constant": small_config(pad_mode="constant", trim_right_ratio=0.3, upsampling_ratios=[3], num_lstm_layers=1),
    "replicate": small_config(pad_mode="replicate", use_conv_shortcut=False, upsampling_ratios=[3], num_lstm_layers=1),
    "stereo, looks ahead": small_config(use_causal_conv=False, audio_channels=2, upsampling_ratios=[4], num_lstm_layers=1),
}
CONFIGS["48 kHz"].update({"target_bandwidths": [CONFIGS["48 kHz"].frame_rate * 4 * 4.0001 / 1000]})
# None of them is the example's
SHAPES = [(1, 1), (2, 1), (3, 2), (1, 7), (1, 319), (2, 320), (1, 321), (1, 641), (3, 997), (1, 4000)]
# torch fixes a batch of one clip of the example
EXAMPLE = (2, 700)
ANY = Dim.DYNAMIC


@torch.no_grad()
def exported(module: nn.Module, *args: torch.Tensor, axes) -> torch.export.ExportedProgram:
    return torch.export.export(module, args, dynamic_shapes=axes)


def parts(value):
    """What a module returns, as a tuple."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


@torch.no_grad()
def compare(reference, encode, decode, shapes=SHAPES) -> VerifyReport:
    """Compares with transformers in float32 and float64, as `encodec_fast.verify` does.

    encode: audio to (codes [B, K, F],) or (codes, scale).  decode: the same to the audio.
    """
    bandwidth = top_bandwidth(reference)
    single, double = Reference(reference, torch.float32), Reference(reference, torch.float64)
    codebooks = torch.stack([layer.codebook.embed for layer in double.model.quantizer.layers])
    report, waveform = VerifyReport(bandwidth), Errors()
    for batch, length in shapes:
        audio = audio_like(batch, reference.config.audio_channels, length, length)
        single.embeddings, double.embeddings = [], []
        theirs, scale = single.model._encode_frame(audio, bandwidth)
        truth, _ = double.model._encode_frame(audio.double(), bandwidth)
        near, exact = single.embeddings[0], double.embeddings[0]
        codes, *scales = encode(audio)
        assert codes.shape == theirs.shape == (batch, theirs.shape[1], encoded_length(reference.config, length))
        report.codes += codes.numel()
        report.reference_flips += int((theirs != truth).any(1).sum())
        report.flips += code_flips(codes, theirs, exact, (near - exact).norm(dim=1).amax(-1), codebooks, 0, report.clips)
        report.clips += batch
        assert len(scales) == (scale is not None) and all(torch.allclose(own, scale.view(-1, 1)) for own in scales)
        given = [] if scale is None else [scale.view(-1, 1)]
        ours = decode(theirs, *given)
        truth_audio = double.model._decode_frame(theirs, None if scale is None else scale.double())
        waveform.add(ours, single.model._decode_frame(theirs, scale), truth_audio)
    report.waveform = waveform.pair()
    return report


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def programs(request):
    """(stock model, exported encoder, exported decoder)"""
    reference, ours = pair(request.param)
    encoder, decoder = exportable(ours, top_bandwidth(ours))
    audio = audio_like(EXAMPLE[0], ours.config.audio_channels, EXAMPLE[1], 0)
    coded = parts(encoder(audio))
    axes = ({0: ANY, 1: ANY, 2: ANY}, {0: ANY})[: len(coded)]
    return reference, exported(encoder, audio, axes=({0: ANY, 2: ANY},)), exported(decoder, *coded, axes=axes)


def test_exported_programs_of_every_length_have_the_codes_and_audio_of_transformers(programs):
    reference, encoder, decoder = programs
    encode, decode = encoder.module(), decoder.module()
    report = compare(reference, lambda audio: parts(encode(audio)), decode)
    print(report)
    assert report.passed and report.codes > 1000


def test_exported_programs_hold_no_length_and_no_operation_of_this_package(programs):
    for program in programs[1:]:
        assert not [str(node.target) for node in program.graph.nodes if "encodec_fast" in str(node.target)]
        assert all(limit.upper > 1 << 60 for limit in program.range_constraints.values())


def test_an_exported_decoder_takes_codes_of_any_bandwidth(programs):
    reference, _, decoder = programs
    audio = audio_like(1, reference.config.audio_channels, 900, 0)
    with torch.no_grad():
        codes, scale = reference._encode_frame(audio, top_bandwidth(reference))
        for levels in (1, codes.shape[1]):
            given = [] if scale is None else [scale.view(-1, 1)]
            assert torch.allclose(decoder.module()(codes[:, :levels], *given), reference._decode_frame(codes[:, :levels], scale), atol=1e-5)


# writing a graph takes seconds, and that of the 48 kHz model has every operation
@pytest.mark.parametrize("programs", [CONFIGS["48 kHz"]], indirect=True, ids=["48 kHz"])
def test_dynamo_s_onnx_of_every_length_has_the_codes_and_audio_of_transformers(programs):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    reference, *both = programs

    def session(program):
        model = torch.onnx.export(program, dynamo=True, verbose=False).model_proto
        opened = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        names = [each.name for each in opened.get_inputs()]
        return lambda *args: [torch.from_numpy(each) for each in opened.run(None, dict(zip(names, (arg.numpy() for arg in args))))]

    encode, decode = map(session, both)
    report = compare(reference, encode, lambda *coded: decode(*coded)[0])
    print(report)
    assert report.passed


def test_dynamo_s_onnx_keeps_the_digits_of_small_values_in_an_elu():
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    x = torch.cat([torch.randn(1000, generator=torch.manual_seed(0)) * scale for scale in (1e-9, 1e-6, 1e-3, 1, 30)])
    model = torch.onnx.export(Activates(), (x,), dynamo=True, verbose=False).model_proto
    opened = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y = torch.from_numpy(opened.run(None, {opened.get_inputs()[0].name: x.numpy()})[0])
    # 8 units: a few of each of its operations
    assert torch.allclose(y.double(), nn.functional.elu(x.double()), rtol=8 * 2**-23, atol=0)


class Activates(nn.Module):
    def forward(self, x):
        return torch_export.activated(Activation.ELU, x)


class Encodes(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, audio):
        return self.model.encode(audio, bandwidth=top_bandwidth(self.model)).audio_codes


@pytest.fixture(scope="module")
def models():
    return pair(CONFIGS["24 kHz"])


def test_encode_of_the_drop_in_class_is_exported_for_every_length(models):
    reference, ours = models
    encode = exported(Encodes(ours), audio_like(EXAMPLE[0], 1, EXAMPLE[1], 0), axes=({0: ANY, 2: ANY},)).module()
    report = compare(reference, lambda audio: (encode(audio)[0],), reference._decode_frame)
    print(report)
    assert report.passed and report.codes > 1000


def test_a_forward_of_the_drop_in_class_is_exported_for_every_length(models):
    reference, ours = models
    # traces encode, decode and the cut to the length of the audio
    program = exported(ours, audio_like(EXAMPLE[0], 1, EXAMPLE[1], 0), axes={"input_values": {0: ANY, 2: ANY}})
    assert set(program.state_dict) == set(ours.state_dict())
    forward = program.module()

    report = compare(reference, lambda audio: encoded_as(reference, forward(audio), audio), reference._decode_frame)
    print(report)
    assert report.passed and report.codes > 1000


def encoded_as(reference, output, audio):
    """Returns the codes of what `forward` gave for audio, whose sound must be that of its codes."""
    assert output.audio_values.shape == audio.shape
    expected = reference.decode(output.audio_codes, [None]).audio_values
    assert torch.allclose(output.audio_values, expected[..., : audio.shape[-1]], atol=1e-5)
    return (output.audio_codes[0],)


def test_transformers_own_class_can_not_be_exported(models, caplog):
    caplog.set_level("CRITICAL")  # the tracer's own story is long
    with torch.no_grad(), pytest.raises(Exception, match="data-dependent"):
        torch.export.export(models[0], (audio_like(2, 1, 700, 0),))


def test_modules_with_hooks_are_exported_as_they_are_with_a_line(models, caplog, monkeypatch):
    monkeypatch.setattr(request, "_logged", set())
    caplog.set_level("INFO")
    handle = models[1].encoder.layers[0].register_forward_hook(lambda module, args, output: None)
    try:
        with torch.no_grad(), pytest.raises(Exception, match="data-dependent"):
            torch.export.export(models[1], (audio_like(2, 1, 700, 0),))
    finally:
        handle.remove()
    assert "EncodecEncoder is exported as the reference modules are (an inner module" in caplog.text


# The wrapper is most of what the compiler reads, and runs for microseconds
QUICKLY = {"aot_inductor.compile_wrapper_opt_level": "O0"}


@pytest.fixture(scope="module")
def smallest():
    return pair(small_config(num_filters=2, upsampling_ratios=[2], num_lstm_layers=1, target_bandwidths=[9.61], use_conv_shortcut=False))


def test_an_aotinductor_package_of_the_drop_in_class_has_the_codes_and_audio_of_transformers(smallest, tmp_path):
    """Its C++ compiler takes most of the time, hence no packages of encoder and decoder, which have nothing that this lacks."""
    if shutil.which("g++") is None and "CXX" not in os.environ:
        pytest.skip("needs a C++ compiler")
    reference, ours = smallest
    program = exported(ours, audio_like(EXAMPLE[0], 1, EXAMPLE[1], 0), axes={"input_values": {0: ANY, 2: ANY}})
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"), inductor_configs=QUICKLY)
    forward = torch._inductor.aoti_load_package(path)
    report = compare(reference, lambda audio: encoded_as(reference, forward(audio), audio), reference._decode_frame)
    print(report)
    assert report.passed and report.codes > 1000


def test_an_old_torch_a_foreign_module_and_an_unknown_bandwidth_are_named(models, monkeypatch):
    ours = pair(CONFIGS["24 kHz"])[1]
    with pytest.raises(ValueError, match=r"bandwidth: the model has no 7 kbps"):
        exportable(ours, 7)
    ours.encoder.layers[0] = nn.Identity()
    with pytest.raises(ValueError, match=r"model: layers\.0 is a Identity, which is no part of an EncodecModel"):
        exportable(ours)
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(RuntimeError, match=r"torch 2.13 or newer is needed, 2.9.1\+cpu is installed"):
        exportable(models[1])


def test_a_decoder_without_its_scale_says_so():
    decoder = exportable(pair(CONFIGS["48 kHz"])[1]).decoder
    with pytest.raises(ValueError, match="scale is missing: this model normalizes"):
        decoder(torch.zeros(1, 2, 3, dtype=torch.int64))
