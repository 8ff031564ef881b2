"""The whole tree reads alike."""

import subprocess
import sys
from pathlib import Path


def test_every_file_is_formatted():
    """Guards against diffs that mix a change with somebody's editor."""
    found = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--check", "."],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout


def test_ruff_finds_nothing():
    """Buries: unused imports, names that hide others, lines too long to be read side by side."""
    found = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "."],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout
