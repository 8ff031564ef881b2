"""Generate what several users ask for, one sound after another, in bounded memory.

submit(asked, files) -> sounds, each waiting -> one worker generates them in turn -> read(start) while it grows
"""

import logging
import queue
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..audio.io import read_at_most
from ..audio.wav_stream import encode_samples, wav_header
from ..data.descriptors import DESCRIPTORS
from ..errors import AudiogenError, AudioReadError, ConfigError
from ..generation.best import evident
from ..generation.request import DEFAULT_SECONDS, Request, check_guidance
from ..models.conditioning import Condition, Text
from ..runs.run import Run
from ..utils.text import fold

log = logging.getLogger("audiogen")

#: The files that may come with a request: the names of their fields, and what they are for.
FILES = {
    "prompt": "A sound file to continue.",
    "meaning": "A sound file to render, for a run with stages.",
    "melody": "A sound file whose melody to follow.",
    "loudness": "A sound file whose loudness to follow.",
    "timbre": "A sound file to sound like.",
    "like": "A sound file to vary.",
}
#: Those that are the value of a condition of the same name.
FOLLOWED = ("melody", "loudness", "timbre")


class BusyError(AudiogenError):
    """There are as many requests waiting as there may be."""


class _CancelledError(Exception):
    """Nobody wants the sound any more that is being generated."""


@dataclass(frozen=True)
class Limits:
    """What one request, and all requests together, may take.

    Attributes:
        seconds: maximum of new sound in a request.
        work_seconds: maximum that the generation of one sound may take.
        upload_bytes: maximum of a request's body, with all of its files.
        upload_seconds: maximum length of a file.
        num: maximum number of sounds in a request.
        best_of: maximum number of draws of a sound.
        waiting: maximum number of sounds that wait for their turn.
        kept_bytes: of finished sounds; the oldest are dropped beyond.
        text: maximum number of characters of a label or a caption.
    """

    seconds: float = 60.0
    work_seconds: float = 300.0
    upload_bytes: int = 25_000_000
    upload_seconds: float = 30.0
    num: int = 4
    best_of: int = 8
    waiting: int = 16
    kept_bytes: int = 200_000_000
    text: int = 2000


def _field(about: str, default: Any = None) -> Any:
    return field(default=default, metadata={"about": about})


@dataclass(frozen=True)
class Asked:
    """What a user asks for, without files: the fields of the API, with what it says of them.

    Labels, numbers and texts are None for "not given"; those that are left out are as in the training files. A seed, a
    guidance or a filter that is None is drawn, or the run's own.
    """

    seconds: float | None = _field(
        "Seconds of new sound. Default: a complete sound if the run knows where sounds end, else 4."
    )
    num: int = _field("Number of sounds, whose seeds count up by best_of.", 1)
    seed: int | None = _field("The same seed gives the same sound.")
    labels: Mapping[str, str | None] = field(
        default_factory=dict,
        metadata={
            "about": 'A JSON object, such as {"lead": "harp"}; null means "not given". Default: as in the recordings.'
        },
    )
    guidance: float | None = _field("How strongly to follow what is asked for; 1 is as learned.")
    temperature: float | None = _field("Below 1, favour what is probable.")
    top_k: int | None = _field("Draw among so many of the most probable codes.")
    top_p: float | None = _field("Draw among the most probable codes that have this probability together.")
    min_p: float | None = _field("Draw among codes that have this share of the highest probability.")
    best_of: int = _field(
        "Draw each sound so many times, and keep the one that, to the model itself, says most clearly what is asked "
        "for. It is heard when all are drawn.",
        1,
    )
    prompt_seconds: float | None = _field("Continue only so much of the prompt, from its end back. Default: all of it.")
    only_new: bool = _field("Leave the prompt out of the sound.", False)


class Sound:
    """A sound that is waiting, being generated, or finished.

    Attributes:
        id: a secret name.
        asked: the request for this sound alone, with its seed.
        words: what it was asked for, in words by name.
        files: the names of the files that came with the request.
        num_samples: length of the whole, per channel, including the prompt.
        num_channels: 1, or 2 for a run that was trained on stereo.
        state: "waiting", "running", "done" or "failed".
        cancelled: whether nobody wants it any more.
        error: why it failed; empty otherwise.
    """

    def __init__(
        self,
        asked: Asked,
        words: Mapping[str, str],
        files: tuple[str, ...],
        sample_rate: int,
        num_samples: int,
        num_channels: int = 1,
    ):
        self.id = secrets.token_urlsafe(12)
        self.asked, self.words, self.files = asked, dict(words), files
        self.sample_rate, self.num_samples, self.num_channels = sample_rate, num_samples, num_channels
        self.state, self.error, self.cancelled = "waiting", "", False
        self.first_sound: float | None = None
        self.began = time.monotonic()
        self._data = bytearray(wav_header(num_samples, sample_rate, 16, num_channels))
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Size of the whole WAV, also while it is not finished."""
        return 44 + 2 * self.num_channels * self.num_samples

    @property
    def ended(self) -> bool:
        """Whether no more will come."""
        return self.cancelled or self.state in ("done", "failed")

    def read(self, start: int, most: int = 1 << 16) -> bytes:
        """Return the bytes of the WAV from `start` on, as far as they are there; `most` at a time."""
        with self._lock:
            return bytes(self._data[start : start + most])

    def append(self, chunk: Tensor) -> bool:
        """Append a chunk (1, C, n), as far as it belongs to the sound; return whether more is needed."""
        samples = np.ascontiguousarray(chunk[0].float().cpu().numpy().T)  # (n, C)
        with self._lock:
            room = (self.num_bytes - len(self._data)) // (2 * self.num_channels)
            self._data += encode_samples(samples[:room].clip(-1, 1))
            if self.first_sound is None:
                self.first_sound = time.monotonic() - self.began
            return room > len(samples)

    def complete(self) -> None:
        """Fill up with silence what rounding has left out."""
        with self._lock:
            self._data += bytes(self.num_bytes - len(self._data))

    def describe(self) -> dict[str, Any]:
        """Return JSON values on the sound: how to ask for it again, and how far it is."""
        with self._lock:
            there = (len(self._data) - 44) / (2 * self.num_channels) / self.sample_rate
        return {
            "id": self.id,
            "state": "cancelled" if self.cancelled else self.state,
            "error": self.error,
            "seconds": self.num_samples / self.sample_rate,
            "seconds_made": there,
            "seconds_to_first_sound": self.first_sound,
            "asked": asdict(self.asked),
            "conditions": self.words,
            "files": list(self.files),
        }


@dataclass(frozen=True)
class _Job:
    """A sound to generate, of which the first `skipped` samples, those of the prompt, are left out."""

    sound: Sound
    seconds: float
    request: Request
    skipped: int


class Service:
    """A run that generates for several users.

    What is wrong with a request is raised by `submit`; a failure during generation becomes the sound's error.

    Args:
        run: the run.
        limits: what requests may take.
    """

    def __init__(self, run: Run, limits: Limits):
        self.run, self.limits = run, limits
        self._waiting: queue.Queue[_Job | None] = queue.Queue()
        self._sounds: dict[str, Sound] = {}  # in the order of their requests
        self._lock = threading.Lock()
        self._preparing = threading.BoundedSemaphore(2)  # decoding takes memory
        self._worker = threading.Thread(target=self._work, name="audiogen-serve", daemon=True)
        self._worker.start()

    # ---- what can be asked for

    def describe(self) -> dict[str, Any]:
        """Return JSON values on the run: its conditions with their values, its defaults, and the limits."""
        run = self.run
        return {
            "name": run.root.name if run.address is None else run.address.name,
            "sample_rate": run.sample_rate,
            "stages": [stage.name for stage in run.stages],
            "labels": {name: _describe_part(part) for name, part in self.labels.items()},
            "files": self.files,
            "complete_sounds": run.knows_ends,
            "best_of": self.most_draws,
            "guidance": run.config.guidance.scale if run.config.conditions else None,
            "sampling": asdict(run.sampling),
            "limits": asdict(self.limits),
        }

    @property
    def labels(self) -> dict[str, Condition]:
        """The conditions that are given as text: labels, numbers and captions."""
        return {name: part for name, part in self._parts.items() if part.one_word}

    @property
    def _parts(self) -> Mapping[str, Condition]:
        conditioner = self.run.model.conditioner
        return {} if conditioner is None else conditioner.parts

    @property
    def most_draws(self) -> int:
        """Maximum of `best_of`: 1 for a run that is asked for nothing, or whose draws can't be compared."""
        fixed = self.run.before is None and self.run.frontend.spec.hop_length is not None
        return self.limits.best_of if fixed and not all(part.stays_open for part in self._parts.values()) else 1

    @property
    def files(self) -> list[str]:
        """The fields of files that this run can follow."""
        found, parts = ["prompt"], self._parts
        if self.run.before is not None:
            found.append("meaning")
        followed = {name for name, part in parts.items() if type(part) in DESCRIPTORS}
        found += [name for name in FOLLOWED if name in followed]
        return [*found, "like"] if self.labels or followed else found

    # ---- asking

    def submit(self, asked: Asked, files: Mapping[str, Path] | None = None) -> list[Sound]:
        """Check a request and queue its sounds.

        Args:
            asked: what to generate.
            files: sound files by the names in `FILES`; they are read now and not needed later. A melody, a loudness or
                a timbre is followed, a prompt continued, and of `like`, what the request does not give is taken.

        Raises:
            ConfigError: a value is unknown or out of range.
            AudioReadError: a file can't be read, or is too long.
            BusyError: too many sounds are waiting.
        """
        files = dict(files or {})
        self._check(asked, files)
        if self._waiting.qsize() + asked.num > self.limits.waiting:
            raise BusyError("too many sounds are waiting; try again in a moment")
        try:
            with self._preparing:
                jobs = self._prepare(asked, files)
        except AudiogenError as error:
            said = str(error)
            for name, path in files.items():
                said = said.replace(str(path), name)  # not the place on this machine
            raise type(error)(said) from error
        with self._lock:
            if self._waiting.qsize() + len(jobs) > self.limits.waiting:
                raise BusyError("too many sounds are waiting; try again in a moment")
            for job in jobs:
                self._sounds[job.sound.id] = job.sound
                self._waiting.put_nowait(job)
            self._drop_oldest()
        return [job.sound for job in jobs]

    def find(self, id: str) -> Sound | None:
        """Return the sound of an id, or None if there is none, or none any more."""
        return self._sounds.get(id)

    def cancel(self, sound: Sound) -> None:
        """Stop the generation of a sound, or take it out of the queue; a finished one stays."""
        if not sound.ended:
            sound.cancelled = True

    def close(self) -> None:
        """Stop the worker after the sound that it generates."""
        for sound in list(self._sounds.values()):
            self.cancel(sound)
        self._waiting.put(None)
        self._worker.join(30)

    def _check(self, asked: Asked, files: Mapping[str, Path]) -> None:
        limits = self.limits
        if not 1 <= asked.num <= limits.num:
            raise ConfigError(f"num: must be from 1 to {limits.num}, got {asked.num}")
        if not 1 <= asked.best_of <= self.most_draws:
            raise ConfigError(f"best_of: must be from 1 to {self.most_draws} for this run, got {asked.best_of}")
        if asked.seconds is not None and not 0 < asked.seconds <= limits.seconds:
            raise ConfigError(f"seconds: must be above 0 and at most {limits.seconds:g}, got {asked.seconds:g}")
        if asked.seed is not None and not 0 <= asked.seed < 2**53:  # which JavaScript holds exactly
            raise ConfigError(f"seed: must be from 0 to 2**53 - 1, got {asked.seed}")
        if asked.guidance is not None:
            check_guidance(asked.guidance)
        if asked.prompt_seconds is not None and not 0 < asked.prompt_seconds <= limits.upload_seconds:
            most = f"at most {limits.upload_seconds:g}"
            raise ConfigError(f"prompt_seconds: must be above 0 and {most}, got {asked.prompt_seconds:g}")
        for name in ("prompt_seconds", "only_new"):
            if getattr(asked, name) and "prompt" not in files:
                raise ConfigError(f"{name}: there is no prompt to which it could apply")
        known_names = {fold(name) for name in self.labels}
        if any(isinstance(part, Text) for part in self.labels.values()):
            known_names.add("text")  # see `ask`
        for name, value in asked.labels.items():
            # Not those that are given as files: of them, a text would be the path of a file of this machine.
            if fold(name) not in known_names:
                known = ", ".join(self.labels) or "none"
                raise ConfigError(f"{name[:64]}: the run has no such label; it has {known}")
            if value is not None and len(value) > limits.text:
                raise ConfigError(f"{name}: has {len(value)} characters; give at most {limits.text}")
        for name in files:
            if name not in self.files:
                raise ConfigError(f"{name}: this run can't use such a file; it can use {', '.join(self.files)}")

    def _prepare(self, asked: Asked, files: Mapping[str, Path]) -> list[_Job]:
        run, rate = self.run, self.run.sample_rate
        wavs = {name: self._read(name, path) for name, path in files.items()}
        if asked.prompt_seconds is not None:
            wavs["prompt"] = wavs["prompt"][:, -max(1, round(asked.prompt_seconds * rate)) :]
        filters = {f.name: getattr(asked, f.name) for f in fields(asked) if f.name in run.sampling.__dataclass_fields__}
        sampling = run.sampling_with(**{name: value for name, value in filters.items() if value is not None})
        seed = secrets.randbelow(2**32) if asked.seed is None else asked.seed
        conditions: dict[str, Any] = {}
        if "like" in files:
            found = run.conditions_of(files["like"])
            conditions |= {n: wavs["like"][None] if isinstance(value, Path) else value for n, value in found.items()}
        conditions |= {**asked.labels, **{n: wavs[n][None] for n in FOLLOWED if n in wavs}}
        seconds, jobs = self._seconds(asked, wavs), []
        for used in range(seed, seed + asked.num * asked.best_of, asked.best_of):
            length = seconds
            if length is None:
                how = (sampling, conditions, asked.guidance, asked.best_of)
                request, lengths = run.request_with_end([used], *how)
                length = min(lengths[0] / rate, self.limits.seconds)
            else:
                request = run.request(
                    seeds=[used],
                    prompt=wavs.get("prompt"),
                    sampling=sampling,
                    conditions=conditions,
                    guidance=asked.guidance,
                    seconds=length,
                    meaning=wavs.get("meaning"),
                    best_of=asked.best_of,
                )
            if asked.best_of > 1:
                evident(run.model, request)
            given = 0 if request.prompt is None or request.renders else request.prompt.shape[-1]
            known = run.ask(conditions, [used])
            words = {} if known is None else {n: w for n, w in known.words[0].items() if n in self.labels}
            skipped = given if asked.only_new else 0
            this = replace(asked, seconds=length, num=1, seed=used, labels=dict(asked.labels))
            num_samples = given - skipped + max(1, round(length * rate))
            sound = Sound(this, words, tuple(files), rate, num_samples, run.num_channels)
            jobs.append(_Job(sound, length, request, skipped))
        return jobs

    def _seconds(self, asked: Asked, wavs: Mapping[str, Tensor]) -> float | None:
        """Return the seconds of new sound, None for a complete sound."""
        if asked.seconds is not None:
            return asked.seconds
        for name in ("meaning", "like", "melody", "loudness"):
            if name in wavs:
                return min(wavs[name].shape[-1] / self.run.sample_rate, self.limits.seconds)
        return None if self.run.knows_ends and "prompt" not in wavs else min(DEFAULT_SECONDS, self.limits.seconds)

    def _read(self, name: str, path: Path) -> Tensor:
        """Read an uploaded file as (1, N)."""
        wav = read_at_most(path, self.run.sample_rate, self.limits.upload_seconds)
        if not wav.shape[1]:
            raise AudioReadError(f"{name}: is too short; give a longer one")
        return wav

    def _drop_oldest(self) -> None:
        """Forget the oldest finished sounds beyond what is kept."""
        kept = sum(sound.num_bytes for sound in self._sounds.values())
        for id, sound in list(self._sounds.items()):
            if kept <= self.limits.kept_bytes and len(self._sounds) <= 1000:
                return
            if sound.ended:
                del self._sounds[id]
                kept -= sound.num_bytes

    # ---- generating

    def _work(self) -> None:
        while (job := self._waiting.get()) is not None:
            if not job.sound.cancelled:
                self._generate(job)

    def _generate(self, job: _Job) -> None:
        sound, began, left_out = job.sound, time.monotonic(), job.skipped
        sound.state = "running"

        def check() -> None:
            if sound.cancelled:
                raise _CancelledError
            if time.monotonic() - began > self.limits.work_seconds:
                raise AudiogenError(f"seconds: it took more than {self.limits.work_seconds:g} s; ask for fewer")

        try:
            for chunk in self._chunks(job.seconds, replace(job.request, on_chunk=check)):
                check()
                kept, left_out = chunk[..., left_out:], max(0, left_out - chunk.shape[-1])
                if not sound.append(kept):
                    break
            sound.complete()
            sound.state = "done"
        except _CancelledError:
            pass
        except AudiogenError as error:
            sound.error, sound.state = str(error), "failed"
        except Exception:  # a bug; the worker must go on
            log.exception("a sound could not be generated")
            sound.error, sound.state = "an internal error, which the server's log describes", "failed"

    def _chunks(self, seconds: float, request: Request) -> Iterator[Tensor]:
        """Yield the sound in chunks, or as a whole where it can't be decoded, or chosen, before its end."""
        if self.run.frontend.streams and request.best_of == 1:
            yield from self.run.stream_request(seconds, request)
        else:
            yield self.run.generate_request(seconds, request).x


def _describe_part(part: Condition) -> dict[str, Any]:
    config: Any = part.config
    if hasattr(config, "values"):
        return {"kind": "label", "values": list(config.values)}
    if hasattr(config, "low"):
        return {"kind": "number", "low": config.low, "high": config.high}
    return {"kind": "text"}
