"""A step in lower precision multiplies in it, and keeps weights, codebooks and losses in float32."""

import copy

import pytest
import torch

from encodec_fast.training import step as step_module
from encodec_fast.training.discriminator import MultiScaleSTFTDiscriminator
from encodec_fast.training.forward import run_layers
from encodec_fast.training.step import StepOptions, TrainingStep
from support.models import audio_like


def made(model, windows=(32, 64), **changes):
    torch.manual_seed(0)
    judge = MultiScaleSTFTDiscriminator(2, n_ffts=windows)
    options = StepOptions.of_rate(24_000, mel_exponents=(5, 6), discriminator_share=1.0, **changes)
    return TrainingStep(copy.deepcopy(model), judge, options)


def losses(step, count=2):
    return [{name: loss.item() for name, loss in step(audio_like(4, 1, 400, seed)).losses.items()} for seed in range(count)]


def test_bf16_is_of_the_networks_alone(model, monkeypatch):
    step, seen = made(model, precision="bf16"), set()
    for layer in (step.discriminator.discriminators[0].convs[1], step.discriminator.discriminators[1].conv_post):
        layer.register_forward_hook(lambda _, __, out: seen.add(out.dtype))
    searched = []
    look_up = step.quantizer.look_up
    step.quantizer.look_up = lambda embeddings, *rest: searched.append(embeddings) or look_up(embeddings, *rest)
    monkeypatch.setattr(step_module, "run_layers", lambda network, x: seen.add(run_layers(network, x).dtype) or run_layers(network, x))
    report = step(audio_like(4, 1, 400, 0))
    assert seen == {torch.bfloat16} and searched[0].dtype == torch.float32
    tensors = [*report.losses.values(), *step.model.state_dict().values(), *step.discriminator.state_dict().values()]
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float32}


def test_losses_in_bf16_are_near_those_in_float32(model):
    for low, exact in zip(losses(made(model, precision="bf16")), losses(made(model)), strict=True):
        assert low != exact
        # 2^-8 in each product; the commitment is the square of a difference of near numbers
        assert low == {name: pytest.approx(loss, rel=0.1 if name == "commitment" else 0.01) for name, loss in exact.items()}


@pytest.mark.parametrize("precision, allowed", [("float32", ("highest", False)), ("tf32", ("high", True)), ("bf16", ("highest", False))])
def test_tf32_is_allowed_in_the_step_where_asked_for_and_not_behind_it(model, monkeypatch, precision, allowed):
    def settings():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    seen = set()
    monkeypatch.setattr(step_module, "run_layers", lambda network, x: seen.add(settings()) or run_layers(network, x))
    before = settings()
    made(model, precision=precision)(audio_like(4, 1, 400, 0))
    assert seen == {allowed} and settings() == before


def test_a_compiled_discriminator_has_the_losses_and_the_state_of_one_that_is_not(model, monkeypatch):
    compiled, compile_with = [], torch.compile
    # what is traced is run by torch: inductor would take minutes
    monkeypatch.setattr(
        torch, "compile", lambda function, **how: compiled.append(function) or compile_with(function, backend="eager", **how)
    )
    plain, other = made(model, windows=(32,)), made(model, windows=(32,), compile=True)
    assert len(compiled) == 1 and plain.discriminator.state_dict().keys() == other.discriminator.state_dict().keys()
    for one, two in zip(losses(other), losses(plain), strict=True):
        assert one == pytest.approx(two, rel=1e-5)


def test_an_unknown_precision_is_refused(model):
    with pytest.raises(ValueError, match="precision is 'fp8'; allowed are float32, tf32, bf16"):
        made(model, precision="fp8")
