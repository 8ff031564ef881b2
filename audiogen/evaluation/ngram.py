"""Count-based models: unigram and bigram, with smoothing chosen from the training counts."""

from collections.abc import Iterable

import numpy as np

#: Largest V for which a bigram is counted: its table (V, V) takes 128 MiB, and so does each table derived from it.
LARGEST_TABLE = 4096


class Unigram:
    """Counts of each of V codes, with add-one smoothing."""

    def __init__(self, codebook_size: int):
        self.counts = np.zeros(codebook_size, dtype=np.int64)

    def add(self, codes: np.ndarray) -> None:
        """Count one sequence (T,) of codes in [0, V)."""
        self.counts += np.bincount(codes, minlength=len(self.counts))

    def probabilities(self) -> np.ndarray:
        """Return the probability of each code: (V,) float64."""
        counts = self.counts + 1.0
        return counts / counts.sum()

    def nats(self, sequences: Iterable[np.ndarray]) -> float:
        """Return the negative log-likelihood of sequences (T,) of codes, in nats."""
        log = np.log(self.probabilities())
        return -sum(log[codes].sum() for codes in sequences)


class Bigram:
    """Counts (V, V) of pairs of codes, smoothed with a unigram.

    p(b | a) = (count(a, b) + strength p(b)) / (count(a) + strength): frequent rows rely on their own counts, rare rows
    on the unigram (MacKay and Peto 1995, A Hierarchical Dirichlet Language Model).
    """

    def __init__(self, codebook_size: int):
        self.unigram = Unigram(codebook_size)
        self.counts = np.zeros((codebook_size, codebook_size), dtype=np.int64)

    def add(self, codes: np.ndarray) -> None:
        """Count one sequence (T,) of codes in [0, V)."""
        self.unigram.add(codes)
        np.add.at(self.counts, (codes[:-1], codes[1:]), 1)

    def strength(self) -> float:
        """Return the smoothing strength with the best leave-one-out likelihood on the training pairs."""
        prior, pairs = self.unigram.probabilities(), np.nonzero(self.counts)
        seen, rows = self.counts[pairs], self.counts.sum(axis=1)[pairs[0]]
        candidates = 2.0 ** np.arange(-4, 14)
        left_out = [np.sum(seen * np.log((seen - 1 + s * prior[pairs[1]]) / (rows - 1 + s))) for s in candidates]
        return float(candidates[int(np.argmax(left_out))])

    def probabilities(self) -> np.ndarray:
        """Return p(b | a): (V, V) float64, one row per code a."""
        strength, prior = self.strength(), self.unigram.probabilities()
        return (self.counts + strength * prior) / (self.counts.sum(axis=1, keepdims=True) + strength)

    def with_added(self, added: float) -> np.ndarray:
        """Return p(b | a) = (count(a, b) + added) / (count(a) + added V), the simplest smoothing: (V, V) float64.

        Rows without counts are uniform. `added` is 0 or more: 1 is Laplace's rule, other values are Lidstone's (Chen
        and Goodman 1998, An Empirical Study of Smoothing, section 2.1).
        """
        counts = self.counts + float(added)
        counts[counts.sum(axis=1) == 0] = 1.0
        return counts / counts.sum(axis=1, keepdims=True)

    def nats(self, sequences: Iterable[np.ndarray]) -> float:
        """Return the negative log-likelihood of sequences (T,) in nats; the unigram predicts the first code of each."""
        first, following = np.log(self.unigram.probabilities()), np.log(self.probabilities())
        return -sum(first[codes[:1]].sum() + following[codes[:-1], codes[1:]].sum() for codes in sequences)


def cross_entropy(counts: np.ndarray, table: np.ndarray) -> float:
    """Return the bits per pair that a table (V, V) of p(b | a) needs for pairs with counts (V, V).

    It is infinite if a pair occurred that has probability 0. For the table made from the same counts it is their
    conditional entropy, the minimum for any table.
    """
    seen = counts > 0
    with np.errstate(divide="ignore"):
        return float(-(counts[seen] * np.log2(table[seen])).sum() / counts.sum())


def row_entropies(table: np.ndarray) -> np.ndarray:
    """Return the entropy of each row of a table (V, V) of p(b | a): (V,) in bits, from 0 to log2(V).

    The perplexity of a row, 2 ** entropy, is the equivalent number of equally likely codes.
    """
    return -(table * np.log2(table, out=np.zeros_like(table), where=table > 0)).sum(axis=1)


def held_out_counts(training: Iterable, held_out: Iterable, num_codebooks: int, codebook_size: int) -> dict[str, float]:
    """Return the bits per held-out code of a unigram and a bigram counted on the training sequences.

    Each of the K rows has its own models, and the unigram predicts the first code of a sequence in both. Rows are
    counted one at a time, so that memory holds one (V, V) table; beyond `LARGEST_TABLE` codes there is no bigram.

    Args:
        training: re-iterable sequences of codes (K, T), tensors or arrays.
        held_out: likewise.
        num_codebooks: K.
        codebook_size: V.
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
