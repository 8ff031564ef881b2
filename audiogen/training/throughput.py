"""Measure training speed: operations per crop, and the peak rate of the machine to compare with."""

import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..models.batch import Batch
from ..models.sequence_model import SequenceModel


def training_flops(model: SequenceModel, num_frames: int) -> int:
    """Count the floating-point operations, forward and backward, of one crop of `num_frames` frames.

    torch counts them: 6 per weight of a matrix and step (2 forward, 4 backward; Kaplan et al. 2020, Scaling Laws,
    section 2.1), and those of attention, including masked positions.
    """
    empty = model.embed.empty(1)
    batch = Batch(empty.new_zeros(1, empty.shape[1], num_frames))
    parameters = [p for p in model.parameters() if p.requires_grad]
    # Attention as plain matrix products, since torch does not count the fused kernels of some devices.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.enable_grad():
        torch.autograd.grad(model(batch).sum(), parameters, allow_unused=True)
    return counter.get_total_flops()


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Measure the peak rate of a device: operations per second of the fastest large matrix product.

    Args:
        device: device to measure.
        dtype: type of the matrices.
        seconds: time to spend.
    """
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    _ = a @ b  # the first call includes initialisation
    fastest, begun = float("inf"), time.perf_counter()
    while fastest == float("inf") or time.perf_counter() < begun + seconds:
        before = now(device)
        _ = a @ b
        fastest = min(fastest, now(device) - before)
    return 2 * size**3 / fastest


def now(device: torch.device) -> float:
    """Wait until the device has finished its work, and return the time in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
