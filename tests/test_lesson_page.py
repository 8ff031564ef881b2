"""A lesson's page and its arguments: what the library puts around a lesson's own sections."""

from argparse import Namespace
from pathlib import Path

import pytest
from listening import Page, put

from audiogen.course.lesson_page import write_lesson
from audiogen.course.lesson_parser import SHORT, LessonParser
from audiogen.listen import Clip, clip_cards, grid, section, table, text
from audiogen.listen.html import note

SCRIPT = '''"""Lesson 1: a first one. Does it stand?

    python recipes/01_first.py FOLDER

What it teaches. That a < b, and what `code` and --some-option 0.5 look like, with --set a.b=1 and --resume as well.

What to try. --rate 3, then 0.01.
"""

from audiogen.course import backward as b
from audiogen.course.engine import Value
'''


@pytest.fixture
def path(tmp_path) -> Path:
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    (recipes / "01_first.py").write_text(SCRIPT)
    (recipes / "02_second.py").write_text('"""Lesson 2."""\n')
    sound = put(tmp_path, "sound")
    out = tmp_path / "runs" / "01_first"
    out.mkdir(parents=True)
    return write_lesson(
        str(recipes / "01_first.py"),
        Namespace(out=out, short=False),
        section("The loss", text("It needs 3 nats, and the bigram 4.")),
        section("Sounds", grid(clip_cards([Clip(sound, "One")])), grid(clip_cards([Clip(sound, "Two")]))),
    )


def test_a_lesson_page_can_be_read_by_itself(path):
    """Guards against a page without a list of its sections, sounds without a legend or with two, and words nobody
    explains."""
    whole = path.read_text(encoding="utf-8")
    assert "<h1>Lesson 1: a first one. Does it stand?</h1>" in whole
    for name in ("the-loss", "sounds", "words-of-this-page"):
        assert f'href="#{name}"' in whole and f'id="{name}"' in whole
    assert whole.count("Tap a picture") == 1
    assert whole.index("Tap a picture") < whole.index("<audio")
    words = Page(path).texts["words-of-this-page"]
    assert {"nats", "bigram"} <= set(words) and not {"SI-SDR", "dead", "unigram"} & set(words)


def test_the_contrast_of_a_lesson_comes_first(tmp_path):
    """Guards against a page whose sounds come after all that is to be said of them, and a legend that is not above."""
    script, sounds = tmp_path / "01_first.py", [Clip(put(tmp_path, name), name) for name in ("without", "with")]
    script.write_text(SCRIPT)
    args, block = Namespace(out=tmp_path, short=False), section("The loss", text("3 nats."))
    page = write_lesson(str(script), args, block, before_after=sounds)
    assert list(Page(page).texts)[1:3] == ["before-and-after", "the-loss"]
    whole = page.read_text(encoding="utf-8")
    assert whole.index("Tap a picture") < whole.index("<audio") and whole.count("<audio") == 2
    assert "before-and-after" not in write_lesson(str(script), args, block).read_text(encoding="utf-8")


def test_links_of_a_lesson_lead_somewhere(path):
    """Guards against a link to a file that is not there: the script, what it reads from audiogen/course, the next
    lesson."""
    links = [a["href"] for a in Page(path).all("a") if not a["href"].startswith("#")]
    *files, following = links
    assert [(path.parent / file).resolve().name for file in files] == ["01_first.py", "__init__.py", "engine.py"]
    assert all((path.parent / file).is_file() for file in files)
    assert following == "../02_second/index.html"


def test_the_code_behind_a_section_lies_folded_in_it(tmp_path):
    """Guards against code under the wrong heading, and markup in it that the browser takes for its own."""
    script = tmp_path / "03_third.py"
    script.write_text(
        '"""Lesson 3."""\n\n\ndef main():\n    """Run."""\n    # 1. Count.\n    a = 1 < 2\n'
        "\n    # 2. Add.\n    b = a + 1\n"
        '    write_lesson(__file__, args, section("One", text(f"{a}")), section("Two", text(f"{b}")))\n'
    )
    page = write_lesson(
        str(script), Namespace(out=tmp_path, short=False), section("One", text("x")), section("Two", text("y"))
    )
    texts = Page(page).texts
    assert "a = 1 < 2" in texts["one"] and "b = a + 1" not in texts["one"]
    assert "b = a + 1" in texts["two"] and "The code behind this section" in texts["two"]


def test_a_note_sets_options_and_names_apart():
    """Guards against an option broken after its dashes, one that swallows the next word, and text that is not
    escaped."""
    made = note(SCRIPT.split('"""')[1])
    for part in (
        "<b>What it teaches.</b> That a &lt; b, and what <code>code</code> and",
        "<code>--some-option <wbr>0.5</code> look like,",
        "<code>--set <wbr>a.b=1</code> and <code>--resume</code> as well",
        "<code>--rate <wbr>3</code>, then 0.01.",
        "<pre>python recipes/01_first.py FOLDER</pre>",
    ):
        assert part in made, part


def test_figures_of_a_table_stand_right_also_where_they_are_text():
    """Guards against a column of percentages that can't be compared at a glance, and 70.996 for 71 %."""
    made = table(["", "right", "% of all", "kind"], [["a", "91.5 %", 70.996, "3 of 4"], ["b", "3e-07", 8.0, "none"]])
    assert '<td class="n">91.5 %</td><td class="n">71.0</td><td>3 of 4</td>' in made
    assert '<td class="n">3e-07</td><td class="n">8.0</td>' in made


def test_the_short_form_has_a_folder_of_its_own_and_says_what_it_is(monkeypatch, capsys):
    """Guards against `--short` that leaves a tiny run where the lesson's own is to begin, and against output of a few
    steps that reads like a result."""
    for given, expected in (
        ([], "runs/06_wavenet"),
        (["--short"], "runs/06_wavenet-short"),
        (["--short", "--out", "x"], "x"),
    ):
        monkeypatch.setattr("sys.argv", ["06_wavenet.py", "folder", *given])
        assert str(LessonParser("recipes/06_wavenet.py", "A lesson.\n").parse_args().out) == expected
        assert capsys.readouterr().out == (f"{SHORT}\n" if "--short" in given else "")
