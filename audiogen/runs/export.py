"""Export a run as graphs that need no audiogen: of the front-end, of its conditions, and of one step of the model.

OUT/export.json  step.onnx  conditions.onnx  encode.onnx  decode.onnx      .pt2 with format="torch"
    index.html  page.js  model.js                                          with format="web"
"""

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..config import part_to_dict
from ..errors import ExportError
from ..frontends.graphs import GriffinLimBlock, decoding_graph, encoding_graph
from ..models.conditioning import CONDITIONS, Condition
from ..models.graphs import conditions_graph, step_graph
from ..utils.files import atomic_write_json, atomic_write_text
from ..utils.graph import FORMATS, Graph, check_export
from .export_checks import CODE_TOLERANCE, ROUNDINGS, TOLERANCE, Checks, Comparison, material
from .graph_files import check_packages, write_graph
from .run import Run

#: The file that says what the graphs are, and the version of what it says.
ABOUT_FILE, ABOUT_FORMAT = "export.json", 1
#: The files of the web page.
PLAYER = Path(__file__).parent / "player"
#: What the values of a condition mean, by its kind.
MEANINGS = {
    "label": "the place of the label among the values, counted from 0",
    "number": "the number, from low to high",
    "pitch": "a MIDI number, from low to high",
    "melody": "the strength of each pitch class, from 0 to 1: C, C sharp, ..., B",
    "loudness": "dB relative to a full-scale sine",
    "timbre": "mean and deviation of the cepstrum; see audiogen.audio.descriptors.timbre",
    "frames": "the values of the frame",
    "codes": "the codes of the frame",
    "position": "frames since the sound began, and frames until it ends; in the last frame that is 0",
    "text": "the caption in lower case, as bytes of UTF-8; NaN after its end",
}


@dataclass(frozen=True)
class Exported:
    """A graph that was written and checked.

    Attributes:
        name: "step", "conditions", "encode" or "decode".
        path: path of the file.
        num_bytes: size of the file.
        of_codes: whether the output is codes.
        compared: how it compares with PyTorch.
    """

    name: str
    path: Path
    num_bytes: int
    of_codes: bool
    compared: Comparison


@torch.no_grad()
def export_run(run: Run, out: str | Path, format: str = "onnx", precision: str = "fp32") -> list[Exported]:
    """Write the graphs of a run, and compare each with PyTorch on held-out sound.

    Args:
        run: a run on the CPU.
        out: folder for the files.
        format: "onnx"; "web", ONNX with a page that plays the run in a browser; or "torch", programs of torch.export.
        precision: "fp16" rounds the weights of the model, which halves the file; all formats compute in fp32.

    Raises:
        ConfigError: an unknown format or precision, or packages are missing.
        ExportError: a part can't be exported, or its graph differs from PyTorch.

    Example:
        >>> for made in export_run(load_run("runs/mine"), "exported"):  # doctest: +SKIP
        ...     print(made.path, made.compared.difference)
    """
    check_export(format, precision)
    if format != "torch":
        check_packages()
    if run.before is not None:
        raise ExportError(
            f"{run.folder.parent}: has stages; export each by itself: audiogen export {run.folder} OUT/{run.name}"
        )
    frontend, model, out = run.frontend, copy.deepcopy(run.model), Path(out)
    if precision == "fp16":
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    graphs = {"encode": encoding_graph(frontend), "decode": decoding_graph(frontend)}
    if (conditions := conditions_graph(model)) is not None:
        graphs["conditions"] = conditions
    graphs["step"] = step_graph(model)
    if format == "web":
        del graphs["encode"]
    out.mkdir(parents=True, exist_ok=True)
    paths = {name: out / f"{name}{FORMATS[format]}" for name in graphs}
    runners = {name: write_graph(graph, paths[name]) for name, graph in graphs.items()}
    checks = Checks(frontend, model, material(run), graphs, runners)
    made = []
    for name, path in paths.items():
        found = Exported(
            name, path, path.stat().st_size, name == "encode" and frontend.spec.discrete, getattr(checks, name)()
        )
        _require_equal(found)
        made.append(found)
    atomic_write_json(out / ABOUT_FILE, about(run, graphs, format))  # last: a folder with it is complete
    for path in PLAYER.iterdir() if format == "web" else ():
        atomic_write_text(out / path.name, path.read_text(encoding="utf-8"))
    return made


def _require_equal(made: Exported) -> None:
    """Raise an ExportError if a graph differs from PyTorch."""
    found, most = made.compared.difference, max(TOLERANCE, ROUNDINGS * made.compared.rounding)
    most = CODE_TOLERANCE if made.of_codes else most
    if not found <= most:
        raise ExportError(
            f"{made.path}: differs from PyTorch by {found:.2g}, more than {most:g}; don't use it: the weights have "
            "diverged, or a part's state does not begin with zeros"
        )


def about(run: Run, graphs: dict[str, Graph], format: str) -> dict[str, Any]:
    """Return what export.json says: rates, shapes, conditions and the order of steps."""
    spec, pattern, conditioner = run.frontend.spec, run.model.pattern, run.model.conditioner
    parts = {} if conditioner is None else conditioner.parts
    return {
        "format": ABOUT_FORMAT,
        "audiogen": __version__,
        "sample_rate": spec.sample_rate,
        "hop_length": spec.hop_length,
        "channels": spec.num_channels,
        "codebook_size": spec.codebook_size if spec.discrete else None,
        "pattern": {"stride": pattern.stride, "offsets": pattern.offsets().tolist()},
        "sampling": asdict(run.sampling),
        "conditions": {name: _about_condition(part) for name, part in parts.items()},
        "graphs": {name: _about_graph(graph, f"{name}{FORMATS[format]}") for name, graph in graphs.items()},
    }


def _about_condition(part: Condition) -> dict[str, Any]:
    values = part_to_dict(part.config, CONDITIONS)
    return {**values, "meaning": MEANINGS[values["kind"]]}


def _about_graph(graph: Graph, file: str) -> dict[str, Any]:
    block = graph.module if isinstance(graph.module, GriffinLimBlock) else None
    return {
        "file": file,
        "inputs": {name: _about_tensor(x, graph.lengths.get(name)) for name, x in graph.inputs.items()},
        "outputs": list(graph.outputs),
        "state": dict(graph.state),
        **({} if block is None else {"frames": block.frames, "ahead": block.ahead}),
    }


def _about_tensor(x: Tensor, multiple: int | None) -> dict[str, Any]:
    shape: list[Any] = list(x.shape)
    if multiple is not None:
        shape[-1] = f"any multiple of {multiple}"
    return {"dtype": str(x.dtype).removeprefix("torch."), "shape": shape}
