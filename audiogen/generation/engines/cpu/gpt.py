"""GPT on one CPU core: weights stored row-wise, a block of steps in one compiled call."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ....models.backbones.gpt import GPT
from ....models.layers import LayerState
from ....models.sequence_model import SequenceModel
from ....utils.devices import bf16_pays
from ...request import Request
from .base import KernelEngine


class GPTEngine(KernelEngine):
    """Run GPT models with gpt_kernel."""

    backbone = GPT

    def __init__(self, model: SequenceModel, request: Request):
        super().__init__(model, request)
        from .gpt_kernel import BLOCK, run

        self._run = run
        self._weights = pack_weights(model, request.precision)
        config: GPT.Config = model.backbone.config
        L, H, W, d = config.num_layers, config.num_heads, config.window, config.dim // config.num_heads
        kind = np.float32 if request.precision == "fp32" else np.uint16  # bf16
        self._memory = (
            np.empty((L, self.rows, -(-W // BLOCK), H, d, BLOCK), kind),
            np.empty((L, self.rows, W, H, d), kind),
        )

    def prefill(self, seq: Tensor) -> None:
        # Casting all weights costs as much as it saves in about ten steps. An item must not depend on the batch size.
        rounded = self.request.precision != "fp32" and seq.shape[2] >= 16 and bf16_pays(seq.device)
        with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            super().prefill(seq)

    def set_state(self, hidden: Tensor, state: list[LayerState]) -> None:
        self._hidden = hidden.float().numpy().copy()
        self._position = int(state[0]["position"])
        _, B, _, H, d, J = self._memory[0].shape  # blocks of J steps
        keys, values = (
            torch.from_numpy(part).view(torch.float32 if part.dtype == np.float32 else torch.bfloat16)
            for part in self._memory
        )
        blocks = -(-min(self._position, values.shape[2]) // J)  # that hold a key
        for layer, rings in enumerate(state):
            seen_keys, seen_values = rings["keys"][:, :, : blocks * J], rings["values"][:, :, : blocks * J]
            seen_keys = F.pad(seen_keys, (0, 0, 0, blocks * J - seen_keys.shape[2]))
            keys[layer, :, :blocks] = seen_keys.reshape(B, H, blocks, J, d).permute(0, 2, 1, 4, 3)
            values[layer, :, : seen_values.shape[2]] = seen_values.transpose(1, 2)


@torch.no_grad()
def pack_weights(model: SequenceModel, precision: str):
    """Return the gpt_kernel.Weights of a model, rounded to the precision."""
    from .gpt_kernel import Weights
    from .matvec_rowwise import pack

    backbone: Any = model.backbone
    embed: Any = model.embed
    head: Any = model.head
    blocks, config = backbone.blocks, backbone.config
    norms = [norm for block in blocks for norm in (block.norm_attention, block.norm_feed_forward)] + [backbone.norm]
    d = config.dim // config.num_heads
    return Weights(
        table=embed.table.weight.view(model.spec.num_rows, -1, config.dim).numpy().copy(),
        norms=torch.stack([torch.stack([norm.weight, norm.bias]) for norm in norms]).numpy(),
        qkv=pack([block.attention.qkv for block in blocks], precision),
        out=pack([block.attention.out for block in blocks], precision),
        up=pack([block.up for block in blocks], precision),
        down=pack([block.down for block in blocks], precision),
        head=pack([head.linear], precision),
        frequencies=10000.0 ** (-np.arange(0, d, 2) / d),
    )
