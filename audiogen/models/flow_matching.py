"""A head that draws frames by flow matching: noise is moved along a learned velocity until it is a frame."""

import itertools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..spec import FrameSpec
from .heads import Head, span
from .sampling import Sampling


class FlowMatchingHead(Head):
    """The distribution of the F values of a frame, given the hidden and the previous frame.

    On the straight way from noise to a frame, x_t = (1 - t) noise + t frame, a network predicts the velocity
    frame - noise from x_t, t, the hidden and the previous frame. A draw follows that velocity from t = 0 to 1. So the
    values of a frame depend on each other in any way that the network can learn, which a mixture of Gaussians can't: a
    frame is one note or another, not a blend with the noise of both. It pays most where a frame of the model is a stack
    of several mel frames.

    `nll` returns the variational bound of the diffusion with the same way: a sum over noise levels of squared errors,
    in nats, and so an upper bound of the negative log-likelihood. `exact_nll` follows the velocity backwards, from a
    frame to the noise that it is drawn from, and adds up how the way spreads or gathers the values around it.

    All values of the bands above a limit can be left out of the weights (see `leading_bands`). The result is the
    network that sees zeros there, so a model that was trained with and without the upper bands serves both.

    Source: Lipman et al. 2023, Flow Matching for Generative Modeling; Liu et al. 2023, Flow Straight and Fast; Li et
    al. 2024, Autoregressive Image Generation without Vector Quantization (a small network per step); Peebles and Xie
    2023 (scale and shift by the condition, initialised to zero); Kingma et al. 2021, Variational Diffusion Models,
    equation 17 (the bound); Grathwohl et al. 2019, FFJORD (the likelihood, with an estimate of the divergence);
    Esser et al. 2024, section 3.1 (training levels from a logit-normal distribution).
    """

    range: Tensor
    frequencies: Tensor
    noise: Tensor
    blocks: Any
    sees_conditions = bounds = True
    #: On spoken digits, three minutes of fine-tuning learn too little of the labels with 1.
    emphasis = 4.0
    #: A model of minutes of sound is too sure of what comes next, so a temperature above 1 is often best. To try each
    #: costs a minute of generated sound.
    temperatures = (1.0, 1.1, 1.2)

    #: Width and number of residual blocks of the network; number of waves by which it sees t.
    WIDTH, BLOCKS, WAVES = 512, 3, 32
    #: A draw takes STEPS of the midpoint rule to the level CLEAN_FROM, and from there goes straight to the frame that
    #: it expects. The rest of the way would keep noise that the network can't tell from a frame: it filled the gaps
    #: between the harmonics of a violin and of voices (docs/benchmarks.md).
    STEPS, CLEAN_FROM = 3, 0.8
    #: Mean and deviation of log(t / (1 - t)) in training, at one random t per frame. With two, a step takes longer than
    #: it is worth: after four minutes more of the base model's training, its bound is 0.013 nats per value higher.
    LOGIT_MEAN, LOGIT_STD = 0.6, 1.6
    #: Levels of the bound, from where nothing is left of a frame to noise of LEAST_NOISE of a feature's deviation.
    BOUND_LEVELS, LOWEST_LOGIT, LEAST_NOISE = 12, -5.0, 0.02
    #: Steps of `exact_nll`, evenly spaced in log(t / (1 - t)) from 0 to the least noise, apart from one at either end;
    #: with three times as many, a frame of the base model changes by 0.6 nats at most. Frames at a time.
    EXACT_STEPS, EXACT_LOWEST_LOGIT, EXACT_BATCH = 16, -3.0, 512
    #: Standard deviations beyond which no value is drawn before `fit` has seen the training frames.
    LIMIT = 6.0

    def __init__(self, spec: FrameSpec, dim: int):
        super().__init__()
        F_ = spec.num_features
        self.num_features = self.num_uniforms = F_
        self.dim = dim
        self.frame = nn.Linear(F_, self.WIDTH)
        self.previous = nn.Linear(F_, self.WIDTH, bias=False)
        self.hidden = nn.Linear(dim, self.WIDTH)
        self.time = nn.Sequential(nn.Linear(2 * self.WAVES, self.WIDTH), nn.SiLU(), nn.Linear(self.WIDTH, self.WIDTH))
        self.blocks = nn.ModuleList([_Block(self.WIDTH) for _ in range(self.BLOCKS)])
        self.norm = nn.LayerNorm(self.WIDTH)
        self.out, self.gain = nn.Linear(self.WIDTH, F_), nn.Linear(self.WIDTH, F_)
        for linear in (self.out, self.gain):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.register_buffer("range", torch.tensor([[-self.LIMIT], [self.LIMIT]]).repeat(1, F_))  # (2, F)
        self.register_buffer("frequencies", torch.logspace(0, 3, self.WAVES), persistent=False)
        # The noise of the bound is always the same, so that a likelihood is a function of the frames; its mean square
        # is exactly 1, which takes away most of its chance.
        noise = torch.randn(self.BOUND_LEVELS, F_, generator=torch.Generator().manual_seed(0))
        noise = noise / noise.square().mean(dim=1, keepdim=True).sqrt()
        self.register_buffer("noise", noise, persistent=False)

    @torch.no_grad()
    def fit(self, sequences: Iterable[Tensor]) -> None:
        """Keep the lowest and the highest value of each feature, beyond which nothing is drawn."""
        self.range.copy_(span(sequences))

    def leading_bands(self, weights: dict[str, Tensor], num_features: int) -> dict[str, Tensor]:
        """Return the weights of a head that draws only the first `num_features` of this head's F values."""
        kept = dict(weights)
        for name in ("frame.weight", "previous.weight", "range"):
            kept[name] = weights[name][:, :num_features]
        for name in ("out.weight", "out.bias", "gain.weight", "gain.bias"):
            kept[name] = weights[name][:num_features]
        return kept

    def attach(self, h: Tensor, previous: Tensor) -> Tensor:
        """Append the previous frames: (B, S, D), (B, F, S) -> (B, S, D + F). A hole counts as the mean frame, 0."""
        return torch.cat([h, previous.nan_to_num(0.0).transpose(1, 2).to(h.dtype)], dim=2)

    def schedule(self) -> tuple[list[float], list[float]]:
        """Return the levels at which a draw asks for the velocity, and how far it moves by each.

        It moves from where a step began: to the middle, then by the velocity there to the end. The last step has one
        move.
        """
        step = self.CLEAN_FROM / self.STEPS
        levels = [step * number / 2 for number in range(2 * self.STEPS + 1)]
        return levels, [step / 2, step] * self.STEPS + [1 - self.CLEAN_FROM]

    def velocity(self, x: Tensor, t: Tensor, h: Tensor) -> Tensor:
        """Predict the velocity: x (..., F), t (..., 1), h (..., D + F) -> (..., F).

        The velocity contains all of the noise, which has more values than the network is wide. So x is also passed on
        value by value, with gains that the condition determines. They begin at what is best if nothing is known of a
        frame but that its values have variance 1.
        """
        return self._move(x, self.previous(h[..., self.dim :]), self._conditioned(t, h))

    def _conditioned(self, t: Tensor, h: Tensor) -> tuple[list[Tensor], Tensor]:
        """Compute all that depends on t (..., 1) and the hidden: the blocks' modulations, and the gains (..., F)."""
        time, least_gain = self.at_levels(t)
        condition = F.silu(self.hidden(h[..., : self.dim]) + time)
        return [block.modulation(condition) for block in self.blocks], self.gain(condition) + least_gain

    def at_levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Compute what t (..., 1) adds to the hidden (..., W), and to the gains (..., 1)."""
        waves = t * self.frequencies.to(t)
        time = self.time(torch.cat([waves.sin(), waves.cos()], dim=-1))
        return time, (2 * t - 1) / (t.square() + (1 - t).square())

    def _move(self, x: Tensor, previous: Tensor, conditioned: tuple[list[Tensor], Tensor]) -> Tensor:
        """Compute the velocity at x (..., F), given what the previous frame adds to the network's input (..., W)."""
        modulations, gain = conditioned
        y = self.frame(x) + previous
        for block, modulation in zip(self.blocks, modulations, strict=True):
            y = block(y, modulation)
        return self.out(self.norm(y)) + gain * x

    def loss(self, h: Tensor, target: Tensor) -> Tensor:
        """Estimate the bound of `nll` at a random level, with the gradient of the mean squared error.

        The bound gives small levels of noise much weight, which are hardly heard; the squared error does not. The level
        and noise come from torch's global generator.
        """
        hole, x, h = self._inputs(h, target)
        normal = torch.randn(*x.shape[:2], 1, device=x.device, dtype=x.dtype)
        logit = self.LOGIT_MEAN + self.LOGIT_STD * normal
        noise = torch.randn(x.shape, device=x.device, dtype=x.dtype)  # fast: unlike x, contiguous
        squares = self._squares(x, noise, logit.sigmoid(), h)
        density = (-0.5 * normal.square()).exp() / (self.LOGIT_STD * math.sqrt(2 * math.pi))
        within = (logit > self.LOWEST_LOGIT) & (logit < -math.log(self.LEAST_NOISE))
        weight = (within * logit.sigmoid().square() / density)[..., 0]
        error, bound = squares / self.num_features, weight * squares.detach()
        value = error + (bound + self._last_term() - error).detach()
        return value.masked_fill(hole, 0.0)[:, None]

    def nll(self, h: Tensor, target: Tensor) -> Tensor:
        hole, x, h = self._inputs(h, target)
        width = (-math.log(self.LEAST_NOISE) - self.LOWEST_LOGIT) / self.BOUND_LEVELS
        bound = x.new_full(x.shape[:2], self._last_term())
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 is coarser than the least noise
            for level, noise in enumerate(self.noise.to(x)):
                t = 1 / (1 + math.exp(-self.LOWEST_LOGIT - (level + 0.5) * width))
                bound = bound + width * t**2 * self._squares(x, noise, x.new_full((*x.shape[:2], 1), t), h)
        return bound.masked_fill(hole, 0.0)[:, None]

    def exact_nll(self, h: Tensor, target: Tensor) -> Tensor:
        hole, x, h = self._inputs(h, target)
        # Derivatives need ordinary tensors, which `inference_mode` does not make.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            rows = zip(x[~hole].split(self.EXACT_BATCH), h[~hole].split(self.EXACT_BATCH), strict=True)
            nats = torch.cat([x.new_empty(0), *(self._exact(*both) for both in rows)])
        return torch.zeros_like(hole, dtype=x.dtype).masked_scatter(~hole, nats)[:, None]

    def _exact(self, x: Tensor, h: Tensor) -> Tensor:
        """Compute the nats of frames x (N, F), given the head's input h (N, D + F): (N,)."""
        logits = torch.linspace(-math.log(self.LEAST_NOISE), self.EXACT_LOWEST_LOGIT, self.EXACT_STEPS + 1)
        levels = [1.0, *logits.double().sigmoid().tolist(), 0.0]
        frame, spread = x, x.new_zeros(len(x))
        for number, (start, end) in enumerate(itertools.pairwise(levels)):
            middle = (start + end) / 2
            halfway = x + (middle - start) * self.velocity(x, x.new_full((len(x), 1), start), h)
            sign, t = signs(frame, number), x.new_full((len(x), 1), middle)
            v, moved = torch.func.jvp(lambda x, t=t: self.velocity(x, t, h), (halfway,), (sign,))[:2]
            x, spread = x + (end - start) * v, spread + (end - start) * (sign * moved).sum(dim=1)
        return 0.5 * (x.square().sum(dim=1) + self.num_features * math.log(2 * math.pi)) - spread

    def _squares(self, x: Tensor, noise: Tensor, t: Tensor, h: Tensor) -> Tensor:
        """Sum the squared errors of the velocity over the values of a frame: (B, S, F) twice, (B, S, 1) -> (B, S)."""
        return (self.velocity((1 - t) * noise + t * x, t, h) - (x - noise)).to(x).square().sum(dim=-1)

    def _last_term(self) -> float:
        """Return the nats of a frame that is known up to noise of LEAST_NOISE, apart from what came before."""
        return self.num_features * (math.log(self.LEAST_NOISE) + 0.5 * math.log(2 * math.pi) + 0.5)

    def _inputs(self, h: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return where there are holes (B, S), and the frames (B, S, F) with the head's input, in one dtype."""
        dtype = torch.promote_types(h.dtype, torch.float32)
        return target.isnan().any(dim=1), target.nan_to_num(0.0).transpose(1, 2).to(dtype), h.to(dtype)

    def combine(self, h_given: Tensor, h_null: Tensor, scale: float) -> Tensor:
        """Join both inputs of the head with the scale: `sample` combines the velocities, not what they come from."""
        return torch.cat([h_given, h_null, torch.full_like(h_given[:, :1], scale)], dim=1)

    def sample(self, h: Tensor, sampling: Sampling, uniforms: Tensor) -> Tensor:
        return self.draw_from(h, sampling.temperature * torch.special.ndtri(uniforms).to(h.dtype))

    def draw_from(self, h: Tensor, noise: Tensor) -> Tensor:
        """Move noise (B, F) to frames (B, F), as `sample` does; h is its input."""
        size, scale, x = self.dim + self.num_features, None, noise
        if h.shape[1] > size:
            h, null, scale = h[:, :size], h[:, size : 2 * size], h[:, -1:]
            h = torch.cat([h, null])
        # What does not depend on x, for all levels at once: most of the weights are then read once, not at each.
        levels, moves = self.schedule()
        levels = torch.tensor(levels, device=x.device, dtype=x.dtype)
        modulations, gains = self._conditioned(
            levels[:, None, None].expand(-1, len(h), 1), h.expand(len(levels), -1, -1)
        )
        previous = self.previous(h[:, self.dim :])
        start = x
        for level, move in enumerate(moves):
            conditioned = [modulation[level] for modulation in modulations], gains[level]
            v = self._move(x if scale is None else torch.cat([x, x]), previous, conditioned)
            if scale is not None:
                given, without = v.chunk(2)
                v = without + scale * (given - without)
            start = x if level % 2 == 0 else start
            x = start + move * v
        drawn = x.clamp(*self.range.to(x))
        return drawn.masked_fill(~x.isfinite().all(dim=1, keepdim=True), math.nan)


def signs(x: Tensor, number: int) -> Tensor:
    """Return signs 1 or -1 like x (N, F) that are as good as random, yet a function of x and the number alone.

    They estimate a divergence (Hutchinson 1990), and a likelihood must not depend on what else is in the batch.
    """
    bits = x.float().view(torch.int32).long() + torch.arange(x.shape[1], device=x.device) * 0x9E3779B1 + number
    for _ in range(2):  # the finaliser of MurmurHash3, on 32 bits
        bits = ((bits ^ ((bits & 0xFFFFFFFF) >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
        bits = ((bits ^ (bits >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return (1 - 2 * ((bits >> 16) & 1)).to(x)


class _Block(nn.Module):
    """A residual block whose shift, scale and gate are given: (..., W), (..., 3 W) -> (..., W)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 3 * width)
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift, scale, gate = modulation.chunk(3, dim=-1)
        return x + gate * self.down(F.silu(self.up(self.norm(x) * (1 + scale) + shift)))
