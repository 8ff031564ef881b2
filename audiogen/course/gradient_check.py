"""Two oracles for hand-written gradients: torch's autograd, and finite differences."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

#: A function of tensors that returns one or several tensors.
Function = Callable[..., Tensor | tuple[Tensor, ...]]


def by_autograd(function: Function, inputs: Sequence[Tensor], dy: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Compute the gradient of sum(dy * function(*inputs)) for each input with autograd.

    Args:
        function: the function; integers and settings must be bound in it.
        inputs: floating-point tensors.
        dy: tensors of the same shapes as the function's results.
    """
    inputs = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*inputs), inputs, dy)


@torch.no_grad()
def by_differences(
    function: Function, inputs: Sequence[Tensor], dy: Tensor | tuple[Tensor, ...], step: float = 1e-6
) -> tuple[Tensor, ...]:
    """Compute the same gradients as (f(x + step) - f(x - step)) / (2 step), one entry at a time.

    In float64, a step of 1e-6 leaves an error of about 1e-9: step^2 times the third derivative, plus the rounding of f
    divided by the step. Each entry takes two calls of the function.
    """
    inputs = [x.clone() for x in inputs]

    def value() -> Any:
        y = function(*inputs)
        return sum((a * b).sum() for a, b in zip(_several(y), _several(dy), strict=True))

    gradients = [torch.empty_like(x) for x in inputs]
    for x, gradient in zip(inputs, gradients, strict=True):
        flat = x.view(-1)
        for i, at in enumerate(flat.tolist()):
            flat[i] = at + step
            above = value()
            flat[i] = at - step
            gradient.view(-1)[i] = (above - value()) / (2 * step)
            flat[i] = at
    return tuple(gradients)


def largest_difference(ours: Tensor | Sequence[Tensor], theirs: Tensor | Sequence[Tensor]) -> float:
    """Return the largest |a - b| over all entries of pairs of tensors of equal shapes."""
    pairs = list(zip(_several(ours), _several(theirs), strict=True))
    for a, b in pairs:
        if a.shape != b.shape:
            raise ValueError(f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
    return max(float((a - b).abs().max()) if a.numel() else 0.0 for a, b in pairs)


def _several(tensors: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return (tensors,) if isinstance(tensors, Tensor) else tensors
