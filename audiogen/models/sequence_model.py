"""SequenceModel = embed + backbone + head, over steps that a pattern lays out."""

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..spec import Spec, TokenSpec
from .backbones import Backbone
from .batch import Batch
from .embeddings import CodeEmbedding, FrameEmbedding
from .heads import CategoricalHead, MixtureDensityHead
from .layers import State
from .patterns import Parallel, Pattern


class SequenceModel(nn.Module):
    """A distribution over codes (B, K, T) or frames (B, F, T), one step at a time.

    Step s is predicted from the steps before it: the backbone sees `bos` first, then the embedding of each step.

        observed       bos  x0  x1  x2
        predicted       x0  x1  x2  x3

    Args:
        spec: what the front-end makes; shapes both ends.
        backbone: hidden to hidden.
        pattern: made for spec.num_rows rows. A FrameSpec is one row, so its only pattern is parallel.
    """

    def __init__(self, spec: Spec, backbone: Backbone, pattern: Pattern):
        super().__init__()
        if pattern.num_rows != spec.num_rows:
            raise ConfigError(f"pattern: made for {pattern.num_rows} rows, but the front-end has {spec.num_rows}")
        self.spec, self.backbone, self.pattern = spec, backbone, pattern
        if isinstance(spec, TokenSpec):
            self.embed, self.head = CodeEmbedding(spec, backbone.dim), CategoricalHead(spec, backbone.dim)
        else:
            if not isinstance(pattern, Parallel):
                raise ConfigError("pattern: continuous frames are one row, so only the pattern parallel fits them")
            self.embed, self.head = FrameEmbedding(spec, backbone.dim), MixtureDensityHead(spec, backbone.dim)
        self.bos = nn.Parameter(torch.randn(backbone.dim))

    @property
    def hole(self) -> float:
        """What stands where there is no code: V, or NaN. Also the padding behind the end of a shorter item."""
        return self.embed.hole

    @property
    def receptive_frames(self) -> float:
        """Frames that a prediction depends on, at most."""
        stride, span = self.pattern.stride, self.pattern.span
        return self.backbone.receptive_field / stride + span - stride

    @property
    def receptive_seconds(self) -> float | None:
        """Seconds of sound that a prediction depends on, at most; None where the rate varies."""
        return None if self.spec.frame_rate is None else self.receptive_frames / self.spec.frame_rate

    def forward(self, batch: Batch) -> Tensor:
        """Compute the negative log-likelihood of each entry of a batch, in nats.

        Training calls the model through this, so that the hooks of DDP and FSDP2 fire and torch.compile sees all of it.

        Returns:
            (B, rows, T), rows being K for codes and 1 for frames; 0 where x is `hole`.
        """
        seq = self.pattern.apply(batch.x, self.hole)  # (B, C, S)
        nll, _ = self.nll_of_steps(seq)
        return self.pattern.invert(nll, batch.x.shape[2])

    def nll(self, batch: Batch) -> tuple[Tensor, int]:
        """Sum the negative log-likelihood of a batch, in nats.

        Returns:
            The sum over all entries as a float64 scalar, and the number of entries: codes, or whole frames.
            Entries that are `hole` (padding at the end) count for nothing.
        """
        return self(batch).sum(dtype=torch.float64), self.num_entries(batch)

    def nll_of_steps(
        self, seq: Tensor, state: tuple[Tensor, State] | None = None
    ) -> tuple[Tensor, tuple[Tensor, State]]:
        """Compute the same over a chunk (B, C, S) that is laid out already.

        Args:
            state: None at the beginning, else what the chunk before returned: its last step and the backbone's state.

        Returns:
            nats (B, rows, S), and the state to go on from.
        """
        first = self.bos.expand(seq.shape[0], 1, -1) if state is None else self._inputs(state[0])
        x = torch.cat([first, self._inputs(seq[:, :, :-1])], dim=1)  # (B, S, D), one step late
        h, backbone_state = self.backbone(x, None if state is None else state[1])
        last = self._none_before(seq.shape[0]) if state is None else state[0]
        h = self.head.attach(h, torch.cat([last, seq[:, :, :-1]], dim=2))
        return self.head.nll(h, seq), (seq[:, :, -1:], backbone_state)

    def num_entries(self, batch: Batch) -> int:
        """Count the codes or frames of a batch that are not `hole`."""
        return int((~self.embed.is_hole(batch.x)).sum())

    def start(self, batch_size: int, seen: Tensor | None = None) -> tuple[Tensor, State]:
        """Return what the head predicts step 0 from, or the step after those `seen` (B, C, S), and the state."""
        x, last = self.bos.expand(batch_size, 1, -1), self._none_before(batch_size)
        if seen is not None and seen.shape[2]:
            x, last = torch.cat([x, self._inputs(seen)], dim=1), seen[:, :, -1:]
        h, state = self.backbone(x)
        return self.head.attach(h[:, -1:], last)[:, 0], state

    def advance(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Observe the steps (B, C, S), and return what the head predicts the next step from, and the state."""
        h, state = self.backbone(self._inputs(x), state)
        return self.head.attach(h[:, -1:], x[:, :, -1:])[:, 0], state

    def _none_before(self, batch_size: int) -> Tensor:
        """What stands before step 0: a hole, (B, C, 1)."""
        empty = self.embed.empty(batch_size)
        return empty.new_full((*empty.shape[:2], 1), self.hole)

    def _inputs(self, x: Tensor) -> Tensor:
        # Conditioning (labels, melody, text) will be added to these embeddings.
        return self.embed(x)
