"""A training step updates the model and the discriminator by the paper's objective."""

import copy

import pytest
import torch
import transformers

import encodec_fast
from encodec_fast.serving import modules
from encodec_fast.serving.modules import run_network
from encodec_fast.training import losses
from encodec_fast.training import step as step_module
from encodec_fast.training.discriminator import MultiScaleSTFTDiscriminator
from encodec_fast.training.forward import run_layers
from encodec_fast.training.step import StepOptions, TrainingStep
from support.models import audio_like, config_48khz, pair, small_config

OPTIONS = StepOptions.of_rate(24_000, mel_exponents=(5, 6))
TOP = 12.0


def stereo_model():
    """A small model that normalises, of two channels and group norms."""
    config = config_48khz(
        sampling_rate=4800, num_filters=4, upsampling_ratios=[4, 2], hidden_size=8, codebook_size=16, target_bandwidths=[2.4, 9.6]
    )
    return pair(config)[1]


def discriminator():
    torch.manual_seed(0)
    return MultiScaleSTFTDiscriminator(2, n_ffts=(32, 64))


def audio(seed, channels=1):
    return audio_like(4, channels, 400, seed)


def tones(seed):
    generator = torch.Generator().manual_seed(seed)
    frequency, phase = (torch.rand(4, 1, 1, generator=generator) for _ in range(2))
    return 0.5 * torch.sin(6.2832 * ((0.02 + 0.1 * frequency) * torch.arange(400) + phase))


def test_thirty_steps_lower_the_mel_loss(model):
    step = TrainingStep(model, None, StepOptions.of_rate(24_000, mel_exponents=(5, 6), learning_rate=3e-3))
    before = step.evaluate(tones(99), TOP)[1]["mel"]
    for seed in range(30):
        step(tones(seed))
    # 0.213 to 0.185
    assert step.evaluate(tones(99), TOP)[1]["mel"] < 0.92 * before


def test_the_discriminator_learns_to_tell(model):
    options = StepOptions.of_rate(24_000, mel_exponents=(5,), learning_rate=1e-2, discriminator_share=1.0)
    step = TrainingStep(model, discriminator(), options)
    found = [step(tones(0)).losses["discriminator"].item() for _ in range(15)]
    assert 1.9 < found[0] < 2.1 and found[-1] < 0.8 * found[0], found


@pytest.mark.parametrize("kind", ["mono", "stereo-normalised"])
def test_every_parameter_gets_a_gradient(model, kind):
    model = model if kind == "mono" else stereo_model()
    judge = discriminator()
    TrainingStep(model, judge, StepOptions.of_rate(24_000, mel_exponents=(5, 6), discriminator_share=1.0))(
        audio(0, model.config.audio_channels)
    )
    # while all logits lie within the hinges, what a bias of the discriminator gets from real and fake audio cancels
    found = [(name, parameter.grad) for module in (model, judge) for name, parameter in module.named_parameters()]
    assert not [name for name, grad in found if grad is None or not (grad.any() or (name.startswith("discriminators.") and "bias" in name))]


def by_formulas(stock, levels, codes=None):
    """The audio of transformers' modules around one straight-through of so many levels, the commitment loss, and the codes."""
    z = stock.encoder(audio(0).to(stock.dtype))
    codes = stock.quantizer.encode(z.detach(), None)[:levels] if codes is None else codes
    sums = torch.stack([stock.quantizer.decode(codes[: level + 1]) for level in range(levels)])
    return stock.decoder(z + (sums[-1] - z).detach()), sum((z - each).square().mean() for each in sums), codes


def differentiated(stock, judge, levels, codes=None):
    """Differentiates the objective as its formulas are written; returns the commitment loss and the codes."""
    x = audio(0).to(stock.dtype)
    mel = losses.MelLoss(stock.config.sampling_rate, (5, 6), dtype=stock.dtype)
    y, commitment, codes = by_formulas(stock, levels, codes)
    (logits, fake), (_, real) = judge(y), judge(x)
    found = [losses.time_loss(x, y), mel(x, y), losses.generator_loss(logits), losses.feature_loss(real, fake)]
    whole = torch.zeros_like(y)
    for loss, weight in zip(found, (0.1, 1.0, 3.0, 3.0)):
        (gradient,) = torch.autograd.grad(loss, y, retain_graph=True)
        whole += weight / 7.1 * gradient / gradient.flatten(1).norm(dim=1).mean()
    torch.autograd.backward([y, 0.5 * commitment], [whole, torch.ones_like(commitment)])
    return commitment, codes


def test_the_discriminators_gradient_is_that_of_its_formula(model):
    stock, judge = transformers.EncodecModel(model.config), discriminator()
    stock.load_state_dict(model.state_dict())
    step = TrainingStep(model, judge, StepOptions.of_rate(24_000, mel_exponents=(5,), discriminator_share=1.0))
    report = step(audio(0))
    before = discriminator()
    y, _, _ = by_formulas(stock, len(report.perplexity))
    losses.discriminator_loss(before(audio(0))[0], before(y.detach())[0]).backward()
    for (name, own), expected in zip(judge.named_parameters(), before.parameters()):
        torch.testing.assert_close(own.grad, expected.grad, rtol=1e-3, atol=1e-4 * expected.grad.abs().max().item(), msg=name)


def test_each_gradient_is_that_of_the_formulas_through_transformers_modules(model):
    stock, exact = (transformers.EncodecModel(model.config) for _ in range(2))
    for each in (stock, exact):
        each.load_state_dict(model.state_dict())
    step = TrainingStep(model, discriminator(), StepOptions.of_rate(24_000, mel_exponents=(5, 6), commitment=0.5, discriminator_share=0.0))
    report = step(audio(0))
    commitment, codes = differentiated(stock, discriminator(), len(report.perplexity))
    differentiated(exact.double(), discriminator().double(), len(report.perplexity), codes)
    assert report.losses["commitment"].item() == pytest.approx(commitment.item(), rel=1e-5)
    own, theirs = (torch.cat([parameter.grad.flatten() for parameter in each.parameters()]) for each in (model, stock))
    assert (own - theirs).norm() < 2e-6 * theirs.norm()
    for (name, own), theirs, true in zip(model.named_parameters(), stock.parameters(), exact.parameters()):
        error = (theirs.grad - true.grad).norm()
        # where a gradient nearly cancels, transformers' own float32 errs by 1e-4
        assert (own.grad - theirs.grad).norm() <= max(1e-5 * true.grad.norm(), error), name
        assert (own.grad - true.grad).norm() <= 1.5 * error + 1e-6 * true.grad.norm(), name


def test_bandwidths_and_updates_are_drawn_as_often_as_the_options_say(model):
    step = TrainingStep(model, discriminator(), StepOptions.of_rate(24_000, mel_exponents=(5,), discriminator_share=0.25))
    reports = [step(audio(0)[:1, :, :64]) for _ in range(40)]
    assert {report.bandwidth for report in reports} == set(model.config.target_bandwidths)
    assert all(len(report.perplexity) == int(report.bandwidth * 1000 // 1200) for report in reports)
    assert 4 <= sum("discriminator" in report.losses for report in reports) <= 16


def test_the_papers_options():
    low, high = StepOptions.of_rate(24_000), StepOptions.of_rate(48_000)
    assert low.weights == {"time": 0.1, "mel": 1.0, "generator": 3.0, "features": 3.0} and low.discriminator_share == 2 / 3
    assert high.weights == {"time": 0.1, "mel": 1.0, "generator": 4.0, "features": 4.0} and high.discriminator_share == 1 / 2
    assert (low.learning_rate, low.betas, low.mel_exponents) == (3e-4, (0.5, 0.9), (5, 6, 7, 8, 9, 10, 11))


def test_losses_are_those_of_the_audio_that_the_model_gives(model):
    step = TrainingStep(model, None, OPTIONS)
    output, found = step.evaluate(audio(0), TOP)
    decoded = model(audio(0), bandwidth=TOP).audio_values
    torch.testing.assert_close(output, decoded, rtol=1e-4, atol=1e-4 * decoded.abs().max().item())
    assert torch.equal(found["time"], losses.time_loss(audio(0), output)) and found.keys() == {"time", "mel", "commitment"}


def test_the_volume_is_put_back_where_the_model_normalises():
    model = stereo_model()
    quiet, loud = (TrainingStep(model, None, OPTIONS).evaluate(gain * audio(0, 2), 9.6)[0] for gain in (0.1, 1.0))
    torch.testing.assert_close(10 * quiet, loud, rtol=1e-3, atol=1e-4)


def test_evaluation_changes_nothing(model):
    step = TrainingStep(model, discriminator(), OPTIONS)
    step(audio(0))
    before = copy.deepcopy((model.state_dict(), step.state_dict()))
    step.evaluate(audio(1), TOP)
    one, other = (torch.utils._pytree.tree_leaves(each) for each in (before, (model.state_dict(), step.state_dict())))
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, other, strict=True))


def test_a_run_that_was_cut_goes_on_to_the_same_bits(fitted, tmp_path):
    def begun():
        return TrainingStep(encodec_fast.EncodecModel(small_config()), discriminator(), OPTIONS)

    step = begun()
    step.model.load_state_dict(fitted.state_dict())
    step.quantizer = TrainingStep(step.model, None, OPTIONS).quantizer
    for seed in range(2):
        step(audio(seed))
    torch.save({"model": step.model.state_dict(), "step": step.state_dict()}, tmp_path / "checkpoint.pt")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    model = encodec_fast.EncodecModel(small_config())
    model.load_state_dict(saved["model"])
    resumed = TrainingStep(model, MultiScaleSTFTDiscriminator(2, n_ffts=(32, 64)), OPTIONS)
    resumed.load_state_dict(saved["step"])
    for seed in range(2, 5):
        one, two = step(audio(seed)), resumed(audio(seed))
        assert one.bandwidth == two.bandwidth and one.shares == two.shares
    ended, again = step.model.state_dict(), resumed.model.state_dict()
    assert not [name for name in ended if not torch.equal(ended[name], again[name])]


def test_audio_that_is_not_finite_is_refused_before_anything_changes(model):
    step = TrainingStep(model, None, OPTIONS)
    broken = audio(0)
    broken[1, 0, 7] = float("nan")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="NaN or infinity"):
        step(broken)
    assert not [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]


def test_transformers_reads_a_model_in_training(model, tmp_path):
    TrainingStep(model, None, OPTIONS)(audio(0))
    model.save_pretrained(tmp_path)
    stock = transformers.EncodecModel.from_pretrained(tmp_path)
    assert torch.equal(
        stock.encode(audio(1), bandwidth=TOP).audio_codes[:, :, :4], model.encode(audio(1), bandwidth=TOP).audio_codes[:, :, :4]
    )


def frozen_step(model, *parts, judge=None):
    return TrainingStep(model, judge, StepOptions.of_rate(24_000, mel_exponents=(5, 6), learning_rate=1e-2, frozen=parts))


@pytest.mark.parametrize("parts", [("encoder", "quantizer"), ("encoder",), ("quantizer",), ("decoder",)], ids="-".join)
def test_what_is_frozen_does_not_move_and_the_rest_does(model, parts):
    before = copy.deepcopy(model.state_dict())
    step = frozen_step(model, *parts, judge=discriminator())
    for seed in range(2):
        step(audio(seed))
    for part in ("encoder", "quantizer", "decoder"):
        moved = [name for name, tensor in model.state_dict().items() if name.startswith(part) and not torch.equal(tensor, before[name])]
        assert bool(moved) == (part not in parts), part


@pytest.mark.parametrize("kind", ["mono", "stereo-normalised"])
def test_codes_of_a_frozen_encoder_are_those_of_encode(model, kind):
    model = model if kind == "mono" else stereo_model()
    step, seen = frozen_step(model, "encoder", "quantizer"), []
    look_up = step.quantizer.look_up
    step.quantizer.look_up = lambda *arguments: seen.append(look_up(*arguments)) or seen[-1]
    # of a chunk's length, where there are chunks
    clips = audio(0, model.config.audio_channels) if kind == "mono" else audio_like(2, 2, 4800, 0)
    step(clips)
    expected = model.encode(clips, bandwidth=model.config.target_bandwidths[-1]).audio_codes[0]
    codes = seen[0].codes.unflatten(1, (len(clips), -1)).transpose(0, 1)
    assert torch.equal(codes, expected[:, : codes.shape[1]]) and len(seen[0].codes.unique()) > 3


def test_a_frozen_encoder_runs_on_the_backend_without_gradients(model, monkeypatch):
    calls = []
    monkeypatch.setattr(step_module, "run_layers", lambda network, x: calls.append(network) or run_layers(network, x))
    served = []
    monkeypatch.setattr(modules, "run_network", lambda module, *rest: served.append(module) or run_network(module, *rest))
    frozen_step(model, "encoder")(audio(0))
    assert calls == [model.decoder] and served == [model.encoder]
    assert all(parameter.grad is None for parameter in model.encoder.parameters())


def test_frozen_parts_that_leave_nothing_to_learn_are_refused(model):
    with pytest.raises(ValueError, match=r"frozen is \['encoder', 'decoder'\]; .*the encoder or the decoder must learn"):
        frozen_step(model, "encoder", "decoder")
    with pytest.raises(ValueError, match="frozen has 'quantizer', whose codebooks are zeros"):
        frozen_step(encodec_fast.EncodecModel(small_config()), "quantizer")


def test_unknown_losses_and_states_of_other_steps_are_refused(model):
    with pytest.raises(ValueError, match=r"weights are of \['mels'\]; allowed are features, generator, mel, time"):
        TrainingStep(model, None, StepOptions(weights={"mels": 1.0}))
    with_judge = TrainingStep(model, discriminator(), OPTIONS)
    with pytest.raises(ValueError, match="state has a discriminator and this step has no"):
        TrainingStep(model, None, OPTIONS).load_state_dict(with_judge.state_dict())
