"""Layers in training give the audio and the gradients of transformers' modules."""

import copy

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.encodec import modeling_encodec

from encodec_fast.training.forward import run_layers
from support.configs import configs
from support.models import audio_like, small_config


def both(config, seed=0):
    torch.manual_seed(seed)
    model = transformers.EncodecModel(config)
    return model, copy.deepcopy(model).double()


def gradients(network, run, x):
    """Output and gradients of its input and of every parameter."""
    x = x.to(next(network.parameters()).dtype).clone().requires_grad_()
    output = run(network, x)
    weight = audio_like(*output.shape, 7).to(output.dtype)
    return [output.detach(), *torch.autograd.grad((output * weight).sum(), [x, *network.parameters()])]


def errors(config, part, samples):
    """Of ours and of the modules, against the modules in float64, relative to each tensor's largest value."""
    model, exact = both(config)
    network, truth = getattr(model, part), getattr(exact, part)
    channels = config.audio_channels if part == "encoder" else config.hidden_size
    x = audio_like(2, channels, samples, 1)
    ours, stock, true = (gradients(*each, x) for each in ((network, run_layers), (network, call), (truth, call)))
    assert [tensor.shape for tensor in ours] == [tensor.shape for tensor in stock]
    scales = [max(tensor.abs().max().item(), 1e-30) for tensor in true]
    return [[((a - b).abs().max() / scale).item() for a, b, scale in zip(side, true, scales)] for side in (ours, stock)]


def call(network, x):
    return network(x)


@pytest.mark.parametrize("samples", [1, 2, 7, 8, 9, 131])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_gradients_err_as_little_as_those_of_the_modules(part, samples):
    ours, stock = errors(small_config(num_filters=8), part, samples)
    assert max(ours) <= 4 * max(stock) + 1e-6


@settings(max_examples=25)
@given(config=configs(), part=st.sampled_from(["encoder", "decoder"]), samples=st.integers(5, 60))
def test_every_configuration_gives_the_gradients_of_its_modules(config, part, samples):
    _, exact = both(config)
    network = getattr(exact, part)
    x = audio_like(2, config.audio_channels if part == "encoder" else config.hidden_size, samples, 1)
    try:
        expected = gradients(network, call, x)
    except Exception as error:
        with pytest.raises(type(error)):
            gradients(network, run_layers, x)
        return
    for own, true in zip(gradients(network, run_layers, x), expected):
        torch.testing.assert_close(own, true, rtol=1e-7, atol=1e-10 * max(1.0, true.abs().max().item()))


def test_the_recording_itself_needs_no_gradient():
    model, _ = both(small_config())
    x = audio_like(2, 1, 131, 1)
    found = []
    for run in (run_layers, call):
        model.zero_grad()
        run(model.encoder, x).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in model.encoder.parameters()])
    for own, stock in zip(*found):
        torch.testing.assert_close(own, stock, rtol=1e-4, atol=1e-5 * stock.abs().max().item())


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_no_convolution_pads_as_transformers_does(part, monkeypatch):
    model, _ = both(small_config())
    seen, forward = [], modeling_encodec.EncodecConv1d.forward
    monkeypatch.setattr(modeling_encodec.EncodecConv1d, "forward", lambda self, x: seen.append(self) or forward(self, x))
    # shortcuts pad nothing, for which transformers copies their input
    run_layers(getattr(model, part), audio_like(2, 1 if part == "encoder" else 8, 131, 1))
    assert not seen


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_hooks_of_layers_are_called(register, index):
    model, _ = both(small_config())
    seen = []
    getattr(model.encoder.layers[index], register)(lambda *_: seen.append(index))
    run_layers(model.encoder, audio_like(1, 1, 50, 0))
    assert seen == [index]


def test_an_activation_that_transformers_does_not_make_runs_as_it_is():
    model, _ = both(small_config())
    for module in model.encoder.modules():
        if isinstance(module, torch.nn.ELU):
            module.alpha = 0.5
    x = audio_like(1, 1, 50, 0)
    expected = model.encoder(x)
    torch.testing.assert_close(run_layers(model.encoder, x), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
