"""The README's tables of front-ends and backbones, made from the registries.

python tests/tables.py          writes them into README.md
"""

import math
import re
from pathlib import Path

from audiogen.commands.plan import Flags, Plan
from audiogen.frontends import FRONTENDS
from audiogen.models.backbones import BACKBONES

README = Path(__file__).parent.parent / "README.md"


def frontends_table() -> str:
    """A row for each front-end, at its default settings."""
    rows = []
    for kind, part in FRONTENDS.items():
        front = part(part.Config())
        rows.append([f"`{kind}`", summary(part), front.spec.rate_in_words, latency(front)])
    return table(["front-end", "what it is", "one second is", "latency of a stream"], rows)


def backbones_table() -> str:
    """A row for each backbone, as `audiogen train` makes it over the default front-end."""
    rows = []
    for kind, part in BACKBONES.items():
        plan = Plan.draft(Flags(backbone=kind))
        size = sum(parameter.numel() for parameter in plan.model.parameters())
        heard = plan.model.receptive_seconds
        back = "unbounded" if heard == math.inf else f"{heard:.2g} s"
        rows.append([f"`{kind}`", summary(part), f"{size / 1e6:.2g} million", back])
    return table(["backbone", "what it is", "parameters", "receptive field"], rows)


def summary(part: type) -> str:
    """The first sentence of a part's docstring, without shapes."""
    first = re.split(r"(?<=\.)\s", part.__doc__.strip(), maxsplit=1)[0]
    return re.sub(r" \(B, [^)]*\)( float32| int64)?", "", " ".join(first.split())).rstrip(".")


def latency(front) -> str:
    if not front.decodes:
        return "encodes only"
    if math.isinf(front.latency_ms):
        return "needs the whole recording"
    first = 1000 * front.start_frames * front.spec.hop_length / front.spec.sample_rate
    return f"{front.latency_ms:.3g} ms" + (f", the first after {first:.3g} ms" if front.start_frames > 1 else "")


def table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


def filled(text: str) -> str:
    """The README with its tables replaced by those of the registries."""
    for name, made in (("front-ends", frontends_table()), ("backbones", backbones_table())):
        begin, end = f"<!-- {name}: made by tests/tables.py -->\n\n", f"\n\n<!-- end of {name} -->"
        assert text.count(begin) == text.count(end) == 1, f"README.md: the marks of the table of {name} are not there"
        before, _, rest = text.partition(begin)
        text = before + begin + made + end + rest.partition(end)[2]
    return text


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
