"""Command-line side of conditions: find labels, and choose which to learn."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import override, parse_override, part_from_dict, part_to_dict
from ..data import (
    EncodedCache,
    Index,
    Labels,
    Split,
    choose_conditions,
    describe_labels,
    files_of,
    find_labels,
    is_descriptor,
    read_labels,
    stage_config,
    stride_of,
)
from ..errors import ConfigError
from ..models import t5
from ..models.conditioning import CONDITIONS, Label, Number, Pitch, Position, Text, Timbre
from ..runs.build import build_conditioner
from ..runs.config import RunConfig, check_name
from ..spec import Spec
from ..utils.text import listed
from .plan import Plan

log = logging.getLogger("audiogen")

#: The condition of a stage that follows another one, unless there is a label of this name.
TIMBRE = "timbre"


def labels_of(source: Index | EncodedCache, pattern: str | None = None, corpora: Sequence[str] = ()) -> Labels:
    """Find the labels of a folder, or read those stored in a cache.

    Args:
        source: the files; of several folders, all of them.
        pattern: pattern over file names.
        corpora: names of the folders, if there are several.

    Raises:
        DataError: a file of labels can't be read; the message names file, row and column.
        ConfigError: the pattern is malformed or matches no file.
    """
    if isinstance(source, EncodedCache):
        labels = read_labels(source.folder)
        return labels if pattern is None else find_labels(source.index, pattern).over(labels)
    if not corpora:
        return find_labels(source, pattern)
    found, errors = Labels(), []
    for name in corpora:  # each may have a metadata.csv of its own
        try:
            found = found.over(find_labels(files_of(source, name), pattern))
        except ConfigError as error:  # its names are of another pattern
            errors.append(error)
            found = found.over(find_labels(files_of(source, name)))
    if len(errors) == len(corpora):
        raise errors[0]
    return found


def with_conditions(
    plan: Plan, labels: Labels, sides: Split, asked: Sequence[str] | None, overrides: Sequence[str] = ()
) -> Plan:
    """Add conditions to a plan, and log them.

    Args:
        plan: a plan without conditions.
        labels: the labels of the files.
        sides: the split of the files.
        asked: names given by the user, or ["none"]; None for all labels that can be learned.
        overrides: "a.b=1" assignments, such as conditions.text.max_bytes=64; those of other parts are ignored.

    Raises:
        ConfigError: a name or a setting is unknown, or can't be learned, or not with this front-end.
    """
    chosen = choose_conditions(labels, sides, asked)
    chosen = _overridden(chosen, overrides)
    for name, config in chosen.items():
        check_name(name)
        kind = part_to_dict(config, CONDITIONS)["kind"]
        if is_descriptor(kind):
            stride_of(CONDITIONS[kind], plan.spec)
    if chosen:
        log.info(
            "conditions from %s: %s (--condition none: no conditions)", labels.source or "the files", describe(chosen)
        )
    for column in describe_labels(labels, sides) if asked is None else ():
        if column.name not in chosen:
            log.info("label %s is not learned: %s", column.name, column.reason)
    plan = replace(plan, config=replace(plan.config, conditions=chosen))
    if getattr(plan.config.backbone, "cross_attention", False):
        build_conditioner(plan.config, plan.config.backbone.dim)  # refuses conditions that do not fit
    return plan


def _overridden(chosen: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply the assignments of settings of conditions, and complete those that follow from others."""
    parts = {name: part_to_dict(config, CONDITIONS) for name, config in chosen.items()}
    own = [setting for setting in overrides if parse_override(setting)[0][0] == "conditions"]
    parts = override({"conditions": parts}, own)["conditions"]
    for settings in parts.values():
        if settings.get("encoder", "bytes") != "bytes":
            settings["encoder_dim"] = t5.width(settings["encoder"])
    return {name: part_from_dict(settings, CONDITIONS, f"conditions.{name}") for name, settings in parts.items()}


def describe(conditions: Mapping[str, Any]) -> str:
    """Describe the conditions of a run in words."""
    words = []
    for name, config in conditions.items():
        values = {
            Label.Config: lambda c: f" ({listed(c.values, 10)})",
            Number.Config: lambda c: f" ({c.low:g} to {c.high:g})",
            Pitch.Config: lambda c: f" (pitches from {c.low:g} to {c.high:g})",
            Position.Config: lambda c: " (where a file begins and ends)",
            Text.Config: lambda c: " (captions)",
        }
        words.append(name + values.get(type(config), lambda c: "")(config))
    return ", ".join(words)


def with_stage(plan: Plan, before: str, spec: Spec) -> Plan:
    """Add conditions to a plan: the codes or frames, of this spec, of the stage `before`, and the timbre.

    The codes say what is said or played; the timbre says by which voice or instrument.

    Raises:
        ConfigError: a label has the same name, or the frame rate of one of them varies.
    """
    if before in plan.config.conditions:
        raise ConfigError(f"--condition: {before} is the name of a stage; choose another name for the label")
    timbre = {} if TIMBRE in plan.config.conditions else {TIMBRE: Timbre.Config()}
    conditions = {**plan.config.conditions, **timbre, before: stage_config(spec, plan.spec)}
    return replace(plan, config=replace(plan.config, conditions=conditions))


def check_same_conditions(
    out: Path, saved: RunConfig, asked: Sequence[str] | None, pattern: str | None, before: str | None = None
) -> None:
    """Check that a run is resumed with the conditions that it was started with, apart from the stage `before`.

    Raises:
        ConfigError: the conditions differ, or a pattern is given.
    """
    of_stage = set() if before is None else {before, TIMBRE}
    names = [name for name in saved.conditions if name not in of_stage]
    if asked is not None and sorted(set(asked) - {"none", *of_stage}) != sorted(names):
        begun = ", ".join(names) or "none"
        raise ConfigError(f"--condition: {out} was started with {begun}, and resuming can't change it; leave it out")
    if pattern is not None:
        raise ConfigError(f"--label-pattern: {out} already has its labels; leave it out")
