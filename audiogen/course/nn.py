"""Neurons, layers and multi-layer perceptrons made of single `Value`s, named as in micrograd (Karpathy 2020)."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from .engine import Number, Value, as_value, weighted_sum


class Module:
    """Base class of parts with parameters."""

    def parameters(self) -> list[Value]:
        """Return all parameters."""
        return []

    def zero_grad(self) -> None:
        """Reset the gradients of all parameters to 0."""
        for parameter in self.parameters():
            parameter.grad = 0.0


class Neuron(Module):
    """A neuron: nonlin(w·x + b) of `nin` inputs.

    Args:
        nin: number of inputs.
        nonlin: nonlinearity, such as Value.tanh; None (or micrograd's False) for a linear neuron.
        rng: random numbers for the weights, uniform in [-1, 1]; the bias starts at 0.
    """

    def __init__(self, nin: int, nonlin: Callable[[Value], Value] | None = Value.relu, rng: Any = random):
        self.w = [Value(rng.uniform(-1, 1)) for _ in range(nin)]
        self.b = Value(0.0)
        self.nonlin = nonlin

    def __call__(self, x: Sequence[Number]) -> Value:
        total = weighted_sum(self.w, x, self.b)
        return self.nonlin(total) if self.nonlin else total

    def parameters(self) -> list[Value]:
        return [*self.w, self.b]

    def __repr__(self) -> str:
        return f"{self.nonlin.__name__ if self.nonlin else 'linear'} Neuron({len(self.w)})"


class Layer(Module):
    """`nout` neurons with the same `nin` inputs; see `Neuron`. Returns a Value for one neuron, a list for several."""

    def __init__(self, nin: int, nout: int, nonlin: Callable[[Value], Value] | None = Value.relu, rng: Any = random):
        self.neurons = [Neuron(nin, nonlin, rng) for _ in range(nout)]

    def __call__(self, x: Sequence[Number] | Value) -> Value | list[Value]:
        x = [as_value(n) for n in ([x] if isinstance(x, Value) else x)]  # a layer of one neuron returns a Value
        out = [neuron(x) for neuron in self.neurons]
        return out[0] if len(out) == 1 else out

    def parameters(self) -> list[Value]:
        return [parameter for neuron in self.neurons for parameter in neuron.parameters()]

    def __repr__(self) -> str:
        return f"Layer of [{', '.join(map(str, self.neurons))}]"


class MLP(Module):
    """A multi-layer perceptron: layers of `nouts` neurons, the last one linear.

    >>> model = MLP(2, [16, 16, 1], rng=random.Random(0))
    >>> len(model.parameters())
    337
    >>> score = model([0.3, -0.2])
    """

    def __init__(
        self, nin: int, nouts: Sequence[int], nonlin: Callable[[Value], Value] | None = Value.relu, rng: Any = random
    ):
        sizes = [nin, *nouts]
        last = len(nouts) - 1
        self.layers = [Layer(sizes[i], sizes[i + 1], nonlin if i < last else None, rng) for i in range(len(nouts))]

    def __call__(self, x: Sequence[Number] | Value) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x

    def parameters(self) -> list[Value]:
        return [parameter for layer in self.layers for parameter in layer.parameters()]

    def __repr__(self) -> str:
        return f"MLP of [{', '.join(map(str, self.layers))}]"
