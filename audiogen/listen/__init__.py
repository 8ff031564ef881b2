"""The listening page: one HTML file with sounds, pictures and figures that needs nothing else.

`write_page` makes it from run folders. A page of one's own is built from the same pieces: html.py (headings, text,
tables, pictures, columns), charts.py (curves) and clips.py (sounds with their pictures).
"""

from .charts import Line, line_chart
from .clips import Clip, clip_cards
from .html import grid, note, picture, section, table, text, write_document
from .page import write_page

__all__ = [
    "Clip",
    "Line",
    "clip_cards",
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
