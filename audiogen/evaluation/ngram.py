"""Models that only count: unigram and bigram, with the smoothing chosen on the training counts themselves."""

from collections.abc import Iterable

import numpy as np

#: Codes of the largest bigram that is counted: its table (V, V) takes 128 MiB, and as much for each thing made of it.
LARGEST_TABLE = 4096


class Unigram:
    """How often each of V codes occurs, with one added to every count."""

    def __init__(self, codebook_size: int):
        self.counts = np.zeros(codebook_size, dtype=np.int64)

    def add(self, codes: np.ndarray) -> None:
        """Counts one sequence (T,) of codes in [0, V)."""
        self.counts += np.bincount(codes, minlength=len(self.counts))

    def probabilities(self) -> np.ndarray:
        """(V,) float64."""
        counts = self.counts + 1.0
        return counts / counts.sum()

    def nats(self, sequences: Iterable[np.ndarray]) -> float:
        """The negative log-likelihood of sequences (T,) of codes."""
        log = np.log(self.probabilities())
        return -sum(log[codes].sum() for codes in sequences)


class Bigram:
    """How often each code follows each other one: (V, V) counts over a unigram.

    p(b | a) = (count(a, b) + strength p(b)) / (count(a) + strength): a row that was seen often speaks for itself, a row
    that was not falls back on the unigram (MacKay and Peto 1995, A Hierarchical Dirichlet Language Model).
    """

    def __init__(self, codebook_size: int):
        self.unigram = Unigram(codebook_size)
        self.counts = np.zeros((codebook_size, codebook_size), dtype=np.int64)

    def add(self, codes: np.ndarray) -> None:
        """Counts one sequence (T,) of codes in [0, V)."""
        self.unigram.add(codes)
        np.add.at(self.counts, (codes[:-1], codes[1:]), 1)

    def strength(self) -> float:
        """The smoothing that predicts each training pair best when that pair is left out of the counts."""
        prior, pairs = self.unigram.probabilities(), np.nonzero(self.counts)
        seen, rows = self.counts[pairs], self.counts.sum(axis=1)[pairs[0]]
        candidates = 2.0 ** np.arange(-4, 14)
        left_out = [np.sum(seen * np.log((seen - 1 + s * prior[pairs[1]]) / (rows - 1 + s))) for s in candidates]
        return float(candidates[int(np.argmax(left_out))])

    def probabilities(self) -> np.ndarray:
        """(V, V) float64, a row the distribution after one code."""
        strength, prior = self.strength(), self.unigram.probabilities()
        return (self.counts + strength * prior) / (self.counts.sum(axis=1, keepdims=True) + strength)

    def with_added(self, added: float) -> np.ndarray:
        """(V, V) float64, the plainest smoothing: p(b | a) = (count(a, b) + added) / (count(a) + added V).

        Every row is drawn towards the uniform one, and a row that was never seen is just that. `added` is 0 or more;
        1 is Laplace's rule, the rest Lidstone's (Chen and Goodman 1998, An Empirical Study of Smoothing, section 2.1).
        """
        counts = self.counts + float(added)
        counts[counts.sum(axis=1) == 0] = 1.0
        return counts / counts.sum(axis=1, keepdims=True)

    def nats(self, sequences: Iterable[np.ndarray]) -> float:
        """The negative log-likelihood of sequences (T,) of codes; the first code of each is the unigram's."""
        first, following = np.log(self.unigram.probabilities()), np.log(self.probabilities())
        return -sum(first[codes[:1]].sum() + following[codes[:-1], codes[1:]].sum() for codes in sequences)


def cross_entropy(counts: np.ndarray, table: np.ndarray) -> float:
    """Bits per pair that a table (V, V) of p(b | a) needs for pairs counted in (V, V).

    Infinite where a pair did occur that the table holds for impossible. With the table that the same counts make it is
    their conditional entropy, the least that any table can reach on them.
    """
    seen = counts > 0
    with np.errstate(divide="ignore"):
        return float(-(counts[seen] * np.log2(table[seen])).sum() / counts.sum())


def row_entropies(table: np.ndarray) -> np.ndarray:
    """(V,) bits from a table (V, V) of p(b | a): how open it is what follows each code, from 0 to log2(V).

    As open as a choice among 2 ** entropy codes that are equally likely (the row's perplexity).
    """
    return -(table * np.log2(table, out=np.zeros_like(table), where=table > 0)).sum(axis=1)


def held_out_counts(training: Iterable, held_out: Iterable, num_codebooks: int, codebook_size: int) -> dict[str, float]:
    """Bits per held-out code of both models counted on the training sequences.

    Each of the K rows has models of its own, and a sequence's first code is the unigram's in both. One row is counted
    at a time, so that no more than one (V, V) table is ever held; beyond `LARGEST_TABLE` codes there is no bigram.

    Args:
        training, held_out: re-iterable sequences of codes (K, T), tensors or arrays.
    """
    kinds = {"unigram": Unigram} | ({"bigram": Bigram} if codebook_size <= LARGEST_TABLE else {})
    nats = dict.fromkeys(kinds, 0.0)
    for row in range(num_codebooks):
        models = {name: kind(codebook_size) for name, kind in kinds.items()}
        for codes in training:
            for model in models.values():
                model.add(np.asarray(codes[row]))
        for name, model in models.items():
            nats[name] += model.nats(np.asarray(codes[row]) for codes in held_out)
    entries = num_codebooks * sum(codes.shape[1] for codes in held_out)
    return {name: float(value / (entries * np.log(2))) for name, value in nats.items()}
