"""Diagnostics of one training step: saturation, dead units, gradients, and the size of weight updates.

    with observe(model) as seen:
        model.nll(batch)[0].backward()
        optimizer.step()
    seen.layers["backbone.first.linear tanh"].saturated     # 0.03: three outputs in a hundred
    seen.weights["backbone.first.linear.weight"].update     # -3.1: the step changed it by 10 ** -3.1 of its size

The model needs no changes: hooks observe the outputs of modules, and a torch function mode observes activation
functions, whether modules or plain calls such as `x.tanh()`. Source: Karpathy, makemore part 3.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

#: tanh and sigmoid are saturated beyond this fraction of their range: there the slope of tanh is below 0.06, and hardly
#: any gradient passes. Attention is saturated if a single key gets a larger weight than this.
SATURATED = 0.97
ATTENTION = "scaled_dot_product_attention"


def _above(y: Tensor) -> Tensor:
    return y > 0


#: For each activation function, by its name in torch: which outputs let the gradient pass.
AWAKE: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": lambda y: y.abs() <= SATURATED,
    "sigmoid": lambda y: (2 * y - 1).abs() <= SATURATED,
    "relu": _above,
    "gelu": _above,
    "silu": _above,
}


@dataclass(frozen=True)
class Layer:
    """Statistics of the outputs of a module, or of a function applied after it, over all items and steps of a batch.

    Attributes:
        mean, std: of the outputs.
        grad_std: standard deviation of the loss's gradient with respect to them; None if there was none.
        saturated: fraction of saturated outputs of a tanh or sigmoid; of attention, fraction of the first item's
            queries (among those with more than one key) that are dominated by a single key; otherwise None.
        units: width of an activation function; otherwise None.
        dead: units of an activation function that passed no gradient anywhere in the batch.
    """

    mean: float
    std: float
    grad_std: float | None = None
    saturated: float | None = None
    units: int | None = None
    dead: int | None = None


@dataclass(frozen=True)
class Matrix:
    """Statistics of a parameter with two or more dimensions.

    Attributes:
        std: standard deviation before the step.
        grad_std: standard deviation of its gradient before clipping (in training, of the last batch's if a step has
            several); None if it has none.
        update: log10 of the relative update, the standard deviation of its change in this step over `std`; None if
            either is 0.
    """

    std: float
    grad_std: float | None = None
    update: float | None = None


@dataclass
class Observation:
    """The result of `observe`, filled in when its block ends.

    Attributes:
        layers: layers in order of execution, by the name of the module; a function applied after it follows a space
            ("backbone.gates.3.linear sigmoid").
        weights: matrices by the name of the parameter, in the order of their modules.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    weights: dict[str, Matrix] = field(default_factory=dict)

    def event(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return the observation as JSON values of four digits, without values that are None or not finite."""
        return {
            part: {
                name: {
                    key: float(f"{value:.4g}") if isinstance(value, float) else value
                    for key, value in asdict(figures).items()
                    if value is not None and math.isfinite(value)
                }
                for name, figures in vars(self)[part].items()
            }
            for part in ("layers", "weights")
        }


@contextmanager
def observe(model: nn.Module) -> Iterator[Observation]:
    """Observe one training step: forward passes, backward passes and the optimizer's step.

    Observing does not change the step, except that compiled modules run uncompiled, which rounds differently.
    """
    seen, latest = Observation(), ""
    meters: dict[tuple[str, int], _Meter] = {}
    matrices = {name: _MatrixMeter(x) for name, x in model.named_parameters() if x.ndim >= 2 and x.requires_grad}

    def after_module(name: str, module: nn.Module, inputs: Any, y: Any) -> None:
        nonlocal latest
        if isinstance(y, Tensor) and torch.is_grad_enabled():  # scheduled sampling draws without gradients
            latest = name
            meter(name, y).add(y)

    def after_function(kind: str, y: Tensor, arguments: tuple, options: dict) -> None:
        if not torch.is_grad_enabled():
            return
        found = meter(f"{latest} {'attention' if kind == ATTENTION else kind}", y)
        found.add(y, AWAKE[kind](y.detach()) if kind in AWAKE else None, kind in ("tanh", "sigmoid"))
        if kind == ATTENTION:
            found.taken_over(_largest_share(*arguments, **options) > SATURATED)

    def meter(name: str, y: Tensor) -> "_Meter":
        return meters.setdefault((name, y.shape[-1] if y.ndim else 1), _Meter())

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if (
                name and next(module.parameters(recurse=False), None) is not None
            ):  # the outputs of the model itself are losses
                stack.callback(module.register_forward_hook(partial(after_module, name)).remove)
        for matrix in matrices.values():
            stack.callback(matrix.parameter.register_post_accumulate_grad_hook(matrix.gradient).remove)
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_Functions(after_function))
        yield seen
    for (name, width), found in meters.items():
        seen.layers[name if name not in seen.layers else f"{name} {width}"] = found.figures(width)
    places = {name: place for place, name in enumerate(seen.layers)}
    for name in sorted(matrices, key=lambda name: places.get(name.rpartition(".")[0], len(places))):
        seen.weights[name] = matrices[name].figures()


class _Functions(TorchFunctionMode):
    """Report each call of an activation function or of attention.

    Inside the call, the mode is off, so a function that calls others counts once.
    """

    def __init__(self, report: Callable[[str, Tensor, tuple, dict], None]):
        super().__init__()
        self.report = report

    def __torch_function__(self, function, types, args=(), kwargs=None):
        y = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "").rstrip("_")  # relu_ works in place
        if (name in AWAKE or name == ATTENTION) and isinstance(y, Tensor) and y.is_floating_point():
            self.report(name, y, args, kwargs or {})
        return y


class _Meter:
    """Accumulate the figures of a layer over calls, as tensors, to avoid synchronising with a GPU."""

    def __init__(self):
        self.outputs, self.gradients, self.saturated = [], [], []  # (count, mean, variance) of each call
        self.awake: Tensor | None = None  # (units,) bool: passed a gradient somewhere

    def add(self, y: Tensor, awake: Tensor | None = None, squashing: bool = False) -> None:
        self.outputs.append(_moments(y))
        if y.requires_grad:
            y.register_hook(lambda gradient: self.gradients.append(_moments(gradient)))
        if awake is not None:
            units = awake.reshape(-1, y.shape[-1] if y.ndim else 1).any(dim=0)
            self.awake = units if self.awake is None else self.awake | units
            if squashing:
                self.saturated.append(_moments(~awake))

    def taken_over(self, queries: Tensor) -> None:
        if queries.numel():
            self.saturated.append(_moments(queries))

    def figures(self, width: int) -> Layer:
        mean, std = _pooled(self.outputs)
        return Layer(
            mean,
            std,
            grad_std=_pooled(self.gradients)[1] if self.gradients else None,
            saturated=_pooled(self.saturated)[0] if self.saturated else None,
            units=None if self.awake is None else width,
            dead=None if self.awake is None else int((~self.awake).sum()),
        )


class _MatrixMeter:
    """Compute the figures of a parameter: create it before the step, call `figures` after it."""

    def __init__(self, parameter: nn.Parameter):
        self.parameter, self.before, self.grad_std = parameter, parameter.detach().clone(), None

    def gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self.grad_std = parameter.grad.std(correction=0)  # of what has accumulated so far

    def figures(self) -> Matrix:
        std, moved = (float(x.std(correction=0)) for x in (self.before, self.parameter.detach() - self.before))
        return Matrix(
            std,
            None if self.grad_std is None else float(self.grad_std),
            math.log10(moved / std) if moved > 0 and std > 0 else None,
        )


def _moments(x: Tensor) -> tuple[int, Tensor, Tensor]:
    x = x.detach()
    variance, mean = torch.var_mean(x if x.dtype == torch.float64 else x.float(), correction=0)
    return x.numel(), mean, variance


def _pooled(calls: list[tuple[int, Tensor, Tensor]]) -> tuple[float, float]:
    """Return mean and standard deviation over all calls together."""
    counts, means, variances = (
        torch.stack([torch.as_tensor(x) for x in column]).cpu().double() for column in zip(*calls, strict=True)
    )
    shares = counts / counts.sum()
    mean = (shares * means).sum()
    return float(mean), math.sqrt(float((shares * (variances + (means - mean).square())).sum()))


def _largest_share(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return the largest attention weight of each of the first item's queries that have more than one key."""
    q, k = query[0].detach().float(), key[0].detach().float()  # (H, S, D / H)
    if enable_gqa:
        k = k.repeat_interleave(q.shape[0] // k.shape[0], dim=0)
    scores = q @ k.mT * (scale or q.shape[-1] ** -0.5)  # (H, S, keys)
    visible = torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
    if is_causal:
        visible = visible.tril()
    if attn_mask is not None:
        mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])[0]
        visible = mask if mask.dtype == torch.bool else mask > -math.inf
        scores = scores if mask.dtype == torch.bool else scores + mask
    largest = scores.masked_fill(~visible, -math.inf).softmax(dim=-1).amax(dim=-1)
    return largest[visible.sum(dim=-1) > 1]
