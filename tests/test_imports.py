"""Who imports whom. Read from the source, so that an import inside of a function counts as well."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from folders import noise, write_wav

import audiogen
from audiogen.commands.options import registered
from audiogen.frontends import FRONTENDS
from audiogen.models.backbones import BACKBONES

PACKAGE = Path(audiogen.__file__).parent
ENV = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
#: Each room and those that it may import, directly. Read downwards, every import goes to a room further down.
ALLOWED = {
    "__main__": {"cli"},
    "cli": {
        "audio",
        "commands",
        "data",
        "doctor",
        "errors",
        "evaluation",
        "frontends",
        "generation",
        "listen",
        "models",
        "runs",
        "utils",
    },
    "cluster": {"commands", "data", "errors", "runs", "utils"},
    "doctor": {"commands", "data", "errors", "frontends", "models", "runs", "spec", "training", "utils"},
    "commands": {
        "audio",
        "config",
        "data",
        "distributed",
        "errors",
        "evaluation",
        "frontends",
        "generation",
        "listen",
        "models",
        "runs",
        "serve",
        "spec",
        "training",
        "utils",
    },
    "serve": {"audio", "data", "errors", "generation", "models", "runs", "utils"},
    "testing": {"errors", "frontends", "generation", "models"},
    "course": {"audio", "errors", "frontends", "listen", "models", "spec", "utils"},
    "listen": {"audio", "errors", "evaluation", "runs", "training", "utils"},
    "training": {"config", "distributed", "errors", "evaluation", "models", "runs", "utils"},
    "evaluation": {
        "audio",
        "data",
        "distributed",
        "errors",
        "frontends",
        "generation",
        "models",
        "runs",
        "spec",
        "utils",
    },
    "runs": {"audio", "config", "data", "errors", "frontends", "generation", "models", "spec", "utils"},
    "data": {"audio", "config", "errors", "frontends", "models", "spec", "utils"},
    "generation": {"audio", "errors", "frontends", "models", "spec", "utils"},
    "frontends": {"audio", "config", "distributed", "errors", "models", "spec", "utils"},
    "models": {"errors", "spec", "utils"},
    "audio": {"errors", "utils"},
    "distributed": {"errors", "utils"},
    "config": {"errors"},
    "utils": {"errors"},
    "spec": set(),
    "errors": set(),
}
#: The one place that touches sound files.
AUDIO = {"audio"}
#: What stands on all the rest: runs, and what is done with them.
TOP = {
    "cluster",
    "__main__",
    "cli",
    "commands",
    "course",
    "doctor",
    "evaluation",
    "listen",
    "runs",
    "serve",
    "testing",
    "training",
}


def read_imports(package):
    """The modules of a package folder -> (modules of it that they import, top-level names of all else)."""
    paths = {}
    for path in sorted(package.rglob("*.py")):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    inner, outer = {name: set() for name in paths}, {name: set() for name in paths}
    for name, path in paths.items():
        home = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for target in _targets(node, home):
                while target and target not in paths and target.startswith(package.name + "."):
                    target = target.rpartition(".")[0]  # a name inside of a module
                if target in paths:
                    inner[name] |= {target} - {name}
                else:
                    outer[name].add(target.partition(".")[0])
    return inner, outer


def _targets(node, home):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = home.rsplit(".", node.level - 1)[0] if node.level else ""
        module = ".".join(filter(None, [base, node.module]))
        return [
            f"{module}.{alias.name}" if node.level or "." in module or module == home.partition(".")[0] else module
            for alias in node.names
        ]
    return []


def find_circle(imports):
    """Modules that import each other in a ring, the first one repeated at the end; None if there is no ring."""
    done = set()

    def visit(name, trail):
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return None
        done.add(name)
        return next(filter(None, (visit(other, [*trail, name]) for other in sorted(imports[name]))), None)

    return next(filter(None, (visit(name, []) for name in imports)), None)


def room(module):
    """audiogen.frontends.mel.mel -> frontends"""
    return module.split(".")[1] if "." in module else ""


def reached(imports, rooms):
    """Rooms that the modules of `rooms` import, directly or through others."""
    seen, todo = set(), [name for name in imports if room(name) in rooms]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo.extend(imports[name])
    return {room(name) for name in seen} - set(rooms)


@pytest.fixture(scope="module")
def graph():
    return read_imports(PACKAGE)


def test_there_is_no_circle(graph):
    """Guards against two modules that can't be understood, or loaded, one without the other."""
    circle = find_circle(graph[0])
    assert circle is None, " -> ".join(circle)


def test_imports_point_downwards(graph):
    """Guards against a short cut upwards, and a new room without a place of its own in the table."""
    order = list(ALLOWED)
    for name, others in ALLOWED.items():
        assert all(order.index(other) > order.index(name) for other in others), name
    found = {}
    for module, targets in graph[0].items():
        if room(module):
            found.setdefault(room(module), set()).update(room(target) for target in targets)
    for name, targets in found.items():
        assert targets - {"", name} <= ALLOWED[name], f"{name} -> {sorted(targets - {'', name} - ALLOWED[name])}"


def test_the_two_halves_do_not_know_each_other(graph):
    """Guards against a front-end that only works with one backbone, and a model that asks what it models."""
    model_half = {"models"}
    used = {target for name, targets in graph[0].items() if room(name) == "frontends" for target in targets}
    assert {name for name in used if room(name) in model_half} <= {"audiogen.models.layers"}  # which knows neither half
    assert not reached(graph[0], model_half) & {"frontends", "data", *AUDIO}


def test_training_evaluation_and_listening_stand_on_top(graph):
    """Guards against a core that needs its users."""
    rest = {room(name) for name in graph[0]} - TOP - {""}
    assert not reached(graph[0], rest) & TOP


def test_the_library_never_imports_recipes(graph):
    """Guards against a library that stands on its scripts, or hides a well-known package of the name `datasets`."""
    for module, names in graph[1].items():
        assert not names & {"recipes", "datasets", "tests"}, module
    for folder in ("recipes", "datasets"):
        assert not (PACKAGE.parent / folder / "__init__.py").exists()


def test_audio_is_the_only_door_to_sound_files(graph):
    """Guards against a second reader, which would not make the first one's refusals."""
    for module, names in graph[1].items():
        assert room(module) in AUDIO or not names & {"soundfile", "soxr", "wave", "audioread", "pydub"}, module


def test_only_the_spec_knows_its_unit():
    """Guards against `spec.unit == "bits"` in twelve places, where a third kind of spec would need as many edits."""
    askers = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare)
        and {"bits", "nats"}
        & {getattr(side, "value", None) for side in [node.left, *node.comparators] if isinstance(side, ast.Constant)}
        or isinstance(node, ast.Attribute)
        and ast.unparse(node) in ("Unit.BITS", "Unit.NATS")
    }
    assert askers == {"spec.py"}


def test_only_the_model_asks_which_spec_it_is():
    """Guards against `isinstance(spec, TokenSpec)` outside the model, whose two ends depend on it."""
    askers = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "isinstance"
        and {"TokenSpec", "FrameSpec"} & {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
    }
    assert askers == {"models/sequence_model.py"}


def test_every_public_name_leads_somewhere():
    """Guards against a public name whose module was moved."""
    for name in audiogen.__all__:
        assert getattr(audiogen, name) is not None
    assert set(dir(audiogen)) == set(audiogen.__all__)
    with pytest.raises(AttributeError, match="load_runs"):
        audiogen.load_runs  # noqa: B018


#: What takes a command from a third of a second and 35 to 65 MB to several seconds and 650 MB, and what leads there.
HEAVY = {"torch", "torchaudio", "librosa", "numba", "scipy", "matplotlib", "PIL", "encodec", "av"}
RUN = f"""
import sys, audiogen.cli
sys.argv = ["audiogen", *sys.argv[1:]]
try:
    audiogen.cli.main()
finally:
    print("loaded:", *sorted({HEAVY!r} & sys.modules.keys()), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "command, code",
    [
        ("--help", 0),
        ("train --help", 0),
        ("doctor FOLDER --label-pattern {name}", 0),
        ("doctor gone", 1),
        ("sing", 2),
        ("train FOLDER", 2),
        ("train FOLDER --out run --backbone gtp", 2),
        ("train FOLDER --out run --frontend melvg", 2),
        ("train FOLDER --out run --stages melvg,mel", 2),
        ("train FOLDER --out run --stages mel", 2),
        ("train FOLDER --out run --device gpu", 2),
        ("train FOLDER --out run --steps 1 --minutes 1", 2),
        ("train FOLDER --out run --minutes 0", 2),
        ("train FOLDER --out run --seed -1", 2),
        ("train FOLDER --out run --from nothing", 2),
        ("train FOLDER --out run --set training", 2),
        ("train gone --out run", 1),
        ("tokenize gone out", 1),
        ("decode gone out --set training.steps=3", 2),
        ("generate gone --out out", 1),
        ("generate gone --out out --seconds long", 2),
        ("generate FOLDER --out out --temperature -1", 2),
        ("generate FOLDER --out out --num 100000000", 2),
        ("generate FOLDER --out out --seed -1", 2),
        ("generate FOLDER --out out --precision fp8", 2),
        ("generate FOLDER --out out --guidance -1", 2),
        ("generate FOLDER --out out --format mp3", 2),
        ("generate hf://drums --out out", 2),
        ("evaluate gone gone", 1),
        ("export gone out", 1),
        ("export FOLDER out --format onyx", 2),
        ("push gone me/drums", 1),
        ("push FOLDER drums", 2),
        ("serve gone", 1),
        ("serve hf://drums", 2),
        ("serve FOLDER --port 0", 2),
        ("listen gone", 1),
    ],
)
def test_help_refusals_and_the_doctor_load_no_torch(tmp_path, command, code):
    """Guards against seconds and hundreds of MB before a line of help, a refusal or the report on a folder."""
    for seed in range(2):
        write_wav(tmp_path / "folder" / f"{'ab'[seed]}.wav", noise(seed, 20_000))
    words = [str(tmp_path / "folder") if word == "FOLDER" else word for word in command.split()]
    done = subprocess.run([sys.executable, "-c", RUN, *words], cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1] == "loaded:", done.stderr


def test_what_is_used_later_is_loaded_then():
    """Guards against a test of imports that passes because it sees none."""
    done = subprocess.run([sys.executable, "-c", RUN, "doctor"], env=ENV, capture_output=True, text=True, check=True)
    assert "torch" in done.stderr.splitlines()[-1].split()


def test_the_help_names_the_parts_of_the_registries():
    """Guards against names read from the source that are not those of the registry."""
    assert registered("frontends", "FRONTENDS") == list(FRONTENDS)
    assert registered("models/backbones", "BACKBONES") == list(BACKBONES)
    with pytest.raises(LookupError):
        registered("frontends", "BACKENDS")


@pytest.mark.parametrize(
    "files, circle",
    [
        ({"a": "from .b import x", "b": "x = 1"}, None),
        ({"a": "from .b import x", "b": "from .a import y"}, "p.a -> p.b -> p.a"),
        ({"a": "from . import b", "b": "def f():\n    import p.a"}, "p.a -> p.b -> p.a"),
        ({"a": "import p.b", "b": "from p.c import x", "c": "from p import a"}, "p.a -> p.b -> p.c -> p.a"),
        ({"a": "", "s/__init__": "from .t import x", "s/t": "from ..a import y"}, None),
        (
            {"a": "from .s import x", "s/__init__": "from .t import x", "s/t": "from ..a import y"},
            "p.a -> p.s -> p.s.t -> p.a",
        ),
        ({"s/__init__": "from . import t", "s/t": "from . import u", "s/u": "import os.path, torch"}, None),
    ],
)
def test_circles_are_found(tmp_path, files, circle):
    """Guards against a walk over the imports that finds nothing because it reads nothing."""
    for name, text in {"p/__init__": "", **{f"p/{name}": text for name, text in files.items()}}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(text)
    found = find_circle(read_imports(tmp_path / "p")[0])
    assert (found and " -> ".join(found)) == circle


def test_the_walk_sees_the_whole_house(graph):
    """Guards against a walk that passes because it looks elsewhere."""
    assert {"audiogen.models.sequence_model", "audiogen.models.backbones.gpt"} <= graph[0].keys()
    assert "audiogen.models.backbones" in graph[0]["audiogen.models.sequence_model"]
    assert "audiogen.models.layers" in graph[0]["audiogen.models.backbones.gpt"]
    assert "torch" in graph[1]["audiogen.models.layers"]
