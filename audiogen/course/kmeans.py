"""k-means: find a few typical frames, whose indices are the tokens of lessons 2 to 5."""

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor


def typical_frames(frames: Tensor, size: int, rounds: int = 10) -> Tensor:
    """Fit `size` typical frames (size, F) to frames (N, F), each the mean of the frames nearest to it (Lloyd 1982)."""
    start = torch.randperm(len(frames), generator=torch.Generator().manual_seed(0))[:size]
    typical = frames[start]  # initialised with random frames
    for _ in range(rounds):
        nearest = nearest_to(typical, frames)
        for code in range(size):
            if (nearest == code).any():  # one without nearest frames stays unchanged
                typical[code] = frames[nearest == code].mean(dim=0)
    return typical


def nearest_to(typical: Tensor, frames: Tensor) -> Tensor:
    """Return the token of each frame (N, F), the index of the nearest typical frame (V, F): (N,)."""
    return torch.cdist(frames, typical).argmin(dim=1)


def draw_steps(wav: Tensor, frames: Tensor, codes: Tensor, typical: Tensor, sample: float, frame: float) -> Figure:
    """Plot a waveform, its frames, their tokens, and the typical frames of these tokens, in four rows.

    Args:
        wav: (N,).
        frames: (T, F).
        codes: (T,), tokens.
        typical: (V, F), typical frames.
        sample: duration of a sample in milliseconds.
        frame: duration of a frame in milliseconds.
    """
    figure, end = Figure(figsize=(11, 7), layout="constrained"), len(codes) * frame
    wave, above, tokens, below = figure.subplots(4, 1, sharex=True, height_ratios=(1, 1.6, 1, 1.6))
    wave.plot(sample * np.arange(len(wav)), wav.numpy(), lw=0.5)
    tokens.step(frame * np.arange(len(codes)), codes.numpy(), where="post", lw=1)
    for axes, rows in (above, frames), (below, typical[codes]):
        axes.imshow(
            rows.T.numpy(),
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=float(frames.min()),
            vmax=float(frames.max()),
            extent=(0, end, 0, frames.shape[1]),
        )
    for axes, label in (wave, "waveform"), (above, "mel band"), (tokens, "token"), (below, "mel band, typical"):
        axes.set(ylabel=label)
    below.set(xlabel="ms", xlim=(0, end))
    return figure
