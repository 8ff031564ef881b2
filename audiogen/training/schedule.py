"""The learning rate, and which weights decay."""

import math

import torch
from torch import nn

from ..runs.training_config import TrainingConfig


def learning_rate(progress: float, config: TrainingConfig) -> float:
    """Linear warm-up, then half a cosine down (Loshchilov and Hutter 2017, SGDR, without restarts).

    Args:
        progress: fraction of the run that is spent, of its steps or of its minutes, from 0 to 1.
    """
    if progress < config.warmup:
        # The first step, at progress 0, must move too.
        return config.learning_rate * max(progress / config.warmup, 0.01)
    cosine = 0.5 * (1 + math.cos(math.pi * (progress - config.warmup) / max(1 - config.warmup, 1e-9)))
    return config.learning_rate * (config.final_learning_rate + (1 - config.final_learning_rate) * cosine)


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) that lets only matrices decay, never biases, norms or bos."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)
