"""docs/extending.md holds the text of two files: python tests/extending.py writes them into it."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "extending.md"
FILES = ("audiogen/models/backbones/gru.py", "audiogen/frontends/pcm.py")


def filled(text: str) -> str:
    """The page with the listing of each file as it is now."""
    for path in FILES:
        listing = f"`{path}`:\n\n```python\n{(ROOT / path).read_text(encoding='utf-8')}```\n"
        place = rf"`{re.escape(path)}`:\n\n```python\n.*?```\n"
        text, count = re.subn(place, lambda _, new=listing: new, text, flags=re.S)
        assert count == 1, f"{PAGE}: has no listing of {path}"
    return text


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
