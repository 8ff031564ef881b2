"""The plain loop with products in bf16, for batches that are faster there than in a compiled kernel."""

import copy

import torch
from torch import Tensor, nn

from ....models.sequence_model import SequenceModel
from ...request import Request
from ..eager import Eager


class RoundedLoop(Eager):
    """Run the plain loop with the linear layers of backbone and head in bf16, which some processors multiply faster.

    It also serves int8, which would round more.
    """

    def __init__(self, model: SequenceModel, request: Request):
        model = copy.deepcopy(model)
        for module in (*model.backbone.modules(), *model.head.modules()):
            if isinstance(module, nn.Linear):
                module.bfloat16()
        super().__init__(model, request)

    def prefill(self, seq: Tensor) -> None:
        with self._autocast():
            super().prefill(seq)

    def decode(self, seq: Tensor, known: Tensor, uniforms: Tensor, logits: Tensor | None = None) -> None:
        with self._autocast():
            super().decode(seq, known, uniforms, logits)

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)
