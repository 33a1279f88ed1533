"""The drop-in class keeps every promise of transformers.EncodecModel besides its results (those: test_model_configs.py)."""

from __future__ import annotations

import copy
import dataclasses
import inspect

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import encodec_fast
from encodec_fast import encode_pieces, use_backend
from encodec_fast.serving import request
from support.models import assert_same_codes, audio_like, config_48khz, is_error, ours_like, outcome, pair, small_config


@pytest.fixture
def models():
    return pair(small_config())


@pytest.fixture(scope="module")
def chunked_models():
    return pair(config_48khz(num_filters=4, hidden_size=8, codebook_size=16, target_bandwidths=[2.4, 4.8]))


def codes_of(model, audio):
    with torch.no_grad():
        return model.encode(audio, bandwidth=4.8).audio_codes


def test_names_are_those_of_transformers():
    assert encodec_fast.EncodecConfig is transformers.EncodecConfig
    assert encodec_fast.EncodecFeatureExtractor is transformers.EncodecFeatureExtractor
    assert issubclass(encodec_fast.EncodecModel, transformers.EncodecModel)
    assert encodec_fast.EncodecModel.__name__ == "EncodecModel"


@pytest.mark.parametrize("method", ["__init__", "encode", "decode", "forward"])
def test_signatures_are_those_of_transformers(method):
    ours, theirs = (inspect.signature(getattr(side, method)) for side in (encodec_fast.EncodecModel, transformers.EncodecModel))
    assert [(p.name, p.default, p.kind) for p in ours.parameters.values()] == [
        (p.name, p.default, p.kind) for p in theirs.parameters.values()
    ]


def test_state_dict_keys_and_a_round_trip_through_a_folder(models, tmp_path):
    reference, model = models
    assert list(model.state_dict()) == list(reference.state_dict())
    model.save_pretrained(tmp_path)
    audio = audio_like(1, 1, 500, 0)
    for side in (transformers.EncodecModel, encodec_fast.EncodecModel):
        loaded = side.from_pretrained(tmp_path).eval()
        assert type(loaded) is side
        assert loaded.config.architectures == ["EncodecModel"]
        assert torch.equal(codes_of(loaded, audio), codes_of(model, audio))


def test_forward_returns_codes_and_audio_as_hf_does(models):
    reference, model = models
    audio = audio_like(2, 1, 333, 1)
    with torch.no_grad():
        theirs, ours = (side(audio, bandwidth=2.4) for side in (reference, model))
        assert type(model(audio, return_dict=False)) is type(reference(audio, return_dict=False))
    assert type(ours) is type(theirs)
    assert torch.equal(ours.audio_codes, theirs.audio_codes)
    torch.testing.assert_close(ours.audio_values, theirs.audio_values, rtol=1e-4, atol=1e-5)


BAD_CALLS = {
    "a bandwidth the model lacks": lambda model: model.encode(torch.zeros(1, 1, 100), bandwidth=7.0),
    "three channels": lambda model: model.encode(torch.zeros(1, 3, 100)),
    "two channels to a mono model": lambda model: model.encode(torch.zeros(1, 2, 100)),
    "no channel dimension": lambda model: model.encode(torch.zeros(1, 100)),
    "no samples": lambda model: model.encode(torch.zeros(1, 1, 0)),
    "an integer tensor": lambda model: model.encode(torch.zeros(1, 1, 100, dtype=torch.int64)),
    "another float dtype": lambda model: model.encode(torch.zeros(1, 1, 100, dtype=torch.float64)),
    "a mask of another length": lambda model: model.encode(torch.zeros(1, 1, 100), torch.ones(1, 7)),
    "a mask that is a list": lambda model: model.encode(torch.zeros(1, 1, 100), [[1] * 100]),
    "codes that are a list": lambda model: model.decode([[1]], [None]),
    "a list": lambda model: model.encode([0.0, 1.0]),
    "a code outside the codebook": lambda model: model.decode(torch.full((1, 1, 2, 5), 16), [None]),
    "a negative code": lambda model: model.decode(torch.full((1, 1, 2, 5), -1), [None]),
    "more levels than the model has": lambda model: model.decode(torch.zeros(1, 1, 99, 5, dtype=torch.int64), [None]),
    "float codes": lambda model: model.decode(torch.zeros(1, 1, 2, 5), [None]),
    "two frames": lambda model: model.decode(torch.zeros(2, 1, 2, 5, dtype=torch.int64), [None, None]),
    "no codes": lambda model: model.decode(torch.zeros(1, 1, 2, 0, dtype=torch.int64), [None]),
    "codes without scales": lambda model: model(torch.zeros(1, 1, 100), audio_codes=torch.zeros(1, 1, 2, 5, dtype=torch.int64)),
}


@pytest.mark.parametrize("name", BAD_CALLS)
@pytest.mark.parametrize("grad", [True, False])
def test_bad_calls_raise_what_hf_raises(models, name, grad):
    with torch.set_grad_enabled(grad):
        theirs, ours = (outcome(lambda side=side: BAD_CALLS[name](side)) for side in models)
    if not is_error(theirs):
        pytest.skip(f"transformers {transformers.__version__} takes this call")
    assert ours == theirs


@pytest.mark.parametrize("channels", [1, 3])
def test_the_channels_of_another_model_raise_what_hf_raises(chunked_models, channels):
    audio = torch.zeros(1, channels, 100)
    for call in (lambda model: model.encode(audio), lambda model: model(audio), lambda model: model.encode(audio, [[1] * 100])):
        theirs, ours = (outcome(lambda side=side, call=call: call(side)) for side in chunked_models)
        assert is_error(theirs) and ours == theirs


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_give_the_codes_of_hf(models, value):
    audio = audio_like(1, 1, 400, 3)
    audio[..., 200] = value
    theirs, ours = (codes_of(side, audio) for side in models)
    assert torch.equal(ours, theirs)


def test_strided_input_gives_the_codes_of_contiguous_input(models):
    _, model = models
    audio = audio_like(3, 2, 801, 4)[:, 1:, ::2]
    assert not audio.is_contiguous()
    assert torch.equal(codes_of(model, audio), codes_of(model, audio.contiguous()))


def test_the_input_is_not_written_to(models):
    _, model = models
    audio = audio_like(2, 1, 400, 5)
    kept, codes = audio.clone(), codes_of(model, audio)
    kept_codes = codes.clone()
    with torch.no_grad():
        model.decode(codes, [None])
        model.encoder(audio)
    assert torch.equal(audio, kept)
    assert torch.equal(codes, kept_codes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_keep_their_dtype_and_stay_close_to_hf(dtype):
    reference, _ = pair(small_config())
    reference = reference.to(dtype)
    model = ours_like(reference)
    audio = audio_like(1, 1, 400, 6).to(dtype)
    with torch.no_grad():
        theirs, ours = (side.encoder(audio) for side in (reference, model))
        assert ours.dtype == dtype
        # a few units in the last place of sums of about a hundred terms
        torch.testing.assert_close(ours, theirs, rtol=0, atol=20 * torch.finfo(dtype).eps * theirs.abs().max().item())
        encoded = reference.encode(audio, bandwidth=4.8)
        assert model.decode(encoded.audio_codes, [None]).audio_values.dtype == dtype


def exchange_names(model: torch.nn.Module, _: object) -> None:
    """The two weights of an LSTM layer, in the places where they were."""
    lstm = next(module for module in model.encoder.modules() if isinstance(module, torch.nn.LSTM))
    (first, x), (second, y), *others = lstm._parameters.items()
    lstm._parameters.clear()
    lstm._parameters.update({second: x, first: y, **dict(others)})
    lstm._flat_weights = [getattr(lstm, name) for name in lstm._flat_weights_names]


EDITS = {
    "load_state_dict": lambda model, other: model.load_state_dict(other.state_dict()),
    "copy_ under no_grad": lambda model, other: [p.copy_(q) for p, q in zip(model.parameters(), other.parameters())],
    "copy_ through .data": lambda model, other: [p.data.copy_(q) for p, q in zip(model.parameters(), other.parameters())],
    "a new .data": lambda model, other: [setattr(p, "data", q.data.clone()) for p, q in zip(model.parameters(), other.parameters())],
    "a new layer": lambda model, other: model.encoder.layers.__setitem__(0, other.encoder.layers[0]),
    "names exchanged": exchange_names,
    "a codebook entry": lambda model, other: model.quantizer.layers[0].codebook.embed[3].fill_(0.5),
}


@pytest.mark.parametrize("name", EDITS)
def test_edited_weights_are_honoured_by_the_next_call(models, name):
    _, model = models
    other, audio = pair(small_config(), seed=9)[0], audio_like(1, 1, 400, 7)
    before = codes_of(model, audio)
    with torch.no_grad():
        EDITS[name](model, other)
    with use_backend("reference"):
        expected = codes_of(model, audio)
    assert not torch.equal(expected, before), "the edit changes nothing"
    assert torch.equal(codes_of(model, audio), expected)


@pytest.mark.parametrize("name", ["one channel of a convolution", "part of a codebook"])
def test_an_edit_that_leaves_no_trace_is_seen_after_refresh(models, name):
    _, model = models
    audio = audio_like(1, 1, 400, 11)
    before = codes_of(model, audio)
    if name == "part of a codebook":
        # as training code replaces entries that no frame uses
        embed = model.quantizer.layers[0].codebook.embed
        unused = torch.ones(len(embed), 1, dtype=torch.bool)
        unused[[0, len(embed) // 2, -1]] = False
        embed.data.copy_(torch.where(unused, embed.flip(0), embed))
    else:
        model.encoder.layers[0].conv.bias.data.numpy()[1] += 3.0
    with use_backend("reference"):
        expected = codes_of(model, audio)
    assert not torch.equal(expected, before), "the edit changes nothing"
    model.refresh()
    assert torch.equal(codes_of(model, audio), expected)


def test_casting_the_model_is_honoured(models):
    _, model = models
    audio = audio_like(1, 1, 400, 8)
    codes_of(model, audio)
    assert torch.equal(codes_of(model.double(), audio.double()), codes_of(model.float().double(), audio.double()))


def test_removed_weight_norm_gives_the_same_codes(models):
    _, model = models
    audio = audio_like(1, 1, 400, 9)
    before = codes_of(model, audio)
    for module in model.modules():
        if hasattr(module, "parametrizations"):
            nn.utils.parametrize.remove_parametrizations(module, "weight")
        elif hasattr(module, "weight_g"):
            nn.utils.remove_weight_norm(module)
    assert torch.equal(codes_of(model, audio), before)


def test_hooks_on_inner_modules_fire_and_explain_says_so(models):
    _, model = models
    audio, seen = audio_like(1, 1, 400, 10), []
    before = codes_of(model, audio)
    handle = model.encoder.layers[1].block[1].register_forward_hook(lambda *_: seen.append("block"))
    assert torch.equal(codes_of(model, audio), before)
    assert seen == ["block"]
    row = encodec_fast.explain(model, audio).rows[0]
    assert (row.backend, "hook" in row.reason) == ("reference", True)
    handle.remove()
    codes_of(model, audio)
    assert seen == ["block"]
    assert encodec_fast.explain(model, audio).rows[0].backend != "reference"


def test_hooks_on_the_encoder_itself_fire_on_the_fast_path(models):
    _, model = models
    shapes = []
    model.encoder.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    codes_of(model, audio_like(2, 1, 400, 11))
    assert shapes == [(2, 8, 50)]


def test_a_foreign_submodule_runs_on_the_reference_path(models):
    reference, model = models

    class Doubled(nn.ELU):
        def forward(self, x):
            return 2 * super().forward(x)

    for side in (reference, model):
        side.encoder.layers[2] = Doubled()
    audio = audio_like(1, 1, 400, 12)
    assert torch.equal(codes_of(model, audio), codes_of(reference, audio))
    assert "Doubled" in encodec_fast.explain(model, audio).rows[0].reason


def test_a_copied_model_has_a_plan_of_its_own(models):
    _, model = models
    audio = audio_like(1, 1, 400, 13)
    before = codes_of(model, audio)
    twin = outcome(lambda: copy.deepcopy(model))
    if is_error(twin):
        pytest.skip(f"torch's old weight norm can't be copied: {twin[1]}")
    with torch.no_grad():
        twin.encoder.layers[0].conv.bias.add_(1.0)
    assert torch.equal(codes_of(model, audio), before)
    assert not torch.equal(codes_of(twin, audio), before)


@pytest.mark.parametrize("samples", [900, 48_000, 2 * 47_520 + 100, 150_000])
def test_chunks_run_as_one_batch_with_the_results_of_hf(chunked_models, samples):
    reference, model = chunked_models
    audio = audio_like(2, 2, samples, samples)
    batches = []
    handle = model.encoder.register_forward_hook(lambda module, args, output: batches.append(output.shape[0]))
    with torch.no_grad():
        theirs, ours = (outcome(lambda side=side: side.encode(audio, bandwidth=4.8)) for side in (reference, model))
    handle.remove()
    if is_error(theirs):
        # HF can't stack chunks of three lengths, and before 4.53 refuses a ragged tail
        assert ours == theirs
        return
    assert_same_codes(model, reference, audio, ours.audio_codes, theirs.audio_codes, 4.8)
    lengths = [min(48_000, samples - 47_520 * index) for index in range(len(theirs.audio_codes))]
    assert batches == [2 * lengths.count(length) for length in dict.fromkeys(lengths)]


def test_clips_of_any_length_encode_together_as_each_alone(models, chunked_models):
    for _, model in (models, chunked_models):
        channels = model.config.audio_channels
        lengths = [1, 700, 320, 700, 60_001]
        clips = [audio_like(1, channels, length, seed)[0] for seed, length in enumerate(lengths)]
        encoded = model.encode_batch(clips, 4.8)
        for clip, result in zip(clips, encoded):
            alone = model.encode_batch([clip], 4.8)[0]
            assert torch.equal(result.codes, alone.codes)
            assert result.num_samples == clip.shape[-1]
            theirs = outcome(lambda model=model, clip=clip: codes_of(model, clip[None]))
            if not is_error(theirs):
                assert torch.equal(result.codes[:, None], theirs)
        for clip, audio in zip(clips, model.decode_batch(encoded)):
            assert audio.shape == clip.shape


def test_a_decoded_clip_is_what_decode_gives(models, chunked_models):
    for _, model in (models, chunked_models):
        clip = audio_like(1, model.config.audio_channels, 47_000, 2)
        encoded = model.encode_batch([clip[0]], 4.8)[0]
        scales = [None] if encoded.scales is None else [encoded.scales[:, None]]
        with torch.no_grad():
            expected = model.decode(encoded.codes[:, None], scales).audio_values[0, :, :47_000]
        torch.testing.assert_close(model.decode_batch([encoded])[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_embeddings_are_the_encoder_s_and_their_codes_those_without_them(models, chunked_models, backend):
    for _, model in (models, chunked_models):
        channels = model.config.audio_channels
        clips = [audio_like(1, channels, length, seed)[0] for seed, length in enumerate((700, 60_001))]
        with use_backend(backend):
            plain, kept = model.encode_batch(clips, 4.8), model.encode_batch(clips, 4.8, embeddings=True)
            behind = model.dequantize_batch(kept)
        for clip, one, other, quantized in zip(clips, plain, kept, behind):
            assert one.embeddings is None and torch.equal(one.codes, other.codes)
            assert (one.scales is None) == (other.scales is None) and (one.scales is None or torch.equal(one.scales, other.scales))
            chunks, _, frames = other.codes.shape
            assert other.embeddings.shape == quantized.shape == (chunks, model.config.hidden_size, frames)
            first = clip[None, :, : model.config.chunk_length] / (1 if one.scales is None else one.scales[0])
            with torch.no_grad():
                expected = model.encoder(first)
                torch.testing.assert_close(other.embeddings[:1], expected, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(quantized[:1], model.quantizer.decode(other.codes[:1].transpose(0, 1)))
            # the sum of entries is nearer than nothing, and is not the embedding itself
            error = (quantized - other.embeddings).square().mean() / other.embeddings.square().mean()
            assert 0 < error < 1
            assert other.to("cpu").embeddings is not None


def test_embeddings_do_not_depend_on_pieces_or_batch(models):
    model = models[1]
    clips = [audio_like(1, 1, 200_000, 1)[0], audio_like(1, 1, 3000, 2)[0]]
    whole = model.encode_batch(clips, 4.8, embeddings=True)
    model.max_memory = 1 << 16
    try:
        pieces = model.encode_batch(clips, 4.8, embeddings=True)
    finally:
        del model.max_memory
    for one, other in zip(whole, pieces):
        assert torch.equal(one.embeddings, other.embeddings) and torch.equal(one.codes, other.codes)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_integer_samples_are_those_of_a_wav_file(models, dtype):
    """Full scale is +-1.0, as libsndfile reads them."""
    model, info = models[1], torch.iinfo(dtype)
    silence = 128 if dtype == torch.uint8 else 0
    full_scale = 2 ** (info.bits - 1)
    clip = (audio_like(1, 1, 2000, 3)[0] * 0.9 * full_scale + silence).round().clamp(info.min, info.max).to(dtype)
    floats = ((clip.double() - silence) / full_scale).float()
    expected = model.encode_batch([floats], 4.8)[0].codes
    for given in (clip, clip[0], clip.numpy()):
        assert torch.equal(model.encode_batch([given], 4.8)[0].codes, expected)
    assert torch.equal(torch.cat(list(encode_pieces(model, clip.split(700, dim=1), 4.8)), -1), expected[0])
    # what was found: as they are, integers are a clip that only clips
    assert not torch.equal(model.encode_batch([clip.float()], 4.8)[0].codes, expected)


@pytest.mark.parametrize(
    ("clip", "words"),
    [
        (torch.zeros(1, 100, dtype=torch.int64), r"waveforms\[0\] is int64; floats with full scale 1.0 are needed, or integers of int8"),
        (torch.zeros(1, 100, dtype=torch.complex64), r"waveforms\[0\] is complex64"),
        (torch.zeros(1, 100, dtype=torch.bool), r"waveforms\[0\] is bool"),
        (np.zeros(100, np.uint16), r"waveforms\[0\] is uint16"),
        ([0.0, 0.1], r"waveforms\[0\] is a list; a tensor or array"),
        ("a.wav", r"waveforms\[0\] is a str"),
    ],
)
def test_what_is_no_audio_is_refused_by_its_type(models, clip, words):
    with pytest.raises(TypeError, match=words):
        models[1].encode_batch([clip], 4.8)


def test_one_clip_in_the_place_of_a_list_is_refused(models):
    with pytest.raises(TypeError, match=r"waveforms is one clip of shape \[100\]; give a list of clips"):
        models[1].encode_batch(torch.zeros(100), 4.8)
    with pytest.raises(TypeError, match="samples of stream 0 is complex64"):
        list(encode_pieces(models[1], [torch.zeros(1, 100, dtype=torch.complex64)], 4.8))


def test_channels_that_come_last_are_refused_with_the_remedy(models, chunked_models):
    for _, model in (models, chunked_models):
        with pytest.raises(ValueError, match="Channels come first: transpose it"):
            model.encode_batch([torch.zeros(500, model.config.audio_channels)], 4.8)


BAD_BATCHES = {
    "bandwidth": lambda model: model.encode_batch([torch.zeros(100)], 7.0),
    "waveforms[1]": lambda model: model.encode_batch([torch.zeros(100), torch.zeros(2, 100)]),
    "waveforms[0]": lambda model: model.encode_batch([torch.zeros(1, 0)]),
}


def test_clips_of_another_model_are_refused_by_name(models, chunked_models):
    (_, whole), (_, chunked) = models, chunked_models
    (one,) = whole.encode_batch([torch.rand(whole.config.audio_channels, 4000)])
    (other,) = chunked.encode_batch([torch.rand(chunked.config.audio_channels, 4000)])
    with pytest.raises(ValueError, match=r"encoded\[1\] has (codes|no scales)"):
        chunked.decode_batch([other, one])
    with pytest.raises(ValueError, match=r"encoded\[0\] has (codes|scales)"):
        whole.decode_batch([other])
    with pytest.raises(ValueError, match=r"encoded\[0\] has codes \[1, .*\]; this model's of 9000 samples are \[1, K, "):
        whole.decode_batch([dataclasses.replace(one, num_samples=9000)])
    with pytest.raises(ValueError, match=r"encoded\[0\] has no scales, which this model needs"):
        chunked.decode_batch([dataclasses.replace(other, scales=None)])


@pytest.mark.parametrize("argument", BAD_BATCHES)
def test_bad_batches_are_refused_by_name(models, argument):
    with pytest.raises(ValueError) as error:
        BAD_BATCHES[argument](models[1])
    assert str(error.value).startswith(argument)


def test_a_subclass_with_its_own_frame_encoder_is_honoured():
    class Louder(encodec_fast.EncodecModel):
        def _encode_frame(self, input_values, *args):
            return super()._encode_frame(2 * input_values, *args)

    reference, model = pair(small_config())
    louder = Louder(reference.config).eval()
    louder.load_state_dict(reference.state_dict())
    audio = audio_like(1, 1, 400, 14)
    assert torch.equal(codes_of(louder, audio), codes_of(model, 2 * audio))


def test_every_fall_to_the_reference_is_logged_once(models, caplog):
    _, model = models
    request._logged.clear()
    model.encoder.layers[0].register_forward_hook(lambda *_: None)
    for _ in range(3):
        codes_of(model, audio_like(1, 1, 400, 15))
    lines = [record.message for record in caplog.records if "EncodecEncoder runs on the reference modules" in record.message]
    assert len(lines) == 1
    assert "hook" in lines[0]


@pytest.mark.parametrize("batch", [1, 3])
def test_codes_are_contiguous_as_those_of_hf(batch):
    reference, model = pair(small_config())
    audio = audio_like(batch, 1, 700, 0)
    with torch.no_grad():
        ours, theirs = (side.encode(audio, bandwidth=2.4).audio_codes for side in (model, reference))
    assert ours.stride() == theirs.stride() and ours.is_contiguous()
    assert torch.equal(ours, theirs)


def test_a_masked_clip_of_a_model_that_normalises_has_the_outcome_of_hf():
    # transformers before 4.53 multiplies [B, 1, T] by this mask inside, and fails on the [B, B, T] that it gets
    audio, mask = audio_like(2, 1, 400, 0), torch.arange(400) < torch.tensor([[400], [300]])
    found = [outcome(lambda model=model: model.encode(audio, mask, return_dict=False)[:2]) for model in pair(small_config(normalize=True))]
    if is_error(found[0]):
        assert found[1] == found[0]
    else:
        assert torch.equal(found[1][0], found[0][0])
        torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-6, atol=0)
