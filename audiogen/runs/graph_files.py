"""Write graphs to files, as ONNX or as programs of torch.export, and read them back to check them."""

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, ExportError
from ..utils.files import atomic_write_bytes
from ..utils.graph import FORMATS, Graph

#: What runs a graph: inputs by name -> outputs by name.
Runner = Callable[..., dict[str, Tensor]]

#: The newest version of ONNX's operators that onnxruntime-web 1.17 and ONNX Runtime 1.17 run.
OPSET = 20
#: Least number of values of a weight for which storing it in 16 bits pays.
WORTH_PACKING = 256


def check_packages() -> None:
    """Check that the packages that write and run ONNX are installed.

    Raises:
        ConfigError: one is not; says what to type.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--format onnx: {error.name} can't be imported; pip install onnx onnxruntime onnxscript (the extra export)"
        ) from error


def write_graph(graph: Graph, path: Path) -> Runner:
    """Write a graph to a file, in the format of the suffix, and return what runs the file.

    Raises:
        ExportError: torch can't export the graph.
        AudiogenError: the disk is full.
    """
    length = torch.export.Dim("length", min=2, max=2**30)
    shapes = tuple({2: graph.lengths[name] * length} if name in graph.lengths else None for name in graph.inputs)
    with _quiet(), torch.no_grad():
        try:
            program = torch.export.export(
                graph.module, tuple(graph.inputs.values()), dynamic_shapes=_per_call(shapes, graph)
            )
        except Exception as error:  # torch.export raises whatever the code that it traces does, and more
            reason = " ".join(str(error).split())[:200]
            raise ExportError(
                f"{path.name}: torch can't export this part ({type(error).__name__}: {reason})"
            ) from error
        if path.suffix == FORMATS["torch"]:
            buffer = io.BytesIO()
            torch.export.save(program, buffer)
            atomic_write_bytes(path, buffer.getvalue())
            return _program_runner(path, graph)
        made = torch.onnx.export(
            program,
            dynamo=True,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
        assert made is not None
        atomic_write_bytes(path, packed(made.model_proto).SerializeToString())
    return _onnx_runner(path, graph)


def _per_call(shapes: tuple[Any, ...], graph: Graph) -> Any:
    """Arrange the dynamic shapes as torch wants them: a function of `*tensors` takes a single tuple of them."""
    code = getattr(graph.module.forward, "__func__", graph.module.forward).__code__
    return (shapes,) if code.co_flags & 0x04 else shapes


def packed(model: Any) -> Any:
    """Store weights that are exact in 16 bits as such; ONNX Runtime widens them when it loads the file.

    Args:
        model: an onnx.ModelProto; changed in place.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != TensorProto.FLOAT:
            continue
        array = numpy_helper.to_array(weight)
        if array.size < WORTH_PACKING:
            continue
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        bits = array.view(np.uint32)
        if not (bits & 0xFFFF).any():  # as in the base model
            kind, data = TensorProto.BFLOAT16, (bits >> 16).astype("<u2")
        elif np.array_equal(half.astype(np.float32), array):
            kind, data = TensorProto.FLOAT16, half.astype("<f2")
        else:
            continue
        name, stored = weight.name, f"{weight.name}.stored"
        weight.CopyFrom(helper.make_tensor(stored, kind, array.shape, data.tobytes(), raw=True))
        casts.append(helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]  # says nothing that is not inferred, and would name the weights as they were
    return model


def _onnx_runner(path: Path, graph: Graph) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}  # those that the graph does not use are left out

    def run(**inputs: Tensor) -> dict[str, Tensor]:
        made = session.run(list(graph.outputs), {name: x.numpy() for name, x in inputs.items() if name in names})
        return {name: torch.from_numpy(y) for name, y in zip(graph.outputs, made, strict=True)}

    return run


def _program_runner(path: Path, graph: Graph) -> Runner:
    with _quiet():
        module = torch.export.load(path).module()

    def run(**inputs: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            made = module(*(inputs[name] for name in graph.inputs))
        return dict(zip(graph.outputs, made, strict=True))

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what torch's exporter says of its own insides."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._export", "onnxscript", "onnx_ir")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
