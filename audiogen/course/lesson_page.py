"""The page of a lesson: its own sections, and the parts that all lessons share."""

import argparse
import ast
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from html import escape, unescape
from pathlib import Path
from typing import Any

from torch import Tensor

from ..audio.io import write_audio
from ..listen.clips import Clip, clip_cards, legend
from ..listen.figures import MEANINGS
from ..listen.html import Html, anchor, code, contents, details, glossary, grid, note, section, text, write_document
from .lesson_parser import SHORT
from .notebook import code_by_section

CLIPS = '<div class="clips"><article class="card clip"'  # start of the first sounds on a page

#: Glossary of the course; keys have the form in which words appear on pages.
WORDS = {
    "mel": "A scale of pitch as ears hear it: fine for low frequencies, coarse for high ones. A mel spectrogram says "
    "how loud each of some bands of it is, frame by frame.",
    "nats": "A loss is the mean of -log(probability of what came). With the natural logarithm it is in nats, with that "
    "to base 2 in bits: 1 nat is 1.443 bits.",
    "bits": MEANINGS["bits per code"].replace("model is of the next code", "model is of what comes next"),
    "bits per second": MEANINGS["bits per second"],
    **{name: MEANINGS[name] for name in ("uniform", "unigram", "bigram")},
    "held out": "Files that no training has seen. They are chosen by their content, so always the same ones.",
    "round trip": "Sound turned into what the model sees and straight back, with no model between.",
    "mel distance": MEANINGS["round trip: mel distance"],
    "SI-SDR": MEANINGS["round trip: SI-SDR (dB)"],
    "deviation": "The standard deviation: how far numbers lie from their mean, typically.",
    "saturated": "A tanh or sigmoid in the outermost 3 % of its range, where hardly any gradient gets through.",
    "dead": "Units that are saturated for every example looked at, so that none of these teaches them anything.",
    "temperature": "A number that the logits are divided by before the draw: below 1 the likely becomes likelier.",
}


def write_lesson(script: str, args: argparse.Namespace, *blocks: Html, before_after: Sequence[Clip] = ()) -> Path:
    """Write the page of a lesson, index.html in its folder, and return its path.

    It consists of the lesson's docstring, `blocks`, and what all lessons share: links to its sections, to the script
    and to the modules of audiogen/course that it imports, a legend before the first spectrogram, a glossary of the
    words that occur, and a link to the next lesson. With --short, it says so at the top.

    Args:
        script: the lesson's own path, `__file__`.
        args: what `LessonParser.parse_args` returned.
        blocks: sections of the page.
        before_after: what a sound is without and with what the lesson teaches; these come first on the page.
    """
    path = args.out / "index.html"
    first = section("Before and after", grid(clip_cards(before_after))) if before_after else ""
    lesson, body = Path(script), "".join([first, *blocks]).replace(CLIPS, legend() + CLIPS, 1)
    tree = ast.parse(lesson.read_text(encoding="utf-8"))
    docstring = ast.get_docstring(tree) or ""
    said = unescape(re.sub("<style.*?</style>|<[^>]*>", " ", note(docstring) + body))
    words = {word: meaning for word, meaning in WORDS.items() if re.search(rf"(?<!\w){word}(?!\w)", said)}
    body += section("Words of this page", glossary(words)) if words else ""
    body = with_code(lesson, body)
    titles = [unescape(title) for title in re.findall(r'<section id="[^"]*"><h2>(.*?)</h2>', body)]
    return write_document(
        path,
        docstring.splitlines()[0].rstrip("."),
        text(SHORT, style="notice") if args.short else "",
        contents(titles),
        note(docstring),
        beside(lesson, scratch_modules(tree), path.parent),
        body,
        following(lesson, path.parent),
    )


def with_code(lesson: Path, body: Html) -> Html:
    """Fold the code behind each section of a lesson's page in at the section's end."""
    try:
        behind = code_by_section(lesson)
    except ValueError:  # a script of another form
        return body
    for title, source in behind.items():
        start = body.find(f'<section id="{anchor(title)}">')
        if start >= 0 and source:
            end = body.index("</section>", start)
            body = body[:end] + details("The code behind this section", code(source)) + body[end:]
    return body


def versions(folder: Path, heard: Mapping[str, Sequence[Tensor]], sample_rate: int) -> dict[str, list[Clip]]:
    """Write several versions of held-out clips to `folder`, and return the clips by version.

    Args:
        folder: folder of the WAVs.
        heard: name of a version -> clips (1, N), in the same order for all versions.
        sample_rate: Hz.
    """
    folder.mkdir(exist_ok=True)
    clips: dict[str, list[Clip]] = {name: [] for name in heard}
    for kind, (name, wavs) in enumerate(heard.items()):
        for number, wav in enumerate(wavs):
            path = folder / f"{number}-{kind}.wav"
            write_audio(path, wav.cpu(), sample_rate)
            clips[name].append(Clip(path, name, f"held-out clip {number + 1}"))
    return clips


def scratch_modules(tree: ast.Module) -> list[str]:
    """Return the sorted names of the modules of audiogen.course that a lesson imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("audiogen.course"):
            found |= (
                {
                    name if importlib.util.find_spec(name := f"{node.module}.{alias.name}") else node.module
                    for alias in node.names
                }
                if node.module == "audiogen.course"
                else {node.module}
            )
    return sorted(found)


def beside(lesson: Path, modules: list[str], place: Path) -> Html:
    """Return links from the folder `place` to the script and to the modules it imports."""
    files = {f"recipes/{lesson.name}": lesson}
    for name in modules:
        spec: Any = importlib.util.find_spec(name)
        origin = Path(spec.origin)
        inside = Path(*name.split("."))
        files[(inside if origin.name == "__init__.py" else inside.with_suffix(".py")).as_posix()] = origin
    links = [
        f'<a href="{escape(Path(os.path.relpath(file.resolve(), place.resolve())).as_posix())}">'
        f"<code>{escape(name)}</code></a>"
        for name, file in files.items()
    ]
    return f'<p class="note">To be read beside this page: {", ".join(links)}.</p>'


def following(lesson: Path, place: Path) -> Html:
    """Return a footer that names the next lesson, with a link to its page unless --out was given; "" after the last."""
    numbered = sorted(file.stem for file in lesson.parent.glob("[0-9]*.py"))
    if lesson.stem not in numbered[:-1]:
        return ""
    name = numbered[numbered.index(lesson.stem) + 1]
    link = f', whose page is then <a href="../{name}/index.html">{name}</a>' if place.name == lesson.stem else ""
    return f"<footer><p>The next lesson: <code>python <wbr>recipes/{name}.py <wbr>FOLDER</code>{link}.</p></footer>"
