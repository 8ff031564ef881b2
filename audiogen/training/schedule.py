"""The learning-rate schedule and the optimizer."""

import math

import torch
from torch import nn

from ..runs.training_config import TrainingConfig

#: Decay rates of AdamW's moving averages of the gradient and of its square.
BETAS = (0.9, 0.95)
#: Minimum steps of warm-up in fine-tuning: 2 / (1 - beta2), in which AdamW's averages settle.
SETTLING_STEPS = round(2 / (1 - BETAS[1]))


def learning_rate(progress: float, config: TrainingConfig, step: float = math.inf) -> float:
    """Return the learning rate: linear warm-up, then cosine decay (Loshchilov and Hutter 2017, SGDR, no restarts).

    Fine-tuning warms up for at least `SETTLING_STEPS` (Ma and Yarats 2021, On the adequacy of untuned warmup for
    adaptive optimization). On a slow machine a few minutes are a few steps. The second of them would otherwise be taken
    at the full rate, and lose what the base model has learned.

    Args:
        progress: fraction of the budget (steps or minutes) that is spent, from 0 to 1.
        config: peak, warm-up and final rate.
        step: number of steps taken before; matters only to fine-tuning.
    """
    peak = config.learning_rate
    # Not 0 at the first step, which would otherwise do nothing.
    rising = 1.0 if config.warmup == 0 else max(progress / config.warmup, 0.01)
    if config.start == "base":
        rising = min(rising, (step + 1) / SETTLING_STEPS)
    decayed = max(0.0, progress - config.warmup) / max(1 - config.warmup, 1e-9)
    cosine = 0.5 * (1 + math.cos(math.pi * decayed))
    return peak * min(rising, config.final_learning_rate + (1 - config.final_learning_rate) * cosine)


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter 2019) with weight decay on matrices only, not on biases, norms and bos."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=BETAS, fused=True)
