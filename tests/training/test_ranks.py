"""Two processes with a batch each: codebooks, balancer and weights are those of both, and equal to the bit."""

import copy
import multiprocessing
import traceback

import pytest
import torch
import torch.distributed as dist

import encodec_fast
from encodec_fast.training.balancer import Balancer
from encodec_fast.training.discriminator import MultiScaleSTFTDiscriminator
from encodec_fast.training.quantization import QuantizerTrainer
from encodec_fast.training.step import StepOptions, TrainingStep
from support.models import audio_like, small_config

RANKS = 2


def batch(rank, step, frames=40):
    return torch.randn(2, 8, frames, generator=torch.Generator().manual_seed(100 * rank + step))


def fresh_codebooks(rank, model):
    """12 steps from codebooks of zeros, of changing levels, with a batch of another length on each rank."""
    quantizer = encodec_fast.EncodecModel(small_config()).quantizer
    trainer, replaced = QuantizerTrainer(quantizer, dead_share=0.5), 0
    for step in range(12):
        replaced += trainer(batch(rank, step, 40 - 8 * rank), 1 + step % 4).replaced.sum().item()
    return quantizer.state_dict(), replaced


def fitted_codebooks(rank, model):
    trainer = QuantizerTrainer(model.quantizer, dead_share=0.0)
    return [trainer(batch(rank, step), 3).perplexity for step in range(3)], model.quantizer.state_dict()


def first_sizes(rank, model):
    quantizer = encodec_fast.EncodecModel(small_config()).quantizer
    QuantizerTrainer(quantizer)(batch(0, 0), 1)
    return quantizer.layers[0].codebook.cluster_size


def infinite_on_one(rank, model):
    before = copy.deepcopy(model.quantizer.state_dict())
    try:
        QuantizerTrainer(model.quantizer)(batch(rank, 0) / (1 - rank), 3)
    except ValueError as error:
        return str(error), all(torch.equal(before[name], tensor) for name, tensor in model.quantizer.state_dict().items())


def balanced(rank, model):
    output = torch.zeros(1, 1, 4, requires_grad=True)
    return Balancer({"a": 1.0}).gradient({"a": (output * (1 + 2 * rank)).sum()}, output)[0]


def trained(rank, model):
    torch.manual_seed(0)
    discriminator = MultiScaleSTFTDiscriminator(2, n_ffts=(32, 64))
    options = StepOptions.of_rate(24_000, mel_exponents=(5, 6), discriminator_share=1.0)
    step = TrainingStep(model, discriminator, options)
    for seed in range(3):
        step(audio_like(2, 1, 240, 10 * rank + seed))
    return {**model.state_dict(), **discriminator.state_dict()}


def gradients(rank, model):
    """Of one step, in which this rank has two of four clips."""
    TrainingStep(model, None, StepOptions.of_rate(24_000, mel_exponents=(5, 6)))(audio_like(4, 1, 240, 0)[2 * rank : 2 * rank + 2])
    return {name: parameter.grad for name, parameter in model.named_parameters()}


WORK = (fresh_codebooks, fitted_codebooks, first_sizes, infinite_on_one, balanced, trained, gradients)


def work(rank, model, folder):
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=RANKS)
        found = {each.__name__: each(rank, copy.deepcopy(model)) for each in WORK}
        dist.destroy_process_group()
    except Exception:
        found = traceback.format_exc()
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def ranks(fitted, tmp_path_factory):
    """What each of WORK returned on each rank."""
    if not dist.is_available() or "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs torch.distributed and processes that fork")
    folder, context = tmp_path_factory.mktemp("ranks"), multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(rank, fitted, folder), daemon=True) for rank in range(RANKS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    found = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]
    assert all(isinstance(each, dict) for each in found), found
    return lambda name: [each[name] for each in found]


def assert_same(one, other):
    assert one.keys() == other.keys() and not [name for name in one if not torch.equal(one[name], other[name])]


def test_codebooks_are_equal_on_all_ranks(ranks):
    (one, replaced), (other, _) = ranks("fresh_codebooks")
    assert replaced > 0 and one["layers.3.codebook.embed"].any()
    assert_same(one, other)


def test_codebooks_move_as_with_both_batches_in_one_process(ranks, fitted):
    model = copy.deepcopy(fitted)
    trainer = QuantizerTrainer(model.quantizer, dead_share=0.0)
    for step, perplexity in enumerate(ranks("fitted_codebooks")[0][0]):
        torch.testing.assert_close(trainer(torch.cat([batch(rank, step) for rank in range(RANKS)]), 3).perplexity, perplexity)
    found = ranks("fitted_codebooks")[0][1]
    for name, tensor in model.quantizer.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)


def test_the_first_cluster_sizes_are_those_of_all_ranks(ranks):
    assert ranks("first_sizes")[0].sum().item() == pytest.approx(RANKS * 80)


def test_all_ranks_refuse_what_is_not_finite_on_one(ranks):
    for message, untouched in ranks("infinite_on_one"):
        assert "NaN or infinity" in message and untouched


def test_norms_are_averaged_over_ranks(ranks):
    # gradients of 1 and 3 in four places: norms of 2 and 6
    for gradient, value in zip(ranks("balanced"), (1 / 4, 3 / 4)):
        torch.testing.assert_close(gradient, torch.full((1, 1, 4), value))


def test_gradients_are_those_of_the_whole_batch_in_one_process(ranks, fitted):
    model = copy.deepcopy(fitted)
    TrainingStep(model, None, StepOptions.of_rate(24_000, mel_exponents=(5, 6)))(audio_like(4, 1, 240, 0))
    for name, parameter in model.named_parameters():
        for found in ranks("gradients"):
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-5 * parameter.grad.abs().max().item(), msg=name)


def test_models_and_discriminators_stay_equal_on_all_ranks(ranks, fitted):
    one, other = ranks("trained")
    name = "encoder.layers.0.conv.bias"
    assert not torch.equal(one[name], fitted.state_dict()[name])
    assert_same(one, other)
