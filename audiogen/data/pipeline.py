"""From a folder of sound files to training and held-out codes in one call: the first step of every lesson."""

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
    """A folder encoded by one front-end.

    Attributes:
        frontend: the front-end, fitted to the training side.
        cache: the encoded files.
        sides: the split of the files.
    """

    frontend: Frontend
    cache: EncodedCache
    sides: Split

    @property
    def spec(self) -> Spec:
        """The front-end's spec."""
        return self.frontend.spec

    @cached_property
    def training(self) -> Sequences:
        """One sequence (C, T) per training part."""
        return Sequences(self.cache, self.sides.train)

    @cached_property
    def held_out(self) -> Sequences:
        """One sequence (C, T) per held-out part."""
        return Sequences(self.cache, self.sides.held_out)

    def crops(self, num_frames: int, batch_size: int, seed: int = 0) -> Crops:
        """Return training crops; see `Crops`."""
        return Crops(self.cache, self.sides.train, num_frames, batch_size, seed)


def encode_folder(folder: str | Path, out: str | Path, frontend: str = "melvq", **settings: Any) -> Encoded:
    """Scan and split a folder, fit the front-end to the training side alone, and encode both sides into `out`/cache.

    An existing cache is reused if it matches.

    Args:
        folder: folder of sound files.
        out: folder of the lesson or run.
        frontend: name of a front-end, or a folder that holds one.
        settings: settings of the front-end; `sample_rate` defaults to the folder's own, up to 16 kHz.

    Raises:
        DataError: the folder has too little sound.
        ConfigError: the front-end or a setting is unknown or invalid.
        RunError: the folder of the front-end is damaged.
    """
    index = scan(folder)
    index.require_files()
    front = frontend_for(index, frontend, settings)
    sides = split(long_enough(index, front.spec))
    fit_to(front, index, sides)
    return Encoded(front, EncodedCache.open_or_build(long_enough(index, front.spec), front, Path(out) / "cache"), sides)


def default_rate(index: Index, name: str) -> int:
    """Return the default rate (Hz) of the named front-end: the folder's own, up to its `highest_default_rate`."""
    return min(main_sample_rate(index), FRONTENDS[name].highest_default_rate)


def frontend_for(index: Index, name: str, settings: dict[str, Any]) -> Frontend:
    """Load a front-end by name or folder, at `default_rate` if its rate is a setting."""
    if name in FRONTENDS:
        settings = FRONTENDS[name].at_rate(settings, default_rate(index, name))
    return load_frontend(name, **settings)


def fit_to(frontend: Frontend, index: Index, sides: Split) -> None:
    """Fit a front-end to the training files alone, unless it is fitted already."""
    if not frontend.fitted:
        frontend.fit(training_wavs(index, sides.train, frontend.spec.sample_rate))
