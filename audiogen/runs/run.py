"""Load a run folder and generate from it.

    runs/NAME/config.json  frontend.safetensors  model.safetensors  ...
    runs/NAME/config.json  semantic/...  mel/...                            with stages, each a folder like the above

Loading builds from config.json alone, strictly; nothing is unpickled or imported by name, and nothing is downloaded but
the known files of a run that is named by its address on the hub.
"""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..audio.io import audio_info, mono, resample
from ..audio.limiter import log_reductions
from ..data import (
    EncodedCache,
    FileConditions,
    Labels,
    Sequences,
    Split,
    StageFrames,
    find_labels_of_file,
    is_cache,
    open_descriptors,
    read_labels,
    stage_config,
)
from ..errors import CacheError, ConfigError, DataError, RunError
from ..frontends import Frontend, load_frontend
from ..generation.audio import MAX_STREAM_SECONDS, generate_sound, stream_sound
from ..generation.cascade import stage_seed
from ..generation.request import (
    DEFAULT_SECONDS,
    Before,
    Generation,
    Request,
    check_batch_size,
    check_best_of,
    check_precision,
    choose_seeds,
)
from ..models.conditioning import AskedConditions, Condition, Timbre
from ..models.sampling import Sampling
from ..models.sequence_model import SequenceModel
from ..utils.files import sha256_file
from ..utils.text import fold
from .address import Address, is_address, parse_address
from .asking import Asked, ask, conditions_like
from .config import RunConfig
from .folder import read_config, read_source, read_split, read_stages, read_weights
from .hub import fetch_run, push_run
from .published import write_published

log = logging.getLogger("audiogen")


@dataclass
class Run:
    """A trained run; of one with stages, the last stage.

    Attributes:
        folder: the run folder, or that of the stage in it.
        config: contents of its config.json.
        frontend, model: on the same device, in evaluation mode.
        step: training step of the weights.
        precision: format to which an engine may round its copy of the weights: "fp32", "bf16" or "int8".
        before: the stage before, whose codes this one is conditioned on; None for none.
        address: where on the hub it comes from, with its commit; None for a folder of one's own.
    """

    folder: Path
    config: RunConfig
    frontend: Frontend
    model: SequenceModel
    step: int
    precision: str = "fp32"
    before: "Run | None" = None
    address: Address | None = None

    def __repr__(self) -> str:
        """Describe the run in one line: dataclasses would print every layer of both networks."""
        place = str(self.root) if self.address is None else str(self.address)
        stages = [f"{type(stage.frontend).__name__} and {type(stage.model.backbone).__name__}" for stage in self.stages]
        names = [name for name in self.config.conditions if self.before is None or name != self.before.name]
        asked = f", conditions {', '.join(names)}" if names else ""
        return f"Run({place!r}: {', then '.join(stages)}, {self.sample_rate} Hz, step {self.step}{asked})"

    @staticmethod
    def from_pretrained(name: str | Path, device: str | torch.device = "cpu", precision: str = "fp32") -> "Run":
        """Load a run from "OWNER/NAME" or "OWNER/NAME@REVISION" on the hub, or from a folder; see `load_run`.

        Where there is a folder of that name, it is loaded; "hf://OWNER/NAME" always means the hub.

        Example:
            >>> run = Run.from_pretrained("me/drums")  # doctest: +SKIP
        """
        text = str(name)
        on_hub = not is_address(text) and not Path(text).exists() and text.count("/") == 1
        return load_run(f"hf://{text}" if on_hub else text, device, precision)

    def save_pretrained(self, folder: str | Path, license: str | None = None) -> None:
        """Write what others need of the run into a folder, with a model card and a few samples; see `write_published`.

        Args:
            folder: the folder to write to.
            license: identifier of a licence for the card, such as "cc-by-4.0"; None for that of an earlier card.

        Raises:
            RunError: the run folder is incomplete, or the same as `folder`.

        Example:
            >>> load_run("runs/drums").save_pretrained("drums-for-others", license="cc0-1.0")  # doctest: +SKIP
        """
        write_published(self.root, Path(folder), license)

    def push_to_hub(self, name: str, license: str | None = None, private: bool = False) -> str:
        """Push the run to the hub as "OWNER/NAME", and return the address of the commit; see `push_run`.

        Raises:
            HubError: huggingface_hub is not installed, nobody is logged in, or the hub refuses or can't be reached.

        Example:
            >>> load_run("runs/drums").push_to_hub("me/drums", license="cc-by-4.0")  # doctest: +SKIP
            'hf://me/drums@4f1c...'
        """
        return str(push_run(self.root, name, license, private))

    @property
    def root(self) -> Path:
        """The run folder, which holds the folders of the stages if there are any."""
        return self.folder if self.before is None else self.folder.parent

    @property
    def stages(self) -> list["Run"]:
        """The stages up to this one, in order; for a run without stages, itself."""
        return [*([] if self.before is None else self.before.stages), self]

    @property
    def name(self) -> str:
        """Name of the stage: of its folder, and of the condition by which the next stage takes its codes."""
        return self.folder.name

    @property
    def sample_rate(self) -> int:
        """Sample rate of the generated sound in Hz."""
        return self.frontend.spec.sample_rate

    @property
    def num_channels(self) -> int:
        """Channels of the generated sound: 2 for a run that was trained on stereo files, else 1."""
        return self.config.num_channels

    @property
    def sampling(self) -> Sampling:
        """How sound is drawn where nothing is asked for: as training chose it (see evaluation.tuning), or plainly."""
        return self.config.sampling or Sampling()

    def sampling_with(self, **filters: Any) -> dict[str, Sampling]:
        """Return the sampling of each stage by name, with other filters, such as temperature=0.8."""
        return {stage.name: replace(stage.sampling, **filters) for stage in self.stages}

    def split(self) -> Split:
        """Return which files the run was trained on and which were held out; empty if that was not saved."""
        return self._split

    @cached_property
    def _split(self) -> Split:
        return read_split(self.folder)

    def file_conditions(
        self, cache: EncodedCache, labels: Labels | None = None, before: EncodedCache | None = None
    ) -> FileConditions | None:
        """Return the conditions of a cache's files; None if the run has none.

        Args:
            cache: the files.
            labels: labels of files that the run does not know.
            before: the same files encoded by the stage before; None if its codes are not given.
        """
        configs = self.config.conditions
        if not configs:
            return None
        framewise: dict[str, Any] = {**open_descriptors(configs, cache)}
        if self.before is not None and before is not None:
            framewise[self.before.name] = StageFrames(before, self.frontend.spec)
        return FileConditions(configs, self.labels.over(labels or Labels()), framewise)

    @cached_property
    def labels(self) -> Labels:
        """The labels of the files that the run knows; none if it has no conditions."""
        return read_labels(self.folder)

    @property
    def knows_ends(self) -> bool:
        """Whether the run has learned where files end, so that it can generate complete sounds."""
        conditioner = self.model.conditioner
        return (
            self.before is None  # each stage would end by itself
            and conditioner is not None
            and any(part.stays_open for part in conditioner.parts.values())
            and bool(self.split().train)
            and self.frontend.spec.hop_length is not None
        )

    def training_sequences(self) -> Sequences | None:
        """Return the training codes, or None, with a warning, if the run's cache was removed or replaced."""
        cache = read_source(self.folder)
        if not is_cache(cache):
            log.warning(
                "%s: the encoded cache of the run is gone, so the report has no count-based baselines; "
                "audiogen train --resume makes it again",
                cache,
            )
            return None
        try:
            return Sequences(EncodedCache.open(cache, self.frontend), self.split().train)
        except (CacheError, DataError) as error:
            log.warning("the report has no count-based baselines: %s", error)
            return None

    def generate(
        self,
        seconds: float | None = None,
        num: int = 1,
        seed: int | None = None,
        prompt: Tensor | None = None,
        sampling: Sampling | Mapping[str, Sampling] | None = None,
        seeds: Sequence[int] | None = None,
        conditions: Mapping[str, Any] | None = None,
        guidance: float | None = None,
        meaning: Tensor | None = None,
        best_of: int = 1,
    ) -> Tensor:
        """Generate sound.

        Args:
            seconds: seconds of new sound, after the prompt; None for the duration of the meaning, or 4 without one.
            num: number of items; item i uses seed + i * best_of, so that each can be repeated by itself.
            seed: seed of the first item; None chooses a random one and logs it.
            prompt: wav (C, N) or (1, C, N) at `sample_rate` to continue; its mono mix is used. Of a run with stages, it
                is cut to whole frames.
            sampling: temperature and filters, of all stages or by name of the stage; None for the run's own.
            seeds: one seed per item, instead of `num` and `seed`.
            conditions: what to ask for by name, such as {"digit": "7"}: one value for all items, a list of one for
                each, or None for "not given". Other labels are copied from a random training file that has these. A
                melody or a loudness is the path of a sound file, a wav (1, 1, N), or an array (F, T) with one column
                per frame, including the frames of the prompt; after its end, nothing is given. So is a timbre, which
                is one column; without it, that of the prompt is asked for.
            guidance: how strongly to follow the conditions; 1 is as learned, None the run's own default.
            meaning: for a run with stages, wav (1, N) or (1, 1, N) at `sample_rate` whose codes in the first stage are
                rendered, in the prompt's voice if there is one; when they end, new ones follow.
            best_of: draw each item so many times, with consecutive seeds, and keep the one that, to the model itself,
                says most clearly what is asked for.

        Returns:
            (num, C, N) float32 in [-1, 1] on the model's device, beginning with the prompt as encoded and decoded by
            the front-end, or without it if a meaning is given. C is 2 if most of the sound in the training files is
            stereo, else 1: the model is mono, and its sound gets their stereo image. A limiter keeps true peaks below
            -1 dBTP, and logs one line when it acts. To get the seeds too, pass a `request` to `generate_request`.

        Raises:
            ConfigError: a length, number, seed or filter is out of range; or a meaning, for a run without stages.
            GenerationError: the model predicts NaN or infinity.

        Example:
            >>> wavs = load_run("runs/mine").generate(seconds=4, num=4, seed=0)  # doctest: +SKIP
        """
        seconds = self._seconds(seconds, meaning)
        request = self.request(num, seed, prompt, sampling, seeds, conditions, guidance, seconds, meaning, best_of)
        made = self.generate_request(seconds, request)
        log_reductions(made.reductions)
        return made.x

    def stream(
        self,
        seconds: float | None = None,
        num: int = 1,
        seed: int | None = None,
        prompt: Tensor | None = None,
        sampling: Sampling | Mapping[str, Sampling] | None = None,
        seeds: Sequence[int] | None = None,
        conditions: Mapping[str, Any] | Iterator[Mapping[str, Any] | None] | None = None,
        guidance: float | None = None,
        meaning: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Generate the same sound in chunks (num, C, n), the prompt first, each as soon as it is ready.

        Concatenated, they equal `generate` with the same seeds, apart from rounding. Memory does not grow with
        `seconds`, which may be up to a day. Arguments are those of `generate`, but `conditions` may be an iterator,
        which is asked for new ones before each chunk. They replace the previous ones, and hold from the next frame on;
        None changes nothing.

        Raises:
            ConfigError: an argument is out of range, the front-end can't decode a stream, or its rate varies and there
                is more than one item.
            GenerationError: the model predicts NaN or infinity.

        Example:
            >>> for chunk in load_run("runs/mine").stream(seconds=60, seed=0):  # doctest: +SKIP
            ...     play(chunk)
            >>> knob = {"tempo": 90}  # change it while the sound plays
            >>> chunks = load_run("runs/mine").stream(60, conditions=iter(lambda: dict(knob), None))  # doctest: +SKIP
        """
        following = None
        if isinstance(conditions, Iterator):
            if self.before is not None:
                raise ConfigError("conditions: those of a run with stages can't change during a stream")
            following, conditions = conditions, next(conditions, None)
        seconds = self._seconds(seconds, meaning)
        request = self.request(num, seed, prompt, sampling, seeds, conditions, guidance, seconds, meaning)
        if following is not None:
            request = replace(request, changes=self._changes(following, request))
        return self.stream_request(seconds, request)

    def _seconds(self, seconds: float | None, meaning: Tensor | None) -> float:
        if seconds is not None:
            return seconds
        return DEFAULT_SECONDS if meaning is None else meaning.shape[-1] / self.sample_rate

    def _changes(
        self, following: Iterator[Mapping[str, Any] | None], request: Request
    ) -> Iterator[AskedConditions | None]:
        """Ask for what follows; sounds end where they would have ended without a change."""
        given = request.conditions or {}
        ends = {name: values for name, values in given.items() if self._parts[name].stays_open}
        for conditions in following:
            asked = None if conditions is None else self.ask(conditions, request.seeds)
            yield None if conditions is None else {**ends, **(asked.conditions if asked else {})}

    def request(
        self,
        num: int = 1,
        seed: int | None = None,
        prompt: Tensor | None = None,
        sampling: Sampling | Mapping[str, Sampling] | None = None,
        seeds: Sequence[int] | None = None,
        conditions: Mapping[str, Any] | None = None,
        guidance: float | None = None,
        seconds: float | None = None,
        meaning: Tensor | None = None,
        best_of: int = 1,
    ) -> Request:
        """Return the request for these arguments of `generate`, at the precision of the run.

        Its `seeds` are those that will be used, including randomly chosen ones. A run that knows where files end fills
        `seconds` with complete sounds, as long as training files; without them, or after a prompt, nothing says where a
        sound ends.
        """
        check_best_of(best_of)
        if seeds is None:
            seeds = choose_seeds(num * best_of, seed)[::best_of]
            if seed is None:
                log.info("seed drawn: %d, counting up", seeds[0])
        check_batch_size(len(seeds) or 1)  # before asking for the conditions of each
        # A stereo sound, such as this run may generate, is mixed.
        prompt, meaning = (None if x is None else mono(torch.atleast_2d(x)) for x in (prompt, meaning))
        wav = None if prompt is None else prompt.reshape(1, 1, -1)
        if self.before is None and meaning is not None:
            raise ConfigError(
                "meaning: this run has no stages, so it can't render the codes of another sound; "
                "audiogen train FOLDER --out RUN --stages semantic,mel makes one that can"
            )
        if self.before is not None and wav is not None:  # so that new frames begin at the same time in every stage
            hop_length = self.frontend.spec.hop_length
            wav = wav[..., : wav.shape[2] // hop_length * hop_length or None]
        if seconds is not None and wav is None and self.knows_ends:
            conditions = self._with_ends(conditions, seeds, seconds)
        return replace(self._request(seeds, wav, sampling, conditions, guidance, meaning), best_of=best_of)

    def _with_ends(self, conditions: Mapping[str, Any] | None, seeds: Sequence[int], seconds: float) -> dict[str, Any]:
        """Ask for complete sounds, as long as training files, that fill `seconds`, unless their ends are given."""
        conditions, asked = dict(conditions or {}), self.ask(conditions, seeds)
        if asked is None:
            return conditions
        ends = {name for name in asked.parts if asked.parts[name].stays_open} - set(conditions)
        lengths = [self._successive_lengths(durations, seconds) for durations in asked.durations]
        return {**conditions, **dict.fromkeys(ends, lengths)} if all(lengths) else conditions

    def _request(
        self,
        seeds: Sequence[int],
        wav: Tensor | None,
        sampling: Sampling | Mapping[str, Sampling] | None,
        conditions: Mapping[str, Any] | None,
        guidance: float | None,
        meaning: Tensor | None,
        distance: int = 0,
    ) -> Request:
        """Return the request to this stage, `distance` stages before the last one, and to those before."""
        conditions = self._with_timbre(conditions, wav)
        asked = self.ask(conditions, seeds)  # by the seeds of the items, so that all stages are asked for the same
        # Where a file ends is no matter of emphasis.
        followed = asked is not None and not all(part.stays_open for part in asked.parts.values())
        scale = self.config.guidance.scale if guidance is None and followed else guidance
        if scale not in (None, 1) and not asked:
            raise ConfigError("guidance: this run was trained without conditions, so there is nothing to follow")
        given, scale = asked.conditions if asked else None, 1.0 if scale is None else scale
        own = sampling.get(self.name) if isinstance(sampling, Mapping) else sampling
        draws, before = [stage_seed(seed, distance) for seed in seeds], None
        if self.before is not None and self.before.name not in (conditions or {}):
            stage = self.before
            wav_before, meaning = (
                None if x is None else resample(x.reshape(1, -1), self.sample_rate, stage.sample_rate)
                for x in (wav, meaning)
            )
            known = {fold(name) for name in stage.config.conditions}
            asked_before = {name: value for name, value in (conditions or {}).items() if fold(name) in known}
            scale_before = guidance if stage.config.conditions else None
            rest = (asked_before, scale_before, None if stage.before is None else meaning, distance + 1)
            request = stage._request(seeds, wav_before, sampling, *rest)
            first = meaning if stage.before is None else None
            before = Before(stage.name, stage.frontend, stage.model, request, first)
        return Request(
            wav, 1, draws, own or self.sampling, self.precision, conditions=given, guidance=scale, before=before
        )

    def _with_timbre(self, conditions: Mapping[str, Any] | None, prompt: Tensor | None) -> Mapping[str, Any] | None:
        """Ask for the timbre of the prompt, unless another one is asked for."""
        given = {fold(name) for name in conditions or {}}
        asked = [n for n, part in self._parts.items() if isinstance(part, Timbre) and fold(n) not in given]
        return conditions if prompt is None else {**(conditions or {}), **dict.fromkeys(asked, prompt)}

    def _successive_lengths(self, durations: Sequence[float], seconds: float) -> tuple[int, ...]:
        """Return the numbers of frames of sounds that fill `seconds` when played one after another."""
        left, following, found = min(seconds, MAX_STREAM_SECONDS), itertools.cycle(durations), []
        while left > 0:
            duration = next(following)
            found.append(self.frontend.num_frames(self._num_samples(duration)))
            left -= duration
        return tuple(found)

    def _num_samples(self, seconds: float) -> int:
        return max(1, round(seconds * self.sample_rate))

    def request_with_end(
        self,
        seeds: Sequence[int],
        sampling: Sampling | Mapping[str, Sampling] | None = None,
        conditions: Mapping[str, Any] | None = None,
        guidance: float | None = None,
        best_of: int = 1,
    ) -> tuple[Request, list[int]]:
        """Return a request for complete sounds, and the number of samples of each, which is that of a training file.

        Each item's seed chooses one of the training files that have the given labels.

        Raises:
            ConfigError: the run has not learned where files end, or an argument is wrong.
        """
        asked = self.ask(conditions, seeds)
        if asked is None or not self.knows_ends:
            raise ConfigError(
                "seconds: this run has not learned where files end, so their length must be given; "
                "audiogen train --condition position,... learns it"
            )
        ends = [name for name in asked.parts if asked.parts[name].stays_open]
        lengths = [self._num_samples(durations[0]) for durations in asked.durations]
        frames = [self.frontend.num_frames(length) for length in lengths]
        whole = {**(conditions or {}), **dict.fromkeys(ends, frames)}
        request = self.request(seeds=seeds, sampling=sampling, conditions=whole, guidance=guidance, best_of=best_of)
        return request, lengths

    def conditions_of(self, path: str | Path) -> dict[str, Any]:
        """Return the conditions of a recording, to generate variations of it.

        Its labels are those that the run has of it, or else those found in its folder; labels that it does not have, or
        with values that the run has not learned, are not given. Melody, loudness and timbre are those of the recording,
        and so is the length of a run that has learned where sounds end.

        Raises:
            AudioReadError: the file can't be read.
            ConfigError: the run was trained without conditions.
            DataError: a file of labels beside the recording can't be read.

        Example:
            >>> run = load_run("runs/drums")  # doctest: +SKIP
            >>> wavs = run.generate(1.0, num=4, conditions=run.conditions_of("snare.wav"))  # doctest: +SKIP
        """
        parts = {name: part for name, part in self._parts.items() if self.before is None or name != self.before.name}
        if not parts:
            raise ConfigError(f"{path}: this run was trained without conditions, so it can't follow a recording")
        path, info = Path(path), audio_info(path)
        row = self.labels.files.get(sha256_file(path)) or find_labels_of_file(path, self.labels.pattern or None)
        num_frames = self.frontend.num_frames(max(1, round(info.duration * self.sample_rate)))
        fixed = self.frontend.spec.hop_length is not None
        return conditions_like(parts, path, row, num_frames if fixed else None)

    def ask(self, conditions: Mapping[str, Any] | None, seeds: Sequence[int]) -> Asked | None:
        """Return what these conditions ask of the items with these seeds; None for a run without conditions.

        Raises:
            ConfigError: a name or a value is unknown.
        """
        conditioner = self.model.conditioner
        if conditioner is None:
            if conditions:
                raise ConfigError(f"{next(iter(conditions))}: this run was trained without conditions")
            return None
        training = self.split().train
        return ask(conditioner.parts, conditions, seeds, training, self.labels, self.frontend.spec)

    @property
    def _parts(self) -> Mapping[str, Condition]:
        """The conditions of the model by name."""
        return {} if self.model.conditioner is None else self.model.conditioner.parts

    def generate_request(self, seconds: float, request: Request) -> Generation:
        """Generate the sound of a request: x (B, C, N), with the seeds of its items and their lengths in samples.

        Example:
            >>> made = run.generate_request(4.0, run.request(num=2, seconds=4.0))  # doctest: +SKIP
            >>> again = run.generate(4.0, seeds=made.seeds)                        # doctest: +SKIP
        """
        return generate_sound(self.frontend, self.model, seconds, request, self.config.stereo)

    def stream_request(self, seconds: float, request: Request) -> Iterator[Tensor]:
        """Generate the same sound in chunks (B, C, n)."""
        return stream_sound(self.frontend, self.model, seconds, request, self.config.stereo)


def load_run(folder: str | Path, device: str | torch.device = "cpu", precision: str = "fp32") -> Run:
    """Load a run from its folder or from the hub, ready to generate. Of a run with stages, return the last one.

    Args:
        folder: the run folder; or "hf://OWNER/NAME" or "hf://OWNER/NAME@REVISION" on the hub, which needs the extra
            `hub` and, once it is in the cache, no network.
        device: device of the front-end and the model.
        precision: format to which an engine may round its copy of the weights, for speed: "fp32", "bf16" or "int8".

    Raises:
        RunError: the folder is incomplete, damaged, or of a newer format; the message names the file.
        HubError: the hub has no such run or can't be reached, or huggingface_hub is not installed.
        ConfigError: the precision is unknown, or the address is malformed.

    Example:
        >>> run = load_run("runs/mine")  # doctest: +SKIP
        >>> write_audio("new.wav", run.generate(seconds=4, seed=0)[0], run.sample_rate)  # doctest: +SKIP
    """
    check_precision(precision)
    if is_address(folder):
        place, address = fetch_run(parse_address(folder))
        return replace(load_run(place, device, precision), address=address)
    folder = Path(folder)
    names, run = read_stages(folder), None
    if not names:
        return _load_stage(folder, device, precision)
    for name in names:
        run = with_stage_before(_load_stage(folder / name, device, precision), run)
    assert run is not None
    return run


def _load_stage(folder: Path, device: str | torch.device, precision: str) -> Run:
    config = read_config(folder)
    frontend = load_frontend(folder).to(device)
    model, step = read_weights(folder, config, frontend.spec)
    return Run(folder, config, frontend, model.to(device).eval(), step, precision)


def with_stage_before(run: Run, before: Run | None) -> Run:
    """Return a run with the stage before it.

    Raises:
        RunError: the run was not trained on the codes of that stage.
    """
    if before is not None:
        wanted = stage_config(before.frontend.spec, run.frontend.spec)
        if run.config.conditions.get(before.name) != wanted:
            raise RunError(
                f"{run.folder / 'config.json'}: is not conditioned on the codes of {before.folder}; restore both stages"
            )
    return replace(run, before=before)
