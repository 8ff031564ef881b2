"""Draw the graph of a `Value`: how it was computed, and how gradients flow back.

Every box is a value with its data and gradient. Arrows lead from parents to children and are labelled with slopes, so
the chain rule can be checked by eye: a gradient is the sum, over the arrows that leave a box, of the slope times the
gradient at the arrow's end.
"""

import shutil
import subprocess

from matplotlib.figure import Figure

from .engine import Value, read_back

#: Maximum number of boxes in a readable picture.
MOST_VALUES = 60
_WIDTH, _HEIGHT = 1.6, 0.75  # of a column and of a row, inches
_FILL = {True: "#efe4f5", False: "#ffffff"}  # inputs, all others


def draw(result: Value) -> bytes | Figure:
    """Draw the graph with Graphviz's `dot`, as PNG, if that program is installed; otherwise with matplotlib.

    Raises:
        ValueError: there are more than `MOST_VALUES` values.
    """
    values = _values(result)
    program = shutil.which("dot")
    if program:
        done = subprocess.run([program, "-Tpng", "-Gdpi=144"], input=dot_text(result).encode(), capture_output=True)
        if done.returncode == 0 and done.stdout:
            return done.stdout
    return _draw_in_columns(values)


def dot_text(result: Value) -> str:
    """Return the graph in Graphviz's DOT language; see `draw`."""
    values = _values(result)
    names = {value: f"v{i}" for i, value in enumerate(values)}
    lines = [
        "digraph {",
        "  rankdir=LR; bgcolor=white; nodesep=0.15; ranksep=0.4",
        '  node [shape=box style="rounded,filled" fontname=Helvetica fontsize=11 height=0.1 margin="0.1,0.05"]',
        "  edge [fontname=Helvetica fontsize=10 fontcolor=gray40 color=gray50 arrowsize=0.6]",
    ]
    for value in values:
        text = _text(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        lines.append(f'  {names[value]} [label="{text}" fillcolor="{_FILL[not value.parents]}"]')
        lines += [
            f'  {names[parent]} -> {names[value]} [label="{_short(slope)}"]'
            for parent, slope in zip(value.parents, value.slopes, strict=True)
        ]
    return "\n".join([*lines, "}", ""])


def _values(result: Value) -> list[Value]:
    values = read_back(result)[::-1]
    if len(values) > MOST_VALUES:
        raise ValueError(f"{len(values)} values are too many for a picture; draw a result of at most {MOST_VALUES}")
    return values


def _text(value: Value) -> str:
    title = " = ".join(filter(None, [value.label, value.op]))
    return "\n".join(filter(None, [title, f"data {_short(value.data)}", f"grad {_short(value.grad)}"]))


def _short(number: float) -> str:
    return f"{number:.4g}"


def _draw_in_columns(values: list[Value]) -> Figure:
    """Draw each value one column to the left of its children, at their average height."""
    children: dict[Value, list[Value]] = {value: [] for value in values}
    column: dict[Value, int] = {}
    for value in reversed(values):
        column[value] = max((column[child] + 1 for child in children[value]), default=0)
        for parent in value.parents:
            children[parent].append(value)
    place: dict[Value, tuple[float, float]] = {}
    for number in range(max(column.values()) + 1):
        members = [value for value in values if column[value] == number]
        wanted = {value: sum(place[c][1] for c in children[value]) / max(1, len(children[value])) for value in members}
        middle = sum(wanted.values()) / len(members)
        for row, value in enumerate(sorted(members, key=wanted.__getitem__, reverse=True)):
            place[value] = (-_WIDTH * number, middle + _HEIGHT * ((len(members) - 1) / 2 - row))
    left, low, high = (choose(xy[axis] for xy in place.values()) for choose, axis in ((min, 0), (min, 1), (max, 1)))
    figure = Figure(figsize=(_WIDTH - left, high - low + _HEIGHT), layout="constrained")
    axes = figure.add_subplot(xlim=(left - _WIDTH / 2, _WIDTH / 2), ylim=(low - _HEIGHT / 2, high + _HEIGHT / 2))
    axes.set_axis_off()
    for value, (x, y) in place.items():
        axes.text(
            x,
            y,
            _text(value),
            fontsize=7,
            ha="center",
            va="center",
            bbox={"boxstyle": "round", "facecolor": _FILL[not value.parents], "edgecolor": "black", "lw": 0.7},
        )
        for parent, slope in zip(value.parents, value.slopes, strict=True):
            (px, py), gap = place[parent], 0.27 * _WIDTH
            axes.annotate("", (x - gap, y), (px + gap, py), arrowprops={"arrowstyle": "-|>", "color": "gray"})
            axes.text(
                (px + x) / 2,
                (py + y) / 2,
                _short(slope),
                fontsize=6.5,
                color="dimgray",
                ha="center",
                va="center",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            )
    return figure
