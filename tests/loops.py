"""The training loop without a corpus: made-up batches, small models, and an `evaluate` that finds what it is told."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from audiogen.evaluation.scores import Score, held_out_score
from audiogen.models.backbones import BACKBONES
from audiogen.models.batch import Batch
from audiogen.models.patterns import PATTERNS
from audiogen.models.sequence_model import SequenceModel
from audiogen.runs.event_log import read_metrics
from audiogen.runs.training_config import TrainingConfig
from audiogen.spec import TokenSpec
from audiogen.training.trainer import Trainer


class Walks:
    """Batches for the training loop without a corpus: K rows of codes, each 1, 2 or 3 further than the one before (of
    `size`), and so log2(3) bits a code once that is learned. A function of the number alone, as `Crops` are."""

    def __init__(self, size: int = 8, num_rows: int = 1, batch_size: int = 4, num_frames: int = 24):
        self.spec = TokenSpec(8000, 1, num_rows, size)
        self.batch_size, self.num_frames, self.dim = batch_size, num_frames, 16

    def batch(self, step: int) -> tuple[Batch, list[list[str]]]:
        generator = torch.Generator().manual_seed(step)
        moves = torch.randint(1, 4, (self.batch_size, self.spec.num_codebooks, self.num_frames), generator=generator)
        codes = moves.cumsum(dim=2) % self.spec.codebook_size
        return Batch(codes), [[f"walk-{step}-{i}"] for i in range(self.batch_size)]

    def loader(self, numbers: Iterable[int], num_workers: int = 0):
        return map(self.batch, numbers)

    def held_out(self) -> list[torch.Tensor]:
        return list(self.batch(1_000_000)[0].x)

    def model(self, kind: str = "bigram", pattern: str = "parallel", **settings: Any) -> SequenceModel:
        """A small model of these codes; its weights follow torch's seed."""
        small = {"bigram": {"dim": self.dim}, "gpt": {"dim": self.dim, "num_layers": 2, "num_heads": 2, "window": 8}}
        backbone = BACKBONES[kind](BACKBONES[kind].Config(**{**small.get(kind, {}), **settings}))
        return SequenceModel(self.spec, backbone, PATTERNS[pattern](self.spec.num_rows))


def settings(**changes: Any) -> TrainingConfig:
    """Four steps, and nothing that interferes unless it is asked for."""
    budget = {} if "minutes" in changes else {"steps": 4, "minutes": None}
    return TrainingConfig(**{"evaluations": 1, "patience": None, "warmup": 0.0, **budget, **changes})


def losses(*values: float) -> Callable[[SequenceModel], Score]:
    """An `evaluate` that finds these held-out losses, one after the other."""
    rest = iter(values)
    return lambda model: Score(next(rest), "bits", 0.0, None, 1, 1.0)


def trainer(
    folder: Path,
    config: TrainingConfig,
    walks: Walks | None = None,
    model: SequenceModel | None = None,
    evaluate: Callable[[SequenceModel], Score] | None = None,
    keep: Callable = lambda model, progress: None,
    **more: Any,
) -> Trainer:
    walks = walks or Walks()
    evaluate = evaluate or (lambda model: held_out_score(model, walks.held_out()))
    return Trainer(model or walks.model(), walks, evaluate, keep, config, folder / "checkpoints", **more)


def weights(model: SequenceModel) -> dict[str, torch.Tensor]:
    """A copy that training does not touch."""
    return {name: x.clone() for name, x in model.state_dict().items()}


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that tell of one kind of event."""
    return [event for event in read_metrics(folder) if event["event"] == kind]
