"""Run every benchmark in a short form: one JSON, and one Markdown table for docs/benchmarks.md.

    python tests/bench/all.py [--only NAME ...] [--digits FOLDER] [--speech FOLDER] [--texts FOLDER] [--out FOLDER]

A benchmark says in two constants how to call it briefly, and what it needs:

    SHORT = "{run} --num 2"      its arguments; {sounds}, {parts} and {run} are made here, a folder of tunes, the same
                                 tunes in train/ and held-out/, and a run trained on them for a few steps; {digits},
                                 {speech} and {texts} are the options of this script, {digits_run} a run on {digits};
                                 {out} is a temporary folder
    NEEDS = ("transformers",)    packages that it imports beyond those of the project; "cuda" for a GPU

Each runs in a process of its own, on one thread. What can't run here is named, with the reason. The rows of the table
are those that the benchmarks print, so the figures of a short form are rough: they show that something has become
several times slower, not that it has become 5 % faster.
"""

import argparse
import ast
import json
import os
import platform
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

BENCH = Path(__file__).parent
ROOT = BENCH.parents[1]
#: Seconds of the processor after which a benchmark counts as failed, and how much longer it may take by the clock,
#: where other work shares the core.
LIMIT, PATIENCE = 120, 60
TRAIN_STEPS = 8


@dataclass
class Result:
    name: str
    command: str
    skipped: str | None = None
    failed: str | None = None
    seconds: float = 0.0  # by the clock
    processor_seconds: float = 0.0
    rows: list[dict[str, str]] = field(default_factory=list)  # of its tables, by header
    lines: list[str] = field(default_factory=list)  # what it printed around them


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = sorted(path.stem for path in benchmarks())
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    for name, what in (
        ("digits", "spoken digits, DIGIT_SPEAKER_TAKE.wav (datasets/fsdd.py)"),
        ("speech", "speech, SPEAKER_NAME.flac"),
        ("texts", "names.txt and tinyshakespeare.txt (datasets/lesson_texts.py)"),
    ):
        parser.add_argument(f"--{name}", type=Path, help=what)
    parser.add_argument("--out", type=Path, default=Path(), help="folder for benchmarks.json and benchmarks.md")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    ok = True
    with tempfile.TemporaryDirectory() as folder:
        inputs = Inputs(Path(folder), {name: getattr(args, name) for name in ("digits", "speech", "texts")})
        for path in benchmarks():
            if path.stem in args.only:
                result = measure(path, inputs)
                state = result.skipped or result.failed or f"{result.processor_seconds:.0f} s of the processor"
                print(f"{result.name}: {state}", flush=True)
                write(args.out, result)
                ok = ok and not result.failed
    print(f"figures are in {args.out / 'benchmarks.md'}")
    return int(not ok)


def write(folder: Path, result: Result) -> None:
    """Enter a result into the files of a folder, which keep those of the other benchmarks on this machine."""
    path, about = folder / "benchmarks.json", machine()
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results = found.get("benchmarks", []) if found.get("machine") == about else []
    kept = [Result(**each) for each in results if each["name"] != result.name]
    results = sorted([*kept, result], key=lambda each: each.name)
    for name, text in (
        ("benchmarks.json", json.dumps({"machine": about, "benchmarks": [vars(each) for each in results]}, indent=1)),
        ("benchmarks.md", table(about, results)),
    ):
        (folder / name).write_text(text + "\n", encoding="utf-8")


def benchmarks() -> list[Path]:
    """Return the scripts of this folder that can be called briefly, which all but this one should."""
    return [path for path in sorted(BENCH.glob("*.py")) if path != Path(__file__)]


def declared(path: Path) -> tuple[str, tuple[str, ...]]:
    """Return SHORT and NEEDS of a benchmark, without running it.

    Raises:
        KeyError: it has no SHORT.
    """
    found: dict[str, Any] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id in ("SHORT", "NEEDS"):
                found[node.targets[0].id] = ast.literal_eval(node.value)
    return found["SHORT"], found.get("NEEDS", ())


class Inputs:
    """What benchmarks are given, made when the first one asks for it."""

    def __init__(self, folder: Path, given: dict[str, Path | None]):
        self.folder, self.given = folder, given

    def fill(self, short: str) -> list[str]:
        """Replace {names} in the arguments by paths.

        Raises:
            LookupError: this script was not told where it is.
        """
        return [re.sub(r"\{(\w+)\}", lambda found: str(self.path(found[1])), word) for word in shlex.split(short)]

    def path(self, name: str) -> Path:
        if name in self.given:
            if self.given[name] is None:
                raise LookupError(f"needs --{name}")
            return self.given[name].resolve()
        path = self.folder / name
        if not path.exists():
            getattr(self, f"_make_{name}")(path)
        return path

    def _make_sounds(self, path: Path) -> None:
        python(ROOT / "datasets" / "synthetic.py", path, "--minutes", "2")

    def _make_parts(self, path: Path) -> None:
        for i, file in enumerate(sorted(self.path("sounds").glob("*.wav"))):
            part = path / ("held-out" if i % 4 == 0 else "train")
            part.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, part)

    def _make_run(self, path: Path) -> None:
        python("-m", "audiogen", "train", self.path("sounds"), "--out", path, "--steps", str(TRAIN_STEPS))

    def _make_digits_run(self, path: Path) -> None:
        python("-m", "audiogen", "train", self.path("digits"), "--out", path, "--steps", str(TRAIN_STEPS))

    def _make_out(self, path: Path) -> None:
        path.mkdir()


def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python from the root of the repository, on one thread."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE * LIMIT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT)),
    )


def children() -> float:
    """Return the processor's seconds of all processes that have ended here."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(path: Path, inputs: Inputs) -> Result:
    """Run a benchmark in its short form, or say why not."""
    short, needs = declared(path)
    result = Result(path.stem, f"python tests/bench/{path.name} {short}".strip())
    missing = [name for name in needs if not there(name)]
    if missing:
        result.skipped = f"needs {', '.join(missing)}, which is not here"
        return result
    try:
        arguments = inputs.fill(short)
        began, used = time.perf_counter(), children()
        printed = python(path, *arguments).stdout
        result.seconds, result.processor_seconds = time.perf_counter() - began, children() - used
        result.rows, result.lines = read(printed)
    except LookupError as error:
        result.skipped = str(error.args[0])
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout).strip().splitlines()[-1:]
        result.failed = f"failed: {' '.join(last) or error}"
    except subprocess.TimeoutExpired:
        result.failed = f"failed: not done after {PATIENCE * LIMIT} s"
    return result


def there(name: str) -> bool:
    """Return whether a package is installed, or, for "cuda", whether there is a GPU."""
    return shutil.which("nvidia-smi") is not None if name == "cuda" else find_spec(name) is not None


def read(printed: str) -> tuple[list[dict[str, str]], list[str]]:
    """Split what a benchmark printed into the rows of its tables, by header, and its other lines."""
    rows, lines, header = [], [], None
    for line in printed.splitlines():
        if not line.startswith("|"):
            header = None
            lines += [line.strip()] if line.strip() else []
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if header is None:
            header = []
            for cell in cells:  # tables compare two things in the same way: "ours, theirs, ratio", twice
                header.append(f"{header[-1]}, {cell}" if cell in header else cell)
        elif set(line) - set("|- :"):
            rows.append(dict(zip(header, cells, strict=False)))
    return rows, lines


def machine() -> str:
    """Name the processor, the cores that may be used, and what of its instructions makes products fast."""
    name, flags = platform.processor() or platform.machine(), set()
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(re.findall(r"^(.+?)\s*: (.*)$", info.read_text(), flags=re.MULTILINE))
        name = f"{fields.get('model name', name)}, family {fields.get('cpu family')}, model {fields.get('model')}"
        flags = set(fields.get("flags", "").split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    fast = [flag for flag in ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_tile") if flag in flags]
    return f"{name} ({', '.join(fast)}), {cores} core(s), PyTorch {version('torch')}"


def table(about: str, results: list[Result]) -> str:
    """Format results as one table of Markdown, between a line about the machine and what did not run."""
    made = [result for result in results if not result.skipped and not result.failed]
    lines = [
        f"{about}. {len(made)} benchmarks, {sum(result.processor_seconds for result in made):.0f} s of the processor.",
        "",
        "| benchmark | case | figures |",
        "| --- | --- | --- |",
    ]
    for result in made:
        for case, figures in cases(result):
            lines.append(f"| {result.name} | {case} | {figures} |")
    absent = [f"{result.name} ({result.skipped or result.failed})" for result in results if result not in made]
    if absent:
        lines += ["", f"Not run: {'; '.join(absent)}."]
    return "\n".join(lines)


def cases(result: Result) -> Iterator[tuple[str, str]]:
    """Yield what each row of a benchmark is of, and its figures; without tables, the lines that have figures."""
    if not result.rows:
        yield "", "; ".join(line for line in result.lines if re.search(r"\d", line))
    for row in result.rows:
        words, figures = [], []
        for header, cell in row.items():
            # What comes before the first measured figure says which case it is.
            is_setting = header in ("model", "by", "items", "batch", "prompt", "guidance", "velocities")
            if (not figures and not re.match(r"[-+]?[\d.,]+", cell)) or is_setting:
                words.append(f"{header} {cell}" if re.fullmatch(r"[\d.,]+", cell) else cell)
            else:
                figures.append(f"{header} {cell}")
        yield ", ".join(filter(None, words)), "; ".join(figures)


if __name__ == "__main__":
    sys.exit(main())
