"""GPT on a CPU: weights stored row-wise, a block of steps in one compiled call."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ....models.backbones.gpt import GPT
from ....models.embeddings import FrameEmbedding
from ....models.flow_matching import FlowMatchingHead
from ....models.heads import MixtureDensityHead
from ....models.layers import LayerState
from ....models.sequence_model import SequenceModel
from ....utils.devices import bf16_pays
from ...request import Request
from .base import KernelEngine


class GPTEngine(KernelEngine):
    """Run GPT models with gpt_kernel, those of frames with gpt_frames_kernel or gpt_flow_kernel."""

    backbone = GPT
    together = 2
    ends = (*KernelEngine.ends, (FrameEmbedding, MixtureDensityHead), (FrameEmbedding, FlowMatchingHead))
    #: Rows up to which a flow is faster here than in the plain loop, whose products of many rows are faster.
    FLOW_ROWS = 8

    @classmethod
    def pays(cls, model: SequenceModel, request: Request) -> bool:
        return request.rows <= cls.FLOW_ROWS or not isinstance(model.head, FlowMatchingHead)

    def __init__(self, model: SequenceModel, request: Request):
        super().__init__(model, request)
        from .gpt_kernel import BLOCK, run

        config: GPT.Config = model.backbone.config
        L, H, W, d = config.num_layers, config.num_heads, config.window, config.dim // config.num_heads
        kind = np.float32 if request.precision == "fp32" else np.uint16  # bf16
        self._memory = (
            np.empty((self.rows, L, -(-W // BLOCK), H, d, BLOCK), kind),
            np.empty((self.rows, L, W, H, d), kind),
        )
        self._run, self._weights = run, pack_weights(model, request.precision)
        if isinstance(model.head, MixtureDensityHead):
            from .gpt_frames_kernel import run as run_density

            self._run, self._weights = run_density, pack_density_weights(model, self._weights)
        elif isinstance(model.head, FlowMatchingHead):
            from .gpt_flow_kernel import run as run_flow

            self._run, self._weights = run_flow, pack_flow_weights(model, self._weights, request.precision)
            self._work: dict[tuple[int, int], Any] = {}

    def prefill(self, seq: Tensor) -> None:
        # Casting all weights costs as much as it saves in about ten steps. An item must not depend on the batch size.
        rounded = self.request.precision != "fp32" and seq.shape[2] >= 16 and bf16_pays(seq.device)
        with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            super().prefill(seq)

    def _drawing(self, uniforms: Tensor, logits: Tensor | None) -> tuple[Any, ...]:
        from .sampling import filters

        sampling, head = self.request.sampling, self.model.head
        if isinstance(head, MixtureDensityHead):
            normals = torch.special.ndtri(uniforms[:, :, 1:]).numpy()
            return np.ascontiguousarray(uniforms.numpy()), normals, filters(sampling, head.NUM_COMPONENTS)
        if isinstance(head, FlowMatchingHead):
            return ((sampling.temperature * torch.special.ndtri(uniforms).float()).numpy(),)
        return super()._drawing(uniforms, logits)

    def _memory_of(self, items: slice, rows: slice) -> tuple[Any, ...]:
        state = super()._memory_of(items, rows)
        if not isinstance(self.model.head, FlowMatchingHead):
            return state
        part = items.start, items.stop
        if part not in self._work:
            from .gpt_flow_kernel import flow_memory

            weights: Any = self._weights
            self._work[part] = flow_memory(weights, items.stop - items.start, rows.stop - rows.start)
        return (*state, self._work[part])

    def set_state(self, hidden: Tensor, state: list[LayerState]) -> None:
        self._hidden = hidden.float().numpy().copy()
        self._position = int(state[0]["position"])
        B, _, _, H, d, J = self._memory[0].shape  # blocks of J steps
        keys, values = (
            torch.from_numpy(part).view(torch.float32 if part.dtype == np.float32 else torch.bfloat16)
            for part in self._memory
        )
        blocks = -(-min(self._position, values.shape[2]) // J)  # that hold a key
        for layer, rings in enumerate(state):
            seen_keys, seen_values = rings["keys"][:, :, : blocks * J], rings["values"][:, :, : blocks * J]
            seen_keys = F.pad(seen_keys, (0, 0, 0, blocks * J - seen_keys.shape[2]))
            keys[:, layer, :blocks] = seen_keys.reshape(B, H, blocks, J, d).permute(0, 2, 1, 4, 3)
            values[:, layer, : seen_values.shape[2]] = seen_values.transpose(1, 2)


@torch.no_grad()
def pack_weights(model: SequenceModel, precision: str):
    """Return the gpt_kernel.Weights of a model, rounded to the precision."""
    from .gpt_kernel import Weights
    from .matvec_rowwise import pack

    backbone: Any = model.backbone
    embed: Any = model.embed
    head: Any = model.head
    # Those of frames are packed by the functions below.
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
        head=pack([head.linear] if model.spec.discrete else [nn.Linear(1, 1)], precision),
        frequencies=10000.0 ** (-np.arange(0, d, 2) / d),
    )


@torch.no_grad()
def pack_density_weights(model: SequenceModel, weights: Any) -> tuple:
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


@torch.no_grad()
def pack_flow_weights(model: SequenceModel, weights: Any, precision: str) -> Any:
    """Return the gpt_flow_kernel.FlowWeights of a model, over the packed weights of its layers."""
    from .gpt_flow_kernel import FlowWeights
    from .matvec_rowwise import pack

    embed: Any = model.embed
    head: Any = model.head
    levels, moves = head.schedule()
    times, least_gains = head.at_levels(torch.tensor(levels)[:, None])
    return FlowWeights(
        gpt=weights,
        embed=pack([embed.linear], precision),
        hidden=pack([head.hidden], precision),
        previous=pack([head.previous], precision),
        modulation=pack([block.modulation for block in head.blocks], precision),
        gain=pack([head.gain], precision),
        frame=pack([head.frame], precision),
        up=pack([block.up for block in head.blocks], precision),
        down=pack([block.down for block in head.blocks], precision),
        out=pack([head.out], precision),
        norm=torch.stack([head.norm.weight, head.norm.bias]).numpy(),
        times=times.numpy(),
        least_gains=least_gains[:, 0].numpy(),
        moves=np.array(moves, np.float32),
        range=head.range.numpy(),
    )
