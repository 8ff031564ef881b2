"""What every test starts from: one thread a worker, a fixed seed, and each device that is there."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Workers side by side would each take every core, and then wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

# The same examples on every run and no time limit on one: a test that fails does so for everybody.
settings.register_profile("audiogen", derandomize=True, deadline=None, max_examples=30, print_blob=True)
settings.load_profile("audiogen")


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
