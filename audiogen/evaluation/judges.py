"""Judges: small classifiers that say which labels a sound seems to have.

A judge is trained on the training files of a run alone, on log-mel levels computed from their samples. So it hears what
a listener hears, whatever the front-end. It makes mistakes: beside what it says of generated sound, give how often it
is right on held-out files, and on their round trips through the front-end.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import DataError
from ..utils.text import fold
from .distribution import FLOOR, log_mel_levels

#: Mel bands, and the maximum length of the window that is judged at a time.
BANDS, WINDOW_SECONDS = 64, 4.0
#: Sounds per training step, or a quarter of them if there are few; passes over them; maximum number of steps.
BATCH, PASSES, MOST_STEPS = 32, 40, 1000
#: Training also ends after so many frames, which bounds its time to about half a minute on one core.
MOST_FRAMES = 3_000_000
LEARNING_RATE, WEIGHT_DECAY, DROPOUT = 2e-3, 0.05, 0.3
#: Augmentation: standard deviation of the gain in dB; maximum number of bands, and share of the frames, in a mask.
GAIN, MASKED_BANDS, MASKED_SHARE = 4.0, 12, 0.15
#: dB below which there is silence, and the scale of the levels.
SILENCE, SCALE = 10 * math.log10(FLOOR), 20.0


class Judge(nn.Module):
    """A convolutional network over log-mel levels, pooled over time, with the logits of all labels.

    Args:
        values: the values of each label, by name.
        sample_rate: Hz of the sounds.
        num_frames: length of the window that is judged at a time.
    """

    def __init__(self, values: Mapping[str, Sequence[str]], sample_rate: int, num_frames: int):
        super().__init__()
        self.values = {name: tuple(several) for name, several in values.items()}
        self.sample_rate, self.num_frames = sample_rate, num_frames
        self.layers = nn.Sequential(
            *_layer(1, 16, 2),
            *_layer(16, 32, 2),
            *_layer(32, 48, (2, 1)),
            nn.Flatten(1, 2),  # (B, 48 * BANDS / 8, T / 4)
            nn.Conv1d(6 * BANDS, 128, 3, padding=1),
            nn.BatchNorm1d(128),
            nn.ReLU(),
        )
        self.dropout = nn.Dropout(DROPOUT)
        self.linear = nn.Linear(256, sum(map(len, self.values.values())))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map levels (B, BANDS, T) to logits (B, V) of each label."""
        h = self.layers(x[:, None])  # (B, 128, T / 4)
        y = self.linear(self.dropout(torch.cat([h.mean(dim=2), h.amax(dim=2)], dim=1)))
        sizes = [len(several) for several in self.values.values()]
        return dict(zip(self.values, y.split(sizes, dim=1), strict=True))

    @torch.inference_mode()
    def hear(self, wav: Tensor) -> dict[str, str]:
        """Return the likeliest value of each label for a wav (1, N); long ones are judged window by window."""
        x = levels(wav, self.sample_rate)  # (BANDS, T)
        x = _fitted(x, max(1, round(x.shape[1] / self.num_frames)) * self.num_frames)
        windows = x.unflatten(1, (-1, self.num_frames)).transpose(0, 1)  # (windows, BANDS, num_frames)
        found = {name: logits.log_softmax(dim=1).mean(dim=0) for name, logits in self(windows).items()}
        return {name: self.values[name][int(scores.argmax())] for name, scores in found.items()}


def train_judge(
    sounds: Iterable[tuple[Tensor, Mapping[str, str]]],
    values: Mapping[str, Sequence[str]],
    sample_rate: int,
    seed: int = 0,
) -> Judge:
    """Train a judge.

    Sounds are shifted in time, made louder and softer, and masked in some bands and frames (SpecAugment).

    Args:
        sounds: wavs (1, N) with their labels by name; labels that are missing or unknown are skipped.
        values: the values of each label, by name.
        sample_rate: Hz of the wavs.
        seed: determines initial weights, batches and augmentation.

    Raises:
        DataError: there are no sounds.

    Source: Park et al. 2019, SpecAugment.
    """
    places = {name: {fold(value): i for i, value in enumerate(several)} for name, several in values.items()}
    examples, targets = [], []
    for wav, labels in sounds:
        examples.append(levels(wav, sample_rate))
        targets.append([known.get(fold(labels.get(name, "")), -1) for name, known in places.items()])
    if not examples:
        raise DataError("no training sound is left to train a classifier on")
    wanted = torch.tensor(targets)  # (N, labels)
    longest = max(x.shape[1] for x in examples)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        judge = Judge(values, sample_rate, min(longest, round(WINDOW_SECONDS * frame_rate(sample_rate))))
        optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=WEIGHT_DECAY)
        size = min(BATCH, max(2, len(examples) // 4))
        steps = min(MOST_STEPS, -(-PASSES * len(examples) // size), max(1, MOST_FRAMES // (size * judge.num_frames)))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps + 1)
        order = torch.cat([torch.randperm(len(examples)) for _ in range(-(-steps * size // len(examples)))])
        for some in order[: steps * size].split(size):
            x = torch.stack([_augmented(examples[i], judge.num_frames) for i in some.tolist()])
            losses = [
                F.cross_entropy(logits, target, ignore_index=-1, reduction="sum")
                for logits, target in zip(judge(x).values(), wanted[some].T, strict=True)
            ]
            optimizer.zero_grad()
            (sum(losses[1:], start=losses[0]) / size).backward()
            optimizer.step()
            schedule.step()
    return judge.eval()


def frame_rate(sample_rate: int) -> float:
    """Return the number of frames of `levels` per second."""
    return sample_rate / 2 / (2 ** round(math.log2(0.046 * sample_rate)) // 4)


def levels(wav: Tensor, sample_rate: int) -> Tensor:
    """Compute log-mel levels of a wav (1, N): (BANDS, T), 0 in silence, 4 for a full-scale sine."""
    x = log_mel_levels(wav.float().cpu(), sample_rate, BANDS)  # (1, BANDS, t)
    x = F.avg_pool1d(x, 2, ceil_mode=True)[0]
    return (x.clamp_min(SILENCE) - SILENCE) / SCALE


def _layer(dim: int, wider: int, stride: int | tuple[int, int]) -> list[nn.Module]:
    """Return a convolution over bands and frames, with a stride for both or for each."""
    return [nn.Conv2d(dim, wider, 3, stride, padding=1, bias=False), nn.BatchNorm2d(wider), nn.ReLU()]


def _fitted(x: Tensor, length: int, begin: int = 0) -> Tensor:
    """Cut `length` frames from x (F, T), beginning at `begin`, with silence beyond its ends."""
    kept = x[:, max(0, begin) : max(0, begin + length)]
    before = min(length, max(0, -begin))
    return F.pad(kept, (before, length - before - kept.shape[1]))


def _augmented(x: Tensor, length: int) -> Tensor:
    """Cut `length` frames from x (F, T) at random; change its level; mask some bands and frames."""
    spare = x.shape[1] - length
    x = _fitted(x, length, _below(abs(spare) + 1) * (1 if spare > 0 else -1))
    x = (x + (GAIN / SCALE) * torch.randn(()) * (x > 0)).clamp_min(0)
    for dim, most in ((0, MASKED_BANDS), (1, int(MASKED_SHARE * length))):
        width = _below(most + 1)
        x.narrow(dim, _below(x.shape[dim] - width + 1), width).zero_()
    return x


def _below(stop: int) -> int:
    return int(torch.randint(stop, ()))
