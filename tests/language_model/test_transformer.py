"""The language model in torch is the published one: the same numbers from the same weights, and each frame from those before it alone."""

from __future__ import annotations

import importlib.util
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch

from encodec_fast.language_model.model import LanguageModel, LanguageModelConfig, position_divisors
from support.language_models import SMALL, drawn_language_model, probabilities, published_steps, random_codes

# Of probabilities, two float32 walks of a model as peaked as a trained one: encodec's own differs from float64 by 3.9e-6 at the
# published size, by 1.0e-6 at the small one. tests/compression/test_language_model_coder.py has the engine's own bound
OF_ENCODEC = {"small": 2e-6, "published": 8e-6}


def logits_of(model, codes, offset=0):
    with torch.no_grad():
        return model(torch.from_numpy(codes)[None], offset)[0]


def test_all_steps_at_once_are_the_published_ones_step_by_step():
    codes, model = random_codes(SMALL, 40), drawn_language_model().double()
    np.testing.assert_allclose(logits_of(model, codes).numpy(), published_steps(model, codes), atol=1e-10, rtol=0)


@pytest.mark.parametrize("size", OF_ENCODEC)
def test_probabilities_are_those_of_the_encodec_package(size, monkeypatch):
    missing = [name for name in ("encodec", "einops") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: pip install --no-deps encodec einops")
    if importlib.util.find_spec("torchaudio") is None:
        monkeypatch.setitem(sys.modules, "torchaudio", types.ModuleType("torchaudio"))
    from encodec.model import LMModel

    config = SMALL if size == "small" else LanguageModelConfig(codebooks=8)
    model, codes = drawn_language_model(config), torch.from_numpy(random_codes(config, 40))
    theirs = LMModel(
        config.codebooks, config.codebook_size, config.dim, num_heads=config.heads, num_layers=config.layers,
        hidden_scale=config.hidden / config.dim, past_context=config.past_context,
    ).eval()  # fmt: skip
    theirs.load_state_dict(model.state_dict())
    offset, states, given = 5, None, torch.zeros(1, config.codebooks, 1, dtype=torch.int64)
    ours = probabilities(logits_of(model, codes.numpy(), offset))
    for step in range(codes.shape[1]):
        with torch.no_grad():
            found, states, offset = theirs(given, states, offset)
        assert np.abs(found[0, :, :, 0].T.numpy() - ours[:, step]).max() <= OF_ENCODEC[size]
        given = codes[None, :, step : step + 1] + 1


def test_a_frames_logits_depend_on_the_frames_before_it_alone():
    model, codes = drawn_language_model(), random_codes(SMALL, 20)
    changed = codes.copy()
    changed[:, 12:] = random_codes(SMALL, 8, seed=1)
    first, second = logits_of(model, codes), logits_of(model, changed)
    assert torch.equal(first[:, :13], second[:, :13]) and not torch.allclose(first[:, 13], second[:, 13])


def test_fewer_levels_are_a_model_of_fewer_levels():
    model, codes = drawn_language_model(), random_codes(SMALL, 20)
    fewer = LanguageModel(replace(SMALL, codebooks=2)).eval()
    fewer.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if ".2." not in f".{name}"})
    assert torch.equal(logits_of(model, codes[:2]), logits_of(fewer, codes[:2]))


def test_divisors_of_positions_are_powers_rounded_once():
    exponents = np.arange(100, dtype=np.float32) / np.float32(99)
    expected = np.exp(exponents.astype(np.longdouble) * np.log(np.longdouble(10000))).astype(np.float32)
    assert position_divisors(200) == tuple(expected.tolist())


def test_the_fingerprint_is_of_weights_and_sizes():
    model = drawn_language_model()
    other = drawn_language_model(replace(SMALL, past_context=8))
    assert model.fingerprint() == drawn_language_model().fingerprint() != other.fingerprint()
    before = model.fingerprint()
    model.linears[0].bias.data[0] += 1
    assert len(before) == 32 and model.fingerprint() != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"dim": 31}, "even"), ({"heads": 4}, "divisor of dim, which is 30"), ({"layers": 0}, "layers is 0"), ({"hidden": 2.0}, "whole")],
)
def test_sizes_that_no_model_has_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


@pytest.mark.parametrize("shape", [(3, 5), (1, 4, 5), (1, 0, 5)])
def test_codes_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\[B, 1 \.\.\. 3, F\]"):
        drawn_language_model()(torch.zeros(shape, dtype=torch.int64))
