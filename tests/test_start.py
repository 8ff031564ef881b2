"""Where training starts from: the base model, for every sample rate, or new weights."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from corpus import folder_of_notes

from audiogen.audio.io import resample
from audiogen.commands.plan import Flags, Plan, open_source
from audiogen.commands.tokenize import tokenize
from audiogen.commands.train import train
from audiogen.errors import ConfigError
from audiogen.frontends import load_frontend
from audiogen.models.batch import Batch
from audiogen.models.conditioning import Label, Pitch, Position
from audiogen.runs.build import build_model
from audiogen.runs.run import load_run
from audiogen.runs.start import BASE, base_config, base_frontend, is_base_frontend, start_from_base
from audiogen.testing import lively
from audiogen.training.checkpoint import load_checkpoint

QUICK = ["training.crop_frames=16", "training.batch_size=1", "training.sample_seconds=0.05"]


def sound(rate, seconds=4.0):
    """Noise that falls towards high frequencies, as sound does."""
    white = torch.randn(1, 1, round(rate * seconds), generator=torch.Generator().manual_seed(0))
    return 0.02 * white + 0.002 * white.cumsum(dim=2).sin()


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 48000])
def test_frames_of_every_rate_are_the_leading_bands_of_the_base(rate):
    """Guards against bands, frames or levels that shift with the sample rate: the base would hear another sound."""
    base, other = base_frontend(44100), base_frontend(rate)
    assert abs(other.spec.frame_rate / base.spec.frame_rate - 1) < 0.04
    wav = sound(rate)
    own = other.frames_of(other.encode(wav))[0]
    whole = base.frames_of(base.encode(resample(wav[0], rate, 44100)[None]))[0]
    bands = own.shape[0] - 3  # the last ones lie where resampling filters
    torch.testing.assert_close(own[:bands].mean(dim=1), whole[:bands].mean(dim=1), rtol=0, atol=0.1)


def test_a_lower_rate_starts_from_the_same_weights():
    """Guards against weights cut along a wrong axis, or not copied: the first frame must be drawn as the base draws it,
    with zeros above the leading bands."""
    plans = {rate: Plan.over(base_frontend(rate)) for rate in (16000, 44100)}
    models = {rate: build_model(plan.config, plan.spec).eval() for rate, plan in plans.items()}
    for model in models.values():
        start_from_base(model)
    size, above = plans[16000].spec.num_features, plans[44100].spec.num_features - plans[16000].spec.num_features
    low, high = (models[rate].start(1)[0] for rate in (16000, 44100))
    x, t = torch.randn(1, size), torch.full((1, 1), 0.3)
    expected = models[44100].head.velocity(F.pad(x, (0, above)), t, high)[:, :size]
    torch.testing.assert_close(models[16000].head.velocity(x, t, low), expected)
    assert expected.abs().max() > 0.1


def test_a_condition_of_the_base_is_carried_over_where_it_means_the_same():
    """Guards against a position that is learned anew, and a label of the user's that gets the base's values."""
    plan = Plan.over(base_frontend(16000))
    kinds = Label.Config(("a", "b"))
    model = build_model(replace(plan.config, conditions={"position": Position.Config(), "kind": kinds}), plan.spec)
    start_from_base(model)
    parts = model.conditioner.parts
    assert parts["position"].linear.weight.any() and not parts["kind"].table.any()
    assert not any(part.null.any() for part in parts.values())


def test_the_vectors_of_pitches_do_not_depend_on_the_range():
    """Guards against a pitch that is learned anew because the folder's notes are not those of the base's corpus."""
    own, of_base = Pitch.Config(36, 84), Pitch.Config()
    assert Pitch.has_same_weights(own, of_base)
    assert not Label.has_same_weights(Label.Config(("a", "b")), Label.Config(("b", "a")))
    x = torch.tensor([[[36.0, 60.5, 84.0]]])
    narrow, wide = Pitch(own, 8), Pitch(of_base, 8)
    wide.load_state_dict(lively(narrow).state_dict())
    assert narrow(x).any() and torch.equal(narrow(x), wide(x))


def test_the_default_starts_from_the_base_and_is_better_for_it(tmp_path):
    """Guards against base weights that are loaded and then drawn anew, at the start or when a run is resumed."""
    folder = folder_of_notes(tmp_path / "corpus", [20_000] * 4, 8000)
    run = train(folder, tmp_path / "run", steps=1, overrides=["training.learning_rate=1e-9", *QUICK])
    assert run.config.training.start == "base" and run.config.backbone.dim == base_config().backbone.dim
    model = build_model(run.config, run.frontend.spec).eval()
    start_from_base(model)
    with torch.inference_mode():
        x = run.frontend.encode(sound(8000))
        loss, expected = (float(one.nll(Batch(x))[0]) for one in (run.model, model))
    assert loss == pytest.approx(expected, rel=1e-4)
    resumed = train(folder, tmp_path / "run", steps=2, resume=True)
    assert load_checkpoint(tmp_path / "run" / "checkpoints").step == 2  # the best may be the first
    assert load_run(tmp_path / "run").config == resumed.config


def test_other_parts_and_scratch_get_new_weights(tmp_path):
    """Guards against a base that is taken where another front-end or backbone was asked for, or none was wanted."""
    source = open_source(folder_of_notes(tmp_path / "corpus", [8000] * 4, 8000))
    for flags in (
        Flags("melvq"),
        Flags(backbone="wavenet"),
        Flags(start="scratch"),
        Flags(None, None, ["backbone.dim=64"]),
    ):
        plan = Plan.for_source(source, flags)
        assert plan.config.training.start == "scratch"
        assert not is_base_frontend(plan.frontend)
    kept = Plan.for_source(source, Flags(overrides=["backbone.dropout=0.3", "frontend.griffin_lim_iterations=3"]))
    assert kept.config.training.start == "base" and kept.config.backbone.dropout == 0.3


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (Flags("melvq", start="base"), "--frontend"),
        (Flags(backbone="gru", start="base"), "--backbone"),
        (Flags(overrides=["backbone.num_layers=2"], start="base"), "backbone.num_layers"),
    ],
)
def test_a_base_that_does_not_fit_is_refused(tmp_path, flags, named):
    """Guards against --from base that is silently ignored."""
    with pytest.raises(ConfigError, match=named):
        Plan.draft(flags)


def test_a_cache_of_the_default_front_end_starts_from_the_base_too(tmp_path):
    """Guards against `tokenize` then `train` that differ from `train` alone."""
    folder = folder_of_notes(tmp_path / "corpus", [20_000] * 4, 8000)
    cache = tokenize(folder, tmp_path / "cache")
    direct = Plan.for_source(open_source(folder)).config
    assert Plan.for_source(cache).config == direct


def test_the_base_is_a_run():
    """Guards against shipped files that only training can read."""
    run = load_run(BASE)
    assert load_frontend(BASE).fitted
    assert run.generate(0.1, seeds=[0])[0].isfinite().all()
