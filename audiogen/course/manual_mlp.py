"""A network trained by hand-written backward passes alone: makemore's MLP with batch norm, over symbols of any kind."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from . import backward as b

#: Rows that are evaluated at once; bounds memory, changes nothing.
ROWS = 16_384


def windows(words: Iterable[Tensor], context: int, boundary: int) -> tuple[Tensor, Tensor]:
    """Every symbol of every word with the `context` symbols before it.

    A word begins after nothing but boundaries and ends with one, which is predicted like the rest. With context 3 and
    the boundary "." the word "ada" is

        x  ...  ..a  .ad  ada
        y   a    d    a    .

    Args:
        words: int64 (T,) each: letters of a name, codes of a recording.
        boundary: a symbol that stands in no word.

    Returns:
        x (N, context) and y (N,), int64, N the sum of T + 1.
    """
    x, y = [], []
    for word in words:
        padded = F.pad(word, (context, 1), value=boundary)
        x.append(padded[:-1].unfold(0, context, 1))  # (T + 1, context)
        y.append(padded[context:])
    return torch.cat(x), torch.cat(y)


class MLPByHand:
    """The next symbol from the last few: embedding, linear, batch norm, tanh, linear, cross-entropy.

        model = MLPByHand(num_symbols=27)
        loss = model.loss(x, y)                     # forward, of one batch
        model.backward()                            # -> model.gradients
        model.step(0.1)                             # plain gradient descent
        model.nll(x, y, model.statistics(all_x))    # evaluation

    The hidden layer has no bias: batch norm would take it out again, and its gradient is zero.

    Source: Karpathy, makemore parts 3 and 4 (initialisation and architecture); Bengio et al. 2003, A Neural
    Probabilistic Language Model.

    Args:
        num_symbols: V, the boundary included.
        context: symbols that are seen.
        dim: of a symbol's vector.
        hidden_dim: tanh units.
        seed: of the first weights: in every dtype the same but for rounding.

    Attributes:
        parameters, gradients: name -> tensor, both in the order of the forward.
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
            # Small, so that training starts from nearly equal odds: a loss of ln V.
            "out_weight": normal(num_symbols, hidden_dim, std=0.1 / math.sqrt(hidden_dim)),
            "out_bias": torch.zeros(num_symbols, dtype=dtype),
        }
        self.gradients: dict[str, Tensor] = {}
        self._saved: list = []

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The batch's mean nats: (N, context), (N,) int64 -> a scalar. Keeps what `backward` needs."""
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
        """The gradients of the last `loss`, which are `gradients` too: the forward's lines, from the last to the first.

        Raises:
            RuntimeError: there was no `loss` since the last `backward`.
        """
        if not self._saved:
            raise RuntimeError("backward: goes back through a loss; call loss(x, y) first")
        of_embedding, of_hidden, of_norm, of_tanh, of_out, of_loss = self._saved
        self._saved = []
        g = dict.fromkeys(self.parameters)
        dlogits = b.cross_entropy_backward(1.0, of_loss)
        dactive, g["out_weight"], g["out_bias"] = b.linear_backward(dlogits, of_out)
        dnormalised = b.tanh_backward(dactive, of_tanh)
        dsums, g["gain"], g["bias"] = b.batch_norm_backward(dnormalised, of_norm)
        dvectors, g["hidden_weight"] = b.linear_backward(dsums, of_hidden)
        g["embedding"] = b.embedding_backward(dvectors.view(len(dvectors), self.context, -1), of_embedding)
        self.gradients = g
        return g

    def step(self, learning_rate: float) -> None:
        """Moves every parameter against its gradient."""
        for name, parameter in self.parameters.items():
            parameter.sub_(self.gradients[name], alpha=learning_rate)

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (hidden_dim,) of the hidden sums over all of x (N, context), with the weights of now.

        For evaluation: from the training set, so that a row is judged without the other rows of its batch. Summed up in
        float64. (Ioffe and Szegedy 2015, section 3.1; makemore part 4 does so too, in the place of a running mean.)
        """
        total = square = 0.0
        for rows in x.split(ROWS):
            sums = self._sums(rows).double()
            total, square = total + sums.sum(dim=0), square + (sums * sums).sum(dim=0)
        mean = total / len(x)
        dtype = self.parameters["gain"].dtype
        return mean.to(dtype), (square / len(x) - mean * mean).to(dtype)

    def logits(self, x: Tensor, statistics: tuple[Tensor, Tensor]) -> Tensor:
        """(N, context) -> (N, V), each row by itself."""
        p, (mean, variance) = self.parameters, statistics
        normalised = (self._sums(x) - mean) / (variance + b.EPSILON).sqrt()
        return b.linear((p["gain"] * normalised + p["bias"]).tanh(), p["out_weight"], p["out_bias"])[0]

    def nll(self, x: Tensor, y: Tensor, statistics: tuple[Tensor, Tensor]) -> float:
        """The mean nats of a whole set."""
        nats = sum(
            float(b.cross_entropy(self.logits(rows, statistics), targets)[0]) * len(rows)
            for rows, targets in zip(x.split(ROWS), y.split(ROWS), strict=True)
        )
        return nats / len(x)

    def _sums(self, x: Tensor) -> Tensor:
        vectors = b.embedding(self.parameters["embedding"], x)[0]
        return b.linear(vectors.flatten(1), self.parameters["hidden_weight"])[0]
