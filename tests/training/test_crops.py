"""Crop n is a function of the seed and n: the same whoever reads it, from clips as long as they are, and never clipped."""

import numpy as np
import pytest
import soundfile

from encodec_fast.audio import AudioError
from encodec_fast.corpus.reader import Reader
from encodec_fast.corpus.sources import find_tasks, scan_seconds
from encodec_fast.corpus.tasks import Task, read_task
from encodec_fast.training.crops import CropPlan, read_crops

RATE = 1000
TASKS = [Task("a", "a.wav", seconds=1.0), Task("b", "b.wav", seconds=3.0), Task("c", "c.wav", start=5.0, duration=4.0, seconds=4.0)]


@pytest.fixture
def ramps(tmp_path):
    """Clips whose samples tell where they lie: clip i holds i / 8 + t / 100, t in seconds."""
    for index, seconds in enumerate((1.0, 3.0, 0.2)):
        samples = index / 8 + np.arange(round(seconds * RATE)) / RATE / 100
        soundfile.write(tmp_path / f"{index}.wav", samples, RATE, subtype="FLOAT")
    return scan_seconds(find_tasks([tmp_path]))


def read(plan, first, count, workers=0, samples=500):
    with Reader(RATE, 1, workers=workers) as reader:
        return list(read_crops(plan, reader, range(first, first + count), samples))


def test_a_crop_does_not_depend_on_those_before():
    plan, other = CropPlan(TASKS, 0.5, seed=3), CropPlan(TASKS, 0.5, seed=3)
    crops = [plan.crop(number) for number in range(20)]
    assert [other.crop(number) for number in reversed(range(20))] == crops[::-1]
    assert len({str(crop) for crop in crops}) == 20


def test_another_seed_gives_other_crops():
    assert not {str(CropPlan(TASKS, 0.5, seed=1).crop(n)) for n in range(20)} & {
        str(CropPlan(TASKS, 0.5, seed=2).crop(n)) for n in range(20)
    }


def test_every_instant_is_as_likely_as_another():
    plan = CropPlan(TASKS, 0.5, mix_share=0.0)
    starts = [(part.task.id, part.start) for number in range(4000) for part in plan.crop(number).parts]
    shares = [sum(id == name for id, _ in starts) / len(starts) for name in "abc"]
    # 4 standard deviations
    assert np.abs(np.array(shares) - [1 / 8, 3 / 8, 4 / 8]).max() < 4 * 0.5 / 4000**0.5
    quarters = np.histogram([start / 3.5 for id, start in starts if id == "c"], bins=4, range=(0, 1))[0]
    assert quarters.min() > 400 and quarters.sum() == sum(id == "c" for id, _ in starts)


def test_a_crop_of_a_part_lies_within_the_part():
    plan = CropPlan(TASKS[2:], 0.5, mix_share=0.0)
    found = [plan.crop(number).parts[0] for number in range(200)]
    assert all(5.0 <= part.task.start and part.task.start + part.task.duration <= 9.0 + 1e-9 for part in found)
    assert all(part.task.start + part.lead == pytest.approx(5.0 + part.start) for part in found)
    assert min(part.start for part in found) < 0.2 and max(part.start for part in found) > 3.3


def test_the_share_and_the_sizes_of_sums_are_those_asked_for():
    sizes = [len(CropPlan(TASKS, 0.5, mix_share=0.6, mix_files=4).crop(number).parts) for number in range(2000)]
    shares = [sizes.count(size) / 2000 for size in (1, 2, 3, 4)]
    assert np.abs(np.array(shares) - [0.4, 0.2, 0.2, 0.2]).max() < 4 * 0.5 / 2000**0.5


def test_the_samples_are_those_of_the_files_at_the_offset(ramps):
    plan = CropPlan(ramps[:2], 0.5, mix_share=0.0, gain_db=(0.0, 0.0))
    for crop, samples in read(plan, 7, 20):
        (part,) = crop.parts
        expected = int(part.task.id[0]) / 8 + (round(part.task.start * RATE) + round(part.lead * RATE) + np.arange(500)) / RATE / 100
        assert samples.shape == (1, 500) and np.abs(samples[0] - expected).max() < 1e-6


def test_a_short_clip_ends_in_zeros(ramps):
    (_, samples), *_ = read(CropPlan(ramps[2:], 0.5, mix_share=0.0, gain_db=(0.0, 0.0)), 0, 1)
    assert samples[0, :200].min() > 0.2 and not samples[0, 200:].any()


def test_a_clip_of_another_rate_fills_the_crop(ramps):
    plan = CropPlan(ramps[1:2], 0.5, mix_share=0.0, gain_db=(0.0, 0.0))
    with Reader(1433, 1, workers=0) as reader:
        for crop, samples in read_crops(plan, reader, range(20), 717):
            expected = 1 / 8 + (crop.parts[0].start + np.arange(717) / 1433) / 100
            # but where the clip itself ends, a resampler rings
            if 0.15 < crop.parts[0].start < 2.35:
                assert np.abs(samples[0] - expected).max() < 1e-3
            assert samples[0, -1] > 0.05


def test_a_crop_of_another_rate_is_cut_of_the_file_resampled_whole(tmp_path):
    noise = 0.2 * np.random.default_rng(0).standard_normal(16_000)
    soundfile.write(tmp_path / "noise.wav", noise, 8000, subtype="FLOAT")
    (task,) = scan_seconds(find_tasks([tmp_path]))
    whole = read_task(task, 24_000, 1).samples
    plan = CropPlan([task], 0.1, mix_share=0.0, gain_db=(0.0, 0.0))
    with Reader(24_000, 1, workers=0) as reader:
        crops = list(read_crops(plan, reader, range(40), 2400))
    assert min(crop.parts[0].start for crop, _ in crops) < 0.05 and max(crop.parts[0].start for crop, _ in crops) > 1.8
    for crop, samples in crops:
        (part,) = crop.parts
        # the reader begins with a sample of the file
        first = 3 * round(part.task.start * 8000) + round(part.lead * 24_000)
        assert np.abs(samples - whole[:, first : first + 2400]).max() < 1e-6


def test_gains_span_their_range():
    plan = CropPlan(TASKS, 0.5)
    quiet = np.full((1, 4), 0.01, np.float32)
    gains = [20 * np.log10(plan.mix(plan.crop(number), [quiet])[0, 0] / 0.01) for number in range(500)]
    assert -10.001 <= min(gains) < -9.8 and 5.8 < max(gains) <= 6.001 and abs(np.mean(gains) + 2) < 4 * 4.62 / 500**0.5


def test_no_crop_clips():
    plan = CropPlan(TASKS, 0.5)
    loud = np.array([[0.9, -0.9]], np.float32)
    peaks = [np.abs(plan.mix(plan.crop(number), [loud, loud])).max() for number in range(300)]
    # the gains are drawn anew, not held at full scale
    assert max(peaks) <= 1 and np.mean(np.array(peaks) > 0.999) < 0.05


def test_a_clip_too_loud_for_every_gain_is_brought_to_full_scale():
    plan = CropPlan(TASKS, 0.5)
    assert np.abs(plan.mix(plan.crop(0), [np.array([[8.0, -4.0]], np.float32)])).max() == pytest.approx(1)


def test_any_number_of_workers_reads_the_same_crops(ramps):
    plan = CropPlan(ramps, 0.5)
    runs = [read(plan, 5, 30, workers) for workers in (0, 1, 2)]
    for here, one, two in zip(*runs):
        assert here[0] == one[0] == two[0]
        assert np.array_equal(here[1], one[1]) and np.array_equal(here[1], two[1])


def test_a_file_with_nan_is_named_with_the_offset(tmp_path):
    soundfile.write(tmp_path / "broken.wav", np.full(2000, np.nan), RATE, subtype="FLOAT")
    plan = CropPlan(scan_seconds(find_tasks([tmp_path])), 0.5)
    with pytest.raises(AudioError, match=r"broken\.wav: \d+ samples are NaN or infinite\. At \d\.\d+ s, for crop 0\."):
        read(plan, 0, 1)


def test_clips_without_audio_are_refused():
    with pytest.raises(ValueError, match="tasks are 1 clips without audio"):
        CropPlan([Task("a", "a.wav")], 0.5)


def test_the_fingerprint_tells_other_clips():
    prints = {CropPlan(tasks, 0.5).fingerprint() for tasks in (TASKS, TASKS[:2], TASKS[::-1])}
    assert len(prints) == 3 and CropPlan([*TASKS], 2.0).fingerprint() in prints
