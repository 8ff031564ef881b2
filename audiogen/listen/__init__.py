"""The listening page: one self-contained HTML file with audio, pictures and figures.

`write_page` makes it from run folders. To build your own page, use the same components: html.py (headings, text,
tables, pictures, columns), charts.py (curves) and clips.py (audio players with pictures).
"""

from .charts import Line, line_chart
from .clips import Clip, clip_cards, clip_slider
from .html import grid, note, picture, section, table, text, write_document
from .page import write_page

__all__ = [
    "Clip",
    "Line",
    "clip_cards",
    "clip_slider",
    "grid",
    "line_chart",
    "note",
    "picture",
    "section",
    "table",
    "text",
    "write_document",
    "write_page",
]
