"""Every registered part runs on a GPU: no tensor on the wrong device, and no step that waits for the GPU.

The GPU is a fake one (see fake_gpu.py), so that these tests run everywhere.
"""

import copy
from contextlib import nullcontext
from itertools import count

import pytest
import torch
from corpus import tiny_frontend
from fake_gpu import GPU, HostSync, Watch, fake_gpu
from tiny import BACKBONE_CASES, SPEC_CASES, TOKENS, random_conditions, tiny_model
from torch import nn

from audiogen.frontends import FRONTENDS, codec
from audiogen.frontends.mel import vocoder
from audiogen.frontends.mel.vocoder import MelFrontend
from audiogen.generation.engines import ENGINES, choose
from audiogen.generation.engines.eager import Eager
from audiogen.generation.request import Request
from audiogen.models.backbones import BACKBONES
from audiogen.models.batch import Batch
from audiogen.models.conditioning import Conditioner
from audiogen.models.sampling import Sampling
from audiogen.runs.training_config import TrainingConfig
from audiogen.testing import state_tensors
from audiogen.training.trainer import Trainer

FILTERS = [Sampling(), Sampling(0.0), Sampling(0.7, top_k=3, top_p=0.6, min_p=0.3)]


#: Each small backbone with every spec and pattern, and its settings at the edge of their range with one of them.
CASES = [
    pytest.param(*backbone.values, *ends.values, id=f"{backbone.id}-{ends.id}")
    for backbone in BACKBONE_CASES
    for ends in SPEC_CASES
    if not backbone.values[1] or ends.id == "codes-delay"
]
every_model = pytest.mark.parametrize("kind, changes, spec, pattern", CASES)


def on_gpu(*tensors):
    for x in tensors:
        assert x.device == GPU, f"{tuple(x.shape)} is on {x.device}"


def some_input(spec, batch_size, num_frames, device=GPU):
    dtype = torch.int64 if spec.discrete else torch.float32
    return torch.zeros(batch_size, spec.num_channels, num_frames, dtype=dtype, device=device)


# ---- front-ends


@pytest.mark.parametrize("kind", FRONTENDS)
def test_front_ends_encode_and_decode(kind):
    """Guards against a window, a filterbank or noise that stays on the CPU."""
    frontend = copy.deepcopy(tiny_frontend(kind))
    wav = 0.5 * torch.ones(2, 1, 3000)
    x = frontend.encode(wav)
    y = frontend.decode(x) if frontend.decodes else x
    with fake_gpu():
        frontend.to(GPU)
        there = frontend.encode(torch.zeros_like(wav, device=GPU))
        heard = frontend.decode(there) if frontend.decodes else there
    on_gpu(there, heard)
    assert (there.shape[:2], there.dtype, heard.dtype) == (x.shape[:2], x.dtype, y.dtype)
    if frontend.spec.hop_length is not None:
        assert there.shape == x.shape and heard.shape == y.shape


@pytest.mark.parametrize("kind", [kind for kind, part in FRONTENDS.items() if hasattr(part, "trainer")])
def test_front_ends_train_without_waiting(monkeypatch, kind):
    """Guards against a loss, a norm or a count that each step waits for."""
    frontend = copy.deepcopy(tiny_frontend(kind, vocoder=issubclass(FRONTENDS[kind], MelFrontend)))
    wav = torch.zeros(1, 1, 13 * 64)  # whole hops
    for module in (codec, vocoder):
        monkeypatch.setattr(module, "training_batches", lambda *_: (torch.ones(()), lambda step: wav))
    with fake_gpu():
        frontend.to(GPU)
        if isinstance(frontend, MelFrontend):
            trainer = frontend.vocoder.trainer(frontend.frames_heard, [])
        else:
            trainer = frontend.trainer([])
        assert "rolled_back_to" in trainer.train_step(0.0)  # whoever looks sees 1
        trainer.step = 1
        trainer.quantized = trainer.learner is not None  # k-means, which looks at its error, comes once
        with Watch():
            assert trainer.train_step(1.0) == {}  # by then against discriminators
        on_gpu(*trainer.modules.parameters(), *trainer.modules.buffers())


# ---- models


def static_conditions(num_frames):
    """Values of all conditions but texts: of these the distinct ones are counted, once per batch."""
    return {name: x for name, x in random_conditions(2, num_frames).items() if name != "text"}


def without_text(spec, pattern):
    model = tiny_model(spec, "bigram", pattern, conditions=True).float()
    model.conditioner = Conditioner({name: part for name, part in model.conditioner.parts.items() if name != "text"})
    return model


class Batches:
    """Batches on the CPU, as a loader gives them."""

    def __init__(self, model):
        self.model = model

    def loader(self, numbers, num_workers):
        conditions = None if self.model.conditioner is None else static_conditions(4)
        for _ in numbers:
            yield Batch(some_input(self.model.spec, 2, 4, "cpu"), conditions), [["a.wav"], ["b.wav"]]


def step_on_gpu(folder, model, steps=1, precision="fp32", **settings):
    with fake_gpu():
        trainer = Trainer(model.to(GPU), Batches(model), None, None, TrainingConfig(**settings), folder, precision)
        loader = trainer.batches.loader(count(), 0)
        with Watch():
            for _ in range(steps):
                trainer._step(loader)
        on_gpu(*trainer.weights.parameters(), *trainer.weights.buffers())
        assert len(trainer.optimizer.state) == len(list(model.parameters()))
        for state in trainer.optimizer.state.values():
            on_gpu(*state.values())


@every_model
def test_a_training_step_does_not_wait(tmp_path, kind, changes, spec, pattern):
    """Guards against a mask on the CPU in the loss or its gradient, and a step that looks at its loss."""
    step_on_gpu(tmp_path, tiny_model(spec, kind, pattern, **changes).float())


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_training_step_in_bf16_does_not_wait(tmp_path, kind):
    """Guards against rings and products of two dtypes."""
    step_on_gpu(tmp_path, tiny_model(TOKENS, kind, "delay").float(), precision="bf16")


def test_averaging_and_accumulation_do_not_wait(tmp_path):
    """Guards against a count of steps that is copied to the GPU, as AveragedModel does."""
    step_on_gpu(tmp_path, tiny_model(TOKENS, "bigram", "delay").float(), steps=3, accumulation=2, average=0.9)


@pytest.mark.parametrize("spec, pattern", SPEC_CASES)
def test_conditions_do_not_wait(tmp_path, spec, pattern):
    """Guards against values of conditions, or what they are embedded by, that are copied at each step."""
    step_on_gpu(tmp_path, without_text(spec, pattern))
    model, conditions = without_text(spec, pattern), static_conditions(3)
    with fake_gpu():
        engine = Eager(model.to(GPU), Request(batch_size=2, conditions=conditions, guidance=2.0))
        engine.prefill(some_input(spec, 2, 0))
        seq = some_input(spec, 2, 3)
        numbers = torch.full((2, 3, model.head.num_uniforms), 0.5, dtype=torch.float64, device=GPU)
        with Watch():
            engine.decode(seq, torch.zeros_like(seq[0], dtype=torch.bool), numbers)


@every_model
def test_a_generation_step_does_not_wait(kind, changes, spec, pattern):
    """Guards against a draw that asks for a probability, and a state that moves to the CPU."""
    model = tiny_model(spec, kind, pattern, **changes).float()
    with fake_gpu(), torch.inference_mode():
        model.to(GPU)
        numbers = torch.full((2, model.head.num_uniforms), 0.5, dtype=torch.float64, device=GPU)
        prompt = some_input(spec, 2, 4)
        with Watch():
            hidden, state = model.start(2, prompt)
            for sampling in FILTERS:
                x = model.head.sample(hidden, sampling, numbers)
                hidden, state = model.advance(x[:, :, None], state)
                on_gpu(x, hidden, *state_tensors(state).values())


GPU_ENGINES = [Eager, *(kind for kind in ENGINES.values() if kind.device == "cuda")]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("engine", GPU_ENGINES)
@pytest.mark.parametrize("kind", BACKBONES)
def test_engines_decode_without_waiting(monkeypatch, kind, engine, precision):
    """Guards against an engine that lays out codes on the CPU, or looks at what it drew. A graph is captured from just
    these steps; capturing itself needs a driver."""
    monkeypatch.setattr("torch.cuda.device_of", lambda x: nullcontext())
    model = tiny_model(TOKENS, kind, "delay").float()
    with fake_gpu():
        model.to(GPU)
        it = engine(model, Request(batch_size=2, precision=precision))
        it.prefill(some_input(TOKENS, 2, 1))
        seq, known = some_input(TOKENS, 2, 3), torch.zeros(3, 3, dtype=torch.bool, device=GPU)
        numbers = torch.full((2, 3, 3), 0.5, dtype=torch.float64, device=GPU)
        logits = torch.zeros(2, 3, 3, 7, device=GPU)
        with Watch():
            it.decode(seq, known, numbers, logits)


def test_a_gpu_gets_the_engine_for_gpus():
    """Guards against a kernel for CPUs that is handed weights on a GPU."""
    model = tiny_model(TOKENS, "wavenet", "delay").float()
    with fake_gpu():
        assert choose(model.to(GPU), Request(batch_size=1)).device == "cuda"


# ---- the checks themselves


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x.sum().item(),
        lambda x: float(x.sum()),
        lambda x: bool((x > 0).any()),
        lambda x: x.tolist(),
        lambda x: x[x > 0],
        lambda x: x[[0, 1]],
        lambda x: x[: x.sum().int()],
        lambda x: x.nonzero(),
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: torch.bincount(x.long()),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: torch.equal(x, x),
        lambda x: torch.linalg.inv(torch.diag(x)),
        lambda x: x.cpu(),
        lambda x: torch.zeros(3).to(x),
        lambda x: torch.zeros(3).to(x.device, non_blocking=True),
        lambda x: torch.zeros(3).copy_(x),
        lambda x: x.copy_(torch.zeros(3)),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: x.new_tensor([1.0]),
    ],
)
def test_whatever_waits_is_caught(look):
    """Guards against a watch that sees nothing."""
    with fake_gpu():
        x = torch.ones(3, device=GPU)
        with Watch(), pytest.raises(HostSync):
            look(x)


def test_what_does_not_wait_passes():
    """Guards against a watch that forbids what is needed: a scalar, a mask that is not counted, a copy that is not
    waited for, an index on the GPU."""
    with fake_gpu():
        x = torch.ones(3, device=GPU)
        with Watch():
            y = torch.where(x > 0, 2 * x, 0.0).masked_fill(x > 1, 3.0)[torch.zeros_like(x, dtype=torch.int64)]
            y += torch.zeros(3).pin_memory().to(GPU, non_blocking=True) + x.new_full((), 2.0)
        on_gpu(y)


class Faulty(nn.Module):
    """Stands for a head or a backbone that is wrong in one way."""

    def __init__(self, part, fault):
        super().__init__()
        self.part, self.fault, self.kept = part, fault, torch.zeros(8)

    def forward(self, x, state=None):
        if self.fault == "a tensor that stays behind":
            x = x + self.kept
        if self.fault == "a look" and x.sum().item() > 0:
            x = 2 * x
        return self.part(x, state)


@pytest.mark.parametrize(
    "fault, error", [("a tensor that stays behind", RuntimeError), ("a look", HostSync), ("none", None)]
)
def test_a_planted_fault_is_found(tmp_path, fault, error):
    """Guards against steps that are checked by nothing."""
    model = tiny_model(TOKENS, "bigram", "delay").float()
    model.backbone = Faulty(model.backbone, fault)
    with nullcontext() if error is None else pytest.raises(error):
        step_on_gpu(tmp_path, model)
