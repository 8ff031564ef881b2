"""Plan: the front-end, spec, config and blank model of a command, built once from what the user typed."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..config import find, from_dict, override, parse_override, part_to_dict, to_dict
from ..data import (
    EncodedCache,
    Index,
    Split,
    corpus_names,
    default_rate,
    fit_to,
    is_cache,
    join_caches,
    long_enough,
    scan,
)
from ..data.journal import JOURNAL_FILE
from ..errors import ConfigError
from ..frontends import FRONTENDS, Frontend, frontend_to_dict, load_frontend
from ..models.backbones import BACKBONES, Backbone
from ..models.patterns import PATTERNS
from ..models.sequence_model import SequenceModel
from ..runs.build import blank_model
from ..runs.config import RunConfig
from ..runs.outlook import Outlook
from ..runs.start import FREE, base_frontend, fine_tuning, is_base_frontend
from ..runs.training_config import TrainingConfig
from ..spec import Spec
from ..utils.remote import RemotePath, as_folder
from .defaults import BACKBONE, FRONTEND, frontend_settings

log = logging.getLogger("audiogen")

#: The run's own guidance with a flow-matching head. On spoken digits, 99.5 % are heard as asked instead of 92 %, and
#: the sounds are as varied and as near to the recordings (docs/benchmarks.md).
FLOW_GUIDANCE = 2.0
#: The same of a stage that is given codes: they tell a little of their speaker, which guidance brings out. Of spoken
#: digits in the voice of another prompt, 69 % are heard in the prompt's voice, instead of 58 % with a scale of 2, and
#: 57 % as the same digit, instead of 61 % (ten minutes of training).
STAGE_GUIDANCE = 1.5


@dataclass(frozen=True)
class Flags:
    """The options that the user typed.

    Attributes:
        frontend: name of a front-end, or a folder that holds one; None for the default.
        backbone: name of a backbone; None for the default.
        overrides: "a.b=1" assignments, which take precedence over everything else.
        start: "base" or "scratch"; None for the base model if the other options allow it.
        training: fields of TrainingConfig that have their own options (steps, minutes, seed).
        after_stage: whether the model is conditioned on the codes of a stage before.
    """

    frontend: str | None = None
    backbone: str | None = None
    overrides: Sequence[str] = ()
    start: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    after_stage: bool = False


@dataclass(frozen=True)
class Plan:
    """A front-end and the config of a run with it, from which the spec and a blank model follow."""

    frontend: Frontend
    config: RunConfig

    @property
    def spec(self) -> Spec:
        """The front-end's spec."""
        return self.frontend.spec

    @property
    def frontend_kind(self) -> str:
        """Name of the front-end in the registry."""
        return part_to_dict(self.config.frontend, FRONTENDS)["kind"]

    @property
    def backbone_kind(self) -> str:
        """Name of the backbone in the registry."""
        return part_to_dict(self.config.backbone, BACKBONES)["kind"]

    @cached_property
    def model(self) -> SequenceModel:
        """The model with uninitialised weights, whose memory is not touched.

        Raises:
            ConfigError: the parts do not fit each other.
        """
        return blank_model(self.config, self.spec)

    @property
    def outlook(self) -> Outlook:
        """How training splits and encodes a folder."""
        frames_per_second = self.spec.sample_rate / self.frontend.longest_frame
        gap_seconds = self.model.receptive_frames / frames_per_second
        data = self.config.data
        return Outlook(self.spec, self.config.training.crop_frames, data.held_out, gap_seconds, data.corpora)

    @classmethod
    def draft(cls, flags: Flags) -> "Plan":
        """Make a preliminary plan, to check the settings before reading a folder, which may take minutes.

        The front-end has the highest default rate and no published weights; `for_source` completes both.

        Raises:
            ConfigError: a setting is wrong.
        """
        name, settings = _frontend(flags)
        if name == FRONTEND and starts_from_base(flags):
            frontend = base_frontend(**{"sample_rate": FRONTENDS[name].highest_default_rate, **settings})
        elif name in FRONTENDS:
            part = FRONTENDS[name]
            frontend = part(from_dict(part.Config, part.at_rate(settings, part.highest_default_rate), "frontend"))
        else:
            frontend = load_frontend(name, **settings)
        plan = cls.over(frontend, flags)
        _ = plan.model
        return plan

    @classmethod
    def for_source(cls, source: Index | EncodedCache, flags: Flags = Flags(), draft: "Plan | None" = None) -> "Plan":
        """Plan for the sample rate and duration of a folder, or for a cache and its front-end.

        Args:
            source: an index of a folder, or a cache.
            flags: the options that the user typed.
            draft: a draft with the same flags, whose front-end is reused if it is the right one.

        Raises:
            ConfigError: a setting is wrong, or the flags name a front-end although the source is a cache.
        """
        name, settings = _frontend(flags)
        if isinstance(source, EncodedCache):
            if flags.frontend is not None or settings:
                raise ConfigError(
                    f"{source.folder}: is encoded already, which fixes the front-end; leave out --frontend and "
                    "--set frontend...., or give the folder of sound files"
                )
            frontend = source.frontend()
        elif name == FRONTEND and starts_from_base(flags):
            frontend = base_frontend(**{"sample_rate": default_rate(source, name), **settings})
        elif name not in FRONTENDS:
            frontend = load_frontend(name, **settings) if draft is None else draft.frontend
        else:
            part = FRONTENDS[name]
            config = from_dict(part.Config, part.at_rate(settings, default_rate(source, name)), "frontend")
            frontend = draft.frontend if draft is not None and draft.frontend.config == config else part(config)
            frontend.load_pretrained()
        index = source.index if isinstance(source, EncodedCache) else source
        # Infinite if the rate varies, since only encoding would tell.
        num_codes = index.seconds * (frontend.spec.frame_rate or math.inf) * frontend.spec.num_rows
        plan = cls.over(frontend.eval(), flags, num_codes)
        return draft if draft is not None and draft == plan else plan

    @classmethod
    def over(cls, frontend: Frontend, flags: Flags = Flags(), num_codes: float = math.inf) -> "Plan":
        """Plan a run with an existing front-end. Options that were not typed get the defaults of each part.

        Args:
            frontend: the front-end to use.
            flags: the options that the user typed; those of the front-end are ignored.
            num_codes: approximate number of codes to train on.

        Raises:
            ConfigError: an override names an unknown key or has the wrong type.
        """
        kind, spec = flags.backbone or BACKBONE, frontend.spec
        part = find(kind, BACKBONES, "backbone.kind")
        from_base = starts_from_base(flags) and is_base_frontend(frontend)
        if flags.start == "base" and not from_base:
            raise ConfigError("--from base: the base model does not fit this front-end; train with --from scratch")
        config, head, training = fine_tuning() if from_base else _from_scratch(part, frontend, num_codes)
        values = {
            "frontend": frontend_to_dict(frontend),
            "backbone": {"kind": kind, **to_dict(config)},
            "pattern": {"kind": "delay" if spec.num_rows > 1 else "parallel"},
            "head": {"kind": head},
            "data": {},
            "training": {**training, **flags.training},
            "guidance": {"scale": STAGE_GUIDANCE if flags.after_stage else FLOW_GUIDANCE} if head == "flow" else {},
            "sampling": {},
            "distributed": {},
        }
        _, overrides = frontend_settings(flags.overrides)
        # Which conditions there are is known when the labels are: see `with_conditions`.
        overrides = [setting for setting in overrides if parse_override(setting)[0][0] != "conditions"]
        typed = override(values, overrides)
        crop_frames = from_dict(TrainingConfig, typed["training"], "training").crop_frames
        pattern = find(typed["pattern"]["kind"], PATTERNS, "pattern.kind")(spec.num_rows)
        values["backbone"] |= to_dict(part.for_crops(config, pattern.num_steps(crop_frames)))
        return cls(frontend, RunConfig.from_dict(override(values, overrides)))

    def over_corpora(self, names: Sequence[str]) -> "Plan":
        """Plan for several folders, by their names; for a single one if there are none.

        Raises:
            ConfigError: the weights do not fit the folders.
        """
        data = self.config.data
        if data.corpora:
            raise ConfigError("data.corpora: follows from the folders; leave it out")
        if data.weights and len(data.weights) != len(names):
            raise ConfigError(
                f"data.weights: has {len(data.weights)} weights for {len(names) or 1} folders; give one for each of "
                "several folders, or leave it out"
            )
        return replace(self, config=replace(self.config, data=replace(data, corpora=tuple(names))))

    def split(self, index: Index, threshold: bool = True) -> Split:
        """Split a folder by content, or each of several. A single file is cut, with a gap of the receptive field."""
        return self.outlook.split(index, threshold)

    def fit(self, index: Index) -> None:
        """Fit the front-end to the training files alone, unless it is fitted already."""
        if not self.frontend.fitted:
            log.info("fitting the front-end to the training files")
            index = long_enough(index, self.spec)
            fit_to(self.frontend, index, self.split(index))

    def encode(self, source: Index | EncodedCache, out: Path) -> EncodedCache:
        """Fit the front-end and encode a folder into `out`/cache; return a source that is a cache unchanged."""
        if isinstance(source, EncodedCache):
            return source
        self.fit(source)
        cache = EncodedCache.open_or_build(long_enough(source, self.spec), self.frontend, out / "cache")
        return report_left_out(cache, source)


def open_source(
    folders: str | Path | Sequence[Path], strict: bool = False, out: Path | None = None
) -> Index | EncodedCache:
    """Open a cache, or scan a folder and log a warning for each file that is left out or odd.

    Args:
        folders: a cache or a folder of sound files; or several of either kind.
        strict: raise an error for such files.
        out: folder of the run or cache: several caches are joined there, and a scan that was killed continues.

    Raises:
        ConfigError: some are caches and others folders of sound files.
        DataError: a folder has no sound, or folders overlap.
        AudioReadError: with `strict`, a file can't be read or is odd.
        CacheError: a cache is damaged, or caches were made by different front-ends.
    """
    several = [folders] if isinstance(folders, str | Path | RemotePath) else folders
    folders = [as_folder(folder) for folder in several]
    if all_caches(folders):
        names, caches = corpus_names(folders), [EncodedCache.open(folder) for folder in folders]
        return join_caches(caches, names, (out or Path()) / "cache") if names else caches[0]
    index = scan(
        folders if len(folders) > 1 else folders[0], strict, journal=None if out is None else out / JOURNAL_FILE
    )
    for file in index.rejected:
        log.warning("left out: %s: %s", file.path, file.reason)
    for file in index.files:
        if file.note:
            log.warning("note: %s: %s", file.path, file.note)
    index.require_files()
    return index


def all_caches(folders: Sequence[Path]) -> bool:
    """Return whether folders are caches rather than folders of sound files.

    Raises:
        ConfigError: some are, others are not.
    """
    cached = [is_cache(folder) for folder in folders]
    if any(cached) and not all(cached):
        raise ConfigError(
            f"{folders[cached.index(True)]}: is a cache, but {folders[cached.index(False)]} is a folder of sound "
            "files; give folders only, or caches only"
        )
    return all(cached)


def report_left_out(cache: EncodedCache, source: Index) -> EncodedCache:
    """Log a warning for each file that scanning accepted but encoding left out. Return the cache."""
    known = {file.path for file in source.rejected}
    for file in cache.index.rejected:
        if file.path not in known:
            log.warning("left out: %s: %s", file.path, file.reason)
    return cache


def starts_from_base(flags: Flags) -> bool:
    """Tell whether the options of a command allow a start from the base model; the front-end is checked later.

    Raises:
        ConfigError: --from base, with options that the base model does not allow.
    """
    typed = [".".join(parse_override(assignment)[0]) for assignment in flags.overrides]
    other = [
        key for key in typed if key.split(".")[0] in ("frontend", "backbone", "pattern", "head") and key not in FREE
    ]
    if flags.frontend in FRONTENDS and flags.frontend != FRONTEND:
        other.append("--frontend")
    if flags.backbone not in (None, BACKBONE):
        other.append("--backbone")
    if flags.start == "base" and other:
        raise ConfigError(f"{other[0]}: fixed by the base model; leave it out, or train with --from scratch")
    return flags.start != "scratch" and not other


def _from_scratch(backbone: type[Backbone], frontend: Frontend, num_codes: float) -> tuple[Any, str, dict[str, Any]]:
    """Return the backbone's config, the head and the training settings for new weights."""
    config, training = backbone.defaults(frontend.spec, num_codes)
    return config, "flow" if getattr(frontend, "stack", 1) > 1 else "density", training


def _frontend(flags: Flags) -> tuple[str, dict[str, Any]]:
    """Return the name and the settings of the front-end."""
    settings, _ = frontend_settings(flags.overrides)
    return flags.frontend or FRONTEND, settings
