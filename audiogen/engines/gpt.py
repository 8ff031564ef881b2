"""GPT on one CPU core: weights in rows, a whole block of steps in one compiled call."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backbones.gpt import GPT
from ..model import SequenceModel
from .kernel import KernelEngine


class GPTEngine(KernelEngine):
    backbone = GPT

    def __init__(self, model: SequenceModel, batch_size: int):
        super().__init__(model, batch_size)
        from .gpt_kernel import run

        self._run = run
        self._weights = pack_weights(model)
        config = model.backbone.config
        L, H, W, d = config.num_layers, config.num_heads, config.window, config.dim // config.num_heads
        self._memory = np.empty((L, batch_size, H, d, W), np.float32), np.empty((L, batch_size, H, W, d), np.float32)

    def begin(self, hidden: Tensor, state: Any) -> None:
        self._hidden = hidden.numpy().copy()
        self._position = int(state[0]["position"])
        keys, values = self._memory
        seen = min(self._position, keys.shape[4])                       # slots that are filled
        for layer, rings in enumerate(state):
            torch.from_numpy(keys[layer, ..., :seen]).copy_(rings["keys"][:, :, :seen].transpose(2, 3))
            torch.from_numpy(values[layer, :, :, :seen]).copy_(rings["values"][:, :, :seen])


@torch.no_grad()
def pack_weights(model: SequenceModel):
    """The gpt_kernel.Weights of a model, at its precision."""
    from .gpt_kernel import Weights
    from .rows import pack

    backbone, precision = model.backbone, model.precision
    blocks, config = backbone.blocks, backbone.config
    norms = [norm for block in blocks for norm in (block.norm_attention, block.norm_feed_forward)] + [backbone.norm]
    d = config.dim // config.num_heads
    return Weights(
        table=model.embed.table.weight.view(model.spec.num_codebooks, -1, config.dim).numpy().copy(),
        norms=torch.stack([torch.stack([norm.weight, norm.bias]) for norm in norms]).numpy(),
        qkv=pack([block.attention.qkv for block in blocks], precision),
        out=pack([block.attention.out for block in blocks], precision),
        up=pack([block.up for block in blocks], precision),
        down=pack([block.down for block in blocks], precision),
        head=pack([model.head.linear], precision),
        frequencies=10000.0 ** (-np.arange(0, d, 2) / d))
