"""The components of a page: functions from plain values to HTML.

    write_document("out.html", "Lesson 3", section("What broke", text("The first loss is far too high."),
                                                   table(["step", "loss"], [[0, 27.1], [100, 3.4]])))

All text and cells are escaped, so file names and configs may contain anything. The functions return HTML, which is what
those with `blocks` take. The document needs no network, and its content security policy forbids any. See clips.py for
audio with pictures, charts.py for curves.
"""

import base64
import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from ..utils.files import atomic_write_text
from .style import CSS, SCRIPT

Html = str

# The headings of a lesson's parts; text between backticks, or an option with its value.
PART = re.compile(r"^(What it teaches\.|How it carries over to audio\.|What to try\.)")
OPTION = re.compile(r"`([^`]+)`|(?<![\w-])(--[a-z][\w-]*(?: (?:\d[\w.]*\w|\d|[\w./-]*[=:/][\w./=:-]*\w))?)")
# A cell that is a number given as text: "+0.25", "3e-07", "81.5 %".
FIGURE = re.compile(r"[-+−]?[\d.,]+(e[-+]?\d+)?( ?%)?|")

# Allow only content inside the file: nothing is fetched, even if a file name or config injects a link.
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def heading(title: str, level: int = 2) -> Html:
    """Make a heading of level 1 (the page title) to 3."""
    return f"<h{level}>{escape(title)}</h{level}>"


def text(*paragraphs: str, style: str = "") -> Html:
    """Make paragraphs; `style` is "", "lead" (larger, for the first one), "note" (smaller) or "notice" (in a box)."""
    mark = f' class="{style}"' if style else ""
    return "".join(f"<p{mark}>{escape(paragraph)}</p>" for paragraph in paragraphs)


def note(docstring: str) -> Html:
    """Convert a lesson's docstring after its first line: paragraphs, and indented blocks as code.

    Part headings are bold; `names` and options such as --steps 100 are in a fixed-width font.
    """
    blocks = re.split(r"\n\s*\n", docstring.strip("\n"))[1:]
    return "".join(
        code(textwrap.dedent(block)) if block.startswith("    ") else f"<p>{prose(' '.join(block.split()))}</p>"
        for block in blocks
    )


def prose(paragraph: str) -> Html:
    """Convert a paragraph of a docstring."""

    def as_code(found: re.Match) -> Html:  # allow line breaks only at spaces
        return f"<code>{(found[1] or found[2]).replace(' ', ' <wbr>')}</code>"

    marked = OPTION.sub(as_code, escape(paragraph, quote=False))
    return PART.sub(r"<b>\1</b>", marked)


def link(address: str) -> Html:
    """Make a line with a link to another page, relative to this one."""
    return f'<p><a href="{escape(address)}">{escape(address)}</a></p>'


def bullets(*items: str) -> Html:
    """Make a bulleted list."""
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def glossary(words: dict[str, str]) -> Html:
    """Make a list of terms and their meanings."""
    return "<dl>" + "".join(f"<dt>{escape(word)}</dt><dd>{escape(words[word])}</dd>" for word in words) + "</dl>"


def table(
    header: Sequence[str], rows: Sequence[Sequence[str | float | None]], caption: str = "", main_row: int | None = None
) -> Html:
    """Make a table; the first cell of each row is its heading, and `main_row` is highlighted.

    Numbers are right-aligned, with as many decimals as the largest in their column needs for four digits, or with one
    if the header says percent. None becomes a dash.
    """
    right = [
        i > 0 and all(FIGURE.fullmatch(cell) for cell in (row[i] for row in rows) if isinstance(cell, str))
        for i in range(len(header))
    ]
    marks = [' class="n"' if side else "" for side in right]
    scales = [
        max((abs(cell) for cell in (row[i] for row in rows) if isinstance(cell, float)), default=0)
        for i in range(len(header))
    ]
    scales = [100 if re.search("%|percent", name) else scale for name, scale in zip(header, scales, strict=True)]
    head = "".join(f'<th scope="col"{mark}>{escape(name)}</th>' for name, mark in zip(header, marks, strict=True))
    body = ""
    for number, row in enumerate(rows):
        cells = [
            f"<td{mark}>{escape(format_number(value, scale))}</td>"
            for value, mark, scale in zip(row, marks, scales, strict=True)
        ]
        cells[0] = f'<th scope="row">{escape(format_number(row[0]))}</th>'
        body += ('<tr class="main">' if number == main_row else "<tr>") + "".join(cells) + "</tr>"
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption or header[0] or "table")}">'
        f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def format_number(value: str | float | None, scale: float = 0.0) -> str:
    """Format a number, with decimals for `scale` if larger: 12345 -> "12,345", 4.6406 -> "4.641", None -> a dash."""
    if value is None:
        return "–"
    if isinstance(value, str | bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    scale = max(scale, abs(value))
    decimals = 3 if scale < 100 else 1 if scale < 10_000 else 0
    return f"{value:,.{decimals}f}"


def picture(image: bytes | Figure, alt: str, caption: str = "") -> Html:
    """Embed a picture.

    Args:
        image: the bytes of a PNG file, or a matplotlib figure.
        alt: description for screen readers.
        caption: text below the picture.
    """
    if isinstance(image, Figure):
        buffer = io.BytesIO()
        image.savefig(buffer, format="png", dpi=144, bbox_inches="tight", facecolor="white")
        image = buffer.getvalue()
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    # Minimum width for legible letters (10 points at 60 dpi); narrower screens scroll sideways.
    least = int.from_bytes(image[16:20], "big") * 60 // 144
    return (
        f'<figure class="picture"><div class="scroll" tabindex="0"><img src="{png_uri(image)}" alt="{escape(alt)}" '
        f'style="min-width:{least}px"></div>{below}</figure>'
    )


def png_uri(image: bytes) -> str:
    """Return the bytes of a PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(image).decode()


def player(sound: bytes, label: str) -> Html:
    """Make a player for the bytes of a WAV file; `label` is for screen readers."""
    return (
        f'<audio controls preload="metadata" aria-label="{escape(label)}" '
        f'src="data:audio/wav;base64,{base64.b64encode(sound).decode()}"></audio>'
    )


def details(summary: str, *blocks: Html) -> Html:
    """Fold blocks away until the reader opens them."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(blocks)}</details>"


def code(source: str) -> Html:
    """Show text line by line in a fixed-width font."""
    return f"<pre>{escape(source)}</pre>"


def grid(cards: Sequence[Html]) -> Html:
    """Arrange cards side by side, as many as fit."""
    return f'<div class="clips">{"".join(cards)}</div>'


def slider(label: str, stops: Mapping[str, Html], start: int = 0) -> Html:
    """Show one of several blocks, chosen with a slider, by mouse, touch or arrow keys.

    Where a sound is playing, the sound at the same place in the next block goes on from there. Without scripts, all
    blocks are shown.

    Args:
        label: what the slider changes.
        stops: name of each position -> its block.
        start: number of the position at first.
    """
    names = [*stops]
    blocks = "".join(
        f'<div class="stop" data-name="{escape(name)}"><p class="kind">{escape(f"{label}: {name}")}</p>{block}</div>'
        for name, block in stops.items()
    )
    return (
        f'<div class="slider"><label><span>{escape(label)}</span><input type="range" min="0" max="{len(names) - 1}" '
        f'step="1" value="{start}" aria-valuetext="{escape(names[start])}"><output>{escape(names[start])}</output>'
        f"</label>{blocks}</div>"
    )


def rows(cards: Sequence[Html], length: int) -> Html:
    """Arrange cards in rows of `length`, which scroll sideways where there is no room."""
    return f'<div class="rows" style="--length:{length}">{"".join(cards)}</div>'


def card(*blocks: Html) -> Html:
    """Put blocks on a card."""
    return f'<div class="card">{"".join(blocks)}</div>'


def columns(blocks: dict[str, Html]) -> Html:
    """Make columns with headings, side by side if there is room; a single block gets no heading."""
    if len(blocks) == 1:
        return "".join(blocks.values())
    return (
        '<div class="columns">'
        + "".join(f"<div>{heading(name, 3)}{block}</div>" for name, block in blocks.items())
        + "</div>"
    )


def section(title: str, *blocks: Html) -> Html:
    """Make a section with a heading, to which the table of contents can link."""
    return f'<section id="{anchor(title)}">{heading(title)}{"".join(blocks)}</section>'


def anchor(title: str) -> str:
    """Return the anchor of a section."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def contents(titles: Sequence[str]) -> Html:
    """Make a table of contents that links to the sections of these titles."""
    return (
        '<nav aria-label="On this page">'
        + "".join(f'<a href="#{anchor(title)}">{escape(title)}</a>' for title in titles)
        + "</nav>"
    )


def document(title: str, *blocks: Html, wide: bool = False) -> Html:
    """Make a self-contained page; `wide` gives columns more room."""
    return (
        "<!doctype html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f"<main{' class=wide' if wide else ''}>\n"
        + "\n".join(blocks)
        + f"\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def write_document(path: str | Path, title: str, *blocks: Html, wide: bool = False) -> Path:
    """Write a page headed by its title, atomically, and return its path; see `document`.

    Raises:
        AudiogenError: the file can't be written.
    """
    atomic_write_text(path, document(title, heading(title, 1), *blocks, wide=wide))
    return Path(path)
