"""A language model learns what its codes repeat, and a run that ended in its middle goes on to the same bits."""

from __future__ import annotations

import math
import os
import signal

import numpy as np
import pytest
import torch

from encodec_fast.dataset.stream import CodesDataset
from encodec_fast.formats import ClipRow, DatasetInfo
from encodec_fast.language_model.loading import load_lm
from encodec_fast.language_model.model import LanguageModelConfig
from encodec_fast.training.language_model import LanguageModelOptions, train_language_model
from support.rows import write

CONFIG = LanguageModelConfig(codebooks=2, codebook_size=16, dim=16, heads=2, layers=1, hidden=32, past_context=6)
# Clips are few: half of them are held out
OPTIONS = LanguageModelOptions(
    steps=8, batch_size=3, learning_rate=1e-2, warmup_steps=4, held_out=0.5, held_out_clips=4, validation_steps=3, most_offset=50
)


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    """A folder of clips that repeat four codes; two of them are shorter than a crop."""
    folder = tmp_path_factory.mktemp("codes")
    rows = []
    for index in range(14):
        frames = 7 if index < 2 else 30
        phase = np.arange(frames) + index
        rows.append(
            ClipRow(f"{index}.wav", f"{index}.wav", np.stack([phase % 4, 5 + phase % 4])[None], None, 320 * frames, 0, 24_000, 24_000, 1.5)
        )
    write(folder, rows, info=DatasetInfo("model", "ab" * 32, 16, "torch"))
    return folder


def rows_of(codes, **options):
    return CodesDataset(codes, shuffle=True, crop_frames=20, buffer_size=4, **options)


def trained(codes, folder, progress=None, **changes):
    options = LanguageModelOptions(**{**vars(OPTIONS), **changes})
    return train_language_model(rows_of(codes), folder, CONFIG, options, progress=progress)


def test_a_run_that_began_with_codebooks_goes_on_with_them_alone(codes, tmp_path):
    books = [torch.randn(16, 8) for _ in range(2)]
    options = LanguageModelOptions(**{**vars(OPTIONS), "steps": 1, "learning_rate": 1e-9})
    train_language_model(rows_of(codes), tmp_path, CONFIG, options, codebooks=books)
    begun = load_lm(tmp_path).emb[1].weight[1:, :8]
    torch.testing.assert_close(begun, books[1] / books[0].square().mean().sqrt())
    assert train_language_model(rows_of(codes), tmp_path, CONFIG, options, codebooks=books).first == 1
    with pytest.raises(ValueError, match="codebooks = '"):
        train_language_model(rows_of(codes), tmp_path, CONFIG, options, codebooks=books[::-1])


def test_codes_that_repeat_are_learned(codes, tmp_path):
    seen = []
    summary = trained(codes, tmp_path, lambda done, steps, bits: seen.append((done, steps, bits)), steps=150)
    assert summary.plain_bits == 4 and summary.bits < 1.5 and (summary.first, summary.steps) == (0, 150)
    assert seen[0] == (1, 150, None) and seen[-1][:2] == (150, 150)
    model, codes = load_lm(tmp_path), torch.tensor([[1, 2, 3, 0, 1, 2], [6, 7, 8, 5, 6, 7]])
    assert model.config == CONFIG
    with torch.no_grad():
        assert model(codes[None])[0, :, -1].argmax(-1).tolist() == [2, 7]


def test_a_run_that_was_interrupted_goes_on_to_the_same_bits(codes, tmp_path):
    whole, folder = trained(codes, tmp_path / "whole"), tmp_path / "cut"

    def interrupt(done, steps, bits):
        if done in (2, 5):
            os.kill(os.getpid(), signal.SIGTERM)

    for step in (3, 6):
        with pytest.raises(KeyboardInterrupt):
            trained(codes, folder, interrupt)
        assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == step
    assert trained(codes, folder).bits == whole.bits
    for name in ("model.safetensors", "config.json", "metrics.csv"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    again = trained(codes, folder)
    assert (again.first, again.steps, again.bits) == (8, 8, whole.bits)


def test_frames_behind_a_short_clips_end_do_not_count(codes, tmp_path):
    """The mean over two clips is that of their codes, however long the batch is."""
    from encodec_fast.training import language_model as training

    run = training._Run(rows_of(codes), tmp_path, CONFIG, OPTIONS, torch.device("cpu"), None, {})
    run.metrics.close()
    short, long = torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 20, dtype=torch.int64)
    with torch.no_grad():
        mean = run._cross_entropy([short, long], 0)
        parts = (5 * run._cross_entropy([short], 0) + 20 * run._cross_entropy([long], 0)) / 25
        alone = run._cross_entropy([short], 0)
    assert math.isclose(mean, parts, rel_tol=1e-5) and not math.isclose(alone, mean, rel_tol=1e-3)


def test_held_out_clips_are_not_trained_on(codes, tmp_path):
    """Of the clips each is on one side, by its id alone."""
    from encodec_fast.training.language_model import _is_held_out

    rows = list(rows_of(codes))
    held = {row["id"] for row in rows if _is_held_out(row, 0.5)}
    assert 0 < len(held) < len(rows)
    seen = []

    class Watched(CodesDataset):
        def __iter__(self):
            for row in super().__iter__():
                seen.append(row["id"])
                if row["id"] in held:
                    row["audio_codes"] = row["audio_codes"] * 0 + 15
                yield row

    whole = train_language_model(Watched(codes, shuffle=True, crop_frames=20, buffer_size=4), tmp_path / "a", CONFIG, OPTIONS)
    # the steps saw none of the changed codes: the weights are those of a run without the change
    trained(codes, tmp_path / "b")
    first, second = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in "ab")
    assert held <= set(seen) and all(torch.equal(first["model"][name], second["model"][name]) for name in first["model"])
    assert first["best"] != second["best"] and whole.bits == first["best"]


def test_another_run_in_the_folder_is_refused(codes, tmp_path):
    trained(codes, tmp_path, steps=2)
    with pytest.raises(ValueError, match=r"of a run with learning_rate = 0.01; now it is 0.02. Choose another folder"):
        trained(codes, tmp_path, steps=2, learning_rate=0.02)


@pytest.mark.parametrize(
    ("share", "message"), [(1e-9, "no clip is among the 0% that are held out"), (1 - 1e-9, "all clips are held out"), (1.0, "less than 1")]
)
def test_a_share_that_leaves_one_side_empty_is_refused(codes, tmp_path, share, message):
    with pytest.raises(ValueError, match=message):
        trained(codes, tmp_path, held_out=share)


def test_clips_of_fewer_levels_are_refused(codes, tmp_path):
    with pytest.raises(ValueError, match="has 1 levels; the model has 2"):
        train_language_model(rows_of(codes, levels=1), tmp_path, CONFIG, OPTIONS)
