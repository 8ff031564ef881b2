"""What a training step costs, counted."""

import torch
from tiny import TOKENS, tiny_model

from audiogen.training import throughput
from audiogen.training.throughput import training_flops


def test_operations_are_six_a_weight_and_step_and_those_of_attention():
    """Guards against a count without the backward pass, of the embedding's table, or without attention."""
    model = tiny_model(TOKENS, "gpt", "delay", window=32)
    frames, steps = 20, 22  # K = 3: delayed by two
    weights = sum(p.numel() for p in [*model.backbone.parameters(), model.head.linear.weight] if p.ndim == 2)
    # Forward: queries by keys and weights by values, (S, S, D) products of 2 operations; backward: two products each.
    attention = 3 * model.backbone.config.num_layers * 2 * 2 * steps * steps * model.backbone.dim
    # The first product's own input, bos and embeddings, has a gradient too: all of it counts.
    assert training_flops(model, frames) == 6 * weights * steps + attention
    assert all(p.grad is None for p in model.parameters()), "counting leaves nothing behind"


def test_the_matmul_rate_is_operations_by_the_shortest_time(monkeypatch):
    """Guards against operations per product in the place of operations per second, and a mean that a busy moment drags
    down."""
    clock = iter([0.0, 4.0, 10.0, 12.0, 20.0, 23.0, *range(100, 10_000, 5)])
    monkeypatch.setattr(throughput, "now", lambda device: next(clock))
    ticks = iter([0.0, 0.1, 0.1, 0.3])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(ticks))
    assert throughput.matmul_rate(torch.device("cpu"), torch.float32, seconds=0.2) == 2 * 1024**3 / 2.0
