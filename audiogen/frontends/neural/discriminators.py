"""Discriminators between decoded and recorded spectra, and the adversarial losses."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from .losses import sine_window

#: Logits (B, 1, T, bins'), positive for "recorded", and the feature maps of all layers.
DiscriminatorOutput = tuple[Tensor, list[Tensor]]


class StftDiscriminator(nn.Module):
    """Classifies patches of a complex spectrum, with real and imaginary parts as two channels.

    Source: EnCodec (Défossez et al. 2022), section 3.4 and figure 2.
    """

    window: Tensor

    def __init__(self, n_fft: int, channels: int):
        super().__init__()
        self.register_buffer("window", sine_window(n_fft), persistent=False)

        def conv(into: int, out: int, kernel: tuple[int, int], dilation: int = 1, stride: int = 1) -> nn.Module:
            padding = (kernel[0] // 2 * dilation, kernel[1] // 2)
            return weight_norm(nn.Conv2d(into, out, kernel, (1, stride), padding, (dilation, 1)))

        self.layers = nn.ModuleList([conv(2, channels, (3, 9))])
        self.layers += [conv(channels, channels, (3, 9), dilation, stride=2) for dilation in (1, 2, 4)]
        self.layers.append(conv(channels, channels, (3, 3)))
        self.last = conv(channels, 1, (3, 3))

    def forward(self, wav: Tensor) -> DiscriminatorOutput:
        """Classify a wav (B, 1, N)."""
        n_fft = len(self.window)
        spectrum = torch.stft(wav.squeeze(1), n_fft, n_fft // 4, window=self.window, return_complex=True)
        x = torch.view_as_real(spectrum).permute(0, 3, 2, 1)  # (B, 2, T, bins)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.last(x), features


class Discriminators(nn.Module):
    """One discriminator per window length (in seconds)."""

    def __init__(self, sample_rate: int, channels: int, windows: Sequence[float]):
        super().__init__()
        self.scales = nn.ModuleList(
            StftDiscriminator(2 * round(seconds * sample_rate / 2), channels) for seconds in windows
        )

    def forward(self, wav: Tensor) -> list[DiscriminatorOutput]:
        """Classify a wav (B, 1, N) at each window length."""
        return [scale(wav) for scale in self.scales]


def hinge_loss(real: list[DiscriminatorOutput], fake: list[DiscriminatorOutput]) -> Tensor:
    """Return the hinge loss of the discriminators: 2 at chance, 0 where all are right by a margin of 1."""
    return torch.stack(
        [F.relu(1 - r).mean() + F.relu(1 + f).mean() for (r, _), (f, _) in zip(real, fake, strict=True)]
    ).mean()


def generator_losses(real: list[DiscriminatorOutput], fake: list[DiscriminatorOutput]) -> dict[str, Tensor]:
    """Return the generator losses: `adversarial` (hinge) and `features` (feature matching)."""
    adversarial = torch.stack([F.relu(1 - judged).mean() for judged, _ in fake]).mean()
    features = torch.stack(
        [
            F.l1_loss(mine, theirs.detach()) / theirs.detach().abs().mean().clamp_min(1e-6)
            for (_, inner), (_, outer) in zip(fake, real, strict=True)
            for mine, theirs in zip(inner, outer, strict=True)
        ]
    ).mean()
    return {"adversarial": adversarial, "features": features}
