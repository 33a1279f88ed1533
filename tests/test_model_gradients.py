"""Gradients of the fast forward are those of HF, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

from support.models import audio_like, config_48khz, pair, small_config


@pytest.fixture(params=["24 kHz", "48 kHz"])
def models(request):
    small_48khz = config_48khz(num_filters=4, hidden_size=8, codebook_size=16, target_bandwidths=[2.4])
    return pair(small_config() if request.param == "24 kHz" else small_48khz)


def projected(output):
    """A loss whose own gradient is the same for equal and for nearly equal outputs."""
    return (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(1))).sum()


def gradients(model, run):
    model.zero_grad()
    leaves, loss = run(model)
    loss.backward()
    return [leaf.grad for leaf in leaves] + [parameter.grad for parameter in model.parameters()]


def whole_chunks(model):
    """A length that every transformers takes: before 4.53 a ragged tail was refused."""
    return model.config.chunk_length or 700


def through_encoder(model):
    audio = audio_like(2, model.config.audio_channels, 400, 0).requires_grad_()
    return [audio], projected(model.encoder(audio))


def through_decode(model):
    codes = torch.randint(0, 16, (1, 2, len(model.quantizer.layers), 9), generator=torch.Generator().manual_seed(0))
    scale = torch.full((2, 1), 0.5, requires_grad=True)
    scales = [scale if model.config.normalize else None]
    return [scale], projected(model.decode(codes, scales).audio_values)


def through_scales(model):
    audio = audio_like(1, model.config.audio_channels, whole_chunks(model), 0).requires_grad_()
    scales = model.encode(audio).audio_scales
    return [audio], sum((scale.sum() for scale in scales if scale is not None), audio.sum())


@pytest.mark.parametrize("run", [through_encoder, through_decode, through_scales])
def test_gradients_equal_those_of_hf(models, run):
    theirs, ours = (gradients(side, run) for side in models)
    assert sum(grad is not None for grad in theirs) > 0
    assert [grad is None for grad in ours] == [grad is None for grad in theirs]
    if run is through_decode and theirs[0] is not None:
        # the gradient of a scale is a sum of outputs, which agree to rounding
        torch.testing.assert_close(ours.pop(0), theirs.pop(0), rtol=1e-4, atol=0)
    for own, stock in zip(ours, theirs):
        assert own is None or torch.equal(own, stock)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_parameters_that_are_lent_for_a_call_get_the_gradients_of_hf(models, part):
    found = []
    for side in models:
        module = getattr(side, part)
        lent = {name: (1.5 * parameter.detach()).requires_grad_() for name, parameter in module.named_parameters()}
        x = audio_like(2, 8 if part == "decoder" else side.config.audio_channels, 60, 0)
        projected(torch.func.functional_call(module, lent, (x,))).backward()
        assert all(parameter.grad is None for parameter in module.parameters())
        found.append([parameter.grad for parameter in lent.values()])
    assert [grad is None for grad in found[1]] == [grad is None for grad in found[0]] and any(g is not None for g in found[0])
    assert all(own is None or torch.equal(own, stock) for stock, own in zip(*found))


@pytest.fixture
def one_thread():
    """Two of torch's threads sum a second derivative in an order that changes from run to run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_second_derivatives_equal_those_of_hf(models, one_thread):
    results = []
    for side in models:
        audio = audio_like(1, side.config.audio_channels, 50, 0).requires_grad_()
        (first,) = torch.autograd.grad(projected(side.encoder(audio)), audio, create_graph=True)
        results.append(torch.autograd.grad(projected(first), audio)[0])
    assert torch.equal(*results)


def test_frozen_parameters_get_no_gradient(models):
    _, model = models
    model.requires_grad_(False)
    model.encoder.layers[0].conv.bias.requires_grad_(True)
    gradients(model, through_encoder)
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == ["encoder.layers.0.conv.bias"]


def test_weights_edited_between_forward_and_backward_are_an_error(models):
    _, model = models
    loss = through_encoder(model)[1]
    with torch.no_grad():
        model.encoder.layers[0].conv.bias.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_training_step_moves_the_weights_as_with_hf(models):
    after = []
    for side in models:
        optimizer = torch.optim.SGD(side.parameters(), lr=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            through_encoder(side)[1].backward()
            optimizer.step()
        after.append(side.encoder(audio_like(1, side.config.audio_channels, 400, 3)).detach())
    torch.testing.assert_close(after[1], after[0], rtol=1e-3, atol=1e-3 * after[0].abs().max().item())


def test_codes_without_a_gradient_need_no_graph(models):
    _, model = models
    codes = model.encode(audio_like(1, model.config.audio_channels, whole_chunks(model), 0)).audio_codes
    assert not codes.requires_grad


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_forward_mode_tangents_equal_those_of_hf(models, part, frozen):
    channels = models[0].config.audio_channels if part == "encoder" else models[0].config.hidden_size
    x, tangent = (audio_like(1, channels, 400, seed) for seed in (0, 1))
    tangents = []
    for model in models:
        network = getattr(model.requires_grad_(not frozen), part)
        # oneDNN's LSTM has no forward mode
        with torch.backends.mkldnn.flags(enabled=False), forward_ad.dual_level(), torch.set_grad_enabled(not frozen):
            _, found = forward_ad.unpack_dual(network(forward_ad.make_dual(x, tangent)))
            tangents.append(None if found is None else found.clone())
    assert tangents[0] is not None and torch.equal(*tangents)


def test_codebooks_that_ask_for_gradients_after_a_call_get_them(models):
    found = []
    for side in models:
        # The oldest transformers gives the small 48 kHz model one codebook.
        levels = min(2, len(side.quantizer.layers))
        codes = torch.randint(0, 16, (1, 1, levels, 150), generator=torch.Generator().manual_seed(0))
        scales = [torch.ones(1, 1) if side.config.normalize else None]
        embed = side.quantizer.layers[0].codebook.embed
        with torch.no_grad():
            side.decode(codes, scales)
        projected(side.decode(codes, scales).audio_values)
        embed.requires_grad_()
        projected(side.decode(codes, scales).audio_values).backward()
        found.append(embed.grad)
    assert found[0] is not None and torch.equal(*found)
