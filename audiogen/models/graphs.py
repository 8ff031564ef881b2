"""A model as functions of tensors of one item, for export: what conditions add, and one step with its state."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import ExportError
from ..utils.graph import Graph
from .conditioning import Text
from .flow_matching import FlowMatchingHead
from .heads import CategoricalHead, Head, MixtureDensityHead
from .sequence_model import SequenceModel


def conditions_graph(model: SequenceModel) -> Graph | None:
    """Return the graph from the values of one frame, (1, F, 1) each, NaN being "not given", to `added` (1, 1, D).

    None for a model without conditions.

    Raises:
        ExportError: a condition can't be exported.
    """
    if model.conditioner is None:
        return None
    parts = model.conditioner.parts
    for name, part in parts.items():
        if isinstance(part, Text) and part.config.encoder != "bytes":
            raise ExportError(f"export: {name} is read by {part.config.encoder}, which is not saved with the run")
        if isinstance(part, Text) and part.num_layers:
            raise ExportError(f"export: with backbone.cross_attention, {name} is not a vector, so it can't be exported")
    values = {name: torch.full((1, part.num_features, 1), torch.nan) for name, part in parts.items()}
    return Graph(Added(model), values, ("added",))


def step_graph(model: SequenceModel) -> Graph:
    """Return the graph of one step: it observes the step before, and predicts or draws this one.

        step         (1,) int64        the number of the step, from 0
        previous     (1, C, 1)         codes or frame of the step before, in step 0 zeros
        added        (1, 1, D)         output of the conditions' graph; only of a model with conditions
        noise        (1, n)            of frames: standard normal numbers, from which the frame is drawn
        component    (1, 1)            of a mixture density: a uniform number that chooses the component
        temperature  (1,)              of frames: scales the noise; 1 draws as the model predicts

    The output is `logits` (1, K, V), or the drawn `frame` (1, F, 1); the state follows.

    Raises:
        ExportError: the head can't be exported.
    """
    spec, head = model.spec, model.head
    previous = torch.zeros(1, spec.num_channels, 1, dtype=torch.int64 if spec.discrete else torch.float32)
    inputs = {"step": torch.zeros(1, dtype=torch.int64), "previous": previous}
    if model.conditioner is not None:
        inputs["added"] = torch.zeros(1, 1, model.backbone.dim)
    drawing = _drawing(head)
    if isinstance(drawing, FromDensity):
        inputs["component"] = torch.full((1, 1), 0.5)
    if not spec.discrete:
        count = head.num_uniforms - ("component" in inputs)
        inputs |= {"noise": torch.zeros(1, count), "temperature": torch.ones(1)}
    with torch.no_grad():
        state = model.backbone(torch.zeros(1, 1, model.backbone.dim))[1]
    leaves, structure = pytree.tree_flatten_with_path(state)
    tensors = {_name(path): torch.zeros_like(leaf) for path, leaf in leaves}
    following = {name: f"next_{name}" for name in tensors}
    module = Step(model, drawing, tuple(inputs), structure)
    outputs = ("logits" if spec.discrete else "frame", *following.values())
    return Graph(module, {**inputs, **tensors}, outputs, state=following)


def _name(path: tuple[Any, ...]) -> str:
    """Name a tensor of the state by where it stands in the tree: [{"keys": ...}] -> state_0_keys."""
    return "_".join(["state", *(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)])


def _drawing(head: Head) -> nn.Module:
    if isinstance(head, CategoricalHead):
        return Logits(head)
    if isinstance(head, FlowMatchingHead):
        return FromFlow(head)
    if isinstance(head, MixtureDensityHead):
        return FromDensity(head)
    raise ExportError(f"export: the head {type(head).__name__} can't be exported")


class Added(nn.Module):
    """Map values of conditions, in the order of the model's parts, to what they add."""

    def __init__(self, model: SequenceModel):
        super().__init__()
        self.conditioner, self.emphasis = model.conditioner, model.head.emphasis

    def forward(self, *values: Tensor) -> tuple[Tensor]:
        assert self.conditioner is not None
        prepared = self.conditioner.prepare(dict(zip(self.conditioner.parts, values, strict=True)))
        return (self.emphasis * prepared.at(torch.zeros(1, dtype=torch.int64)),)


class Step(nn.Module):
    """Observe a step, or begin, and predict the next one."""

    def __init__(self, model: SequenceModel, drawing: nn.Module, names: tuple[str, ...], structure: Any):
        super().__init__()
        self.model, self.drawing, self.names, self.structure = model, drawing, names, structure

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.names, tensors, strict=False))
        # Copied, since layers write to the state that they are given.
        state = pytree.tree_unflatten([x.clone() for x in tensors[len(given) :]], self.structure)
        begins, previous = given["step"] == 0, given["previous"]
        x = torch.where(begins[:, None, None], self.model.bos[None, None], self.model.embed(previous))
        h, state = self.model._backbone(x, state, given.get("added"), None)
        h = self.model.head.attach(h, previous)[:, 0]
        return self.drawing(h, begins, given), *pytree.tree_leaves(state)


class Logits(nn.Module):
    """Return the logits (1, K, V)."""

    def __init__(self, head: CategoricalHead):
        super().__init__()
        self.head = head

    def forward(self, h: Tensor, begins: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return self.head.logits(h)


class FromFlow(nn.Module):
    """Draw a frame (1, F, 1) by flow matching."""

    def __init__(self, head: FlowMatchingHead):
        super().__init__()
        self.head = head

    def forward(self, h: Tensor, begins: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return self.head.draw_from(h, given["temperature"] * given["noise"])[:, :, None]


class FromDensity(nn.Module):
    """Draw a frame (1, F, 1) from a mixture, as `MixtureDensityHead.sample`, but in float32."""

    inverse: Tensor

    def __init__(self, head: MixtureDensityHead):
        super().__init__()
        self.head, self.begins_with_mean = head, bool(head.factors.weight.any())
        below = head.below.detach().double().tril(-1)
        eye = torch.eye(len(below), dtype=torch.float64)
        self.register_buffer("inverse", torch.linalg.solve_triangular(below + eye, eye, upper=False).float())

    def forward(self, h: Tensor, begins: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        head, F_, temperature = self.head, self.head.num_features, given["temperature"]
        log_weights, means, log_scales = head.parameters_of(h)  # (1, M), (1, M, F) twice
        cumulative = (log_weights / temperature.clamp_min(1e-6)).softmax(dim=-1).cumsum(dim=-1)
        component = (
            (cumulative <= given["component"] * cumulative[:, -1:]).sum(dim=-1).clamp(max=head.NUM_COMPONENTS - 1)
        )
        mean, scale = means[0].index_select(0, component), log_scales[0].index_select(0, component).exp()  # (1, F)
        noise = given["noise"]
        if self.begins_with_mean:
            noise = torch.where(begins[:, None], 0.0, noise)
        noise, factors = noise[:, :F_], noise[:, F_:, None]
        noise = noise + (head.factors_of(h) @ factors)[:, :, 0]
        x = mean + (temperature * scale * noise) @ self.inverse.T
        return x.clamp(*head.range)[:, :, None]
