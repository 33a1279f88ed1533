"""Drawn models: used codebooks, embeddings that fill their space, the same weights everywhere."""

import pytest
import torch
from transformers import EncodecConfig

from bench_lib.drawn import drawn_model, fit_codebooks, fitting_audio, seed_weights
from encodec_fast import EncodecModel, use_backend
from encodec_fast.plan.weights import weights_sha256
from support.models import config_48khz

SMALL = {"num_filters": 8, "hidden_size": 32, "codebook_size": 256}


@pytest.fixture(scope="module")
def model():
    config = config_48khz(**SMALL, target_bandwidths=[3.0])
    return drawn_model(config, fitting_audio(config, 600))


def test_more_than_half_of_each_codebook_is_used_on_the_fitting_audio(model):
    audio = fitting_audio(model.config, 600)
    with torch.no_grad(), use_backend("reference"):
        codes = model.quantizer.encode(model.encoder(audio))
    used = [level.unique().numel() for level in codes]
    assert len(used) == 2 and min(used) > 256 / 2, used


def test_embeddings_span_their_space_and_activations_keep_their_size(model):
    audio = fitting_audio(model.config, 600)
    with torch.no_grad(), use_backend("reference"):
        sizes = []
        hooks = [layer.register_forward_hook(lambda *call: sizes.append(call[2].std().item())) for layer in model.encoder.layers]
        embeddings = model.encoder(audio).transpose(1, 2).flatten(0, 1)
        for hook in hooks:
            hook.remove()
    values = torch.linalg.svdvals(embeddings - embeddings.mean(0))
    assert values[-1] > 0.02 * values[0] and values[15] > 0.1 * values[0]
    assert all(0.5 < size < 2.5 for size in sizes), sizes


def small_model(threads: int) -> tuple[str, torch.Tensor]:
    """Hash of a small model drawn with that many threads, and the next global random number."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        config = EncodecConfig(num_filters=8, hidden_size=32, codebook_size=64, target_bandwidths=[3.0])
        torch.manual_seed(5)
        with torch.random.fork_rng(devices=[]), torch.no_grad(), use_backend("reference"):
            model = EncodecModel(config).eval()
            generator = torch.Generator().manual_seed(1)
            seed_weights(model, generator)
            fit_codebooks(model.double(), fitting_audio(config, 300).double(), generator)
        return weights_sha256(model.float()), torch.rand(1)
    finally:
        torch.set_num_threads(before)


def test_the_weights_do_not_depend_on_the_number_of_threads():
    assert small_model(1)[0] == small_model(2)[0]
