"""A Fourier transform of real matrix products, for exported graphs, which have no complex numbers."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RealFourier(nn.Module):
    """Transform real windows of N samples to N // 2 + 1 bins and back, as `torch.fft.rfft` and `irfft` do.

    With N = a b, sample n = b n1 + n2 and bin k = k1 + a k2, the transform is two small ones:

        X[k1, k2] = sum over n2 of e(-n2 k2 / b) e(-n2 k1 / N) sum over n1 of e(-n1 k1 / a) x[n1, n2]

    where e(u) = exp(2 pi i u). The bins N - k of a real window are conjugates of the bins k, so k1 goes to a / 2 only,
    and the rest is looked up. A window of 2,048 samples takes 0.8 million operations and 0.1 MB of constants; the
    matrix of the whole transform would take 8.4 million and 17 MB.

    Source: Cooley and Tukey 1965, An Algorithm for the Machine Calculation of Complex Fourier Series.

    Args:
        length: N.
        dtype: float32, or float64 for windows whose loudest bins would hide the others.
    """

    first: Tensor
    first_back: Tensor
    twiddles: Tensor
    second: Tensor
    second_back: Tensor
    bins: Tensor
    signs: Tensor
    places: Tensor
    signs_back: Tensor

    def __init__(self, length: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        N = length
        # a is even if N is, so that bin N / 2 has a place.
        b = max(b for b in range(1, math.isqrt(N) + 1) if N % b == 0 and (N // b % 2 == 0 or N % 2))
        a, self.length = N // b, N
        self.shape = a, b
        k1, n1, n2 = torch.arange(a // 2 + 1), torch.arange(a), torch.arange(b)
        first = torch.cat(_waves(k1[:, None] * n1, a))  # (2 (a // 2 + 1), a)
        counts = torch.where((k1 == 0) | (2 * k1 == a), 1, 2).repeat(2)[:, None] / N  # with their conjugates
        cos, sin = _waves(n2[:, None] * n2, b)  # (b, b)
        second = torch.cat([torch.cat([cos, sin], dim=1), torch.cat([-sin, cos], dim=1)])
        # Where each bin lies among the (k1, k2), itself or its conjugate; and the other way round.
        k = torch.arange(N // 2 + 1)
        mirrored = k % a > a // 2
        found = torch.where(mirrored, N - k, k)
        place = found % a * 2 * b + found // a
        back = k1[:, None] + a * n2  # (a // 2 + 1, b)
        for name, value in {
            "first": first,
            "first_back": (first * counts).T.contiguous(),
            "twiddles": torch.stack(_waves(k1[:, None] * n2, N)),  # (2, a // 2 + 1, b)
            "second": second,
            "second_back": second.T.contiguous(),
            "bins": torch.stack([place, place + b]),
            "signs": torch.where(mirrored, -1.0, 1.0),
            "places": torch.minimum(back, N - back).flatten(),
            "signs_back": torch.where(back > N // 2, -1.0, 1.0).flatten(),
        }.items():
            self.register_buffer(name, value.to(dtype) if value.is_floating_point() else value, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Transform windows (W, N) to the real and the imaginary parts of their bins, (W, N // 2 + 1) each."""
        a, b = self.shape
        re, im = (self.first @ x.reshape(-1, a, b)).chunk(2, dim=1)  # (W, a // 2 + 1, b)
        cos, sin = self.twiddles.unbind()
        y = torch.cat([re * cos - im * sin, im * cos + re * sin], dim=2) @ self.second
        y = y.flatten(1)  # (W, (a // 2 + 1) 2 b)
        return y.index_select(1, self.bins[0]), y.index_select(1, self.bins[1]) * self.signs

    def inverse(self, re: Tensor, im: Tensor) -> Tensor:
        """Transform bins (W, N // 2 + 1) back to windows (W, N)."""
        a, b = self.shape
        re = re.index_select(1, self.places).view(-1, a // 2 + 1, b)
        im = (im.index_select(1, self.places) * self.signs_back).view(-1, a // 2 + 1, b)
        re, im = (torch.cat([re, im], dim=2) @ self.second_back).chunk(2, dim=2)
        cos, sin = self.twiddles.unbind()
        y = torch.cat([re * cos + im * sin, im * cos - re * sin], dim=1)
        return (self.first_back @ y).flatten(1)  # (W, a, b) -> (W, N)


def windows(wav: Tensor, overlap: int) -> Tensor:
    """Cut sound into windows that overlap: hops (n, hop) -> (n - overlap + 1, overlap * hop)."""
    count = wav.shape[0] - overlap + 1
    return torch.cat([wav[i : i + count] for i in range(overlap)], dim=1)


def overlap_add(pieces: Tensor, overlap: int) -> Tensor:
    """Add windows that overlap: (n, overlap * hop) -> hops (n + overlap - 1, hop)."""
    parts = pieces.chunk(overlap, dim=1)
    wav = F.pad(parts[0], (0, 0, 0, overlap - 1))
    for i, part in enumerate(parts[1:], 1):
        wav = wav + F.pad(part, (0, 0, i, overlap - 1 - i))
    return wav


def _waves(numbers: Tensor, period: int) -> tuple[Tensor, Tensor]:
    """Return the real and the imaginary part of exp(-2 pi i numbers / period) in float64."""
    angles = 2 * math.pi / period * (numbers % period).double()
    return angles.cos(), -angles.sin()
