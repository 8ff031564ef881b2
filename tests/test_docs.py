"""The documentation site builds, and its pages name what exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


def test_the_site_builds_without_a_warning(tmp_path):
    """Guards against dead links, pages outside of the navigation, and names in the API reference that moved."""
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page):
    """Guards against pages that name a file by the place where it once was."""
    text = page.read_text(encoding="utf-8")
    for path in set(re.findall(r"\b(?:audiogen|recipes|datasets|tests)/[\w/]+\.\w+", text)):
        assert (ROOT / path).is_file(), path
