"""Callbacks of training, among them the loggers TensorBoard and Weights & Biases."""

import importlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import ConfigError
from ..utils.files import atomic_write_text


class Callback:
    """Observe a training run. Override the methods you need; of several processes, the first one calls them.

    Example:
        >>> class Best(Callback):
        ...     loss = float("inf")
        ...
        ...     def on_event(self, event):
        ...         if event["event"] == "held_out":
        ...             self.loss = min(self.loss, event["loss"])
        >>> best = Best()
        >>> run = audiogen.train("recordings", "runs/mine", callbacks=[best])  # doctest: +SKIP
    """

    def on_start(self, folder: Path, config: dict[str, Any], after: int | None) -> None:
        """Begin a run, or a stage of one.

        Args:
            folder: the run folder.
            config: contents of its config.json.
            after: the step after which a resumed run continues; None for a new run.
        """

    def on_event(self, event: dict[str, Any]) -> bool | None:
        """Receive an event, as it is written to metrics.jsonl: {"event": "train", "step": 10, "loss": 5.1, ...}.

        Returns:
            True to end training: the model is evaluated and saved, and the run is finished as at the end of its budget.
        """

    def on_evaluation(self, model: nn.Module, step: int) -> None:
        """Receive the evaluated `SequenceModel`, in evaluation mode, with averaged weights where they are averaged."""

    def on_audio(self, name: str, wav: Tensor, sample_rate: int, step: int) -> None:
        """Receive a generated sound (C, N)."""

    def on_end(self) -> None:
        """End the run, also after an error."""


class Function(Callback):
    """A function that receives each event; see `Callback.on_event`."""

    def __init__(self, function: Callable[[dict[str, Any]], Any]):
        self.function = function

    def on_event(self, event: dict[str, Any]) -> bool | None:
        """Call the function."""
        return self.function(event)


class TensorBoard(Callback):
    """Write scalars and sounds for TensorBoard, to the folder `tensorboard` of the run."""

    package = "torch.utils.tensorboard"

    def on_start(self, folder: Path, config: dict[str, Any], after: int | None) -> None:
        """Open a file of events; those of later steps, before a resumption, are no longer shown."""
        writer = importlib.import_module(self.package).SummaryWriter
        self.writer = writer(str(folder / "tensorboard"), purge_step=None if after is None else after + 1)

    def on_event(self, event: dict[str, Any]) -> None:
        """Add the numbers of an event that has a step."""
        for name, value in scalars(event).items() if "step" in event else ():
            self.writer.add_scalar(name, value, event["step"])

    def on_audio(self, name: str, wav: Tensor, sample_rate: int, step: int) -> None:
        """Add the mono mix of a sound, since TensorBoard has no other."""
        self.writer.add_audio(name, wav.mean(0, keepdim=True), step, sample_rate=sample_rate)

    def on_end(self) -> None:
        """Flush and close the file."""
        if hasattr(self, "writer"):
            self.writer.close()


class WandB(Callback):
    """Log scalars and sounds to Weights & Biases, as its own environment variables say, such as WANDB_PROJECT.

    WANDB_MODE=offline logs to the folder `wandb` of the run alone. A resumed run continues its curves.
    """

    package = "wandb"
    run: Any = None

    def on_start(self, folder: Path, config: dict[str, Any], after: int | None) -> None:
        """Start a run of W&B, named after the folder, or continue that of a resumed run.

        Raises:
            ConfigError: nobody is logged in, or W&B can't be reached.
        """
        self.wandb = importlib.import_module("wandb")
        id_file = folder / "wandb" / "run-id.txt"
        begun = id_file.read_text(encoding="utf-8").strip() if after is not None and id_file.is_file() else None
        try:
            self.run = self.wandb.init(dir=str(folder), name=str(folder), config=config, id=begun, resume="allow")
        except Exception as error:  # of many kinds
            raise ConfigError(
                f"--logger wandb: could not start ({' '.join(str(error).split())[:200]}); run `wandb login`, or set "
                "WANDB_MODE=offline"
            ) from error
        # A resumed run repeats the steps after its checkpoint, which W&B's own counter would refuse.
        self.run.define_metric("*", step_metric="step")
        id_file.parent.mkdir(exist_ok=True)
        atomic_write_text(id_file, f"{self.run.id}\n")

    def on_event(self, event: dict[str, Any]) -> None:
        """Log the numbers of an event that has a step; those of another become part of the summary."""
        if "step" in event:
            self.run.log({**scalars(event), "step": event["step"]})
        else:
            self.run.summary.update(scalars(event))

    def on_audio(self, name: str, wav: Tensor, sample_rate: int, step: int) -> None:
        """Log a sound."""
        self.run.log({name: self.wandb.Audio(wav.T.numpy(), sample_rate=sample_rate), "step": step})

    def on_end(self) -> None:
        """Send what is left."""
        if self.run is not None:
            self.run.finish()


#: By name, for --logger.
LOGGERS: dict[str, type[TensorBoard] | type[WandB]] = {"tensorboard": TensorBoard, "wandb": WandB}


def choose_loggers(names: Sequence[str] | None) -> list[Callback]:
    """Return new loggers.

    Args:
        names: of LOGGERS; ["none"] for none. None for TensorBoard, if it is installed.

    Raises:
        ConfigError: there is no such logger, or its package is not installed.
    """
    if names is None:
        return [TensorBoard()] if _installed(TensorBoard.package) else []
    if list(names) == ["none"]:
        return []
    for name in names:
        if name not in LOGGERS:
            raise ConfigError(f"--logger: must be of {', '.join(LOGGERS)}, or none, got {name!r}")
        if not _installed(LOGGERS[name].package):
            raise ConfigError(f"--logger {name}: is not installed; run: pip install {name}")
    return [LOGGERS[name]() for name in names]


def as_callback(given: Callback | Callable[[dict[str, Any]], Any]) -> Callback:
    """Return a callback; a function becomes one that receives each event.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(given, Callback):
        return given
    if isinstance(given, type) or not callable(given):
        raise ConfigError(f"callbacks: must be functions or objects of audiogen.Callback, got {given!r}")
    return Function(given)


def scalars(event: dict[str, Any]) -> dict[str, float]:
    """Return the finite numbers of an event, as "train/loss"."""
    numbers = {f"{event['event']}/{name}": value for name, value in event.items() if name != "step"}
    return {
        name: value
        for name, value in numbers.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _installed(package: str) -> bool:
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    return True
