"""Compute pictures of audio: waveform outline, and mel spectrogram in dB."""

import io
import math

import matplotlib
import numpy as np
import torch
from PIL import Image  # comes with matplotlib, which draws its own PNGs with it

from ..audio.dsp import mel_filterbank

COLUMNS = 480  # of a picture that fills the time axis
NUM_MELS = 96
DECIBELS = 80.0  # range from the loudest on the page (0 dB, brightest) to the darkest
WINDOW = 0.04  # seconds: two periods of the lowest notes, yet short enough to show an attack
BLOCK_FRAMES = 2048  # transformed at once, to bound memory for long files
LEVELS = 64  # shades: steps of 1.27 dB are finer than the eye, and a third of the bytes of full colour
SHADES = np.round(255 * matplotlib.colormaps["magma"](np.linspace(0, 1, LEVELS))[:, :3]).astype(np.uint8)


def outline(wav: torch.Tensor, num_columns: int) -> np.ndarray:
    """Return the minimum and maximum of each of at most `num_columns` equal segments: (2, columns)."""
    samples = wav.flatten().numpy()
    starts = np.unique(np.linspace(0, len(samples), num_columns, endpoint=False).astype(int))
    return np.stack([np.minimum.reduceat(samples, starts), np.maximum.reduceat(samples, starts)])


def mel_power(wav: torch.Tensor, sample_rate: int, num_columns: int, top: float) -> torch.Tensor:
    """Compute the power in `NUM_MELS` mel bands from 0 to `top` Hz: (mels, columns).

    Bands above half the sample rate are zero.

    Args:
        wav: (1, N).
        sample_rate: Hz.
        num_columns: average frames down to at most this many columns.
        top: upper edge of the highest band in Hz.
    """
    window_length = round(WINDOW * sample_rate)
    n_fft = 2 ** math.ceil(math.log2(2 * window_length))  # zero-padded, so that even the lowest bands contain a bin
    hop = max(1, min(wav.shape[-1] // num_columns, window_length // 2))
    filters = mel_filterbank(sample_rate, n_fft, NUM_MELS, top, unit_area=False).T.float()
    window = torch.hann_window(window_length)
    padded = torch.nn.functional.pad(wav[0], (window_length // 2, window_length))
    frames = padded.unfold(0, window_length, hop)[: math.ceil(wav.shape[-1] / hop)]
    blocks = [torch.fft.rfft(block * window, n_fft).abs().square() @ filters for block in frames.split(BLOCK_FRAMES)]
    mel = torch.cat(blocks).T / window.sum() ** 2
    return torch.nn.functional.adaptive_avg_pool1d(mel[None], min(num_columns, mel.shape[1]))[0]


def mel_image(power: torch.Tensor, loudest: float) -> bytes:
    """Draw (mels, columns) as PNG, low frequencies at the bottom; `loudest` (0 dB) is brightest, -80 dB darkest."""
    decibels = 10 * torch.log10(power / loudest).clamp(min=-DECIBELS / 10, max=0)
    shades = torch.round((decibels / DECIBELS + 1) * (LEVELS - 1)).flip(0).numpy().astype(np.uint8)
    image = Image.fromarray(shades, "P")
    image.putpalette(SHADES.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "png", optimize=True)
    return buffer.getvalue()
