"""A network trained with hand-written backward passes: makemore's MLP with batch norm, on symbols of any kind."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import backward as b

#: Rows evaluated at a time, which bounds memory.
ROWS = 16_384


def windows(words: Iterable[Tensor], context: int, boundary: int) -> tuple[Tensor, Tensor]:
    """Return every symbol of every word, with the `context` symbols before it.

    A word is preceded by boundaries and ends with one, which is predicted like the rest. With context 3 and the
    boundary ".", the word "ada" is

        x  ...  ..a  .ad  ada
        y   a    d    a    .

    Args:
        words: int64 (T,) each, such as letters of a name or codes of a recording.
        context: number of symbols before each.
        boundary: a symbol that occurs in no word.

    Returns:
        x (N, context) and y (N,), int64, N being the sum of T + 1.
    """
    x, y = [], []
    for word in words:
        padded = F.pad(word, (context, 1), value=boundary)
        x.append(padded[:-1].unfold(0, context, 1))  # (T + 1, context)
        y.append(padded[context:])
    return torch.cat(x), torch.cat(y)


class MLPByHand:
    """Predicts the next symbol from the last few: embedding, linear, batch norm, tanh, linear, cross-entropy.

        model = MLPByHand(num_symbols=27)
        loss = model.loss(x, y)                     # forward, of one batch
        model.backward()                            # -> model.gradients
        model.step(0.1)                             # plain gradient descent
        model.nll(x, y, model.statistics(all_x))    # evaluation

    The hidden layer has no bias, since batch norm would remove it.

    Source: Karpathy, makemore parts 3 and 4 (initialisation and architecture); Bengio et al. 2003, A Neural
    Probabilistic Language Model.

    Args:
        num_symbols: V, including the boundary.
        context: number of symbols in the input.
        dim: dimension of a symbol's vector.
        hidden_dim: number of tanh units.
        seed: seed of the initial weights, which are the same in every dtype up to rounding.
        dtype: type of the weights.

    Attributes:
        parameters, gradients: tensors by name, both in the order of the forward pass.
    """

    def __init__(
        self,
        num_symbols: int,
        context: int = 3,
        dim: int = 10,
        hidden_dim: int = 200,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, std: float = 1.0) -> Tensor:
            return (std * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)

        self.context = context
        self.parameters = {
            "embedding": normal(num_symbols, dim),
            "hidden_weight": normal(hidden_dim, context * dim, std=5 / 3 / math.sqrt(context * dim)),
            "gain": torch.ones(hidden_dim, dtype=dtype),
            "bias": torch.zeros(hidden_dim, dtype=dtype),
            # Small, so that training starts from a nearly uniform distribution: a loss of ln V.
            "out_weight": normal(num_symbols, hidden_dim, std=0.1 / math.sqrt(hidden_dim)),
            "out_bias": torch.zeros(num_symbols, dtype=dtype),
        }
        self.gradients: dict[str, Tensor] = {}
        self._saved: list = []

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute the mean loss in nats: (N, context), (N,) int64 -> a scalar. Saves what `backward` needs."""
        p = self.parameters
        vectors, of_embedding = b.embedding(p["embedding"], x)  # (N, context, dim)
        sums, of_hidden = b.linear(vectors.flatten(1), p["hidden_weight"])  # (N, hidden_dim)
        normalised, of_norm = b.batch_norm(sums, p["gain"], p["bias"])
        active, of_tanh = b.tanh(normalised)
        logits, of_out = b.linear(active, p["out_weight"], p["out_bias"])  # (N, V)
        loss, of_loss = b.cross_entropy(logits, y)
        self._saved = [of_embedding, of_hidden, of_norm, of_tanh, of_out, of_loss]
        return loss

    def backward(self) -> dict[str, Tensor]:
        """Compute the gradients of the last `loss`, and set `gradients`: the lines of the forward pass in reverse.

        Raises:
            RuntimeError: `loss` was not called since the last `backward`.
        """
        if not self._saved:
            raise RuntimeError("backward: there is no loss to differentiate; call loss(x, y) first")
        of_embedding, of_hidden, of_norm, of_tanh, of_out, of_loss = self._saved
        self._saved = []
        g: dict[str, Any] = dict.fromkeys(self.parameters)
        dlogits = b.cross_entropy_backward(1.0, of_loss)
        dactive, g["out_weight"], g["out_bias"] = b.linear_backward(dlogits, of_out)
        dnormalised = b.tanh_backward(dactive, of_tanh)
        dsums, g["gain"], g["bias"] = b.batch_norm_backward(dnormalised, of_norm)
        dvectors, g["hidden_weight"] = b.linear_backward(dsums, of_hidden)
        g["embedding"] = b.embedding_backward(dvectors.view(len(dvectors), self.context, -1), of_embedding)
        self.gradients = g
        return g

    def step(self, learning_rate: float) -> None:
        """Take one step of gradient descent."""
        for name, parameter in self.parameters.items():
            parameter.sub_(self.gradients[name], alpha=learning_rate)

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute mean and variance (hidden_dim,) of the hidden layer before batch norm, over all of x (N, context).

        For evaluation, they are computed on the training set with the current weights, so that the result for a row
        does not depend on its batch. Sums are in float64. (Ioffe and Szegedy 2015, section 3.1; makemore part 4 also
        does this instead of running means.)
        """
        total = square = torch.zeros((), dtype=torch.float64)
        for rows in x.split(ROWS):
            sums = self._sums(rows).double()
            total, square = total + sums.sum(dim=0), square + (sums * sums).sum(dim=0)
        mean = total / len(x)
        dtype = self.parameters["gain"].dtype
        return mean.to(dtype), (square / len(x) - mean * mean).to(dtype)

    def logits(self, x: Tensor, statistics: tuple[Tensor, Tensor]) -> Tensor:
        """Compute logits for evaluation, independently for each row: (N, context) -> (N, V)."""
        p, (mean, variance) = self.parameters, statistics
        normalised = (self._sums(x) - mean) / (variance + b.EPSILON).sqrt()
        return b.linear((p["gain"] * normalised + p["bias"]).tanh(), p["out_weight"], p["out_bias"])[0]

    def nll(self, x: Tensor, y: Tensor, statistics: tuple[Tensor, Tensor]) -> float:
        """Compute the mean loss of a whole set in nats."""
        nats = sum(
            float(b.cross_entropy(self.logits(rows, statistics), targets)[0]) * len(rows)
            for rows, targets in zip(x.split(ROWS), y.split(ROWS), strict=True)
        )
        return nats / len(x)

    def _sums(self, x: Tensor) -> Tensor:
        vectors = b.embedding(self.parameters["embedding"], x)[0]
        return b.linear(vectors.flatten(1), self.parameters["hidden_weight"])[0]
