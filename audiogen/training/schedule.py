"""The learning-rate schedule and the optimizer."""

import math

import torch
from torch import nn

from ..runs.training_config import TrainingConfig


def learning_rate(progress: float, config: TrainingConfig) -> float:
    """Return the learning rate: linear warm-up, then cosine decay (Loshchilov and Hutter 2017, SGDR, no restarts).

    Args:
        progress: fraction of the budget (steps or minutes) that is spent, from 0 to 1.
        config: peak, warm-up and final rate.
    """
    if progress < config.warmup:
        # Not 0 at the first step, which would otherwise do nothing.
        return config.learning_rate * max(progress / config.warmup, 0.01)
    cosine = 0.5 * (1 + math.cos(math.pi * (progress - config.warmup) / max(1 - config.warmup, 1e-9)))
    return config.learning_rate * (config.final_learning_rate + (1 - config.final_learning_rate) * cosine)


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter 2019) with weight decay on matrices only, not on biases, norms and bos."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)
