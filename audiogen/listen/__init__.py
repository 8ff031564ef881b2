"""The listening page: one HTML file with sounds, pictures and figures that needs nothing else.

`write_page` makes it from run folders. A page of one's own is built from the same pieces: pieces.py (headings, text,
tables, pictures, columns), charts.py (curves) and clips.py (sounds with their pictures); a lesson's, by lesson.py.
"""

from .charts import Line, line_chart
from .clips import Clip, clip_cards
from .lesson import side_by_side, write_lesson
from .page import write_page
from .pieces import grid, note, picture, section, table, text, write_document

__all__ = ["Clip", "Line", "clip_cards", "grid", "line_chart", "note", "picture", "section", "side_by_side", "table",
           "text", "write_document", "write_lesson", "write_page"]
