"""Settings that nobody named: what they depend on."""

import dataclasses
import io
from pathlib import Path

import pytest
from corpus import folder_of_notes, tiny_settings
from rich.console import Console

from audiogen.commands.defaults import FRONTEND
from audiogen.commands.plan import Flags, Plan, open_source
from audiogen.commands.train import train
from audiogen.data import FileEntry, Index
from audiogen.doctor import check
from audiogen.doctor.verdicts import Verdict
from audiogen.frontends import MuLaw, load_frontend
from audiogen.models.backbones import BACKBONES
from audiogen.models.backbones.gpt import FEW_CODES, GPT
from audiogen.runs.outlook import default_outlook
from audiogen.runs.training_config import TrainingConfig
from audiogen.spec import FrameSpec, TokenSpec

FRAMES, SAMPLES, FEATURES = TokenSpec(16000, 256, 4, 256), TokenSpec(16000, 1, 1, 256), FrameSpec(16000, 256, 80)
FRONTENDS = {FRAMES: "melvq", SAMPLES: "mulaw", FEATURES: "mel"}


def chosen(spec, backbone, num_codes, *overrides):
    return Plan.over(load_frontend(FRONTENDS[spec]), Flags(None, backbone, overrides), num_codes).config.backbone


def test_few_codes_get_a_smaller_model():
    """Guards against a large model of a handful of clips, whose held-out loss turns before it has learned anything, and
    a rule that has the last word over what was asked for."""
    small, large = (chosen(FRAMES, "gpt", count) for count in (FEW_CODES - 1, FEW_CODES))
    assert small.dim < large.dim and small.num_layers < large.num_layers and small.dropout > large.dropout
    assert large == chosen(FRAMES, "gpt", float("inf"))
    assert chosen(FRAMES, "gpt", 1, "backbone.dim=384").dim == 384


def test_few_features_get_a_smaller_model_too():
    """Guards against the size and the dropout for codes, taken over for densities."""
    small, large = (chosen(FEATURES, "gpt", count) for count in (FEW_CODES - 1, FEW_CODES))
    assert (small.dim, small.num_layers, small.dropout) == (128, 3, large.dropout)
    assert large == chosen(FEATURES, "gpt", float("inf")) and large.dim > small.dim


def test_samples_and_other_backbones_keep_theirs():
    """Guards against a rule that is taken to where it was not measured."""
    for spec in FRONTENDS:
        for backbone in BACKBONES:
            if backbone != "gpt" or spec == SAMPLES:
                assert chosen(spec, backbone, 1) == chosen(spec, backbone, float("inf"))


def test_unasked_the_rate_of_the_folder_is_kept(tmp_path):
    """Guards against the limit of front-ends of codes, 16 kHz, taken for the default: recordings would lose all above
    8 kHz; and against a rate beyond 48 kHz taken from the folder."""
    for rate, expected in ((8000, 8000), (44100, 44100), (96000, 48000)):
        source = open_source(folder_of_notes(tmp_path / str(rate), [rate // 2] * 2, rate), strict=False)
        assert Plan.for_source(source).spec.sample_rate == expected
        assert Plan.for_source(source, Flags("melvq")).spec.sample_rate == min(rate, 16000)
        assert Plan.for_source(source, Flags(overrides=["frontend.sample_rate=12000"])).spec.sample_rate == 12000


def test_training_counts_the_folder_s_codes(tmp_path):
    """Guards against a rule that training never asks."""
    folder = folder_of_notes(tmp_path / "corpus", [4000] * 4)
    settings = [f"frontend.{name}={value}" for name, value in tiny_settings("melvq").items()]
    run = train(
        folder,
        tmp_path / "run",
        frontend="melvq",
        backbone="gpt",
        steps=1,
        device="cpu",
        overrides=[*settings, "training.sample_seconds=0.02", "training.crop_frames=8"],
    )
    small, _ = GPT.defaults(run.frontend.spec, FEW_CODES - 1)
    assert run.config.backbone == dataclasses.replace(small, window=run.config.backbone.window)


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("spec", FRONTENDS)
def test_every_backbone_has_defaults(kind, spec):
    """Guards against a registered backbone that `train` cannot train because a table elsewhere lacks its row."""
    config, training = BACKBONES[kind].defaults(spec, 1000)
    assert isinstance(config, BACKBONES[kind].Config)
    assert TrainingConfig(**training).crop_frames >= 1


def test_the_window_follows_the_crop_and_the_pattern():
    """Guards against a window chosen before the overrides are known, and one that overrules what was typed."""
    assert chosen(FRAMES, "gpt", 10**6, "training.crop_frames=100").window == (100 + 3) // 2
    assert chosen(FRAMES, "gpt", 10**6, "training.crop_frames=100", "pattern.kind=flatten").window == 4 * 100 // 2
    assert chosen(FRAMES, "gpt", 10**6, "training.crop_frames=100", "backbone.window=7").window == 7


def test_a_front_end_means_the_same_by_name_and_by_default(tmp_path):
    """Guards against `--frontend NAME` that differs from leaving the option out where NAME is the default."""
    folder = folder_of_notes(tmp_path / "corpus", [4000] * 4)
    unasked, named = (Plan.for_source(open_source(folder), Flags(name)) for name in (None, FRONTEND))
    assert unasked.config == named.config and unasked.frontend.config == named.frontend.config


def test_the_doctor_tries_the_model_that_train_trains(tmp_path, monkeypatch):
    """Guards against a doctor that plans without the folder's number of codes, and so tries a larger model than the one
    that is trained."""
    folder = folder_of_notes(tmp_path / "corpus", [4000] * 4)
    models = []
    monkeypatch.setattr(check, "overfit", lambda model, *rest: models.append(model))
    monkeypatch.setattr(check, "verdict", lambda found: Verdict(None, "fine"))
    settings = [f"frontend.{name}={value}" for name, value in tiny_settings("melvq").items()]
    check.check_overfit(Console(file=io.StringIO()), folder, "melvq", "gpt", "cpu", settings)
    plan = Plan.for_source(open_source(folder), Flags("melvq", "gpt", settings))
    assert models[0].backbone.config == plan.config.backbone
    assert plan.config.backbone.num_layers == GPT.defaults(plan.spec, FEW_CODES - 1)[0].num_layers


@pytest.mark.parametrize("rate", [1000, 8000, 16_000, 22_050, 44_100, 48_000, 192_000])
@pytest.mark.parametrize("count", [1, 3])
def test_the_doctor_foretells_what_train_does(rate, count):
    """Guards against a report on a folder, which is worked out without torch, that train does not follow."""
    files = [FileEntry(f"{i}.wav", f"{i:064x}", rate, 1, 60 * rate, 0.5, 0.1, False, 0.0) for i in range(count)]
    index = Index(Path("folder"), files, [])
    plan, outlook = Plan.for_source(index), default_outlook(index)
    assert outlook == plan.outlook
    assert outlook.split(index) == plan.split(index)


@pytest.mark.parametrize(("rate", "times"), [(16_000, 1), (8000, 2)])
def test_a_plan_is_built_once(tmp_path, monkeypatch, rate, times):
    """Guards against a front-end that is built anew at each step from a command to its run; only another rate than the
    one that was assumed asks for another."""
    folder, built, original = folder_of_notes(tmp_path / "corpus", [20_000] * 4, rate), [], MuLaw.__init__
    monkeypatch.setattr(MuLaw, "__init__", lambda self, config: built.append(config) or original(self, config))
    flags = Flags("mulaw", "mlp")
    draft = Plan.draft(flags)
    plan = Plan.for_source(open_source(folder), flags, draft)
    assert (plan is draft) == (times == 1) and len(built) == times
    assert plan.spec.sample_rate == rate
