"""Losses that were published on text, beside those that this library's parts reach with the same data and budget.

    python datasets/lesson_texts.py texts && python tests/bench/published_losses.py texts [--only NAME ...]

names.txt, as in makemore (the lesson's shuffle, 80 % to train on, 10 % for validation, the rest unused; 200,000 steps
of 32 predictions, here as many predictions in batches of whole names), and tinyshakespeare with nanoGPT's CPU recipe.
All in nats per character of the validation part, lower is better.
"""

import argparse
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from audiogen.course.characters import Characters
from audiogen.course.manual_mlp import MLPByHand, windows
from audiogen.evaluation.ngram import Bigram
from audiogen.models.backbones import GPT, MLP, Backbone, WaveNet
from audiogen.models.backbones import Bigram as NeuralBigram
from audiogen.models.batch import Batch
from audiogen.models.patterns import Parallel
from audiogen.models.sequence_model import SequenceModel
from audiogen.runs.training_config import TrainingConfig
from audiogen.training.schedule import learning_rate, make_optimizer

#: For all.py.
SHORT = "{texts} --only 'bigram, counted'"

BUDGET = 200_000 * 32  # predictions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="holds names.txt and tinyshakespeare.txt")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    args = parser.parse_args()
    print("| model | published | reached | parameters | seconds |\n| --- | --- | --- | --- | --- |", flush=True)
    for name in args.only:
        published, run = ROWS[name]
        torch.manual_seed(0)
        began = time.perf_counter()
        loss, size = run(args.folder)
        print(f"| {name} | {published} | {loss:.4f} | {size:,} | {time.perf_counter() - began:.0f} |", flush=True)


# ------------------------------------------------------------------------------------------------ names, as makemore


class Names:
    """The lesson's split: each name a sequence (1, T) that ends with a dot."""

    def __init__(self, folder: Path):
        words = (folder / "names.txt").read_text().splitlines()
        self.characters = Characters(".".join(words))
        random.Random(42).shuffle(words)
        first, second = int(0.8 * len(words)), int(0.9 * len(words))
        self.training = [self.characters.encode(word + ".") for word in words[:first]]
        self.validation = [self.characters.encode(word + ".") for word in words[first:second]]

    def batch(self, names: list[Tensor]) -> Tensor:
        """(B, 1, T), shorter ones padded with the hole behind their end."""
        hole = self.characters.spec.codebook_size
        return torch.nn.utils.rnn.pad_sequence([x[0] for x in names], batch_first=True, padding_value=hole)[:, None]

    def batches(self, size: int = 32) -> Iterable[Tensor]:
        """Without end: names in a new order each time around, those of like length together."""
        rng = random.Random(0)
        while True:
            names = sorted(rng.sample(self.training, len(self.training)), key=lambda x: x.shape[1])
            groups = [names[i : i + size] for i in range(0, len(names), size)]
            rng.shuffle(groups)
            yield from map(self.batch, groups)

    def steps(self, size: int = 32) -> int:
        """Of batches of so many names, until the lesson's budget of predictions is spent."""
        return round(BUDGET / (size * sum(x.shape[1] for x in self.training) / len(self.training)))


def counted(folder: Path) -> tuple[float, int]:
    names = Names(folder)
    model = Bigram(names.characters.spec.codebook_size)
    sides = [[torch.cat([x[0, -1:], x[0]]).numpy() for x in side] for side in (names.training, names.validation)]
    for codes in sides[0]:
        model.add(codes)
    log = torch.from_numpy(model.probabilities()).log()
    nats = -sum(log[codes[:-1], codes[1:]].sum().item() for codes in sides[1])
    return nats / sum(len(codes) - 1 for codes in sides[1]), log.numel()


def on_names(backbone: Callable[[], Backbone], **settings: float) -> Callable[[Path], tuple[float, int]]:
    def run(folder: Path) -> tuple[float, int]:
        names = Names(folder)
        model = SequenceModel(names.characters.spec, backbone(), Parallel(1))
        trained = fit(model, names.batches(), names.steps(), lambda x: mean(model, x), **settings)
        with torch.inference_mode():
            nats, entries = trained.eval().nll(Batch(names.batch(names.validation)))
        return float(nats) / entries, sum(p.numel() for p in model.parameters())

    return run


def by_hand(folder: Path, steps: int = 200_000) -> tuple[float, int]:
    names = Names(folder)
    boundary = names.characters.symbols.index(".")
    sides = [windows([x[0, :-1] for x in side], 3, boundary) for side in (names.training, names.validation)]
    (x, y), validation = sides
    model = MLPByHand(names.characters.spec.codebook_size, context=3, dim=10, hidden_dim=200, seed=0)
    generator = torch.Generator().manual_seed(0)
    for step in tqdm(range(steps), disable=None, leave=False):
        batch = torch.randint(len(x), (32,), generator=generator)
        model.loss(x[batch], y[batch])
        model.backward()
        model.step(0.1 if step < steps // 2 else 0.01)
    return model.nll(*validation, model.statistics(x)), sum(p.numel() for p in model.parameters.values())


# ---------------------------------------------------------------------------------------- tinyshakespeare, as nanoGPT


def shakespeare(folder: Path, block: int = 64, batch_size: int = 12, steps: int = 2000) -> tuple[float, int]:
    text = (folder / "tinyshakespeare.txt").read_text()
    characters = Characters(text)
    codes = characters.encode(text)
    training, validation = codes[:, : int(0.9 * len(text))], codes[:, int(0.9 * len(text)) :]
    model = SequenceModel(
        characters.spec, GPT(GPT.Config(dim=128, num_layers=4, num_heads=4, window=block)), Parallel(1)
    )

    def batches() -> Iterable[Tensor]:
        generator = torch.Generator().manual_seed(0)
        while True:
            starts = torch.randint(training.shape[1] - block - 1, (batch_size,), generator=generator)
            yield torch.stack([training[:, start : start + block + 1] for start in starts])

    def loss(x: Tensor) -> Tensor:  # as there: 64 predictions, of which the first has seen one character
        return model(Batch(x))[:, :, 1:].mean()

    fit(model, batches(), steps, loss, learning_rate=1e-3, weight_decay=0.1, warmup=0.05, final_learning_rate=0.1)
    windows = validation.unfold(1, block + 1, block).transpose(0, 1)  # (windows, 1, 65): every character once
    with torch.inference_mode():
        model.eval()
        losses = torch.cat([model(Batch(x))[:, 0, 1:] for x in windows.split(64)])
    return float(losses.mean()), sum(p.numel() for p in model.parameters())


# ------------------------------------------------------------------------------------------------------- the training


def fit(
    model: SequenceModel,
    batches: Iterable[Tensor],
    steps: int,
    loss_of: Callable[[Tensor], Tensor],
    average: float = 0.0,
    **settings: float,
) -> SequenceModel:
    """AdamW with the library's schedule -> the model, or its running average if `average` is above 0."""
    config = TrainingConfig(steps=steps, minutes=None, **settings)
    optimizer = make_optimizer(model, config)
    smooth = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(average)) if average else None
    model.train()
    for step, x in zip(tqdm(range(steps), disable=None, leave=False), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step / steps, config)
        optimizer.zero_grad(set_to_none=True)
        loss_of(x).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        optimizer.step()
        if smooth is not None:
            smooth.update_parameters(model)
    return model if smooth is None else smooth.module


def mean(model: SequenceModel, x: Tensor) -> Tensor:
    nats, entries = model.nll(Batch(x))
    return nats / entries


ROWS: dict[str, tuple[str, Callable[[Path], tuple[float, int]]]] = {
    "bigram, counted": ("2.48", counted),
    "bigram, by gradient": (
        "2.48",
        on_names(lambda: NeuralBigram(NeuralBigram.Config(dim=32)), learning_rate=1e-2, weight_decay=0.0),
    ),
    "MLP": (
        "2.17",
        on_names(
            lambda: MLP(MLP.Config(dim=24, context=3, hidden_dim=200)),
            learning_rate=3e-3,
            weight_decay=0.01,
            average=0.999,
        ),
    ),
    "MLP with BatchNorm": (
        "2.11",
        on_names(
            lambda: MLP(MLP.Config(dim=24, context=3, hidden_dim=200, batch_norm=True)),
            learning_rate=3e-3,
            weight_decay=0.01,
            average=0.999,
        ),
    ),
    "MLP with BatchNorm, backward passes by hand": ("2.11", by_hand),
    "WaveNet": (
        "1.993",
        on_names(
            lambda: WaveNet(WaveNet.Config(dim=64, residual_dim=64, num_layers=3, dilation_cycle=3)),
            learning_rate=2e-3,
            weight_decay=0.1,
            average=0.999,
        ),
    ),
    "GPT on tinyshakespeare": ("1.88", shakespeare),
}

if __name__ == "__main__":
    main()
