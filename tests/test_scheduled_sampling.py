"""Scheduled sampling and noise: what a model sees in training instead of the recording."""

import pytest
import torch
from loops import Walks, settings, trainer, weights
from tiny import BACKBONE_CASES, SPEC_CASES, tiny_model

from audiogen.errors import ConfigError
from audiogen.models.batch import Batch
from audiogen.runs.event_log import Discarded
from audiogen.runs.training_config import TrainingConfig
from audiogen.spec import FrameSpec, TokenSpec


def items(spec, batch_size: int = 3, num_frames: int = 12) -> torch.Tensor:
    """Codes or frames (B, C, T), the last item shorter than the others."""
    if isinstance(spec, TokenSpec):
        x = torch.randint(spec.codebook_size, (batch_size, spec.num_codebooks, num_frames))
        x[-1, :, -4:] = spec.codebook_size
    else:
        x = torch.randn(batch_size, spec.num_features, num_frames).double()
        x[-1, :, -4:] = torch.nan
    return x


@pytest.mark.parametrize("kind, changes", BACKBONE_CASES)
@pytest.mark.parametrize("spec, pattern", SPEC_CASES)
def test_draws_take_the_place_of_what_is_seen_and_not_of_what_is_predicted(kind, changes, spec, pattern):
    """A redrawn target would teach the model to repeat itself; a redrawn hole would tell it of codes that are none."""
    torch.manual_seed(0)
    model = tiny_model(spec, kind, pattern, **changes)
    batch = Batch(items(spec))
    none, all_ = model.redraw(batch, 0.0), model.redraw(batch, 1.0)
    seq = model.pattern.apply(batch.x, model.hole)
    assert torch.equal(none.observed.nan_to_num(), seq.nan_to_num())
    torch.testing.assert_close(model(none), model(batch))
    holes = model.embed.is_hole(seq).expand_as(seq)
    assert torch.equal(model.embed.is_hole(all_.observed).expand_as(seq), holes)
    assert (all_.observed != seq)[~holes].any()
    assert torch.equal(all_.x.nan_to_num(), batch.x.nan_to_num())
    # What the loss scores is the recording, given what is seen: the same as scoring `seq` after that prefix by hand.
    s = seq.shape[2] - 6
    h, _ = model.start(len(seq), all_.observed[:, :, :s])
    expected = model.head.nll(h[:, None], seq[:, :, s : s + 1])
    got = model.pattern.apply(model(all_), 0.0)
    torch.testing.assert_close(got[:, :, s : s + 1], expected, atol=1e-5, rtol=1e-5)


def test_each_draw_follows_the_recording_before_it():
    """Draws that followed other draws would be a free run, whose continuation the recording does not tell."""
    torch.manual_seed(0)
    walks = Walks(size=8)
    model = walks.model("gpt").eval()
    batch, _ = walks.batch(0)
    counts = torch.zeros(4, 8)
    for _ in range(2000):
        observed = model.redraw(batch, 1.0).observed[:, 0, 5]
        for item, code in enumerate(observed.tolist()):
            counts[item, code] += 1
    h, _ = model.start(4, batch.x[:, :, :5])
    p = model.head.logits(h)[:, 0].softmax(dim=1)  # of step 5, given the recording
    recorded = torch.nn.functional.one_hot(batch.x[:, 0, 5], 8)
    torch.testing.assert_close(counts / 2000, 0.5 * p + 0.5 * recorded, atol=0.05, rtol=0)


def test_share_of_an_item():
    """With one share for all items, no crop would be nearly clean and none nearly all draws."""
    walks = Walks(size=256, batch_size=200, num_frames=400)
    changed = walks.model().redraw(walks.batch(0)[0], 0.8).observed != walks.batch(0)[0].x
    shares = changed.float().mean(dim=2).flatten()
    assert shares.mean() == pytest.approx(0.4, abs=0.05)
    assert shares.min() < 0.05 and shares.max() > 0.72


def test_noise_is_on_what_is_seen_alone_and_half_of_the_items_have_none():
    """Noise on the target would be drawn, and a model that never saw clean frames would be blind to what is quiet."""
    torch.manual_seed(0)
    model = tiny_model(FrameSpec(8000, 256, 80), "gpt", "parallel")
    batch = Batch(torch.randn(400, 80, 50).double())
    batch.x[-1, :, -4:] = torch.nan
    noisy = model.perturb(batch, 0.4)
    deviations = (noisy.observed - batch.x)[:-1].std(dim=(1, 2))
    assert (deviations == 0).float().mean() == pytest.approx(0.5, abs=0.08)
    assert deviations[deviations > 0].mean() == pytest.approx(0.2, abs=0.03) and 0.35 < deviations.max() < 0.41
    assert noisy.x is batch.x and torch.equal(noisy.observed.isnan(), batch.x.isnan())
    both = model.perturb(batch._replace(observed=torch.zeros(400, 80, 50).double()), 0.4).observed
    assert both.std() < 0.3  # on what scheduled sampling has put there, not on the recording


def test_noise_on_codes_is_refused():
    """A code plus noise would be another code, or none."""
    with pytest.raises(ConfigError, match="training.input_noise"):
        Walks().model().perturb(Walks().batch(0)[0], 0.1)


class _Frames(Walks):
    """Walks as frames of four real values."""

    def batch(self, step):
        batch, names = Walks(num_rows=4).batch(step)
        return Batch(batch.x / 8), names

    def model(self, kind="bigram", pattern="parallel", **settings):
        return tiny_model(FrameSpec(8000, 256, 4), kind, pattern).float()


@pytest.mark.parametrize("walks, changes", [(Walks(), {"scheduled_sampling": 1.0}), (_Frames(), {"input_noise": 0.5})])
def test_training_on_what_is_not_recorded_is_a_function_of_seed_and_step(tmp_path, walks, changes):
    """A resumed run would go another way if the draws depended on anything but the seed and the step."""
    config = settings(steps=6, **changes)
    models = []
    for name in ("a", "b", "plain"):
        torch.manual_seed(1)
        changed = settings(steps=6) if name == "plain" else config
        one = trainer(tmp_path / name, changed, walks)
        one.run(Discarded())
        models.append(weights(one.model))
    a, b, plain = models
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], plain[name]) for name in a)


@pytest.mark.parametrize("name", ["scheduled_sampling", "input_noise"])
@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_share_out_of_range(name, share):
    """More than all steps, or fewer than none; noise that is louder than what is heard."""
    with pytest.raises(ConfigError, match=f"training.{name}"):
        TrainingConfig(**{name: share})
