"""What `audiogen train --stages` asks of each stage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import parse_override
from ..errors import ConfigError
from ..frontends import FRONTENDS, read_config_file
from ..models.stages import Alignment
from ..runs.event_log import seconds_of_training
from ..runs.run import Run
from ..runs.training_config import TrainingConfig
from .plan import Flags, Plan


@dataclass(frozen=True)
class Stage:
    """A stage of a run: its name, and the options that apply to it."""

    name: str
    flags: Flags


def plan_stages(names: Sequence[str], frontends: Sequence[str | None], flags: Flags) -> list[Stage]:
    """Give each stage its options.

    A setting whose name begins with that of a stage applies to this stage alone: semantic.backbone.dim=128. `--from
    base` is for the last stage.

    Args:
        names: names of the stages.
        frontends: front-end of each stage, a name or a folder that holds one; None for that of a stage to resume.
        flags: the options that the user typed, for all stages.

    Raises:
        ConfigError: an option does not apply to stages.
    """
    if flags.frontend is not None:
        raise ConfigError("--frontend: --stages names the front-ends already; leave one of them out")
    stages = []
    for name, frontend in zip(names, frontends, strict=True):
        start = "scratch" if flags.start == "scratch" else flags.start if name == names[-1] else None
        own = own_settings(flags.overrides, name, names)
        stages.append(Stage(name, Flags(frontend, flags.backbone, own, start, flags.training, bool(stages))))
    return stages


def stage_names(frontends: Sequence[str]) -> list[str]:
    """Name each stage after the kind of its front-end: ["mel", "mel"] -> ["mel", "mel_2"].

    Raises:
        RunError: a folder holds no front-end.
    """
    names: list[str] = []
    for frontend in frontends:
        kind = frontend if frontend in FRONTENDS else str(read_config_file(frontend)["frontend"].get("kind"))
        places = [kind, *(f"{kind}_{place}" for place in range(2, len(frontends) + 1))]
        names.append(next(name for name in places if name not in names))
    return names


def own_settings(overrides: Sequence[str], name: str, names: Sequence[str]) -> list[str]:
    """Return the "a.b=1" assignments that apply to a stage, without its name.

    Args:
        overrides: assignments for all stages.
        name: name of the stage.
        names: names of all stages.

    Raises:
        ConfigError: a setting of the front-end does not name its stage.

    Example:
        >>> own_settings(["mel.training.seed=1", "training.steps=5"], "mel", ["melvq", "mel"])
        ['training.seed=1', 'training.steps=5']
    """
    own = []
    for assignment in overrides:
        path, _ = parse_override(assignment)
        if path[0] == "frontend":
            raise ConfigError(f"{'.'.join(path)}: begin with the name of the stage: {name}.{'.'.join(path)}=...")
        if path[0] not in names:
            own.append(assignment)
        elif path[0] == name:
            own.append(assignment.strip().removeprefix(f"{name}."))
    return own


def check_plans(plans: Sequence[Plan]) -> None:
    """Check that stages fit each other.

    Raises:
        ConfigError: the last one can't make sound, or the frame rate of one varies.
    """
    if not plans[-1].frontend.decodes:
        kind = plans[-1].frontend_kind
        raise ConfigError(
            f"--stages: {kind} only encodes, so it can't be the last one; add one that decodes: {kind},mel"
        )
    for earlier, later in zip(plans, plans[1:], strict=False):
        Alignment(earlier.spec, later.spec)


def budget_share(typed: Mapping[str, Any], num_stages: int, before: Run | None = None) -> dict[str, Any]:
    """Return the fields of TrainingConfig for one of `num_stages` stages.

    Args:
        typed: fields that the user typed, for all stages together.
        num_stages: number of stages.
        before: the stage before; what it has left of its minutes goes to the stages after it. Its budget is taken if
            none was typed.
    """
    rest = {name: value for name, value in typed.items() if name not in ("steps", "minutes")}
    if typed.get("steps") is not None:
        return {**rest, "steps": max(1, typed["steps"] // num_stages), "minutes": None}
    if before is None:
        minutes = typed.get("minutes") or TrainingConfig().minutes or 0
        return {**rest, "steps": None, "minutes": minutes / num_stages}
    budget = before.config.training
    if budget.minutes is None:
        return {**rest, "steps": budget.steps, "minutes": None}
    unused = max(0.0, budget.minutes - seconds_of_training(before.folder) / 60)
    return {**rest, "steps": None, "minutes": budget.minutes + unused / (num_stages - len(before.stages))}
