"""Benchmarks can all be run briefly."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent / "bench"
spec = importlib.util.spec_from_file_location("all_benchmarks", BENCH / "all.py")
assert spec is not None and spec.loader is not None
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module  # where its dataclass looks itself up
spec.loader.exec_module(module)


@pytest.mark.parametrize("path", module.benchmarks(), ids=lambda path: path.stem)
def test_every_benchmark_has_a_short_form(path):
    """Guards against a benchmark that all.py leaves out, and a short form with an option that was renamed."""
    short, needs = module.declared(path)
    options = set(re.findall(r"--[\w-]+", short))
    assert options <= set(re.findall(r'add_argument\(\s*"(--[\w-]+)"', path.read_text(encoding="utf-8")))
    known = {"sounds", "parts", "run", "digits_run", "out", "digits", "speech", "texts"}
    assert set(re.findall(r"\{(\w+)\}", short)) <= known
    assert all(isinstance(name, str) for name in needs)


def test_printed_tables_become_rows_and_one_table():
    """Guards against a row without its headers, a second table under those of the first, a column that
    replaces another of the same name, and a lost message."""
    rows, lines = module.read(
        "steps\n\n| model | fp32 |\n| --- | --- |\n| A | 1.5 |\n\n| by | ms | ms |\n| - | - | - |\n| B | 2 | 3 |\n"
    )
    assert rows == [{"model": "A", "fp32": "1.5"}, {"by": "B", "ms": "2", "ms, ms": "3"}] and lines == ["steps"]
    result = module.Result("some", "python tests/bench/some.py", rows=rows)
    skipped = module.Result("other", "", skipped="needs encodec, which is not here")
    table = module.table("a processor", [result, skipped])
    assert "| some | A | fp32 1.5 |\n| some | B | ms 2; ms, ms 3 |" in table
    assert "other (needs encodec, which is not here)" in table


def test_what_needs_a_package_or_a_folder_is_named_as_skipped(tmp_path):
    """Guards against a benchmark that fails, or is silently left out, where its peer is not installed."""
    inputs = module.Inputs(tmp_path, {"digits": None})
    for text, reason in (('SHORT = ""\nNEEDS = ("no_such",)', "no_such"), ('SHORT = "{digits}"', "--digits")):
        script = tmp_path / "bench.py"
        script.write_text(text, encoding="utf-8")
        assert reason in module.measure(script, inputs).skipped


def test_a_benchmark_that_fails_is_named_and_the_rest_runs(tmp_path):
    """Guards against figures that go missing without a word, and against losing those measured before."""
    script = tmp_path / "bench.py"
    script.write_text('SHORT = ""\nraise SystemExit("no luck")', encoding="utf-8")
    module.write(tmp_path, module.Result("first", "", rows=[{"by": "A", "ms": "1"}]))
    module.write(tmp_path, module.measure(script, module.Inputs(tmp_path, {})))
    table = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    assert "| first | A | ms 1 |" in table and "bench (failed: no luck)" in table
