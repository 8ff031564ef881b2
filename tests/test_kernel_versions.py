"""The compiled kernels' cache on disk: new code is used after a change in a file that a kernel imports."""

import ast
import hashlib
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
