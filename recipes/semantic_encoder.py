"""Train an encoder of semantic tokens like the one that ships with audiogen.

    python recipes/semantic_encoder.py CORPUS --out runs/semantic [--minutes 60 | --steps 12000]

CORPUS contains sound files in folders KIND/, for example speech/ and music/; all kinds are drawn equally often, however
many files they have. The result is the folder of a front-end: `audiogen train FOLDER --frontend runs/semantic`.

Training needs no labels. From recordings whose voice is changed and of which half is masked, a transformer predicts
units of the unchanged recordings: at first clusters of MFCCs, then clusters of its own output
(`audiogen/frontends/semantic/learning.py`). tests/bench/semantic_tokens.py measures what the tokens capture. Stop
training with Ctrl-C; the same command continues it. Several processes share out the batches of each step, with the
result of one: torchrun --standalone --nproc-per-node 8 recipes/semantic_encoder.py CORPUS --device cuda
"""

import argparse
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from audiogen.audio.io import read_audio
from audiogen.commands.defaults import frontend_settings
from audiogen.commands.train_frontend import export_weights
from audiogen.config import from_dict
from audiogen.data import scan
from audiogen.distributed import World
from audiogen.errors import ConfigError
from audiogen.frontends import Semantic, save_frontend
from audiogen.frontends.semantic.learning import Learner
from audiogen.runs.training_config import DistributedConfig
from audiogen.training.checkpoint import (
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
)
from audiogen.training.trainer import interruptible
from audiogen.utils.files import alone_in
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
    parser.add_argument("--accumulation", type=int, help="batches per step, by default one for each process")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="frontend.A=1", help="a setting"
    )
    parser.add_argument("--export", type=Path, help="also write the weights to this file, rounded to 16 bits")
    args = parser.parse_args()
    settings, unknown = frontend_settings(args.overrides)
    if unknown:
        raise ConfigError(f"--set {unknown[0]}: only settings of the front-end can be set here, such as frontend.dim")

    # 1. Read all recordings, and find their first units. Processes that torchrun has started share out each step.
    config = from_dict(Semantic.Config, {**settings, "encoder": "fit"}, "frontend")
    checkpoints, seconds = args.out / "checkpoints", 0.0
    with World.join() as world, alone_in(args.out) if world.first else nullcontext():
        device = world.device(args.device)
        frontend = Semantic(config).to(device).eval()
        kinds = world.after_first(lambda: read(args.corpus, frontend, args.out / "recordings.pt"))
        with world.connected(device, DistributedConfig().timeout):
            learner, num_batches = frontend.learner(*kinds.values()), args.accumulation or world.size
            if list_checkpoints(checkpoints):
                seconds, num_batches = world.after_first(lambda: resume(learner, checkpoints))
            world.after_first(lambda: world.share(num_batches))
            learner.share_out(world, num_batches)

            # 2. Train until the budget is spent.
            def progress() -> float:
                return learner.step / args.steps if args.steps else seconds / (60 * args.minutes)

            world.meet()
            saved, losses, stop = seconds, {}, False
            with interruptible(world) as interrupted:
                while progress() < 1 and not stop:
                    began = time.perf_counter()
                    for name, loss in learner.train_step(progress()).items():
                        losses.setdefault(name, []).append(loss)
                    mine = [[seconds + time.perf_counter() - began, interrupted.is_set()]]
                    clock, signals = world.gather(torch.tensor(mine, dtype=torch.float64)).T
                    seconds, stop = float(clock[0]), bool(signals.any())  # the first process's clock, any one's signal
                    if seconds - saved > EVERY or progress() >= 1 or stop:
                        saved = seconds
                        means = ", ".join(f"{name} {sum(some) / len(some):.3f}" for name, some in losses.items())
                        if world.first:
                            print(f"step {learner.step}, {seconds / 60:.1f} min: {means} nats", flush=True)
                        losses.clear()
                        world.first_does(partial(save_checkpoint, checkpoints, checkpoint_of(learner, saved)))

        # 3. Find the codewords, and save.
        if world.first:
            frontend.load_trained(learner)
            save_frontend(frontend, args.out)
            if args.export:
                export_weights(frontend, args.export)
            print(f"{args.out}: a front-end; recordings.pt and {checkpoints.name}/ can be removed")


def checkpoint_of(learner: Learner, seconds: float) -> Checkpoint:
    """Return all that continuing needs."""
    state = learner.state()
    tensors = {name: state[name] for name in ("encoder", "average", "head")}
    tensors["units"] = {str(place): units for place, units in enumerate(state["units"])}
    tensors["optimizer"] = optimizer_tensors(learner.optimizer)
    scalars = {"round": state["round"], "seconds": seconds, "accumulation": learner.num_batches}
    return Checkpoint(state["step"], tensors, scalars)


def resume(learner: Learner, checkpoints: Path) -> tuple[float, int]:
    """Continue from the newest checkpoint; return the seconds of training until then, and the batches per step."""
    found = load_checkpoint(checkpoints, learner.device)
    optimizer, units = found.tensors.pop("optimizer"), found.tensors.pop("units")
    in_order = [units[str(place)].cpu() for place in range(len(units))]
    learner.load({**found.tensors, "units": in_order, "step": found.step, "round": found.state["round"]})
    load_optimizer_tensors(learner.optimizer, optimizer)
    return found.state["seconds"], found.state["accumulation"]


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
