"""Any model on a GPU: a step captured once as a CUDA graph, then replayed without asking the host for anything."""

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

#: One graph is captured at a time in a process.
_CAPTURING = threading.Lock()


class GraphEngine(Engine):
    """Draws and observes on tensors that stay where they are, so that the kernels of one step are those of all.

    At batch 1 a GPU is done with a small kernel sooner than Python can ask for the next one, and a step is hundreds of
    them; a graph asks once. The first steps run as the plain loop's do, and so make ready what can't be made while a
    graph is captured: the libraries' handles, and kernels that are compiled or loaded when they are first called.

    With bf16 the backbone's linear layers work in it, and with them what is done with their results: a GPT's queries,
    keys and values, a WaveNet's residual stream. GPT's residual stream and norms, both ends and the draw stay in fp32,
    and so do the sums of products. int8 runs as bf16: it allows that much rounding.

    Source: Gray 2019, Getting Started with CUDA Graphs.
    """

    device = "cuda"
    #: Steps that run as they are, before one is captured.
    WARM_UP = 3
    #: Steps whose known codes and uniform numbers are laid out at once.
    BLOCK = 256
    #: Why no graph can be captured in this process, once one could not.
    broken: ClassVar[str | None] = None
    #: It, kept: the allocator may still ask for it.
    _failed: ClassVar[Any] = None

    @classmethod
    def unsupported_reason(cls, model: SequenceModel) -> str | None:
        return cls.broken or super().unsupported_reason(model)

    def __init__(self, model: SequenceModel, request: Request):
        rounds = request.precision != "fp32"
        super().__init__(_rounded(model) if rounds else model, request)
        # Cached casts would be those of the step that was captured.
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
            # Copies: the bigram's hidden is a view of the model's own bos.
            self._hidden = hidden.float().clone(memory_format=torch.contiguous_format)
            self._state = clone_state(state)
        else:  # where a graph may look for them
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
            self._make_room(seq, known, uniforms, logits)
            self._gives_logits, self._steps, self._step = gives_logits, 0, None
        self._seq[:, :, :n], self._known[:, :n], self._uniforms[:, :n] = seq, known, uniforms
        self._at.zero_()
        for _ in range(n):
            if self._step is None and self._steps >= self.WARM_UP:
                self._step = self._captured()
            if self._step is None:
                self._run_step()
            else:
                self._step()
            self._steps += 1
        seq.copy_(self._seq[:, :, :n])
        if logits is not None:
            logits.copy_(self._logits[:, :n])

    def _make_room(self, *block: Tensor | None) -> None:
        """What the graph reads and writes for a block of steps: the same tensors for each block."""
        seq, known, uniforms, logits = block
        self._seq = seq.new_empty(*seq.shape[:2], self.BLOCK)
        self._known = known.new_empty(known.shape[0], self.BLOCK)
        self._uniforms = uniforms.new_empty(uniforms.shape[0], self.BLOCK, uniforms.shape[2])
        self._logits = None if logits is None else logits.new_empty(logits.shape[0], self.BLOCK, *logits.shape[2:])
        self._at = torch.zeros(1, dtype=torch.int64, device=seq.device)  # the step within the block

    def _run_step(self) -> None:
        """One step of the plain loop, at the place in the block that a tensor says."""
        at, head = self._at, self.model.head
        if self._logits is not None:
            self._logits.index_copy_(1, at, head.logits(self._hidden)[:, None])
        x = head.sample(self._hidden, self.request.sampling, self._uniforms.index_select(1, at)[:, 0])  # (B, C)
        x = torch.where(self._known.index_select(1, at), self._seq.index_select(2, at), x[:, :, None])
        self._seq.index_copy_(2, at, x)
        with self._autocast:
            hidden, state = self.model.advance(x, self._state)
        self._hidden.copy_(hidden)
        copy_state(self._state, state)
        at += 1

    def _captured(self) -> Callable[[], None]:
        """What runs such a step from now on; the step itself where it can't be captured."""
        device = self._at.device
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
        try:
            # A stream of this device, for torch's own is of that which captured first; and other threads may go on
            # meanwhile, to load data.
            with (
                _CAPTURING,
                torch.cuda.graph(graph, stream=torch.cuda.Stream(device), capture_error_mode="thread_local"),
            ):
                self._run_step()  # noted down, not run
        except RuntimeError as error:
            torch.cuda.set_stream(before)  # what torch leaves out if the end fails too
            cause = str(error.__context__ or error).partition("\n")[0]
            GraphEngine.broken, GraphEngine._failed = f"a CUDA graph can't be captured: {cause}", graph
            log_unsupported("graph", GraphEngine.broken)
            return lambda: self._run_step()
        return graph.replay


def _rounded(model: SequenceModel) -> SequenceModel:
    """A copy with the linear layers of its backbone in bf16."""
    model = copy.deepcopy(model)
    for module in model.backbone.modules():
        if isinstance(module, nn.Linear):
            module.bfloat16()
    return model
