"""Notebooks are made from the lessons' scripts: they say and do the same, in an order in which they run."""

import ast
import base64
import io
import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from listening import tone
from matplotlib.figure import Figure
from PIL import Image

from audiogen.course.notebook import notebook_cells, write_notebook
from audiogen.listen import Clip, clip_cards, grid, picture
from audiogen.listen.html import link
from audiogen.listen.notebook import show

ROOT = Path(__file__).parents[1]
LESSONS = sorted((ROOT / "recipes").glob("[0-9]*.py"))

SCRIPT = '''"""Lesson 3: a third one. Does it stand?

    python recipes/03_third.py FOLDER

What it teaches. That --rate 3 is a lot, and V ** n more.
"""

import math

from audiogen.course.lesson_page import write_lesson
from audiogen.listen import section, table, text
from audiogen.utils.scripts import run_script

#: How many.
MANY = 3


def main() -> None:
    """Run the lesson."""
    parser = LessonParser(__file__, __doc__)
    args = parser.parse_args()
    if args.short:
        return

    # 1. Count. One after the other, as in `for`.
    rows = []
    for n in range(MANY):
        rows.append([n, half(n)])  # not twice
    #    Then add.
    total = sum(row[1] for row in rows)

    # 2. Compare: which is more?
    more = max(total, 1)

    # 3. The page.
    said = f"{more:g}"
    page = write_lesson(
        __file__, args, section("What came", text("Fixed."), table(["n"], rows)), section("More", text(said))
    )
    print(f"open {page}")


def half(n: int) -> float:
    """Halve."""
    return n / twice(1)


# 4. Further down.


def twice(n: int) -> int:
    return 2 * n
'''


def test_a_script_becomes_text_and_code_in_an_order_that_runs(tmp_path):
    """Guards against prose left in comments, a function after its use, a section before its figures, what only the page
    needs, and a `return` outside of a function."""
    (tmp_path / "03_third.py").write_text(SCRIPT)
    cells = notebook_cells(tmp_path / "03_third.py", ["corpora/x", "--short"])
    said = [cell.source for cell in cells if cell.kind == "markdown"]
    assert said[0].startswith("# Lesson 3: a third one. Does it stand?\n\n```text\npython recipes/03_third.py FOLDER")
    assert "**What it teaches.** That `--rate 3` is a lot" in said[0]
    assert "**Run with `--short` instead of the defaults.**" in said[0]
    assert "instead of the defaults" not in notebook_cells(tmp_path / "03_third.py", ["corpora/x"])[0].source
    assert said[1:] == [
        "## Count\n\nOne after the other, as in `for`.",
        "## Further down",
        "### What came",
        "Fixed.",
        "Then add.",
        "## Compare\n\nWhich is more?",
        "### More",
    ]
    code = "\n".join(cell.source for cell in cells if cell.kind == "code")
    assert 'LessonParser("recipes/03_third.py", "Lesson 3: a third one. Does it stand?")' in code
    assert '.parse_args(["corpora/x", "--short"])\nif args.short:\n    raise SystemExit' in code
    in_order = ["#: How many.\nMANY = 3", "def twice", "def half", "rows.append([n, half(n)])  # not twice"]
    in_order += ['table(["n"], rows)', "total = ", "more = max", 'said = f"{more:g}"', "text(said)"]
    places = [code.index(part) for part in in_order]
    assert places == sorted(places)
    assert "write_lesson" not in code and "run_script" not in code and "open {page}" not in code
    assert [cell.folded for cell in cells if "show(" in cell.source] == [True] * 2


def test_a_section_that_a_function_makes_has_its_own_heading_once(tmp_path):
    """Guards against the docstring of the function as a heading, and the same heading twice."""
    made = '''def more(n: int) -> str:
    """Show more of it, one by one."""
    if not n:
        return section("Nothing", text("None."))
    return section("How much", text(str(n)))


# 4. Further down.
'''
    script = SCRIPT.replace("# 4. Further down.\n", made).replace('section("More", text(said))', "more(MANY)")
    (tmp_path / "03_third.py").write_text(script)
    cells = [cell.source for cell in notebook_cells(tmp_path / "03_third.py", [])]
    place = cells.index("### Nothing")
    assert cells[place + 1].startswith("def more") and cells[place + 2] == "show(more(MANY), titled=False)"
    html = show("<h2>Nothing</h2><p>None.</p><h2>Other</h2>", titled=False)._repr_html_()
    assert "<p>None.</p><h2>Other</h2>" in html and "<h2>Nothing</h2>" not in html


def test_what_is_no_lesson_is_refused(tmp_path):
    """Guards against an empty notebook of a script that has another form."""
    (tmp_path / "x.py").write_text("def main():\n    pass\n")
    with pytest.raises(ValueError, match=r"x\.py: this is no lesson"):
        notebook_cells(tmp_path / "x.py", [])


def test_every_lesson_becomes_a_notebook_without_an_unknown_name(tmp_path):
    """Guards against a cell that uses what a later cell defines, or what is only in the script."""
    for script in LESSONS:
        write_notebook(script, tmp_path / f"{script.stem}.ipynb", ["corpora/fsdd"])
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821,F704,F706,E9", str(tmp_path)]
    found = subprocess.run([*command, "--output-format", "concise"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("script", LESSONS, ids=lambda path: path.stem)
def test_a_notebook_holds_all_of_its_lesson(script, tmp_path):
    """Guards against statements, sections and remarks that get lost on the way."""
    path = write_notebook(script, tmp_path / "x.ipynb", ["corpora/fsdd"])
    title, _, *cells = json.loads(path.read_text(encoding="utf-8"))["cells"]  # the second sets the folder
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    prose = "\n".join("".join(cell["source"]) for cell in (title, *cells) if cell["cell_type"] == "markdown")
    made = [ast.unparse(node) for node in ast.parse(code).body]
    tree = ast.parse(script.read_text(encoding="utf-8"))
    main = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    written = [ast.unparse(node) for node in (*tree.body[1:], *main.body[1:]) if node is not main]
    gone = ("main()", "main)", "write_lesson", "run_script", "open {page}")
    changed = ("__file__", "__doc__", "parse_args", "\n    return")
    for whole in written:
        if not any(word in whole for word in gone) and (whole.startswith("def ") or not any(map(whole.count, changed))):
            assert made.count(whole.replace("__file__", repr(f"recipes/{script.name}"))) == written.count(whole), whole
    calls = [node for node in ast.walk(main) if isinstance(node, ast.Call)]
    (page,) = [node for node in calls if ast.unparse(node.func) == "write_lesson"]
    for block in page.args[2:]:
        if ast.unparse(block).startswith(("section('", 'section("')):
            assert f"# {ast.literal_eval(block.args[0])}" in prose.replace("\\", "")
        else:
            assert ast.unparse(block.value if isinstance(block, ast.Starred) else block) in ast.unparse(ast.parse(code))


@pytest.mark.slow
def test_a_notebook_runs_and_keeps_its_output_in_little_space(tmp_path):
    """Guards against a notebook that fails in Jupyter, output without the pictures and sounds of the page, and
    warnings with paths of the machine."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    from audiogen.course.notebook_output import execute_notebook

    corpus, recipes = tmp_path / "corpus", tmp_path / "recipes"
    corpus.mkdir(), recipes.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        voice = tone(0.5, 120 + 10 * i)
        soundfile.write(corpus / f"{i}.wav", np.concatenate([voice, 0.2 * rng.standard_normal(3000)]), 8000)
    path = write_notebook(LESSONS[0], recipes / "01.ipynb", [str(corpus), "--short", "--out", str(tmp_path / "out")])
    notebook = json.loads(path.read_text(encoding="utf-8"))
    next(c for c in notebook["cells"] if c["cell_type"] == "code")["source"] += [
        "\nimport warnings\nwarnings.warn('odd')"
    ]
    path.write_text(json.dumps(notebook))
    notebook = json.loads(execute_notebook(path).read_text(encoding="utf-8"))
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    said = "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")
    shown = "".join("".join(output["data"]["text/html"]) for output in outputs if "data" in output)
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert "Short form" in said and "gradient of the loss with respect to w1" in said
    assert shown.count("<audio") == 3 and "<svg" in shown and "<table" in shown and "data:image/webp" in shown
    assert "data:image/png" not in shown and "data:audio/wav" not in shown


def test_compact_output_looks_and_sounds_the_same(tmp_path):
    """Guards against spectrograms in other colours, and sounds that are not those of the lesson."""
    from audiogen.course.notebook_output import compact

    soundfile.write(tmp_path / "a.wav", tone(0.3), 8000, "PCM_16")
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([0, 1])
    before = show(grid(clip_cards([Clip(tmp_path / "a.wav", "A")])), picture(figure, "A line"))._repr_html_()
    after = compact(before)
    assert len(after) < len(before)

    def media(html: str, kind: str) -> list[bytes]:
        return [base64.b64decode(part.split('"')[0]) for part in html.split(f"data:{kind};base64,")[1:]]

    (wav,), (flac,) = media(before, "audio/wav"), media(after, "audio/flac")
    assert np.array_equal(*(soundfile.read(io.BytesIO(sound), dtype="int16")[0] for sound in (wav, flac)))
    for exact, png, webp in zip((True, False), media(before, "image/png"), media(after, "image/webp"), strict=True):
        one, other = (np.array(Image.open(io.BytesIO(x)).convert("RGB")).astype(int) for x in (png, webp))
        assert one.shape == other.shape and abs(one - other).mean() < (1e-9 if exact else 2)


def test_a_notebook_becomes_a_page_of_the_site(tmp_path):
    """Guards against a site without the output of notebooks, with a style sheet or a box for each piece of it, or with
    links to pages that only whoever runs the lesson has."""
    pytest.importorskip("mkdocs")
    hooks = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
    (tmp_path / "01_a.py").write_text(SCRIPT)
    path = write_notebook(tmp_path / "01_a.py", tmp_path / "01_a.ipynb", [])
    notebook = json.loads(path.read_text(encoding="utf-8"))
    shown = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for cell in shown[-2:]:
        html = show(f"<p>Shown {len(cell['source'])}.</p>", link("gpt/index.html"))._repr_html_()
        cell["outputs"] = [
            {"output_type": "stream", "name": "stdout", "text": ["a < b\n"]},
            {"output_type": "stream", "name": "stdout", "text": ["c\n", "d\n"]},
            {"output_type": "execute_result", "data": {"text/html": [html], "text/plain": ["Shown"]}},
        ]
    path.write_text(json.dumps(notebook))
    text = hooks["page_of"]("lessons/01_a.md", path)
    assert "[Download the notebook](01_a.ipynb)" in text and '??? code "Code"\n    ```python\n    show(' in text
    page = SimpleNamespace(file=SimpleNamespace(src_uri="lessons/01_a.md"))
    html = hooks["on_page_content"](text, page, None, None)
    assert "gpt/index.html" in html and "<a href=" not in html  # its folder is not on the site
    assert html.count('<pre class="said">a &lt; b\nc\nd</pre>') == 2 and html.count('<div class="audiogen">') == 2
    assert html.count("<style>.audiogen {") == html.count("<script>") == 1
