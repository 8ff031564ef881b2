"""The training loop of sequence models."""

import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from ..config import from_dict
from ..distributed import World
from ..errors import ConfigError, ReportedElsewhere, RunError, TrainingError
from ..evaluation.scores import Score
from ..models.batch import Batch
from ..models.sequence_model import SequenceModel
from ..runs.event_log import Metrics
from ..runs.training_config import DistributedConfig, TrainingConfig
from .checkpoint import (
    Checkpoint,
    Layout,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
    save_shares,
)
from .diagnostics import observe
from .gradients import OverlappedReplicas, Replicas, Weights, compiled
from .schedule import learning_rate, make_optimizer
from .sharding import Shards

log = logging.getLogger("audiogen")

#: Maximum seconds between checkpoints. Each evaluation saves one too. Saving does not affect the result.
CHECKPOINT_SECONDS = 300.0
#: Steps between lines of metrics.
LOG_EVERY = 10
#: Minimum steps without a better held-out loss before a run stops early, in addition to `patience` evaluations.
PATIENCE_STEPS = 100


class Batches(Protocol):
    """Batches as a pure function of their number, so that resuming needs one integer. See `Crops`."""

    def loader(self, numbers: Iterable[int], num_workers: int) -> Iterator[tuple[Batch, list[list[str]]]]:
        """Iterate over the batches of these numbers, and the names of the files in each item."""
        ...


@dataclass
class Progress:
    """The progress of a run: everything that resuming needs besides tensors."""

    step: int = 0  # optimizer steps done
    seconds: float = 0.0  # of training, without evaluation and saving
    best_loss: float = math.inf
    best_step: int = 0
    worse: int = 0  # evaluations since the best one


class Average(AveragedModel):
    """The exponential moving average of a module's weights. AveragedModel's own update synchronises with the GPU."""

    module: Any  # the averaged copy
    n_averaged: Tensor  # on the CPU

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Update the average with the weights after a step; the first step sets it to the weights."""
        mine, theirs = list(self.module.parameters()), list(model.parameters())
        # Private in torch, whose own AveragedModel also uses it.
        torch._foreach_lerp_(mine, theirs, 1.0 if self.n_averaged == 0 else 1 - self.decay)  # pyright: ignore
        for buffer, value in zip(self.module.buffers(), model.buffers(), strict=True):
            buffer.copy_(value)
        self.n_averaged += 1


class Figures(NamedTuple):
    """The figures of a step, whose values a GPU may not have computed yet."""

    step: int
    losses: Tensor  # (accumulation,)
    norm: Tensor  # of the gradient


@dataclass(frozen=True)
class Outcome:
    """How `Trainer.run` ended."""

    progress: Progress
    stopped: str  # "finished", "early", "asked" (by a callback) or "interrupted"


class Trainer:
    """Train a model until its budget is spent, its held-out loss stops improving, or it is interrupted.

    Args:
        model: the model, on its device.
        batches: training batches, such as `Crops`.
        evaluate: returns the held-out score of a model, the same on all ranks.
        keep: called with the model (the averaged one if averaging is on) and the progress after each best evaluation,
            on the first rank.
        config: the settings.
        folder: folder of the checkpoints.
        precision: "fp32" or "bf16", for matrix products in training; evaluation is always fp32.
        num_workers: loader processes.
        diagnostics: write the observations of some steps to the metrics; does not affect the result.
        world: the ranks that train together; the first one writes. They have the same weights.
        distributed: how they train together.

    Raises:
        ConfigError: they can't train together in this way.
    """

    def __init__(
        self,
        model: SequenceModel,
        batches: Batches,
        evaluate: Callable[[SequenceModel], Score],
        keep: Callable[[SequenceModel, Progress], None],
        config: TrainingConfig,
        folder: Path,
        precision: str = "fp32",
        num_workers: int = 0,
        diagnostics: bool = False,
        world: World = World(),
        distributed: DistributedConfig = DistributedConfig(),
    ):
        self.batches, self.evaluate, self.keep = batches, evaluate, keep
        self.config, self.folder, self.num_workers, self.diagnostics = config, folder, num_workers, diagnostics
        self.world, self.device, self.unit, self.bounds = world, model.bos.device, model.spec.unit, model.head.bounds
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")
        self.held = hold_weights(model, config, world, distributed, precision)
        if diagnostics and self.held.rows:
            raise ConfigError("--diagnostics: observe whole weights; leave it out, or set distributed.kind=replicas")
        self.optimizer: Any = make_optimizer(self.held.own, config)
        # 1 from the first step on whose loss or gradient is not a number: then no step changes a weight.
        self.optimizer.found_inf = torch.zeros((), device=self.device)
        self.average = None if config.average is None else Average(self.held.own, config.average)
        self.progress = Progress()
        self.looks_always = self.device.type == "cpu"  # at each step, since there is nothing to wait for
        self._unseen: list[Figures] = []  # since the last look
        self.loss = self.norm = math.nan  # of the last step that was looked at, the loss in the spec's unit

    @property
    def model(self) -> SequenceModel:
        """The model that is trained."""
        return self.held.model

    def resume(self) -> None:
        """Restore the newest intact checkpoint, which any number of ranks has written.

        Raises:
            RunError: there is none, it belongs to another model, or the first rank has found another one.
        """
        self.world.after_first(self._restore)
        step = self.progress.step
        first, *_ = steps = self.world.gather(torch.tensor([step])).tolist()
        if step != first:
            raise RunError(
                f"{self.folder}: the newest checkpoint here is of step {step}, but of {first} on rank 0; the folder "
                "must lie on a disk that all machines share"
            )
        if any(other != first for other in steps):
            raise ReportedElsewhere()

    def _restore(self) -> None:
        checkpoint = load_checkpoint(self.folder, self.device, self._layout())
        try:
            self.held.restore(self.held.own, checkpoint.tensors["model"])
            load_optimizer_tensors(self.optimizer, checkpoint.tensors["optimizer"])
            if self.average is not None:
                averaged = checkpoint.tensors["average"]
                self.average.n_averaged.copy_(averaged.pop("n_averaged"))
                own = {name.removeprefix("module."): x for name, x in averaged.items()}
                self.held.restore(self.average.module, own)
            state = {key: value for key, value in checkpoint.state.items() if value is not None}
            self.progress = from_dict(Progress, {"step": checkpoint.step, **state})
        except (KeyError, ValueError, RuntimeError, ConfigError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RunError(
                f"{self.folder}: its checkpoint at step {checkpoint.step} is of another model or is damaged "
                f"({reason}); restore it, or train again into another folder"
            ) from error

    def save(self) -> None:
        """Write a checkpoint of the current step."""
        self._look()
        tensors = {"model": self.held.named(self.held.own), "optimizer": optimizer_tensors(self.optimizer)}
        if self.average is not None:
            averaged = {f"module.{name}": x for name, x in self.held.named(self.average.module).items()}
            tensors["average"] = {**averaged, "n_averaged": self.average.n_averaged}
        p = self.progress
        best = None if math.isinf(p.best_loss) else p.best_loss
        state = {"seconds": p.seconds, "best_loss": best, "best_step": p.best_step, "worse": p.worse}
        checkpoint = Checkpoint(p.step, tensors, state, self._layout())
        if self.held.rows:
            save_shares(self.folder, checkpoint, self.world, self.held.num_shares)
        else:
            self.world.first_does(lambda: save_checkpoint(self.folder, checkpoint))

    def _layout(self) -> Layout:
        """Return the rows of the tensors of a checkpoint that this rank has."""
        rows = self.held.rows
        if not rows:
            return {}
        of = {id(p): name for name, p in zip(rows, self.held.own.parameters(), strict=True)}
        trained = [rows[of[id(p)]] for group in self.optimizer.param_groups for p in group["params"]]
        states = {f"{i}.{name}": own for i, own in enumerate(trained) for name in ("exp_avg", "exp_avg_sq")}
        return {"model": rows, "optimizer": states, "average": {f"module.{name}": own for name, own in rows.items()}}

    def spent(self) -> float:
        """Return the fraction of the budget that is spent, from 0 to 1."""
        if self.config.steps is not None:
            return min(1.0, self.progress.step / self.config.steps)
        return min(1.0, self.progress.seconds / self.config.seconds)

    @property
    def weights(self) -> nn.Module:
        """What this rank has of the weights to evaluate and keep: the averaged ones if averaging is on."""
        return self.held.own if self.average is None else self.average.module

    def weights_file(self) -> Path:
        """Return the path of `weights` in the checkpoint of the current step; of shares, that of their sums."""
        name = "model" if self.average is None else "average"
        file = "manifest.json" if self.held.rows else f"{name}.safetensors"
        return self.folder / f"step-{self.progress.step}" / file

    def run(
        self,
        metrics: Metrics,
        after_evaluation: Callable[[SequenceModel, Progress], None] = lambda weights, progress: None,
    ) -> Outcome:
        """Train from the current step on.

        Args:
            metrics: receives the losses and figures.
            after_evaluation: called with the evaluated model and the progress after each evaluation, on the first rank.

        Raises:
            TrainingError: the loss or the gradient is not finite; names the batch's files. No weight changes from that
                step on, and the last checkpoint stays. A GPU is asked only when a line of metrics is due.
        """
        p, stopped = self.progress, "finished"
        if self._turned():
            return Outcome(p, "early")
        if self.config.compile:
            self._compile()
        own = (step * self.config.accumulation + number for step in count(p.step) for number in self.held.share)
        loader = self.batches.loader(own, self.num_workers)
        self.world.meet()
        last_save, marks = time.perf_counter(), self._marks()
        with interruptible(self.world) as interrupted, self._bar() as bar:
            while self.spent() < 1:
                began = time.perf_counter()
                with observe(self.model) if self._observed(p.step + 1) else nullcontext() as seen:
                    rate = self._step(loader)
                p.step += 1
                logged = p.step % LOG_EVERY == 0 or p.step == 1
                if logged or self.looks_always:
                    self._look()
                p.seconds += time.perf_counter() - began
                self._show(bar)
                if logged:
                    metrics.write(
                        "train",
                        step=p.step,
                        seconds=round(p.seconds, 3),
                        loss=self.loss,
                        learning_rate=rate,
                        grad_norm=self.norm,
                    )
                if seen is not None:
                    metrics.write("diagnostics", step=p.step, **seen.event())
                stop, late, asked = self._agree(interrupted, last_save, metrics.stop)
                if self._marks() > marks or asked:
                    marks = self._marks()
                    with self.held.whole(self.weights) as weights:
                        self._evaluate(weights, metrics)
                        self.save()
                        self.world.first_does(partial(after_evaluation, weights, p))
                    last_save = time.perf_counter()
                    if self._turned():
                        stopped = "early"
                        break
                    stop, late, asked = self._agree(interrupted, last_save, metrics.stop)
                    if asked and self.spent() < 1:
                        stopped = "asked"
                        break
                if stop and self.spent() < 1:
                    self.save()
                    stopped = "interrupted"
                    break
                if late:
                    self.save()
                    last_save = time.perf_counter()
        return Outcome(p, stopped)

    def _agree(self, interrupted: threading.Event, last_save: float, asked: bool) -> tuple[bool, bool, bool]:
        """Adopt the first rank's clock.

        Returns:
            Whether any rank was interrupted, whether it is time to save, and whether a callback asks to end.
        """
        late = time.perf_counter() - last_save > CHECKPOINT_SECONDS
        mine = [[self.progress.seconds, interrupted.is_set(), late, asked]]
        seconds, stop, late, end = self.world.gather(torch.tensor(mine, dtype=torch.float64)).T
        self.progress.seconds = float(seconds[0])
        return bool(stop.any()), bool(late[0]), bool(end[0])

    def _compile(self) -> None:
        """Run a batch and discard its effects, so that the minutes of compilation do not count as training time."""
        batch, _ = next(self.batches.loader([self.progress.step * self.config.accumulation], 0))
        before = [buffer.clone() for buffer in self.model.buffers()]  # running statistics
        self.held.forward.train()
        with self.autocast:
            loss = self.held.forward(batch.to(self.device)).sum()
        loss.backward()
        for parameter in self.model.parameters():
            parameter.grad = None
        for buffer, value in zip(self.model.buffers(), before, strict=True):
            buffer.copy_(value)

    def _observed(self, step: int) -> bool:
        """Return whether to observe a step: every logged step at first, since faults show early; later every tenth."""
        every = LOG_EVERY if step <= 10 * LOG_EVERY else 10 * LOG_EVERY
        return self.diagnostics and self.world.first and (step == 1 or step % every == 0)

    def _turned(self) -> bool:
        """Return whether the held-out loss has stopped improving, by number of evaluations and of steps.

        Not in the first third of the budget, since the held-out loss of a new model may rise before it falls, and not
        within `PATIENCE_STEPS`, since a slow model takes only a few steps between evaluations.
        """
        patience, p = self.config.patience, self.progress
        if patience is None or p.worse < patience or p.step - p.best_step < PATIENCE_STEPS:
            return False
        return self.spent() > 1 / 3

    def _marks(self) -> int:
        """Return the number of evaluations due by now."""
        if self.config.steps is not None:
            return min(self.progress.step, self.config.steps) * self.config.evaluations // self.config.steps
        return int(self.spent() * self.config.evaluations)

    def _step(self, loader: Iterator[tuple[Batch, list[list[str]]]]) -> float:
        """Take one optimizer step, without waiting for a GPU; return the learning rate."""
        step, num_batches = self.progress.step, self.config.accumulation
        rate = learning_rate(self.spent(), self.config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.held.forward.train()
        share, losses = self.held.share, []
        for number in share:
            # Dropout, like the crops, depends on the seed and the number of the batch alone.
            seed = np.random.SeedSequence([self.config.seed, step * num_batches + number])
            torch.manual_seed(int(seed.generate_state(1)[0]))
            batch, _ = next(loader)
            entries = self.model.num_entries(batch)  # counted on the CPU, without synchronising
            batch = batch.to(self.device)
            with self.held.of_batch(last=number == share[-1]):
                with self.autocast:
                    if self.config.scheduled_sampling:
                        self.held.forward.eval()
                        batch = self.model.redraw(batch, self.config.scheduled_sampling)
                        self.held.forward.train()
                    if self.config.input_noise:
                        batch = self.model.perturb(batch, self.config.input_noise)
                    loss = self.held.forward(batch).sum() / entries
                loss.backward()
            losses.append(loss.detach())
        norm = self.held.finish()
        losses = self.world.gather(torch.stack(losses))  # of all ranks, so that all stop where one is not a number
        if share.step > 1:  # the ranks took batches in turn
            losses = losses.view(self.world.size, len(share)).T.flatten()
        nn.utils.clip_grads_with_norm_(self.held.own.parameters(), self.config.gradient_clip, norm)
        bad = ~(losses.isfinite().all() & norm.isfinite())
        self.optimizer.found_inf = torch.maximum(self.optimizer.found_inf, bad.float())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.held.own)
        self._unseen.append(Figures(step + 1, losses, norm))
        return rate

    def _look(self) -> None:
        """Wait for the losses and gradients of the steps since the last look.

        Raises:
            TrainingError: one of them is not a number.
        """
        if not self._unseen:
            return
        numbers = torch.stack([torch.cat([losses, norm[None]]) for _, losses, norm in self._unseen]).tolist()
        for (step, *_), (*losses, norm) in zip(self._unseen, numbers, strict=True):
            first, num_batches = (step - 1) * self.config.accumulation, self.config.accumulation
            for place, loss in enumerate(losses):
                if not math.isfinite(loss):
                    raise self.world.shared(self._not_a_number(step, "loss", loss, [first + place]))
            if not math.isfinite(norm):
                raise self.world.shared(self._not_a_number(step, "gradient", norm, range(first, first + num_batches)))
            self.loss = self.unit.of_nats(sum(loss / num_batches for loss in losses))
            self.norm = norm
        self._unseen.clear()

    def _not_a_number(self, step: int, what: str, number: float, batches: Iterable[int]) -> TrainingError:
        """Return the error of a figure of a step, with the files of its batches."""
        files = sorted({name for _, items in self.batches.loader(batches, 0) for item in items for name in item})
        more = f" and {len(files) - 8} more" if len(files) > 8 else ""
        return TrainingError(
            f"step {step}: the {what} is not a number ({number}) on a batch from {', '.join(files[:8])}{more}; no step "
            f"was taken, and the last checkpoint is intact: check these files, or try --set "
            f"training.learning_rate={self.config.learning_rate / 3:.1g}"
        )

    def _evaluate(self, weights: SequenceModel, metrics: Metrics) -> None:
        self._look()
        p, score = self.progress, self.evaluate(weights)
        # What a bound gains or loses is mostly noise that is not heard: on small folders it rises from the middle of a
        # run on, while the sound still improves to the end, where the learning rate has fallen.
        best = score.loss < p.best_loss or self.bounds and math.isfinite(score.loss)
        if best:
            p.best_loss, p.best_step, p.worse = score.loss, p.step, 0
            self.world.first_does(lambda: self.keep(weights, p))
        else:
            p.worse += 1
        if not sys.stderr.isatty():  # there is no progress bar
            log.info("step %d, %.0f s: held-out loss %.3f %s", p.step, p.seconds, score.loss, self.unit.per_entry)
        metrics.write(
            "held_out",
            step=p.step,
            seconds=round(p.seconds, 3),
            loss=score.loss,
            bound=self.bounds,
            best=best,
            bits_per_second=score.bits_per_second,
            bits_per_sample=score.per_sample,
        )

    def _bar(self) -> Any:
        total = self.config.steps if self.config.steps is not None else round(self.config.seconds)
        unit = "step" if self.config.steps is not None else "s"
        # disable=None: show the bar on terminals only.
        disable = None if self.world.first else True
        return tqdm(total=total, unit=unit, disable=disable, dynamic_ncols=True, desc="training", leave=True)

    def _show(self, bar: Any) -> None:
        p = self.progress
        bar.n = p.step if self.config.steps is not None else min(round(p.seconds), bar.total)
        bar.set_postfix(step=p.step, loss=f"{self.loss:.3f}", held_out=f"{p.best_loss:.3f}", refresh=False)
        bar.update(0)


def hold_weights(
    model: SequenceModel, config: TrainingConfig, world: World, distributed: DistributedConfig, precision: str
) -> Weights:
    """Choose how the ranks hold the weights of a model, and how they sum gradients.

    Raises:
        ConfigError: they can't train together in this way.
    """
    exact, num_batches = distributed.exact, config.accumulation
    if world.size > 1 and distributed.sharded(sum(p.numel() for p in model.parameters())):
        bf16 = precision == "bf16" and not exact
        return Shards(model, num_batches, world, exact, distributed.shards, bf16, config.compile)
    kind = Replicas if exact or world.size == 1 else OverlappedReplicas
    return kind(model, num_batches, world, compiled(model) if config.compile else None)


@contextmanager
def interruptible(world: World = World()) -> Iterator[threading.Event]:
    """Set an event on Ctrl-C or SIGTERM, so that the step can be finished; a second signal acts as usual.

    With several processes, further signals change nothing: torchrun passes on what the terminal sends to all anyway.
    Signals already ignored (nohup, background jobs) stay ignored.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {}

    def handle(number: int, frame: Any) -> None:
        event.set()
        for sent, handler in before.items() if world.size == 1 else ():
            signal.signal(sent, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, handle)
    try:
        yield event
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is handle:  # or it has been set on purpose since
                signal.signal(number, handler)
