"""Balance losses by their share of the gradient, independent of their scales."""

from collections.abc import Mapping

import torch
from torch import Tensor


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

    def gradient(self, losses: Mapping[str, Tensor], output: Tensor) -> Tensor:
        """Return the balanced gradient, of `output`'s shape and about norm 1, for output.backward.

        Args:
            losses: scalars by name; each name needs a weight.
            output: the tensor from which they were computed.
        """
        total = torch.zeros_like(output)
        whole = sum(self.weights[name] for name in losses)
        for name, loss in losses.items():
            (grad,) = torch.autograd.grad(loss, output, retain_graph=True)
            norm = grad.norm().double()
            before = self.norms.get(name, norm)
            self.norms[name] = self.decay * before + (1 - self.decay) * norm
            total += self.weights[name] / whole / self.norms[name].clamp_min(1e-12) * grad
        return total
