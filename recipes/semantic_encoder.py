"""Train an encoder of semantic tokens like the one that ships with audiogen.

    python recipes/semantic_encoder.py CORPUS --out runs/semantic [--minutes 60 | --steps 12000]

CORPUS contains sound files in folders KIND/, for example speech/ and music/; all kinds are drawn equally often, however
many files they have. The result is the folder of a front-end: `audiogen train FOLDER --frontend runs/semantic`.

Training needs no labels. From recordings whose voice is changed and of which half is masked, a transformer predicts
units of the unchanged recordings: at first clusters of MFCCs, then clusters of its own output
(`audiogen/frontends/semantic/learning.py`). tests/bench/semantic_tokens.py measures what the tokens capture. Stop
training with Ctrl-C; the same command continues it.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from audiogen.audio.io import read_audio
from audiogen.commands.defaults import frontend_settings
from audiogen.commands.train_frontend import export_weights
from audiogen.config import from_dict
from audiogen.data import scan
from audiogen.errors import ConfigError
from audiogen.frontends import Semantic, save_frontend
from audiogen.training.trainer import interruptible
from audiogen.utils.scripts import run_script

EVERY = 60.0  # seconds between checkpoints


def main() -> None:
    """Train the encoder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, help="folder of KIND/ folders of sound files")
    parser.add_argument("--out", type=Path, default=Path("runs/semantic"), help="folder of the front-end")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, default=60.0, help="training time")
    budget.add_argument("--steps", type=int, help="training steps, for a machine that others use too")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="frontend.A=1", help="a setting"
    )
    parser.add_argument("--export", type=Path, help="also write the weights to this file, rounded to 16 bits")
    args = parser.parse_args()
    settings, unknown = frontend_settings(args.overrides)
    if unknown:
        raise ConfigError(f"--set {unknown[0]}: only settings of the front-end can be set here, such as frontend.dim")

    # 1. Read all recordings, and find their first units.
    config = from_dict(Semantic.Config, {**settings, "encoder": "fit"}, "frontend")
    frontend = Semantic(config).to(args.device).eval()
    args.out.mkdir(parents=True, exist_ok=True)
    kinds = read(args.corpus, frontend, args.out / "recordings.pt")
    learner = frontend.learner(*kinds.values())

    # 2. Train until the budget is spent.
    checkpoint, seconds = args.out / "training.pt", 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        seconds = state.pop("seconds")
        learner.load(state)
    saved, losses = seconds, {}

    def progress() -> float:
        return learner.step / args.steps if args.steps else seconds / (60 * args.minutes)

    with interruptible() as interrupted:
        while progress() < 1 and not interrupted.is_set():
            began = time.perf_counter()
            for name, loss in learner.train_step(progress()).items():
                losses.setdefault(name, []).append(loss)
            seconds += time.perf_counter() - began
            if seconds - saved > EVERY or progress() >= 1 or interrupted.is_set():
                saved = seconds
                means = ", ".join(f"{name} {sum(some) / len(some):.3f}" for name, some in losses.items())
                print(f"step {learner.step}, {seconds / 60:.1f} min: {means} nats", flush=True)
                losses.clear()
                torch.save({**learner.state(), "seconds": seconds}, checkpoint.with_suffix(".new"))
                checkpoint.with_suffix(".new").replace(checkpoint)

    # 3. Find the codewords, and save.
    frontend.load_trained(learner)
    save_frontend(frontend, args.out)
    if args.export:
        export_weights(frontend, args.export)
    print(f"{args.out}: a front-end; recordings.pt and {checkpoint.name} can be removed")


def read(corpus: Path, frontend: Semantic, cache: Path) -> dict[str, list[Tensor]]:
    """Read the recordings of each kind, as the front-end's learner takes them; keep them in the file `cache`."""
    if cache.exists():
        return torch.load(cache, weights_only=True)
    paths: dict[str, list[Path]] = {}
    for file in scan(corpus).files:
        paths.setdefault(Path(file.path).parts[0], []).append(corpus / file.path)
    rate = frontend.spec.sample_rate
    kinds = {kind: frontend.recordings([read_audio(path, rate) for path in some]) for kind, some in paths.items()}
    torch.save(kinds, cache)
    return kinds


if __name__ == "__main__":
    raise SystemExit(run_script(main))
