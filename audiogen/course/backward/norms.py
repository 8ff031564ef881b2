"""Batch norm, in steps and in one formula, and layer norm, which is the same formula along the other axis."""

from torch import Tensor

from .basic import Saved

#: Added to variances; torch's own default.
EPSILON = 1e-5


def batch_norm_steps(x: Tensor, gain: Tensor, bias: Tensor) -> tuple[Tensor, Saved]:
    """Batch norm one operation at a time: (N, D), (D,), (D,) -> (N, D).

    Each feature is brought to mean 0 and variance 1 over the batch, then scaled and shifted by what is learned.

    Source: Ioffe and Szegedy 2015, Batch Normalization, algorithm 1. As there, the variance divides by N, not N - 1.
    """
    mean = x.mean(dim=0)  # (D,)
    centred = x - mean  # (N, D)
    squared = centred**2  # (N, D)
    variance = squared.mean(dim=0)  # (D,)
    inverse = (variance + EPSILON) ** -0.5  # (D,)
    normalised = centred * inverse  # (N, D)
    y = gain * normalised + bias  # (N, D)
    return y, (centred, inverse, normalised, gain)


def batch_norm_steps_backward(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor, Tensor]:
    """(N, D) -> dx (N, D), dgain (D,), dbias (D,): the forward's lines from the last to the first.

    Watch for what is used twice (`centred`, as itself and squared; `x`, as itself and in the mean), and for what is
    broadcast over the batch (`gain`, `bias`, `inverse`, `mean`), whose gradients are sums over it.

    Source: Karpathy, makemore part 4, exercise 1.
    """
    centred, inverse, normalised, gain = saved
    N = len(dy)
    # y = gain * normalised + bias
    dgain = (dy * normalised).sum(dim=0)
    dbias = dy.sum(dim=0)
    dnormalised = dy * gain
    # normalised = centred * inverse
    dcentred = dnormalised * inverse
    dinverse = (dnormalised * centred).sum(dim=0)
    # inverse = (variance + EPSILON) ** -0.5
    dvariance = dinverse * -0.5 * inverse**3
    # variance = squared.mean(dim=0)
    dsquared = (dvariance / N).expand_as(centred)
    # squared = centred ** 2: the second use of `centred`
    dcentred = dcentred + dsquared * 2 * centred
    # centred = x - mean
    dx = dcentred
    dmean = -dcentred.sum(dim=0)
    # mean = x.mean(dim=0): the second use of `x`
    dx = dx + dmean / N
    return dx, dgain, dbias


def batch_norm(x: Tensor, gain: Tensor, bias: Tensor) -> tuple[Tensor, Saved]:
    """The same as `batch_norm_steps`: (N, D), (D,), (D,) -> (N, D)."""
    normalised, inverse = _normalise(x, dim=0)
    return gain * normalised + bias, (normalised, inverse, gain)


def batch_norm_backward(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor, Tensor]:
    """The steps of `batch_norm_steps_backward` drawn together: (N, D) -> dx (N, D), dgain (D,), dbias (D,).

    With n for `normalised` and g = dy gain, the gradient that reaches n, the steps say, feature by feature:

        dvariance = -inverse^3 / 2  sum(g centred)      = -inverse^2 / 2  sum(g n)      since centred = n / inverse
        dcentred  = g inverse + 2 centred dvariance / N = inverse (g - n mean(g n))
        dx        = dcentred - mean(dcentred)           = inverse (g - mean(g) - n mean(g n))   since mean(n) = 0

    So the gradient loses its mean, and its part along n: to shift or to stretch the whole batch would change nothing,
    so nothing asks for it. (The last is exact up to EPSILON, which makes n a little shorter than it would be.)

    Source: Ioffe and Szegedy 2015, section 3 (its six formulas); Karpathy, makemore part 4, exercise 3.
    """
    normalised, inverse, gain = saved
    return _normalise_backward(dy * gain, normalised, inverse, dim=0), (dy * normalised).sum(dim=0), dy.sum(dim=0)


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor) -> tuple[Tensor, Saved]:
    """Each row brought to mean 0 and variance 1 over its own features: (..., D), (D,), (D,) -> (..., D).

    No row sees another, so a step needs neither the batch nor the future, and training and generation do the same.

    Source: Ba, Kiros and Hinton 2016, Layer Normalization, section 3.
    """
    normalised, inverse = _normalise(x, dim=-1)
    return gain * normalised + bias, (normalised, inverse, gain)


def layer_norm_backward(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor, Tensor]:
    """(..., D) -> dx (..., D), dgain (D,), dbias (D,).

    `batch_norm_backward` with the means taken over a row's features: x, mean and variance stand in the same relation.
    Gain and bias still belong to features and are shared by all rows, so theirs are still sums over rows.
    """
    normalised, inverse, gain = saved
    dgain, dbias = (dy * normalised).flatten(0, -2).sum(dim=0), dy.flatten(0, -2).sum(dim=0)
    return _normalise_backward(dy * gain, normalised, inverse, dim=-1), dgain, dbias


def _normalise(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """-> x at mean 0 and variance 1 along `dim`, and 1 / (its deviation), that axis kept."""
    centred = x - x.mean(dim=dim, keepdim=True)
    inverse = ((centred * centred).mean(dim=dim, keepdim=True) + EPSILON) ** -0.5
    return centred * inverse, inverse


def _normalise_backward(dy: Tensor, normalised: Tensor, inverse: Tensor, dim: int) -> Tensor:
    """inverse (dy - mean(dy) - normalised mean(dy normalised)); derived in `batch_norm_backward`."""
    along = (dy * normalised).mean(dim=dim, keepdim=True)
    return inverse * (dy - dy.mean(dim=dim, keepdim=True) - normalised * along)
