"""The training loop of sequence models."""

import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from ..config import from_dict
from ..errors import ConfigError, RunError, TrainingError
from ..evaluation.scores import Score
from ..models.batch import Batch
from ..models.sequence_model import SequenceModel
from ..runs.event_log import Metrics
from ..runs.training_config import TrainingConfig
from .checkpoint import Checkpoint, load_checkpoint, load_optimizer_tensors, optimizer_tensors, save_checkpoint
from .diagnostics import observe
from .schedule import learning_rate, make_optimizer

log = logging.getLogger("audiogen")

#: Maximum seconds between checkpoints. Each evaluation saves one too. Saving does not affect the result.
CHECKPOINT_SECONDS = 300.0
#: Steps between lines of metrics.
LOG_EVERY = 10
#: Minimum steps without a better held-out loss before a run stops early, in addition to `patience` evaluations.
PATIENCE_STEPS = 100


class Batches(Protocol):
    """Batches as a pure function of the step, so that resuming needs one integer. See `Crops`."""

    def loader(self, start: int, stop: int | None, num_workers: int) -> Iterator[tuple[Batch, list[list[str]]]]:
        """Iterate over steps [start, stop): batches, and the names of the files in each item."""
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
    """The exponential moving average of a model's weights. AveragedModel's own update synchronises with the GPU."""

    module: Any  # the averaged SequenceModel
    n_averaged: Tensor  # on the CPU

    def __init__(self, model: SequenceModel, decay: float):
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


class Figure(NamedTuple):
    """A figure of a step, whose value a GPU may not have computed yet."""

    step: int
    what: str  # "loss" or "gradient"
    value: Tensor
    files: list[str]  # of the step's batches so far


@dataclass(frozen=True)
class Outcome:
    """How `Trainer.run` ended."""

    progress: Progress
    stopped: str  # "finished", "early" or "interrupted"


class Trainer:
    """Train a model until its budget is spent, its held-out loss stops improving, or it is interrupted.

    Args:
        model: the model, on its device.
        batches: training batches, such as `Crops`.
        evaluate: returns the held-out score of a model.
        keep: called with the model (the averaged one if averaging is on) and the progress after each best evaluation.
        config: the settings.
        folder: folder of the checkpoints.
        precision: "fp32" or "bf16", for matrix products in training; evaluation is always fp32.
        num_workers: loader processes.
        diagnostics: write the observations of some steps to the metrics; does not affect the result.
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
    ):
        self.model, self.batches, self.evaluate, self.keep = model, batches, evaluate, keep
        self.config, self.folder, self.num_workers, self.diagnostics = config, folder, num_workers, diagnostics
        self.device = model.bos.device
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")
        self.optimizer: Any = make_optimizer(model, config)
        # 1 from the first step on whose loss or gradient is not a number: then no step changes a weight.
        self.optimizer.found_inf = torch.zeros((), device=self.device)
        self.average = None if config.average is None else Average(model, config.average)
        self.per_entry = torch.compile(model) if config.compile else model
        self.unit = model.spec.unit
        self.progress = Progress()
        self.looks_always = self.device.type == "cpu"  # at each step, since there is nothing to wait for
        self._unseen: list[Figure] = []  # since the last look
        self.loss = self.norm = math.nan  # of the last step that was looked at, the loss in the spec's unit

    def resume(self) -> None:
        """Restore the newest intact checkpoint.

        Raises:
            RunError: there is none, or it belongs to another model.
        """
        checkpoint = load_checkpoint(self.folder, self.device)
        try:
            self.model.load_state_dict(checkpoint.tensors["model"])
            load_optimizer_tensors(self.optimizer, checkpoint.tensors["optimizer"])
            if self.average is not None:
                self.average.load_state_dict(checkpoint.tensors["average"])
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
        tensors = {"model": self.model.state_dict(), "optimizer": optimizer_tensors(self.optimizer)}
        if self.average is not None:
            tensors["average"] = self.average.state_dict()
        p = self.progress
        best = None if math.isinf(p.best_loss) else p.best_loss
        state = {"seconds": p.seconds, "best_loss": best, "best_step": p.best_step, "worse": p.worse}
        save_checkpoint(self.folder, Checkpoint(p.step, tensors, state))

    def spent(self) -> float:
        """Return the fraction of the budget that is spent, from 0 to 1."""
        if self.config.steps is not None:
            return min(1.0, self.progress.step / self.config.steps)
        return min(1.0, self.progress.seconds / self.config.seconds)

    @property
    def weights(self) -> SequenceModel:
        """The model to evaluate and keep: the averaged one if averaging is on."""
        return self.model if self.average is None else self.average.module

    def weights_file(self) -> Path:
        """Return the path of `weights` in the checkpoint of the current step."""
        name = "model" if self.average is None else "average"
        return self.folder / f"step-{self.progress.step}" / f"{name}.safetensors"

    def run(self, metrics: Metrics, after_evaluation: Callable[[Progress], None] = lambda progress: None) -> Outcome:
        """Train from the current step on.

        Args:
            metrics: receives the losses and figures.
            after_evaluation: called with the progress after each evaluation.

        Raises:
            TrainingError: the loss or the gradient is not finite; names the batch's files. No weight changes from that
                step on, and the last checkpoint stays. A GPU is asked only when a line of metrics is due.
        """
        p, stopped = self.progress, "finished"
        if self._turned():
            return Outcome(p, "early")
        if self.config.compile:
            self._compile()
        loader = self.batches.loader(p.step * self.config.accumulation, None, self.num_workers)
        last_save, marks = time.perf_counter(), self._marks()
        with interruptible() as interrupted, self._bar() as bar:
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
                if self._marks() > marks:
                    marks = self._marks()
                    self._evaluate(metrics)
                    self.save()
                    after_evaluation(p)
                    last_save = time.perf_counter()
                    if self._turned():
                        stopped = "early"
                        break
                if interrupted.is_set() and self.spent() < 1:
                    self.save()
                    stopped = "interrupted"
                    break
                if time.perf_counter() - last_save > CHECKPOINT_SECONDS:
                    self.save()
                    last_save = time.perf_counter()
        return Outcome(p, stopped)

    def _compile(self) -> None:
        """Run a batch and discard its effects, so that the minutes of compilation do not count as training time."""
        batch, _ = next(self.batches.loader(self.progress.step * self.config.accumulation, None, 0))
        before = [buffer.clone() for buffer in self.model.buffers()]  # running statistics
        self.model.train()
        with self.autocast:
            loss = self.per_entry(batch.to(self.device)).sum()
        loss.backward()
        self.optimizer.zero_grad(set_to_none=True)
        for buffer, value in zip(self.model.buffers(), before, strict=True):
            buffer.copy_(value)

    def _observed(self, step: int) -> bool:
        """Return whether to observe a step: every logged step at first, since faults show early; later every tenth."""
        every = LOG_EVERY if step <= 10 * LOG_EVERY else 10 * LOG_EVERY
        return self.diagnostics and (step == 1 or step % every == 0)

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
        # Dropout, like the crops, depends on (seed, step) alone.
        torch.manual_seed(int(np.random.SeedSequence([self.config.seed, self.progress.step]).generate_state(1)[0]))
        rate, step = learning_rate(self.spent(), self.config), self.progress.step + 1
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        names: set[str] = set()
        figures = []
        for _ in range(self.config.accumulation):
            batch, files = next(loader)
            names.update(name for item in files for name in item)
            entries = self.model.num_entries(batch)  # counted on the CPU, without synchronising
            batch = batch.to(self.device)
            with self.autocast:
                if self.config.scheduled_sampling:
                    self.model.eval()
                    batch = self.model.redraw(batch, self.config.scheduled_sampling)
                    self.model.train()
                loss = self.per_entry(batch).sum() / entries
            (loss / self.config.accumulation).backward()
            figures.append(Figure(step, "loss", loss.detach(), sorted(names)))
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        figures.append(Figure(step, "gradient", norm, sorted(names)))
        bad = ~torch.stack([figure.value for figure in figures]).isfinite().all()
        self.optimizer.found_inf = torch.maximum(self.optimizer.found_inf, bad.float())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self._unseen += figures
        return rate

    def _look(self) -> None:
        """Wait for the losses and gradients of the steps since the last look.

        Raises:
            TrainingError: one of them is not a number.
        """
        if not self._unseen:
            return
        numbers = torch.stack([figure.value for figure in self._unseen]).tolist()
        for (step, what, _, files), number in zip(self._unseen, numbers, strict=True):
            if not math.isfinite(number):
                more = f" and {len(files) - 8} more" if len(files) > 8 else ""
                raise TrainingError(
                    f"step {step}: the {what} is not a number ({number}) on a batch from "
                    f"{', '.join(files[:8])}{more}; no step was taken, and the last checkpoint is intact: "
                    f"check these files, or try --set training.learning_rate={self.config.learning_rate / 3:.1g}"
                )
        *losses, self.norm = numbers[-self.config.accumulation - 1 :]
        self.loss = self.unit.of_nats(sum(loss / self.config.accumulation for loss in losses))
        self._unseen.clear()

    def _evaluate(self, metrics: Metrics) -> None:
        self._look()
        p, score = self.progress, self.evaluate(self.weights)
        best = score.loss < p.best_loss
        if best:
            p.best_loss, p.best_step, p.worse = score.loss, p.step, 0
            self.keep(self.weights, p)
        else:
            p.worse += 1
        if not sys.stderr.isatty():  # there is no progress bar
            log.info("step %d, %.0f s: held-out loss %.3f %s", p.step, p.seconds, score.loss, self.unit.per_entry)
        metrics.write(
            "held_out",
            step=p.step,
            seconds=round(p.seconds, 3),
            loss=score.loss,
            best=best,
            bits_per_second=score.bits_per_second,
            bits_per_sample=score.per_sample,
        )

    def _bar(self) -> Any:
        total = self.config.steps if self.config.steps is not None else round(self.config.seconds)
        unit = "step" if self.config.steps is not None else "s"
        # disable=None: show the bar on terminals only.
        return tqdm(total=total, unit=unit, disable=None, dynamic_ncols=True, desc="training", leave=True)

    def _show(self, bar: Any) -> None:
        p = self.progress
        bar.n = p.step if self.config.steps is not None else min(round(p.seconds), bar.total)
        bar.set_postfix(step=p.step, loss=f"{self.loss:.3f}", held_out=f"{p.best_loss:.3f}", refresh=False)
        bar.update(0)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Set an event on Ctrl-C or SIGTERM, so that the step can be finished; a second signal acts as usual.

    Signals already ignored (nohup, background jobs) stay ignored.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {}

    def handle(number: int, frame: Any) -> None:
        event.set()
        for sent, handler in before.items():
            signal.signal(sent, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, handle)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
