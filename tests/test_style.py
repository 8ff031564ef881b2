"""The formatter, the linter and the type checker find nothing. Running them as tests puts them into .ci/run."""

import subprocess
import sys
from pathlib import Path

import pytest


def run(module: str, *arguments: str) -> None:
    """Run a tool on the repository, and fail with what it prints if it finds something."""
    command = [sys.executable, "-m", module, *arguments]
    found = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_file_is_formatted():
    """Guards against diffs that mix a change with somebody's editor."""
    run("ruff", "format", "--check", ".")


def test_the_linter_finds_nothing():
    """Guards against unused imports, shadowed names, long lines, and docstrings that leave out an argument."""
    run("ruff", "check", "--output-format", "concise", ".")


@pytest.mark.slow
def test_the_type_checker_finds_nothing():
    """Guards against calls that do not fit the annotations, and None where a value is expected.

    Takes about 20 seconds on an idle core.
    """
    run("basedpyright", "--pythonpath", sys.executable, "--level", "error")
