"""Models that only count: unigram and bigram, with the smoothing chosen on the training counts themselves."""

from collections.abc import Iterable

import numpy as np


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
        size = len(self.counts)
        self.counts += np.bincount(codes[:-1] * size + codes[1:], minlength=size * size).reshape(size, size)

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


def held_out_counts(training: Iterable, held_out: Iterable, num_codebooks: int, codebook_size: int
                    ) -> dict[str, float]:
    """Bits per held-out code of both models counted on the training sequences.

    Each of the K rows has models of its own, and a sequence's first code is the unigram's in both. One row is counted
    at a time, so that no more than one (V, V) table is ever held.

    Args:
        training, held_out: re-iterable sequences of codes (K, T), tensors or arrays.
    """
    unigram_nats = bigram_nats = 0.0
    entries = 0
    for row in range(num_codebooks):
        model = Bigram(codebook_size)
        for codes in training:
            model.add(np.asarray(codes[row]))
        first, following = np.log(model.unigram.probabilities()), np.log(model.probabilities())
        for codes in held_out:
            codes = np.asarray(codes[row])
            unigram_nats -= first[codes].sum()
            bigram_nats -= first[codes[:1]].sum() + following[codes[:-1], codes[1:]].sum()
            entries += len(codes)
    bits = entries * np.log(2)
    return {"unigram": float(unigram_nats / bits), "bigram": float(bigram_nats / bits)}
