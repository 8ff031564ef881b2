"""Functions of tensors that can be exported: their inputs, outputs and state by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

#: The suffix of a graph's file by format: ONNX, programs of torch.export, or ONNX with a web page that plays it.
FORMATS = {"onnx": ".onnx", "torch": ".pt2", "web": ".onnx"}
#: In which the weights of the model may be stored.
PRECISIONS = ("fp32", "fp16")


def check_export(format: str, precision: str) -> None:
    """Raise a ConfigError if the format or the precision of an export is unknown."""
    if format not in FORMATS:
        raise ConfigError(f"--format: {format!r} is unknown; choose {', '.join(FORMATS)}")
    if precision not in PRECISIONS:
        raise ConfigError(f"--precision: {precision!r} is unknown; choose {', '.join(PRECISIONS)}")


@dataclass(frozen=True)
class Graph:
    """A function of tensors that needs nothing but its weights.

    Attributes:
        module: takes the inputs in order and returns the outputs in order, as a tuple.
        inputs: an example of each input, whose shape is that of every call, but for `lengths`.
        outputs: names of the outputs.
        state: the output that each input of the state is set to before the next call; the first is zeros.
        lengths: inputs whose last dimension may be any multiple of a number, such as {"wav": 512}.
    """

    module: "nn.Module"
    inputs: "dict[str, Tensor]"
    outputs: tuple[str, ...]
    state: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    lengths: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def call(self, **inputs: "Tensor") -> "dict[str, Tensor]":
        """Run the module: inputs by name -> outputs by name."""
        return dict(zip(self.outputs, self.module(*(inputs[name] for name in self.inputs)), strict=True))
