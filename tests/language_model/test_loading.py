"""Language models from the published files, from state dicts and from folders; and what is none."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from encodec_fast.language_model import loading
from encodec_fast.language_model.loading import LanguageModelError, config_json, load_lm
from support.language_models import SMALL, drawn_language_model

# As load_lm takes a state dict without a word of sizes: 32 codebooks, 8 heads
PUBLISHED_KIND = replace(SMALL, codebooks=32, dim=16, heads=8, hidden=20, past_context=262)


@pytest.fixture(scope="module")
def published():
    return drawn_language_model(PUBLISHED_KIND)


@pytest.fixture
def published_file(tmp_path, published, monkeypatch):
    """A file under a name that ends in its hash, as that of the published weights."""
    torch.save(published.state_dict(), tmp_path / "weights.th")
    digest = hashlib.sha256((tmp_path / "weights.th").read_bytes()).hexdigest()
    path = (tmp_path / "weights.th").rename(tmp_path / f"encodec_lm_24khz-{digest[:8]}.th")
    monkeypatch.setitem(loading.PUBLISHED, "encodec_lm_24khz", path.name)
    return path


def same(one, other):
    return one.config == other.config and one.fingerprint() == other.fingerprint() and not one.training


def test_the_published_files_are_known_by_name_and_hash():
    assert loading.PUBLISHED == {"encodec_lm_24khz": "encodec_lm_24khz-1608e3c0.th", "encodec_lm_48khz": "encodec_lm_48khz-7add9fc3.th"}


def test_a_published_file_loads(published, published_file):
    assert same(load_lm(published_file), published)


def test_a_published_name_is_looked_up_in_the_hub_cache(published, published_file, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(LanguageModelError, match="is not there; put the published weights there"):
        load_lm("encodec_lm_24khz")
    (tmp_path / "checkpoints").mkdir()
    published_file.rename(tmp_path / "checkpoints" / published_file.name)
    assert same(load_lm("encodec_lm_24khz"), published)


def test_a_published_file_with_other_content_is_refused(published_file):
    content = bytearray(published_file.read_bytes())
    content[-1] ^= 1
    published_file.write_bytes(content)
    with pytest.raises(LanguageModelError, match=r"begins with [0-9a-f]{8}, not with"):
        load_lm(published_file)


@pytest.mark.parametrize("name", ["weights.pt", "weights.th", "weights.safetensors"])
def test_a_state_dict_loads_with_its_sizes(tmp_path, name):
    model = drawn_language_model()
    (save_file if name.endswith(".safetensors") else torch.save)(model.state_dict(), tmp_path / name)
    assert same(load_lm(tmp_path / name, heads=SMALL.heads, past_context=SMALL.past_context), model)


def test_a_folder_loads(tmp_path):
    model = drawn_language_model()
    (tmp_path / "config.json").write_bytes(config_json(model.config))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert same(load_lm(str(tmp_path)), model)
    with pytest.raises(LanguageModelError, match="leave them out"):
        load_lm(tmp_path, heads=2)
    (tmp_path / "config.json").write_text('{"model_type": "encodec"}')
    with pytest.raises(LanguageModelError, match="not that of a language model"):
        load_lm(tmp_path)


def test_the_random_numbers_of_the_caller_stay(published_file):
    before = torch.get_rng_state()
    load_lm(published_file)
    assert torch.equal(torch.get_rng_state(), before)


class Foreign:
    pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {}, "not the weights of a language model"),
        (lambda state: [1], "no dict of weights"),
        (lambda state: {**state, "emb.0.weight": Foreign()}, "no file of plain tensors"),
        (lambda state: {**state, "other": torch.ones(1)}, "other is surplus"),
        (lambda state: {k: v for k, v in state.items() if k != "linears.1.bias"}, "linears.1.bias is missing"),
        (lambda state: {**state, "emb.1.weight": torch.ones(3, 3)}, r"emb.1.weight has the shape \[3, 3\]; \[41, 30\]"),
        (lambda state: {**state, "emb.1.weight": torch.full((41, 30), torch.inf)}, "emb.1.weight holds values that are not finite"),
        (lambda state: {**state, "emb.1.weight": torch.ones(41, 30, dtype=torch.int64)}, "plain floating point"),
        (lambda state: {k: v for k, v in state.items() if "linear1" not in k}, "not those of a language model"),
    ],
)
def test_what_is_no_language_model_is_refused(tmp_path, change, message):
    torch.save(change(drawn_language_model().state_dict()), tmp_path / "weights.pt")
    with pytest.raises(LanguageModelError, match=f"weights.pt: .*{message}"):
        load_lm(tmp_path / "weights.pt", heads=SMALL.heads, past_context=SMALL.past_context)


@pytest.mark.parametrize(("name", "message"), [("none.th", "no such file or folder"), ("weights.bin", "'.bin'"), ("damaged.th", "damaged")])
def test_a_file_that_can_not_be_read_is_refused(tmp_path, name, message):
    for there in ("weights.bin", "damaged.th"):
        (tmp_path / there).write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(LanguageModelError, match=message):
        load_lm(tmp_path / name)


def test_a_state_dict_of_unknown_context_asks_for_it(tmp_path):
    torch.save(drawn_language_model().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(LanguageModelError, match="3 codebooks, and the published models have 32 or 16; give past_context"):
        load_lm(tmp_path / "weights.pt", heads=5)
