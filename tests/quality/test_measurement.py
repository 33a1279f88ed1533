"""What a report says of a model: its measures are those of audio at that bandwidth, and what is undefined is a dash."""

import json
import math

import numpy as np
import pytest
import torch

from encodec_fast.quality import measure, mel_distance, si_snr, stoi
from support.models import audio_like, config_48khz, pair, small_config

SMALL_48KHZ = {"num_filters": 4, "hidden_size": 8, "codebook_size": 16, "target_bandwidths": [3.0, 6.0]}


@pytest.fixture(scope="module")
def model():
    return pair(small_config(codebook_size=16, target_bandwidths=[1.2, 2.4, 4.8]))[1]


@pytest.fixture(scope="module")
def stereo_model():
    return pair(config_48khz(**SMALL_48KHZ))[1]


@pytest.fixture(scope="module")
def clips():
    return [audio_like(1, 1, samples, seed)[0] for seed, samples in enumerate([4001, 2400])]


@pytest.fixture(scope="module")
def stereo_clips():
    """The second has three chunks, and the last one is short."""
    return [audio_like(1, 2, samples, seed)[0] for seed, samples in enumerate([30_000, 110_000])]


@pytest.fixture
def without_pesq(monkeypatch):
    monkeypatch.setattr("encodec_fast.quality.metrics.missing_packages", lambda: {"pesq": "the package pesq is not installed"})


def means_of_each_clip(model, clips, bandwidth):
    """The measures of every clip encoded and decoded at this bandwidth by itself, averaged."""
    rate, each = model.config.sampling_rate, []
    for clip in clips:
        (audio,) = model.decode_batch(model.encode_batch([clip], bandwidth))
        found = {"si_snr": si_snr(clip, audio), "stoi": stoi(clip, audio, rate), "mel_distance": mel_distance(clip, audio, rate)}
        each.append({name: float(value.mean()) for name, value in found.items()})
    return {name: sum(values[name] for values in each) / len(each) for name in each[0]}


@pytest.mark.parametrize("kind", ["mono", "chunked stereo"])
def test_a_bandwidth_is_measured_as_if_it_were_encoded_by_itself(request, without_pesq, kind):
    model, clips = (request.getfixturevalue(name) for name in (("model", "clips") if kind == "mono" else ("stereo_model", "stereo_clips")))
    report = measure(model, clips)
    assert [each.bandwidth for each in report.bandwidths] == model.config.target_bandwidths
    assert len({each.means["si_snr"] for each in report.bandwidths}) == len(report.bandwidths)
    for each in report.bandwidths:
        expected = means_of_each_clip(model, clips, each.bandwidth)
        assert {name: each.means[name] for name in expected} == pytest.approx(expected, rel=1e-6)
        assert set(each.clips.values()) == {2}
    assert report.clips == 2 and report.seconds == sum(clip.shape[1] for clip in clips) / model.config.sampling_rate


def test_the_use_of_a_level_counts_no_frame_behind_a_short_last_chunk(stereo_model, stereo_clips, without_pesq):
    report = measure(stereo_model, stereo_clips, [6.0])
    levels = [set() for _ in report.use]
    frames = 0
    for clip in stereo_model.encode_batch(stereo_clips, 6.0):
        for index, chunk in enumerate(clip.codes):
            kept = chunk[:, : chunk.shape[1] - (clip.last_frame_pad_length if index == len(clip.codes) - 1 else 0)]
            frames += kept.shape[1]
            for level, row in zip(levels, kept.tolist()):
                level.update(row)
    assert report.frames == frames and report.use == [len(level) / 16 for level in levels]
    assert stereo_model.encode_batch(stereo_clips[1:], 6.0)[0].last_frame_pad_length > 0


def test_a_perfect_codec_has_infinite_si_snr_and_no_mel_distance(model, clips, monkeypatch):
    given = iter([clip for clip in clips for _ in range(2)])
    monkeypatch.setattr(model, "decode_batch", lambda encoded: [next(given)])
    report = measure(model, clips, [4.8, 1.2])
    assert [each.bandwidth for each in report.bandwidths] == [1.2, 4.8]
    assert all(each.means["si_snr"] == math.inf and each.means["mel_distance"] == 0 for each in report.bandwidths)
    assert " inf  " in str(report) and report.to_json()["bandwidths"][0]["si_snr"] == "inf"
    json.dumps(report.to_json(), allow_nan=False)


def test_a_silent_clip_is_a_dash_and_leaves_the_means_of_the_others_alone(model, clips, without_pesq):
    silence = torch.zeros(1, 3000)
    alone = measure(model, [silence])
    assert alone.bandwidths[0].means["si_snr"] is None and alone.bandwidths[0].clips["stoi"] == 0
    assert alone.table()[1][2:4] == ["-", "-"] and "nan" not in str(alone)
    assert json.loads(json.dumps(alone.to_json(), allow_nan=False))["bandwidths"][0]["stoi"] is None
    mixed, sound = measure(model, [*clips, silence]), measure(model, clips)
    assert [each.means["si_snr"] for each in mixed.bandwidths] == [each.means["si_snr"] for each in sound.bandwidths]
    assert "SI-SNR dB: of 2 clips; the others are silent or too short for it" in mixed.notes()


def test_the_report_is_at_most_80_columns_wide(clips):
    many = pair(small_config(codebook_size=16, target_bandwidths=[1.2, 38.4]))[1]
    report = measure(many, clips)
    assert len(report.use) == 32 and max(map(len, str(report).splitlines())) <= 80


def test_a_missing_package_leaves_its_column_out_and_says_why(model, clips, without_pesq):
    report = measure(model, clips)
    assert report.measures == ["si_snr", "stoi", "mel_distance"] and "PESQ" not in report.table()[0]
    assert "PESQ: left out, the package pesq is not installed" in report.notes()


def test_arrays_and_integers_are_measured_as_the_samples_that_they_stand_for(model, clips, without_pesq):
    numbers = (clips[0] * 20_000).round().to(torch.int16)
    floats = (numbers.float() / 32_768).numpy()
    assert measure(model, [numbers.numpy()[0]]) == measure(model, [floats]) == measure(model, [torch.from_numpy(floats)])


def test_audio_is_kept_of_as_many_clips_as_are_asked_for(model, clips, without_pesq):
    done = []
    report = measure(model, iter([*clips, torch.cat([clips[0]] * 8, 1)]), [2.4], listen=3, progress=done.append)
    assert done == [1, 2, 3] and len(report.heard) == 3
    assert np.array_equal(report.heard[0].original, clips[0].numpy())
    assert np.array_equal(report.heard[0].decoded[2.4], model.decode_batch(model.encode_batch(clips[:1], 2.4))[0].numpy())
    # 10 s
    assert report.heard[2].original.shape == report.heard[2].decoded[2.4].shape == (1, 24_000)
    assert not measure(model, clips).heard


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([],), "clips is empty"),
        ((["clip"], []), "bandwidths is empty"),
        ((["clip"], [7.0]), r"no 7.0 kbps. Choose one of \[1.2, 2.4, 4.8\]"),
    ],
)
def test_what_can_not_be_measured_is_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        measure(model, *arguments)


def test_audio_that_is_not_finite_is_an_error_and_no_dash(clips):
    broken = pair(small_config(codebook_size=16, target_bandwidths=[1.2]))[1]
    with torch.no_grad():
        next(broken.decoder.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match=r"audio of clip 0 at 1\.2 kbps is not finite"):
        measure(broken, clips)
