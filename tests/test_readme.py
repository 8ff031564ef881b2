"""The README's commands and names work as they are written."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

import audiogen
from audiogen.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()]


def test_ci_runs_the_readme_s_test_command():
    """Buries: a CI that tests something weaker than what people are told to type."""
    command = next(line for line in SHELL if "pytest" in line)
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("audiogen ")])
def test_commands_parse(line):
    """Buries: an option that the README names and the program does not know."""
    name, *words = shlex.split(line, comments=True)[1:]
    typer.main.get_command(app).commands[name].make_context(name, words)


def test_named_files_exist():
    """Buries: a link or a script that was renamed."""
    for path in set(re.findall(r"(?:recipes|datasets|tests)/[\w/]+\.py", README)):
        assert (ROOT / path).is_file(), path


def test_python_names_exist():
    """Buries: a function of the README's example that is not there."""
    for name in set(re.findall(r"audiogen\.(\w+)\(", README)):
        assert callable(getattr(audiogen, name)), name


def test_every_public_name_is_found():
    """Buries: a name in __all__ whose home was moved."""
    for name in audiogen.__all__:
        assert getattr(audiogen, name) is not None
