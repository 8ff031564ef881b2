"""Make a notebook from the script of a lesson, so that there is one source of both.

    write_notebook("recipes/02_bigram.py", "notebooks/02_bigram.ipynb", ["corpora/fsdd"])

A lesson's script has a docstring, definitions, and a `main` in parts that begin with numbered comments (`# 2. Count. A
row of the table ...`) and which ends by writing a page. In the notebook, the docstring and these comments are text. A
definition precedes the first cell that needs it, and a section of the page comes as soon as all that it shows is known.
"""

import ast
import json
import re
import shlex
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..listen.html import OPTION, PART
from ..utils.files import atomic_write_text

#: The first line of a comment that is text in the notebook: "# 2. Count. ...", or "#    And then ..." after it.
REMARK = re.compile(r"#(?: \d+\. | {4,})")
SCOPES = ast.FunctionDef | ast.Lambda | ast.ClassDef
START = """import os
from pathlib import Path

# All paths start in the folder of the repository, as for the script.
os.chdir(next(place for place in (Path.cwd(), *Path.cwd().parents) if (place / "recipes").is_dir()))"""
#: Names that a script imports and a notebook has no use for.
UNUSED = {"run_script", "write_lesson"}
#: What a comment before the page becomes that only says so.
PAGE = "## The page"
CLIPS = (
    "Each clip has a waveform (amplitude over time) and a mel spectrogram (low frequencies at the bottom, loud parts "
    "bright). The pictures of a cell share their axes. Tap a picture to play from there."
)


@dataclass(frozen=True)
class Cell:
    """A cell of a notebook.

    Attributes:
        source: its text.
        kind: "code" or "markdown".
        folded: whether the code is hidden at first: it only draws, or puts together what the cell shows.
    """

    source: str
    kind: str = "code"
    folded: bool = False


def write_notebook(script: str | Path, path: str | Path, arguments: Sequence[str]) -> Path:
    """Write a lesson as a notebook that was not run, and return its path.

    Args:
        script: the lesson's script.
        path: the notebook.
        arguments: command line of the lesson: the folder and options.

    Raises:
        ValueError: the script is no lesson.
    """
    cells = [
        {"cell_type": cell.kind, "id": f"cell-{number}", "metadata": {}, "source": cell.source.splitlines(True)}
        | ({"execution_count": None, "outputs": []} if cell.kind == "code" else {})
        | ({"metadata": {"jupyter": {"source_hidden": True}}} if cell.folded else {})
        for number, cell in enumerate(notebook_cells(script, arguments))
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    atomic_write_text(path, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    return Path(path)


def notebook_cells(script: str | Path, arguments: Sequence[str]) -> list[Cell]:
    """Return the cells of a lesson's notebook; see `write_notebook`."""
    return _Maker(Path(script), arguments).cells


def code_by_section(script: str | Path) -> dict[str, str]:
    """Return the code behind each section of a lesson's page: title -> source.

    That is what the notebook has between the section before and this one, or the function that makes the section.
    """
    return _Maker(Path(script), None).behind


class _Maker:
    """Collects the cells of a notebook in `cells`, and the code behind each section of the page in `behind`.

    Args:
        script: the lesson's script.
        arguments: command line of the notebook; None keeps the code as it is in the script.
    """

    def __init__(self, script: Path, arguments: Sequence[str] | None):
        self.source = script.read_text(encoding="utf-8")
        self.script, self.lines, tree = script, self.source.splitlines(), ast.parse(self.source)
        main = next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"), None)
        pages: list[Any] = [node for node in ast.walk(main) if is_call(node, "write_lesson")] if main else []
        if main is None or len(pages) != 1:
            raise ValueError(f"{script}: this is no lesson, since it has no main that calls write_lesson once")
        end = next(i for i, node in enumerate(main.body) if pages[0] in ast.walk(node))
        self.definitions: dict[str, Any] = {
            node.name: node for node in tree.body if isinstance(node, SCOPES) and node is not main
        }
        self.replaced = (
            {}
            if arguments is None
            else {
                "__file__": json.dumps(f"recipes/{script.name}"),
                "__doc__": json.dumps((ast.get_docstring(tree) or "").split("\n")[0]),
                ".parse_args()": f".parse_args({json.dumps([*arguments])})",
            }
        )
        self.cells: list[Cell] = []
        self.behind: dict[str, str] = {}
        self.defined: set[str] = set()
        self.legend = False  # whether the legend of clips was given
        returns = {node.lineno for node in ast.walk(main) if isinstance(node, ast.Return) and node.value is None}
        for line in returns if self.replaced else ():  # of main itself: there is no function to return from
            self.lines[line - 1] = self.lines[line - 1].replace("return", "raise SystemExit")

        self.text(introduction(ast.get_docstring(tree) or "", script.name, (arguments or ())[1:]))
        self.code(START)
        self.code(self.imports(tree), "from audiogen.listen.notebook import show", folded=True)
        constants = [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
        if constants:
            self.code("\n".join(self.statement(node) for node in constants))
        self.counted = len(self.cells)  # cells whose code is behind no section or an earlier one
        self.main(main.body[1:end], self.remark(main.body[end]), pages[0].args[2:])

    def main(self, statements: Sequence[ast.stmt], remark: str, blocks: Sequence[ast.expr]) -> None:
        """Add the parts of main, each followed by those blocks of the page for which everything is known.

        Args:
            statements: all that comes before the page.
            remark: what is said right before the page.
            blocks: the page.
        """
        parts: list[tuple[str, list[ast.stmt]]] = [("", [])]  # (remark, statements)
        for node in statements:
            if said := self.remark(node):
                parts.append((said, []))
            parts[-1][1].append(node)
        last = parts.pop()[1] if parts[-1][0] == PAGE else []  # prepares the page
        if remark and remark != PAGE:
            parts.append((remark, []))
        earliest = len(parts) - 1 if remark != PAGE and remark else 0
        touched = [names_touched(nodes) for _, nodes in parts]
        everything = [node for _, nodes in parts for node in nodes] + last
        ready, latest = {}, earliest  # block -> number of the part after which it comes, in the order of the page
        for block in blocks:
            names = names_needed([block], everything, last)
            ready[block] = max([latest, *(i for i, some in enumerate(touched) if some & names)])
            latest = latest if is_call(block, "text") else ready[block]
        shown: set[ast.stmt] = set()
        for number, (said, nodes) in enumerate(parts):
            if said:
                self.text(said)
            self.define(nodes)
            self.code(self.between(nodes))
            for block in [block for block in blocks if ready[block] == number]:
                names = names_needed([block], last, last)
                before = [node for node in last if names_touched([node]) & names and node not in shown]
                shown |= {*before}
                self.block(block, before)

    def block(self, block: Any, before: Sequence[ast.stmt]) -> None:
        """Add a block of the page: a section as a heading with its parts, and text that is fixed as text."""
        parts, sectioned = [block], is_call(block, "section") and isinstance(block.args[0], ast.Constant)
        made = next((self.definitions[name] for name in names_loaded([block]) if name in self.definitions), None)
        if sectioned:
            title = str(ast.literal_eval(block.args[0]))
            new = self.cells[self.counted :]
            self.behind[title] = "\n\n".join(cell.source for cell in new if cell.kind == "code" and not cell.folded)
            self.counted, title = len(self.cells), markdown(title)
            if not self.cells[-1].source.startswith(f"## {title}\n") and f"## {title}" not in self.headings():
                self.text(f"### {title}")
            parts = block.args[1:]
        titled = True  # whether what is shown keeps its first heading
        if made and not sectioned:  # a function that returns sections
            titles = titles_in(made)
            self.behind |= dict.fromkeys(titles, self.statement(made))
            if titles and not self.remark(made):
                titled = False
                self.text(f"### {markdown(titles[0])}")
        self.define([*before, block])
        if made and not sectioned:
            self.counted = len(self.cells)
        if before:
            self.code(self.between(before), folded=True)
        shown: list[str] = []

        def flush() -> None:
            if shown:
                arguments = "".join(textwrap.indent(source, "    ") + ",\n" for source in shown)
                plain = [*shown] if titled else [*shown, "titled=False"]
                self.code(f"show(\n{arguments})" if sectioned else f"show({', '.join(plain)})", folded=True)
                shown.clear()

        for part in parts:
            fixed = is_call(part, "text") and all(isinstance(a, ast.Constant) for a in part.args)
            if fixed and not part.keywords:
                flush()
                self.text("\n\n".join(markdown(str(argument.value)) for argument in part.args))
                continue
            source = textwrap.dedent(ast.get_source_segment(self.source, part, padded=True) or "")
            if re.search("clip_cards|side_by_side", source) and not self.legend:
                self.legend = True
                flush()
                self.text(CLIPS)
            shown.append(source)
        flush()

    def define(self, nodes: Sequence[ast.AST]) -> None:
        """Add the definitions that statements need, each after those that it needs itself."""
        for name in sorted(names_loaded(nodes) & self.definitions.keys(), key=[*self.definitions].index):
            if name not in self.defined:
                self.defined.add(name)
                node = self.definitions[name]
                if remark := self.remark(node):
                    self.text(remark)
                self.define([node])
                returned = getattr(node, "returns", None)
                self.code(self.statement(node), folded=isinstance(returned, ast.Name) and returned.id == "Figure")

    def headings(self) -> list[str]:
        """Return the headings so far."""
        return [cell.source.split("\n")[0] for cell in self.cells if cell.kind == "markdown"]

    def imports(self, tree: ast.Module) -> str:
        """Return the imports without the names that a notebook has no use for."""
        nodes = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        if not nodes:
            return ""
        lines: list[str | None] = [*self.lines[: nodes[-1].end_lineno]]
        for node in nodes:
            names = [alias for alias in node.names if alias.name not in UNUSED]
            if len(names) < len(node.names):
                lines[node.lineno - 1 : node.end_lineno] = [None] * ((node.end_lineno or 0) - node.lineno + 1)
                node.names = names
                lines[node.lineno - 1] = ast.unparse(node) if names else None
        return "\n".join(line for line in lines[nodes[0].lineno - 1 :] if line is not None)

    def statement(self, node: ast.AST) -> str:
        """Return the source of a statement outside of main, with the comments above it."""
        first, last = self.span(node)
        return "\n".join(self.lines[first:last])

    def between(self, nodes: Sequence[ast.stmt]) -> str:
        """Return the source of consecutive statements of main, with the comments between them."""
        if not nodes:
            return ""
        (first, _), (_, last) = self.span(nodes[0]), self.span(nodes[-1])
        chosen = [self.span(node) for node in nodes]
        kept = [line for i, line in enumerate(self.lines[first:last], first) if self.wanted(i, chosen)]
        return textwrap.dedent("\n".join(kept))

    def wanted(self, line: int, spans: Iterable[tuple[int, int]]) -> bool:
        """Return whether a line is blank or belongs to one of some statements."""
        return not self.lines[line].strip() or any(first <= line < last for first, last in spans)

    def span(self, node: Any) -> tuple[int, int]:
        """Return the lines of a statement, counted from 0, with decorators and with comments that are no remark."""
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
        above = first
        while above and self.lines[above - 1].strip().startswith("#"):
            above -= 1
        return (first if REMARK.match(self.lines[above].strip()) else above), node.end_lineno

    def remark(self, node: Any) -> str:
        """Return the numbered comment above a statement as Markdown, with a heading; "" if there is none."""
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
        while first and not self.lines[first - 1].strip():
            first -= 1
        last = first
        while first and self.lines[first - 1].strip().startswith("#"):
            first -= 1
        comment = [line.strip() for line in self.lines[first:last]]
        if not comment or not REMARK.match(comment[0]):
            return ""
        words = " ".join(line.lstrip("# ") for line in comment)
        if not (numbered := re.match(r"\d+\. (.*)", words)):
            return markdown(words)
        found = re.match(r"(.*?[^.])(?:[.:] |\.$|(?<=\?)(?: |$))(.*)", numbered[1] + " ")
        title, rest = (found[1], found[2].strip()) if found else (numbered[1], "")
        return f"## {markdown(title.strip())}" + (f"\n\n{markdown(rest[0].upper() + rest[1:])}" if rest else "")

    def text(self, source: str) -> None:
        self.cells.append(Cell(source, "markdown"))

    def code(self, *sources: str, folded: bool = False) -> None:
        source = "\n".join(sources).strip("\n")
        for name, value in self.replaced.items():
            source = source.replace(name, value)
        if source:
            self.cells.append(Cell(source, folded=folded))


def introduction(docstring: str, name: str, options: Sequence[str] = ()) -> str:
    """Return a lesson's docstring as Markdown, with a note on where the notebook comes from, and with which options."""
    title, *blocks = re.split(r"\n\s*\n", docstring.strip())
    out = [f"# {title.rstrip('.')}"]
    for block in blocks:
        if block.startswith("    "):
            out.append("```text\n" + textwrap.dedent(block) + "\n```")
        else:
            paragraph = OPTION.sub(lambda found: f"`{found[1] or found[2]}`", " ".join(block.split()))
            out.append(PART.sub(r"**\1**", paragraph))
    out.append(
        f"*This notebook is made from `recipes/{name}`, which does the same and writes a page. Options go into the "
        "list that `parse_args` is given below.*"
    )
    if options:
        out.append(
            f"**Run with `{shlex.join(options)}` instead of the defaults.** So figures and sounds are not those of the "
            "whole lesson, and what the text says of a trained model may not show yet."
        )
    return "\n\n".join(out)


def markdown(text: str) -> str:
    """Escape text for Markdown, except for `names`."""
    return re.sub(r"(?<![\w`])([*_<|])|([*_<|])(?![\w`])", r"\\\1\2", text)


def is_call(node: ast.AST, name: str) -> bool:
    """Return whether a node calls a function by its name."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def titles_in(function: ast.AST) -> list[str]:
    """Return the fixed titles of the sections that a function makes, each once, in the order of its lines."""
    calls: list[Any] = [node for node in ast.walk(function) if is_call(node, "section")]
    titles = [call.args[0] for call in sorted(calls, key=lambda call: call.lineno)]
    return [*dict.fromkeys(ast.literal_eval(title) for title in titles if isinstance(title, ast.Constant))]


def names_loaded(nodes: Iterable[ast.AST]) -> set[str]:
    """Return the names that code reads, without the variables of its functions and comprehensions."""
    found: set[str] = set()
    for top in nodes:
        every = [*ast.walk(top)]
        own = {name for node in every if isinstance(node, ast.comprehension) for name in names_stored(node.target)}
        if isinstance(top, ast.FunctionDef):
            own |= names_stored(top) | {node.arg for node in every if isinstance(node, ast.arg)}
        found |= {node.id for node in every if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)} - own
    return found


def names_stored(node: ast.AST) -> set[str]:
    """Return the names that a target assigns to."""
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}


def names_touched(nodes: Iterable[ast.AST]) -> set[str]:
    """Return the names that statements assign, define, or change in place: by an index, or by a method's call."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, SCOPES):
            found |= {node.name} if hasattr(node, "name") else set()  # type: ignore
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        targets = [node.value.func] if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else []
        targets += [node] if isinstance(getattr(node, "ctx", None), ast.Store) else []
        for target in targets:
            while isinstance(target, ast.Attribute | ast.Subscript | ast.Call):
                target = target.func if isinstance(target, ast.Call) else target.value
                if isinstance(target, ast.Name):
                    found.add(target.id)
        found |= names_touched(
            child
            for child in ast.iter_child_nodes(node)
            if not isinstance(child, ast.comprehension)  # its variables are its own
        )
    return found


def names_needed(blocks: Sequence[ast.AST], statements: Sequence[ast.stmt], last: Sequence[ast.stmt]) -> set[str]:
    """Return the names that blocks of a page need, also by way of functions in main and of the statements `last`."""
    names = names_loaded(blocks)
    functions = [node for node in statements if isinstance(node, ast.FunctionDef)]
    while True:
        through = [node for node in (*functions, *last) if names_touched([node]) & names]
        more = names | names_loaded(through)
        if more == names:
            return names
        names = more
