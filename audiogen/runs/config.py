"""config.json: the settings of a run."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..audio.stereo import StereoImage
from ..config import find, from_dict, part_from_dict, part_to_dict, to_dict, unknown_key
from ..errors import ConfigError
from ..frontends import FRONTENDS
from ..models.backbones import BACKBONES
from ..models.conditioning import CONDITIONS
from ..models.patterns import PATTERNS
from ..models.sampling import Sampling
from ..models.sequence_model import FRAME_HEADS
from .training_config import DataConfig, DistributedConfig, GuidanceConfig, TrainingConfig

FORMAT = 1


@dataclass(frozen=True)
class RunConfig:
    """The contents of config.json.

    A config of each part, the name of the pattern, how the model is trained, and how sound is drawn from it.

    Attributes:
        head: the head of a model over frames, a name in FRAME_HEADS.
        sampling: the run's default for generation; None where it has not been chosen: plain draws.
        stereo: the stereo image that generated sound gets; None for mono.
    """

    frontend: Any
    backbone: Any
    pattern: str
    data: DataConfig
    training: TrainingConfig
    conditions: Mapping[str, Any] = field(default_factory=dict)  # by name
    guidance: GuidanceConfig = GuidanceConfig()
    sampling: Sampling | None = None
    head: str = "density"
    distributed: DistributedConfig = DistributedConfig()
    stereo: StereoImage | None = None

    @property
    def num_channels(self) -> int:
        """Channels of the generated sound."""
        return 1 if self.stereo is None else 2

    def to_dict(self) -> dict[str, Any]:
        """Return the config as JSON values."""
        conditions = {name: part_to_dict(config, CONDITIONS) for name, config in self.conditions.items()}
        return {
            "format": FORMAT,
            "frontend": part_to_dict(self.frontend, FRONTENDS),
            "backbone": part_to_dict(self.backbone, BACKBONES),
            "pattern": {"kind": self.pattern},
            **({} if self.head == "density" else {"head": {"kind": self.head}}),
            "data": {name: value for name, value in to_dict(self.data).items() if value != []},
            "training": to_dict(self.training),
            **({"conditions": conditions, "guidance": to_dict(self.guidance)} if conditions else {}),
            **({} if self.sampling is None else {"sampling": to_dict(self.sampling)}),
            **({} if self.distributed == DistributedConfig() else {"distributed": to_dict(self.distributed)}),
            **({} if self.stereo is None else {"stereo": to_dict(self.stereo)}),
        }

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "RunConfig":
        """Build a config from JSON values, strictly.

        Raises:
            ConfigError: a key is missing, unknown or of the wrong type; names it.
        """
        groups = ("frontend", "backbone", "pattern", "data", "training")
        optional = ("head", "conditions", "guidance", "sampling", "distributed", "stereo")
        for key in values:
            if key not in ("format", *groups, *optional):
                raise unknown_key(key, (*groups, *optional))
        for key in groups:
            if not isinstance(values.get(key), dict):
                raise ConfigError(f"{key}: this group of settings is missing")
        named = {"pattern": PATTERNS, "head": FRAME_HEADS}
        names = {group: values.get(group, {"kind": "density"}) for group in named}
        for group, registry in named.items():
            if not isinstance(names[group], dict):
                raise ConfigError(f"{group}: expected its kind")
            for key in names[group]:
                if key != "kind":
                    raise unknown_key(f"{group}.{key}", [f"{group}.kind"])
            find(names[group].get("kind"), registry, f"{group}.kind")
        conditions = values.get("conditions", {})
        if not isinstance(conditions, dict):
            raise ConfigError("conditions: expected a condition by each name")
        for name in conditions:
            check_name(name)
        return RunConfig(
            part_from_dict(values["frontend"], FRONTENDS, "frontend"),
            part_from_dict(values["backbone"], BACKBONES, "backbone"),
            names["pattern"]["kind"],
            from_dict(DataConfig, values["data"], "data"),
            from_dict(TrainingConfig, values["training"], "training"),
            {name: part_from_dict(part, CONDITIONS, f"conditions.{name}") for name, part in conditions.items()},
            from_dict(GuidanceConfig, values.get("guidance", {}), "guidance"),
            from_dict(Sampling, values["sampling"], "sampling") if values.get("sampling", {}) != {} else None,
            names["head"]["kind"],
            from_dict(DistributedConfig, values.get("distributed", {}), "distributed"),
            from_dict(StereoImage, values["stereo"], "stereo") if "stereo" in values else None,
        )


def check_name(name: Any, where: str = "conditions") -> None:
    """Raise a ConfigError unless a condition may have this name, which --label, --set and files of weights can hold.

    The same holds for the names of stages, which are those of conditions and folders.
    """
    if not isinstance(name, str) or not re.fullmatch(r"\w{1,64}", name):
        raise ConfigError(f"{where}: {name!r} is no name; use letters, digits and underscores, 64 at most")
