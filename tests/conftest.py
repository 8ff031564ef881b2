"""What every test starts from: one thread a worker, a fixed seed, and each device that is there."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

# Workers side by side, and the processes that they start, would each take every core, and then wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")

import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

# The same examples on every run and no time limit on one: a test that fails does so for everybody.
settings.register_profile("audiogen", derandomize=True, deadline=None, max_examples=30, print_blob=True)
settings.load_profile("audiogen")


@pytest.hookimpl(optionalhook=True)  # there is none without xdist
def pytest_xdist_make_scheduler(config, log):
    """Run tests that share what is slow to make in one worker, which makes it once; begin with the most of them."""
    from xdist.scheduler import LoadScopeScheduling

    tests = Path(__file__).parent
    files = {path.name for path in tests.glob("test_*.py") if 'scope="module"' in path.read_text(encoding="utf-8")}
    files.add("test_engines.py")  # which compiles kernels

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::", 1)[0].rsplit("/", 1)[-1]
            return file if file in files else nodeid.split("[", 1)[0]

    return Scheduler(config, log)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(
    scope="session",
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")],
        ),
    ],
)
def device(request) -> torch.device:
    """The CPU, and a GPU where there is one."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def synthetic():
    """The script of the synthetic corpus, as a module."""
    script = Path(__file__).parent.parent / "datasets" / "synthetic.py"
    spec = importlib.util.spec_from_file_location("synthetic", script)
    module = importlib.util.module_from_spec(spec)
    sys.modules["synthetic"] = module  # a dataclass looks its own module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["synthetic"]


@pytest.fixture
def impatient(monkeypatch):
    """Runs of a few steps may stop early too."""
    monkeypatch.setattr("audiogen.training.trainer.PATIENCE_STEPS", 1)
