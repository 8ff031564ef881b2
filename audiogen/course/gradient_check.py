"""Two oracles for gradients written by hand: torch's autograd, and the slope measured by small steps."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: A function of tensors that gives a tensor, or several.
Function = Callable[..., Tensor | tuple[Tensor, ...]]


def by_autograd(function: Function, inputs: Sequence[Tensor], dy: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What autograd makes of the gradient of sum(dy function(*inputs)), for each input.

    Args:
        inputs: floating point; what is an integer or a setting belongs into `function`.
        dy: shaped as what the function returns; if that is several tensors, as many.
    """
    inputs = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*inputs), inputs, dy)


@torch.no_grad()
def by_differences(
    function: Function, inputs: Sequence[Tensor], dy: Tensor | tuple[Tensor, ...], step: float = 1e-6
) -> tuple[Tensor, ...]:
    """The same from (f(x + step) - f(x - step)) / (2 step), one entry at a time, without any calculus.

    In float64 a step of 1e-6 leaves an error of about 1e-9: step^2 times the third derivative, and the rounding of f
    divided by the step. Takes two calls of the function an entry.
    """
    inputs = [x.clone() for x in inputs]

    def value() -> Tensor:
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
    """The largest |a - b| of all entries of tensors of equal shapes, pair by pair."""
    pairs = list(zip(_several(ours), _several(theirs), strict=True))
    for a, b in pairs:
        if a.shape != b.shape:
            raise ValueError(f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
    return max(float((a - b).abs().max()) if a.numel() else 0.0 for a, b in pairs)


def _several(tensors: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return (tensors,) if isinstance(tensors, Tensor) else tensors
