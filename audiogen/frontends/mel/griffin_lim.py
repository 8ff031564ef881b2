"""From the power in mel bands back to sound, without learning: spread each band over its frequencies, then look
for phases under which neighbouring frames agree (Griffin-Lim)."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MOMENTUM = 0.99  # Perraudin et al. 2013, "A fast Griffin-Lim algorithm"
SPREAD_ITERATIONS = 30
CEILING = 0.98  # of full scale: what is louder is turned down to it
LIMITER_SECONDS = 0.005  # before and after a peak over which the gain falls and comes back


def mel_to_wav(power: Tensor, basis: Tensor, n_fft: int, hop_length: int, iterations: int) -> Tensor:
    """Sound whose mel power is close to `power`: (B, F, T) -> (B, T * hop_length).

    The phases start from seeded noise that is the same for each item, so that a call can be repeated and a batch
    changes nothing. Each iteration goes to the nearest sound (overlapping frames agree) and from there to the
    nearest spectrogram with the wanted mel power. The latter scales the bins of the sound itself, where plain
    Griffin-Lim would put back the first guess of the linear spectrum, which has no harmonics between the bands.
    It halves the distance to the wanted mel spectrogram. All frames are needed at once, about 40 n_fft bytes each.

    Args:
        power: (B, F, T), at least 0.
        basis: (F, n_fft // 2 + 1) mel filters, at least 0.
        n_fft: samples per Hann window.
        hop_length: samples per frame; frame t is centred at t * hop_length.
        iterations: how often to go to and fro.
    """
    # One more frame, so that the windows cover the last hop as well as they do the others.
    power = torch.cat([power, power[..., -1:]], dim=-1)  # (B, F, T + 1)
    num_samples = (power.shape[-1] - 1) * hop_length
    window = torch.hann_window(n_fft, dtype=power.dtype, device=power.device)

    def to_wav(spectrum: Tensor) -> Tensor:  # (B, bins, T + 1) -> (B, T * hop_length)
        return torch.istft(spectrum, n_fft, hop_length, window=window, center=True, length=num_samples)

    def to_spectrum(wav: Tensor) -> Tensor:  # (B, T * hop_length) -> (B, bins, T + 1)
        return torch.stft(wav, n_fft, hop_length, window=window, center=True, pad_mode="constant", return_complex=True)

    linear = spread(power, basis)  # (B, bins, T + 1)
    noise = torch.rand(linear.shape[2], linear.shape[1], generator=torch.Generator().manual_seed(0))  # (T + 1, bins)
    phase = 2 * math.pi * noise.T.to(power)  # drawn frame by frame: the first frames' do not depend on T
    target = torch.polar(linear.sqrt(), phase.expand_as(linear))
    previous = None
    for _ in range(iterations):
        spectrum = to_spectrum(to_wav(target))
        linear = toward(spectrum.abs().square(), power, basis)
        ahead = spectrum if previous is None else spectrum + MOMENTUM * (spectrum - previous)
        previous = spectrum
        target = ahead * (linear.sqrt() / ahead.abs().clamp_min(1e-16))
    return to_wav(target)


def limit(wav: Tensor, sample_rate: int) -> Tensor:
    """Turn down the surroundings of each peak above `CEILING`, in place of cutting it off: (B, N) -> (B, N).

    The gain is the least that any sample within `LIMITER_SECONDS` needs, smoothed over as many samples, so it never
    exceeds what a sample needs itself. Where nothing is too loud within twice that time, samples stay as they are.
    """
    reach = max(1, round(LIMITER_SECONDS * sample_rate))
    excess = 1 - CEILING / wav.abs().clamp_min(CEILING)  # (B, N), 0 where no gain is needed
    if not bool(excess.any()):
        return wav
    excess = F.max_pool1d(
        F.pad(excess, (2 * reach, 2 * reach))[:, None], 2 * reach + 1, stride=1
    )  # (B, 1, N + 2 reach)
    window = torch.hann_window(2 * reach + 3, periodic=False, dtype=wav.dtype, device=wav.device)[1:-1]
    smooth = F.conv1d(excess, (window / window.sum())[None, None])[:, 0]  # (B, N)
    return (wav * (1 - smooth)).clamp(-1, 1)  # rounding alone is left to clamp


def spread(power: Tensor, basis: Tensor) -> Tensor:
    """Linear power at least 0 with the given mel power: (B, F, T) -> (B, bins, T).

    Of the many answers, the smooth one: it starts from the interpolated envelope and is then scaled, bin by bin,
    by how much its bands lack (Richardson-Lucy; Lee and Seung 2001 show that each step comes closer).
    """
    linear = basis.T @ (power / basis.sum(1, keepdim=True)) / _reach(basis)
    for _ in range(SPREAD_ITERATIONS):
        linear = toward(linear, power, basis)
    return linear


def toward(linear: Tensor, power: Tensor, basis: Tensor) -> Tensor:
    """One step of `linear` (B, bins, T) toward mel power (B, F, T); bins outside of every filter become 0."""
    lack = power / torch.maximum(basis @ linear, 1e-6 * power).clamp_min(torch.finfo(power.dtype).tiny)  # (B, F, T)
    return linear * (basis.T @ lack / _reach(basis))


def _reach(basis: Tensor) -> Tensor:
    """(F, bins) -> (bins, 1), how much each bin adds to all filters together, never 0."""
    reach = basis.sum(0).unsqueeze(1)
    return torch.where(reach > 0, reach, 1)
