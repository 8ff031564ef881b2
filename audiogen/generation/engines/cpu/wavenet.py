"""WaveNet on a CPU: weights packed column-wise, a block of steps in one compiled call."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....models.backbones.wavenet import WaveNet
from ....models.layers import LayerState
from ....models.sequence_model import SequenceModel
from ...request import Request
from .base import KernelEngine


class WaveNetEngine(KernelEngine):
    """Run WaveNet models with wavenet_kernel."""

    backbone = WaveNet
    together = 4

    def __init__(self, model: SequenceModel, request: Request):
        super().__init__(model, request)
        from .matvec_columnwise import padded
        from .wavenet_kernel import run

        self._run = run
        with torch.no_grad():
            self._weights = pack_weights(model, request.precision)
        config: WaveNet.Config = model.backbone.config
        slots, R = int(self._weights.dilations.sum()), config.residual_dim
        self._memory = (np.empty((self.rows, slots, R), np.float32),)
        self._hidden = np.zeros((self.rows, padded(config.dim)), np.float32)

    def set_state(self, hidden: Tensor, state: list[LayerState]) -> None:
        self._hidden[:, : hidden.shape[1]] = hidden.numpy()
        self._position = int(state[0]["position"])
        self._memory[0][:] = torch.cat([layer["ring"] for layer in state], dim=1).numpy()  # (B, slots, R)

    def pack_added(self, added: Tensor) -> Tensor:
        backbone: Any = self.model.backbone  # as `pack_weights` does with the embedding
        return torch.cat([added @ backbone.first.weight.T, added * backbone.direct], dim=2)  # (..., R + D)


def pack_weights(model: SequenceModel, precision: str):
    """Return the wavenet_kernel.Weights of a model, rounded to the precision."""
    from .matvec_columnwise import pack
    from .wavenet_kernel import Weights

    backbone: Any = model.backbone
    embed: Any = model.embed
    head: Any = model.head
    K, V, R, L = model.spec.num_rows, embed.hole, backbone.config.residual_dim, len(backbone.gates)
    embedding = embed.table.weight  # (K (V + 1), D)
    table = embedding @ backbone.first.weight.T  # (K (V + 1), R)
    table[: V + 1] += backbone.first.bias
    gates = torch.stack([gate.linear.weight.T for gate in backbone.gates])
    residuals = torch.zeros(L, R, R)  # the last layer has none
    residual_bias = torch.zeros(L, R)
    for layer, residual in enumerate(backbone.residuals):
        residuals[layer], residual_bias[layer] = residual.weight.T, residual.bias
    skips = backbone.skip.weight.T.unflatten(0, (L, R))  # (L, R, D)
    return Weights(
        table=table.view(K, V + 1, R).numpy(),
        direct=(embedding * backbone.direct).view(K, V + 1, -1).numpy(),
        gates=pack(gates.numpy(), precision),
        gate_bias=torch.stack([gate.linear.bias for gate in backbone.gates]).numpy(),
        outs=pack(torch.cat([residuals, skips], dim=2).numpy(), precision),
        residual_bias=residual_bias.numpy(),
        skip_bias=backbone.skip.bias.numpy().copy(),
        last=pack(backbone.last.weight.T.numpy(), precision),
        last_bias=backbone.last.bias.numpy().copy(),
        head=pack(head.linear.weight.T.numpy(), precision),
        head_bias=head.linear.bias.numpy().copy(),
        dilations=np.array([gate.dilation for gate in backbone.gates]),
    )
