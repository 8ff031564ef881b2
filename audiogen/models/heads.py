"""Heads: hidden (B, S, D) -> a distribution over the codes or frame of each step. The spec determines which.

    codes  (B, K, S) -> CodeEmbedding  -> (B, S, D) ... (B, S, D) -> CategoricalHead    -> K distributions over V codes
    frames (B, F, S) -> FrameEmbedding -> (B, S, D) ... (B, S, D) -> MixtureDensityHead -> one density over F values

A hole is the code V or a frame of NaN. The code V has an embedding of its own, NaN embeds as zero; their nll is 0.
"""

import math
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..spec import FrameSpec, TokenSpec
from .sampling import Sampling, draw


class Head(nn.Module):
    """The contract of a head.

    Attributes:
        num_uniforms: uniform numbers that `sample` uses per item and step.
        sees_conditions: whether what conditions add to the backbone's input is added to its output, too.
        emphasis: factor of what conditions add.
        bounds: whether `nll` returns an upper bound, since the likelihood itself (`exact_nll`) takes longer.
        temperatures: candidates for the temperature of a run, plain draws first.
    """

    num_uniforms: int
    sees_conditions: ClassVar[bool] = False
    emphasis: ClassVar[float] = 1.0
    bounds: ClassVar[bool] = False
    temperatures: ClassVar[tuple[float, ...]] = (1.0, 1.1, 0.9, 1.2, 0.8, 1.3)

    def absent_in_format_1(self) -> dict[str, Tensor]:
        """Return weights that run folders of format 1 lack, with the values under which this head equals theirs."""
        return {}

    def attach(self, h: Tensor, previous: Tensor) -> Tensor:
        """Join hidden (B, S, D) with the previous steps (B, C, S), if `nll` and `sample` depend on them."""
        return h

    def nll(self, h: Tensor, target: Tensor) -> Tensor:
        """Compute negative log-likelihoods.

        Args:
            h: what `attach` returned, (B, S, D) or wider.
            target: (B, C, S).

        Returns:
            nats (B, rows, S), rows being K for codes and 1 for frames; 0 in holes.
        """
        raise NotImplementedError

    def exact_nll(self, h: Tensor, target: Tensor) -> Tensor:
        """Compute negative log-likelihoods with the arguments of `nll`, exactly where that returns a bound."""
        return self.nll(h, target)

    def loss(self, h: Tensor, target: Tensor) -> Tensor:
        """Compute what training minimises, (B, rows, S), with the arguments of `nll`; by default, that."""
        return self.nll(h, target)

    def sample(self, h: Tensor, sampling: Sampling, uniforms: Tensor) -> Tensor:
        """Draw one step.

        A row whose distribution contains NaN or infinity gives a hole, so that a GPU need not synchronise at each step.

        Args:
            h: what `attach` returned, (B, D) or wider.
            sampling: temperature and filters.
            uniforms: (B, num_uniforms) float64 in (0, 1).

        Returns:
            (B, C).
        """
        raise NotImplementedError

    def fit(self, sequences: Iterable[Tensor]) -> None:
        """Compute from the training sequences (C, T) what is not learned by gradient; nothing by default."""

    def at_start(self, uniforms: Tensor) -> Tensor:
        """Return the uniform numbers (B, num_uniforms) with which `sample` draws the first step of an item."""
        return uniforms

    def combine(self, h_given: Tensor, h_null: Tensor, scale: float) -> Tensor:
        """Combine what a model says with its conditions and without them: two (B, D) -> (B, D) for `sample`.

        Guidance goes from the null distribution through the given one and beyond: log p = null + scale (given - null).
        The logits of a linear head are an affine map of its input, and a mixture that sums to 1 keeps the affine part,
        so mixing the inputs mixes the logits; log-softmax shifts these by a constant only. Of a density the same
        mixture goes through what its layer gives: log weights, means and log deviations of each component.

        Source: Ho and Salimans 2022, Classifier-Free Diffusion Guidance, equation 6.
        """
        return h_null + scale * (h_given - h_null)

    def logits(self, h: Tensor) -> Tensor:
        """Compute logits: (..., D) -> (..., K, V), at least float32.

        Raises:
            TypeError: the head is a density, which has no logits.
        """
        raise TypeError(f"{type(self).__name__} is a density over frames: it has no logits")


class CategoricalHead(Head):
    """K independent distributions over V codes, computed by one linear layer."""

    def __init__(self, spec: TokenSpec, dim: int):
        super().__init__()
        self.num_codebooks, self.codebook_size = spec.num_codebooks, spec.codebook_size
        self.num_uniforms = spec.num_codebooks
        self.linear = nn.Linear(dim, spec.num_codebooks * spec.codebook_size)
        # Small, so that training starts from a nearly uniform distribution: a loss of ln V.
        nn.init.normal_(self.linear.weight, std=0.1 / math.sqrt(dim))
        nn.init.zeros_(self.linear.bias)

    def logits(self, h: Tensor) -> Tensor:
        """Compute logits: (..., D) -> (..., K, V), at least float32."""
        logits = self.linear(h).unflatten(-1, (self.num_codebooks, self.codebook_size))
        return _at_least_float32(logits)

    def nll(self, h: Tensor, target: Tensor) -> Tensor:
        logits = self.logits(h)  # (B, S, K, V)
        # V last: with V in the middle, torch reads memory with strides and takes three times as long.
        nll = F.cross_entropy(
            logits.flatten(0, 2), target.transpose(1, 2).flatten(), ignore_index=self.codebook_size, reduction="none"
        )
        return nll.view(logits.shape[:3]).transpose(1, 2)  # (B, K, S)

    def sample(self, h: Tensor, sampling: Sampling, uniforms: Tensor) -> Tensor:
        return draw(self.logits(h), sampling, uniforms)


class MixtureDensityHead(Head):
    """A mixture of M Gaussians over the F values of a frame, given the previous frame.

        x = keep_m * previous + mean_m(h) + L^-1 (deviation_m(h) * (noise + U(h) factors)), with probability weight_m(h)

    noise (F) and factors (R) being independent standard normal numbers. `keep` (M, F) starts near 1, since neighbouring
    frames are alike. L is lower triangular with a diagonal of 1, shared by all components: it models the correlation of
    each band with the bands below it. Without it the noise of each band would be independent, and harmonics would break
    up. U (F, R) follows from the hidden: it lets the bands of a note or a vowel rise and fall together.

    The first k bands depend on no later ones: dropping the others from all weights leaves their exact distribution, so
    a model of 100 bands contains those of a lower sample rate (see `leading_bands`).

    Features are standardised, so `MIN_SCALE` bounds the deviations from below relative to a feature's own deviation:
    otherwise a band that hardly varies (digital silence) could reach any density.

    Source: Bishop 1994, Mixture Density Networks, section 3; Pourahmadi 1999 (covariance by regressing each variable on
    the preceding ones); factor analysis.
    """

    range: Tensor

    NUM_COMPONENTS = 8
    NUM_FACTORS = 8
    MIN_SCALE = 0.02
    #: Standard deviations beyond which no value is drawn before `fit` has seen the training frames.
    LIMIT = 6.0
    #: Initial values: weight of the previous frame, weight of the band below, range of the log deviations.
    KEEP, SHARE, LOG_SCALES = 0.9, 0.5, (-1.5, 0.0)

    def __init__(self, spec: FrameSpec, dim: int):
        super().__init__()
        M, F_, R = self.NUM_COMPONENTS, spec.num_features, self.NUM_FACTORS
        self.num_features, self.dim, self.num_uniforms = F_, dim, 1 + F_ + R
        self.linear = nn.Linear(dim, M * (1 + 2 * F_))
        nn.init.normal_(self.linear.weight, std=0.1 / math.sqrt(dim))
        nn.init.zeros_(self.linear.bias)
        with torch.no_grad():  # components start with different means, and deviations from narrow to wide
            means, log_scales = self.linear.bias[M:].view(M, 2, F_).unbind(dim=1)
            means.normal_(std=0.1)
            log_scales.copy_(torch.linspace(*self.LOG_SCALES, M)[:, None])
        self.register_buffer("range", torch.tensor([[-self.LIMIT], [self.LIMIT]]).repeat(1, F_))  # (2, F)
        self.keep = nn.Parameter(torch.full((M, F_), self.KEEP))
        self.below = nn.Parameter(torch.diag(torch.full((F_ - 1,), -self.SHARE), -1))  # (F, F): L below its diagonal
        self.factors = nn.Linear(dim, F_ * R)
        nn.init.normal_(self.factors.weight, std=0.1 / math.sqrt(dim))
        nn.init.normal_(self.factors.bias, std=0.1)  # 0 would be a saddle point

    def absent_in_format_1(self) -> dict[str, Tensor]:
        """Return zeros: no dependence on the previous frame, and uncorrelated bands."""
        names = {"keep": self.keep, "below": self.below}
        names |= {"factors.weight": self.factors.weight, "factors.bias": self.factors.bias}
        return {"range": self.range.clone(), **{name: torch.zeros_like(value) for name, value in names.items()}}

    @torch.no_grad()
    def fit(self, sequences: Iterable[Tensor]) -> None:
        """Keep the lowest and the highest value of each feature: draws are clamped to this range.

        Otherwise a rare draw may be louder than any frame that the model has seen; the model does not know what follows
        such a frame, and continues with noise.
        """
        self.range.copy_(span(sequences))

    def at_start(self, uniforms: Tensor) -> Tensor:
        """Draw the first frame of an item: the mean of a component, without noise.

        Any frame of any sound may come first, so the components are wide, and their noise would be heard as a burst.
        Older runs, which have no factors, begin with noise as before.
        """
        if not bool(self.factors.weight.any()):
            return uniforms
        return torch.cat([uniforms[:, :1], torch.full_like(uniforms[:, 1:], 0.5)], dim=1)

    def leading_bands(self, weights: dict[str, Tensor], num_features: int) -> dict[str, Tensor]:
        """Return the weights of a head that models only the first `num_features` of this head's F values."""
        M, F_, k = self.NUM_COMPONENTS, self.num_features, num_features

        def of_linear(y: Tensor) -> Tensor:  # (M + M * 2 * F, ...) -> (M + M * 2 * k, ...)
            return torch.cat([y[:M], y[M:].unflatten(0, (M, 2, F_))[:, :, :k].flatten(0, 2)])

        def of_factors(y: Tensor) -> Tensor:  # (F * R, ...) -> (k * R, ...)
            return y[: k * self.NUM_FACTORS]

        return {
            "linear.weight": of_linear(weights["linear.weight"]),
            "linear.bias": of_linear(weights["linear.bias"]),
            "keep": weights["keep"][:, :k],
            "below": weights["below"][:k, :k],
            "factors.weight": of_factors(weights["factors.weight"]),
            "factors.bias": of_factors(weights["factors.bias"]),
            "range": weights["range"][:, :k],
        }

    def attach(self, h: Tensor, previous: Tensor) -> Tensor:
        """Append the previous frames: (B, S, D), (B, F, S) -> (B, S, D + F). A hole counts as the mean frame, 0."""
        return torch.cat([h, previous.nan_to_num(0.0).transpose(1, 2).to(h.dtype)], dim=2)

    def parameters_of(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the mixture: (..., D + F) -> log weights (..., M), means (..., M, F), log deviations (..., M, F)."""
        M = self.NUM_COMPONENTS
        h, previous = h[..., : self.dim], _at_least_float32(h[..., None, self.dim :])  # (..., D), (..., 1, F)
        y = _at_least_float32(self.linear(h))
        weights, rest = y[..., :M], y[..., M:].unflatten(-1, (M, 2, self.num_features))
        log_scales = torch.logaddexp(rest[..., 1, :], rest.new_full((), math.log(self.MIN_SCALE)))
        return weights.log_softmax(dim=-1), self.keep * previous + rest[..., 0, :], log_scales

    def factors_of(self, h: Tensor) -> Tensor:
        """Compute U, how the bands share each factor: (..., D + F) -> (..., F, R), at least float32."""
        return _at_least_float32(self.factors(h[..., : self.dim])).unflatten(-1, (self.num_features, self.NUM_FACTORS))

    def nll(self, h: Tensor, target: Tensor) -> Tensor:
        log_weights, means, log_scales = self.parameters_of(h)  # (B, S, M), (B, S, M, F) twice
        hole = target.isnan().any(dim=1)  # (B, S)
        x = target.nan_to_num(0.0).transpose(1, 2)[:, :, None].to(means.dtype)  # (B, S, 1, F)
        residual, u = x - means, self.factors_of(h)  # (B, S, M, F), (B, S, F, R)
        with torch.autocast(
            residual.device.type, enabled=False
        ):  # differences of similar numbers: bfloat16 is too coarse
            z = (residual + residual @ self.below.tril(-1).T) * (-log_scales).exp()  # (B, S, M, F)
            # z is normal with covariance I + U U^T. Its inverse and determinant follow from the R x R matrix I + U^T U
            # (Woodbury); det L is 1.
            inner = torch.eye(self.NUM_FACTORS, dtype=z.dtype, device=z.device) + u.mT @ u  # (B, S, R, R)
            root = torch.linalg.cholesky_ex(inner).L  # NaN stays NaN, which the trainer reports
            explained = torch.linalg.solve_triangular(root, (z @ u).mT, upper=False).square().sum(dim=-2)  # (B, S, M)
            half_log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1, keepdim=True)  # (B, S, 1)
            distance = (z * z + math.log(2 * math.pi)).sum(dim=-1) - explained
        log_densities = -0.5 * distance - log_scales.sum(dim=-1) - half_log_det
        nll = -torch.logsumexp(log_weights + log_densities, dim=-1)  # (B, S)
        return nll.masked_fill(hole, 0.0)[:, None]

    def sample(self, h: Tensor, sampling: Sampling, uniforms: Tensor) -> Tensor:
        log_weights, means, log_scales = self.parameters_of(h)  # (B, M), (B, M, F) twice
        chosen = draw(log_weights, sampling, uniforms[:, 0])[:, None]  # (B, 1)
        component = chosen.clamp(max=self.NUM_COMPONENTS - 1)[:, :, None].expand(-1, 1, self.num_features)
        x = means.gather(1, component)[:, 0].double()  # (B, F)
        if sampling.temperature != 0:
            scale = log_scales.gather(1, component)[:, 0].double().exp()
            normal = torch.special.ndtri(uniforms[:, 1:])
            noise, factors = normal[:, : self.num_features], normal[:, self.num_features :, None]  # (B, F), (B, R, 1)
            noise = noise + (self.factors_of(h).double() @ factors)[:, :, 0]
            z = sampling.temperature * scale * noise
            # unitriangular: the diagonal of `below` is taken to be 1
            x = x + torch.linalg.solve_triangular(self.below.double(), z.T, upper=False, unitriangular=True).T
        x = x.masked_fill(~x.isfinite() | (chosen == self.NUM_COMPONENTS), math.nan)
        return x.clamp(*self.range.double()).to(means.dtype)


def span(sequences: Iterable[Tensor]) -> Tensor:
    """Return the lowest and the highest value of each feature in sequences (F, T), as (2, F)."""
    ends = [torch.stack([x.nan_to_num(math.inf).amin(1), x.nan_to_num(-math.inf).amax(1)]) for x in sequences]
    low, high = torch.stack(ends).unbind(dim=1)  # (N, F) each
    return torch.stack([low.amin(0), high.amax(0)])


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
