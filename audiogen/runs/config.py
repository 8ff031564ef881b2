"""config.json: what a run is made from."""

from dataclasses import dataclass
from typing import Any

from ..config import find, from_dict, part_from_dict, part_to_dict, to_dict, unknown_key
from ..errors import ConfigError
from ..frontends import FRONTENDS
from ..models.backbones import BACKBONES
from ..models.patterns import PATTERNS
from .training_config import DataConfig, TrainingConfig

FORMAT = 1


@dataclass(frozen=True)
class RunConfig:
    """config.json: a config of each part, the pattern by name, and how it is trained."""

    frontend: Any
    backbone: Any
    pattern: str
    data: DataConfig
    training: TrainingConfig

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "frontend": part_to_dict(self.frontend, FRONTENDS),
            "backbone": part_to_dict(self.backbone, BACKBONES),
            "pattern": {"kind": self.pattern},
            "data": to_dict(self.data),
            "training": to_dict(self.training),
        }

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "RunConfig":
        """Strict: a missing, unknown or ill-typed key is a ConfigError that names it."""
        groups = ("frontend", "backbone", "pattern", "data", "training")
        for key in values:
            if key not in ("format", *groups):
                raise unknown_key(key, groups)
        for key in groups:
            if not isinstance(values.get(key), dict):
                raise ConfigError(f"{key}: this group of settings is missing")
        for key in values["pattern"]:
            if key != "kind":
                raise unknown_key(f"pattern.{key}", ["pattern.kind"])
        pattern = values["pattern"].get("kind")
        find(pattern, PATTERNS, "pattern.kind")
        return RunConfig(
            part_from_dict(values["frontend"], FRONTENDS, "frontend"),
            part_from_dict(values["backbone"], BACKBONES, "backbone"),
            pattern,
            from_dict(DataConfig, values["data"], "data"),
            from_dict(TrainingConfig, values["training"], "training"),
        )
