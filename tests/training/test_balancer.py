"""The balancer gives each loss its share of the gradient, whatever its scale."""

import pytest
import torch

from encodec_fast.training.balancer import Balancer

WEIGHTS = {"a": 1.0, "b": 3.0}


def linear(gradients, output):
    """Losses whose gradients at the output are those given."""
    return {name: (output * gradient).sum() for name, gradient in gradients.items()}


def draws(steps, scale=None):
    generator = torch.Generator().manual_seed(0)
    scale = scale or {}
    return [{name: scale.get(name, 1) * torch.randn(2, 1, 5, generator=generator).double() for name in WEIGHTS} for _ in range(steps)]


def balanced(balancer, steps):
    output = torch.zeros(2, 1, 5, dtype=torch.float64, requires_grad=True)
    return [balancer.gradient(linear(gradients, output), output)[0] for gradients in steps]


def test_the_gradient_is_its_formula():
    found = balanced(Balancer(WEIGHTS, norm=2.0, decay=0.9), draws(4))
    sums, counts = dict.fromkeys(WEIGHTS, 0.0), dict.fromkeys(WEIGHTS, 0.0)
    for gradients, own in zip(draws(4), found):
        expected = torch.zeros(2, 1, 5, dtype=torch.float64)
        for name, gradient in gradients.items():
            norms = [sum(value**2 for value in clip.flatten().tolist()) ** 0.5 for clip in gradient]
            sums[name] = 0.9 * sums[name] + sum(norms) / 2
            counts[name] = 0.9 * counts[name] + 1
            expected += 2.0 * WEIGHTS[name] / 4.0 * gradient / (sums[name] / counts[name])
        torch.testing.assert_close(own, expected, rtol=1e-10, atol=1e-12)


def test_the_scale_of_a_loss_is_without_effect():
    torch.testing.assert_close(balanced(Balancer(WEIGHTS), draws(3)), balanced(Balancer(WEIGHTS), draws(3, {"a": 1e4, "b": 1e-4})))


def test_the_model_is_differentiated_once_with_the_sum_and_the_loss_beside():
    weight = torch.tensor([2.0], requires_grad=True)
    calls = []
    output = weight * torch.ones(2, 1, 5)
    output.register_hook(lambda gradient: calls.append(gradient))
    gradients = {name: torch.full((2, 1, 5), value) for name, value in (("a", 1.0), ("b", -2.0))}
    Balancer(WEIGHTS).backward(linear(gradients, output), output, beside=7 * weight.sum())
    # each gradient has norm 1 / sqrt(5) per value after balancing; weights 1/4 and 3/4
    expected = (0.25 - 0.75) / 5**0.5
    # the partial gradients at the output stop there; the model sees the last one
    torch.testing.assert_close(calls[-1], torch.full((2, 1, 5), expected))
    torch.testing.assert_close(weight.grad, torch.tensor([10 * expected + 7]))


def test_shares_are_those_of_the_norms_before():
    output = torch.zeros(1, 1, 4, requires_grad=True)
    _, shares = Balancer(WEIGHTS).gradient(linear({"a": torch.ones(1, 1, 4), "b": 3 * torch.ones(1, 1, 4)}, output), output)
    assert shares == pytest.approx({"a": 0.25, "b": 0.75})


def test_a_gradient_of_zero_stays_zero():
    output = torch.zeros(1, 1, 4, requires_grad=True)
    gradient, shares = Balancer({"a": 1.0}).gradient(linear({"a": torch.zeros(1, 1, 4)}, output), output)
    assert torch.equal(gradient, torch.zeros(1, 1, 4)) and shares == {"a": 0.0}


def test_it_goes_on_from_its_state():
    one, steps = Balancer(WEIGHTS), draws(4)
    whole = balanced(Balancer(WEIGHTS), steps)
    balanced(one, steps[:2])
    other = Balancer(WEIGHTS)
    other.load_state_dict(one.state_dict())
    assert all(torch.equal(*pair) for pair in zip(balanced(other, steps[2:]), whole[2:]))


def test_a_gradient_that_is_not_finite_is_named_and_leaves_the_averages():
    balancer, output = Balancer(WEIGHTS), torch.zeros(2, 1, 5, requires_grad=True)
    before = balancer.state_dict()
    gradients = {"a": torch.ones(2, 1, 5), "b": torch.full((2, 1, 5), float("nan"))}
    with pytest.raises(ValueError, match="loss 'b' is not finite"):
        balancer.gradient(linear(gradients, output), output)
    assert balancer.state_dict() == before


def test_a_loss_of_another_tensor_is_named():
    output, other = torch.zeros(2, 1, 5, requires_grad=True), torch.zeros(1, requires_grad=True)
    for loss in (other.sum(), torch.zeros(())):
        with pytest.raises(ValueError, match="loss 'a' does not depend on the output"):
            Balancer(WEIGHTS).gradient({"a": loss}, output)
    with pytest.raises(ValueError, match="'c' has no weight; there are those of a, b"):
        Balancer(WEIGHTS).gradient({"c": output.sum()}, output)


@pytest.mark.parametrize("arguments", [({},), ({"a": -1.0, "b": 2.0},), ({"a": 0.0},), (WEIGHTS, 0.0), (WEIGHTS, 1.0, 1.0)])
def test_numbers_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=r"must be|allowed are"):
        Balancer(*arguments)


def test_a_state_of_other_losses_is_refused():
    with pytest.raises(ValueError, match=r"losses \['a', 'b'\]; this balancer has \['a'\]"):
        Balancer({"a": 1.0}).load_state_dict(Balancer(WEIGHTS).state_dict())
