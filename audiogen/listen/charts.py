"""Draw plots as HTML: axes around a drawing that stretches, so that letters keep their size on a phone."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from .html import Html, format_number

MOST_POINTS = 500  # per line; more than a screen shows


@dataclass(frozen=True)
class Line:
    """Points (x, y) of a curve; those that are not finite are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def line_chart(
    lines: Sequence[Line],
    levels: Mapping[str, float],
    x_label: str,
    y_label: str,
    alt: str,
    y_range: tuple[float, float] | None = None,
) -> Html:
    """Draw curves over a common x axis, and named horizontal lines for comparison.

    Args:
        lines: at most two, the more important one first.
        levels: y by name, at most three.
        x_label: quantity and unit of the x axis.
        y_label: quantity and unit of the y axis.
        alt: description for screen readers.
        y_range: None shows all levels, and the curves without their steep start.
    """
    lines = [thinned(line) for line in lines]
    low, high = y_range or value_range(lines, levels.values())
    right = max((line.x[-1] for line in lines if len(line.x)), default=1) or 1

    def to_y(value: float) -> float:  # per mille from the top
        return 1000 * (high - value) / (high - low)

    y_ticks = nice_ticks(low, high, 9)
    drawing = "".join(f'<path class="grid" d="M0 {to_y(y):.1f}H1000"/>' for y in y_ticks)
    marks, key = "", ""
    for index, (name, value) in enumerate(levels.items()):
        drawing += f'<path class="level l{index}" d="M0 {to_y(value):.1f}H1000"/>'
        key += f'<li><i class="level l{index}"></i>{escape(name)} {format_number(float(value))}</li>'
    for place, index in spread([to_y(value) / 10 for value in levels.values()], 7.0):
        marks += f'<span class="mark l{index}" style="top:{place:.1f}%">{escape(list(levels)[index])}</span>'
    for index, line in reversed(list(enumerate(lines))):
        if len(line.x):
            points = "L".join(
                f"{1000 * x / right:.1f} {to_y(min(max(y, low), high)):.1f}"
                for x, y in zip(line.x, line.y, strict=True)
            )
            drawing += f'<path class="line c{index}" d="M{points}{"h.1" if len(line.x) == 1 else ""}"/>'
    names = "".join(
        f'<li><i class="c{index}"></i>{escape(line.name)}</li>' for index, line in enumerate(lines) if len(line.x)
    )
    area = f'<div class="area chart"><svg {SVG} role="img" aria-label="{escape(alt)}">{drawing}</svg>{marks}</div>'
    return f'<p class="note">{escape(y_label)}</p><ul class="key">{names}{key}</ul>' + frame(
        [(area, [((y - low) / (high - low), tidy(y)) for y in y_ticks], "")],
        [(x / right, tidy(x)) for x in nice_ticks(0, right)],
        x_label,
    )


SVG = 'viewBox="0 0 1000 1000" preserveAspectRatio="none" xmlns="http://www.w3.org/2000/svg"'


def frame(
    areas: Sequence[tuple[Html, Sequence[tuple[float, str]], str]], x_ticks: Sequence[tuple[float, str]], x_label: str
) -> Html:
    """Stack drawings above a common x axis.

    Args:
        areas: (drawing, ticks as (fraction of the height from below, label), unit of the y axis) each.
        x_ticks: (fraction of the width, label) each.
        x_label: quantity and unit of the x axis.
    """
    rows = ""
    for drawing, ticks, unit in areas:
        labels = "".join(f'<span style="bottom:{100 * at:.1f}%">{escape(label)}</span>' for at, label in ticks)
        rows += f'<div class="y">{f"<b class=unit>{escape(unit)}</b>" if unit else ""}{labels}</div>{drawing}'
    # Labels are centred under their ticks, except one at the very end, which would hang over the edge.
    labels = "".join(
        f'<span{" class=end" if at >= 0.97 else ""} style="left:{100 * at:.1f}%">{escape(label)}</span>'
        for at, label in x_ticks
    )
    return f'<div class="plot">{rows}<div class="x">{labels}<b>{escape(x_label)}</b></div></div>'


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return at most `most` round numbers from low to high, in steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (power * factor) <= most - 1)
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def tidy(value: float) -> str:
    """Format a tick as briefly as possible: 2000 -> "2,000", 0.5 -> "0.5"."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"


def spread(places: Sequence[float], gap: float) -> list[tuple[float, int]]:
    """Move labels (percent from the top) at least `gap` apart; return (place, index) each."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved: list[float] = []
    for index in order:
        moved.append(max(places[index], moved[-1] + gap if moved else gap / 2))
    for i in reversed(range(len(moved))):  # and back up if the last ones are beyond the edge
        moved[i] = min(moved[i], (moved[i + 1] if i + 1 < len(moved) else 100 + gap / 2) - gap)
    return list(zip(moved, order, strict=True))


def thinned(line: Line) -> Line:
    """Keep the finite points, averaged in equal groups down to `MOST_POINTS`."""
    x, y = np.array(line.x, dtype=float), np.array(line.y, dtype=float)
    finite = np.isfinite(x) & np.isfinite(y)
    size = math.ceil(finite.sum() / MOST_POINTS) or 1
    groups = [np.add.reduceat(v[finite], range(0, finite.sum(), size)) if finite.any() else v[:0] for v in (x, y)]
    counts = np.diff([*range(0, finite.sum(), size), finite.sum()])
    return Line(line.name, *((group / counts).tolist() for group in groups))


def value_range(lines: Sequence[Line], levels: Iterable[float]) -> tuple[float, float]:
    """Return a range around all levels and curves.

    The first twentieth of each curve is ignored, since a new model can be arbitrarily wrong.
    """
    values = list(levels)
    for line in lines:
        y = list(line.y)
        values += y[len(y) // 20 :] if len(y) > 20 else y
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = 0.06 * (high - low) or 0.5
    return low - room, high + room
