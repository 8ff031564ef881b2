"""The README's commands and names work as they are written."""

import re
import shlex
from pathlib import Path

import pytest
import tables
import typer.main
from typer.testing import CliRunner

import audiogen
from audiogen.cli import app
from audiogen.frontends import FRONTENDS
from audiogen.models.backbones import BACKBONES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()]


def test_ci_runs_the_readme_s_test_command():
    """Guards against a CI that tests something weaker than what people are told to type."""
    command = next(line for line in SHELL if "pytest" in line)
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("audiogen ")])
def test_commands_parse(line):
    """Guards against an option that the README names and the program does not know."""
    name, *words = shlex.split(line, comments=True)[1:]
    typer.main.get_command(app).commands[name].make_context(name, words)


def test_tables_are_those_of_the_registries():
    """Guards against a README that does not know a registered part: run `python tests/tables.py`."""
    assert tables.filled(README) == README


@pytest.mark.parametrize("command", ["train", "tokenize", "doctor"])
def test_help_names_every_part(command):
    """Guards against a list of names in a help text that must be edited by hand."""
    said = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "300"}, terminal_width=300).output
    words = set(re.findall(r"\w+", said))
    assert words >= set(FRONTENDS)
    assert command == "tokenize" or words >= set(BACKBONES)
    assert not re.search(r"{(frontend|backbone)s?}", said)


def test_named_files_exist():
    """Guards against a link or a script that was renamed."""
    for path in set(re.findall(r"(?:recipes|datasets|tests)/[\w/]+\.py", README)):
        assert (ROOT / path).is_file(), path


def test_python_names_exist():
    """Guards against a function of the README's example that is not there."""
    for name in set(re.findall(r"audiogen\.(\w+)\(", README)):
        assert callable(getattr(audiogen, name)), name


def test_every_public_name_is_found():
    """Guards against a name in __all__ whose home was moved."""
    for name in audiogen.__all__:
        assert getattr(audiogen, name) is not None
