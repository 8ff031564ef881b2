"""Turn the notebooks of docs/lessons into pages of the site, each with its output and the notebook to download."""

import json
import re
from html import escape
from pathlib import Path

from mkdocs.structure.files import File

OUTPUT = '<div data-output="{}"></div>'
LOCAL = re.compile(r'<a href="(?![a-z]+:|#)[^"]*">(.*?)</a>')  # to a page in the folder of a lesson, not on the site
LEAST = re.compile(r'style="min-width:(\d+)px"')
STYLE = re.compile("<style>.*?</style>", re.S)
SCRIPT = re.compile("<script>.*?</script>", re.S)
MORE = """<style>
.md-typeset pre.said { white-space: pre-wrap; overflow-wrap: anywhere; margin: -.6em 0 1em; padding: .6em 1.18em;
  font-size: .7rem; line-height: 1.45; border-left: .2rem solid var(--md-default-fg-color--lightest); }
.md-typeset details.code { border: 0; box-shadow: none; margin: .5em 0; font-size: .64rem; }
.md-typeset details.code > summary { background: none; padding-block: .2em; color: var(--md-default-fg-color--light); }
.md-typeset details.code > summary::before { display: none; }
.md-typeset .audiogen { border-radius: .4rem; margin: .5em 0 1em; font-size: .8rem; }
.md-typeset .audiogen h2 { font: inherit; font-size: 1.1rem; margin: .6em 0; }
.md-typeset .audiogen table:not([class]) { background: none; border: 0; display: table; }
.md-typeset .audiogen table:not([class]) :is(th, td) { padding: .4em .8em; min-width: 0; font-size: inherit; }
.md-typeset .audiogen figure.picture .scroll { display: grid; scroll-timeline: --sideways inline; }
.md-typeset .audiogen figure.picture img { grid-area: 1 / 1; }
.md-typeset .audiogen figure.picture .scroll::after { content: ""; grid-area: 1 / 1; position: sticky; right: 0;
  justify-self: end; width: 1.4rem; background: linear-gradient(270deg, rgb(60 40 20 / .4), transparent); opacity: 0;
  pointer-events: none; animation: rest linear; animation-timeline: --sideways; }
@media (min-width: 60em) { .md-typeset .audiogen img[data-fits] { min-width: 0 !important; } }
@keyframes rest { from { opacity: 1; } 90% { opacity: 1; } to { opacity: 0; } }
</style>"""
outputs: dict[str, list[str]] = {}  # page -> the HTML of its outputs


def on_files(files, config):
    """Add a page for each notebook; the notebook itself is a file of the site, too."""
    for path in sorted((Path(config.docs_dir) / "lessons").glob("*.ipynb")):
        uri = f"lessons/{path.stem}.md"
        files.append(File.generated(config, uri, content=page_of(uri, path)))
    return files


def page_of(uri: str, path: Path) -> str:
    """Return a notebook as Markdown, with a mark for each output."""
    found = outputs[uri] = []
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        code = f"```python\n{source}\n```"
        if cell["metadata"].get("jupyter", {}).get("source_hidden"):
            code = '??? code "Code"\n' + re.sub("^(?=.)", "    ", code, flags=re.M)
        parts.append(code)
        for output in joined(cell["outputs"]):
            found.append(html_of(output))
            parts.append(OUTPUT.format(len(found) - 1))
    parts.insert(1, f"[Download the notebook]({path.name})")
    return "\n\n".join(parts) + "\n"


def on_page_markdown(markdown, page, config, files):
    """Let links to notebooks lead to their pages."""
    return re.sub(r"\((lessons/\w+)\.ipynb\)", r"(\1.md)", markdown)


def joined(outputs: list[dict]) -> list[dict]:
    """Return outputs with what was printed in several pieces as one."""
    whole: list[dict] = []
    for output in outputs:
        if whole and output["output_type"] == whole[-1]["output_type"] == "stream":
            whole[-1] = {**output, "text": ["".join([*whole[-1]["text"], *output["text"]])]}
        else:
            whole.append(output)
    return whole


def html_of(output: dict) -> str:
    """Return an output as HTML."""
    data = output.get("data", {})
    if "text/html" in data:
        html = LOCAL.sub(r"<code>\1</code>", "".join(data["text/html"]))
        # Pictures that are little wider than a column are made to fit it; letters of others would get too small.
        return LEAST.sub(lambda found: found[0] + " data-fits" * (int(found[1]) <= 780), html)
    text = "".join(output.get("text") or data.get("text/plain", "")).strip("\n")  # spaces may align columns
    return f'<pre class="said">{escape(text)}</pre>'


def on_page_content(html, page, config, files):
    """Put the outputs in, with one style sheet and one script for all of them."""
    found = outputs.get(page.file.src_uri)
    if not found:
        return html
    whole = "".join(found)
    style, script = STYLE.search(whole), SCRIPT.search(whole)
    for number, output in enumerate(found):
        html = html.replace(OUTPUT.format(number), SCRIPT.sub("", STYLE.sub("", output)))
    return (style[0] if style else "") + MORE + html + (script[0] if script else "")
