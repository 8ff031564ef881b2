"""Gaussian models of frames, fitted in closed form: what a density network must beat."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

#: Floor of the deviations relative to a feature's own, as in `MixtureDensityHead`: digital silence must not earn more.
MIN_SCALE = 0.02
#: Strength of the prior that a frame equals the one before it, in frames.
RIDGE = 50.0


def gaussian_baselines(training: Iterable[Tensor], held_out: Iterable[Tensor]) -> dict[str, float]:
    """Fit two models to training frames and score held-out frames, in nats per frame.

    `gaussian`: independent frames, normal with a full covariance. `autoregression`: a linear function of the frame
    before plus normal noise with a full covariance, x_t = A x_(t-1) + b + noise; the first frame is `gaussian`. A is
    drawn towards the identity by ridge regression, so that few frames do not overfit.

    Args:
        training: sequences (F, T) of standardised frames.
        held_out: sequences (F, T).

    Source: Bishop 2006, Pattern Recognition and Machine Learning, sections 2.3.4 and 3.1.5; Lütkepohl 2005, New
    Introduction to Multiple Time Series Analysis, section 3.2 (vector autoregression).
    """
    zero = torch.zeros((), dtype=torch.float64)
    count, total, squares = 0, zero, zero
    pairs, inputs, products, errors = 0, zero, zero, zero
    for x in (x.double().T for x in training):  # (T, F)
        count, total, squares = count + len(x), total + x.sum(0), squares + x.T @ x
        before, change = (
            torch.nn.functional.pad(x[:-1], (0, 1), value=1.0),
            x[1:] - x[:-1],
        )  # (T - 1, F + 1), (T - 1, F)
        pairs = pairs + len(change)
        inputs, products, errors = inputs + before.T @ before, products + before.T @ change, errors + change.T @ change
    mean = total / count
    alone = _Normal(squares / count - torch.outer(mean, mean))
    prior = RIDGE * torch.eye(len(inputs), dtype=torch.float64)
    prior[-1, -1] = 1e-6  # the offset is free
    weights = torch.linalg.solve(inputs + prior, products)  # (F + 1, F): how the change depends on the frame before
    covariance = (errors - weights.T @ products - products.T @ weights + weights.T @ inputs @ weights) / max(1, pairs)
    next_to = _Normal(covariance)
    frames, nats_alone, nats_next = 0, 0.0, 0.0
    for x in (x.double().T for x in held_out):
        frames += len(x)
        alone_nats = alone.nats(x - mean)  # (T,)
        predicted = x[:-1] + torch.nn.functional.pad(x[:-1], (0, 1), value=1.0) @ weights
        nats_alone += float(alone_nats.sum())
        nats_next += float(alone_nats[0] + next_to.nats(x[1:] - predicted).sum())
    return {"gaussian": nats_alone / frames, "autoregression": nats_next / frames}


class _Normal:
    """A normal distribution of mean 0, whose covariance (F, F) is floored."""

    def __init__(self, covariance: Tensor):
        floor = MIN_SCALE**2 * torch.eye(len(covariance), dtype=torch.float64)
        self.root = torch.linalg.cholesky((covariance + covariance.T) / 2 + floor)
        self.constant = 0.5 * len(covariance) * math.log(2 * math.pi) + float(self.root.diagonal().log().sum())

    def nats(self, x: Tensor) -> Tensor:
        """Negative log-likelihood of rows (N, F): (N,)."""
        z = torch.linalg.solve_triangular(self.root, x.T, upper=False)
        return self.constant + 0.5 * z.square().sum(0)
