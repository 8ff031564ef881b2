"""Show parts of a page in a notebook: `show(table(["step"], [[1]]))` as the last line of a cell."""

import re

from .html import Html
from .style import CSS, SCRIPT

#: The style sheet of a page, limited to what is shown.
STYLE = (
    f".audiogen {{ {CSS.replace(':root', '&')} background: var(--paper); color: var(--ink); padding: .1rem 1rem 1rem }}"
)


class Shown:
    """HTML that a notebook draws."""

    def __init__(self, html: Html):
        self.html = html

    def _repr_html_(self) -> Html:
        return self.html


def show(*blocks: Html, titled: bool = True) -> Shown:
    """Show blocks in a notebook in the style of a page, with players that follow the pictures.

    Args:
        blocks: parts of a page.
        titled: whether the first section keeps its heading; False where a cell above has the same heading.
    """
    html = "".join(blocks) if titled else re.sub("<h2>.*?</h2>", "", "".join(blocks), count=1)
    return Shown(f'<style>{STYLE}</style><div class="audiogen">{html}</div><script>{SCRIPT}</script>')
