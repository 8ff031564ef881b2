"""How close is the sound that is decoded from mel frames? Griffin-Lim from a smooth spectrum and from the network's.

    python tests/bench/mel_inversion.py FOLDER... [--iterations 8 16 32] [--seconds 30]

The frames are those of the base model, at the rate of each folder's files, of which the first seconds are joined. The
table shows mel distance and STFT distance (0 is perfect), PESQ for speech (4.5 is perfect), how far the harmonics of
the decoded sound stand above the gaps between them compared with the recording (`contrast`, in dB: mean over frames of
the deviation of the log spectrum from its moving average, from 2 to 8 kHz), and how many times faster than real time
one core decodes.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from audiogen.audio.io import mono, read_audio
from audiogen.data.index import main_sample_rate, scan
from audiogen.evaluation.reconstruction import mel_distance, pesq, stft_distance
from audiogen.runs.start import base_frontend

#: For all.py.
SHORT = "{sounds} --iterations 16 --seconds 4"
NEEDS = ("pesq",)

SMOOTHED = 9  # bins, about 190 Hz


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--iterations", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--seconds", type=float, default=30.0, help="of each folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ways = [("smooth", 60)] + [("shipped", count) for count in args.iterations]
    print("| folder | spectrum, iterations | mel | STFT | PESQ | contrast | times real time |")
    print("|" + " --- |" * 7)
    for folder in args.folders:
        index = scan(folder)
        rate = main_sample_rate(index)
        wav = first_seconds(folder, [file.path for file in index.files], rate, args.seconds)
        own = contrast(wav, rate)
        for spectrum, iterations in ways:
            frontend = base_frontend(rate, spectrum=spectrum, griffin_lim_iterations=iterations)
            x = frontend.encode(wav[None])
            frontend.decode(x[:, :, :4])
            began = time.process_time()
            made = frontend.decode(x)[0, :, : wav.shape[1]]
            speed = wav.shape[1] / rate / (time.process_time() - began)
            figures = [mel_distance(wav, made, rate), stft_distance(wav, made, rate), pesq(wav, made, rate)]
            cells = [f"{x:.3f}" for x in figures] + [f"{contrast(made, rate) - own:+.2f}", f"{speed:.1f}"]
            print(
                f"| {folder.parent.name}/{folder.name} | {spectrum}, {iterations} | {' | '.join(cells)} |", flush=True
            )


def first_seconds(folder: Path, paths: list[str], rate: int, seconds: float) -> Tensor:
    pieces, left = [], round(seconds * rate)
    for path in paths:
        wav = mono(read_audio(folder / path, rate))[:, : min(left, 6 * rate)]
        pieces.append(wav)
        left -= wav.shape[1]
        if left <= 0:
            break
    return torch.cat(pieces, dim=1)


def contrast(wav: Tensor, rate: int) -> float:
    """Return how much the log spectrum deviates from its moving average from 2 to 8 kHz, in dB."""
    n_fft = 2 * round(rate * 2048 / 44100 / 2)
    window = torch.hann_window(n_fft)
    power = torch.stft(wav, n_fft, n_fft // 4, window=window, return_complex=True)[0].abs().square()
    loud = power.sum(0) > 1e-3 * power.sum(0).max()
    low, high = (int(hertz * n_fft / rate) for hertz in (2000, min(8000, rate / 2)))
    log = 10 * torch.log10(power[low:high, loud].T + 1e-9)
    mean = torch.nn.functional.avg_pool1d(log[:, None], SMOOTHED, 1, SMOOTHED // 2, count_include_pad=False)[:, 0]
    return float((log - mean).abs().mean())


if __name__ == "__main__":
    main()
