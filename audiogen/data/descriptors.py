"""The descriptors of a cache's recordings, such as the melody, computed once and stored beside the codes.

    CACHE/descriptors/melody.bin     (columns, F) float16, one file after another
    CACHE/descriptors/melody.json    a digest of the files that it describes, and its checksum

A column describes `stride` frames of the front-end, so that there are at most MAX_RATE columns per second: with
mu-law, a frame is a single sample. The timbre has one column for a whole file.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..audio import descriptors
from ..audio.io import read_blocks
from ..errors import CacheError, ConfigError, DataError
from ..models.conditioning import CONDITIONS, Condition, Loudness, Melody, Timbre
from ..spec import Spec
from ..utils.files import alone_in, atomic_path, atomic_write_json, sha256_file
from ..utils.json_files import read_format
from .cache import EncodedCache
from .cache_index import DESCRIPTORS_FOLDER
from .index import Index

log = logging.getLogger("audiogen")

#: Increased when descriptors are computed differently, so that stored ones are computed again.
FORMAT = 1
#: Maximum number of columns per second.
MAX_RATE = 100.0
#: Frames that a column describes at most: all of a file.
WHOLE = 2**62
#: The function that computes each condition that is a descriptor: chunks (1, n), sample rate, hop length -> (F, n).
DESCRIPTORS: dict[type[Condition], Callable[[Iterable[Tensor], int, int], Iterator[Tensor]]] = {
    Melody: descriptors.melody,
    Loudness: descriptors.loudness,
    Timbre: lambda chunks, sample_rate, hop_length: iter([descriptors.timbre(chunks, sample_rate)]),
}


def is_descriptor(kind: str) -> bool:
    """Return whether conditions of this kind are computed from recordings."""
    return kind in CONDITIONS and CONDITIONS[kind] in DESCRIPTORS


def stride_of(kind: type[Condition], spec: Spec) -> int:
    """Return the number of frames that one column describes.

    Raises:
        ConfigError: the front-end's frame rate varies, so frames have no fixed position in time.
    """
    if kind is Timbre:
        return WHOLE
    if spec.frame_rate is None:
        raise ConfigError("conditions: melody and loudness need a front-end with a constant frame rate; choose another")
    return max(1, math.ceil(spec.frame_rate / MAX_RATE))


def compute_descriptor(kind: type[Condition], chunks: Iterable[Tensor], spec: Spec) -> Iterator[Tensor]:
    """Compute the columns of a recording.

    Args:
        kind: the condition, a key of DESCRIPTORS.
        chunks: pieces of a wav (1, n) at the front-end's sample rate.
        spec: the front-end's spec.

    Yields:
        (F, n) float32, n columns at a time; each describes `stride_of(kind, spec)` frames.
    """
    return DESCRIPTORS[kind](chunks, spec.sample_rate, stride_of(kind, spec) * int(spec.hop_length or 0))


def described_value(condition: Condition, value: Any, spec: Spec) -> Any:
    """Compute the descriptor of a recording that a user gives as the value of a condition.

    Args:
        condition: the condition. If it is not a descriptor, the value is returned unchanged.
        value: the path of a sound file; a wav (1, 1, N), or (1, N) if F is not 1. Other values are returned unchanged.
        spec: the front-end's spec.

    Returns:
        (F, T) with one column per frame, and NaN after the end of the recording; (F, 1) of its timbre.

    Raises:
        AudioReadError: the file can't be read.
        ConfigError: the front-end's frame rate varies, or the recording is empty.
    """
    kind = type(condition)
    if kind not in DESCRIPTORS:
        return value
    if isinstance(value, str | Path):
        chunks: Iterable[Tensor] = read_blocks(value, spec.sample_rate)
    elif isinstance(value, Tensor | np.ndarray) and (
        value.ndim == 3 and value.shape[:2] == (1, 1) or value.shape[:-1] == (1,) != (condition.num_features,)
    ):
        chunks = [torch.as_tensor(value).reshape(1, -1).float().cpu()]
    else:
        return value
    columns = [x for x in compute_descriptor(kind, chunks, spec) if x.shape[1]]
    if not columns:
        raise ConfigError(f"the recording {value if isinstance(value, str | Path) else 'given'} is empty")
    if (stride := stride_of(kind, spec)) == WHOLE:
        return columns[0]
    # Without the NaN, a recording of one frame would be a value for the whole item.
    columns.append(torch.full_like(columns[0][:, :1], math.nan))
    return torch.cat(columns, dim=1).repeat_interleave(stride, dim=1)


class StoredDescriptor:
    """A descriptor of all files of a cache, memory-mapped.

    Loader processes can share it: pickling it copies the list of files, not the data.
    """

    def __init__(self, path: Path, kind: type[Condition], cache: EncodedCache):
        self.path, self.num_features, self.stride = path, kind.num_features, stride_of(kind, cache.spec)
        ends = np.cumsum(-(-cache.num_frames // self.stride))
        self._begin = dict(zip(cache.hashes(), [0, *ends[:-1].tolist()], strict=True))
        self._total = int(ends[-1])

    @cached_property
    def _data(self) -> np.ndarray:
        return np.memmap(self.path, np.float16, "r", shape=(self._total, self.num_features)).view(np.ndarray)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_data"}

    def frames(self, sha256: str, first: int, length: int) -> np.ndarray:
        """Return the values of frames [first, first + length) of a file: (F, length) float32."""
        columns = self._begin[sha256] + np.arange(first, first + length) // self.stride
        return self._data[columns].T.astype(np.float32)


def open_descriptors(
    configs: Mapping[str, Any], cache: EncodedCache, index: Index | None = None
) -> dict[str, StoredDescriptor]:
    """Open the descriptors of a cache that a run's conditions need; compute those that are missing.

    Args:
        configs: config of each condition by name.
        cache: the encoded files.
        index: the recordings; None to compute descriptors from the decoded codes.

    Raises:
        ConfigError: the front-end's frame rate varies.
        DataError: a recording has changed since it was encoded.
        AudiogenError: a file can't be read or written.
    """
    kinds = {part.Config: kind for kind, part in CONDITIONS.items()}
    found = {}
    for name, config in configs.items():
        kind = kinds[type(config)]
        if is_descriptor(kind):
            found[name] = _open(kind, cache, index)
    return found


def _open(kind: str, cache: EncodedCache, index: Index | None) -> StoredDescriptor:
    path = cache.folder / DESCRIPTORS_FOLDER / f"{kind}.bin"
    stored = StoredDescriptor(path, CONDITIONS[kind], cache)
    if not _is_valid(path, cache):
        with alone_in(path.parent):
            if not _is_valid(path, cache):
                _write(path, kind, cache, index, stored.stride)
    return stored


def _is_valid(path: Path, cache: EncodedCache) -> bool:
    """Return whether a stored descriptor is complete and describes the files of this cache."""
    try:
        values = read_format(path.with_suffix(".json"), FORMAT, CacheError, "remove it")
        return values == {"format": FORMAT, "files": _digest(cache), "sha256": sha256_file(path)}
    except (CacheError, OSError):
        return False


def _digest(cache: EncodedCache) -> str:
    """Return a digest of the contents and lengths of a cache's files, and of the length of a frame."""
    spec = cache.spec
    files = list(zip(cache.hashes(), cache.num_frames.tolist(), strict=True))
    about = [spec.sample_rate, spec.hop_length, files]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _write(path: Path, kind: str, cache: EncodedCache, index: Index | None, stride: int) -> None:
    recordings = {} if index is None else {file.sha256: index.folder / file.path for file in index.files}
    if index is None:
        log.info("%s: computed from the decoded codes, since the recordings are not given", kind)
    path.with_suffix(".json").unlink(missing_ok=True)
    with atomic_path(path) as temporary, open(temporary, "wb") as data:
        for i, file in enumerate(tqdm(cache.files, unit="file", desc=kind, disable=None)):
            recording, count = recordings.get(file.sha256), 0
            chunks = [cache.decode(i)] if recording is None else read_blocks(recording, cache.spec.sample_rate)
            for columns in compute_descriptor(CONDITIONS[kind], chunks, cache.spec):
                data.write(np.ascontiguousarray(columns.T.numpy(), np.float16).data)
                count += columns.shape[1]
            if count != -(-file.num_frames // stride):
                raise DataError(f"{recording or file.path}: has changed since it was encoded; encode the folder again")
    values = {"format": FORMAT, "files": _digest(cache), "sha256": sha256_file(path)}
    atomic_write_json(path.with_suffix(".json"), values)
