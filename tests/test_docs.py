"""The documentation site builds, and its pages name what exists."""

import ast
import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_imports import ALLOWED

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


ARCHITECTURE = re.sub("```.*?```", "", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), flags=re.S)


def defined_names():
    """Every class, function and method of audiogen by its name, and every attribute that a class declares."""
    names = set()
    for path in sorted((ROOT / "audiogen").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names |= {node.name} if isinstance(node, ast.ClassDef | ast.FunctionDef) else set()
            for inner in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(inner, ast.FunctionDef):
                    names.add(f"{node.name}.{inner.name}")
                elif isinstance(inner, ast.AnnAssign):
                    names.add(f"{node.name}.{ast.unparse(inner.target)}")
    return names


def test_the_architecture_page_names_what_exists():
    """Guards against a trace through functions and files that were renamed, and a table that misses a package."""
    quoted = set(re.findall(r"`([^`\n]+)`", ARCHITECTURE))
    paths = {name for name in quoted if re.fullmatch(r"[\w/]+\.py|[\w/]+/", name)}
    assert {"commands/train.py", "generation/engines/"} <= paths
    assert not {path for path in paths if not any((ROOT / folder / path).exists() for folder in ("", "audiogen"))}
    rows = " ".join(re.findall(r"^\| (`.*?) \|", ARCHITECTURE, re.M))
    assert set(ALLOWED) - {"__main__"} <= set(re.findall(r"`(\w+)`", rows))
    # Classes, Class.method, and what stands before its file in brackets: `split` (`data/split.py`).
    names = {name.partition("(")[0] for name in quoted if re.match(r"[A-Z]\w+[a-z]\w*(\.\w+)?(\(|$)", name)}
    names |= set(re.findall(r"`(\w+)`\s+\(`[\w/]+(?:\.py|/)`\)", ARCHITECTURE))
    assert {"Plan.draft", "scan", "Limiter", "TokenSpec"} <= names
    assert not names - defined_names()


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
