"""Embedding, linear layer, tanh, relu and cross-entropy."""

from torch import Tensor

#: What a forward saves for its backward.
Saved = tuple


def embedding(table: Tensor, codes: Tensor) -> tuple[Tensor, Saved]:
    """Look up rows of a table: (V, D) and codes (...) int64 in [0, V) -> (..., D)."""
    return table[codes], (codes, len(table))


def embedding_backward(dy: Tensor, saved: Saved) -> Tensor:
    """Compute dtable (V, D) from dy (..., D).

    y[i] = table[codes[i]] is a copy, so the slope is 1 for the row looked up and 0 for all others. The gradients of a
    row that was looked up several times are summed (rule: used twice). A row that was not looked up gets 0, so a code
    that does not occur in the training files keeps its random initial vector.
    """
    codes, num_rows = saved
    dtable = dy.new_zeros(num_rows, dy.shape[-1])
    return dtable.index_add_(0, codes.flatten(), dy.reshape(-1, dy.shape[-1]))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Saved]:
    """Compute x weight' + bias: (..., D_in), (D_out, D_in), (D_out,) or None -> (..., D_out)."""
    y = x @ weight.T
    return y if bias is None else y + bias, (x, weight, bias is not None)


def linear_backward(dy: Tensor, saved: Saved) -> tuple[Tensor, ...]:
    """Compute dx (..., D_in), dweight (D_out, D_in), and dbias (D_out,) if there is a bias, from dy (..., D_out).

    For one row, y[o] = sum over i of weight[o, i] x[i] + bias[o]. Slope by slope:

        y[o] in x[i]          weight[o, i]      dx[i]         = sum over o of dy[o] weight[o, i]
        y[o] in weight[o, i]  x[i]              dweight[o, i] = dy[o] x[i], summed over rows: each used the weight
        y[o] in bias[o]       1                 dbias[o]      = dy[o],      summed over rows

    As matrices: dx = dy weight, dweight = dy' x. The shapes allow no other product.
    """
    x, weight, has_bias = saved
    rows = dy.reshape(-1, dy.shape[-1])  # (N, D_out)
    gradients = dy @ weight, rows.T @ x.reshape(-1, x.shape[-1])
    return (*gradients, rows.sum(dim=0)) if has_bias else gradients


def tanh(x: Tensor) -> tuple[Tensor, Saved]:
    """Apply tanh: (...) -> (...) in (-1, 1)."""
    y = x.tanh()
    return y, (y,)


def tanh_backward(dy: Tensor, saved: Saved) -> Tensor:
    """Compute dx = dy (1 - y^2).

    tanh = sinh / cosh, so its slope is (cosh^2 - sinh^2) / cosh^2 = 1 - tanh^2: 1 at 0, and almost 0 where y is near 1
    or -1. A saturated unit passes no gradient, whatever dy is.
    """
    (y,) = saved
    return dy * (1 - y * y)


def relu(x: Tensor) -> tuple[Tensor, Saved]:
    """Set negative values to 0: (...) -> (...)."""
    y = x.clamp(min=0)
    return y, (y,)


def relu_backward(dy: Tensor, saved: Saved) -> Tensor:
    """Compute dx: dy where x > 0 (slope 1), 0 where x < 0 (slope 0), and 0 at x = 0 by convention."""
    (y,) = saved
    return dy * (y > 0)


def cross_entropy(logits: Tensor, target: Tensor) -> tuple[Tensor, Saved]:
    """Compute the mean of -ln softmax(logits)[target], in nats: (..., V), (...) int64 -> a scalar.

    A target of V is a hole (such as padding) and is not counted; if all are holes, the mean is 0.
    """
    rows, target = logits.flatten(0, -2), target.flatten()[:, None]  # (N, V), (N, 1)
    seen = target < rows.shape[1]
    picked = target.clamp(max=rows.shape[1] - 1)
    rows = rows - rows.amax(dim=1, keepdim=True)  # the same odds, without overflow
    log_odds = rows - rows.exp().sum(dim=1, keepdim=True).log()
    share = seen / seen.sum().clamp(min=1).to(logits.dtype)  # (N, 1): 1 / (number of codes), 0 in holes
    return -(log_odds.gather(1, picked) * share).sum(), (log_odds, picked, share, logits.shape)


def cross_entropy_backward(dy: Tensor | float, saved: Saved) -> Tensor:
    """Compute dlogits (..., V) from dy, a number, which is 1.0 if this is the loss itself.

    For one row with target t, L = -ln(exp(z[t]) / sum over j of exp(z[j])) = ln(sum over j of exp(z[j])) - z[t]. The
    first part's slope in z[j] is exp(z[j]) / sum = p[j], the second's is 1 where j = t:

        dz[j] = p[j] - (1 if j = t else 0)

    Probabilities minus one-hot: each wrong code is pushed down in proportion to its probability, the right one is
    pulled up by what it lacks, and a row sums to zero. The mean over rows multiplies by 1 / N.

    Source: Bishop 2006, Pattern Recognition and Machine Learning, section 4.3.4; Karpathy, makemore part 4, exercise 2.
    """
    log_odds, picked, share, shape = saved
    slope = log_odds.exp()
    slope.scatter_add_(1, picked, slope.new_full(picked.shape, -1.0))
    return (slope * (share * dy)).view(shape)
