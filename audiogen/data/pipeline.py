"""From a folder of sound to the codes of both its sides in one call: where every lesson begins."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..frontends import FRONTENDS, Frontend, load_frontend
from ..spec import Spec
from .cache import EncodedCache
from .crops import Crops
from .index import Index, long_enough, main_sample_rate, scan
from .sequences import Sequences
from .split import Split, split, training_wavs


@dataclass(frozen=True)
class Encoded:
    """A folder as one front-end encodes it: `training` and `held_out` are its two sides, file by file."""

    frontend: Frontend
    cache: EncodedCache
    sides: Split

    @property
    def spec(self) -> Spec:
        return self.frontend.spec

    @cached_property
    def training(self) -> Sequences:
        return Sequences(self.cache, self.sides.train)

    @cached_property
    def held_out(self) -> Sequences:
        return Sequences(self.cache, self.sides.held_out)

    def crops(self, num_frames: int, batch_size: int, seed: int = 0) -> Crops:
        """Training crops; see `Crops`."""
        return Crops(self.cache, self.sides.train, num_frames, batch_size, seed)


def encode_folder(folder: str | Path, out: str | Path, frontend: str = "melvq", **settings: Any) -> Encoded:
    """Scans and splits a folder, fits the front-end to the training side alone, and encodes both into `out`/cache.

    A cache that is there already and fits is used again.

    Args:
        folder: of sound files.
        out: the folder of the lesson or run.
        frontend: name of a front-end, or a folder that holds one.
        settings: of the front-end; `sample_rate` is the folder's own, up to 16 kHz, unless it is set.

    Raises:
        DataError, ConfigError, RunError: as their messages say.
    """
    index = scan(folder)
    index.require_files()
    front = frontend_for(index, frontend, settings)
    sides = split(long_enough(index, front.spec))
    fit_to(front, index, sides)
    return Encoded(front, EncodedCache.open_or_build(long_enough(index, front.spec), front, Path(out) / "cache"), sides)


def default_rate(index: Index, name: str) -> int:
    """Return the rate (Hz) for the front-end of this name: the folder's own, up to its `highest_default_rate`."""
    return min(main_sample_rate(index), FRONTENDS[name].highest_default_rate)


def frontend_for(index: Index, name: str, settings: dict[str, Any]) -> Frontend:
    """Load the front-end by name or folder, at the `default_rate` if it has a rate to choose."""
    if name in FRONTENDS:
        settings = FRONTENDS[name].at_rate(settings, default_rate(index, name))
    return load_frontend(name, **settings)


def fit_to(frontend: Frontend, index: Index, sides: Split) -> None:
    """Fits a learned front-end that is not fitted yet, on the training files alone."""
    if not frontend.fitted:
        frontend.fit(training_wavs(index, sides.train, frontend.spec.sample_rate))
