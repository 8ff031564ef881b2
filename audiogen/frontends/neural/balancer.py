"""Weighs losses by the share of the gradient that each shall have, whatever their own scales are."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Balancer:
    """The gradient of the decoded wav as a sum of parts of known lengths.

        sum over losses of  weight / (sum of weights) * gradient / (moving average of the gradient's norm)

    Source: EnCodec (Défossez et al. 2022), section 3.4, "Loss balancer".

    Attributes:
        norms: by loss: the moving average of its gradient's norm. All the state that there is.
    """

    def __init__(self, weights: Mapping[str, float], decay: float = 0.99):
        self.weights, self.decay = dict(weights), decay
        self.norms: dict[str, float] = {}

    def gradient(self, losses: Mapping[str, Tensor], output: Tensor) -> Tensor:
        """The balanced gradient, of `output`'s shape and about norm 1, to be given to output.backward.

        Args:
            losses: scalars, a weight for each of which is known.
            output: what they were computed from.
        """
        total = torch.zeros_like(output)
        whole = sum(self.weights[name] for name in losses)
        for name, loss in losses.items():
            (grad,) = torch.autograd.grad(loss, output, retain_graph=True)
            norm = float(grad.norm())
            before = self.norms.get(name, norm)
            self.norms[name] = self.decay * before + (1 - self.decay) * norm
            total += self.weights[name] / whole / max(self.norms[name], 1e-12) * grad
        return total
