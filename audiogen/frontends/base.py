"""What every front-end promises, and the checks that they share."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..audio.containers import MAX_PEAK
from ..config import to_dict
from ..errors import ConfigError, DataError, NotFittedError
from ..spec import Spec
from ..utils.tensors import hash_tensors
from .streaming import blockwise


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
    Only `fit` and `load_pretrained` write weights; the state dict and the config are all that a copy needs.

    Both work in blocks of `block_frames`, counted from the beginning, and carry a state from one to the next:
    `encode_block` and `decode_block` are what a front-end is made of. The streams cut what they are given into these
    same blocks, so what they give is that of the whole, to the bit, in memory that does not grow.
    """

    learned: ClassVar[bool] = False
    #: A front-end named without a rate takes the folder's own, up to this (Hz): a lower one lets a model hear further
    #: back.
    highest_default_rate: ClassVar[int] = 16_000
    lookahead: ClassVar[float] = 0  # frames after its own whose samples a frame is made of
    output_delay: ClassVar[float] = 0  # frames' worth of sound that `decode_block` keeps until it knows what follows
    start_frames: ClassVar[int] = 1  # the first block has at least so many, unless the sound ends before
    reconfigurable: ClassVar[frozenset[str]] = frozenset()  # settings that may change once it is fitted
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
        self.check_wav(wav)
        return torch.cat(list(self.encode_stream([wav])), dim=-1)

    def decode(self, x: Tensor) -> Tensor:
        self.check(x)
        return torch.cat(list(self.decode_stream([x])), dim=-1)

    def encode_stream(self, chunks: Iterable[Tensor], block_frames: int | None = None) -> Iterator[Tensor]:
        """Chunks of a wav (B, 1, n) of any lengths, also of 0 or 1 sample -> (B, C, t), in all `encode` of the whole.

        Args:
            chunks: read one after the other, each when its turn comes.
            block_frames: frames at once. None: those of `encode`, which is fastest; 1: as soon as the samples are there
                (`latency_ms`), with codes that may differ from the file's where two codewords lie within rounding.

        Raises:
            ConfigError: this front-end needs all of the sound at once.
            ValueError, NotFittedError: as `encode`, when the chunk's turn comes.
        """
        size, hop_length = self._block_size(block_frames), self.spec.hop_length
        return blockwise(
            torch.no_grad()(self.encode_block),
            _checked(chunks, self.check_wav),
            math.ceil(max(size, self.start_frames, 1 + self.lookahead) * hop_length),
            size * hop_length,
            flushes=self.lookahead > 0,
        )

    def decode_stream(self, chunks: Iterable[Tensor], block_frames: int | None = None) -> Iterator[Tensor]:
        """Chunks (B, C, t) of any lengths -> wav (B, 1, n), in all `decode` of the whole. As `encode_stream`.

        Raises:
            ConfigError: this front-end decodes only all frames at once; `streams` says so beforehand.
        """
        if not self.streams:
            raise ConfigError(
                f"front-end {type(self).__name__} needs all frames at once to make sound of them, so it "
                "can't decode a stream: decode the whole, use another front-end, or train a vocoder for "
                "mel frames (recipes/11_vocoder.py)"
            )
        size = self._block_size(block_frames)
        return blockwise(
            torch.no_grad()(self.decode_block),
            _checked(chunks, self.check),
            max(size, self.start_frames),
            size,
            flushes=self.output_delay > 0,
        )

    def encode_block(self, wav: Tensor, state: Any, last: bool) -> tuple[Tensor, Any]:
        """The next samples (B, 1, n) -> frames (B, C, t), state. `state` is None at the beginning; n is a multiple of
        the hop but in the first block, which `lookahead` may ask more of, and at the end (`last`), where it may be 0
        if the front-end looks ahead."""
        raise NotImplementedError

    def decode_block(self, x: Tensor, state: Any, last: bool) -> tuple[Tensor, Any]:
        """The next frames (B, C, t) -> wav (B, 1, n), state; n is t * hop in all, and t is 0 only at the end (`last`),
        and only if the front-end holds back. One without this method does not stream."""
        raise NotImplementedError

    @property
    def block_frames(self) -> int:
        """Frames that `encode` and `decode` work on at once."""
        raise NotImplementedError

    @property
    def streams(self) -> bool:
        """Whether it can decode a stream."""
        return type(self).decode_block is not Frontend.decode_block

    @property
    def latency_ms(self) -> float:
        """How long after a sample came in its sound can go out at the earliest, in ms, the time for computing apart: of
        the two streams in blocks of one frame; infinite where either needs all at once."""
        if not self.streams:
            return math.inf
        frames = 1 + self.lookahead + self.output_delay
        return 1000 * frames * self.spec.hop_length / self.spec.sample_rate

    def _block_size(self, frames: int | None) -> int:
        if frames is not None and frames < 1:
            raise ValueError(f"block_frames must be at least 1, got {frames}")
        return frames or self.block_frames

    def fit(self, wavs: Iterable[Tensor]) -> None:
        raise TypeError(f"{type(self).__name__} learns nothing: there is nothing to fit")

    def quick_variant(self) -> "Frontend":
        """Itself; or, not yet fitted, one that is fitted in less time and good enough to try whether a model learns."""
        return self

    def load_pretrained(self) -> None:
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

    # Checks of what goes in.

    def check_fitted(self) -> None:
        if not self.fitted:
            raise NotFittedError(
                f"{type(self).__name__} has not been fitted: call fit(wavs) with the training files, "
                "or load a folder where it was saved"
            )

    def check_wav(self, wav: Tensor) -> None:
        self.check_fitted()
        _check_is_tensor("wav", wav)
        if wav.ndim != 3 or wav.shape[1] != 1 or wav.shape[0] < 1 or wav.shape[2] < 1:
            raise ValueError(f"wav must have shape (B, 1, N) with B, N >= 1, got {tuple(wav.shape)}")
        self._check_tensor("wav", wav)
        peak = float(wav.detach().abs().amax())
        if peak > MAX_PEAK:
            raise ValueError(f"wav must lie in [-1, 1], got {peak:.3g}: divide integers of n bits by 2 ** (n - 1)")

    def check(self, x: Tensor) -> None:
        """Raises what `decode` raises of x."""
        (self.check_codes if self.spec.discrete else self.check_frames)(x)

    def check_codes(self, codes: Tensor) -> None:
        """The first rows alone will do: each row refines those before it."""
        self.check_fitted()
        _check_is_tensor("codes", codes)
        rows, size = self.spec.num_codebooks, self.spec.codebook_size
        if codes.ndim != 3 or not 1 <= codes.shape[1] <= rows or codes.shape[0] < 1 or codes.shape[2] < 1:
            raise ValueError(
                f"codes must have shape (B, K, T) with 1 <= K <= {rows} and B, T >= 1, got {tuple(codes.shape)}"
            )
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


def _checked(chunks: Iterable[Tensor], check: Callable[[Tensor], None]) -> Iterator[Tensor]:
    """Those chunks that hold something, each of which passes `check` and has the shape of the others."""
    shape = None
    for chunk in chunks:
        if chunk.ndim == 3 and chunk.shape[2] == 0:
            continue
        check(chunk)
        if shape not in (None, chunk.shape[:2]):
            raise ValueError(
                f"chunks must have one shape but for their length, got {tuple(chunk.shape)} after {(*shape, '...')}"
            )
        shape = chunk.shape[:2]
        yield chunk


def _check_is_tensor(name: str, x: object) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(
            f"{name} must be a torch tensor, got {type(x).__name__}: of a numpy array x, give torch.from_numpy(x)"
        )


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


def check_setting(good: bool, key: str, rule: str, value: object) -> None:
    """For a Config's __post_init__: raises the ConfigError that names `frontend.key` unless `good`."""
    if not good:
        raise ConfigError(f"frontend.{key}: must be {rule}, got {value!r}")


#: Numbers in one group of weights: 512 MiB. More is a slip, or the config of a stranger who would have us fill memory.
MOST_WEIGHTS = 2**27


def check_weights(count: int, keys: str) -> None:
    """For a Config's __post_init__: raises the ConfigError of settings that ask for too many weights together."""
    if count > MOST_WEIGHTS:
        raise ConfigError(
            f"frontend.{keys}: ask for {count:,} weights together, and at most {MOST_WEIGHTS:,} are "
            "taken; choose smaller ones"
        )
