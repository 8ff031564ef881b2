"""Batch norm, step by step and as one formula, and layer norm, the same formula along the other axis."""

from torch import Tensor

from .basic import Saved

#: Added to variances; torch's own default.
EPSILON = 1e-5


def batch_norm_steps(x: Tensor, gain: Tensor, bias: Tensor) -> tuple[Tensor, Saved]:
    """Apply batch norm one operation at a time: (N, D), (D,), (D,) -> (N, D).

    Each feature is normalised to mean 0 and variance 1 over the batch, then scaled and shifted by learned parameters.

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
    """Compute dx (N, D), dgain (D,) and dbias (D,) from dy (N, D): the lines of the forward pass in reverse.

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
    """Apply batch norm, as `batch_norm_steps`: (N, D), (D,), (D,) -> (N, D)."""
    normalised, inverse = _normalise(x, dim=0)
    return gain * normalised + bias, (normalised, inverse, gain)


def batch_norm_backward(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor, Tensor]:
    """Compute dx (N, D), dgain (D,) and dbias (D,) from dy (N, D), as one formula.

    With n = `normalised` and g = dy gain, the gradient of n, `batch_norm_steps_backward` computes for each feature:

        dvariance = -inverse^3 / 2  sum(g centred)      = -inverse^2 / 2  sum(g n)      since centred = n / inverse
        dcentred  = g inverse + 2 centred dvariance / N = inverse (g - n mean(g n))
        dx        = dcentred - mean(dcentred)           = inverse (g - mean(g) - n mean(g n))   since mean(n) = 0

    So the mean of the gradient and its component along n are removed: shifting or scaling the whole batch would not
    change the output. (For scaling, this is exact up to EPSILON.)

    Source: Ioffe and Szegedy 2015, section 3 (its six formulas); Karpathy, makemore part 4, exercise 3.
    """
    normalised, inverse, gain = saved
    return _normalise_backward(dy * gain, normalised, inverse, dim=0), (dy * normalised).sum(dim=0), dy.sum(dim=0)


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor) -> tuple[Tensor, Saved]:
    """Normalise each row to mean 0 and variance 1 over its features: (..., D), (D,), (D,) -> (..., D).

    Rows are independent, so a step depends neither on the batch nor on the future, in training and in generation.

    Source: Ba, Kiros and Hinton 2016, Layer Normalization, section 3.
    """
    normalised, inverse = _normalise(x, dim=-1)
    return gain * normalised + bias, (normalised, inverse, gain)


def layer_norm_backward(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor, Tensor]:
    """Compute dx (..., D), dgain (D,) and dbias (D,) from dy (..., D).

    As in `batch_norm_backward`, but with means over the features of a row. Gain and bias still belong to features and
    are shared by all rows, so their gradients are still sums over rows.
    """
    normalised, inverse, gain = saved
    dgain, dbias = (dy * normalised).flatten(0, -2).sum(dim=0), dy.flatten(0, -2).sum(dim=0)
    return _normalise_backward(dy * gain, normalised, inverse, dim=-1), dgain, dbias


def _normalise(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return x normalised to mean 0 and variance 1 along `dim`, and 1 / deviation with that axis kept."""
    centred = x - x.mean(dim=dim, keepdim=True)
    inverse = ((centred * centred).mean(dim=dim, keepdim=True) + EPSILON) ** -0.5
    return centred * inverse, inverse


def _normalise_backward(dy: Tensor, normalised: Tensor, inverse: Tensor, dim: int) -> Tensor:
    """Compute inverse (dy - mean(dy) - normalised mean(dy normalised)), as derived in `batch_norm_backward`."""
    along = (dy * normalised).mean(dim=dim, keepdim=True)
    return inverse * (dy - dy.mean(dim=dim, keepdim=True) - normalised * along)
