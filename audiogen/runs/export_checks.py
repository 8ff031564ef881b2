"""Compare exported graphs with PyTorch, on held-out sound."""

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data import EncodedCache, Sequences, is_cache
from ..errors import AudiogenError
from ..frontends import Frontend, load_frontend
from ..frontends.graphs import GriffinLimBlock
from ..generation.generate import generate
from ..models.conditioning import Codes, Label, Text
from ..models.sampling import Sampling, uniforms
from ..models.sequence_model import SequenceModel
from ..utils.graph import Graph
from .folder import read_source
from .graph_files import Runner
from .run import Run

log = logging.getLogger("audiogen")

#: Largest difference between a graph and PyTorch, of values that are about as large as 1; and the largest share of
#: codes that differ, as they do where two codewords are equally near up to rounding. A graph may also differ by
#: ROUNDINGS times what PyTorch differs from float64.
TOLERANCE, CODE_TOLERANCE, ROUNDINGS = 1e-4, 0.01, 4
#: Steps and seconds of sound on which graphs are compared, and most frames that are generated for it.
STEPS, SECONDS, MOST_GENERATED = 64, 3.0, 256


class Comparison(NamedTuple):
    """How a graph compares with PyTorch.

    Attributes:
        difference: largest difference; of codes, the share that differ.
        speed: calls per second, or of a front-end seconds of sound per second.
        speed_of_torch: the same of PyTorch.
        rounding: PyTorch's own difference from float64, where a graph differs by more than TOLERANCE from PyTorch.
    """

    difference: float
    speed: float
    speed_of_torch: float
    rounding: float = 0.0


@dataclass
class Checks:
    """Compares the graphs of a run, each by the method of its name.

    Attributes:
        frontend, model: what the graphs were made of.
        x: codes or frames (1, C, T) that the model was not trained on.
        graphs, runners: the graphs, and what runs their files, by name.
    """

    frontend: Frontend
    model: SequenceModel
    x: Tensor
    graphs: dict[str, Graph]
    runners: dict[str, Runner]

    def encode(self) -> Comparison:
        """Encode sound. The difference is that from float64, since beside a pure tone float32 itself is not exact."""
        wav = self.frontend.decode(self.x)
        _, time_of_torch = _timed(lambda: self.frontend.encode(wav))
        wanted = copy.deepcopy(self.frontend).double().encode(wav.double())
        made, time_taken = _timed(lambda: self.runners["encode"](wav=wav)["x"])
        seconds = wav.shape[2] / self.frontend.spec.sample_rate
        worst = difference(made, wanted if self.frontend.spec.discrete else wanted.float())
        return Comparison(worst, seconds / time_taken, seconds / time_of_torch)

    def decode(self) -> Comparison:
        """Decode frames; with Griffin-Lim, only the blocks whose following frames are there."""
        wanted, time_of_torch = _timed(lambda: torch.cat(list(self.frontend.unlimited([self.x])), dim=2))
        made, time_taken = _timed(self._decoded)
        rate, num_samples = self.frontend.spec.sample_rate, made.shape[2]
        worst, rounding = difference(made, wanted[:, :, :num_samples]), 0.0
        if worst > TOLERANCE:  # the iterations of Griffin-Lim magnify rounding errors of tones
            exact = copy.deepcopy(self.frontend).double()
            x = self.x if self.frontend.spec.discrete else self.x.double()
            rounding = difference(wanted, torch.cat(list(exact.unlimited([x])), dim=2).float())
        return Comparison(worst, num_samples / rate / time_taken, wanted.shape[2] / rate / time_of_torch, rounding)

    def _decoded(self) -> Tensor:
        x, decode, state, pieces = self.x, self.runners["decode"], start(self.graphs["decode"]), []
        block = self.graphs["decode"].module
        if not isinstance(block, GriffinLimBlock):
            return decode(x=x)["wav"]
        length = block.frames + block.ahead
        for begin in range(0, x.shape[2] - length + 1, block.frames):
            noise = block.noise(begin // block.frames)
            made = decode(x=x[:, :, begin : begin + length].contiguous(), **noise, **state)
            state = following(self.graphs["decode"], made)
            pieces.append(made["wav"])
        return torch.cat(pieces, dim=2)

    def conditions(self) -> Comparison:
        """Compute what conditions add, given or not."""
        worst, time_taken, time_of_torch = 0.0, 0.0, 0.0
        for step in range(4):
            values = self._values(step)
            wanted, took = _timed(lambda values=values: self.model.added(values, 0, 1))
            time_of_torch += took
            made, took = _timed(lambda values=values: self.runners["conditions"](**values)["added"])
            time_taken += took
            worst = max(worst, difference(made, wanted))
        return Comparison(worst, 4 / time_taken, 4 / time_of_torch)

    def _values(self, step: int) -> dict[str, Tensor]:
        """Return values (1, F, 1) of all conditions in a step; nothing is given in every second one."""
        if self.model.conditioner is None:
            return {}
        generator, found = torch.Generator().manual_seed(step), {}
        for name, part in self.model.conditioner.parts.items():
            value = torch.rand(1, part.num_features, 1, generator=generator)
            if isinstance(part, Label | Codes):
                value = torch.zeros_like(value)
            elif isinstance(part, Text):
                value = part.parse(name, "a dry snare")[None]
            found[name] = torch.full_like(value, torch.nan) if step % 2 else value
        return found

    def step(self) -> Comparison:
        """Observe steps, and compare what is predicted or drawn at each with the plain loop."""
        model, head, inputs = self.model, self.model.head, self.graphs["step"].inputs
        seq = model.pattern.apply(self.x, model.hole)[:, :, :STEPS]
        numbers = uniforms([0], 0, seq.shape[2], head.num_uniforms)  # (1, S, U)
        numbers[:, 0] = head.at_start(numbers[:, 0])
        state, state_of_torch, worst, time_taken, time_of_torch = start(self.graphs["step"]), None, 0.0, 0.0, 0.0
        for step in range(seq.shape[2]):
            values, before = self._values(step), seq[:, :, step - 1 : step].contiguous()
            given = {"step": torch.tensor([step]), "previous": before if step else torch.zeros_like(seq[:, :, :1])}
            if "added" in inputs:
                given |= self.runners["conditions"](**values)
            if "component" in inputs:
                given["component"] = numbers[:, step, :1].float()
            if "noise" in inputs:
                normal = torch.special.ndtri(numbers[:, step]).float()
                given |= {"noise": normal[:, -inputs["noise"].shape[1] :], "temperature": torch.ones(1)}
            begun = time.perf_counter()
            made = self.runners["step"](**given, **state)
            time_taken += time.perf_counter() - begun
            state = following(self.graphs["step"], made)
            begun, added = time.perf_counter(), model.added(values, 0, 1)
            if step == 0:
                hidden, state_of_torch = model.start(1, added=added)
            else:
                hidden, state_of_torch = model.advance(before, state_of_torch, added)
            if model.spec.discrete:
                worst = max(worst, difference(made["logits"], head.logits(hidden)))
            else:
                worst = max(
                    worst, difference(made["frame"][:, :, 0], head.sample(hidden, Sampling(), numbers[:, step]))
                )
            time_of_torch += time.perf_counter() - begun
        return Comparison(worst, seq.shape[2] / time_taken, seq.shape[2] / time_of_torch)


def start(graph: Graph) -> dict[str, Tensor]:
    """Return the state before the first call."""
    return {name: torch.zeros_like(graph.inputs[name]) for name in graph.state}


def following(graph: Graph, made: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state for the next call, given the outputs of this one."""
    return {name: made[follows] for name, follows in graph.state.items()}


def difference(made: Tensor, wanted: Tensor | None) -> float:
    """Return the largest difference, or the share of codes that differ; infinity if the shapes do."""
    if wanted is None or made.shape != wanted.shape:
        return float("inf")
    if not wanted.is_floating_point():
        return float((made != wanted).float().mean())
    return float((made - wanted).abs().nan_to_num(float("inf")).max())


def material(run: Run) -> Tensor:
    """Return frames (1, C, T) of held-out files; if they are gone, frames that the model generates."""
    spec = run.frontend.spec
    count = max(STEPS, round(SECONDS * spec.frame_rate))
    if run.split().held_out and is_cache(cache := read_source(run.folder)):
        try:
            found = []
            encoded = EncodedCache.open(cache, load_frontend(run.folder))  # settings of decoding may have been changed
            for x in Sequences(encoded, run.split().held_out):
                found.append(x)
                if sum(x.shape[1] for x in found) >= count:
                    break
            return torch.cat(found, dim=1)[None, :, :count]
        except AudiogenError as error:
            log.warning("the graphs are checked on generated sound, since held-out files can't be read: %s", error)
    return generate(run.model, min(count, MOST_GENERATED), run.request(seed=0)).x


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a function returns, and the seconds of a second call: the first one allocates."""
    function()
    begun = time.perf_counter()
    return function(), time.perf_counter() - begun
