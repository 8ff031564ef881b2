"""Small parts made from the registries: a backbone or a pattern is tested by being registered."""

import dataclasses
from typing import Any
from unittest.mock import patch

import pytest
import torch

from audiogen.models.backbones import BACKBONES, Backbone
from audiogen.models.conditioning import CONDITIONS, Conditioner
from audiogen.models.flow_matching import FlowMatchingHead
from audiogen.models.patterns import PATTERNS
from audiogen.models.sequence_model import SequenceModel
from audiogen.spec import FrameSpec, Spec, TokenSpec
from audiogen.testing import lively

#: A small value for each whole-number setting that a backbone may have, by its name.
SMALL = {
    "dim": 8,
    "num_layers": 3,
    "num_heads": 2,
    "window": 5,
    "context": 6,
    "hidden_dim": 12,
    "residual_dim": 6,
    "dilation_cycle": 2,
}

#: Besides the small one: settings at the edge of their range, where rings have one slot, none, or are never full.
EDGES: dict[str, list[dict[str, Any]]] = {
    "mlp": [{"context": 1}, {"context": 2}, {"num_layers": 1}, {"batch_norm": True}],
    "wavenet": [{"num_layers": 1}, {"dilation_cycle": 10, "num_layers": 4}],
    "gpt": [{"window": 1}, {"window": 2, "num_layers": 1}, {"window": 32}],
}

#: (kind, changes) for every registered backbone, the small one and its edges.
BACKBONE_CASES = [
    pytest.param(kind, changes, id="-".join([kind, *(f"{name}{x}" for name, x in changes.items())]))
    for kind in BACKBONES
    for changes in [{}, *EDGES.get(kind, [])]
]

TOKENS = TokenSpec(sample_rate=8000, hop_length=80, num_codebooks=3, codebook_size=7)
FRAMES = FrameSpec(sample_rate=8000, hop_length=80, num_features=4)
#: Frames for the head "flow"; all others are for "density".
FLOW_FRAMES = FrameSpec(sample_rate=8000, hop_length=80, num_features=5)

#: (spec, pattern) for every pattern that fits.
SPEC_CASES = [
    *(pytest.param(TOKENS, kind, id=f"codes-{kind}") for kind in PATTERNS),
    pytest.param(FRAMES, "parallel", id="frames"),
    pytest.param(FLOW_FRAMES, "parallel", id="frames-flow"),
]


def tiny_backbone(kind: str, **changes: Any) -> Backbone:
    """The backbone registered as `kind` with small settings; float settings keep their defaults."""
    config = BACKBONES[kind].Config
    wholes = [field.name for field in dataclasses.fields(config) if field.type in (int, "int")]
    unknown = [name for name in wholes if name not in SMALL and name not in changes]
    if unknown:
        pytest.fail(
            f"backbone {kind!r} has the settings {', '.join(unknown)}: give each a small value in SMALL of "
            f"{__file__}, and settings at the edge of their range in EDGES",
            pytrace=False,
        )
    return BACKBONES[kind](config(**{**{name: SMALL[name] for name in wholes if name in SMALL}, **changes}))


#: Settings of each registered condition, by its kind.
CONDITION_SETTINGS: dict[str, dict[str, Any]] = {
    "label": {"values": ("Kick", "snare", "hi-hat")},
    "number": {"low": 60.0, "high": 180.0},
    "pitch": {},
    "melody": {},
    "loudness": {},
    "timbre": {},
    "frames": {"num_features": 4},
    "codes": {"num_codes": 3, "codebook_size": 5},
    "position": {},
    "text": {"max_bytes": 6, "encoder_dim": 8},
}


def tiny_conditioner(dim: int = SMALL["dim"]) -> Conditioner:
    """Every registered condition, by the name of its kind."""
    missing = set(CONDITIONS) - set(CONDITION_SETTINGS)
    if missing:
        pytest.fail(f"give settings for {', '.join(missing)} in CONDITION_SETTINGS of {__file__}", pytrace=False)
    parts = {kind: part(part.Config(**CONDITION_SETTINGS[kind]), dim) for kind, part in CONDITIONS.items()}
    return Conditioner(parts)


def random_conditions(batch_size: int, num_frames: int) -> dict[str, torch.Tensor]:
    """Values of each of them, that differ from frame to frame: (B, F, T) float32."""
    B, T = batch_size, num_frames
    found = {
        "label": torch.randint(3, (B, 1, T)).float(),
        "number": 60 + 120 * torch.rand(B, 1, T),
        "pitch": 127 * torch.rand(B, 1, T),
        "melody": torch.rand(B, 12, T),
        "loudness": -80 * torch.rand(B, 1, T),
        "timbre": torch.randn(B, 48, T),
        "frames": torch.randn(B, 4, T),
        "codes": torch.randint(5, (B, 3, T)).float(),
        "position": torch.randint(20, (B, 2, T)).float(),
        "text": torch.randint(97, 123, (B, 6, T)).float(),
    }
    found["text"][:, 4:, ::2] = torch.nan  # shorter texts
    assert found.keys() == CONDITIONS.keys(), "give values of a new condition here"
    return found


def tiny_model(spec: Spec, kind: str, pattern: str, conditions: bool = False, **changes: Any) -> SequenceModel:
    """A lively small model in float64 and in evaluation mode."""
    backbone = tiny_backbone(kind, **changes)
    conditioner = tiny_conditioner(backbone.dim) if conditions else None
    head = "flow" if spec == FLOW_FRAMES else "density"
    with patch.multiple(FlowMatchingHead, WIDTH=16, WAVES=3, BLOCKS=2):
        model = lively(SequenceModel(spec, backbone, PATTERNS[pattern](spec.num_rows), conditioner, head))
    for parameter in conditioner.parameters() if conditioner else ():  # or their sum would saturate gates
        parameter.data.mul_(0.5 / model.head.emphasis)
    if not spec.discrete:  # or frames fed back would grow without bound
        model.embed.linear.weight.data.mul_(0.3)
        (model.head.out if head == "flow" else model.head.linear).weight.data.mul_(0.3)
        model.head.fit([2 * torch.rand(spec.num_features, 5) - 1])  # a range that some draws leave
    return model.double().eval()


def random_input(spec: Spec, batch_size: int, num_frames: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Codes (B, K, T) int64, or frames (B, F, T) float64."""
    if spec.discrete:
        x = torch.randint(spec.codebook_size, (batch_size, spec.num_codebooks, num_frames))
    else:
        x = torch.randn(batch_size, spec.num_features, num_frames, dtype=torch.float64)
    return x.to(device)
