"""Settings that nobody named: what they depend on."""

import pytest
from corpus import folder_of_notes, tiny_settings

from audiogen.commands.defaults import FEW_CODES, OF_FEW, default_config
from audiogen.commands.train import train
from audiogen.spec import FrameSpec, TokenSpec

FRAMES = TokenSpec(16000, 256, 4, 256)
FRONTENDS = {FRAMES: "melvq", TokenSpec(16000, 1, 1, 256): "mulaw", FrameSpec(16000, 256, 80): "mel"}


def chosen(spec, backbone, num_codes, *overrides):
    return default_config({"kind": FRONTENDS[spec]}, spec, backbone, overrides, num_codes=num_codes).backbone


@pytest.mark.parametrize("backbone", list(OF_FEW))
def test_few_codes_get_a_smaller_model(backbone):
    """Buries a large model of a handful of clips, whose held-out loss turns before it has learned anything, and a rule
    that has the last word over what was asked for."""
    small, large = (chosen(FRAMES, backbone, count) for count in (FEW_CODES - 1, FEW_CODES))
    assert small.dim < large.dim and small.num_layers < large.num_layers and small.dropout > large.dropout
    assert large == chosen(FRAMES, backbone, float("inf"))
    assert chosen(FRAMES, backbone, 1, "backbone.dim=384").dim == 384


@pytest.mark.parametrize("spec", [spec for spec in FRONTENDS if spec != FRAMES])
def test_samples_and_densities_keep_theirs(spec):
    """Buries a rule that is taken to where it was not measured."""
    for backbone in ("bigram", "mlp", "wavenet", "gpt"):
        assert chosen(spec, backbone, 1) == chosen(spec, backbone, float("inf"))


def test_training_counts_the_folder_s_codes(tmp_path):
    """Buries a rule that training never asks."""
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
    assert {name: getattr(run.config.backbone, name) for name in OF_FEW["gpt"]} == OF_FEW["gpt"]
