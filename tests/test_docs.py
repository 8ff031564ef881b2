"""The documentation site builds, and its pages name what exists."""

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import audiogen

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


EXAMPLES = [path for path in sorted((ROOT / "audiogen").rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_in_docstrings_run(path, tmp_path, monkeypatch):
    """Guards against an example that names what was renamed, or shows what no longer comes out."""
    monkeypatch.chdir(tmp_path)
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    module = importlib.import_module(name)
    public = {name: getattr(audiogen, name) for name in audiogen.__all__}
    names = {"audiogen": audiogen, "torch": torch, **public, **vars(module)}
    results = doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert not results.failed
