"""Which front-end should `audiogen train FOLDER` take unasked? Candidates at equal minutes, judged by KAD.

    OMP_NUM_THREADS=1 python tests/bench/defaults.py FOLDER... --out OUT [--minutes 3] [--candidates default melvq ...]

Each FOLDER holds train/ and held-out/: recordings of the same kit, voice or instrument, a minute or more of each. All
candidates are trained on train/ with gpt. A minute is one of processor time, so that other work on the machine changes
nothing. Then clips of four seconds are compared with held-out/, at the folder's own rate, by mean and standard
deviation of log-mel bands over windows of a second. KAD comes in thousandths, with the 95 % interval of a bootstrap
over windows: `floor` is train/ itself, `ceiling` noise of the spectrum of held-out/. It flatters models of mel frames:
listen too, and look at the spectrograms. The clips lie in OUT.
"""

import argparse
import time
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiogen.audio.io import mono, read_audio, resample, write_audio
from audiogen.commands.train import train
from audiogen.data.index import main_sample_rate, scan
from audiogen.evaluation.distribution import kad, log_mel_statistics, noise_of_spectrum
from audiogen.models.sampling import Sampling
from audiogen.runs.run import load_run
from audiogen.training import trainer

#: For all.py.
SHORT = "{parts} --out {out} --minutes 0.1 --num 2 --candidates default"

SECONDS, BATCH = 4.0, 10
#: Arguments of `train`; in the overrides, `own` is replaced by the folder's rate.
CANDIDATES: dict[str, dict[str, Any]] = {
    "default": {},
    "from scratch": {"start": "scratch"},
    "melvq": {"frontend": "melvq"},
    "melvq 8 x 256, own rate": {
        "frontend": "melvq",
        "overrides": ["frontend.sample_rate=own", "frontend.num_codebooks=8"],
    },
    "mel, at most 16 kHz": {"overrides": ["frontend.sample_rate=16000"]},
    "codec as shipped": {"frontend": "codec"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="for runs and clips")
    parser.add_argument("--minutes", type=float, default=3.0, help="of training, each")
    parser.add_argument("--num", type=int, default=30, help="generated clips")
    parser.add_argument("--temperature", type=float, help="default: the run's own")
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    trainer.time = types.SimpleNamespace(perf_counter=time.process_time)
    print("| folder | candidate | steps | KAD x 1000 | 95 % | windows |\n| --- | --- | --- | --- | --- | --- |")
    for folder in args.folders:
        rate = main_sample_rate(scan(folder / "held-out"))
        held_out = recordings(folder / "held-out", rate)
        reference = log_mel_statistics(held_out, rate)
        show(folder, "floor", "", reference, recordings(folder / "train", rate), rate)
        for name in args.candidates:
            out = args.out / f"{folder.name}-{name.replace(' ', '-').replace(',', '')}"
            asked = dict(CANDIDATES[name])
            if not (out / "model.safetensors").exists():
                settings = [setting.replace("=own", f"={rate}") for setting in asked.pop("overrides", [])]
                train(folder / "train", out, backbone="gpt", minutes=args.minutes, overrides=settings, **asked)
            run, wavs = load_run(out), []
            sampling = None if args.temperature is None else Sampling(temperature=args.temperature)
            for first in range(0, args.num, BATCH):
                seeds = range(first, min(first + BATCH, args.num))
                made = mono(run.generate(SECONDS, seeds=seeds, sampling=sampling))
                wavs += [resample(wav, run.sample_rate, rate) for wav in made]
            for seed, wav in enumerate(wavs):
                write_audio(out / "clips" / f"{seed}.wav", wav.clamp(-1, 1), rate)
            show(folder, name, run.step, reference, wavs, rate)
        show(folder, "ceiling", "", reference, noise_of_spectrum(held_out), rate)


def recordings(folder: Path, rate: int) -> list[Tensor]:
    """The files of a folder, mono, in an order that mixes what names keep together: each (1, N)."""
    files = scan(folder).files
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0))
    return [read_audio(folder / files[i].path, rate) for i in order]


def show(folder: Path, name: str, steps: object, reference: Tensor, wavs: list[Tensor], rate: int) -> None:
    found = kad(reference, log_mel_statistics(wavs, rate))
    value, low, high = (round(1000 * x) for x in (found.value, found.low, found.high))
    print(f"| {folder.name} | {name} | {steps} | {value} | {low} to {high} | {found.n} |", flush=True)


if __name__ == "__main__":
    main()
