"""Export a run, and say how its graphs compare with PyTorch: `audiogen export`."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..frontends import load_frontend
from ..runs.export import Exported, export_run
from ..runs.export_checks import TOLERANCE
from ..runs.run import Run


def export_files(run: Run, out: Path, format: str, precision: str, settings: Mapping[str, Any]) -> Iterator[str]:
    """Write the files of `export_run`, and yield a line on each graph.

    Args:
        run: the run.
        out: folder for the files.
        format: as in `export_run`.
        precision: as in `export_run`.
        settings: settings of the front-end to change, where its weights allow it.
    """
    if settings:
        run = replace(run, frontend=load_frontend(run.folder, **settings))
    for made in export_run(run, out, format, precision):
        yield in_words(made, run.frontend.spec.frame_rate * run.model.pattern.stride)
    if run.config.stereo is not None:
        yield f"{out}: makes mono sound; the stereo image of the run can't be exported"
    if format == "web":
        yield f"{out / 'index.html'}: copy onnxruntime-web to {out / 'ort'} and serve the folder, see docs/export.md"


def in_words(made: Exported, steps_per_second: float) -> str:
    """Describe a graph in one line: size, difference, speed.

    Args:
        made: the graph.
        steps_per_second: steps of the model for a second of sound.

    Example:
        >>> from audiogen.runs.export_checks import Comparison
        >>> in_words(Exported("step", Path("out/step.onnx"), 2_100_000, False, Comparison(3e-06, 200.0, 80.0)), 100.0)
        'out/step.onnx: 2.1 MB, differs by 3e-06 from PyTorch; 2 times real time (200 steps/s; PyTorch 80)'
        >>> of = Comparison(difference=2e-4, speed=2.5, speed_of_torch=3.0, rounding=1e-4)
        >>> print(in_words(Exported("decode", Path("decode.onnx"), 9_000_000, False, of), 100.0))
        decode.onnx: 9 MB, differs by 0.0002 from PyTorch, which differs by 0.0001 from float64;
        2.5 times real time (PyTorch 3)
    """
    differs, speed, speed_of_torch, rounding = made.compared
    words = f"{made.path}: {made.num_bytes / 1e6:.2g} MB, " + (
        f"{differs:.2%} of the codes differ from PyTorch's"
        if made.of_codes
        else f"differs by {differs:.1g} from PyTorch"
        + (f", which differs by {rounding:.1g} from float64" if differs > TOLERANCE else "")
    )
    if made.name == "conditions":
        return words
    if made.name == "step":
        real_times = speed / steps_per_second
        return f"{words}; {real_times:.3g} times real time ({speed:.0f} steps/s; PyTorch {speed_of_torch:.0f})"
    return f"{words}; {speed:.3g} times real time (PyTorch {speed_of_torch:.3g})"
