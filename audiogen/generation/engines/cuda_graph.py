"""Run any model on a GPU: capture a step once as a CUDA graph, then replay it without the host."""

import copy
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...models.layers import State, clone_state, copy_state
from ...models.sequence_model import SequenceModel
from ..request import Request
from .base import Engine, log_unsupported

#: Only one graph at a time is captured in a process.
_CAPTURING = threading.Lock()


class GraphEngine(Engine):
    """Draw and observe on tensors at fixed addresses, so that every step launches the same kernels.

    At batch size 1 a GPU finishes a small kernel before Python can launch the next, and a step takes hundreds of them;
    a graph launches all at once. The first steps run without a graph, to initialise what can't be initialised during
    capture: library handles, and kernels that are compiled or loaded at their first call.

    With bf16, the backbone's linear layers and what is computed from their results are in bf16: a GPT's queries, keys
    and values, a WaveNet's residual stream. GPT's residual stream and norms, embedding, head and draw stay in fp32, and
    products accumulate in fp32. int8 runs as bf16, which rounds less.

    Source: Gray 2019, Getting Started with CUDA Graphs.
    """

    device = "cuda"
    #: Steps that run before one is captured.
    WARM_UP = 3
    #: Steps whose known codes and uniform numbers are copied to the fixed addresses at a time.
    BLOCK = 256
    #: Why no graph can be captured in this process, after a capture has failed.
    broken: ClassVar[str | None] = None
    #: The graph that failed, kept alive because the allocator may still refer to it.
    _failed: ClassVar[Any] = None

    @classmethod
    def unsupported_reason(cls, model: SequenceModel) -> str | None:
        return cls.broken or super().unsupported_reason(model)

    def __init__(self, model: SequenceModel, request: Request):
        rounds = request.precision != "fp32"
        super().__init__(_rounded(model) if rounds else model, request)
        # Cached casts would be reused from the captured step.
        self._autocast = torch.autocast(self.device, torch.bfloat16, enabled=rounds, cache_enabled=False)
        self._state: State | None = None
        self._steps = 0
        self._step: Callable[[], None] | None = None
        self._gives_logits: bool | None = None

    def prefill(self, seq: Tensor) -> None:
        with self._autocast:
            super().prefill(seq)

    def set_state(self, hidden: Tensor, state: State) -> None:
        if self._state is None:
            # Copied, since the bigram's hidden is a view of the model's own bos.
            self._hidden = hidden.float().clone(memory_format=torch.contiguous_format)
            self._state = clone_state(state)
        else:  # at the addresses that a captured graph reads
            self._hidden.copy_(hidden)
            copy_state(self._state, state)

    def decode(self, seq: Tensor, known: Tensor, uniforms: Tensor, logits: Tensor | None = None) -> None:
        with torch.inference_mode(), torch.cuda.device_of(seq):
            for start in range(0, seq.shape[2], self.BLOCK):
                piece = slice(start, start + self.BLOCK)
                self._fill(
                    seq[:, :, piece], known[:, piece], uniforms[:, piece], None if logits is None else logits[:, piece]
                )

    def _fill(self, seq: Tensor, known: Tensor, uniforms: Tensor, logits: Tensor | None) -> None:
        n, gives_logits = seq.shape[2], logits is not None
        if self._gives_logits != gives_logits:
            self._allocate(seq, known, uniforms, logits)
            self._gives_logits, self._steps, self._step = gives_logits, 0, None
        self._seq[:, :, :n], self._known[:, :n], self._uniforms[:, :n] = seq, known, uniforms
        if self._framewise is not None and (added := self.added(self.step + 1, self.step + n + 1)) is not None:
            self._framewise[:, :n] = added
        self._at.zero_()
        for _ in range(n):
            if self._step is None and self._steps >= self.WARM_UP:
                self._step = self._captured()
            if self._step is None:
                self._run_step()
            else:
                self._step()
            self._steps += 1
        self.step += n
        seq.copy_(self._seq[:, :, :n])
        if logits is not None and self._logits is not None:
            logits.copy_(self._logits[:, :n])

    def _allocate(self, seq: Tensor, known: Tensor, uniforms: Tensor, logits: Tensor | None) -> None:
        """Allocate the tensors that the graph reads and writes, the same ones for every block of steps."""
        self._seq = seq.new_empty(*seq.shape[:2], self.BLOCK)
        self._known = known.new_empty(known.shape[0], self.BLOCK)
        self._uniforms = uniforms.new_empty(uniforms.shape[0], self.BLOCK, uniforms.shape[2])
        self._logits = None if logits is None else logits.new_empty(logits.shape[0], self.BLOCK, *logits.shape[2:])
        self._at = torch.zeros(1, dtype=torch.int64, device=seq.device)  # the step within the block
        added = self.added(0, 2)  # (rows or 1, 2 or 1, D)
        self._constant, self._framewise = added, None
        if added is not None and added.shape[1] > 1:  # changes from frame to frame
            self._constant, self._framewise = None, added.new_empty(len(added), self.BLOCK, added.shape[2])

    def _run_step(self) -> None:
        """Run one step of the plain loop, at the position in the block that `_at` holds."""
        at, head = self._at, self.model.head
        hidden = self.to_sample(self._hidden)
        if self._logits is not None:
            self._logits.index_copy_(1, at, head.logits(hidden)[:, None])
        x = head.sample(hidden, self.request.sampling, self._uniforms.index_select(1, at)[:, 0])  # (B, C)
        x = torch.where(self._known.index_select(1, at), self._seq.index_select(2, at), x[:, :, None])
        self._seq.index_copy_(2, at, x)
        with self._autocast:
            added = self._constant if self._framewise is None else self._framewise.index_select(1, at)
            hidden, state = self.model.advance(self.in_rows(x), self._state, added)
        self._hidden.copy_(hidden)
        copy_state(self._state, state)
        at += 1

    def _captured(self) -> Callable[[], None]:
        """Capture a step and return the function that replays it; if capturing fails, one that runs the step."""
        device = self._at.device
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
        try:
            # A stream of this device, since torch's default one belongs to the device that captured first. With
            # thread_local, other threads may use the GPU meanwhile, for example to load data.
            with (
                _CAPTURING,
                torch.cuda.graph(graph, stream=torch.cuda.Stream(device), capture_error_mode="thread_local"),
            ):
                self._run_step()  # recorded, not run
        except RuntimeError as error:
            torch.cuda.set_stream(before)  # torch does not restore it if ending the capture fails too
            cause = str(error.__context__ or error).partition("\n")[0]
            GraphEngine.broken, GraphEngine._failed = f"a CUDA graph can't be captured: {cause}", graph
            log_unsupported("graph", GraphEngine.broken)
            return lambda: self._run_step()
        return graph.replay


def _rounded(model: SequenceModel) -> SequenceModel:
    """Return a copy of a model with the linear layers of its backbone in bf16."""
    model = copy.deepcopy(model)
    for module in model.backbone.modules():
        if isinstance(module, nn.Linear):
            module.bfloat16()
    return model
