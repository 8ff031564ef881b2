"""What every front-end promises, and the checks that they share."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import to_dict
from ..errors import ConfigError, DataError, NotFittedError
from ..spec import Spec


class Frontend(nn.Module):
    """Sound to what a model reads, and back.

    encode: wav (B, 1, N) in [-1, 1] at spec.sample_rate -> codes (B, K, T) int64 or frames (B, F, T), T = ceil(N / hop)
    decode: (B, C, T) -> wav (B, 1, T * hop) in [-1, 1]; the caller trims to N
    fit: learned front-ends only; wavs is a re-iterable of training files (1, N); deterministic given the config
    Where the rate varies (spec.hop_length is None) an item has as many codes as its sound happens to need. Shorter ones
    of a batch end in holes, the code V, which `decode` takes too: an item's sound ends with its last code, and zeros
    follow. At any rate `frame_lengths` says how many samples each frame stands for.
    Both take and give tensors of the module's floating dtype and device, give each item what it would get alone (but
    for rounding), and raise ValueError for a wrong shape, dtype or code, NotFittedError while there are no weights.
    Only `fit` and `acquire` write weights; the state dict and the config are all that a copy needs.
    """

    learned: ClassVar[bool] = False
    samplewise: ClassVar[bool] = False  # each code stands for one sample alone, so files may be encoded in blocks
    adjustable: ClassVar[frozenset[str]] = frozenset()  # settings that may change once it is fitted
    spec: Spec

    @dataclass(frozen=True)
    class Config:
        pass

    def __init__(self, config: "Frontend.Config"):
        super().__init__()
        self.config = config
        #: What it wraps, if it does: `expand` turns its codes (1, T) into those of the base.
        self.base: Frontend | None = None
        # Follows .to() and .double(), so that a front-end without weights has a device and a dtype too.
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)
        if self.learned:
            self.register_buffer("is_fitted", torch.zeros((), dtype=torch.uint8))

    def encode(self, wav: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def fit(self, wavs: Iterable[Tensor]) -> None:
        raise TypeError(f"{type(self).__name__} learns nothing: there is nothing to fit")

    def acquire(self) -> None:
        """Gets weights that are published rather than fitted; `load_frontend(name)` calls it, loading a folder not."""

    @property
    def fitted(self) -> bool:
        """Whether encode and decode can be called."""
        return not self.learned or bool(self.is_fitted)

    @property
    def device(self) -> torch.device:
        return self._anchor.device

    @property
    def dtype(self) -> torch.dtype:
        return self._anchor.dtype

    @classmethod
    def at_rate(cls, settings: Mapping[str, Any], sample_rate: int) -> dict[str, Any]:
        """Settings with this rate (Hz), if there is one to choose and they do not name it."""
        chosen = {"sample_rate": sample_rate} if "sample_rate" in {field.name for field in fields(cls.Config)} else {}
        return {**chosen, **settings}

    def num_frames(self, num_samples: int) -> int:
        """T = ceil(N / hop_length); where the rate varies, the most that N samples can need."""
        return -(-num_samples // self.spec.hop_length)

    @property
    def longest_frame(self) -> int:
        """Samples that one frame stands for at most."""
        return self.spec.hop_length

    def frame_lengths(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, T) int64: the samples that each frame stands for; of holes 0, where the rate varies."""
        return torch.full_like(x[:, 0], self.spec.hop_length, dtype=torch.int64)

    def seconds(self, sequences: Iterable[Tensor]) -> float:
        """How much sound sequences (C, T) of codes or frames stand for, all together."""
        return sum(int(self.frame_lengths(x[None]).sum()) for x in sequences) / self.spec.sample_rate

    def fingerprint(self) -> str:
        """SHA-256 in hexadecimal of the kind, the config and the weights: equal where the codes must be."""
        digest = hashlib.sha256(json.dumps([type(self).__name__, to_dict(self.config)], sort_keys=True).encode())
        digest.update(hash_tensors(self.state_dict()).encode())
        return digest.hexdigest()

    # Checks: each subclass begins encode and decode with one of them.

    def check_fitted(self) -> None:
        if not self.fitted:
            raise NotFittedError(f"{type(self).__name__} has not been fitted: call fit(wavs) with the training files, "
                                 "or load a folder where it was saved")

    def check_wav(self, wav: Tensor) -> None:
        self.check_fitted()
        _check_is_tensor("wav", wav)
        if wav.ndim != 3 or wav.shape[1] != 1 or wav.shape[0] < 1 or wav.shape[2] < 1:
            raise ValueError(f"wav must have shape (B, 1, N) with B, N >= 1, got {tuple(wav.shape)}")
        self._check_tensor("wav", wav)

    def check_codes(self, codes: Tensor, fewer_rows: bool = False) -> None:
        """With `fewer_rows` the first rows alone will do, as for residual codebooks."""
        self.check_fitted()
        _check_is_tensor("codes", codes)
        rows, size = self.spec.num_codebooks, self.spec.codebook_size
        good_rows = codes.ndim == 3 and (1 <= codes.shape[1] <= rows if fewer_rows else codes.shape[1] == rows)
        if not good_rows or codes.shape[0] < 1 or codes.shape[2] < 1:
            wanted = f"K <= {rows}" if fewer_rows else f"K = {rows}"
            raise ValueError(f"codes must have shape (B, K, T) with {wanted} and B, T >= 1, got {tuple(codes.shape)}")
        if codes.dtype != torch.int64:
            raise ValueError(f"codes must be int64, got {codes.dtype}")
        if codes.device != self.device:
            raise ValueError(f"codes must be on {self.device}, as the front-end is, got {codes.device}")
        low, high = (int(value) for value in codes.aminmax())
        if low < 0 or high >= size:
            raise ValueError(f"codes must lie in [0, {size}), got {low} to {high}")

    def check_frames(self, frames: Tensor) -> None:
        self.check_fitted()
        _check_is_tensor("frames", frames)
        features = self.spec.num_features
        if frames.ndim != 3 or frames.shape[1] != features or frames.shape[0] < 1 or frames.shape[2] < 1:
            raise ValueError(f"frames must have shape (B, {features}, T) with B, T >= 1, got {tuple(frames.shape)}")
        self._check_tensor("frames", frames)

    def _check_tensor(self, name: str, x: Tensor) -> None:
        if x.dtype != self.dtype:
            raise ValueError(f"{name} must be {self.dtype}, got {x.dtype}")
        if x.device != self.device:
            raise ValueError(f"{name} must be on {self.device}, as the front-end is, got {x.device}")
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity")


def _check_is_tensor(name: str, x: object) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a torch tensor, got {type(x).__name__}: of a numpy array x, give "
                         "torch.from_numpy(x)")


def training_wavs(wavs: Iterable[Tensor]) -> Iterator[Tensor]:
    """One pass over the training files (1, N); those without a sample are left out.

    Raises:
        DataError: there is none.
        ValueError: `wavs` can be passed over only once, or holds something else.
    """
    if iter(wavs) is wavs:
        raise ValueError("fit passes over the files more than once: give it a list or another re-iterable")
    empty = True
    for wav in wavs:
        if wav.ndim != 2 or wav.shape[0] != 1 or not wav.is_floating_point():
            raise ValueError(f"fit expects floating wavs of shape (1, N), got {tuple(wav.shape)} {wav.dtype}")
        if wav.shape[1]:
            empty = False
            yield wav
    if empty:
        raise DataError("there is no training file to fit the front-end to: give it at least one")


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 in hexadecimal of names, dtypes, shapes and bytes; the device does not matter."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def check_setting(good: bool, key: str, rule: str, value: object) -> None:
    """For a Config's __post_init__: raises the ConfigError that names `frontend.key` unless `good`."""
    if not good:
        raise ConfigError(f"frontend.{key}: must be {rule}, got {value!r}")


#: Numbers in one group of weights: 512 MiB. More is a slip, or the config of a stranger who would have us fill memory.
MOST_WEIGHTS = 2 ** 27


def check_weights(count: int, keys: str) -> None:
    """For a Config's __post_init__: raises the ConfigError of settings that ask for too many weights together."""
    if count > MOST_WEIGHTS:
        raise ConfigError(f"frontend.{keys}: ask for {count:,} weights together, and at most {MOST_WEIGHTS:,} are "
                          "taken; choose smaller ones")
