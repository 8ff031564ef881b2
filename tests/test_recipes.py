"""Every lesson runs from top to bottom, in its short form, on a folder of made-up clips."""

import logging
import re
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from corpus import RATE, tiny_settings
from folders import write_wav
from listening import Page
from matplotlib import pyplot

from audiogen.commands.plan import Flags, Plan
from audiogen.course.lesson_parser import SHORT
from audiogen.data import scan
from audiogen.errors import CacheError, RunError
from audiogen.frontends import FRONTENDS, load_frontend
from audiogen.frontends.mel import spectrum
from audiogen.runs.build import build_model
from audiogen.runs.run import load_run
from audiogen.training.checkpoint import load_checkpoint
from audiogen.training.throughput import training_flops
from audiogen.utils.tensors import read_tensors

RECIPES = Path(__file__).parents[1] / "recipes"
#: No lessons: quickstart makes its own corpus; base_model, semantic_encoder and spectrum_network take one of many
#: kinds; generate_onnx takes an exported run, live_osc never ends, gallery trains three runs, and notebooks makes
#: notebooks of the lessons.
OTHERS = (
    "quickstart",
    "base_model",
    "semantic_encoder",
    "spectrum_network",
    "generate_onnx",
    "live_osc",
    "gallery",
    "notebooks",
)
LESSONS = sorted(path.stem for path in RECIPES.glob("*.py") if path.stem not in OTHERS)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Three "words" by two "speakers", six times each: tones and noises, so that some frames are voiced."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for word in range(3):
        for speaker in range(2):
            for take in range(6):
                t = np.arange(int(RATE * rng.uniform(0.35, 0.5))) / RATE
                pitch = (120 + 80 * speaker) * (1 + 0.5 * word * t)
                tone = np.sin(2 * np.pi * np.cumsum(pitch) / RATE) + 0.4 * np.sin(6 * np.pi * np.cumsum(pitch) / RATE)
                hiss = 0.3 * rng.standard_normal(len(t)).clip(-3, 3)
                voiced = t > 0.1 + 0.05 * word
                write_wav(folder / f"{word}_{'ab'[speaker]}_{take}.wav", 0.4 * np.where(voiced, tone, hiss), RATE)
    return folder


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lesson_runs_in_its_short_form_and_writes_its_page(lesson, clips, tmp_path, monkeypatch, capsys):
    """Guards against a lesson that nobody has run since the library under it changed, and a page without its lesson's
    note."""
    monkeypatch.setattr(sys, "argv", [f"{lesson}.py", str(clips), "--out", str(tmp_path / "out"), "--short"])
    pyplot.close("all")
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(RECIPES / f"{lesson}.py"), run_name="__main__")
    said = capsys.readouterr()
    assert end.value.code == 0, said.err
    page = Page(tmp_path / "out" / "index.html")
    assert str(tmp_path / "out" / "index.html") in said.out, "a lesson says where its page is"
    assert page.all("h1") and (page.all("img") or page.all("audio") or page.all("svg"))
    assert SHORT in said.out and SHORT in page.text(), "a few steps must not read like a result"
    assert not pyplot.get_fignums(), "a figure that stays open keeps its memory"


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lesson_opens_with_its_note(lesson):
    """Guards against a lesson that does not say what it teaches, what that has to do with sound, and what to try."""
    source = (RECIPES / f"{lesson}.py").read_text(encoding="utf-8")
    docstring = source.split('"""')[1]
    assert f"python recipes/{lesson}.py FOLDER" in docstring
    for part in ("What it teaches.", "How it carries over to audio.", "What to try."):
        assert part in docstring, part


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lesson_tells_in_one_line_what_is_wrong_with_its_folder(lesson, tmp_path, monkeypatch, capsys):
    """Guards against a traceback where the folder's name was misspelt."""
    monkeypatch.setattr(sys, "argv", [f"{lesson}.py", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(RECIPES / f"{lesson}.py"), run_name="__main__")
    assert end.value.code == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and "nowhere" in error[0]


def test_the_codec_of_a_lesson_begins_with_the_shipped_weights(clips, tmp_path, monkeypatch, capsys):
    """Guards against --short, whose small networks the shipped weights do not fit."""
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["10_codec.py", str(clips), "--out", str(out), "--short", "--from", "shipped"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(RECIPES / "10_codec.py"), run_name="__main__")
    assert end.value.code == 0, capsys.readouterr().err
    assert load_frontend(out).config.weights == "finetune"


def test_wrong_usage_of_a_lesson_exits_with_2(clips, tmp_path, monkeypatch, capsys):
    """Guards against a lesson that treats wrong usage and a bad folder differently than the commands do."""
    monkeypatch.setattr(sys, "argv", ["10_codec.py", str(clips), "--out", str(tmp_path), "--set", "training.seed=1"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(RECIPES / "10_codec.py"), run_name="__main__")
    assert end.value.code == 2
    assert "only settings of the codec can be set here" in capsys.readouterr().err


@pytest.mark.parametrize(("lesson", "run"), [("06_wavenet", "wavenet"), ("07b_gpt", "gpt"), ("09_gpt2", "gpt")])
def test_a_lesson_that_finds_a_run_says_so_before_it_begins(lesson, run, clips, tmp_path, monkeypatch, capsys):
    """Guards against minutes of work that end in a refusal: the second of two trials into one folder."""
    (tmp_path / run).mkdir()
    (tmp_path / run / "config.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", [f"{lesson}.py", str(clips), "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(RECIPES / f"{lesson}.py"), run_name="__main__")
    said = capsys.readouterr()
    assert end.value.code == 1 and said.out == ""
    assert "holds a run already; continue it with --resume, or choose another --out" in said.err


def test_operations_of_a_large_model_follow_from_those_of_two_small_ones():
    """Guards against a cost that counts the embedding once a layer, or what activation checkpointing computes again."""
    lesson, frontend = runpy.run_path(str(RECIPES / "09_gpt2.py")), FRONTENDS["melvq"](FRONTENDS["melvq"].Config())
    overrides = ["backbone.dim=16", "backbone.num_layers=5", "backbone.recompute=true", "training.crop_frames=24"]
    config = Plan.over(frontend, Flags(None, "gpt", overrides)).config
    plain = build_model(replace(config, backbone=replace(config.backbone, recompute=False)), frontend.spec)
    counted = (sum(p.numel() for p in plain.parameters()), training_flops(plain, 24))
    assert lesson["size_and_flops"](config, frontend.spec) == counted
    name, weights, *_ = lesson["cost"]("1.5B", frontend)
    assert weights == pytest.approx(48 * 12 * 1600**2, rel=0.02)


def test_the_ladder_keeps_what_was_trained_for_as_long_and_nothing_else(clips, tmp_path, capsys):
    """Guards against a ladder that shows a rung of one step and sixteen codes as trained for all the minutes asked
    for."""
    ladder = runpy.run_path(str(RECIPES / "ladder.py"))
    index = scan(clips)

    def climb(minutes: float) -> tuple[float, int, bool]:
        cache = ladder["encoded"](index, tmp_path / "cache", "melvq", "cpu", ladder["TINY"])
        rung = ladder["climb"](cache, tmp_path / "bigram", "melvq", "bigram", minutes, "cpu")
        return rung.budget, rung.steps, "kept" in capsys.readouterr().err

    _, steps, _ = climb(0.005)
    assert climb(0.004) == (0.005, steps, True)
    budget, longer, kept = climb(0.006)
    assert (budget, kept) == (0.006, False) and longer >= steps
    with pytest.raises(CacheError, match="other settings of melvq; choose another --out"):
        ladder["encoded"](index, tmp_path / "cache", "melvq", "cpu", [])


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """`run_script` sets logging up for a process of its own."""
    root, ours = logging.getLogger(), logging.getLogger("audiogen")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], root.level, ours.level = before[0], before[1], before[2]


def test_a_base_model_is_trained_and_continued(clips, tmp_path, monkeypatch, capsys):
    """Guards against a recipe that fails after a change of the library, a checkpoint that is not resumed, a run folder
    that can't be loaded, and a traceback where the budget is already spent."""
    for path in clips.glob("*.wav"):
        word, speaker, _ = path.stem.split("_")
        group = tmp_path / "corpus" / word / speaker
        group.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, group)
    checkpoint = tmp_path / "base" / "training.safetensors"

    def train(minutes: float) -> int:
        command = ["base_model.py", str(tmp_path / "corpus"), "--out", str(tmp_path / "base")]
        monkeypatch.setattr(sys, "argv", [*command, "--minutes", str(minutes), "--dim", "8", "--layers", "1"])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(RECIPES / "base_model.py"), run_name="__main__")
        assert end.value.code == 0, capsys.readouterr().err
        return load_run(tmp_path / "base").step

    first = train(0.01)
    spent = read_tensors(checkpoint, RunError, "")[1]["seconds"] / 60
    assert 0 < first == train(spent / 2) < train(spent + 0.01)


def test_a_semantic_encoder_is_trained_and_continued(clips, tmp_path, monkeypatch, capsys):
    """Guards against a recipe that fails after a change of the library, a checkpoint that is not resumed, and a result
    that is no front-end."""
    corpus_of_kinds(clips, tmp_path / "corpus")
    small = [f"--set=frontend.{name}={value}" for name, value in tiny_settings("semantic").items()]

    def train(steps: int) -> int:
        command = ["semantic_encoder.py", str(tmp_path / "corpus"), "--out", str(tmp_path / "encoder"), *small]
        monkeypatch.setattr(sys, "argv", [*command, "--steps", str(steps)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(RECIPES / "semantic_encoder.py"), run_name="__main__")
        assert end.value.code == 0, capsys.readouterr().err
        return load_checkpoint(tmp_path / "encoder" / "checkpoints").step

    assert [train(steps) for steps in (3, 2, 5)] == [3, 3, 5]
    assert load_frontend(tmp_path / "encoder").encode(torch.zeros(1, 1, RATE)).shape == (1, 1, 50)


def test_a_spectrum_network_is_trained_and_continued(clips, tmp_path, monkeypatch, capsys):
    """Guards against a recipe that fails after a change of the library, a checkpoint that is not resumed, a loss that
    does not fall, and weights that the front-end does not take."""
    corpus_of_kinds(clips, tmp_path / "corpus")

    def train(steps: int) -> tuple[int, float]:
        command = [
            "spectrum_network.py",
            str(tmp_path / "corpus"),
            "--out",
            str(tmp_path / "out"),
            "--steps",
            str(steps),
        ]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(RECIPES / "spectrum_network.py"), run_name="__main__")
        said = capsys.readouterr()
        assert end.value.code == 0, said.err
        losses = re.findall(r"min: ([\d.]+) nats", said.out)
        return torch.load(tmp_path / "out" / "training.pt", weights_only=True)["step"], float((losses or ["0"])[-1])

    (first, before), (second, _), (third, after) = (train(steps) for steps in (1, 1, 12))
    assert (first, second, third) == (1, 1, 12) and after < before
    monkeypatch.setattr(spectrum, "SHIPPED", tmp_path / "out" / "spectrum.safetensors")
    assert spectrum.SpectrumNetwork(16000).load_shipped()(torch.rand(1, 77, 5)).shape == (1, 385, 5)


def corpus_of_kinds(clips: Path, out: Path) -> None:
    """Copy clips to folders of kinds, by the word in their names."""
    for path in clips.glob("*.wav"):
        kind = out / path.stem.split("_")[0]
        kind.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, kind)
