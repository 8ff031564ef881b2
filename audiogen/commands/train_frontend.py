"""Train a front-end by gradient (the codec, the mel vocoder) on folders of sound files.

The result is a folder that later runs can name as their front-end.
"""

import hashlib
import json
import logging
import math
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from ..config import from_dict, to_dict
from ..data import Index, Part, main_sample_rate, scan, split, training_wavs
from ..distributed import World
from ..errors import ConfigError, RunError
from ..evaluation.reconstruction import mel_distance
from ..frontends import FRONTENDS, Frontend, save_frontend
from ..frontends.neural.trainer import Trainer
from ..runs.event_log import Discarded, Metrics
from ..runs.folder import require_own_folders
from ..runs.training_config import DistributedConfig
from ..training.checkpoint import (
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
)
from ..training.trainer import CHECKPOINT_SECONDS, LOG_EVERY, interruptible
from ..utils.files import alone_in, atomic_write_bytes
from .resume import contents

log = logging.getLogger("audiogen")

EVALUATIONS = 10  # per run
HELD_OUT_SECONDS = 20.0  # maximum per evaluation and folder


@dataclass(frozen=True)
class Side:
    """One side of the splits of several folders: a re-iterable of wavs (1, N), folder by folder."""

    parts: Sequence[tuple[Index, Sequence[Part]]]
    sample_rate: int

    def __iter__(self) -> Iterator[Tensor]:
        return chain.from_iterable(training_wavs(index, parts, self.sample_rate) for index, parts in self.parts)


@dataclass(frozen=True)
class TrainedFrontend:
    """The result of `train_frontend`.

    Attributes:
        frontend: the trained front-end.
        training: the sound that it was trained on.
        held_out: the sound that was held out.
        finished: whether the budget was spent, rather than training being interrupted.
    """

    frontend: Frontend
    training: Side
    held_out: Side
    finished: bool


def train_frontend(
    kind: str,
    folders: Sequence[str | Path],
    out: str | Path,
    settings: dict[str, Any],
    steps: int | None = None,
    minutes: float | None = None,
    resume: bool = False,
    device: str = "auto",
    accumulation: int | None = None,
) -> TrainedFrontend:
    """Train a front-end on the training files of folders, and write it to `out`, for `load_frontend(out)`.

    Ctrl-C and SIGTERM finish the step and save. A resumed run with a budget in `steps` ends with exactly the weights of
    an uninterrupted one. Processes that torchrun or srun started together train one front-end, as in `train`; each
    reads the folders.

    Args:
        kind: "codec" with weights="fit" or "finetune", or "mel" or "melvq" with a vocoder.
        folders: folders of sound files; each is split separately.
        out: folder of the front-end.
        settings: settings of its Config; `sample_rate` defaults to the first folder's own, up to the front-end's
            `highest_default_rate`.
        steps: budget in steps.
        minutes: budget in minutes of training, without evaluation and saving; exactly one of the two is given.
        resume: continue from the last checkpoint in `out`.
        device: "auto", "cpu" or "cuda".
        accumulation: batches per step of a new training, which processes share out; by default one for each process.

    Raises:
        DataError: a folder has too little sound.
        ConfigError: a setting is wrong.
        RunError: `out` holds another training, or its checkpoints are damaged.
        TrainingError: the loss is not finite.
    """
    if (steps is None) == (minutes is None):
        raise ConfigError("--steps and --minutes: give one of them")
    for name, budget in (("--steps", steps), ("--minutes", minutes)):
        if budget is not None and not 0 < budget < math.inf:
            raise ConfigError(f"{name}: must be above 0, got {budget}")
    out = Path(out)
    checkpoints = out / "checkpoints"
    indices = [scan(folder) for folder in folders]
    for index in indices:
        index.require_files()
    settings = {"sample_rate": min(main_sample_rate(indices[0]), FRONTENDS[kind].highest_default_rate), **settings}
    config = from_dict(FRONTENDS[kind].Config, settings, "frontend")
    with World.join() as world, alone_in(out) if world.first else nullcontext():
        where, begun = world.device(device), bool(list_checkpoints(checkpoints))

        def check() -> None:
            require_own_folders(out)
            if begun and not resume:
                raise RunError(
                    f"{out}: holds a front-end in training already; continue it with --resume, or choose another --out"
                )

        world.after_first(check)
        sides = [split(index) for index in indices]
        for index, one in zip(indices, sides, strict=True):
            log.info("%s: %s", index.folder, one.summary)
        training, held_out = (
            Side([(index, getattr(one, name)) for index, one in zip(indices, sides, strict=True)], config.sample_rate)
            for name in ("train", "held_out")
        )
        frontend: Any = FRONTENDS[kind](config).to(where).eval()
        trainer, seconds = frontend.trainer(training), 0.0
        files = hashlib.sha256(json.dumps([contents(one) for one in sides]).encode()).hexdigest()
        begun_with = {"config": to_dict(config), "files": files}
        with world.connected(where, DistributedConfig().timeout):
            num_batches = accumulation or world.size
            if begun:
                seconds, num_batches = world.after_first(lambda: _resume(trainer, begun_with, checkpoints))
            world.after_first(lambda: world.share(num_batches))
            trainer.share_out(world, num_batches)
            metrics = Metrics(out, after=trainer.step if resume else None) if world.first else Discarded()
            finished = _run(trainer, frontend, held_out, metrics, out, steps, minutes, seconds, begun_with)
        metrics.close()
        return TrainedFrontend(frontend, training, held_out, finished)


def export_weights(frontend: Frontend, path: str | Path) -> None:
    """Write a front-end's weights to one file, rounded to 16 bits, for `load_pretrained` to read.

    Codes of the exported front-end differ from the original's, since its weights are the rounded ones.
    """
    tensors = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).cpu().contiguous()
        for name, tensor in frontend.state_dict().items()
    }
    atomic_write_bytes(path, safetensors.torch.save(tensors))


def _run(
    trainer: Trainer,
    frontend: Any,
    held_out: Side,
    metrics: Metrics,
    out: Path,
    steps: int | None,
    minutes: float | None,
    seconds: float,
    begun_with: dict[str, Any],
) -> bool:
    """Train until the budget is spent (return True) or a signal arrives (return False)."""
    budget, world = math.inf if minutes is None else 60 * minutes, trainer.world

    def spent() -> float:
        return min(1.0, trainer.step / steps if steps is not None else seconds / budget)

    def save() -> None:
        world.first_does(
            lambda: save_checkpoint(out / "checkpoints", _checkpoint(trainer, {**begun_with, "seconds": seconds}))
        )

    def evaluate() -> None:
        found = _held_out(frontend, held_out)
        metrics.write("held_out", step=trainer.step, seconds=round(seconds, 3), **found)
        if not sys.stderr.isatty():  # there is no progress bar
            log.info(
                "step %d, %.0f s: held-out mel distance %.3f (0 is perfect)",
                trainer.step,
                seconds,
                found["mel_distance"],
            )
        save_frontend(frontend, out)

    def agree(interrupted: threading.Event) -> tuple[float, bool, bool]:
        """Return the first rank's clock, whether any rank was interrupted, and whether it is time to save."""
        late = time.perf_counter() - last_save > CHECKPOINT_SECONDS
        mine = torch.tensor([[seconds, interrupted.is_set(), late]], dtype=torch.float64)
        clock, stop, due = world.gather(mine).T
        return float(clock[0]), bool(stop.any()), bool(due[0])

    world.meet()
    last_save, marks = time.perf_counter(), int(spent() * EVALUATIONS)
    disable = None if world.first else True
    with (
        interruptible(world) as interrupted,
        tqdm(desc="training the front-end", unit="step", initial=trainer.step, total=steps, disable=disable) as bar,
    ):
        while spent() < 1:
            began = time.perf_counter()
            losses = trainer.train_step(spent())
            seconds += time.perf_counter() - began
            seconds, stop, late = agree(interrupted)
            if late or stop or int(spent() * EVALUATIONS) > marks:
                losses = losses or trainer.look()  # before anything is saved
            bar.update(trainer.step - bar.n)
            if "rolled_back_to" in losses:
                metrics.write("rolled_back", step=trainer.step, seconds=round(seconds, 3), **losses)
                log.warning(
                    "step %d: the loss exploded; restored step %d, with the learning rate multiplied by %g",
                    losses["exploded_at"],
                    losses["rolled_back_to"],
                    losses["lr_scale"],
                )
            elif trainer.step % LOG_EVERY == 0 or trainer.step == 1:
                metrics.write("train", step=trainer.step, seconds=round(seconds, 3), **losses)
            if trainer.learner is not None and trainer.step % (10 * LOG_EVERY) == 0:
                metrics.write("codebooks", step=trainer.step, seconds=round(seconds, 3), **trainer.figures())
            if int(spent() * EVALUATIONS) > marks:
                marks = int(spent() * EVALUATIONS)
                frontend.load_trained(trainer)
                world.first_does(evaluate)
                _, stop, late = agree(interrupted)
            if stop and spent() < 1:
                save()
                return False
            if late:
                save()
                last_save = time.perf_counter()
    save()
    frontend.load_trained(trainer)
    world.first_does(lambda: save_frontend(frontend, out))
    return True


def _held_out(frontend: Frontend, held_out: Side) -> dict[str, float]:
    """Return the mean mel distance of held-out files to their round trips."""
    rate = frontend.spec.sample_rate
    distances, left = [], HELD_OUT_SECONDS * rate * len(held_out.parts)
    for wav in held_out:
        wav = wav[None, :, : rate * 10].to(frontend.device)
        decoded = frontend.decode(frontend.encode(wav))[..., : wav.shape[-1]]
        distances.append(mel_distance(wav, decoded, rate))
        left -= wav.shape[-1]
        if left <= 0:
            break
    return {"mel_distance": sum(distances) / len(distances)}


def _checkpoint(trainer: Trainer, scalars: dict[str, Any]) -> Checkpoint:
    state = trainer.state()
    tensors = {
        **state.pop("modules"),
        **{f"{name}_optimizer": optimizer_tensors(optimizer) for name, optimizer in trainer.optimizers.items()},
    }
    del state["optimizers"]
    return Checkpoint(state.pop("step"), tensors, {**state, "accumulation": trainer.num_batches, **scalars})


def _resume(trainer: Trainer, begun_with: dict[str, Any], folder: Path) -> tuple[float, int]:
    """Restore the newest intact checkpoint; return the seconds of training until then, and the batches per step."""
    checkpoint = load_checkpoint(folder, trainer.device)
    scalars = dict(checkpoint.state)
    for name, what in (("config", "other settings"), ("files", "other files")):
        if scalars.pop(name, None) != begun_with[name]:
            raise RunError(f"{folder}: was started with {what}; continue with those, or train into another folder")
    seconds, num_batches = scalars.pop("seconds"), scalars.pop("accumulation", 1)
    try:
        for name, optimizer in trainer.optimizers.items():
            tensors = checkpoint.tensors.pop(f"{name}_optimizer")
            if tensors:  # discriminators that have not started have no state yet
                load_optimizer_tensors(optimizer, tensors)
        optimizers = {name: optimizer.state_dict() for name, optimizer in trainer.optimizers.items()}
        trainer.load({"modules": checkpoint.tensors, "optimizers": optimizers, "step": checkpoint.step, **scalars})
    except (KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"{folder}: its checkpoint at step {checkpoint.step} is of another front-end or is damaged "
            f"({reason}); restore it, or train again into another folder"
        ) from error
    return seconds, num_batches
