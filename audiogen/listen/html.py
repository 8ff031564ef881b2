"""The pieces that a page is built from: functions from plain values to HTML.

    write_document("out.html", "Lesson 3", section("What broke", text("The first loss is far too high."),
                                                   table(["step", "loss"], [[0, 27.1], [100, 3.4]])))

All that is given as text or as a cell is escaped, so a file name or a config can hold anything. What the functions
return is HTML already, and is what the ones that take `blocks` expect. The document needs no network: its policy
forbids any. Sounds with their pictures are in clips.py, curves in charts.py.
"""

import base64
import io
import re
import textwrap
from collections.abc import Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from ..utils.files import atomic_write_text
from .style import CSS, SCRIPT

Html = str

# A lesson's parts by their first words; what stands between backticks, or an option with its value.
PART = re.compile(r"^(What it teaches\.|How it carries over to audio\.|What to try\.)")
OPTION = re.compile(r"`([^`]+)`|(?<![\w-])(--[a-z][\w-]*(?: (?:\d[\w.]*\w|\d|[\w./-]*[=:/][\w./=:-]*\w))?)")
# A cell that is a figure, though given as text: "+0.25", "3e-07", "81.5 %".
FIGURE = re.compile(r"[-+−]?[\d.,]+(e[-+]?\d+)?( ?%)?|")

# Only what is inside the file itself: nothing is fetched, whatever a file name or a config might smuggle in.
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def heading(title: str, level: int = 2) -> Html:
    """A heading, level 1 (the page's own) to 3."""
    return f"<h{level}>{escape(title)}</h{level}>"


def text(*paragraphs: str, style: str = "") -> Html:
    """Paragraphs; `style` is "", "lead" (larger, for the first one) or "note" (smaller)."""
    mark = f' class="{style}"' if style else ""
    return "".join(f"<p{mark}>{escape(paragraph)}</p>" for paragraph in paragraphs)


def note(docstring: str) -> Html:
    """What a lesson's docstring says below its first line: paragraphs, and what is indented line by line.

    The name of a part stands out, and `names` and options such as --steps 100 are set in letters of one width.
    """
    blocks = re.split(r"\n\s*\n", docstring.strip("\n"))[1:]
    return "".join(
        code(textwrap.dedent(block)) if block.startswith("    ") else f"<p>{prose(' '.join(block.split()))}</p>"
        for block in blocks
    )


def prose(paragraph: str) -> Html:
    """A paragraph of a docstring."""

    def as_code(found: re.Match) -> Html:  # which a line's end may part at spaces alone
        return f"<code>{(found[1] or found[2]).replace(' ', ' <wbr>')}</code>"

    marked = OPTION.sub(as_code, escape(paragraph, quote=False))
    return PART.sub(r"<b>\1</b>", marked)


def link(address: str) -> Html:
    """A line that leads to another page, given from this one."""
    return f'<p><a href="{escape(address)}">{escape(address)}</a></p>'


def bullets(*items: str) -> Html:
    """A list with a dot before each item."""
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def glossary(words: dict[str, str]) -> Html:
    """Words and what they mean."""
    return "<dl>" + "".join(f"<dt>{escape(word)}</dt><dd>{escape(words[word])}</dd>" for word in words) + "</dl>"


def table(
    header: Sequence[str], rows: Sequence[Sequence[str | float | None]], caption: str = "", main_row: int | None = None
) -> Html:
    """A table; the first cell of each row names it.

    Numbers are set right, with as many decimals as the largest of their column needs for four digits, and with one
    where the header says that they are percent; None is a dash. `main_row` is highlighted.
    """
    right = [
        i > 0 and all(not isinstance(row[i], str) or FIGURE.fullmatch(row[i]) for row in rows)
        for i in range(len(header))
    ]
    marks = [' class="n"' if side else "" for side in right]
    scales = [max((abs(row[i]) for row in rows if isinstance(row[i], float)), default=0) for i in range(len(header))]
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
    """12345 -> "12,345", 4.6406 -> "4.641", 31234.5 -> "31,234", None -> a dash; decimals as for `scale` if larger."""
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
    """A PNG file's bytes, or a matplotlib figure.

    Args:
        alt: what is to be seen, for who can't see it.
    """
    if isinstance(image, Figure):
        buffer = io.BytesIO()
        image.savefig(buffer, format="png", dpi=144, bbox_inches="tight", facecolor="white")
        image = buffer.getvalue()
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    # A screen too narrow for its letters (10 points, a pixel each at half of the 144 dots per inch) scrolls sideways.
    least = int.from_bytes(image[16:20], "big") * 60 // 144
    return (
        f'<figure class="picture"><div class="scroll" tabindex="0"><img src="{png_uri(image)}" alt="{escape(alt)}" '
        f'style="min-width:{least}px"></div>{below}</figure>'
    )


def png_uri(image: bytes) -> str:
    """The bytes of a PNG file as an address that holds them."""
    return "data:image/png;base64," + base64.b64encode(image).decode()


def player(sound: bytes, label: str) -> Html:
    """A player for the bytes of a WAV file; `label` is read out."""
    return (
        f'<audio controls preload="metadata" aria-label="{escape(label)}" '
        f'src="data:audio/wav;base64,{base64.b64encode(sound).decode()}"></audio>'
    )


def details(summary: str, *blocks: Html) -> Html:
    """Blocks that are folded away until the reader opens them."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(blocks)}</details>"


def code(source: str) -> Html:
    """Text in fixed-width letters, line by line."""
    return f"<pre>{escape(source)}</pre>"


def grid(cards: Sequence[Html]) -> Html:
    """Cards beside each other as far as there is room, else below each other."""
    return f'<div class="clips">{"".join(cards)}</div>'


def card(*blocks: Html) -> Html:
    """Blocks on a sheet of their own."""
    return f'<div class="card">{"".join(blocks)}</div>'


def columns(blocks: dict[str, Html]) -> Html:
    """Columns with their headings, beside each other on a wide screen and stacked on a phone; one needs no heading."""
    if len(blocks) == 1:
        return "".join(blocks.values())
    return (
        '<div class="columns">'
        + "".join(f"<div>{heading(name, 3)}{block}</div>" for name, block in blocks.items())
        + "</div>"
    )


def section(title: str, *blocks: Html) -> Html:
    """A part of the page under its heading; the page's own list of contents leads to it."""
    return f'<section id="{anchor(title)}">{heading(title)}{"".join(blocks)}</section>'


def anchor(title: str) -> str:
    """The name under which a section is linked to."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def contents(titles: Sequence[str]) -> Html:
    """Links to the sections of these titles."""
    return (
        '<nav aria-label="On this page">'
        + "".join(f'<a href="#{anchor(title)}">{escape(title)}</a>' for title in titles)
        + "</nav>"
    )


def document(title: str, *blocks: Html, wide: bool = False) -> Html:
    """A whole page that needs nothing but itself. `wide` gives columns more room."""
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
    """Writes `document`, headed by its title -> its path. A crash leaves the old file or the new one.

    Raises:
        AudiogenError: the file can't be written.
    """
    atomic_write_text(path, document(title, heading(title, 1), *blocks, wide=wide))
    return Path(path)
