"""GPT on one CPU core: weights stored row-wise, a block of steps in one compiled call."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ....models.backbones.gpt import GPT
from ....models.embeddings import FrameEmbedding
from ....models.heads import MixtureDensityHead
from ....models.layers import LayerState
from ....models.sequence_model import SequenceModel
from ....utils.devices import bf16_pays
from ...request import Request
from .base import KernelEngine


class GPTEngine(KernelEngine):
    """Run GPT models with gpt_kernel, those of frames with gpt_frames_kernel."""

    backbone = GPT
    ends = (*KernelEngine.ends, (FrameEmbedding, MixtureDensityHead))

    def __init__(self, model: SequenceModel, request: Request):
        super().__init__(model, request)
        from .gpt_kernel import BLOCK, run

        self._run = run
        self._weights = pack_weights(model, request.precision)
        if not model.spec.discrete:
            from .gpt_frames_kernel import run as run_frames

            self._run, self._weights = run_frames, pack_frame_weights(model, self._weights)
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

    def decode(self, seq: Tensor, known: Tensor, uniforms: Tensor, logits: Tensor | None = None) -> None:
        if self.model.spec.discrete:
            return super().decode(seq, known, uniforms, logits)
        from ....utils.jit import log_compilation
        from .sampling import filters

        frames = np.ascontiguousarray(seq.numpy())
        head: Any = self.model.head
        with log_compilation("the engine for GPT over frames"):
            self._run(
                self._weights,
                *self._memory,
                self._position,
                self._hidden,
                frames,
                np.ascontiguousarray(known[0].numpy()),
                np.ascontiguousarray(uniforms.numpy()),
                torch.special.ndtri(uniforms[:, :, 1:]).numpy(),
                filters(self.request.sampling, head.NUM_COMPONENTS),
                self._added(frames.shape[2]),
                np.float32(self.request.guidance),
            )
        seq.copy_(torch.from_numpy(frames))
        self._position += frames.shape[2]
        self.step += frames.shape[2]

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
    # Those of frames are packed by `pack_frame_weights`.
    table = embed.table.weight if model.spec.discrete else torch.zeros(model.spec.num_rows, backbone.dim)
    blocks, config = backbone.blocks, backbone.config
    norms = [norm for block in blocks for norm in (block.norm_attention, block.norm_feed_forward)] + [backbone.norm]
    d = config.dim // config.num_heads
    return Weights(
        table=table.view(model.spec.num_rows, -1, config.dim).numpy().copy(),
        norms=torch.stack([torch.stack([norm.weight, norm.bias]) for norm in norms]).numpy(),
        qkv=pack([block.attention.qkv for block in blocks], precision),
        out=pack([block.attention.out for block in blocks], precision),
        up=pack([block.up for block in blocks], precision),
        down=pack([block.down for block in blocks], precision),
        head=pack([head.linear], precision),
        frequencies=10000.0 ** (-np.arange(0, d, 2) / d),
    )


@torch.no_grad()
def pack_frame_weights(model: SequenceModel, weights: Any) -> tuple:
    """Return the gpt_frames_kernel.FrameWeights of a model, over the packed weights of its layers."""
    from .gpt_frames_kernel import FrameWeights
    from .matvec_rowwise import pack

    embed: Any = model.embed
    head: Any = model.head
    return FrameWeights(
        gpt=weights,
        embed=pack([embed.linear], "fp32"),
        head=pack([head.linear], "fp32"),
        factors=pack([head.factors], "fp32"),
        keep=head.keep.numpy(),
        below=head.below.numpy(),
        least_log_scale=math.log(head.MIN_SCALE),
        range=head.range.numpy(),
    )
