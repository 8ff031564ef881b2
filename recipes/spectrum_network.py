"""Train a network like the one that estimates spectra from mel frames in audiogen.

    python recipes/spectrum_network.py CORPUS --out runs/spectrum [--minutes 45 | --steps 11000]

CORPUS contains sound files in folders KIND/, for example speech/ and music/; all kinds are drawn equally often, however
many files they have. The result is one file of weights, `spectrum.safetensors`. Copied over
`audiogen/weights/spectrum-44khz.safetensors`, it is what `--set frontend.spectrum=shipped` loads.

The network sees the mel frames of the base model, with noise, since a model's frames are never quite right, and
predicts the logarithm of each bin's power. The mean absolute error makes it predict the median where it can't know, as
in noise, and peaks where harmonics must lie (`audiogen/frontends/mel/spectrum.py`). Crops are played at other speeds,
filtered and band-limited at random, so that no pitch and no microphone is special. Stop training with Ctrl-C; the same
command continues it.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from audiogen.audio.dsp import mel_filterbank
from audiogen.audio.io import read_audio
from audiogen.data import scan
from audiogen.frontends.mel.spectrum import FLOOR, N_FFT, NUM_BANDS, REACH, SAMPLE_RATE, TOP, SpectrumNetwork
from audiogen.frontends.neural.augmentation import longer, vary
from audiogen.frontends.neural.crops import CropBatches, generator_for
from audiogen.training.trainer import interruptible
from audiogen.utils.devices import bf16_pays
from audiogen.utils.scripts import run_script

BATCH_SIZE, NUM_FRAMES = 16, 64
NUM_SAMPLES = (NUM_FRAMES - 1) * N_FFT // 4 + N_FFT
LEARNING_RATE, WARMUP = 1.2e-3, 200  # steps
FILTERED, FILTER_DEVIATION, FILTER_POINTS = 0.5, 1.2, 6  # share of crops; nats of power at points over the spectrum
LIMITED, LOWEST_LIMIT = 0.25, 3000.0  # share of crops without the frequencies above a random limit; Hz
NOISY, MOST_NOISE = 0.6, 0.35  # share of crops with noise on the bands; nats
POOL = 4096  # crops of a kind in memory
EVERY = 60.0  # seconds between checkpoints


def main() -> None:
    """Train the network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, help="folder of KIND/ folders of sound files")
    parser.add_argument("--out", type=Path, default=Path("runs/spectrum"), help="folder of the weights")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, default=45.0, help="training time")
    budget.add_argument("--steps", type=int, help="training steps, for a machine that others use too")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device)

    # 1. Crops of each kind, read as they are needed.
    paths: dict[str, list[Path]] = {}
    for file in scan(args.corpus).files:
        paths.setdefault(Path(file.path).parts[0], []).append(args.corpus / file.path)
    kinds = [
        CropBatches(
            lambda some=some: (read_audio(path, SAMPLE_RATE) for path in some), longer(NUM_SAMPLES), 1, POOL, seed
        )
        for seed, some in enumerate(paths.values())
    ]

    # 2. A network whose estimate is at first the envelope alone.
    torch.manual_seed(0)
    network = SpectrumNetwork().to(device)
    nn.init.zeros_(network.out.weight)
    nn.init.zeros_(network.out.bias)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    step, seconds = 0, 0.0
    checkpoint = args.out / "training.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        step, seconds = state["step"], state["seconds"]
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])

    def progress() -> float:
        return min(1.0, step / args.steps if args.steps else seconds / (60 * args.minutes))

    def rate(_: int) -> float:
        return min(1.0, (step + 1) / WARMUP) * (0.03 + 0.97 * (1 + math.cos(math.pi * progress())) / 2)

    # 3. Train until the budget is spent.
    loss_of = Loss().to(device)
    schedule, saved, losses = LambdaLR(optimizer, rate), seconds, []
    with interruptible() as interrupted:
        while progress() < 1 and not interrupted.is_set():
            began = time.perf_counter()
            loss = loss_of(network, draw(kinds, step).to(device), generator_for(1, step))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            step, seconds = step + 1, seconds + time.perf_counter() - began
            schedule.step()
            if seconds - saved > EVERY or progress() >= 1 or interrupted.is_set():
                saved = seconds
                print(f"step {step}, {seconds / 60:.1f} min: {sum(losses) / len(losses):.4f} nats", flush=True)
                losses.clear()
                state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({**state, "step": step, "seconds": seconds}, checkpoint.with_suffix(".new"))
                checkpoint.with_suffix(".new").replace(checkpoint)

    # 4. Save, rounded to 16 bits.
    weights = args.out / "spectrum.safetensors"
    save_file({name: x.half().cpu().contiguous() for name, x in network.state_dict().items()}, weights)
    print(f"{weights}: the weights; {checkpoint.name} can be removed")


def draw(kinds: list[CropBatches], step: int) -> Tensor:
    """Draw the crops of a step (B, 1, NUM_SAMPLES), at a speed and a gain of their own, some mixed with another."""
    turns = range(step * BATCH_SIZE, (step + 1) * BATCH_SIZE)
    crops = torch.cat([kinds[turn % len(kinds)].batch(turn // len(kinds)) for turn in turns])
    return vary(crops, NUM_SAMPLES, generator_for(0, step))


class Loss(nn.Module):
    """The mean absolute error of log power in nats, weighted by 1 / (f + 1 kHz), about as ears resolve it."""

    basis: Tensor
    widths: Tensor
    window: Tensor
    hertz: Tensor
    weight: Tensor

    def __init__(self):
        super().__init__()
        basis = mel_filterbank(SAMPLE_RATE, N_FFT, NUM_BANDS, TOP).float()
        hertz = torch.arange(N_FFT // 2 + 1) * (SAMPLE_RATE / N_FFT)
        weight = torch.where(hertz <= TOP, 1 / (hertz + 1000), 0)
        for name, value in {
            "basis": basis,
            "widths": basis.sum(1, keepdim=True),
            "window": torch.hann_window(N_FFT),
            "hertz": hertz,
            "weight": weight / weight.sum(),
        }.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, network: SpectrumNetwork, wav: Tensor, generator: torch.Generator) -> Tensor:
        """Compute the loss of a network on crops (B, 1, N), whose filters and noise `generator` determines."""
        spectrum = torch.stft(wav[:, 0], N_FFT, N_FFT // 4, window=self.window, center=False, return_complex=True)
        power = spectrum.abs().square() * self._filters(len(wav), generator)  # (B, bins, T)
        level = torch.log(self.basis @ power / self.widths + FLOOR)  # (B, F, T)
        noisy, amount = torch.rand(2, len(wav), 1, 1, generator=generator)
        noise = torch.randn(level.shape, generator=generator) * (noisy < NOISY) * amount * MOST_NOISE
        heard = level + noise.to(wav)
        with torch.autocast(wav.device.type, torch.bfloat16, enabled=bf16_pays(wav.device)):
            deviation = network.deviation(heard)  # (B, T, bins)
        estimate = network.envelope(heard) + deviation.float()
        error = (estimate - torch.log(power + FLOOR).transpose(1, 2)).abs() @ self.weight  # (B, T)
        return error[:, REACH // 2 : -(REACH // 2)].mean()

    def _filters(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Draw a smooth gain of power per crop, and limits of bandwidth: (B, bins, 1)."""
        chosen, limited, limit = torch.rand(3, batch_size, 1, generator=generator)
        points = torch.randn(batch_size, 1, FILTER_POINTS, generator=generator) * FILTER_DEVIATION
        curve = F.interpolate(points, len(self.hertz), mode="linear", align_corners=True)[:, 0]  # (B, bins)
        gain = torch.where(chosen < FILTERED, curve.exp(), 1)
        limit = LOWEST_LIMIT * (TOP / LOWEST_LIMIT) ** limit  # (B, 1) Hz
        gone = (limited < LIMITED) & (self.hertz.cpu() > limit)
        return torch.where(gone, 0, gain).unsqueeze(2).to(self.hertz)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
