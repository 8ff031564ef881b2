"""The gallery: what its recipe writes, and that the page in docs/ has its sounds."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import soundfile
from corpus import RATE, folder_of_notes, tiny_frontend

from audiogen.data.stages import stage_config
from audiogen.models.backbones import BACKBONES
from audiogen.models.conditioning import CONDITIONS
from audiogen.runs.build import build_model
from audiogen.runs.config import RunConfig
from audiogen.runs.run import Run, with_stage_before
from audiogen.runs.training_config import DataConfig, TrainingConfig
from audiogen.testing import lively

ROOT = Path(__file__).parents[1]
GALLERY = runpy.run_path(str(ROOT / "recipes" / "gallery.py"))


def sounds_of(page: Path) -> list[str]:
    return re.findall(r"^- \[.+\]\((sounds/[\w-]+\.mp3)\)$", page.read_text(encoding="utf-8"), re.M)


def test_the_page_of_the_docs_has_its_sounds():
    """Guards against links to nothing, sounds without a link, silence, and a repository that grows by each rebuild."""
    docs = ROOT / "docs"
    named = sounds_of(docs / "gallery.md")
    assert len(named) == len(set(named)) > 20
    assert {docs / name for name in named} == set((docs / "sounds").iterdir())
    assert sum((docs / name).stat().st_size for name in named) < 3_000_000
    for name in named:
        wav, rate = soundfile.read(docs / name)
        assert len(wav) > rate and np.abs(wav).max() > 0.01, name


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was never trained, with every condition that the page shows."""
    kinds = {name: kind.Config for name, kind in CONDITIONS.items()}
    conditions = {
        "lead": kinds["label"](values=("guitar", "harp")),
        "shaker": kinds["label"](values=("no", "yes")),
        "tempo": kinds["number"](low=96.0, high=120.0),
        "kind": kinds["label"](values=("notes", "drums", "speech", "music-tracks")),
        "melody": kinds["melody"](),
        "loudness": kinds["loudness"](),
        "text": kinds["text"](),
        "timbre": kinds["timbre"](),
    }
    return untrained(tmp_path_factory.mktemp("run"), conditions)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """A run of two stages that was never trained."""
    first = untrained(tmp_path_factory.mktemp("stages") / "melvq", {})
    spec = first.frontend.spec
    last = untrained(first.folder.with_name("melvq_2"), {first.name: stage_config(spec, spec)})
    return with_stage_before(last, first)


def untrained(folder, conditions):
    frontend = tiny_frontend("melvq")
    backbone = BACKBONES["gpt"].Config(dim=8, num_layers=1, num_heads=2)
    config = RunConfig(frontend.config, backbone, "delay", DataConfig(), TrainingConfig(), conditions)
    return Run(folder, config, frontend, lively(build_model(config, frontend.spec)).eval(), step=3)


def test_the_recipe_writes_every_section(run, stages, tmp_path, monkeypatch):
    """Guards against a recipe that fails after ten trainings, and a page that keeps sounds of an earlier one."""
    seconds = 0.5
    monkeypatch.setitem(GALLERY["of_rungs"].__globals__, "SECONDS", seconds)
    corpus = folder_of_notes(tmp_path / "corpus", [RATE, RATE])
    labels = "file,lead,tempo,shaker\nnote-00.wav,harp,96,no\nnote-01.wav,guitar,120,yes\n"
    (corpus / "metadata.csv").write_text(labels)
    GALLERY["describe"](corpus)
    assert (
        (corpus / "metadata.csv").read_text().splitlines()[2].endswith('yes,"a fast tune on the guitar, with a shaker"')
    )
    docs = tmp_path / "docs"
    (docs / "sounds").mkdir(parents=True)
    (docs / "sounds" / "old.mp3").write_bytes(b"x")
    runs = {"mulaw-bigram": run, "stages": stages} | dict.fromkeys(("tunes", "captions", "melody", "base"), run)
    sections = [section(runs, corpus) for section in GALLERY["SECTIONS"]]
    GALLERY["write_page"](docs, sections)
    named = sounds_of(docs / "gallery.md")
    assert len(named) == len(set(named)) == sum(len(section.sounds) for section in sections)
    assert {docs / name for name in named} == set((docs / "sounds").iterdir())
    longer = {"changes-1": 2 * seconds, "continued-1": 1.5 * seconds, "stages-1": 1.5 * seconds}
    for section in sections:
        for sound in section.sounds:
            cut = round(longer.get(sound.name, seconds) * RATE) - sound.wav.shape[1]  # of stages: to whole frames
            assert 0 <= cut <= (run.frontend.spec.hop_length if sound.name == "stages-1" else 0), sound.name
            wav, rate = soundfile.read(docs / "sounds" / f"{sound.name}.mp3")
            assert rate == RATE and len(wav) >= sound.wav.shape[1]
