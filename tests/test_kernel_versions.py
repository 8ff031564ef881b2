"""The compiled kernels' cache on disk: new code is used after a change in a file that a kernel imports."""

import ast
import hashlib
import importlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import audiogen.generation.engines.cpu as package

FOLDER = Path(package.__file__).parent
KERNELS = sorted(path.stem for path in FOLDER.glob("*_kernel.py"))


def imported(module, seen=frozenset()):
    """Names of the modules of this folder that a module imports, and those that these import."""
    for node in ast.walk(ast.parse((FOLDER / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module not in seen:
            seen = imported(node.module, seen | {node.module})
    return seen


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_version_of_a_kernel_is_that_of_the_files_it_imports(kernel):
    """Guards against numba's cache, which checks the kernel's own file alone, and so would run old code of others."""
    files = [FOLDER / f"{name}.py" for name in sorted(imported(kernel))]
    assert len(files) >= 3
    version = hashlib.sha256(b"".join(path.read_bytes().replace(b"\r\n", b"\n") for path in files)).hexdigest()[:8]
    assert f'\nVERSION = "{version}"\n' in (FOLDER / f"{kernel}.py").read_text(encoding="utf-8")


def test_two_processes_add_code_at_the_same_time(monkeypatch, tmp_path):
    """Guards against numba's own way: both take the same file, and from then on code for one type runs for another."""
    from numba.core.caching import IndexDataCacheFile

    from audiogen.utils.jit import compiled

    (tmp_path / "part_to_compile.py").write_text("def add(x):\n    return x + 1\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    part = importlib.import_module("part_to_compile")
    save_index = IndexDataCacheFile._save_index

    def slowly(self, overloads):
        time.sleep(0.2)
        save_index(self, overloads)

    def process(x):
        function = compiled()(part.add)
        function._cache.disable()  # threads compile one after the other, and would keep their code so, too
        function(x)
        (signature,) = function.signatures
        function._cache.enable()
        return lambda: function._cache.save_overload(signature, function.overloads[signature])

    monkeypatch.setattr(IndexDataCacheFile, "_save_index", slowly)
    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(save) for save in (process(1), process(1.5))]
    assert [save.result() for save in done] == [None, None]
    function = compiled()(part.add)
    assert [function(1), function(1.5)] == [2, 2.5] and sum(function.stats.cache_hits.values()) == 2
