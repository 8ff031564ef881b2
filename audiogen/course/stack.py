"""A stack of layers in plain torch, without modules, which lesson 4 trains and inspects.

layers = [Embedding(C), Linear(W1, b1), BatchNorm(gain, shift), Tanh(), Linear(W2, b2)]
logits = run(layers, training=True, x=contexts)
layers[3].out                                       # (N, H), the output of tanh
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.sequence_model import SequenceModel


class Layer:
    """A layer (N, D_in) -> (N, D_out).

    Attributes:
        weights: its parameters.
        out: its last output, for inspection.
        training: whether it is in training or in evaluation mode.
    """

    training = True

    def __init__(self, *weights: Tensor):
        self.weights = [weight.requires_grad_() for weight in weights]

    def __call__(self, x: Tensor) -> Tensor:
        self.out = self.forward(x)
        return self.out

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output."""
        raise NotImplementedError


class Embedding(Layer):
    """Look up contexts (N, n) in a table (V, D) and concatenate: (N, n D). The last row gets no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        (table,) = self.weights
        return F.embedding(x, table, padding_idx=len(table) - 1).flatten(1)


class Linear(Layer):
    """A linear layer with weights (D_in, D_out) and bias (D_out,)."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weights
        return x @ weight + bias


class Tanh(Layer):
    """tanh of each entry."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


class BatchNorm(Layer):
    """Normalise each unit to mean 0 and variance 1 over the batch, then scale and shift by learned parameters.

    Training uses the mean and variance of the batch, and keeps running averages of them. Evaluation uses these, so that
    an example does not depend on its batch.

    Source: Ioffe and Szegedy 2015, Batch Normalization, algorithms 1 and 2.
    """

    def __init__(self, gain: Tensor, shift: Tensor):
        super().__init__(gain, shift)
        self.mean, self.variance = torch.zeros_like(shift), torch.ones_like(gain)

    def forward(self, x: Tensor) -> Tensor:
        gain, shift = self.weights
        mean, variance = self.mean, self.variance
        if self.training:
            mean, variance = x.mean(dim=0), x.var(dim=0, correction=0)
            with torch.no_grad():  # unbiased estimate of the population variance: N - 1
                self.mean += 0.1 * (mean - self.mean)
                self.variance += 0.1 * (x.var(dim=0) - self.variance)
        return (x - mean) / (variance + 1e-5).sqrt() * gain + shift


def run(layers: Sequence[Layer], training: bool, x: Tensor) -> Tensor:
    """Apply all layers in training or evaluation mode."""
    for layer in layers:
        layer.training = training
        x = layer(x)
    return x


@torch.no_grad()
def stack_of(model: SequenceModel) -> list[Layer]:
    """Convert a model with one codebook and an MLP with batch norm to a stack with the same weights.

    The stack takes contexts of `fixed_context.examples`. The model's last two linear layers, which have no nonlinearity
    between them, become one.
    """
    backbone: Any = model.backbone
    embed: Any = model.embed
    head: Any = model.head.linear
    V = embed.hole
    layers: list[Any] = [
        Embedding(torch.cat([embed.table.weight[:V], model.bos[None], torch.zeros_like(model.bos[None])]))
    ]
    for linear, norm in zip([backbone.first.linear, *backbone.hidden], backbone.norms, strict=True):
        layers += [
            Linear(linear.weight.T.clone(), linear.bias.clone()),
            BatchNorm(norm.weight.clone(), norm.bias.clone()),
            Tanh(),
        ]
        layers[-2].mean, layers[-2].variance = norm.running_mean.clone(), norm.running_var.clone()
    return [*layers, Linear((head.weight @ backbone.last.weight).T, head.weight @ backbone.last.bias + head.bias)]
