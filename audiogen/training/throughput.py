"""How fast a model trains, and how much of the machine that is."""

import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..models.batch import Batch
from ..models.sequence_model import SequenceModel


def training_flops(model: SequenceModel, num_frames: int) -> int:
    """Floating-point operations of one crop of so many frames, forward and backward, as torch counts them.

    Of the matrices 6 for each weight and step (2 forward, 4 backward: Kaplan et al. 2020, Scaling Laws, section 2.1);
    and those of attention between its steps, masked ones included.
    """
    empty = model.embed.empty(1)
    batch = Batch(empty.new_zeros(1, empty.shape[1], num_frames))
    parameters = [p for p in model.parameters() if p.requires_grad]
    # Attention as plain products: the fused kernels of some devices are not in torch's book.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.enable_grad():
        torch.autograd.grad(model(batch).sum(), parameters, allow_unused=True)
    return counter.get_total_flops()


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Operations per second of the fastest large matrix product that is seen within so many seconds.

    What the machine gives at its best, and so what a training step can be compared with.
    """
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    a @ b  # what is made ready at the first call
    fastest, begun = float("inf"), time.perf_counter()
    while fastest == float("inf") or time.perf_counter() < begun + seconds:
        before = now(device)
        a @ b
        fastest = min(fastest, now(device) - before)
    return 2 * size**3 / fastest


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done all that it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
