"""Folders that an older version wrote, in format 1, go on loading to the same bits."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from audiogen.data import EncodedCache
from audiogen.frontends import load_frontend, save_frontend
from audiogen.generation.generate import generate
from audiogen.generation.request import Request
from audiogen.runs.run import load_run
from audiogen.training.checkpoint import load_checkpoint
from audiogen.utils.tensors import hash_tensors

FOLDER = Path(__file__).parent / "format1"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())


def test_a_run():
    """Guards against a setting that came later, without which an older config.json is refused, and weights read
    otherwise."""
    run = load_run(FOLDER / "run")
    assert hash_tensors(run.model.state_dict()) == EXPECTED["model"] and run.step == EXPECTED["step"]
    assert hash_tensors(run.frontend.state_dict()) == EXPECTED["frontend"]
    split = run.split()
    assert [[part.file.path for part in side] for side in (split.train, split.held_out)] == EXPECTED["split"]
    assert len(run.training_sequences()) == len(split.train)


def test_a_run_over_frames():
    """Guards against a head that gained weights, without which older runs are refused or make another sound."""
    run = load_run(FOLDER / "mel-run")
    frames = generate(run.model, 12, Request(seeds=[3, 4])).x
    torch.testing.assert_close(frames.flatten().double().tolist(), EXPECTED["mel_frames"], rtol=1e-5, atol=1e-6)


def test_a_cache():
    """Guards against a fingerprint that changes with each new setting of a front-end: every cache would be refused."""
    cache = EncodedCache.open(FOLDER / "run" / "cache", load_frontend(FOLDER / "run"))
    assert cache.frontend().fingerprint() == EXPECTED["frontend_fingerprint"]
    assert [file.path for file in cache.files] == EXPECTED["files"]
    assert [cache.codes(i).tolist() for i in range(len(cache))] == EXPECTED["cache"]


def test_a_saved_front_end(tmp_path):
    """Guards against the same, and a front-end that can't be saved again beside the config.json of an older version."""
    folder = shutil.copytree(FOLDER / "frontend", tmp_path / "frontend")
    frontend = load_frontend(folder)
    assert repr(frontend.spec) == EXPECTED["saved_frontend"]
    assert frontend.fingerprint() == EXPECTED["saved_fingerprint"]
    save_frontend(frontend, folder)
    assert load_frontend(folder).fingerprint() == EXPECTED["saved_fingerprint"]


@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_a_checkpoint(part):
    """Guards against checkpoints of older versions that are called damaged for having no checksum inside."""
    checkpoint = load_checkpoint(FOLDER / "run" / "checkpoints")
    assert hash_tensors(checkpoint.tensors[part]) == EXPECTED["checkpoint"][part]
    assert {"step": checkpoint.step, **checkpoint.state} == EXPECTED["checkpoint_state"]
