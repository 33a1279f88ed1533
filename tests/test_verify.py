"""`verify` passes what is the same codec and fails what is not."""

from __future__ import annotations

import pytest
import torch
import transformers

from encodec_fast import verify as verification
from encodec_fast.backends import torch_backend
from encodec_fast.verify import verify
from support.models import audio_like, config_48khz, ours_like, pair, reference_model, small_config


@pytest.fixture(params=["24 kHz", "48 kHz"])
def model(request):
    small_48khz = config_48khz(num_filters=4, hidden_size=8, codebook_size=16, target_bandwidths=[2.4, 4.8])
    return pair(small_config() if request.param == "24 kHz" else small_48khz)[1]


def test_our_model_passes_on_a_batch_and_on_a_list(model):
    channels = model.config.audio_channels
    report = verify(model, audio_like(2, channels, 800, 0))
    assert report.passed, str(report)
    assert (report.clips, report.bandwidth) == (2, max(model.config.target_bandwidths))
    report = verify(model, [audio_like(1, channels, length, 1)[0] for length in (30, 801)], model.config.target_bandwidths[0])
    assert report.passed, str(report)
    assert report.clips == 2
    assert "PASS" in str(report)


def test_a_wrong_code_fails(model, monkeypatch):
    encode = torch_backend.TorchQuantizerProgram.encode
    monkeypatch.setattr(torch_backend.TorchQuantizerProgram, "encode", lambda *args: (encode(*args) + 1) % 16)
    from encodec_fast import use_backend

    with use_backend("torch"):
        report = verify(model, audio_like(1, model.config.audio_channels, 800, 0))
    assert not report.passed
    assert report.flips
    assert any(flip.margin > flip.bound for flip in report.flips)
    assert "FAIL" in str(report)


def test_a_wrong_waveform_fails(model):
    model.decoder.register_forward_hook(lambda module, args, output: output * 1.0001)
    report = verify(model, audio_like(1, model.config.audio_channels, 800, 0))
    assert not report.passed
    assert not report.waveform.passed
    assert report.embeddings.passed


def test_a_wrong_embedding_fails(model):
    def perturb(module, args, output):
        return output * 1.0001

    # before verify's own hook, which thus sees the wrong embeddings
    model.encoder.register_forward_hook(perturb)
    assert not verify(model, audio_like(1, model.config.audio_channels, 800, 0)).embeddings.passed


def test_a_margin_is_the_relative_move_that_swaps_two_entries():
    codebooks = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]], dtype=torch.float64)
    x = torch.tensor([0.3, 0.4], dtype=torch.float64).view(1, 2, 1)
    (flip,) = verification.code_flips(torch.tensor([[[1]]]), torch.tensor([[[0]]]), x, torch.zeros(1), codebooks, chunk=0, first_clip=7)
    # the plane halfway is x0 = 0, at distance 0.3 from an embedding of length 0.5
    assert flip.margin == pytest.approx(0.6)
    assert (flip.clip, flip.level, flip.ours, flip.reference) == (7, 0, 1, 0)


def test_only_the_first_differing_level_of_a_frame_counts():
    codebooks = torch.randn(3, 4, 2, dtype=torch.float64)
    ours, theirs = torch.tensor([[[0], [1], [2]]]), torch.tensor([[[0], [2], [3]]])
    flips = verification.code_flips(ours, theirs, torch.randn(1, 2, 1, dtype=torch.float64), torch.zeros(1), codebooks, 0, 0)
    assert [flip.level for flip in flips] == [1]


def test_other_models_and_dtypes_are_refused():
    reference = reference_model(small_config())
    with pytest.raises(TypeError, match=r"model: expected an encodec_fast\.EncodecModel"):
        verify(reference, torch.zeros(1, 1, 100))
    with pytest.raises(ValueError, match="model: expected float32"):
        verify(ours_like(reference).double(), torch.zeros(1, 1, 100))


def test_the_global_random_state_is_left_alone(model):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    verify(model, audio_like(1, model.config.audio_channels, 300, 0))
    assert torch.equal(torch.rand(1), expected)


def test_one_near_tie_in_every_frame_of_silence_counts_once():
    report = verification.VerifyReport(6.0, clips=1, codes=400, reference_flips=1)
    report.flips = [verification.Flip(0, 0, frame, 3, 10, 11, 1e-6, 2e-5) for frame in range(200)]
    assert report.passed
    report.flips = [verification.Flip(0, 0, frame, 3, frame, 11, 1e-6, 2e-5) for frame in range(200)]
    assert not report.passed


@pytest.mark.parametrize("samples", [100, 47_520, 47_520 + 161, 2 * 47_520 + 100, 100_000])
def test_a_clip_that_hf_fails_on_is_cut_and_counted(samples):
    model = pair(config_48khz(num_filters=4, hidden_size=8, codebook_size=16, target_bandwidths=[2.4]))[1]
    if "last_frame_pad_length" not in transformers.models.encodec.modeling_encodec.EncodecEncoderOutput.__dataclass_fields__:
        pytest.skip("transformers before 4.53 takes full chunks only")
    report = verify(model, [audio_like(1, 2, samples, 0)[0]])
    assert report.passed, str(report)
    assert report.cut == (samples in (47_520 + 161, 2 * 47_520 + 100))
