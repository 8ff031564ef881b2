"""Dataclass <-> dict <-> "a.b=1", strictly."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiogen.config import from_dict, override, parse_override, part_from_dict, part_to_dict, to_dict
from audiogen.errors import ConfigError
from audiogen.models.backbones import BACKBONES


@dataclass(frozen=True)
class Inner:
    depth: int = 3
    ratios: tuple[int, ...] = (8, 5)


@dataclass(frozen=True)
class Outer:
    name: str
    rate: float = 0.5
    steps: int | None = None
    fast: bool = False
    mode: Literal["mean", "max"] = "mean"
    span: tuple[int, float] = (1, 2.0)
    inner: Inner = field(default_factory=Inner)


finite = st.floats(allow_nan=False, allow_infinity=False)
outers = st.builds(
    Outer,
    name=st.text("aä-", max_size=4),
    rate=finite,
    steps=st.none() | st.integers(),
    fast=st.booleans(),
    mode=st.sampled_from(["mean", "max"]),
    span=st.tuples(st.integers(), finite),
    inner=st.builds(Inner, depth=st.integers(), ratios=st.lists(st.integers()).map(tuple)),
)


@given(config=outers)
def test_a_config_survives_json(config):
    """Guards against tuples that come back as lists, nested configs that come back as dicts, and None that comes back
    unset."""
    again = from_dict(Outer, json.loads(json.dumps(to_dict(config))))
    assert again == config
    assert type(again.inner) is Inner
    assert type(again.inner.ratios) is tuple


@pytest.mark.parametrize("kind", BACKBONES)
def test_every_backbones_config_survives_json(kind):
    """Guards against a setting whose type the strict reader does not know."""
    config = BACKBONES[kind].Config()
    values = json.loads(json.dumps(part_to_dict(config, BACKBONES)))
    assert list(values)[0] == "kind"
    assert values["kind"] == kind
    assert part_from_dict(values, BACKBONES, "backbone") == config


@pytest.mark.parametrize(
    "values, message",
    [
        ({"name": "x", "rat": 1.0}, r"^rat: unknown setting, did you mean rate\?"),
        ({"name": "x", "inner": {"dept": 1}}, r"^inner\.dept: unknown setting, did you mean inner\.depth\?"),
        ({"name": "x", "zzzzz": 1}, r"^zzzzz: unknown setting; valid are name, rate"),
        ({}, r"^name: a value is needed"),
        ({"name": 5}, r"^name: expected str, got 5"),
        ({"name": "x", "rate": "fast"}, r"^rate: expected float, got 'fast'"),
        ({"name": "x", "rate": True}, r"^rate: expected float, got True"),
        ({"name": "x", "rate": None}, r"^rate: expected float, got None"),
        ({"name": "x", "rate": math.nan}, r"^rate: .*nan"),
        ({"name": "x", "rate": math.inf}, r"^rate: .*inf"),
        ({"name": "x", "rate": 10**400}, r"^rate: expected float"),
        ({"name": "x", "steps": 1.0}, r"^steps: expected int or null, got 1\.0"),
        ({"name": "x", "steps": True}, r"^steps: expected int or null, got True"),
        ({"name": "x", "fast": 1}, r"^fast: expected bool, got 1"),
        ({"name": "x", "mode": "min"}, r"^mode: expected one of mean, max, got 'min'"),
        ({"name": "x", "mode": []}, r"^mode: expected one of mean, max, got \[\]"),
        ({"name": "x", "span": [1]}, r"^span: expected tuple\[int, float\], got \[1\]"),
        ({"name": "x", "span": "ab"}, r"^span: expected"),
        ({"name": "x", "inner": {"ratios": [1, "2"]}}, r"^inner\.ratios: expected int, got '2'"),
        ({"name": "x", "inner": 3}, r"^inner: expected settings by name, got 3"),
        ([], r"Outer: expected settings by name"),
        ("name", r"Outer: expected settings by name"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(values, message):
    """Guards against a typing mistake that silently trains with the default, and messages that do not say which key."""
    with pytest.raises(ConfigError, match=message):
        from_dict(Outer, values)


def test_where_is_put_before_every_key():
    """Guards against "dim: expected int" when three parts have a dim."""
    for values, key in (({"dim": "x"}, "backbone.dim"), ({"dmi": 1}, "backbone.dmi")):
        with pytest.raises(ConfigError, match=f"^{key}: "):
            part_from_dict({"kind": "gpt", **values}, BACKBONES, "backbone")


def test_whole_numbers_are_taken_for_floats_and_lists_for_tuples():
    """Guards against a refusal of what JSON can't say otherwise."""
    config = from_dict(Outer, {"name": "x", "rate": 1, "span": [2, 3]})
    assert (config.rate, config.span) == (1.0, (2, 3.0))
    assert type(config.rate) is type(config.span[1]) is float


@pytest.mark.parametrize(
    "values, message",
    [
        ({"kind": "gptt"}, r"backbone: there is no 'gptt', did you mean gpt\?; choose one of bigram"),
        ({"kind": ["gpt"]}, r"backbone: there is no \['gpt'\]"),
        ({"kind": None}, "backbone: there is no None"),
        ({"dim": 3}, 'backbone: a "kind" is needed, one of bigram'),
        (["kind"], 'backbone: a "kind" is needed'),
        ({"kind": "bigram", "window": 3}, r"backbone\.window: unknown setting"),
    ],
)
def test_unknown_parts_are_refused(values, message):
    """Guards against code chosen by a string in a file from elsewhere."""
    with pytest.raises(ConfigError, match=message):
        part_from_dict(values, BACKBONES, "backbone")


def test_a_config_of_no_part_is_refused():
    """Guards against a run that is saved but can't be loaded."""
    with pytest.raises(ConfigError, match="Inner belongs to none of bigram"):
        part_to_dict(Inner(), BACKBONES)


@pytest.mark.parametrize(
    "text, path, value",
    [
        ("a=1", ["a"], 1),
        ("a.b.c=1e-3", ["a", "b", "c"], 0.001),
        ("a=true", ["a"], True),
        ("a=null", ["a"], None),
        ("a=[1, 2]", ["a"], [1, 2]),
        ("a=mean", ["a"], "mean"),
        ('a="1"', ["a"], "1"),
        ("a=x=y", ["a"], "x=y"),
        ("a=", ["a"], ""),
        (" a = 2 ", ["a"], 2),
        ("a=folder/with space", ["a"], "folder/with space"),
    ],
)
def test_overrides_are_read_as_json_or_else_as_text(text, path, value):
    """Guards against numbers kept as text, and values cut at a second equals sign."""
    got_path, got = parse_override(text)
    assert (got_path, got) == (path, value)
    assert type(got) is type(value)


@pytest.mark.parametrize("text", ["a", "", "=1", "a..b=1", ".a=1", "a.=1"])
def test_overrides_of_another_form_are_refused(text):
    """Guards against an assignment to a setting without a name."""
    with pytest.raises(ConfigError, match="name=value"):
        parse_override(text)


def test_overrides_are_laid_over_a_copy():
    """Guards against an override that changes the defaults of the next run, and one that wipes its neighbours."""
    values = {"backbone": {"kind": "gpt", "dim": 1}, "steps": 2}
    result = override(values, ["backbone.dim=128", "steps=3", "steps=4", "backbone.window=9"])
    assert result == {"backbone": {"kind": "gpt", "dim": 128, "window": 9}, "steps": 4}
    assert values == {"backbone": {"kind": "gpt", "dim": 1}, "steps": 2}


@pytest.mark.parametrize(
    "assignment, message",
    [
        ("bacbone.dim=1", r"bacbone\.dim: unknown setting, did you mean backbone"),
        ("steps.more=1", r"steps\.more: unknown setting"),
        ("backbone=gpt", r"backbone: is a group of settings; set one of them, such as backbone\.kind="),
    ],
)
def test_overrides_of_what_is_not_there_are_refused(assignment, message):
    """Guards against a path made up on the way: a typing mistake in the name of a group would be lost."""
    with pytest.raises(ConfigError, match=message):
        override({"backbone": {"kind": "gpt", "dim": 1}, "steps": 2}, [assignment])


def test_every_setting_of_a_backbone_has_a_default():
    """Guards against a part that `audiogen train` can't build from its name alone."""
    for kind, part in BACKBONES.items():
        fields = dataclasses.fields(part.Config)
        assert all(f.default is not dataclasses.MISSING for f in fields), kind
        assert part.Config.__dataclass_params__.frozen, kind
