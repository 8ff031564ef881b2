"""Distances of sets of sounds, against slow loops and closed forms."""

import math

import pytest
import torch

from audiogen.evaluation.distribution import frechet, kad, log_mel_statistics, median_distance, noise_of_spectrum


def cloud(n, dim, seed, shift=0.0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def slow_mmd(x, y, bandwidth):
    """Gretton et al. 2012, equation 3, pair by pair."""

    def kernel(a, b):
        return math.exp(-float((a - b).square().sum()) / (2 * bandwidth**2))

    n, m = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_kad_equals_a_slow_loop():
    """Guards against the biased estimate, a bandwidth that is not squared, and a bandwidth from the wrong set."""
    x, y = cloud(9, 3, 0), cloud(13, 3, 1, shift=0.7) * 2
    pairs = sorted(float((x[i] - x[j]).norm()) for i in range(9) for j in range(i))
    assert median_distance(x) == pytest.approx(pairs[(len(pairs) - 1) // 2])
    assert kad(x, y).value == pytest.approx(slow_mmd(x, y, median_distance(x)), abs=1e-12)
    assert kad(x, y, bandwidth=0.3).value == pytest.approx(slow_mmd(x, y, 0.3), abs=1e-12)


def test_kad_is_zero_on_average_for_one_distribution():
    """Guards against a bias, which of small sets is larger than what is measured."""
    values = torch.tensor([kad(cloud(20, 4, seed), cloud(15, 4, 1000 + seed), 2.0, 2).value for seed in range(200)])
    assert abs(float(values.mean())) < 4 * float(values.std()) / math.sqrt(200)
    assert float(values.min()) < 0


def test_kad_of_two_gaussians_has_a_closed_form():
    """For N(0, I) and N(shift, I) in D dimensions and bandwidth s the mean kernel is
    (s^2 / (s^2 + 2))^(D/2) exp(-|shift|^2 / (2 (s^2 + 2)))."""
    bandwidth, dim, shift = 1.5, 2, 1.0
    scale = (bandwidth**2 / (bandwidth**2 + 2)) ** (dim / 2)
    expected = 2 * scale * (1 - math.exp(-dim * shift**2 / (2 * (bandwidth**2 + 2))))
    assert kad(cloud(3000, dim, 0), cloud(3000, dim, 1, shift), bandwidth, 2).value == pytest.approx(expected, rel=0.1)


def test_the_interval_covers_as_often_as_it_says():
    """Guards against replicates that count a window's pair with its own copy: all would lie above the value."""
    bandwidth, shift = 1.5, 0.8
    scale = bandwidth**2 / (bandwidth**2 + 2)
    true = 2 * scale * (1 - math.exp(-2 * shift**2 / (2 * (bandwidth**2 + 2))))
    found = [kad(cloud(40, 2, seed), cloud(40, 2, 500 + seed, shift), bandwidth, seed=seed) for seed in range(100)]
    assert all(d.low < d.value < d.high and d.n == 40 for d in found)
    assert sum(d.low <= true <= d.high for d in found) >= 85
    assert kad(cloud(9, 2, 0), cloud(9, 2, 1)) == kad(cloud(9, 2, 0), cloud(9, 2, 1))


def test_kad_of_too_few_or_equal_windows():
    with pytest.raises(ValueError, match="two windows of each set, got 1 and 5"):
        kad(cloud(1, 2, 0), cloud(5, 2, 0))
    assert kad(torch.zeros(4, 2), torch.zeros(4, 2)).value == pytest.approx(0)
    few = kad(cloud(3, 2, 0), cloud(2, 2, 1))  # half of the replicates have one window of the second set, twice
    assert math.isfinite(few.low) and math.isfinite(few.high)


def test_frechet_has_its_closed_form():
    """Between diagonal Gaussians it is |m1 - m2|^2 + sum (s1 - s2)^2; buries a root of the wrong product."""
    x = cloud(20_000, 3, 0)
    y = cloud(20_000, 3, 1) * torch.tensor([1.0, 2.0, 0.5]) + torch.tensor([1.0, 0.0, 0.0])
    assert frechet(x, y) == pytest.approx(1 + 0 + 1 + 0.25, rel=0.03)
    assert frechet(x, x) == pytest.approx(0, abs=1e-9)
    turn = torch.linalg.qr(cloud(3, 3, 2))[0]
    assert frechet(x @ turn, y @ turn) == pytest.approx(frechet(x, y), rel=1e-9)
    assert math.isfinite(frechet(x[:2], y[:3]))


def test_statistics_hear_level_and_band():
    """Guards against power in the place of its logarithm, and bands that are not those of the frequency."""
    rate = 16000
    t = torch.arange(2 * rate) / rate
    low, high = (torch.sin(2 * torch.pi * f * t)[None] for f in (300.0, 5000.0))
    x = log_mel_statistics([low, high], rate)
    assert x.shape == (4, 128)
    assert int(x[0, :64].argmax()) < int(x[2, :64].argmax())
    quieter = log_mel_statistics([0.1 * low], rate)
    assert float((x[:2, :64] - quieter[:, :64]).amax(dim=1).mean()) == pytest.approx(20, abs=0.1)
    assert float(x[0, 64:][x[0, :64].argmax()]) < 1e-2  # a steady tone does not move


def test_short_sounds_are_joined():
    pieces = [torch.randn(1, 3000, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    torch.testing.assert_close(log_mel_statistics(pieces, 8000), log_mel_statistics([torch.cat(pieces, dim=1)], 8000))


@pytest.mark.parametrize("samples", [4000, 4001])
def test_noise_keeps_spectrum_and_power(samples):
    wav = torch.randn(1, samples, generator=torch.Generator().manual_seed(0)).cumsum(dim=1)
    noise = noise_of_spectrum([wav])[0]
    assert noise.shape == wav.shape and float((noise - wav).abs().max()) > 0.1
    torch.testing.assert_close(
        torch.fft.rfft(noise).abs()[:, 1:-1], torch.fft.rfft(wav).abs()[:, 1:-1], rtol=1e-3, atol=1e-2
    )
