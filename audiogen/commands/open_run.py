"""Open a run, or start one: what it is trained with, checked before the slow encoding."""

import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ..data import (
    EncodedCache,
    Index,
    Labels,
    Part,
    Split,
    corpus_names,
    find_labels,
    is_cache,
    long_enough,
    open_descriptors,
    read_labels,
    stereo_image,
)
from ..data.journal import JOURNAL_FILE
from ..distributed import World
from ..errors import ConfigError, RunError
from ..frontends import load_frontend
from ..runs.folder import holds_run, read_config, read_split, require_no_run, require_own_folders, save_split, start_run
from ..runs.run import Run
from ..training.checkpoint import list_checkpoints
from ..utils.files import atomic_write_json, check_is_no_file
from .conditions import check_same_conditions, labels_of, with_conditions, with_stage
from .defaults import frontend_settings
from .plan import Flags, Plan, all_caches, open_source
from .resume import check_same_frontend, contents, other_files, resumed_config, same_source
from .stages import budget_share

log = logging.getLogger("audiogen")


@dataclass(frozen=True)
class Typed:
    """What was typed for a run, or for a stage of one.

    Attributes:
        folders: folder of sound files, or a cache; or several.
        flags: options of the plan.
        resume, strict, condition, label_pattern: as in `train`.
        source: the files, if they are scanned already.
        before: the stage before; None for none.
        num_stages: number of stages, which share the budget.
    """

    folders: Sequence[Path]
    flags: Flags
    resume: bool
    strict: bool
    condition: Sequence[str] | None
    label_pattern: str | None
    source: Index | EncodedCache | None = None
    before: Run | None = None
    num_stages: int = 1

    @property
    def corpora(self) -> tuple[str, ...]:
        """Names of the folders, if there are several."""
        return corpus_names(self.folders)

    def open(self, out: Path) -> Index | EncodedCache:
        """Scan or open the files."""
        return self.source or open_source(self.folders, self.strict, out)


class Opened(NamedTuple):
    """What a run is trained with.

    Attributes:
        plan: its front-end and config.
        cache: the encoded files.
        sides: their split.
        recordings: the sound files; None if they are not at hand.
        before: the stage before; None for none.
    """

    plan: Plan
    cache: EncodedCache
    sides: Split
    recordings: Index | None = None
    before: Run | None = None


def open_run(typed: Typed, out: Path, world: World, device: torch.device) -> Opened:
    """Open the run in `out`, or start a new one."""
    require_own_folders(out)
    if not typed.resume:
        require_no_run(out)
    start_or_resume = _resume if holds_run(out) else _start
    if typed.resume and start_or_resume is _start:
        log.info("%s: holds no run yet; starting a new one", out)
    return start_or_resume(typed, out, world, device)


def _resume(typed: Typed, out: Path, world: World, device: torch.device) -> Opened:
    """Open the run in `out`, and check that it was started with the same files and settings."""
    saved, flags, before = read_config(out), typed.flags, typed.before
    plan = Plan(load_frontend(out).to(device), saved)
    settings, rest = frontend_settings(flags.overrides)
    check_same_frontend(out, plan.frontend, flags.frontend, settings)
    check_same_conditions(out, saved, typed.condition, typed.label_pattern, before and before.name)
    budget = dict(flags.training)
    if typed.num_stages > 1 and "steps" in budget:
        budget = budget_share(budget, typed.num_stages)
    plan = replace(plan, config=resumed_config(saved, out, flags.backbone, budget, rest))
    check_ranks(plan, world)
    if set(typed.corpora) != set(saved.data.corpora):
        begun = ", ".join(saved.data.corpora) or "a single folder"
        raise RunError(f"{out}: was started with {begun}; give the same, or train again into another folder")
    source = typed.open(out)
    cache = same_source(source, plan.frontend, out)
    (out / JOURNAL_FILE).unlink(missing_ok=True)
    sides, begun = plan.split(cache.index), contents(read_split(out))
    if contents(sides) != begun:
        sides = plan.split(cache.index, threshold=False)  # a run that an older version began
    if contents(sides) != begun:
        raise other_files(cache.folder if isinstance(source, EncodedCache) else source.folder, out)
    if plan.config != saved:
        atomic_write_json(out / "config.json", plan.config.to_dict())
    return _with_descriptors(Opened(plan, cache, sides, source if isinstance(source, Index) else None, before))


def _start(typed: Typed, out: Path, world: World, device: torch.device) -> Opened:
    """Scan and encode the folder, split it, and write what resuming needs. Errors come before the slow encoding."""
    if list_checkpoints(out / "checkpoints"):
        raise RunError(
            f"{out}: holds checkpoints without the config.json that they belong to; restore it, or choose another --out"
        )
    flags, before = typed.flags, typed.before
    if typed.num_stages > 1:
        flags = replace(flags, training=budget_share(flags.training, typed.num_stages, before))
    if world.size > 1:  # as is usual, each process adds a batch to the step, unless their number is typed
        flags = replace(flags, training={"accumulation": world.size, **flags.training})
    draft = None if all_caches(typed.folders) else Plan.draft(flags)
    if draft is not None:
        check_ranks(draft, world)
        draft.over_corpora(typed.corpora)
    source = typed.open(out)
    plan = Plan.for_source(source, flags, draft).over_corpora(typed.corpora)
    check_ranks(plan, world)
    labels = _labels(typed, source)
    index = source.index if isinstance(source, EncodedCache) else long_enough(source, plan.spec)
    plan = with_conditions(plan, labels, plan.split(index), typed.condition, flags.overrides)
    if before is not None:
        plan = with_stage(plan, before.name, before.frontend.spec)
    plan.frontend.to(device)
    cache = plan.encode(source, out)
    sides = plan.split(cache.index)
    if isinstance(source, Index) and plan.frontend.decodes:
        parts = named(sides.train, source)
        plan = replace(plan, config=replace(plan.config, stereo=stereo_image(source.folder, parts)))
    save_split(out, sides, cache.folder)
    if plan.config.conditions:
        labels.save(out)
    start_run(out, plan.config, plan.frontend)
    (out / JOURNAL_FILE).unlink(missing_ok=True)
    return _with_descriptors(Opened(plan, cache, sides, source if isinstance(source, Index) else None, before))


def _labels(typed: Typed, source: Index | EncodedCache) -> Labels:
    """Find the labels of the files, or read those of each cache."""
    if not (typed.corpora and isinstance(source, EncodedCache)):
        return labels_of(source, typed.label_pattern, typed.corpora)
    stored = Labels()
    for folder in typed.folders:
        stored = stored.over(read_labels(folder))
    return stored if typed.label_pattern is None else find_labels(source.index, typed.label_pattern).over(stored)


def _with_descriptors(opened: Opened) -> Opened:
    """Compute the descriptors that the conditions need, from the recordings where they are at hand."""
    open_descriptors(opened.plan.config.conditions, opened.cache, opened.recordings)
    return opened


def opened_by_first(folders: Sequence[Path], out: Path, world: World, device: torch.device) -> Opened:
    """Open what the first rank has opened or begun."""
    if not (out / "config.json").exists():
        raise RunError(
            f"{out}: rank 0 has begun a run here, but it is not to be seen on {socket.gethostname()}; choose an --out "
            "on a disk that all machines share"
        )
    plan = Plan(load_frontend(out).to(device), read_config(out))
    # One process of each machine reads all of the cache, to verify it.
    place = folders[0] if len(folders) == 1 and is_cache(folders[0]) else out / "cache"
    cache = EncodedCache.open(place, verify=world.local_rank == 0)
    return Opened(plan, cache, read_split(out))


def check_ranks(plan: Plan, world: World) -> None:
    """Check that several processes can train a model.

    Raises:
        ConfigError: they can't.
    """
    if world.size == 1:
        return
    share_of(plan, world)
    world.check_groups(plan.config.distributed.shards or world.size, plan.config.distributed.exact)
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in plan.model.modules()):
        raise ConfigError(
            "backbone.batch_norm: it averages over a batch, which is only a part of what several processes see; leave "
            "it out, or train with one process"
        )


def share_of(plan: Plan, world: World) -> range:
    """Return the numbers of this process's batches in a step."""
    distributed = plan.config.distributed
    sharded = distributed.sharded(sum(p.numel() for p in plan.model.parameters()))
    return world.share(plan.config.training.accumulation, distributed.exact, in_turn=sharded)


def check_place(out: Path, folder: Path) -> None:
    """Check that `out` can be a run folder.

    Raises:
        RunError: it is a file, is a cache, or lies in the folder of sound files.
    """
    check_is_no_file(out)
    if is_cache(out):
        raise RunError(f"{out}: is an encoded cache; give another folder for the run")
    if not is_cache(folder) and out.resolve().is_relative_to(folder.resolve()):
        raise RunError(
            f"{out}: lies in {folder}, so the model's own samples would be trained on; choose an --out outside it"
        )


def named(parts: Sequence[Part], recordings: Index) -> list[Part]:
    """Return parts with the present names of their files; a cache may hold names from before a renaming."""
    files = {file.sha256: file for file in recordings.files}
    return [replace(part, file=files[part.file.sha256]) for part in parts]
