"""Are the generated digits digits? A small classifier that was trained on real ones listens.

    python tests/bench/digits.py RUN FSDD [--num 100] [--seed 0] [--temperature 1.0] [--top-p P]

RUN was trained on FSDD, the Free Spoken Digit Dataset. The classifier sees log-mel frames at 8 kHz of the first 640 ms
of a clip. It tells the ten digits and what is none (clips backwards, shuffled pieces, noise of their spectrum), learned
from the files that the run, too, was trained on; it is judged on those that were held out. Then it scores clips of the
run, each begun anew with a seed of its own, beside the held-out clips themselves, their round trip through the run's
front-end, and what is none. `sure` is the mean probability of the likeliest digit; `spread` how many digits are heard
equally often: 10 is all of them alike, 1 the same one each time (the perplexity of the shares).
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import librosa
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiogen.audio.io import read_audio
from audiogen.data import Encoded, encode_folder, label_of
from audiogen.models.sampling import Sampling
from audiogen.runs.run import Run, load_run
from audiogen.utils.files import atomic_write_json

#: For all.py.
SHORT = "{digits_run} {digits} --num 10"

RATE, FRAMES = 8000, 40
DIGITS = [str(digit) for digit in range(10)]
NONE = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num", type=int, default=100, help="generated clips")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=1.0, help="of the draws")
    parser.add_argument("--top-p", type=float, help="keep the likeliest codes of this probability together")
    parser.add_argument("--json", type=Path, help="write the table here too")
    args = parser.parse_args()
    sampling = Sampling(temperature=args.temperature, top_p=args.top_p)
    run = load_run(args.run)
    with tempfile.TemporaryDirectory() as temporary:
        encoded = encode_folder(args.folder, temporary, "mel", sample_rate=RATE)
        own = {part.file.sha256 for part in run.split().held_out}
        assert {part.file.sha256 for part in encoded.sides.held_out} == own, f"{args.run} is not of these files"
        model = train(encoded, args.folder, args.seed)
        paths = [part.file.path for part in encoded.sides.held_out]
        right = torch.tensor([DIGITS.index(label_of(path)) for path in paths])
        real = [read_audio(args.folder / path, RATE)[0] for path in paths]
        clips = {
            "held-out clips": real,
            "their round trip": [*round_trips(run, args.folder, paths)],
            f"generated, {args.num}": [*generated(run, args.num, args.seed, sampling)],
            "held-out clips, backwards": [wav.flip(0) for wav in real],
            "noise of their spectrum": [*noise(real)],
        }
        rows = []
        print("| clips | right | a digit | sure | sure of 90 % | spread | how often each of 0 to 9 |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for name, wavs in clips.items():
            odds = torch.stack([hear(model, encoded, wav) for wav in wavs])  # (N, 11)
            odds, none = odds[:, :NONE], odds[:, NONE]
            named = odds.argmax(dim=1)
            known = name in ("held-out clips", "their round trip")
            counts = torch.bincount(named, minlength=10)
            share = counts / counts.sum()
            rows.append(
                {
                    "clips": name,
                    "right": float((named == right).float().mean()) if known else None,
                    "a digit": float((none < 0.5).float().mean()),
                    "sure": float(odds.amax(dim=1).mean()),
                    "sure of 90 %": float((odds.amax(dim=1) > 0.9).float().mean()),
                    "spread": float((-share * share.clamp(min=1e-9).log()).sum().exp()),
                    "how often each": counts.tolist(),
                }
            )
            *figures, counts = list(rows[-1].values())[1:]
            print(
                f"| {name} | "
                + " | ".join("-" if value is None else f"{value:.3f}" for value in figures)
                + f" | {' '.join(map(str, counts))} |"
            )
    if args.json:
        atomic_write_json(args.json, rows)


def train(encoded: Encoded, folder: Path, seed: int, steps: int = 2000, batch_size: int = 64) -> nn.Module:
    """Frames (B, F, FRAMES) -> logits (B, 11). A clip is followed by silence or by another one, as in generated sound;
    loudness and the moment of the beginning vary."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    x, std, silence = list(encoded.training), encoded.frontend.std, quiet(encoded)
    labels = [DIGITS.index(label_of(part.file.path)) for part in encoded.sides.train]
    noises = [
        encoded.frontend.encode(wav[None, None])[0]
        for wav in noise([read_audio(folder / part.file.path, RATE)[0] for part in encoded.sides.train])
    ]
    model = nn.Sequential(
        nn.Conv1d(len(std), 96, 5, padding=2),
        nn.BatchNorm1d(96),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(96, 96, 5, padding=2),
        nn.BatchNorm1d(96),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(96, 128, 3, padding=1),
        nn.BatchNorm1d(128),
        nn.ReLU(),
        nn.AdaptiveMaxPool1d(1),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(128, NONE + 1),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    for step in range(steps):
        pieces, wanted = [], []
        for i in rng.integers(len(x), size=batch_size):
            clip, label = x[i], labels[i]
            if rng.random() < 0.3:
                label = NONE
                clip = (clip.flip(1), noises[i], shuffled(clip, rng))[rng.integers(3)]
            follows = x[rng.integers(len(x))] if rng.random() < 0.5 else silence
            pieces.append(cut(torch.cat([silence[:, : rng.integers(4)], clip, follows], dim=1), silence))
            wanted.append(label)
        louder = torch.randn(batch_size, 1, 1) / std[:, None]  # nats of power, about 4 dB
        loss = F.cross_entropy(model(torch.stack(pieces) + louder), torch.tensor(wanted))
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - step / steps)
        optimizer.step()
    return model.eval()


def shuffled(x: Tensor, rng: np.random.Generator) -> Tensor:
    """(F, T) in pieces of about four frames, in another order."""
    pieces = x.tensor_split(max(2, x.shape[1] // 4), dim=1)
    return torch.cat([pieces[i] for i in rng.permutation(len(pieces))], dim=1)


def quiet(encoded: Encoded) -> Tensor:
    """Frames (F, FRAMES) of digital silence."""
    return encoded.frontend.encode(torch.zeros(1, 1, FRAMES * encoded.spec.hop_length))[0]


def cut(x: Tensor, silence: Tensor) -> Tensor:
    """(F, T) -> (F, FRAMES)."""
    return torch.cat([x, silence], dim=1)[:, :FRAMES]


@torch.inference_mode()
def hear(model: nn.Module, encoded: Encoded, wav: Tensor) -> Tensor:
    """wav (N,) at RATE -> the odds of the ten digits and of none."""
    frames = encoded.frontend.encode(wav[None, None, : FRAMES * encoded.spec.hop_length].contiguous())[0]
    return model(cut(frames, quiet(encoded))[None])[0].softmax(dim=0)


def at_rate(wav: Tensor, sample_rate: int) -> Tensor:
    """(N,) at sample_rate -> (M,) at RATE."""
    if sample_rate == RATE:
        return wav
    return torch.from_numpy(librosa.resample(wav.numpy(), orig_sr=sample_rate, target_sr=RATE, res_type="soxr_hq"))


@torch.inference_mode()
def round_trips(run: Run, folder: Path, paths: list[str]) -> Iterator[Tensor]:
    for path in paths:
        wav = read_audio(folder / path, run.sample_rate)
        yield at_rate(run.frontend.decode(run.frontend.encode(wav[None]))[0, 0, : wav.shape[1]], run.sample_rate)


def generated(run: Run, num: int, seed: int, sampling: Sampling) -> Iterator[Tensor]:
    for first in range(seed, seed + num, 20):
        seeds = range(first, min(first + 20, seed + num))
        for wav in run.generate(FRAMES * 0.016, seeds=seeds, sampling=sampling):
            yield at_rate(wav[0], run.sample_rate)


def noise(real: list[Tensor]) -> Iterator[Tensor]:
    """Noise of each clip's own spectrum and loudness: its Fourier transform with other phases."""
    generator = torch.Generator().manual_seed(0)
    for wav in real:
        spectrum = torch.fft.rfft(wav)
        phases = torch.rand(spectrum.shape, generator=generator) * 2 * torch.pi
        yield torch.fft.irfft(spectrum.abs() * torch.exp(1j * phases), n=len(wav))


if __name__ == "__main__":
    main()
