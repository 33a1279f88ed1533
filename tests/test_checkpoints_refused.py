"""What is said of checkpoints that transformers can't represent, of damaged ones, and of files that are none."""

import io
import os
import zipfile

import pytest
import torch
from torch import nn

from encodec_fast.checkpoints import write_folder
from encodec_fast.pretrained import ModelNotFound, known_config, load_model
from support.checkpoints import MUSICGEN, SMALL, package, saved
from support.original_model import OriginalModel


def assert_refused(path, message):
    with pytest.raises(ModelNotFound, match=message) as caught:
        load_model(path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{path}: ") and str(caught.value).endswith(".")
    return str(caught.value)


@pytest.fixture
def mono(tmp_path):
    """The path of a small 24 kHz checkpoint."""
    return saved(tmp_path / "mono.th", OriginalModel(**SMALL).weights())


UNREPRESENTABLE = {
    "activation": ({"seanet.activation": "GELU"}, "seanet.activation: GELU, which transformers"),
    "activation_params": ({"seanet.activation_params": {"alpha": 0.5}}, r"seanet.activation_params: \{'alpha': 0.5\}"),
    "norm": ({"seanet.norm": "spectral_norm"}, "seanet.norm: spectral_norm"),
    "norm_params": ({"seanet.norm_params": {"eps": 1e-3}}, "seanet.norm_params"),
    "outer blocks": ({"seanet.disable_norm_outer_blocks": 1}, "seanet.disable_norm_outer_blocks: 1"),
    "final activation": ({"seanet.decoder.final_activation": "Tanh"}, "seanet.decoder.final_activation: Tanh"),
    "lstm": ({"seanet.lstm": 0}, "seanet.lstm: 0"),
    "padding": ({"seanet.pad_mode": "circular"}, "seanet.pad_mode: circular"),
    "trim": ({"seanet.decoder.trim_right_ratio": 0.5}, "seanet.decoder.trim_right_ratio: 0.5"),
    "unequal parts": ({"seanet.decoder.n_filters": 8}, "seanet.decoder.n_filters: 8"),
    "unknown": ({"seanet.attention": True}, "seanet.attention: True"),
    "quantizer": ({"encodec.quantizer": "no_quant"}, "encodec.quantizer: no_quant"),
    "other codec": ({"compression_model": "dac"}, "compression_model: dac"),
    "another n_filters": ({"seanet.n_filters": 64}, "seanet.n_filters: 64, and its weights have 4"),
    "another n_q": ({"rvq.n_q": 8}, "rvq.n_q: 8, and its weights have 4"),
    "no sample rate": ({"encodec.sample_rate": None}, "encodec.sample_rate: None; a whole number from 1 to"),
    "resolver": ({"encodec.sample_rate": "${oc.env:RATE}"}, "not resolved"),
    "endless rate": ({"encodec.sample_rate": 10**400}, "a whole number from 1 to 1,000,000 is needed"),
    "no sections": ({"rvq": None}, "no encodec, seanet and rvq"),
}


@pytest.mark.parametrize("changes, message", UNREPRESENTABLE.values(), ids=UNREPRESENTABLE)
def test_what_transformers_can_not_represent_is_named_with_its_value(tmp_path, changes, message):
    assert_refused(saved(tmp_path / "model.bin", package(OriginalModel(**MUSICGEN), **changes)), message)


class Foreign:
    pass


FIRST = "encoder.model.0.conv.conv.weight_v"
DEEP = "decoder.model.4.block.1.conv.conv.weight_g"
DAMAGE = {
    "missing": (lambda w: w.pop(DEEP), f"1 weight is missing, {DEEP}"),
    "missing first": (lambda w: w.pop(FIRST), f"the weight {FIRST} is missing"),
    "missing levels": (lambda w: w.pop("quantizer.vq.layers.0._codebook.embed"), "layers.0._codebook.embed is missing"),
    "missing decoder": (
        lambda w: [w.pop(name) for name in list(w) if name.startswith("decoder.")],
        "weights are missing, the first is decoder",
    ),
    "surplus": (lambda w: w.update({"decoder.model.20.bias": torch.ones(1)}), "1 weight is surplus, decoder.model.20.bias"),
    "shape": (lambda w: w.update({DEEP: torch.ones(5, 1, 1)}), rf"{DEEP} has the shape \[5, 1, 1\], and the other weights need"),
    "dimensions": (lambda w: w.update({FIRST: torch.ones(5)}), rf"{FIRST} has the shape \[5\]; 3 dimensions"),
    "NaN": (lambda w: w[DEEP].fill_(float("nan")), f"{DEEP} holds values that are not finite"),
    "infinity": (lambda w: w["quantizer.vq.layers.3._codebook.embed"][0, 0].fill_(float("inf")), "layers.3._codebook.embed holds values"),
    "integers": (lambda w: w.update({DEEP: w[DEEP].long()}), f"{DEEP} is torch.int64"),
    "no LSTM": (lambda w: [w.pop(name) for name in list(w) if ".lstm." in name], "no LSTM layers"),
    "no norm": (
        lambda w: [w.update({n.replace("_v", ""): w.pop(n)}) or w.pop(n.replace("_v", "_g")) for n in list(w) if n.endswith("_v")],
        "no norm",
    ),
    "no tensors": (lambda w: w.update({"epoch": 3}), "'epoch' is of type int"),
    "empty": (lambda w: w.clear(), "it holds no weights"),
}


@pytest.mark.parametrize("damage, message", DAMAGE.values(), ids=DAMAGE)
def test_weights_that_are_not_whole_are_named(tmp_path, damage, message):
    weights = OriginalModel(**SMALL).weights()
    damage(weights)
    assert_refused(saved(tmp_path / "damaged.th", weights), message)


NO_CHECKPOINTS = {
    "language model": (
        {"transformer.layers.0.norm1.weight": torch.ones(3), "emb.0.weight": torch.ones(2, 2)},
        "a language model over codes",
    ),
    "discriminator": ({"model_state_dict": {"discriminators.0.convs.0.conv.bias": torch.ones(1)}}, "the discriminator of a training"),
    "transformers": ({"encoder.layers.0.conv.bias": torch.ones(3)}, "folder that holds its config.json"),
    "another network": ({"layer.weight": torch.ones(3)}, "the first weight is layer.weight"),
    "list": ([torch.ones(3)], "it holds a list"),
    "tensor": (torch.ones(3), "it holds a Tensor"),
    "pointer": ({"pretrained": "facebook/encodec_32khz", "exported": True}, "give that name: facebook/encodec_32khz"),
    "objects": ({"model": Foreign()}, r"Python objects \(test_checkpoints_refused.Foreign\), which are never loaded"),
    "whole module": (nn.Linear(2, 2), "Python objects"),
}


@pytest.mark.parametrize("content, message", NO_CHECKPOINTS.values(), ids=NO_CHECKPOINTS)
def test_a_file_of_something_else_says_what_it_is(tmp_path, content, message):
    assert_refused(saved(tmp_path / "other.th", content), message)


def test_stereo_with_weight_norm_is_neither_published_model(tmp_path):
    assert_refused(saved(tmp_path / "x.th", OriginalModel(**SMALL, channels=2).weights()), "neither the 24 kHz model")


def test_code_in_a_pickle_is_not_run(tmp_path):
    class Touch:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "touched"),)

    assert_refused(saved(tmp_path / "evil.th", {"weights": Touch()}), "Python objects")
    assert not (tmp_path / "touched").exists()


def test_bytes_that_are_no_checkpoint(tmp_path, mono):
    whole = open(mono, "rb").read()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "text")
    contents = {"empty": b"", "text": b"hello\n" * 50, "wav": b"RIFF\x24\0\0\0WAVEfmt ", "zip": archive.getvalue()}
    for name, content in {**contents, "start": whole[:1000], "half": whole[: len(whole) // 2], "end": whole[:-100]}.items():
        path = tmp_path / f"{name}.th"
        path.write_bytes(content)
        message = assert_refused(str(path), "no checkpoint that torch can read, or it is damaged")
        assert known_config(str(path)) is None and "trust" not in message


BOMBS = {
    "nesting": "[" * 100_000,
    "date": "seanet: 2020-99-99",
    "aliases": "a: &a [1]\n"
    + "".join(f"a{n}: &a{n} [*a{n - 1 or ''}, *a{n - 1 or ''}]\n" for n in range(1, 60))
    + "seanet: {x: *a59}\nencodec: {}\nrvq: {}",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_a_config_made_to_harm_is_refused_soon(tmp_path, text):
    content = {"best_state": OriginalModel(**MUSICGEN).weights(), "xp.cfg": text}
    assert len(assert_refused(saved(tmp_path / "model.bin", content), "its xp.cfg")) < 500


def test_a_file_inside_a_folder_of_a_model_says_to_give_the_folder(tmp_path, mono):
    write_folder(load_model(mono), tmp_path / "folder")
    for name in ("model.safetensors", "config.json"):
        assert_refused(str(tmp_path / "folder" / name), "give the folder that it lies in")


def test_a_missing_file_is_not_looked_for_on_the_hub(tmp_path):
    assert_refused("encodec_24khz-d7cc33bc.th", "no such file")
    assert_refused(str(tmp_path / "nowhere.bin"), "no such file")
