"""Pictures of the scalar engine's graphs."""

import re
import shutil
import subprocess

import pytest
from matplotlib.figure import Figure

from audiogen.course.engine import Value
from audiogen.course.plot_graph import MOST_VALUES, dot_text, draw


@pytest.fixture
def loss():
    """(w x + 1).tanh() with w used twice, gone back from."""
    w, x = Value(-3.0, label='w "left\\'), Value(0.5, label="x")
    loss = (w * x + w).tanh()
    loss.label = "loss"
    loss.backward()
    return loss


def test_the_text_holds_every_value_and_every_slope(loss):
    """Guards against an arrow that is missing, turned round or has another one's slope; a name that breaks the text."""
    text = dot_text(loss)
    boxes = dict(re.findall(r'^  (v\d+) \[label="((?:[^"\\]|\\.)*)"', text, re.MULTILINE))
    arrows = [
        (boxes[a].split("\\n")[0], boxes[b].split("\\n")[0], slope)
        for a, b, slope in re.findall(r'(v\d+) -> (v\d+) \[label="([^"]*)"', text)
    ]
    w = 'w \\"left\\\\'
    slope = f"{1 - loss.data**2:.4g}"
    assert sorted(arrows) == sorted(
        [(w, "*", "0.5"), ("x", "*", "-3"), ("*", "+", "1"), (w, "+", "1"), ("+", "loss = tanh", slope)]
    )
    assert f"data {loss.data:.4g}\\ngrad 1" in boxes["v4"] and len(boxes) == 5


def test_graphviz_reads_the_text(loss):
    """Guards against text that looks like DOT."""
    if not shutil.which("dot"):
        pytest.skip("Graphviz is not installed")
    done = subprocess.run(["dot", "-Tplain"], input=dot_text(loss), capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    assert sum(line.startswith("node ") for line in done.stdout.splitlines()) == 5
    assert draw(loss).startswith(b"\x89PNG")


def test_without_graphviz_the_same_is_drawn(loss, monkeypatch):
    """Guards against a lesson without its picture where only pip can install; boxes in one place; arrows to the
    left."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    figure = draw(loss)
    assert isinstance(figure, Figure)
    boxes = {t.get_text().split("\n")[0]: t.get_position() for t in figure.axes[0].texts if "data" in t.get_text()}
    assert boxes.keys() == {'w "left\\', "x", "*", "+", "loss = tanh"}
    assert len(set(boxes.values())) == 5
    assert boxes["x"][0] < boxes["*"][0] < boxes["+"][0] < boxes["loss = tanh"][0]
    slopes = sorted(t.get_text() for t in figure.axes[0].texts if t.get_text() and "data" not in t.get_text())
    assert slopes == sorted(["0.5", "-3", "1", "1", f"{1 - loss.data**2:.4g}"])


def test_a_broken_graphviz_is_done_without(loss, monkeypatch):
    """Guards against a page with no picture, or none at all, because `dot` has no plugins."""
    monkeypatch.setattr(shutil, "which", lambda name: "false")
    assert isinstance(draw(loss), Figure)


def test_a_graph_that_is_too_large_is_refused():
    """Guards against a `dot` that computes for an hour."""
    x = Value(0.0)
    for _ in range(MOST_VALUES):
        x = -x
    with pytest.raises(ValueError, match=str(MOST_VALUES + 1)):
        draw(x)
