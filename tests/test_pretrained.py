"""Models by name: built in, from a folder, from the hub; and what is said when there is none."""

import json
import os
import time

import pytest
import torch

import encodec_fast
from encodec_fast import pretrained
from encodec_fast.plan.weights import weights_sha256
from encodec_fast.pretrained import ModelNotFound, load_model, torch_device
from support.models import pair, small_config


@pytest.fixture(scope="module")
def model():
    return pair(small_config())[1]


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_saved_folder_gives_the_same_weights_in_eval_mode(model, folder):
    loaded = load_model(folder)
    model_id = loaded.name_or_path
    assert isinstance(loaded, encodec_fast.EncodecModel) and not loaded.training
    assert model_id == str(folder) and weights_sha256(loaded) == weights_sha256(model)


def test_the_hash_sees_every_weight_and_not_the_order_of_reading(model):
    before = weights_sha256(model)
    assert len(before) == 64 and weights_sha256(model) == before
    embed = model.quantizer.layers[-1].codebook.embed
    with torch.no_grad():
        embed[0, 0] += 1
        assert weights_sha256(model) != before
        embed[0, 0] -= 1


def test_built_in_names_make_the_built_in_models(model, monkeypatch):
    monkeypatch.setattr(pretrained, "demo_model", lambda name: model)
    assert load_model("demo-48khz") is model and model.name_or_path == "demo-48khz"


BROKEN = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "no weights": (lambda folder: [path.unlink() for path in folder.glob("model*")], "can't be loaded"),
    "bad JSON": (lambda folder: (folder / "config.json").write_text("{"), "can't be loaded"),
    "another architecture": (lambda folder: edit_config(folder, model_type="bert"), "this is a bert model"),
    "cut weights": (lambda folder: os.truncate(folder / "model.safetensors", 5000), "the weights are damaged"),
    "other shapes": (lambda folder: edit_config(folder, hidden_size=64), r"has the shape \[.*, and config.json needs \["),
    "missing weights": (lambda folder: edit_config(folder, num_lstm_layers=3), "weights are missing, the first is"),
}


@pytest.mark.parametrize("damage, reason", BROKEN.values(), ids=BROKEN)
def test_a_folder_that_is_no_model_says_what_is_wrong(folder, damage, reason):
    damage(folder)
    with pytest.raises(ModelNotFound, match=reason) as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """The hub's client pointed at a port of this machine where nothing answers, with an empty cache."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(pretrained, "_from_pretrained", only_the_hub)


def only_the_hub(name, **options):
    assert options.get("local_files_only"), "asked the hub although it can't be reached"
    raise OSError("not in the cache")


def test_an_unreachable_hub_is_one_sentence_soon_that_names_the_demo(no_hub):
    environment, start = dict(os.environ), time.perf_counter()
    with pytest.raises(ModelNotFound, match=r"can't be reached .* --model demo") as caught:
        load_model("facebook/encodec_24khz")
    assert time.perf_counter() - start < 2 * pretrained.HUB_TIMEOUT_S
    assert "\n" not in str(caught.value) and dict(os.environ) == environment


def test_a_model_in_the_cache_is_used_without_asking_the_hub(model, monkeypatch):
    def cached(name, **options):
        assert options == {"local_files_only": True}
        return model

    monkeypatch.setattr(pretrained, "_from_pretrained", cached)
    monkeypatch.setattr(pretrained, "_reach_hub", lambda name: pytest.fail("asked the hub"))
    assert load_model("facebook/encodec_24khz") is model


@pytest.mark.parametrize("name", ["a/b/c", "../model", "with space", ""])
def test_what_can_be_no_name_is_said_at_once(name):
    with pytest.raises(ModelNotFound, match="neither a folder on this machine, nor a name on the Hugging Face hub"):
        load_model(name)


def test_devices():
    assert torch_device("cpu") == torch.device("cpu")
    assert torch_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="device is 'gpu'; allowed are auto, cpu, cuda"):
        torch_device("gpu")
    with pytest.raises(ValueError, match="torch sees"):
        torch_device("cuda:99")
