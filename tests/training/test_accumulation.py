"""A batch in parts: the update of the whole batch with the memory of one part."""

import copy
import weakref

import pytest
import torch

import encodec_fast
from encodec_fast.training.discriminator import MultiScaleSTFTDiscriminator
from encodec_fast.training.distributed import PairwiseSum
from encodec_fast.training.step import StepOptions, TrainingStep
from support.models import audio_like, small_config


def step_of(model, parts, **changes):
    torch.manual_seed(0)
    judge = MultiScaleSTFTDiscriminator(2, n_ffts=(32, 64)).to(model.dtype)
    options = StepOptions.of_rate(24_000, mel_exponents=(5, 6), discriminator_share=1.0, gradient_accumulation_steps=parts, **changes)
    return TrainingStep(copy.deepcopy(model), judge, options)


def audio(seed, clips=4):
    return audio_like(clips, 1, 400, seed)


@pytest.mark.parametrize("kind", ["fitted", "from-scratch", "frozen-encoder", "frozen-quantizer"])
def test_parts_make_the_update_of_the_whole_batch(fitted, kind):
    model = (encodec_fast.EncodecModel(small_config()) if kind == "from-scratch" else copy.deepcopy(fitted)).double()
    frozen = (kind.partition("-")[2],) if kind.startswith("frozen") else ()
    whole, cut = step_of(model, 1, frozen=frozen), step_of(model, 3, frozen=frozen)
    for seed in range(2):
        one, other = (step(audio(seed, 6).double()) for step in (whole, cut))
        assert one.losses.keys() == other.losses.keys() >= {"time", "mel", "generator", "features", "commitment", "discriminator"}
        for name, loss in one.losses.items():
            # Adam's first step is as long for a gradient that is rounding as for any
            torch.testing.assert_close(other.losses[name], loss, rtol=1e-12 if seed == 0 else 1e-5, atol=0, msg=name)
        assert one.shares == pytest.approx(other.shares, rel=1e-5)
        torch.testing.assert_close(other.perplexity, one.perplexity)
        assert torch.equal(other.replaced, one.replaced)
        for name, own, expected in named_pairs(cut, whole) if seed == 0 else ():
            torch.testing.assert_close(own.grad, expected.grad, rtol=1e-6, atol=1e-9 * expected.grad.abs().max().item(), msg=name)
    # so that a run may go on with other parts
    for name, averages in whole.balancer.state_dict().items():
        assert cut.balancer.state_dict()[name] == pytest.approx(averages, rel=1e-5)
    for name, own in cut.model.quantizer.state_dict().items():
        torch.testing.assert_close(own, whole.model.quantizer.state_dict()[name], rtol=1e-5, atol=1e-6)


def named_pairs(one, other):
    """The parameters that learn, of two steps' models and discriminators."""
    for module in ("model", "discriminator"):
        pairs = zip(getattr(one, module).named_parameters(), getattr(other, module).parameters())
        yield from ((name, own, theirs) for (name, own), theirs in pairs if own.requires_grad)


class _Held:
    """Stands for a tensor that a graph holds."""

    def __init__(self, tensor):
        # an output of its own graph would keep that alive
        self.tensor = tensor.detach()


def peak_of_graphs(step):
    """The most values that graphs held at once during an update."""
    now = peak = 0

    def pack(tensor):
        nonlocal now, peak
        held, size = _Held(tensor), tensor.numel()
        now += size
        peak = max(peak, now)
        weakref.finalize(held, free, size)
        return held

    def free(size):
        nonlocal now
        now -= size

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        step(audio_like(8, 1, 6000, 0))
    return peak


def test_graphs_of_one_part_alone_are_in_memory(fitted):
    whole, cut = (peak_of_graphs(step_of(fitted, parts)) for parts in (1, 8))
    # weights are saved with each part; both steps hold those
    assert cut < 0.3 * whole, (cut, whole)


@pytest.mark.parametrize("count", range(1, 9))
def test_sums_are_those_of_neighbours_level_by_level(count):
    parts = [torch.randn(50, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]
    expected = list(parts)
    while len(expected) > 1:
        expected = [sum(expected[start + 1 : start + 2], expected[start]) for start in range(0, len(expected), 2)]
    whole = PairwiseSum()
    for part in parts:
        whole.add([part.clone()])
    assert torch.equal(whole.total()[0], expected[0])


def test_parts_that_a_batch_does_not_have_are_refused(fitted):
    with pytest.raises(ValueError, match="audio has 3 clips; a multiple of gradient_accumulation_steps, 2, is needed"):
        step_of(fitted, 2)(audio(0, 3))
    with pytest.raises(ValueError, match="gradient_accumulation_steps is 0; 1 or more is allowed"):
        step_of(fitted, 0)
