"""Weights of losses that mean the same whatever the losses' scales: the balancer of EnCodec, section 3.4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from encodec_fast.training.distributed import mean_over_parts, world_size

# Keeps a loss whose gradient was zero so far from dividing by zero; also encodec's.
_EPSILON = 1e-12


class Balancer:
    """Sums the gradients of losses at the model's output, each brought to its share of a fixed norm.

        g_i = d l_i / d output
        g~_i = norm * (weight_i / sum of the weights) * g_i / <|g_i|>

    |g_i| is the mean of the clips' norms, over all ranks and parts, l_i the loss of the whole batch. <|g_i|> is its moving average over
    batches, with the start corrected.
    The model itself is differentiated once, with the sum of all g~_i.

    weights: of each loss by name, not negative.  norm: R of the paper.  decay: of the moving average, 0 <= decay < 1.
    Raises ValueError for other numbers.
    """

    def __init__(self, weights: Mapping[str, float], norm: float = 1.0, decay: float = 0.999) -> None:
        if not weights or min(weights.values()) < 0 or not sum(weights.values()) > 0:
            raise ValueError(f"weights are {dict(weights)}; each must be at least 0, and one above 0.")
        if not 0 <= decay < 1 or not norm > 0:
            raise ValueError(f"decay is {decay} and norm {norm}; allowed are 0 <= decay < 1 and norm > 0.")
        self.weights, self.norm, self.decay = dict(weights), norm, decay
        self._sums = dict.fromkeys(self.weights, 0.0)
        self._counts = dict.fromkeys(self.weights, 0.0)

    def gradient(self, losses: Mapping[str, Tensor], output: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Returns the sum of the balanced gradients, shaped as the output, and each loss's share of the norms before it.

        losses: scalars by name, those of `weights` or some of them; the others' weights do not count in this step.
        output: [B, C, T], the audio of the model that they were computed from.

        Raises ValueError for a loss without a weight and for one that does not depend on the output. Also for a gradient that is not
        finite: on all ranks alike, and before the averages are touched.
        """
        (balanced,), shares = self.combine([self.partials(losses, output)])
        return balanced, shares

    def partials(self, losses: Mapping[str, Tensor], output: Tensor) -> dict[str, Tensor]:
        """Returns g_i of each loss, for `combine`. Raises ValueError for a loss without a weight or independent of the output."""
        return {name: self._partial(name, loss, output) for name, loss in losses.items()}

    def combine(self, parts: Sequence[Mapping[str, Tensor]]) -> tuple[list[Tensor], dict[str, float]]:
        """Returns the balanced gradient of each part of a batch, and the shares of the whole one as `gradient` does.

        parts: `partials` of equally many clips, of losses that are means over the part. All ranks have equally many parts.
        Raises ValueError for a gradient that is not finite: on all ranks alike, and before the averages are touched.
        """
        norms = [torch.stack([grad.flatten(1).norm(dim=1).mean() for grad in part.values()]) for part in parts]
        # one wait for the device in a step
        found = dict(zip(parts[0], mean_over_parts(norms).tolist()))
        for name, value in found.items():
            if not value < float("inf"):
                raise ValueError(f"The gradient of the loss {name!r} is not finite. Look for NaN in the audio, or lower the learning rate.")
        # the mean over the batch has a gradient that is smaller by the number of parts
        count = len(parts) * world_size()
        total_weight = max(sum(self.weights[name] for name in found), _EPSILON)
        averages = {name: self._average(name, value / count) + _EPSILON for name, value in found.items()}
        factors = {name: self.norm / count * self.weights[name] / total_weight / average for name, average in averages.items()}
        total = sum(found.values())
        return [_weighted(part, factors) for part in parts], {name: value / total if total else 0.0 for name, value in found.items()}

    def backward(self, losses: Mapping[str, Tensor], output: Tensor, beside: Tensor | None = None) -> dict[str, float]:
        """Adds the balanced gradient to the model's parameters, in one pass through the model; returns the shares of `gradient`.

        beside: a loss that is not balanced, such as the commitment loss, of the same pass.
        Raises ValueError as `gradient` does.
        """
        balanced, shares = self.gradient(losses, output)
        if beside is None:
            output.backward(balanced)
        else:
            torch.autograd.backward([output, beside], [balanced, torch.ones_like(beside)])
        return shares

    def state_dict(self) -> dict[str, Any]:
        """Returns the moving averages."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from the moving averages of `state_dict`.  Raises ValueError where they are of other losses."""
        if set(state["sums"]) != set(self.weights):
            raise ValueError(f"The state is of the losses {sorted(state['sums'])}; this balancer has {sorted(self.weights)}.")
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])

    def _partial(self, name: str, loss: Tensor, output: Tensor) -> Tensor:
        if name not in self.weights:
            raise ValueError(f"The loss {name!r} has no weight; there are those of {', '.join(self.weights)}.")
        # losses share a graph, that of the discriminator
        grad = torch.autograd.grad(loss, output, retain_graph=True, allow_unused=True)[0] if loss.requires_grad else None
        if grad is None:
            raise ValueError(f"The loss {name!r} does not depend on the output. Compute it from the very tensor that is given here.")
        return grad

    def _average(self, name: str, value: float) -> float:
        self._sums[name] = self.decay * self._sums[name] + value
        self._counts[name] = self.decay * self._counts[name] + 1
        return self._sums[name] / self._counts[name]


def _weighted(grads: Mapping[str, Tensor], factors: Mapping[str, float]) -> Tensor:
    whole = torch.zeros_like(next(iter(grads.values())))
    for name, grad in grads.items():
        whole.add_(grad, alpha=factors[name])
    return whole
