"""Original checkpoints: the codes and audio of the original modules, and the way there and back."""

import importlib.util
import json
import os
import sys
import types
from collections import OrderedDict

import pytest
import torch
import transformers
from torch import nn

import encodec_fast
from encodec_fast.checkpoints import CheckpointError, write_folder, write_original
from encodec_fast.pretrained import known_config, load_model
from support.checkpoints import (
    AUDIO_TOLERANCE,
    CAUSAL,
    MUSICGEN,
    SMALL,
    STEREO,
    assert_codes,
    assert_same,
    exact_embeddings,
    fill,
    noisy,
    original,
    package,
    saved,
)
from support.models import small_config
from support.original_model import OriginalModel


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(0)


@pytest.fixture
def mono(tmp_path):
    """(path, model, audio) of a small 24 kHz checkpoint."""
    model, audio = original(**SMALL)
    return saved(tmp_path / "mono.th", model.weights()), model, audio


def test_a_24_khz_checkpoint_gives_the_codes_of_the_original(mono):
    path, source, audio = mono
    model = load_model(path)
    assert isinstance(model, encodec_fast.EncodecModel) and not model.training and model.name_or_path == os.path.abspath(path)
    assert model.config.target_bandwidths == [1.5, 3.0, 6.0, 12.0, 24.0] and model.config.sampling_rate == 24_000
    assert_same(model, source, audio)


def test_a_48_khz_checkpoint_gives_the_codes_of_the_original(tmp_path):
    source, audio = original(rate=48_000, **SMALL, **STEREO)
    model = load_model(saved(tmp_path / "stereo.th", source.weights()))
    config = model.config
    assert (config.sampling_rate, config.audio_channels, config.normalize, config.use_causal_conv) == (48_000, 2, True, False)
    assert (config.chunk_length_s, config.overlap, config.norm_type) == (1.0, 0.01, "time_group_norm")
    assert_same(model, source, audio, scale=0.1)


def test_lstms_keep_the_names_of_their_weights(mono):
    # the two biases of a layer are added up, so that codes don't tell one from the other
    path, source, _ = mono
    for ours, theirs in ((load_model(path).encoder.layers, source.encoder.model), (load_model(path).decoder.layers, source.decoder.model)):
        (mine,), (given,) = ([layer.lstm for layer in layers if hasattr(layer, "lstm")] for layers in (ours, theirs))
        assert all(torch.equal(tensor, given.state_dict()[name]) for name, tensor in mine.state_dict().items())


def test_published_sizes_have_the_published_configs(tmp_path):
    mono, stereo = (
        known_config(saved(tmp_path / f"{name}.th", OriginalModel(**settings).weights())) for name, settings in (("a", {}), ("b", STEREO))
    )
    plain = transformers.EncodecConfig()
    for field in ("num_filters", "hidden_size", "codebook_size", "codebook_dim", "num_lstm_layers", "compress", "use_conv_shortcut"):
        assert getattr(mono, field) == getattr(stereo, field) == getattr(plain, field), field
    for field in ("kernel_size", "last_kernel_size", "residual_kernel_size", "num_residual_layers", "pad_mode", "dilation_growth_rate"):
        assert getattr(mono, field) == getattr(stereo, field) == getattr(plain, field), field
    assert list(mono.upsampling_ratios) == list(stereo.upsampling_ratios) == [8, 5, 4, 2]
    assert (list(mono.target_bandwidths), list(stereo.target_bandwidths)) == ([1.5, 3.0, 6.0, 12.0, 24.0], [3.0, 6.0, 12.0, 24.0])


STRUCTURES = {
    "three residual layers": {"n_residual_layers": 3, "ratios": [5, 4]},
    "no residual layers": {"n_residual_layers": 0},
    "identity shortcuts": {"true_skip": True, "compress": 4},
    "one LSTM layer": {"lstm": 1},
    "other kernels": {"kernel_size": 5, "last_kernel_size": 3, "residual_kernel_size": 5},
    "few levels": {"n_q": 3, "ratios": [2, 3, 4, 5, 6]},
}


@pytest.mark.parametrize("changes", STRUCTURES.values(), ids=STRUCTURES)
def test_the_names_follow_from_any_structure(tmp_path, changes):
    source, audio = original(0.25, **{**SMALL, **changes})
    assert_same(load_model(saved(tmp_path / "model.th", source.weights())), source, audio)


# Checkpoints of encodec-pytorch


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("norm", ["weight_norm", "time_group_norm"])
def test_a_checkpoint_of_encodec_pytorch_loads_with_its_default_config(tmp_path, caplog, norm, prefix):
    source, audio = original(**SMALL, norm=norm, causal=norm == "weight_norm")
    optimizer = torch.optim.Adam(source.parameters())
    content = {
        "epoch": 7,
        "model_state_dict": OrderedDict((prefix + name, tensor) for name, tensor in source.weights().items()),
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10).state_dict(),
    }
    model = load_model(saved(tmp_path / "epoch7_lr0.0003.pt", content))
    assert model.config.normalize and model.config.use_causal_conv == (norm == "weight_norm") and model.config.chunk_length_s is None
    assert "holds no config; taken as 24000 Hz" in caplog.text
    assert_same(model, source, audio, scale=0.3)


@pytest.mark.parametrize("form", ["quantizer.model", "parametrizations"])
def test_other_spellings_of_names_are_known(tmp_path, mono, form):
    _, source, audio = mono
    weights = source.weights()
    if form == "quantizer.model":
        weights = {name.replace("quantizer.vq", form): tensor for name, tensor in weights.items()}
    else:
        weights = {
            name.replace("weight_g", f"{form}.weight.original0").replace("weight_v", f"{form}.weight.original1"): tensor
            for name, tensor in weights.items()
        }
    assert_same(load_model(saved(tmp_path / "spelled.th", weights)), source, audio)


# Checkpoints of audiocraft


@pytest.mark.parametrize("settings", [MUSICGEN, CAUSAL], ids=["musicgen", "causal"])
def test_a_checkpoint_of_audiocraft_loads_with_its_own_config(tmp_path, settings):
    source, audio = original(rate=32_000, **settings)
    model = load_model(saved(tmp_path / "compression_state_dict.bin", package(source)))
    config = model.config
    assert config.sampling_rate == 32_000 and config.pad_mode == settings["pad_mode"]
    assert len(config.target_bandwidths) == 1 and len(model.quantizer.layers) == 4
    assert_same(model, source, audio)


def test_the_bandwidth_of_an_audiocraft_model_is_all_its_levels(tmp_path):
    source = OriginalModel(**{**MUSICGEN, "bins": 2048})
    config = known_config(saved(tmp_path / "compression_state_dict.bin", package(source)))
    assert config.target_bandwidths == [2.2]  # as facebook/encodec_32khz has it


def test_renormalize_is_normalize(tmp_path):
    source, audio = original(rate=32_000, **MUSICGEN)
    model = load_model(saved(tmp_path / "model.bin", package(source, **{"encodec.renormalize": True})))
    assert_same(model, source, audio, scale=0.2)


def test_the_config_is_known_without_the_weights(mono, monkeypatch):
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *_: pytest.fail("read the weights"))
    assert known_config(mono[0]).target_bandwidths == [1.5, 3.0, 6.0, 12.0, 24.0]


def test_loading_leaves_the_callers_random_numbers_alone(mono):
    before = torch.get_rng_state()
    load_model(mono[0])
    assert torch.equal(before, torch.get_rng_state())


# There and back


@pytest.mark.parametrize("settings", [SMALL, {**SMALL, **STEREO}], ids=["24khz", "48khz"])
def test_a_checkpoint_through_a_folder_and_back_is_bit_equal(tmp_path, settings):
    weights = OriginalModel(**settings).weights()
    first = load_model(saved(tmp_path / "model.th", weights))
    write_folder(first, tmp_path / "folder")
    write_original(load_model(tmp_path / "folder"), tmp_path / "back.th")
    back = torch.load(tmp_path / "back.th", weights_only=True)
    assert isinstance(back, OrderedDict) and back.keys() == weights.keys()
    for name, tensor in weights.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name


def test_transformers_reads_the_folder(tmp_path, mono):
    model = load_model(mono[0])
    write_folder(model, tmp_path / "folder")
    stock = transformers.EncodecModel.from_pretrained(tmp_path / "folder").eval()
    assert_same(stock, mono[1], mono[2])
    extractor = transformers.EncodecFeatureExtractor.from_pretrained(tmp_path / "folder")
    assert (extractor.sampling_rate, extractor.feature_size) == (24_000, 1)
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["model_type"] == "encodec"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "mono.th"]


UNTELLABLE = {"pad_mode": "constant", "sampling_rate": 16_000, "normalize": True, "target_bandwidths": [1.5, 24.0], "chunk_length_s": 1.0}


@pytest.mark.parametrize("field", UNTELLABLE)
def test_a_model_that_weights_alone_do_not_tell_is_not_written(tmp_path, mono, field):
    model = load_model(mono[0])
    setattr(model.config, field, UNTELLABLE[field])
    with pytest.raises(CheckpointError, match=f"{field} = .*; this model has"):
        write_original(model, tmp_path / "x.th")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mono.th"]


def test_a_small_model_of_another_rate_is_not_written(tmp_path):
    with pytest.raises(CheckpointError, match="sampling_rate = 24000; this model has 2400"):
        write_original(encodec_fast.EncodecModel(small_config(codebook_size=1024)), tmp_path / "x.th")


# The package of the authors, which has the weight norm that torch calls old
OLD_NORM = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")


@pytest.fixture
def encodec(monkeypatch):
    missing = [name for name in ("encodec", "einops") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed: pip install --no-deps encodec einops")
    if importlib.util.find_spec("torchaudio") is None:
        # encodec.utils imports it at the top, for reading files only
        monkeypatch.setitem(sys.modules, "torchaudio", types.ModuleType("torchaudio"))
    import encodec

    return encodec


def authors_model(encodec, rate, small=True):
    """The package's model with random weights and filled codebooks, and audio for it."""
    from encodec import modules

    bandwidths, channels = ([1.5, 3.0, 6.0, 12.0, 24.0], 1) if rate == 24_000 else ([3.0, 6.0, 12.0, 24.0], 2)
    norm, causal = ("weight_norm", True) if rate == 24_000 else ("time_group_norm", False)
    segment = None if rate == 24_000 else 1.0
    model = encodec.EncodecModel._get_model(bandwidths, rate, channels, causal, norm, not causal, segment)
    if small:
        settings = {"channels": channels, "norm": norm, "causal": causal, "n_filters": 4}
        model.encoder, model.decoder = modules.SEANetEncoder(**settings), modules.SEANetDecoder(**settings)
    audio = noisy(channels, int(1.5 * rate))
    model.embeds = [layer._codebook.embed for layer in model.quantizer.vq.layers]
    return fill(model.eval(), audio), audio


@OLD_NORM
@pytest.mark.parametrize("rate, small", [(24_000, True), (48_000, True), (24_000, False)], ids=["24khz", "48khz", "24khz-full-size"])
def test_the_authors_package_gives_the_same_codes_and_audio(encodec, tmp_path, rate, small):
    theirs, audio = authors_model(encodec, rate, small)
    ours = load_model(saved(tmp_path / "model.th", theirs.state_dict()))
    for bandwidth in (ours.config.target_bandwidths[0], 24.0):
        theirs.set_target_bandwidth(bandwidth)
        with torch.no_grad():
            frames = theirs.encode(0.3 * audio)
            expected = theirs.decode(frames)
        (clip,) = ours.encode_batch([0.3 * audio[0]], bandwidth)
        assert len(clip.codes) == len(frames) == (1 if rate == 24_000 else 2)
        for index, (codes, scale) in enumerate(frames):
            piece = 0.3 * audio[..., index * 47_520 :][..., : 1_000_000 if scale is None else 48_000]
            embeddings = exact_embeddings(theirs, piece / (1 if scale is None else scale))
            assert_codes(clip.codes[index, :, : codes.shape[2]], codes[0], theirs.embeds, embeddings)
            clip.codes[index, :, : codes.shape[2]] = codes[0]
        (decoded,) = ours.decode_batch([clip])
        assert (decoded - expected[0, :, : decoded.shape[1]]).abs().max() <= AUDIO_TOLERANCE * expected.abs().max()


@OLD_NORM
@pytest.mark.parametrize("rate", [24_000, 48_000])
def test_the_authors_package_loads_what_is_written_strictly(encodec, tmp_path, rate):
    theirs, _ = authors_model(encodec, rate, small=False)
    path = saved(tmp_path / "model.th", theirs.state_dict())
    write_original(load_model(path), tmp_path / "back.th")
    other, _ = authors_model(encodec, rate, small=False)
    other.load_state_dict(torch.load(tmp_path / "back.th", weights_only=True), strict=True)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


@OLD_NORM
def test_the_plain_modules_of_these_tests_are_the_authors(encodec):
    theirs, audio = authors_model(encodec, 24_000)
    ours = OriginalModel(n_filters=4).eval()
    own, names = ours.weights(), theirs.state_dict()
    assert own.keys() == names.keys() and all(own[name].shape == names[name].shape for name in own)
    spelled = {name.replace("weight_g", "parametrizations.weight.original0"): tensor for name, tensor in names.items()}
    spelled = {name.replace("weight_v", "parametrizations.weight.original1"): tensor for name, tensor in spelled.items()}
    ours.load_state_dict({name: tensor for name, tensor in spelled.items() if not name.startswith("quantizer.")})
    ours.embeds = [layer._codebook.embed for layer in theirs.quantizer.vq.layers]
    with torch.no_grad():
        assert torch.equal(ours.encode(audio), theirs.encode(audio)[0][0])
