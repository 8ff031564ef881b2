"""What follows training: the choice of the sampling, and the sounds that the page shows."""

import dataclasses
import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..audio.io import read_audio
from ..data import Crops, EncodedCache, FileConditions, Index, Sequences, Split
from ..evaluation.heard import decoded_training, heard_as_asked, judge_of, label_values
from ..evaluation.report import labelled_sounds
from ..evaluation.tuning import CLIP_SECONDS, NUM_CLIPS, choose_sampling
from ..models.conditioning import Conditions
from ..runs.event_log import Metrics
from ..runs.run import Run
from ..utils.files import atomic_write_json
from .open_run import named
from .samples import FileRequest, Sounds, write_generated, write_takes

log = logging.getLogger("audiogen")

#: Number of samples of each kind, also on the page.
NUM_SAMPLES = 4
#: Maximum number of held-out files on which the judge of labels is judged.
NUM_JUDGED = 50


def write_final_samples(
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
    write_samples(run, metrics, "generated", seconds)
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
            labelled_sounds(recordings.folder, named(side, recordings), run.sample_rate, run.labels)
            for side in (sides.train, sides.held_out)
        )
    judge = judge_of(run, training)
    made = write_takes(run.folder / "samples", run, judge)
    heard = heard_as_asked(judge, run, made, list(itertools.islice(held_out, NUM_JUDGED)))
    metrics.write("heard", step=run.step, labels=heard)


def codes_before(run: Run, cache: EncodedCache, sides: Split, known: FileConditions | None) -> Conditions | None:
    """Return what the stage before encodes in held-out clips, as many and as long as `choose_sampling` generates."""
    if run.before is None or not run.frontend.decodes:
        return None
    num_frames = math.ceil(CLIP_SECONDS * (run.frontend.spec.frame_rate or 0))
    batch, _ = Crops(cache, sides.held_out, num_frames, NUM_CLIPS, known=known).batch(0)
    assert batch.conditions is not None
    return {run.before.name: batch.conditions[run.before.name]}


def with_sampling(run: Run, held_out: Sequences, training: Sequences, codes: Conditions | None) -> Run:
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


def write_samples(run: Run, metrics: Metrics, prefix: str, seconds: float, weights: Path | None = None) -> None:
    for path, seed, _ in write_generated(
        run.folder / "samples", run, FileRequest(seconds), range(NUM_SAMPLES), prefix=prefix, weights=weights
    ):
        metrics.audio(f"samples/{seed}", read_audio(path), run.sample_rate, run.step)
