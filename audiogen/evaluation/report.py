"""Report on a run with held-out files: likelihood beside count-based baselines, and the front-end's round trip."""

import logging
import math
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..audio.io import read_audio
from ..data import (
    EncodedCache,
    FileConditions,
    FileEntry,
    Index,
    Labels,
    Part,
    Sequences,
    find_labels,
    is_cache,
    open_descriptors,
    read_labels,
    scan,
)
from ..errors import ConfigError, DataError
from ..frontends import Frontend
from ..runs.event_log import read_metrics
from ..runs.run import Run
from ..spec import Unit
from .generated import MOST_SECONDS, judge_generated
from .heard import decoded_training, heard_as_asked, judge_of, label_values
from .likelihood import EXACT_FRAMES, FileLikelihood, file_likelihoods
from .likeness import likeness
from .melody import melodies_followed, melody_name
from .reconstruction import mel_distance, si_sdr
from .scores import baselines
from .scores import score as scored
from .sounds import Labelled, generate_sounds

log = logging.getLogger("audiogen")

#: Number of files whose round trip is measured: enough for a mean, few enough for Griffin-Lim.
ROUND_TRIPS = 16
#: Maximum seconds of a training file that a judge is trained on, and of all of them together.
JUDGE_SECONDS, JUDGE_SECONDS_IN_ALL = 10.0, 1800.0


def evaluate_folder(run: Run, folder: str | Path, generate: int = 0) -> dict[str, Any]:
    """Score a run on the files of a folder (or cache) that it was not trained on.

    Example:
        >>> evaluate_folder(audiogen.load_run("runs/mine"), "more_recordings")["loss"]  # doctest: +SKIP
        2.71

    Args:
        run: a run of `audiogen train`.
        folder: a folder of audio files, or a cache of `audiogen tokenize`.
        generate: number of sounds to generate and compare with the files.

    Returns:
        The result of `report`; `generated` (see `judge_generated`) if any clips are, and `heard` (see `heard_as_asked`)
        if the run has labels, and `melody` (see `melodies_followed`) if it has a melody; `stages`, the reports of the
        earlier stages by name, if there are any; `seen`: number of files left out because the model was trained on
        them; `turned`: whether the held-out loss had stopped improving before training ended. If none of the files is
        one that the run holds out, also `likeness` to those (see `likeness.likeness`).

    Raises:
        DataError: no file is left to evaluate on.
        CacheError: the cache is damaged or of another front-end.
    """
    folder = Path(folder)
    if is_cache(folder) and run.before is not None:
        raise DataError(
            f"{folder}: is a cache of one front-end, but the run has several; give the folder of sound files"
        )
    cache = EncodedCache.open(folder, run.frontend) if is_cache(folder) else None
    index = scan(folder) if cache is None else cache.index
    for file in index.rejected:
        log.warning("left out: %s: %s", file.path, file.reason)
    index.require_files()
    sides = run.split()
    held_out = {digest: part for part in sides.held_out for digest in part.file.digests}
    trained = {digest for part in sides.train for digest in part.file.digests} - set(held_out)
    # If the run was trained on a single file, only its held-out part is unseen. The file's name may differ here.
    parts = [
        next((replace(held_out[digest], file=file) for digest in file.digests if digest in held_out), Part(file))
        for file in index.files
        if trained.isdisjoint(file.digests)
    ]
    if not parts:
        raise DataError(f"{folder}: the model was trained on every file in it; evaluate on others")
    with tempfile.TemporaryDirectory(prefix="audiogen-", ignore_cleanup_errors=True) as temporary:
        sound = []
        if cache is None:
            most, seconds = (len(parts), MOST_SECONDS) if generate else (ROUND_TRIPS, 10.0)
            sound = originals(folder, parts, run.sample_rate, most, seconds)
        if generate and not sound:
            raise DataError(f"{folder}: is a cache, but generated sound is compared with recordings; give their folder")
        training, labels, unseen = run.training_sequences(), _labels(run, index), [part.file for part in parts]
        others = [] if any(digest in held_out for file in unseen for digest in file.digests) else unseen
        caches: dict[str, EncodedCache] = {}
        for stage in run.stages:
            place = Path(temporary, stage.name)
            caches[stage.name] = cache or EncodedCache.build(replace(index, files=unseen), stage.frontend, place)
            if cache is None:
                open_descriptors(stage.config.conditions, caches[stage.name], index)

        def reported(stage: Run, training: Sequences | None, sound: Sequence[tuple[str, Tensor]]) -> dict[str, Any]:
            before = None if stage.before is None else caches[stage.before.name]
            known = stage.file_conditions(caches[stage.name], labels, before)
            return report(stage, Sequences(caches[stage.name], parts), training, sound, known, others)

        result = reported(run, training, sound)
        if run.before is not None:
            earlier = run.before.stages
            result["stages"] = {stage.name: reported(stage, stage.training_sequences(), []) for stage in earlier}
        made = generate_sounds(run, generate)
        if generate:
            result["generated"] = judge_generated(run, [wav for wav, _ in made], [wav for _, wav in sound], training)
        if generate and melody_name(run):
            result["melody"] = melodies_followed(run, [wav for _, wav in sound], generate)
        if generate and label_values(run):
            labels, rows = run.labels.over(labels), {part.file.path: part.file.sha256 for part in parts}
            known = [Part(file) for file in index.files if not trained.isdisjoint(file.digests)]
            known = [part for part in known if part.file.sha256 in labels.files]
            sounds = labelled_sounds(folder, known, run.sample_rate, labels) if known else decoded_training(run)
            mixed = sorted(sound, key=lambda item: rows[item[0]])  # by name, the first ones may all have the same label
            held_out = [(wav, labels.files.get(rows[name], {})) for name, wav in mixed]
            try:
                judge = judge_of(run, sounds)
                result["heard"] = heard_as_asked(judge, run, made, held_out)
            except DataError as error:
                log.warning("the report does not say which labels are heard: %s", error)
    turned = any(event.get("turned") for event in read_metrics(run.folder) if event.get("event") == "final")
    return {**result, "turned": turned, "seen": len(index.files) - len(parts)}


def report(
    run: Run,
    held_out: Sequences,
    training: Sequences | None,
    sound: Iterable[tuple[str, Tensor]],
    known: FileConditions | None = None,
    others: Sequence[FileEntry] = (),
) -> dict[str, Any]:
    """Score a run on held-out sequences.

    Args:
        run: the run.
        held_out: sequences to score; a choice of EXACT_FRAMES of them where their exact likelihood takes long.
        training: sequences to count the baselines on; None leaves them out.
        sound: (name, wav (1, N)) of held-out files, for the round trip.
        known: conditions of the sequences; None for those that the run knows.
        others: the files of the sequences, if they are to be compared with those of the run.

    Returns:
        JSON values: `loss` in `unit` ("bits" per code or "nats" per frame),
        `bits_per_second` and `bits_per_sample` (None if not applicable), `baselines` {name: {"loss",
        "bits_per_second"}} or None, `round_trip` {"files", "mel_distance", "si_sdr"} or None, `step` of the
        weights, `files`, `seconds`. For a front-end that wraps another, also `base_bits_per_second` {name: value}, of
        baselines counted on the wrapped front-end's codes. For a run on several folders, also `corpora`
        {name: {"loss", "files"}}, and their `weighted_loss` if it has weights. With `others`, also their
        `likeness` to the files of the run, and its `sample_rate`.
    """
    front, spec = run.frontend, run.frontend.spec
    if run.model.head.bounds:
        held_out = held_out.limited(EXACT_FRAMES)
    seconds = front.seconds(held_out)
    known = known or run.file_conditions(held_out.cache)
    given = None if known is None else [known.of_item(held_out.piece(i)) for i in range(len(held_out))]
    likelihoods = list(file_likelihoods(run.model, held_out, given))
    score = scored(spec, likelihoods, seconds)
    counted = None if training is None else baselines(spec, training, held_out)
    codes_per_second = spec.num_rows * int(held_out.num_frames.sum()) / seconds
    score_unit, base, alike = Unit(score.unit), {}, {}
    if others:
        cache = None if training is None else training.cache
        alike = {"likeness": likeness(run, others, likelihoods, given, cache), "sample_rate": run.sample_rate}
    if front.base is not None and training is not None:
        plain = baselines(front.base.spec, Expanded(front, training), Expanded(front, held_out)) or {}
        base["base_bits_per_second"] = {name: loss * front.base.spec.frame_rate for name, loss in plain.items()}
    return {
        "unit": score.unit,
        "loss": score.loss,
        "bits_per_second": score.bits_per_second,
        "bits_per_sample": score.per_sample,
        "baselines": counted
        and {
            name: {"loss": loss, "bits_per_second": score_unit.bits(loss * codes_per_second)}
            for name, loss in counted.items()
        },
        "round_trip": round_trip(run.frontend, sound),
        "step": run.step,
        "files": score.files,
        "seconds": score.seconds,
        **_of_corpora(run, held_out, likelihoods),
        **base,
        **alike,
    }


def _of_corpora(run: Run, held_out: Sequences, likelihoods: Sequence[FileLikelihood]) -> dict[str, Any]:
    """Return the loss on the files of each corpus that the run was trained on, and their weighted mean."""
    found: dict[str, Any] = {}
    for name in run.config.data.corpora:
        own = [one for one, path in zip(likelihoods, held_out.names, strict=True) if path.startswith(f"{name}/")]
        if own:
            found[name] = {"loss": scored(run.frontend.spec, own, 1.0).loss, "files": len(own)}
    mixture = run.config.data.mixture
    if not found or found.keys() != mixture.keys():
        return {"corpora": found} if found else {}
    return {"corpora": found, "weighted_loss": sum(mixture[name] * one["loss"] for name, one in found.items())}


def _labels(run: Run, index: Index) -> Labels:
    """Find labels of other files as those of the training files were found."""
    if not run.config.conditions:
        return Labels()
    if is_cache(index.folder):
        return read_labels(index.folder)
    try:
        return find_labels(index, read_labels(run.folder).pattern or None)
    except ConfigError:  # its names are of another pattern
        return find_labels(index)


@dataclass(frozen=True)
class Expanded:
    """Sequences (1, T) expanded to the codes of the front-end's base; re-iterable."""

    frontend: Frontend
    sequences: Sequences

    def __iter__(self) -> Iterator[Tensor]:
        return (self.frontend.expand(x.to(self.frontend.device)).cpu() for x in self.sequences)

    def __len__(self) -> int:
        return len(self.sequences)


def round_trip(frontend: Frontend, sound: Iterable[tuple[str, Tensor]]) -> dict[str, float | None] | None:
    """Measure the round trip of wavs (1, N): their number, mean mel distance and median SI-SDR in dB.

    None without wavs, or if the front-end only encodes.
    """
    if not frontend.decodes:
        return None
    distances, ratios = [], []
    rate = frontend.spec.sample_rate
    for _, wav in sound:
        with torch.inference_mode():
            back = frontend.decode(frontend.encode(wav[None].to(frontend.device)))[0, :, : wav.shape[1]].cpu()
        distances.append(mel_distance(wav, back, rate))
        ratio = si_sdr(wav, back)
        if math.isfinite(ratio):
            ratios.append(ratio)
    if not distances:
        return None
    return {
        "files": len(distances),
        "mel_distance": statistics.mean(distances),
        "si_sdr": statistics.median(ratios) if ratios else None,
    }


def originals(
    folder: Path, parts: list[Part], sample_rate: int, most: int = ROUND_TRIPS, seconds: float = 10.0
) -> list[tuple[str, Tensor]]:
    """Read the first `seconds` of the first `most` parts: (name, wav (1, N)) each."""
    sound = []
    for part in parts[:most]:
        first, end = part.span(part.file.num_samples)
        end = min(end, first + round(seconds * part.file.sample_rate))
        wav = read_audio(folder / part.file.path, sample_rate, first, end - first)
        if wav.shape[1]:  # a very short file may have no sample after resampling
            sound.append((part.file.path, wav))
    return sound


def labelled_sounds(folder: Path, parts: Sequence[Part], sample_rate: int, labels: Labels) -> Iterator[Labelled]:
    """Read the beginnings of parts that have labels, to train a judge on them: up to a limit, a random choice of parts.

    Args:
        folder: folder of the parts' files.
        parts: usually all training files.
        sample_rate: Hz of the wavs.
        labels: labels of the files.
    """
    left = JUDGE_SECONDS_IN_ALL
    for part in sorted(parts, key=lambda part: part.file.sha256):
        row = labels.files.get(part.file.sha256, {})
        if row and left > 0:
            for _, wav in originals(folder, [part], sample_rate, 1, JUDGE_SECONDS):
                left -= wav.shape[1] / sample_rate
                yield wav, row
