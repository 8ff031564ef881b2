"""A stack of layers in plain torch, without modules: what lesson 4 trains and looks into.

layers = [Embedding(C), Linear(W1, b1), BatchNorm(gain, shift), Tanh(), Linear(W2, b2)]
logits = run(layers, training=True, x=contexts)
layers[3].out                                       # (N, H), what tanh gave
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.sequence_model import SequenceModel


class Layer:
    """(N, D_in) -> (N, D_out). `weights` are its parameters; what it gave last is kept as `out`, to be looked at."""

    training = True

    def __init__(self, *weights: Tensor):
        self.weights = [weight.requires_grad_() for weight in weights]

    def __call__(self, x: Tensor) -> Tensor:
        self.out = self.forward(x)
        return self.out

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Embedding(Layer):
    """Contexts (N, n) -> (N, n D), the rows of one table (V, D) side by side; its last row gets no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        (table,) = self.weights
        return F.embedding(x, table, padding_idx=len(table) - 1).flatten(1)


class Linear(Layer):
    """By weights (D_in, D_out) and a bias (D_out,)."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weights
        return x @ weight + bias


class Tanh(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


class BatchNorm(Layer):
    """Each unit brought to mean 0 and variance 1 over the batch, then scaled and shifted by what is learned.

    In training by the batch's own mean and variance, of which running averages are kept; these serve in evaluation,
    where an example must not depend on what it is judged together with.

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
            with torch.no_grad():  # the batch is a sample of all there is: N - 1
                self.mean += 0.1 * (mean - self.mean)
                self.variance += 0.1 * (x.var(dim=0) - self.variance)
        return (x - mean) / (variance + 1e-5).sqrt() * gain + shift


def run(layers: Sequence[Layer], training: bool, x: Tensor) -> Tensor:
    """Through all layers, as in training or as in evaluation."""
    for layer in layers:
        layer.training = training
        x = layer(x)
    return x


@torch.no_grad()
def stack_of(model: SequenceModel) -> list[Layer]:
    """A model of one codebook with the backbone MLP and batch norm, as a stack of the same weights over the contexts of
    `fixed_context.examples`. The model's last two linear layers, with nothing between them, are one here."""
    backbone, head = model.backbone, model.head.linear
    V = model.spec.codebook_size
    layers: list[Layer] = [
        Embedding(torch.cat([model.embed.table.weight[:V], model.bos[None], torch.zeros_like(model.bos[None])]))
    ]
    for linear, norm in zip([backbone.first.linear, *backbone.hidden], backbone.norms, strict=True):
        layers += [
            Linear(linear.weight.T.clone(), linear.bias.clone()),
            BatchNorm(norm.weight.clone(), norm.bias.clone()),
            Tanh(),
        ]
        layers[-2].mean, layers[-2].variance = norm.running_mean.clone(), norm.running_var.clone()
    return [*layers, Linear((head.weight @ backbone.last.weight).T, head.weight @ backbone.last.bias + head.bias)]
