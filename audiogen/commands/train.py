"""Train a model on a folder of sound files and write a run folder: `audiogen train`."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import Crops, EncodedCache, FileConditions, Sequences, StageFrames, open_descriptors, read_labels
from ..data.journal import JOURNAL_FILE
from ..distributed import World
from ..errors import ConfigError, RunError, TrainingError
from ..evaluation.report import originals, report
from ..evaluation.scores import baselines, held_out_score
from ..evaluation.wording import in_words, report_rows
from ..listen import write_page
from ..models.sequence_model import SequenceModel
from ..runs.build import build_model
from ..runs.callbacks import Callback, as_callback, choose_loggers
from ..runs.event_log import Discarded, Metrics
from ..runs.folder import (
    holds_run,
    read_source,
    read_stages,
    require_no_run,
    require_own_folders,
    save_weights,
    write_stages,
)
from ..runs.run import Run, load_run, with_stage_before
from ..runs.start import start_from_base
from ..training.checkpoint import list_checkpoints
from ..training.trainer import Progress, Trainer
from ..utils.files import alone_in
from .after_training import NUM_SAMPLES, codes_before, with_sampling, write_final_samples, write_samples
from .defaults import resolve_precision
from .open_run import Opened, Typed, check_place, named, open_run, opened_by_first, share_of
from .options import parse_budget, parse_start
from .plan import Flags, Plan, all_caches
from .samples import write_round_trips
from .stages import check_plans, plan_stages, stage_names

log = logging.getLogger("audiogen")

#: Evaluations during training use at least this many frames of a long held-out file: a second of samples at 8 kHz,
#: which covers a full receptive field.
LEAST_SHARE = 8192


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
        check_place(out, one)
    typed = Typed(folders, flags, resume, strict, condition, label_pattern)
    with World.join() as world, alone_in(out) if world.first else nullcontext():
        where, begun = world.device(device), []
        if world.size == 1:
            if not resume:
                require_no_run(out)
            begun = read_stages(out) if holds_run(out) else []
        if stages or begun:
            return _train_stages(typed, out, stages, begun, where, diagnostics, world, called)
        opened = world.first_does(lambda: open_run(typed, out, world, where)) or opened_by_first(
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
            opened = open_run(resumed, out / stage.name, world, device)
            (out / JOURNAL_FILE).unlink(missing_ok=True)
            log.info("%s", opened.sides.summary)
            run = _train(out / stage.name, opened, device, diagnostics, world, out, callbacks)
    assert run is not None
    return run


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
        parts = named(sides.held_out, recordings)
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
            write_samples(current, metrics, f"step-{progress.step}", settings.sample_seconds, trainer.weights_file())

    metrics = Discarded()
    try:
        with world.connected(device, config.distributed.timeout):
            if not begun:
                world.first_does(start)
                world.copy_from_first(model.state_dict().values())
            trainer = Trainer(
                model,
                crops,
                lambda weights: held_out_score(weights, some, seconds, given, world, exact=False),
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
                own = len(share_of(plan, world))
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
            run = with_sampling(run, held_out, crops.sequences, codes_before(run, cache, sides, known))
            result = {**report(run, held_out, crops.sequences, sound, known), "turned": outcome.stopped == "early"}
            metrics.write("final", **result)
            for name, value in report_rows(result):
                log.info("%s: %s", name, value)
            log.info("%s", in_words(result))
            if front.decodes:
                page = write_page([shown])
                log.info("generating samples of %g seconds; all other results are on %s", settings.sample_seconds, page)
                write_final_samples(run, metrics, sides, recordings, sound)
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
