"""Find copies of a recording by their samples: in another container, with other tags, at another bit depth."""

import hashlib
from collections.abc import Hashable, Sequence

import numpy as np

_SIZE, _PERIOD = 32, 1 << 16
_RNG = np.random.default_rng(0)
_BUCKETS, _SIGNS = _RNG.integers(0, _SIZE, _PERIOD), _RNG.choice([-1.0, 1.0], _PERIOD)
#: Relative distance below which sounds are copies: the difference is 40 dB below the sound. Rounding to 16 bits gives
#: -60 dB or less for all but the faintest sounds; two takes of one word, or a lossy copy, are much further apart.
_NEAR = 1e-2


class Fingerprint:
    """A digest and a sketch of samples that are added block by block, to find copies.

    Digests are equal if only the container, the tags or unused bits differ. The sketch (32,) is a random projection
    (sums of samples with random signs), so distances between sketches approximate those between sounds. It also finds
    copies that were rounded to fewer bits, or scaled by 32767 instead of 32768.
    """

    def __init__(self) -> None:
        self._hash, self._count, self._total = hashlib.sha256(), 0, 0.0
        self._sums, self._ones = np.zeros(_SIZE), np.zeros(_SIZE)

    def add(self, samples: np.ndarray) -> None:
        """Add the next samples (n,) float64 in [-1, 1]."""
        self._hash.update(np.rint(samples * 2**15).astype("<i4").data)
        places = np.arange(self._count, self._count + len(samples)) % _PERIOD
        buckets, signs = _BUCKETS[places], _SIGNS[places]
        self._sums += np.bincount(buckets, samples * signs, _SIZE)
        self._ones += np.bincount(buckets, signs, _SIZE)
        self._total += float(samples.sum())
        self._count += len(samples)

    def digest(self, sample_rate: int) -> str:
        """Return the SHA-256, in hexadecimal, of the samples rounded to 16 bits and of their rate in Hz."""
        return hashlib.sha256(self._hash.digest() + str(sample_rate).encode()).hexdigest()

    def sketch(self) -> np.ndarray:
        """Return the sketch (32,) float32 of the samples minus their mean, which would mask faint differences."""
        return (self._sums - self._total / max(self._count, 1) * self._ones).astype(np.float32)


def find_copies(sketches: Sequence[np.ndarray], formats: Sequence[Hashable]) -> dict[int, int]:
    """Return {position of a copy: position of the first sound that it is a copy of}.

    Args:
        sketches: the sketch of each sound.
        formats: for each sound, what copies have in common: its length and sample rate.
    """
    groups, first = {}, {}
    for place, format in enumerate(formats):
        groups.setdefault(format, []).append(place)
    for places in groups.values():
        matrix = np.stack([sketches[place] for place in places])  # (n, 32)
        norms = np.linalg.norm(matrix, axis=1)
        order = np.argsort(norms, kind="stable")  # copies have nearly equal norms, so few pairs are compared
        matrix, norms = matrix[order], norms[order]
        ends = np.searchsorted(norms, norms * (1 + _NEAR), "right")
        for i, end in enumerate(ends):
            near = np.linalg.norm(matrix[i + 1 : end] - matrix[i], axis=1) < _NEAR * norms[i]
            for j in i + 1 + np.flatnonzero(near):
                one, other = sorted((places[order[i]], places[order[j]]))
                first[other] = min(first.get(other, one), first.get(one, one))
    return first
