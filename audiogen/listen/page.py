"""The listening page: what runs sound like, how they learned, and what their figures mean."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path, PurePath

from ..errors import RunError
from ..utils.files import sha256_file
from .clips import clip_cards, legend
from .diagnostics import INTRODUCTION, insides
from .figures import figures_table, learning_curves, meanings, read_figures
from .html import Html, bullets, code, columns, contents, details, grid, section, table, text, write_document
from .run_reader import RunFolder, number, read_folder
from .selection import choose

LISTEN_FOR = (
    "Colour: is it the instrument or the voice of the originals, or noise?",
    "Attack and decay: do sounds begin and die away as they do in the originals?",
    "Pitch: does a tone hold its pitch, and do tones fit each other?",
    "Rhythm and phrase: does it keep a beat, does it go anywhere? This takes the longest memory, so it comes last.",
)


def write_page(runs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Writes one page to listen to the runs, side by side if there are several.

    Everything is inside the file: WAVs byte by byte, pictures, style. It is read from the folders alone, at any moment
    of a run: what is not there yet is left out.

    Args:
        runs: run folders; one that is named twice is shown once.
        out: the HTML file, or a folder for index.html; by default the run's own folder. The page of several runs is by
            default side-by-side.html in the folder above the first one.

    Returns:
        the path of the page.

    Raises:
        RunError: a folder is no run, damaged, or of a newer format.
        AudiogenError: the page can't be written.

    Example:
        >>> write_page(["runs/wavenet", "runs/gpt"], out="compare.html")    # doctest: +SKIP
        PosixPath('compare.html')
    """
    if not runs:
        raise RunError("no run folder was given; name at least one")
    different = {Path(run).resolve(): Path(run) for run in reversed(runs)}
    folders = [read_folder(run) for run in reversed(different.values())]
    names = run_names(folders)
    title = " and ".join(names) if len(names) < 4 else f"{len(names)} runs"
    parts = sections(names, folders)
    blocks = [
        *(
            text(summary(folder) if len(folders) == 1 else f"{name}: {summary(folder)}", style="lead")
            for name, folder in zip(names, folders, strict=True)
        ),
        contents(list(parts)),
        legend(),
        *(section(name, *content) for name, content in parts.items()),
    ]
    return write_document(_place(folders, out), title, *blocks, wide=len(names) > 1)


def _place(folders: Sequence[RunFolder], out: str | Path | None) -> Path:
    if out is None:
        first = folders[0].path.resolve() if folders[0].path.name in ("", "..") else folders[0].path
        return first / "index.html" if len(folders) == 1 else first.parent / "side-by-side.html"
    return Path(out) if Path(out).suffix.lower() in (".html", ".htm") else Path(out) / "index.html"


def sections(names: Sequence[str], folders: Sequence[RunFolder]) -> dict[str, list[Html]]:
    """The page's sections by title, in order."""
    choices = [choose(folder) for folder in folders]
    cards = iter(clip_cards([clip for choice in choices for group in choice.groups for clip in group]))
    pairs, generated, along, other = zip(
        *([grid([next(cards) for _ in group]) if group else "" for group in choice.groups] for choice in choices),
        strict=True,
    )

    def side_by_side(blocks: Sequence[Html]) -> Html:
        return columns(dict(zip(names, [block or text("None yet.", style="note") for block in blocks], strict=True)))

    out: dict[str, list[Html]] = {}
    if any(pairs):
        out["Originals and their round trip"] = [
            text(
                "Each original is followed by its round trip: the same sound, turned into the numbers that the model "
                "sees and straight back, with no model between. What is lost here is lost to the front-end: generated "
                "sound can't be better than this."
            ),
            side_by_side(pairs),
        ]
    out["Generated"] = [
        text("Sound that the model made up. What to listen for, in the order in which models tend to learn it:"),
        bullets(*LISTEN_FOR),
        side_by_side(generated),
    ]
    if any(along):
        out["On the way"] = [text("The same model at other moments of its training, in order."), side_by_side(along)]
    if any(other):
        out["Other sounds"] = [
            text("Files in the samples folder with nothing written down about them."),
            side_by_side(other),
        ]
    if left_out := sum(choice.left_out for choice in choices):
        out[list(out)[-1]].append(text(f"{left_out} more in the samples folder.", style="note"))
    out["How it learned"] = [
        text(
            "The loss says how unsure the model is of what comes next. When the curve of the held-out files turns up "
            "while that of the training files still falls, the model begins to learn the training files by heart. "
            "Dashed lines are models that only count: the lower, the harder to beat."
        ),
        side_by_side(learning_curves(folders)),
    ]
    inside = [insides(folder) for folder in folders]
    if any(inside):
        out["Inside the network"] = [text(INTRODUCTION), side_by_side(inside)]
    tables = [figures_table(folder) for folder in folders]
    out["Figures"] = (
        [grid([*tables, meanings(folders)])]
        if len(folders) == 1
        else [comparison(names, folders), side_by_side(tables), meanings(folders)]
    )
    out["Settings"] = [
        side_by_side(
            [
                details("config.json", code(json.dumps(folder.config, indent=2, ensure_ascii=False)))
                for folder in folders
            ]
        )
    ]
    return out


def run_names(folders: Sequence[RunFolder]) -> list[str]:
    """The names of different folders; as much of the path as tells them apart."""
    paths = [folder.path.resolve() for folder in folders]
    depth = next(depth for depth in itertools.count(1) if len({path.parts[-depth:] for path in paths}) == len(paths))
    return [PurePath(*path.parts[-depth:]).as_posix() for path in paths]


def summary(folder: RunFolder) -> str:
    """One sentence on what was trained, for how long, and how well."""
    entry = read_figures(folder).unit.rpartition(" ")[2]  # code or frame
    said = f"A {folder.kind('backbone')} model of {folder.kind('frontend')} {entry}s"
    trained = max(
        (e for e in folder.events if e.get("event") in ("train", "held_out")),
        key=lambda e: number(e.get("step")) or 0,
        default={},
    )
    figures = read_figures(folder)
    if steps := number(trained.get("step")):
        seconds = number(trained.get("seconds"))
        said += f", trained for {steps:,} steps" + (f" in {duration(seconds)}" if seconds else "")
        if figures.step and figures.step < steps:
            said += f", the best of which was step {figures.step:,}"
    if figures.loss is not None:
        said += f"; {figures.loss:.3f} {figures.unit} on held-out files"
    return said + "."


def duration(seconds: float) -> str:
    """95 -> "1.6 minutes"."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def comparison(names: Sequence[str], folders: Sequence[RunFolder]) -> Html:
    """The runs' held-out figures in one table, with a warning where they can't be compared."""
    rows = []
    for name, folder in zip(names, folders, strict=True):
        figures = read_figures(folder)
        rows.append(
            [name, folder.kind("frontend"), folder.kind("backbone"), figures.loss, figures.unit, figures.per_second]
        )
    same = len({frontend_identity(folder) for folder in folders}) == 1
    return table(["run", "front-end", "backbone", "held-out loss", "unit", "bits per second"], rows) + text(
        "These runs share one front-end: if they were trained on the same files, the lower loss is the better model."
        if same
        else "These runs have different front-ends, so their losses measure different things and don't rank them: a "
        "front-end that throws more away is easier to predict. Judge by ear, each beside its own round trip."
    )


def frontend_identity(folder: RunFolder) -> str:
    """Equal for two runs if their front-ends have equal settings and weights."""
    weights = folder.path / "frontend.safetensors"
    return json.dumps(folder.config.get("frontend"), sort_keys=True) + (
        sha256_file(weights) if weights.is_file() else ""
    )
