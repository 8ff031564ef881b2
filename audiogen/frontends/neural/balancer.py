"""Balance losses by their share of the gradient, independent of their scales."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...distributed import World


class Balancer:
    """Combines gradients of several losses, each normalised by the moving average of its norm.

        sum over losses of  weight / (sum of weights) * gradient / (moving average of the gradient's norm)

    Source: EnCodec (Défossez et al. 2022), section 3.4, "Loss balancer".

    Attributes:
        norms: moving average of each loss's gradient norm, by name, float64 on the device; the only state.
    """

    def __init__(self, weights: Mapping[str, float], decay: float = 0.99):
        self.weights, self.decay = dict(weights), decay
        self.norms: dict[str, Tensor] = {}

    def gradients(self, batches: Sequence[tuple[Mapping[str, Tensor], Tensor]], world: World = World()) -> list[Tensor]:
        """Return the balanced gradient of each batch of a step, about norm 1, for output.backward.

        Args:
            batches: losses, scalars by name, each of which needs a weight; and the output from which they were
                computed.
            world: the ranks, each with as many batches; norms are averaged over all.
        """
        names = list(batches[0][0])
        found = [
            [torch.autograd.grad(loss, output, retain_graph=True)[0] for loss in losses.values()]
            for losses, output in batches
        ]
        norms = torch.stack([torch.stack([grad.norm().double() for grad in row]) for row in found])
        for name, norm in zip(names, world.gather(norms).mean(0), strict=True):
            self.norms[name] = self.decay * self.norms.get(name, norm) + (1 - self.decay) * norm
        whole = sum(self.weights[name] for name in names)
        totals = []
        for (_, output), row in zip(batches, found, strict=True):
            total = torch.zeros_like(output)
            for name, grad in zip(names, row, strict=True):
                total += self.weights[name] / whole / self.norms[name].clamp_min(1e-12) * grad
            totals.append(total)
        return totals
