"""A run folder: what a training run is made from, and all that generating from it needs.

    runs/NAME/config.json  frontend.safetensors  model.safetensors  ...

Loading builds from config.json alone, strictly; nothing is unpickled, fetched or imported by name.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data import EncodedCache, Sequences, Split, is_cache
from ..errors import CacheError, DataError
from ..frontends import Frontend, load_frontend
from ..generation.audio import generate_sound, stream_sound
from ..generation.request import Generation, Request, check_precision, choose_seeds
from ..models.sampling import Sampling
from ..models.sequence_model import SequenceModel
from .config import RunConfig
from .folder import read_config, read_source, read_split, read_weights

log = logging.getLogger("audiogen")


@dataclass
class Run:
    """A trained run.

    Attributes:
        folder, config: where it lies and what it was made from.
        frontend, model: on one device, in evaluation mode.
        step: at which the weights stood.
        precision: to what an engine may round the weights while it generates: "fp32", "bf16" or "int8".
    """

    folder: Path
    config: RunConfig
    frontend: Frontend
    model: SequenceModel
    step: int
    precision: str = "fp32"

    @property
    def sample_rate(self) -> int:
        return self.frontend.spec.sample_rate

    def split(self) -> Split:
        """Which files it was trained on and which were held out; of nothing if the run does not say."""
        return read_split(self.folder)

    def training_sequences(self) -> Sequences | None:
        """The training codes, or None if the cache that it was trained from is no longer there, or is another now."""
        cache = read_source(self.folder)
        if not is_cache(cache):
            log.warning(
                "%s: the encoded cache that the run was trained from is gone, so that nothing is said of "
                "counting; audiogen train --resume makes it again",
                cache,
            )
            return None
        try:
            return Sequences(EncodedCache.open(cache, self.frontend), self.split().train)
        except (CacheError, DataError) as error:
            log.warning("the training codes can't be counted: %s", error)
            return None

    def generate(
        self,
        seconds: float = 4.0,
        num: int = 1,
        seed: int | None = None,
        prompt: Tensor | None = None,
        sampling: Sampling = Sampling(),
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """Make new sound.

        Args:
            seconds: of new sound, beyond the prompt.
            num: items; item i uses seed + i, so that each can be made again by itself.
            seed: None draws a fresh one, and logs it.
            prompt: (1, N) or (1, 1, N) wav at `sample_rate` to go on from.
            sampling: temperature and filters.
            seeds: one per item, in the place of `num` and `seed`.

        Returns:
            (num, 1, N) float32 in [-1, 1] on the model's device, beginning with the prompt as the front-end renders it.
            To know the seeds as well, make a `request` and give it to `generate_request`.

        Raises:
            ConfigError: a length, number, seed or filter is out of range.
            GenerationError: what the model predicts is not a number.

        Example:
            >>> wavs = load_run("runs/mine").generate(seconds=4, num=4, seed=0)  # doctest: +SKIP
        """
        return self.generate_request(seconds, self.request(num, seed, prompt, sampling, seeds)).x

    def stream(
        self,
        seconds: float = 4.0,
        num: int = 1,
        seed: int | None = None,
        prompt: Tensor | None = None,
        sampling: Sampling = Sampling(),
        seeds: Sequence[int] | None = None,
    ) -> Iterator[Tensor]:
        """Make the same in chunks (num, 1, n), the prompt's sound first, each as soon as it is there.

        Side by side they are what `generate` with the same seeds gives, but for rounding. Memory does not grow with
        `seconds`, which may be a day at most.

        Raises:
            ConfigError: the front-end can't decode a stream, or at a variable rate not one of several items.
        """
        return self.stream_request(seconds, self.request(num, seed, prompt, sampling, seeds))

    def request(
        self,
        num: int = 1,
        seed: int | None = None,
        prompt: Tensor | None = None,
        sampling: Sampling = Sampling(),
        seeds: Sequence[int] | None = None,
    ) -> Request:
        """Return the request that `generate` and `stream` make of these arguments, at the precision of the run.

        Its `seeds` are those that will be used, fresh ones included.
        """
        if seeds is None:
            seeds = choose_seeds(num, seed)
            if seed is None:
                log.info("seed drawn: %d, and counting up", seeds[0])
        wav = None if prompt is None else prompt.reshape(1, 1, -1)
        return Request(wav, 1, seeds, sampling, self.precision)

    def generate_request(self, seconds: float, request: Request) -> Generation:
        """Make the sound of a request: x (B, 1, N), with the seeds of its items and their lengths in samples.

        Example:
            >>> made = run.generate_request(4.0, run.request(num=2))  # doctest: +SKIP
            >>> again = run.generate(4.0, seeds=made.seeds)           # doctest: +SKIP
        """
        return generate_sound(self.frontend, self.model, seconds, request)

    def stream_request(self, seconds: float, request: Request) -> Iterator[Tensor]:
        """Make the same in chunks (B, 1, n)."""
        return stream_sound(self.frontend, self.model, seconds, request)


def load_run(folder: str | Path, device: str | torch.device = "cpu", precision: str = "fp32") -> Run:
    """A run from its folder alone, ready to generate.

    Args:
        precision: "fp32", "bf16" or "int8": to what an engine may round the weights while it generates, for speed.

    Raises:
        RunError: half-written, damaged, or of a newer format; names the file.
        ConfigError: the precision is unknown.
    """
    check_precision(precision)
    folder = Path(folder)
    config = read_config(folder)
    frontend = load_frontend(folder).to(device)
    model, step = read_weights(folder, config, frontend.spec)
    return Run(folder, config, frontend, model.to(device).eval(), step, precision)
