"""The two worked examples of docs/extending.md: one file and one line each, and all that follows from it."""

import re
import shlex

import extending
import pytest
import typer.main
from corpus import folder_of_notes
from processes import audiogen

from audiogen.audio.io import audio_info
from audiogen.cli import app

PAGE = extending.PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.S)


def test_the_page_lists_the_files_as_they_are():
    """Guards against a page that teaches yesterday's interface: run `python tests/extending.py`."""
    assert extending.filled(PAGE) == PAGE


def test_the_page_names_the_lines_of_the_registries():
    """Guards against a registry that has moved or changed its form."""
    for path in ("audiogen/models/backbones/__init__.py", "audiogen/frontends/__init__.py"):
        line = re.search(rf"`{re.escape(path)}`[^\n]*:\n\n```python\n(.*?)```", PAGE, re.S).group(1)
        assert line in (extending.ROOT / path).read_text(encoding="utf-8")


def test_the_code_of_the_page_runs(monkeypatch):
    """Guards against examples that no longer work. The listings and registry lines are compared above instead."""
    from audiogen.models.backbones import BACKBONES

    monkeypatch.setattr("audiogen.models.backbones.BACKBONES", dict(BACKBONES))
    names: dict = {}
    ran = 0
    for language, code in BLOCKS:
        if language == "python" and code.startswith("from"):
            exec(compile(code, str(extending.PAGE), "exec"), names)
            ran += 1
    assert ran == 4


@pytest.mark.parametrize(
    "line", [line for language, code in BLOCKS if language == "sh" for line in code.splitlines()], ids=str
)
def test_the_commands_of_the_page_parse(line):
    name, *words = shlex.split(line)[1:]
    typer.main.get_command(app).commands[name].make_context(name, words)


def test_both_train_generate_and_stream_from_the_command_line(tmp_path):
    """Guards against a part that passes its contracts and ends in a traceback when it is trained, from a folder of one
    long file at that, which an infinite receptive field once refused."""
    folder, run = folder_of_notes(tmp_path / "corpus", [24_000]), tmp_path / "run"
    small = ["backbone.dim=8", "training.crop_frames=64", "training.evaluations=1", "training.sample_seconds=0.05"]
    options = [word for setting in small for word in ("--set", setting)]
    done = audiogen(
        tmp_path, "train", folder, "--out", run, "--frontend", "pcm", "--backbone", "gru", "--steps", "3", *options
    )
    assert done.code == 0, done.err
    assert "receptive field is unbounded" in done.err
    for name, more in (("whole", []), ("stream", ["--stream"])):
        done = audiogen(tmp_path, "generate", run, "--out", tmp_path / name, "--seconds", "0.1", "--num", "1", *more)
        assert done.code == 0, done.err
        (path,) = (tmp_path / name).glob("*.wav")
        assert audio_info(path).num_samples == 800
