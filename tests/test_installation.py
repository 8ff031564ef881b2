"""What can be installed: the dependencies, the lock, and what the pages tell people to type."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
REQUIREMENTS = [
    Requirement(line) for line in [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])]
]
#: `pip install audiogen`, with any options before the name and any line break between the words.
WRONG_NAME = re.compile(r"""\b(?:pip|pipx|uv)\s+(?:install|add)\s[^\n`&;|]*?(?<![\w./-])audiogen(?![\w/-]|\.\w)""")


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_the_lock_pins_every_dependency_within_its_range(requirement):
    """Buries a dependency that was added or moved without renewing the lock."""
    pins = [pin for pin in LOCK if canonicalize_name(pin.name) == canonicalize_name(requirement.name)]
    assert pins
    for pin in pins:
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and requirement.specifier.contains(specifier.version)


def test_the_lock_holds_versions_and_nothing_else():
    """Buries a lock that names the machine or the package index it was made on."""
    for pin in LOCK:
        assert not pin.url and len(pin.specifier) == 1
    assert not re.search(r"://|--|(?:^|\s)[/~]|[A-Z]:\\", (ROOT / "constraints.txt").read_text(encoding="utf-8"))


def test_torch_and_torchaudio_are_pinned_as_a_pair():
    """Buries torchaudio 2.11.1 beside torch 2.11.0, which pip chose and which cannot be imported."""
    pair = {r.name: str(r.specifier) for r in REQUIREMENTS if r.name in ("torch", "torchaudio")}
    assert pair == {"torch": "==2.11.0", "torchaudio": "==2.11.0"}


def test_no_page_tells_people_to_install_another_project():
    """Buries `pip install audiogen`: on PyPI that name belongs to somebody else."""
    kinds = {".py", ".md", ".toml", ".yml", ".html", ".js", ".cff"}
    pages = [
        path
        for path in ROOT.rglob("*")
        if (path.suffix in kinds or path.parent.name == ".ci")
        and path.is_file()
        and not set(path.relative_to(ROOT).parts) & {".git", ".venv", "venv", "build", "dist", "runs"}
    ]
    assert {ROOT / "README.md", ROOT / ".ci" / "run"} <= set(pages)
    found = [
        f"{path}: {match[0]}"
        for path in pages
        if path != Path(__file__)
        for match in WRONG_NAME.finditer(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert not found, found


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("pip install audiogen", True),
        ("pip install -U 'audiogen[metrics]'", True),
        ("pip install\naudiogen", True),
        ("uv add audiogen", True),
        ("pip install numpy audiogen==0.1", True),
        ("pip install audiogen.", True),
        ("pip install audiogen-toolkit", False),
        ("pip install -e ~/src/audiogen/", False),
        ("pip install . && audiogen", False),
        ("pip install ./audiogen_toolkit-0.1.0-py3-none-any.whl", False),
    ],
)
def test_the_wrong_name_is_recognised(text, wrong):
    """Buries a search that finds nothing because it looks for too little."""
    assert bool(WRONG_NAME.search(text)) is wrong
