"""What torch exports of a drop-in model with chunks: `encode`, `decode` and `forward` of whole clips, as transformers does them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export import Dim
from transformers import EncodecModel

from encodec_fast import exported
from encodec_fast.backends import torch_export, torch_export_chunks
from encodec_fast.plan.geometry import reference_length
from encodec_fast.serving import request
from encodec_fast.verify import Errors, Reference, VerifyReport, code_flips
from support.models import audio_like, config_48khz, pair, small_config, top_bandwidth

pytestmark = pytest.mark.skipif(torch_export.too_old() is not None, reason=str(torch_export.too_old()))

ANY = Dim.DYNAMIC


def chunked_config(**changes):
    """Chunks of 100 samples at every 90th, and as few layers as have every kind of stage."""
    layers = {"num_filters": 4, "hidden_size": 4, "codebook_size": 16, "upsampling_ratios": [2], "num_lstm_layers": 1}
    config = config_48khz(**{**layers, "sampling_rate": 200, "chunk_length_s": 0.5, "overlap": 0.1, **changes})
    config.update({"target_bandwidths": [config.frame_rate * 4 * 4.0001 / 1000]})
    return config


CONFIGS = {
    "48 kHz": chunked_config(),
    "a hop that chunks are no multiple of": chunked_config(upsampling_ratios=[3], num_lstm_layers=2),
    "without volume": chunked_config(normalize=False, pad_mode="constant", overlap=0.0),
    "half of each chunk overlaps": chunked_config(overlap=0.5, pad_mode="replicate"),
    "causal": chunked_config(use_causal_conv=True, norm_type="weight_norm", trim_right_ratio=0.4, audio_channels=1),
}
# Below a chunk, one, ends in and behind the overlap, several; none is the example's
SHAPES = [(1, 2), (2, 3), (1, 7), (3, 89), (1, 90), (2, 91), (1, 99), (2, 100), (1, 101), (2, 179), (1, 180), (3, 191), (1, 400), (2, 1050)]
# torch fixes a batch of one clip of the example
EXAMPLE = (2, 230)


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def models(request):
    return pair(request.param)


@pytest.fixture(scope="module")
def chunked():
    return pair(CONFIGS["48 kHz"])


@torch.no_grad()
def compare(reference: EncodecModel, encode, decode) -> VerifyReport:
    """Compares with transformers in float32 and float64, as `encodec_fast.verify` does.

    encode: audio to (codes [n, B, K, F], scales, frames that pad the last chunk).  decode: the same, and a padding mask, to the audio.
    """
    config, bandwidth = reference.config, top_bandwidth(reference)
    single, double = Reference(reference, torch.float32), Reference(reference, torch.float64)
    codebooks = torch.stack([layer.codebook.embed for layer in double.model.quantizer.layers])
    report, waveform = VerifyReport(bandwidth), Errors()
    for batch, length in SHAPES:
        if reference_length(config, length) != length:
            continue
        audio = audio_like(batch, config.audio_channels, length, length)
        (theirs, near), (_, exact) = single.encode(audio, bandwidth), double.encode(audio, bandwidth)
        codes, scales, padded = encode(audio)
        assert codes.shape == theirs.audio_codes.shape and padded == theirs.last_frame_pad_length
        for index, (own, right) in enumerate(zip(codes, theirs.audio_codes)):
            frames = exact[index].shape[-1]
            assert torch.equal(own[..., frames:], right[..., frames:])
            errors = (near[index] - exact[index]).norm(dim=1).amax(-1)
            report.codes += batch * frames * len(codebooks)
            report.flips += code_flips(own[..., :frames], right[..., :frames], exact[index], errors, codebooks, index, report.clips)
        report.clips += batch
        assert (scales is None) == (theirs.audio_scales[0] is None)
        assert scales is None or torch.allclose(scales, torch.stack(theirs.audio_scales))
        double_scales = [scale if scale is None else scale.double() for scale in theirs.audio_scales]
        ours = decode(theirs.audio_codes, scales, padded, torch.ones(batch, length, dtype=torch.bool))
        waveform.add(
            ours,
            single.model.decode(theirs.audio_codes, theirs.audio_scales, None, True, padded).audio_values[..., :length],
            double.model.decode(theirs.audio_codes, double_scales, None, True, padded).audio_values[..., :length],
        )
    report.waveform = waveform.pair()
    print(report)
    return report


def test_all_chunks_as_one_batch_have_the_codes_and_audio_of_transformers(models):
    reference, ours = models

    def decode(codes, scales, padded, mask):
        return exported.decode_any_length(ours, codes, scales, mask, last_frame_pad_length=padded).audio_values

    report = compare(reference, lambda audio: exported.encode_chunks(ours, audio, None, top_bandwidth(ours)), decode)
    assert report.passed and report.codes > 1000


@torch.no_grad()
def test_clips_of_several_lengths_in_one_tensor_give_what_each_gives_by_itself():
    lengths = torch.tensor([1, 2, 5, 31, 64])
    for changes in ({}, {"pad_mode": "constant"}, {"pad_mode": "replicate", "use_causal_conv": False}, {"norm_type": "time_group_norm"}):
        plan = pair(small_config(num_filters=2, **changes))[1].plan()
        for network, channels in ((plan.encoder, 1), (plan.decoder, 8)):
            # numbers stand behind the ends
            clips = torch.randn(5, channels, 64, generator=torch.manual_seed(0))
            together, ends = torch_export.run_clips(network, clips, lengths[:, None, None])
            for clip, length, row, end in zip(clips, lengths.tolist(), together, ends.flatten().tolist()):
                alone = torch_export.run_network(network, clip[None, :, :length])[0]
                assert alone.shape[1] == end and torch.allclose(row[:, :end], alone, atol=1e-6)


@pytest.mark.parametrize(("length", "stride", "last"), [(9, 9, 4), (9, 8, 9), (9, 8, 1), (10, 5, 6), (10, 3, 10), (10, 1, 10)])
def test_chunks_are_joined_as_transformers_joins_them(length, stride, last):
    for count in (1, 2, 5):
        chunks = torch.randn(count, 2, 3, length, generator=torch.manual_seed(count))
        theirs = EncodecModel._linear_overlap_add([*chunks[:-1], chunks[-1, ..., :last]], stride)
        ours = torch_export_chunks.joined(chunks, stride, (length - 1) // stride + 1, last)
        assert ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-6, atol=1e-6)


class Encodes(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, audio, mask):
        return self.model.encode(audio, mask, bandwidth=top_bandwidth(self.model), return_dict=False)


class Decodes(Encodes):
    def forward(self, codes, scales, padded, mask):
        return self.model.decode(codes, scales, mask, last_frame_pad_length=padded).audio_values


@torch.no_grad()
def program(module, args, axes):
    return torch.export.export(module, args, dynamic_shapes=axes)


def test_encode_and_decode_are_exported_for_every_number_of_chunks(chunked):
    reference, ours = chunked
    audio = audio_like(EXAMPLE[0], 2, EXAMPLE[1], 0)
    mask = torch.ones(EXAMPLE, dtype=torch.bool)
    batch, samples = Dim("batch", min=1), Dim("samples", min=1)
    encode = program(Encodes(ours), (audio, mask), ({0: batch, 2: samples}, {0: batch, 1: samples})).module()
    coded = encode(audio, mask)
    axes = ({0: ANY, 1: ANY, 2: ANY, 3: ANY}, {0: ANY, 1: ANY}, ANY, {0: ANY, 1: ANY})
    decode = program(Decodes(ours), (*coded, mask), axes).module()
    report = compare(reference, lambda audio: encode(audio, torch.ones_like(audio[:, 0], dtype=torch.bool)), decode)
    assert report.passed and report.codes > 1000

    audio = audio_like(1, 2, 250, 1)
    mask = (torch.arange(250) < 120)[None]
    with torch.no_grad():
        assert torch.equal(encode(audio, mask)[0], ours.encode(audio, mask, top_bandwidth(ours)).audio_codes)


def test_forward_is_exported_for_named_dimensions_though_chunks_begin_within_a_frame():
    _, ours = pair(chunked_config(upsampling_ratios=[4, 2]))
    assert ours.config.chunk_stride % 8
    # as the 48 kHz model has it: torch must see by itself that no length breaks the program
    axes = {"input_values": {0: Dim("batch", min=1), 2: Dim("samples", min=1)}}
    forward = program(ours, (audio_like(EXAMPLE[0], 2, EXAMPLE[1], 0),), axes).module()
    audio = audio_like(1, 2, 317, 1)
    assert torch.equal(forward(audio).audio_codes, ours(audio).audio_codes)


@pytest.fixture(scope="module")
def forward(chunked):
    return program(chunked[1], (audio_like(EXAMPLE[0], 2, EXAMPLE[1], 0),), {"input_values": {0: ANY, 2: ANY}})


def assert_as_eager(ours, forward):
    """Compares codes and audio of `forward` with those of the drop-in class as it runs."""
    for batch, length in SHAPES:
        audio = audio_like(batch, 2, length, length)
        with torch.no_grad():
            expected = ours(audio)
        codes, values = forward(audio)
        assert torch.equal(codes, expected.audio_codes)
        assert values.shape == audio.shape and torch.allclose(values, expected.audio_values, atol=1e-5)


def test_forward_is_exported_for_every_number_of_chunks(chunked, forward):
    assert all(limit.upper > 1 << 60 for limit in forward.range_constraints.values())
    assert not [node for node in forward.graph.nodes if "encodec_fast" in str(node.target)]
    module = forward.module()
    assert_as_eager(chunked[1], lambda audio: module(audio).to_tuple())


def test_dynamo_s_onnx_of_forward_has_the_codes_and_audio_of_every_number_of_chunks(chunked, forward):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    written = torch.onnx.export(forward, dynamo=True, verbose=False).model_proto.SerializeToString()
    opened = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
    name = opened.get_inputs()[0].name
    assert_as_eager(chunked[1], lambda audio: map(torch.from_numpy, opened.run(None, {name: audio.numpy()})))


def test_an_exported_program_refuses_the_lengths_that_transformers_refuses(chunked, forward):
    module = forward.module()
    refused = [length for length in range(2, 400) if reference_length(chunked[1].config, length) != length]
    assert refused
    for length in refused:
        with torch.no_grad(), pytest.raises(RuntimeError, match=r"transformers can't .* this length\. `encode_batch`"):
            module(audio_like(1, 2, length, 0))


def test_a_chunked_model_with_hooks_is_exported_as_it_is_with_a_line(chunked, caplog, monkeypatch):
    monkeypatch.setattr(request, "_logged", set())
    caplog.set_level("INFO")
    handle = chunked[1].encoder.layers[0].register_forward_hook(lambda module, args, output: None)
    try:
        assert exported.encode_chunks(chunked[1], audio_like(1, 2, 250, 0), None, top_bandwidth(chunked[1])) is None
    finally:
        handle.remove()
    assert "EncodecEncoder is exported as the reference modules are (an inner module" in caplog.text


def test_encode_of_a_chunked_model_under_export_has_the_errors_of_transformers(chunked):
    reference, ours = chunked
    for audio, bandwidth in ((audio_like(1, 2, 250, 0), 7.0), (audio_like(1, 3, 250, 0), top_bandwidth(ours))):
        with pytest.raises(ValueError) as theirs:
            reference.encode(audio, bandwidth=bandwidth)
        with pytest.raises(ValueError) as own:
            exported.encode_chunks(ours, audio, None, bandwidth)
        assert str(own.value) == str(theirs.value)
