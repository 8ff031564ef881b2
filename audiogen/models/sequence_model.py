"""SequenceModel: embedding, backbone and head, applied to the steps that a pattern lays out."""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..spec import Spec, TokenSpec
from .backbones import Backbone
from .batch import Batch
from .conditioning import AskedConditions, Changed, Conditioner, Conditions, Prepared
from .embeddings import CodeEmbedding, FrameEmbedding
from .flow_matching import FlowMatchingHead
from .heads import CategoricalHead, Head, MixtureDensityHead
from .layers import Memory, State
from .patterns import Parallel, Pattern
from .sampling import Sampling

#: Heads of models over frames, by name. Codes have a categorical distribution.
FRAME_HEADS: dict[str, type[Head]] = {"density": MixtureDensityHead, "flow": FlowMatchingHead}


class SequenceModel(nn.Module):
    """An autoregressive distribution over codes (B, K, T) or frames (B, F, T).

    Step s is predicted from the steps before it. The backbone's input is `bos`, then the embedding of each step:

        observed       bos  x0  x1  x2
        predicted       x0  x1  x2  x3

    What conditions say of a frame is added to the input that predicts it: c0 to `bos`, c1 to x0.

    Args:
        spec: the front-end's spec; determines the embedding and the head.
        backbone: maps hidden to hidden.
        pattern: for spec.num_rows rows. A FrameSpec has one row, so it fits only the parallel pattern.
        conditioner: the conditions that the model takes; None for none.
        head: the head of a model over frames, a name in FRAME_HEADS.

    Raises:
        ConfigError: the pattern or the head does not fit the spec.

    Example:
        >>> from audiogen.models.backbones import GRU
        >>> spec = audiogen.TokenSpec(sample_rate=8000, hop_length=1, num_codebooks=1, codebook_size=256)
        >>> model = SequenceModel(spec, GRU(GRU.Config(dim=8)), Parallel(spec.num_rows))
        >>> codes = torch.zeros(2, 1, 10, dtype=torch.int64)
        >>> model(Batch(codes)).shape  # nats per code
        torch.Size([2, 1, 10])
    """

    def __init__(
        self,
        spec: Spec,
        backbone: Backbone,
        pattern: Pattern,
        conditioner: Conditioner | None = None,
        head: str = "density",
    ):
        super().__init__()
        if pattern.num_rows != spec.num_rows:
            raise ConfigError(f"pattern: is for {pattern.num_rows} rows, but the front-end has {spec.num_rows}")
        self.spec, self.backbone, self.pattern = spec, backbone, pattern
        if isinstance(spec, TokenSpec):
            self.embed, self.head = CodeEmbedding(spec, backbone.dim), CategoricalHead(spec, backbone.dim)
        else:
            if not isinstance(pattern, Parallel):
                raise ConfigError("pattern: frames of real values are a single row, so only parallel fits them")
            self.embed: Any = FrameEmbedding(spec, backbone.dim)
            self.head: Head = FRAME_HEADS[head](spec, backbone.dim)
        self.bos = nn.Parameter(torch.randn(backbone.dim))
        self.conditioner = conditioner

    def __repr__(self) -> str:
        """Describe the model in one line; `model.backbone` shows the layers."""
        weights = sum(parameter.numel() for parameter in self.parameters())
        parts = f"{type(self.backbone).__name__}, {type(self.pattern).__name__}, {type(self.head).__name__}"
        return f"SequenceModel({self.spec}: {parts}, {weights:,} weights)"

    @property
    def hole(self) -> float:
        """The value where there is no code, V or NaN. It also pads shorter items at the end."""
        return self.embed.hole

    @property
    def receptive_frames(self) -> float:
        """Maximum number of frames that a prediction depends on."""
        stride, span = self.pattern.stride, self.pattern.span
        return self.backbone.receptive_field / stride + span - stride

    @property
    def receptive_seconds(self) -> float | None:
        """Maximum seconds of sound that a prediction depends on; None if the rate varies."""
        return None if self.spec.frame_rate is None else self.receptive_frames / self.spec.frame_rate

    def forward(self, batch: Batch) -> Tensor:
        """Compute the negative log-likelihood of each entry of a batch, in nats; in training mode, the head's `loss`.

        Training calls this, so that the hooks of DDP and FSDP2 fire and torch.compile covers the whole model.

        Returns:
            (B, rows, T), rows being K for codes and 1 for frames; 0 where x is `hole`.
        """
        seq = self.pattern.apply(batch.x, self.hole)  # (B, C, S)
        given, S = self.prepare(batch.conditions), seq.shape[2]
        seen = seq if batch.observed is None else batch.observed
        h, _ = self._hidden(seen, None, self.added(given, 0, S), self.memory(given, 0, S))
        nats = (self.head.loss if self.training else self.head.nll)(h, seq)
        return self.pattern.invert(nats, batch.x.shape[2])

    def logits(self, x: Tensor, conditions: Conditions | None = None) -> Tensor:
        """Compute the logits of each code given what the pattern puts before it.

        Args:
            x: codes (B, K, T) int64.
            conditions: those of the items; None if there are none.

        Returns:
            (B, K, T, V), at least float32; the logits at [..., t, :] are those of x[..., t], not of the code after it.

        Raises:
            ConfigError: the model is one of frames, which have no logits.

        Example:
            >>> run = load_run("runs/codes")  # doctest: +SKIP
            >>> run.model.logits(run.frontend.encode(wav)).softmax(-1)  # doctest: +SKIP
        """
        if not isinstance(self.head, CategoricalHead):
            raise ConfigError("logits: only codes have them; this is a model of frames, see nll")
        seq, given = self.pattern.apply(x, self.hole), self.prepare(conditions)
        S = seq.shape[2]
        h, _ = self._hidden(seq, None, self.added(given, 0, S), self.memory(given, 0, S))
        logits = self.head.logits(h)  # (B, S, K, V)
        steps = self.pattern.step_index(0, x.shape[2], x.device)  # (K, T)
        return logits[:, steps, torch.arange(self.pattern.num_rows, device=x.device)[:, None]]

    def nll(self, batch: Batch) -> tuple[Tensor, int]:
        """Sum the negative log-likelihood of a batch, in nats.

        Returns:
            The sum over all entries as a float64 scalar, and the number of entries: codes, or whole frames. Entries
            that are `hole` (padding) are not counted.
        """
        return self(batch).sum(dtype=torch.float64), self.num_entries(batch)

    def nll_of_steps(
        self,
        seq: Tensor,
        state: tuple[Tensor, State] | None = None,
        added: Tensor | None = None,
        memory: Memory | None = None,
        exact: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, State]]:
        """Compute the negative log-likelihood of steps that are already laid out, chunk by chunk.

        Args:
            seq: (B, C, S), steps in the order of the pattern.
            state: the state that the previous chunk returned (its last step and the backbone's state); None at first.
            added: what conditions add at the steps of the chunk (see `added`); None if no condition is given.
            memory: the texts of the chunk (see `memory`).
            exact: whether to compute likelihoods even where the head has a bound that takes less time.

        Returns:
            nats (B, rows, S), and the state for the next chunk.
        """
        h, state = self._hidden(seq, state, added, memory)
        return (self.head.exact_nll if exact else self.head.nll)(h, seq), state

    def _hidden(
        self, seq: Tensor, state: tuple[Tensor, State] | None, added: Tensor | None, memory: Memory | None
    ) -> tuple[Tensor, tuple[Tensor, State]]:
        """Compute the head's input (B, S, D or wider) at each step, and the state after the last one."""
        first = self.bos.expand(seq.shape[0], 1, -1) if state is None else self.embed(state[0])
        x = torch.cat([first, self.embed(seq[:, :, :-1])], dim=1)  # (B, S, D), shifted by one step
        h, backbone_state = self._backbone(x, None if state is None else state[1], added, memory)
        last = self._none_before(seq.shape[0]) if state is None else state[0]
        return self.head.attach(h, torch.cat([last, seq[:, :, :-1]], dim=2)), (seq[:, :, -1:], backbone_state)

    @torch.no_grad()
    def redraw(self, batch: Batch, share: float) -> Batch:
        """Replace the input at random steps of a batch by the model's own draws (scheduled sampling).

        A model trained only on recordings never sees its own mistakes, and in generation they accumulate: a tune fades
        into silence, or ends in noise. Here every step is drawn given the recording up to it, and replaces the recorded
        step in the input with a probability that is drawn once per item. The target stays the recording.

        Args:
            batch: x and conditions.
            share: maximum probability; that of an item is uniform between 0 and this.

        Returns:
            The batch with `observed` set. Random numbers come from torch's global generator.

        Source: Bengio et al. 2015, Scheduled Sampling; Mihaylova and Martins 2019, Scheduled Sampling for Transformers.
        """
        seq = self.pattern.apply(batch.x, self.hole)  # (B, C, S)
        B, _, S = seq.shape
        given = self.prepare(batch.conditions)
        h, _ = self._hidden(seq, None, self.added(given, 0, S), self.memory(given, 0, S))  # (B, S, D)
        # torch draws multiples of 2^-53 from [0, 1); half a unit more gives numbers in (0, 1).
        u = torch.rand(B * S, self.head.num_uniforms, dtype=torch.float64, device=h.device) + 2.0**-54
        drawn = self.head.sample(h.flatten(0, 1), Sampling(), u).unflatten(0, (B, S)).transpose(1, 2)  # (B, C, S)
        chosen = torch.rand(B, 1, S, device=h.device) < share * torch.rand(B, 1, 1, device=h.device)
        return batch._replace(observed=torch.where(chosen & ~self.embed.is_hole(seq), drawn.to(seq.dtype), seq))

    def perturb(self, batch: Batch, most: float) -> Batch:
        """Add noise to the frames that a model sees in training, not to those that it predicts.

        A model trained on clean frames takes its own draws, with their small errors, for new events, and in generation
        the errors grow: a chord is held for seconds. With noise it learns to rely on many frames, not on the last one.
        Half of the items stay clean, since noise also hides what is quiet.

        Args:
            batch: frames, conditions, and what `redraw` has replaced.
            most: largest deviation of the noise, in deviations of a feature; that of an item is uniform below it.

        Returns:
            The batch with `observed` set. Random numbers come from torch's global generator.

        Raises:
            ConfigError: the model is one of codes.

        Source: Pasini et al. 2024, Continuous Autoregressive Models with Noise Augmentation; Rouard et al. 2025,
        Continuous Audio Language Models.
        """
        if isinstance(self.spec, TokenSpec):
            raise ConfigError("training.input_noise: codes can't be changed by a little; leave it at 0")
        seq = self.pattern.apply(batch.x, self.hole) if batch.observed is None else batch.observed
        level = most * (2 * torch.rand(len(seq), 1, 1, device=seq.device) - 1).clamp_min(0.0)
        return batch._replace(observed=seq + level * torch.randn(seq.shape, device=seq.device))

    def num_entries(self, batch: Batch) -> int:
        """Count the codes or frames of a batch that are not `hole`."""
        return int((~self.embed.is_hole(batch.x)).sum())

    def start(
        self, batch_size: int, seen: Tensor | None = None, added: Tensor | None = None, memory: Memory | None = None
    ) -> tuple[Tensor, State]:
        """Begin generation.

        Args:
            batch_size: B.
            seen: (B, C, S), steps already known; None for none.
            added: what conditions add at the steps [0, S], the next one included (see `added`).
            memory: the texts at the same steps (see `memory`).

        Returns:
            The head's input (B, D or wider) for the next step, which is step 0 or the one after `seen`; and the state.
        """
        x, last = self.bos.expand(batch_size, 1, -1), self._none_before(batch_size)
        if seen is not None and seen.shape[2]:
            x, last = torch.cat([x, self.embed(seen)], dim=1), seen[:, :, -1:]
        h, state = self._backbone(x, None, added, memory)
        return self.head.attach(h[:, -1:], last)[:, 0], state

    def advance(
        self, x: Tensor, state: State, added: Tensor | None = None, memory: Memory | None = None
    ) -> tuple[Tensor, State]:
        """Observe steps.

        Args:
            x: (B, C, S), the steps.
            state: what `start` or the previous call returned.
            added: what conditions add at the steps after each of them (see `added`).
            memory: the texts at these steps (see `memory`).

        Returns:
            The head's input (B, D or wider) for the next step, and the state.
        """
        h, state = self._backbone(self.embed(x), state, added, memory)
        return self.head.attach(h[:, -1:], x[:, :, -1:])[:, 0], state

    def prepare(self, conditions: AskedConditions | None) -> Prepared | None:
        """Check conditions, and embed the constant ones; None for a model without conditions.

        Raises:
            ConfigError: the model has no such condition, or the shape is another one.
        """
        if self.conditioner is None:
            if conditions:
                raise ConfigError(f"conditions: this model was trained without any, got {', '.join(conditions)}")
            return None
        return self.conditioner.prepare(conditions or {})

    def added(self, conditions: AskedConditions | Prepared | Changed | None, start: int, stop: int) -> Tensor | None:
        """Return what conditions add to the inputs that predict the steps [start, stop).

        Returns:
            (B, S, D), where B or S may be 1 if all items or steps share it; None for a model without conditions.

        Raises:
            ConfigError: as in `prepare`.
        """
        prepared = conditions if isinstance(conditions, Prepared | Changed) else self.prepare(conditions)
        if prepared is None:
            return None
        return self.head.emphasis * prepared.at(self.pattern.newest_frame(start, stop, self.bos.device))

    def memory(self, conditions: AskedConditions | Prepared | Changed | None, start: int, stop: int) -> Memory | None:
        """Return the texts that the backbone attends to at the steps [start, stop); None for none.

        Raises:
            ConfigError: as in `prepare`, or the texts change during generation.
        """
        if isinstance(conditions, Changed):
            if conditions.after.memory is None:
                return None
            raise ConfigError("conditions: with backbone.cross_attention they can't change during a stream")
        prepared = conditions if isinstance(conditions, Prepared) else self.prepare(conditions)
        if prepared is None or prepared.memory is None:
            return None
        return prepared.memory_at(self.pattern.newest_frame(start, stop, self.bos.device))

    def _backbone(
        self, x: Tensor, state: State | None, added: Tensor | None, memory: Memory | None
    ) -> tuple[Tensor, State]:
        """Run the backbone on embeddings (B, S, D), with what conditions add."""
        if added is None:  # nothing is given
            added, memory = self.added(None, 0, 1), self.memory(None, 0, 1)
        if added is None:
            return self.backbone(x, state)
        x = x + added
        h, state = self.backbone(x, state) if memory is None else self.backbone(x, state, memory)
        return h + added if self.head.sees_conditions else h, state

    def _none_before(self, batch_size: int) -> Tensor:
        """Return the step before step 0, a hole: (B, C, 1)."""
        empty = self.embed.empty(batch_size)
        return empty.new_full((*empty.shape[:2], 1), self.hole)
