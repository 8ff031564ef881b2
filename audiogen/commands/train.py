"""Train a model on a folder of sound files and write a run folder: `audiogen train`."""

import dataclasses
import itertools
import logging
import math
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..audio.io import read_audio
from ..data import (
    Crops,
    EncodedCache,
    FileConditions,
    Index,
    Labels,
    Part,
    Sequences,
    Split,
    StageFrames,
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
from ..errors import ConfigError, RunError, TrainingError
from ..evaluation.heard import decoded_training, heard_as_asked, judge_of, label_values
from ..evaluation.report import labelled_sounds, originals, report
from ..evaluation.scores import baselines, held_out_score
from ..evaluation.tuning import CLIP_SECONDS, NUM_CLIPS, choose_sampling
from ..evaluation.wording import in_words, report_rows
from ..frontends import load_frontend
from ..listen import write_page
from ..models.conditioning import Conditions
from ..models.sequence_model import SequenceModel
from ..runs.build import build_model
from ..runs.callbacks import Callback, as_callback, choose_loggers
from ..runs.event_log import Discarded, Metrics
from ..runs.folder import (
    holds_run,
    read_config,
    read_source,
    read_split,
    read_stages,
    require_no_run,
    require_own_folders,
    save_split,
    save_weights,
    start_run,
    write_stages,
)
from ..runs.run import Run, load_run, with_stage_before
from ..runs.start import start_from_base
from ..training.checkpoint import list_checkpoints
from ..training.trainer import Progress, Trainer
from ..utils.files import alone_in, atomic_write_json, check_is_no_file
from .conditions import check_same_conditions, labels_of, with_conditions, with_stage
from .defaults import frontend_settings, resolve_precision
from .options import parse_budget, parse_start
from .plan import Flags, Plan, all_caches, open_source
from .resume import check_same_frontend, contents, other_files, resumed_config, same_source
from .samples import FileRequest, Sounds, write_generated, write_round_trips, write_takes
from .stages import budget_share, check_plans, plan_stages, stage_names

log = logging.getLogger("audiogen")

#: Number of samples of each kind, also on the page.
NUM_SAMPLES = 4
#: Maximum number of held-out files on which the judge of labels is judged.
NUM_JUDGED = 50
#: Evaluations during training use at least this many frames of a long held-out file: a second of samples at 8 kHz,
#: which covers a full receptive field.
LEAST_SHARE = 8192


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


def train(
    folder: str | Path | Sequence[str | Path],
    out: str | Path,
    frontend: str | None = None,
    backbone: str | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    seed: int | None = None,
    device: str = "auto",
    resume: bool = False,
    strict: bool = False,
    diagnostics: bool = False,
    overrides: Sequence[str] = (),
    condition: Sequence[str] | None = None,
    label_pattern: str | None = None,
    start: str | None = None,
    stages: Sequence[str] | None = None,
    loggers: Sequence[str] | None = None,
    callbacks: Sequence[Callback | Callable[[dict[str, Any]], Any]] = (),
) -> Run:
    """Train a model on a folder of sound files, or on an encoded cache, and write the run folder `out`.

    Processes that torchrun, srun or Ray Train started together train one model: see docs/scale.md.

    Args:
        folder: folder of sound files, or a cache; or several of either kind, which "data.weights=[0.7,0.3]" weights.
        out: the run folder.
        frontend: name of a front-end, or a folder that holds one; None for the default.
        backbone: name of a backbone; None for the default.
        steps: budget in optimizer steps.
        minutes: budget in minutes of training; at most one of the two, by default 10 minutes.
        seed: determines initial weights, crops and dropout; 0 by default.
        device: "auto", "cpu" or "cuda".
        resume: continue the run in `out` with its settings; start a new run if `out` holds none.
        strict: raise an error if a file can't be read or is odd.
        diagnostics: observe the network in some steps (see training/diagnostics.py) and show that on the page.
        overrides: "a.b=1" assignments of settings.
        condition: names of labels to learn; ["none"] for none, None for all that were found.
        label_pattern: pattern over file names, such as "{digit}_{speaker}_{}"; see `find_labels`.
        start: "base" to fine-tune the model that ships with the package, "scratch" for new weights; None for the base
            model if front-end and backbone are the ones it was trained with, otherwise for new weights.
        stages: front-ends of several models that are trained in order, such as ["semantic", "mel"], each conditioned on
            the codes of the one before; the last one makes the sound. They share the budget equally.
        loggers: "tensorboard" and "wandb" (Weights & Biases), or ["none"]; None for TensorBoard, if it is installed.
        callbacks: objects of `Callback`, or functions that receive each event of metrics.jsonl as a dict and may return
            True to end training.

    Returns:
        The run with its best weights, or the newest ones of a flow head, on the device; with stages, the last one.

    Raises:
        DataError: the folder has too little sound.
        AudioReadError: with `strict`, a file can't be read or is odd.
        CacheError: the cache is damaged.
        ConfigError: a setting is wrong.
        RunError: `out` is not a run folder, or the run in it is damaged or was started with other files.
        TrainingError: the loss is not finite.

    Example:
        >>> run = train("recordings", "runs/mine", minutes=30, callbacks=[print])  # doctest: +SKIP
        >>> wavs = run.generate(seconds=4, num=4)  # doctest: +SKIP
    """
    called = [*choose_loggers(loggers), *map(as_callback, callbacks)]
    folders, out = [Path(one) for one in ([folder] if isinstance(folder, str | Path) else folder)], Path(out)
    flags = Flags(frontend, backbone, overrides, parse_start(start), parse_budget(steps, minutes, seed))
    for one in folders:
        _check_place(out, one)
    typed = Typed(folders, flags, resume, strict, condition, label_pattern)
    with World.join() as world, alone_in(out) if world.first else nullcontext():
        where, begun = world.device(device), []
        if world.size == 1:
            if not resume:
                require_no_run(out)
            begun = read_stages(out) if holds_run(out) else []
        if stages or begun:
            return _train_stages(typed, out, stages, begun, where, diagnostics, world, called)
        opened = world.first_does(lambda: _open(typed, out, world, where)) or _opened_by_first(
            folders, out, world, where
        )
        log.info("%s", opened.sides.summary)
        return _train(out, opened, where, diagnostics, world, out, called)


def _train_stages(
    typed: Typed,
    out: Path,
    frontends: Sequence[str] | None,
    begun: Sequence[str],
    device: torch.device,
    diagnostics: bool,
    world: World,
    callbacks: Sequence[Callback],
) -> Run:
    """Train the stages of a run in order, each conditioned on the codes of the one before; return the last one.

    Args:
        typed: what was typed.
        out: the run folder.
        frontends: the front-ends of the stages; None for those of the run in `out`.
        begun: names of the stages of the run in `out`; empty if it has none.
        device: device of the models.
        diagnostics: as in `train`.
        world: the processes.
        callbacks: loggers and those of the caller; each stage is a run to them.
    """
    if world.size > 1:
        raise world.shared(ConfigError("--stages: are trained by one process; start audiogen without torchrun or srun"))
    require_own_folders(out)
    if holds_run(out) and not begun:
        raise RunError(f"{out}: holds a run without stages; choose another --out")
    if all_caches(typed.folders):
        raise ConfigError(
            f"{typed.folders[0]}: is a cache of one front-end, but stages have several; give the sound files"
        )
    names = list(begun) if frontends is None else stage_names(frontends)
    if begun and names != begun:
        raise ConfigError(f"--stages: {out} was started with {','.join(begun)}, and resuming can't change it")
    missing = [name for name in names if not holds_run(out / name)]
    if missing and frontends is None:
        raise ConfigError(f"--stages: {missing[0]} has not been started yet; give the same --stages again")
    planned = plan_stages(names, frontends or [None] * len(names), typed.flags)
    if not begun:
        check_plans([Plan.draft(stage.flags) for stage in planned])
    source = typed.open(out)
    write_stages(out, names)
    run = None
    for place, stage in enumerate(planned):
        log.info("stage %s, %d of %d", stage.name, place + 1, len(planned))
        own = replace(typed, flags=stage.flags, source=source, before=run, num_stages=len(planned))
        if typed.condition is None and stage.name in missing:
            own = replace(own, condition=["none"])
        with alone_in(out / stage.name):
            resumed = replace(own, resume=typed.resume or stage.name not in missing)
            opened = _open(resumed, out / stage.name, world, device)
            (out / JOURNAL_FILE).unlink(missing_ok=True)
            log.info("%s", opened.sides.summary)
            run = _train(out / stage.name, opened, device, diagnostics, world, out, callbacks)
    assert run is not None
    return run


def _open(typed: Typed, out: Path, world: World, device: torch.device) -> Opened:
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
    _check_ranks(plan, world)
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
        _check_ranks(draft, world)
        draft.over_corpora(typed.corpora)
    source = typed.open(out)
    plan = Plan.for_source(source, flags, draft).over_corpora(typed.corpora)
    _check_ranks(plan, world)
    labels = _labels(typed, source)
    index = source.index if isinstance(source, EncodedCache) else long_enough(source, plan.spec)
    plan = with_conditions(plan, labels, plan.split(index), typed.condition, flags.overrides)
    if before is not None:
        plan = with_stage(plan, before.name, before.frontend.spec)
    plan.frontend.to(device)
    cache = plan.encode(source, out)
    sides = plan.split(cache.index)
    if isinstance(source, Index) and plan.frontend.decodes:
        parts = _named(sides.train, source)
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


def _opened_by_first(folders: Sequence[Path], out: Path, world: World, device: torch.device) -> Opened:
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


def _check_ranks(plan: Plan, world: World) -> None:
    """Check that several processes can train a model.

    Raises:
        ConfigError: they can't.
    """
    if world.size == 1:
        return
    _share(plan, world)
    world.check_groups(plan.config.distributed.shards or world.size, plan.config.distributed.exact)
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in plan.model.modules()):
        raise ConfigError(
            "backbone.batch_norm: it averages over a batch, which is only a part of what several processes see; leave "
            "it out, or train with one process"
        )


def _share(plan: Plan, world: World) -> range:
    """Return the numbers of this process's batches in a step."""
    distributed = plan.config.distributed
    sharded = distributed.sharded(sum(p.numel() for p in plan.model.parameters()))
    return world.share(plan.config.training.accumulation, distributed.exact, in_turn=sharded)


def _check_place(out: Path, folder: Path) -> None:
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


def _conditions(out: Path, opened: Opened) -> FileConditions | None:
    """Return the conditions of the files, with the codes of the stage before; None if the run has none."""
    configs, before = opened.plan.config.conditions, opened.before
    framewise: dict[str, Any] = {**open_descriptors(configs, opened.cache)}
    if before is not None:
        framewise[before.name] = StageFrames(EncodedCache.open(read_source(before.folder)), opened.plan.spec)
    return FileConditions(configs, read_labels(out), framewise) if configs else None


def _train(
    out: Path,
    opened: Opened,
    device: torch.device,
    diagnostics: bool,
    world: World,
    shown: Path,
    callbacks: Sequence[Callback],
) -> Run:
    """Train what was opened; write the page of the run `shown`."""
    plan, cache, sides, recordings, before = opened
    config, front, settings = plan.config, plan.frontend, plan.config.training
    known = _conditions(out, opened)
    sound = []
    if recordings is not None and front.decodes:
        parts = _named(sides.held_out, recordings)
        sound = originals(recordings.folder, parts, plan.spec.sample_rate, NUM_SAMPLES)
    torch.manual_seed(settings.seed)
    model = build_model(config, front.spec).to(device)
    size, dropout = (settings.crop_frames, settings.batch_size), config.guidance.dropout
    crops = Crops(cache, sides.train, *size, settings.seed, known, dropout, config.data.mixture)
    held_out = Sequences(cache, sides.held_out)
    some, chosen = _some_of_each(held_out, settings.evaluation_frames, config.data.mixture)
    pieces = [held_out.piece(i, length=x.shape[1]) for i, x in zip(chosen, some, strict=True)]
    given = None if known is None else [known.of_item(piece) for piece in pieces]
    seconds = front.seconds(some)
    begun = bool(list_checkpoints(out / "checkpoints"))

    def start() -> None:
        if settings.start == "base":
            log.info("starting from the base model; for new weights: --from scratch")
            start_from_base(model)
        model.head.fit(crops.sequences)

    def evaluated(weights: SequenceModel, progress: Progress) -> None:
        metrics.evaluated(weights, progress.step)
        every = settings.sample_every
        if every and front.decodes and round(trainer.spent() * settings.evaluations) % every == 0:
            current = Run(out, config, front, weights, progress.step, before=before)
            _write_samples(current, metrics, f"step-{progress.step}", settings.sample_seconds, trainer.weights_file())

    metrics = Discarded()
    try:
        with world.connected(device, config.distributed.timeout):
            if not begun:
                world.first_does(start)
                world.copy_from_first(model.state_dict().values())
            trainer = Trainer(
                model,
                crops,
                lambda weights: held_out_score(weights, some, seconds, given, world),
                lambda weights, progress: save_weights(out, config, weights, progress.step, progress.best_loss),
                settings,
                out / "checkpoints",
                resolve_precision(settings.precision, device),
                config.data.num_workers,
                diagnostics,
                world,
                config.distributed,
            )
            if begun:
                trainer.resume()
            first = trainer.progress.step
            if world.first:
                metrics = Metrics(out, first if begun else None, callbacks, config.to_dict())
            if world.first and not begun:
                write_round_trips(out / "samples", front, sound)
                # Score them on the same sequences as the loss curve, so that both can be compared; the final report
                # uses all.
                counted = baselines(front.spec, crops.sequences, some)
                if counted:
                    metrics.write("baselines", **counted, unit=front.spec.unit)
            if world.size > 1:
                own = len(_share(plan, world))
                log.info("%d processes train together, with %d batches each per step", world.size, own)
            outcome = trainer.run(metrics, evaluated)
        if outcome.stopped == "interrupted":
            log.info("stopped at step %d and saved; continue with the same command and --resume", outcome.progress.step)
            raise KeyboardInterrupt
        if outcome.progress.best_step == 0:
            raise world.shared(
                TrainingError(
                    f"{out}: the held-out loss was never finite, so no weights were kept; check the held-out "
                    "files, or train again with a lower training.learning_rate"
                )
            )
        if not world.first:
            return load_run(out, device)
        again = "" if outcome.progress.step > first else ", so there was nothing left to train"
        if outcome.stopped == "early":
            log.info(
                "stopped early at step %d: the held-out loss has not improved since step %d%s; more recordings would "
                "help; to continue anyway: --resume --set training.patience=null",
                outcome.progress.step,
                outcome.progress.best_step,
                again,
            )
        elif outcome.stopped == "asked":
            log.info("a callback ended training at step %d; to continue: --resume", outcome.progress.step)
        elif again:
            log.info(
                "the budget was spent at step %d%s; to train longer: --resume with more --steps or --minutes",
                first,
                again,
            )
        with _rest_on_resume():
            run = with_stage_before(load_run(out, device), before)
            run = _with_sampling(run, held_out, crops.sequences, _codes_before(run, cache, sides, known))
            result = {**report(run, held_out, crops.sequences, sound, known), "turned": outcome.stopped == "early"}
            metrics.write("final", **result)
            for name, value in report_rows(result):
                log.info("%s: %s", name, value)
            log.info("%s", in_words(result))
            if front.decodes:
                page = write_page([shown])
                log.info("generating samples of %g seconds; all other results are on %s", settings.sample_seconds, page)
                _write_final_samples(run, metrics, sides, recordings, sound)
    finally:
        metrics.close()
    log.info("listen: open %s", write_page([shown]))
    return run


@contextmanager
def _rest_on_resume() -> Iterator[None]:
    """Say after Ctrl-C that the run is trained, and how to get the rest."""
    try:
        yield
    except KeyboardInterrupt:
        log.info("training is finished and saved; the same command with --resume makes the report and the samples")
        raise


def _named(parts: Sequence[Part], recordings: Index) -> list[Part]:
    """Return parts with the present names of their files; a cache may hold names from before a renaming."""
    files = {file.sha256: file for file in recordings.files}
    return [replace(part, file=files[part.file.sha256]) for part in parts]


def _write_final_samples(
    run: Run, metrics: Metrics, sides: Split, recordings: Index | None, sound: Sequence[tuple[str, Tensor]]
) -> None:
    """Write what the page shows of a finished run: sounds, a continued clip, and takes of each value of a label.

    With stages, the codes of another clip are rendered in the voice of that one.

    Args:
        run: the run.
        metrics: receives the sounds, and what is heard in the takes.
        sides: the split of the files.
        recordings: the files; None if only their cache was given.
        sound: (name, wav (1, N)) of held-out files.
    """
    seconds, samples = run.config.training.sample_seconds, run.folder / "samples"
    _write_samples(run, metrics, "generated", seconds)
    if sound:
        # Continue the first half of a clip, at most a second of it; the page shows where the model takes over.
        name, wav = sound[0]
        request, sounds = FileRequest(seconds, Path(name)), Sounds(wav[:, : min(wav.shape[1] // 2, run.sample_rate)])
        for path, *_ in write_generated(samples, run, request, [0], sounds, "continued"):
            log.debug("%s", path)
        if run.before is not None:
            said_in, said = sound[-1]
            request = FileRequest(said.shape[1] / run.sample_rate, Path(name), meaning=Path(said_in))
            sounds = Sounds(wav[:, : round(seconds * run.sample_rate)], said)
            for path, *_ in write_generated(samples, run, request, [0], sounds, "rendered"):
                log.debug("%s", path)
    if label_values(run):
        _write_takes(run, metrics, sides, recordings)


def _write_takes(run: Run, metrics: Metrics, sides: Split, recordings: Index | None) -> None:
    """Ask for each value of the run's first label, and write what a judge of the training files hears."""
    if recordings is None:
        training, held_out = decoded_training(run), iter(())
    else:
        training, held_out = (
            labelled_sounds(recordings.folder, _named(side, recordings), run.sample_rate, run.labels)
            for side in (sides.train, sides.held_out)
        )
    judge = judge_of(run, training)
    made = write_takes(run.folder / "samples", run, judge)
    heard = heard_as_asked(judge, run, made, list(itertools.islice(held_out, NUM_JUDGED)))
    metrics.write("heard", step=run.step, labels=heard)


def _codes_before(run: Run, cache: EncodedCache, sides: Split, known: FileConditions | None) -> Conditions | None:
    """Return what the stage before encodes in held-out clips, as many and as long as `choose_sampling` generates."""
    if run.before is None or not run.frontend.decodes:
        return None
    num_frames = math.ceil(CLIP_SECONDS * (run.frontend.spec.frame_rate or 0))
    batch, _ = Crops(cache, sides.held_out, num_frames, NUM_CLIPS, known=known).batch(0)
    assert batch.conditions is not None
    return {run.before.name: batch.conditions[run.before.name]}


def _with_sampling(run: Run, held_out: Sequences, training: Sequences, codes: Conditions | None) -> Run:
    """Choose the sampling of a run and write it to config.json, unless one is already there."""
    if run.config.sampling is not None:
        return run
    log.info("choosing the temperature at which generated sound is closest to the recordings")
    tried = choose_sampling(run, held_out, training, codes)
    if not tried:
        return run
    for one in tried:
        log.debug("%s: KAD %.3f, from %.3f to %.3f", one.sampling, *dataclasses.astuple(one.distance)[:3])
    chosen = tried[0].sampling
    config = replace(run.config, sampling=chosen)
    atomic_write_json(run.folder / "config.json", config.to_dict())
    log.info("this run generates at temperature %g; audiogen generate --temperature overrides it", chosen.temperature)
    return replace(run, config=config)


def _write_samples(run: Run, metrics: Metrics, prefix: str, seconds: float, weights: Path | None = None) -> None:
    for path, seed, _ in write_generated(
        run.folder / "samples", run, FileRequest(seconds), range(NUM_SAMPLES), prefix=prefix, weights=weights
    ):
        metrics.audio(f"samples/{seed}", read_audio(path), run.sample_rate, run.step)


def _some_of_each(
    sequences: Sequences, most_frames: int, mixture: Mapping[str, float]
) -> tuple[list[Tensor], list[int]]:
    """Return some sequences of each corpus, by its share, sorted by length; and their indices in `sequences`."""
    if not mixture:
        return _some(sequences, range(len(sequences)), most_frames)
    some, chosen = [], []
    for name, share in mixture.items():
        places = [i for i, path in enumerate(sequences.names) if path.startswith(f"{name}/")]
        if places:
            found = _some(sequences, places, max(2, round(share * most_frames)))
            some += found[0]
            chosen += found[1]
    order = sorted(range(len(some)), key=lambda i: some[i].shape[1])
    return [some[i] for i in order], [chosen[i] for i in order]


def _some(sequences: Sequences, places: Sequence[int], most_frames: int) -> tuple[list[Tensor], list[int]]:
    """Return the first sequences among `places`, up to `most_frames` in total, sorted by length, and their indices.

    Sequences are ordered by content hash, so the first ones are a random choice. Long ones are cut, so that the result
    contains several files.
    """
    some, left, share = [], most_frames, max(most_frames // len(places), LEAST_SHARE)
    for i in places:
        some.append(sequences[i][:, : min(left, share)])
        left -= some[-1].shape[1]
        if left == 0:
            break
    order = sorted(range(len(some)), key=lambda i: some[i].shape[1])
    return [some[i] for i in order], [places[i] for i in order]
