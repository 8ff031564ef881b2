"""What can be installed: the dependencies, the lock, what the pages tell people to type, and a pair that is broken."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from audiogen.errors import AudiogenError
from audiogen.utils.installation import TORCH_PAIR, load_torchaudio

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
REQUIREMENTS = [
    requirement
    for requirement in map(Requirement, [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])])
    if requirement.name != PROJECT["name"]  # an extra that takes in another
]
#: `pip install audiogen`, with any options before the name and any line break between the words.
WRONG_NAME = re.compile(r"""\b(?:pip|pipx|uv)\s+(?:install|add)\s[^\n`&;|]*?(?<![\w./-])audiogen(?![\w/-]|\.\w)""")


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_the_lock_pins_every_dependency_within_its_range(requirement):
    """Guards against a dependency that was added or moved without renewing the lock."""
    pins = [pin for pin in LOCK if canonicalize_name(pin.name) == canonicalize_name(requirement.name)]
    assert pins
    for pin in pins:
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and requirement.specifier.contains(specifier.version)


def test_the_lock_holds_versions_and_nothing_else():
    """Guards against a lock that names the machine or the package index it was made on."""
    for pin in LOCK:
        assert not pin.url and len(pin.specifier) == 1
    assert not re.search(r"://|--|(?:^|\s)[/~]|[A-Z]:\\", (ROOT / "constraints.txt").read_text(encoding="utf-8"))


def test_torch_and_torchaudio_are_pinned_as_a_pair():
    """Guards against torchaudio 2.11.1 beside torch 2.11.0, which pip chose and which cannot be imported."""
    pair = {r.name: str(r.specifier) for r in REQUIREMENTS if r.name in ("torch", "torchaudio")}
    assert pair == {name: f"=={version}" for name, version in TORCH_PAIR.items()} and len(pair) == 2


def test_what_the_weekly_check_runs_is_there():
    """Guards against a test that was renamed and is then missed once a week."""
    names = re.findall(r"tests/\w+\.py", (ROOT / ".ci" / "newest").read_text(encoding="utf-8"))
    assert names and all((ROOT / name).is_file() for name in names)


def test_no_page_tells_people_to_install_another_project():
    """Guards against `pip install audiogen`: on PyPI that name belongs to somebody else."""
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
    """Guards against a search that finds nothing because it looks for too little."""
    assert bool(WRONG_NAME.search(text)) is wrong


def write_torchaudio(folder, version, error):
    """A torchaudio that raises `error` when it is imported; returns the environment of a process that finds it."""
    (folder / "torchaudio").mkdir()
    (folder / "torchaudio" / "__init__.py").write_text(f"raise {error}\n")
    (folder / f"torchaudio-{version}.dist-info").mkdir()
    (folder / f"torchaudio-{version}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: torchaudio\nVersion: {version}\n"
    )
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


@pytest.mark.parametrize(
    ("version", "error", "command"),
    [
        (
            "2.11.1",
            "OSError('lib.so: undefined symbol: torch_exception_get_what')",
            "pip install torch==2.11.0 torchaudio==2.11.0",
        ),
        ("2.10.0", "ImportError('no module named torch.thing')", "pip install torch==2.11.0 torchaudio==2.11.0"),
    ],
)
def test_the_doctor_names_a_torchaudio_that_does_not_fit(tmp_path, version, error, command):
    """Guards against a traceback, or an error without a way out, where pip has chosen a pair that does not fit."""
    done = subprocess.run(
        [sys.executable, "-m", "audiogen", "doctor"],
        env=write_torchaudio(tmp_path, version, error),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "warning" in line and "torchaudio" in line]
    assert f"torchaudio {version} does not fit torch {torch.__version__}" in line and command in line
    assert "--device auto" in done.stdout  # what does not need torchaudio is reported all the same
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(("torch_version", "forced"), [("2.11.0+cu130", True), ("2.11.0", True), ("2.15.0", False)])
def test_pip_is_forced_only_where_the_versions_are_right_already(monkeypatch, torch_version, forced):
    """Guards against advice that changes nothing, since pip calls it satisfied; and 5 GB fetched anew for a torch that
    fits."""
    monkeypatch.setitem(sys.modules, "torchaudio", None)  # its import raises ImportError
    monkeypatch.setattr(torch, "__version__", torch_version)
    monkeypatch.setattr("audiogen.utils.installation.version", lambda name: "2.11.0")
    with pytest.raises(AudiogenError, match="torchaudio 2.11.0 does not fit torch") as caught:
        load_torchaudio()
    assert ("--force-reinstall" in str(caught.value)) is forced


def test_a_missing_torchaudio_is_installed_with_the_torch_that_fits(monkeypatch):
    """Guards against `pip install torchaudio`, which brings one that does not fit."""
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    monkeypatch.setattr("audiogen.utils.installation.package_version", lambda name: None)
    with pytest.raises(AudiogenError, match="not installed; type: pip install torch==2.11.0 torchaudio==2.11.0"):
        load_torchaudio()


def test_reading_encoding_and_decoding_leave_torchaudio_alone(tmp_path):
    """Guards against `import torchaudio` at the top of a module, by which one broken package takes all of audiogen with
    it."""
    script = """
import sys, torch, audiogen
from audiogen import cli
for name in audiogen.__all__:
    getattr(audiogen, name)
for name in ("mulaw", "codec"):
    frontend = audiogen.load_frontend(name)
    frontend.decode(frontend.encode(torch.zeros(1, 1, 1600)))
assert "torchaudio" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=write_torchaudio(tmp_path, "2.11.1", "OSError('broken')"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def test_the_wheel_holds_every_file():
    """Guards against a wheel without weights, or a new folder that an editable installation finds and a wheel lacks."""
    package = ROOT / "audiogen"
    listed = {path for pattern in SETUPTOOLS["package-data"]["audiogen"] for path in package.glob(pattern)}
    files = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    modules = {path for path in files if path.suffix == ".py"}
    assert package / "weights" / "base" / "model.safetensors" in listed
    assert not files - modules - listed
    assert not {path.parent for path in modules if not (path.parent / "__init__.py").is_file()}
    shared = {path for group in SETUPTOOLS["data-files"].values() for pattern in group for path in ROOT.glob(pattern)}
    beside = {path for folder in ("recipes", "datasets") for path in (ROOT / folder).rglob("*") if path.is_file()}
    assert {ROOT / "recipes" / "quickstart.py", ROOT / "datasets" / "synthetic.py"} <= shared
    assert not {path for path in beside - shared if "__pycache__" not in path.parts}
