"""The interface of front-ends, and the checks that they share."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, overload

import torch
from torch import Tensor, nn

from ..audio.containers import MAX_PEAK
from ..audio.limiter import Limiter
from ..config import to_dict
from ..errors import ConfigError, DataError, NotFittedError
from ..utils.padding import Padded, collate
from ..utils.tensors import hash_tensors
from .streaming import blockwise


@dataclass(frozen=True)
class _NoSettings:
    """The Config of a front-end without settings."""


class Frontend(nn.Module):
    """Encodes audio as codes or frames that a model reads, and decodes them back to audio.

    `encode` and `decode` use the module's floating dtype and device. Each item of a batch gets what it would get alone,
    up to rounding. Only `fit` and `load_pretrained` write weights; the state dict and the config make a complete copy.

    Where the rate varies (spec.hop_length is None), items of a batch have different numbers of codes: shorter ones end
    in holes (the code V), which decode to zeros. `frame_lengths` gives the samples that each frame represents.

    A subclass implements `encode_block` and `decode_block`, which process `block_frames` at a time from the beginning
    and pass on a state. Streams cut their input into the same blocks, so a stream equals the whole to the bit, in
    memory that does not grow.
    """

    spec: Any  # a TokenSpec or FrameSpec
    Config: Any = _NoSettings
    config: Any
    base: Any  # the wrapped Frontend, or None
    block_frames: Any  # int: frames that `encode` and `decode` process at once
    _anchor: Tensor
    is_fitted: Tensor

    learned: bool = False
    decodes: bool = True  # whether codes or frames can be turned back into sound
    #: Without a sample_rate setting, the rate of the folder is used, up to this (Hz): at a lower rate a model hears
    #: further back.
    highest_default_rate: ClassVar[int] = 16_000
    ends_in_zeros: bool = True  # whether zeros after the end of a wav leave its codes as they are, but for rounding
    lookahead: float = 0  # how far encoding a frame looks beyond its own samples, in frames
    decode_frames: ClassVar[int] = 1  # frames that `decode_block` turns into sound together
    output_delay: ClassVar[float] = 0  # how much audio `decode_block` holds back for the next block, in frames
    start_frames: ClassVar[int] = 1  # least frames of the first block, unless the audio is shorter
    overshoots: ClassVar[bool] = True  # whether `decode_block` may leave [-1, 1], so that a limiter must follow
    reconfigurable: frozenset[str] = frozenset()  # settings that may change after `fit`

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.base = None
        # Moves with .to() and .double(), so that a front-end without weights has a device and a dtype.
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)
        if self.learned:
            self.register_buffer("is_fitted", torch.zeros((), dtype=torch.uint8))

    def __repr__(self) -> str:
        """Describe the front-end in one line; `frontend.named_modules()` lists its networks."""
        return f"{type(self).__name__}({self.spec}{'' if self.fitted else ', not fitted'})"

    @overload
    def encode(self, wav: Tensor) -> Tensor: ...
    @overload
    def encode(self, wav: Sequence[Tensor]) -> Padded: ...
    def encode(self, wav: Tensor | Sequence[Tensor]) -> Tensor | Padded:
        """Encode a wav (B, 1, N) as codes (B, K, T) int64 or frames (B, F, T), T = ceil(N / hop_length).

        A list of wavs (1, N) of different lengths gives (x, lengths, mask): x padded with 0 at the end, lengths (B,),
        and a mask (B, T) that is True before the end. Each item is encoded by itself; stack wavs of equal length into
        one tensor where that is faster.

        Example:
            >>> import torch, audiogen
            >>> audiogen.load_frontend("mulaw").encode(torch.tensor([[[-1.0, 0.0, 1.0]]]))
            tensor([[[  0, 128, 255]]])
            >>> x, lengths, mask = audiogen.load_frontend("mulaw").encode([torch.zeros(1, 3), torch.zeros(1, 5)])
            >>> x.shape, lengths.tolist()
            (torch.Size([2, 1, 5]), [3, 5])

        Args:
            wav: samples in [-1, 1] at spec.sample_rate.

        Raises:
            ValueError: wrong shape, dtype or device, or NaN or infinity.
            NotFittedError: there are no weights yet.
        """
        if isinstance(wav, Sequence):
            if not wav:
                raise ValueError("wav: the list is empty; give at least one wav (1, N)")
            return collate([self._encode(one[None])[0] for one in wav])
        return self._encode(wav)

    def _encode(self, wav: Tensor) -> Tensor:
        self.check_wav(wav)
        return torch.cat(list(self.encode_stream([wav])), dim=-1)

    def decode(self, x: Tensor, limiter: Limiter | None = None) -> Tensor:
        """Decode codes (B, K, T) or frames (B, F, T) to a wav (B, 1, T * hop_length) in [-1, 1]; trim it to N yourself.

        Peaks above -1 dBTP are turned down by a limiter, never clipped. Front-ends of single samples, such as mu-law,
        can't overshoot and decode exactly, unless they are given a limiter.

        Example:
            >>> import torch, audiogen
            >>> frontend = audiogen.load_frontend("mulaw", sample_rate=8000)
            >>> frontend.decode(frontend.encode(torch.tensor([[[-1.0, 0.0, 1.0]]]))).round(decimals=2)
            tensor([[[-1.,  0.,  1.]]])

        Args:
            x: codes or frames; the first k <= K rows of codes decode to a coarser version.
            limiter: a new one to use; afterwards its `reductions` say by how much it reduced the gain of each item.

        Raises:
            ConfigError: this front-end only encodes (`decodes` is False).
            ValueError: wrong shape, dtype or device, a code out of range, or NaN or infinity.
            NotFittedError: there are no weights yet.
        """
        self.check_decodes()
        self.check(x)
        return torch.cat(list(self.decode_stream([x], limiter=limiter)), dim=-1)

    def encode_stream(self, chunks: Iterable[Tensor], block_frames: int | None = None) -> Iterator[Tensor]:
        """Encode a stream: chunks of a wav (B, 1, n) -> (B, C, t). Joined, the results equal `encode` of the whole.

        Args:
            chunks: chunks of any lengths n >= 0, each read only when it is needed.
            block_frames: frames to encode at once. None: as many as `encode`, which is fastest. 1: each frame as soon
                as possible (`latency_ms`); a code may differ where two codewords are equally near up to rounding.

        Raises:
            ValueError: see `encode`; raised when the chunk is read.
            NotFittedError: see `encode`.
        """
        size, hop_length = self._block_size(block_frames), self.spec.hop_length
        return blockwise(
            torch.no_grad()(self.encode_block),
            _checked(chunks, self.check_wav),
            math.ceil(max(size, self.start_frames, 1 + self.lookahead) * hop_length),
            size * hop_length,
            flushes=self.lookahead > 0,
        )

    def decode_stream(
        self, chunks: Iterable[Tensor], block_frames: int | None = None, limiter: Limiter | None = None
    ) -> Iterator[Tensor]:
        """Decode a stream: chunks (B, C, t) -> wavs (B, 1, n). Joined, the results equal `decode` of the whole.

        Args:
            chunks: chunks of any lengths t >= 0, each read only when it is needed.
            block_frames: frames to decode at once; see `encode_stream`.
            limiter: see `decode`.

        Raises:
            ConfigError: this front-end only encodes, or needs all frames at once (`streams` is False).
            ValueError: see `decode`; raised when the chunk is read.
            NotFittedError: see `decode`.
        """
        sound, limiter = self.unlimited(chunks, block_frames), self.limiter(limiter)
        return sound if limiter is None else limiter.stream(sound)

    def unlimited(self, chunks: Iterable[Tensor], block_frames: int | None = None) -> Iterator[Tensor]:
        """Decode like `decode_stream`, but without the limiter: samples may exceed [-1, 1]."""
        self.check_decodes()
        if not self.streams:
            raise ConfigError(
                f"front-end {type(self).__name__} needs all frames at once to decode them, so it can't decode a "
                "stream: decode the whole, or use another front-end"
            )
        size = self._block_size(block_frames)
        return blockwise(
            torch.no_grad()(self.decode_block),
            _checked(chunks, self.check),
            max(size, self.start_frames),
            size,
            flushes=self.output_delay > 0 or self.decode_frames > 1,
        )

    def limiter(self, given: Limiter | None = None) -> Limiter | None:
        """Return the limiter of decoded sound: the given one, else a new one; None where none is needed."""
        return given or (Limiter(self.spec.sample_rate) if self.overshoots else None)

    def encode_block(self, wav: Tensor, state: Any, last: bool) -> tuple[Tensor, Any]:
        """Encode the next block of samples (B, 1, n) -> (B, C, t), state.

        Args:
            wav: n is a multiple of hop_length, except in the first block (longer where `lookahead` needs it) and in the
                last (any length; 0 only with a lookahead).
            state: what the previous call returned; None at the beginning.
            last: whether this is the end of the audio.
        """
        raise NotImplementedError

    def decode_block(self, x: Tensor, state: Any, last: bool) -> tuple[Tensor, Any]:
        """Decode the next block of frames (B, C, t) -> wav (B, 1, n), state. Without this method `streams` is False.

        Do not clip: if the wav may leave [-1, 1], the limiter that follows turns it down.

        Args:
            x: t is 0 only in the last block, and only with an `output_delay`.
            state: what the previous call returned; None at the beginning.
            last: whether this is the end; over all blocks, n sums to T * hop_length.
        """
        raise NotImplementedError

    @property
    def streams(self) -> bool:
        """Whether `decode_stream` works."""
        return self.decodes and type(self).decode_block is not Frontend.decode_block

    @property
    def latency_ms(self) -> float:
        """Latency in ms of encoding and decoding a stream frame by frame, without computing time.

        Infinite where either needs the whole recording.
        """
        if not self.streams:
            return math.inf
        frames = self.decode_frames + self.lookahead + self.output_delay
        limiter = self.limiter()
        delay = 0 if limiter is None else limiter.delay
        return 1000 * (frames * self.spec.hop_length + delay) / self.spec.sample_rate

    def _block_size(self, frames: int | None) -> int:
        if frames is not None and frames < 1:
            raise ValueError(f"block_frames must be at least 1, got {frames}")
        return frames or self.block_frames

    def fit(self, wavs: Iterable[Tensor]) -> None:
        """Fit a learned front-end to training files; the result depends only on them and on the config.

        Args:
            wavs: re-iterable of (1, N) at spec.sample_rate.

        Raises:
            TypeError: this front-end does not learn.
            DataError: there are no wavs.
        """
        raise TypeError(f"{type(self).__name__} learns nothing: there is nothing to fit")

    def quick_variant(self) -> "Frontend":
        """Return a front-end that is quicker to fit, for trying whether a model learns; self if already fitted."""
        return self

    def load_pretrained(self) -> None:
        """Load published weights. Called by load_frontend(name), not when loading a saved folder."""

    @property
    def fitted(self) -> bool:
        """Whether there are weights, so that `encode` and `decode` work."""
        return not self.learned or bool(self.is_fitted)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self._anchor.device

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of the weights and of wavs."""
        return self._anchor.dtype

    @classmethod
    def at_rate(cls, settings: Mapping[str, Any], sample_rate: int) -> dict[str, Any]:
        """Add sample_rate (Hz) to settings, if the Config has that field and the settings do not."""
        chosen = {"sample_rate": sample_rate} if "sample_rate" in {field.name for field in fields(cls.Config)} else {}
        return {**chosen, **settings}

    def num_frames(self, num_samples: int) -> int:
        """Return T = ceil(N / hop_length), or an upper bound where the rate varies."""
        return -(-num_samples // self.spec.hop_length)

    @property
    def longest_frame(self) -> int:
        """The most samples that one frame represents."""
        return self.spec.hop_length

    def frame_lengths(self, x: Tensor) -> Tensor:
        """Return how many samples each frame represents: (B, C, T) -> (B, T) int64, 0 for holes."""
        return torch.full_like(x[:, 0], self.spec.hop_length, dtype=torch.int64)

    def frames_of(self, x: Tensor) -> Tensor | None:
        """Return the mel frames (B, F, T) of codes or frames (B, C, T); None if only decoding gives them."""
        return None

    def expand(self, codes: Tensor) -> Tensor:
        """Convert codes (1, T) to those of the base; without a base, return them unchanged."""
        return codes

    def seconds(self, sequences: Iterable[Tensor]) -> float:
        """Return the total duration in seconds of sequences (C, T) of codes or frames."""
        return sum(int(self.frame_lengths(x[None]).sum()) for x in sequences) / self.spec.sample_rate

    def fingerprint(self) -> str:
        """Return the SHA-256 in hexadecimal of kind, config and weights; if it is equal, so are the codes."""
        settings = _without_new_defaults(to_dict(self.config))
        digest = hashlib.sha256(json.dumps([type(self).__name__, settings], sort_keys=True).encode())
        digest.update(hash_tensors(self.state_dict()).encode())
        return digest.hexdigest()

    # Checks of inputs.

    def check_decodes(self) -> None:
        """Raise ConfigError if there is no way back to sound."""
        if not self.decodes:
            raise ConfigError(
                f"front-end {type(self).__name__} only encodes: its codes do not say how something sounds; use a "
                "front-end that decodes, or train a stage that makes sound of them (--stages semantic,mel)"
            )

    def check_fitted(self) -> None:
        """Raise NotFittedError if there are no weights."""
        if not self.fitted:
            raise NotFittedError(
                f"{type(self).__name__} has not been fitted: call fit(wavs) with the training files, "
                "or load a folder where it was saved"
            )

    def check_wav(self, wav: Tensor) -> None:
        """Raise what `encode` raises for a wav."""
        self.check_fitted()
        _check_is_tensor("wav", wav)
        if wav.ndim != 3 or wav.shape[1] != 1 or wav.shape[0] < 1 or wav.shape[2] < 1:
            raise ValueError(f"wav must have shape (B, 1, N) with B, N >= 1, got {tuple(wav.shape)}")
        self._check_tensor("wav", wav)
        peak = float(wav.detach().abs().amax())
        if peak > MAX_PEAK:
            raise ValueError(f"wav must lie in [-1, 1], got {peak:.3g}: divide integers of n bits by 2 ** (n - 1)")

    def check(self, x: Tensor) -> None:
        """Raise what `decode` raises for codes or frames."""
        (self.check_codes if self.spec.discrete else self.check_frames)(x)

    def check_codes(self, codes: Tensor) -> None:
        """Raise what `decode` raises for codes. Fewer than K rows are valid: each row refines those before it."""
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
        """Raise what `decode` raises for frames."""
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
    """Yield the chunks that are not empty, after `check`; all must have the same shape except for their length."""
    shape = None
    for chunk in chunks:
        if chunk.ndim == 3 and chunk.shape[2] == 0:
            continue
        check(chunk)
        if shape not in (None, chunk.shape[:2]):
            raise ValueError(
                f"chunks must have one shape except for the length, got {tuple(chunk.shape)} after {(*shape, '...')}"
            )
        shape = chunk.shape[:2]
        yield chunk


def _check_is_tensor(name: str, x: object) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(
            f"{name} must be a torch tensor, got {type(x).__name__}: convert a numpy array x by torch.from_numpy(x)"
        )


def training_wavs(wavs: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield each training wav (1, N) once; skip empty ones.

    Raises:
        DataError: there are no wavs.
        ValueError: `wavs` can be iterated only once, or contains something else.
    """
    if iter(wavs) is wavs:
        raise ValueError("fit iterates over the files more than once: give it a list or another re-iterable")
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
    """Raise a ConfigError that names `frontend.key` unless `good`; for a Config's __post_init__."""
    if not good:
        raise ConfigError(f"frontend.{key}: must be {rule}, got {value!r}")


#: Settings that came after format 1, with the values at which they change nothing.
NEW_SETTINGS = {"f_max": None, "stack": 1, "spectrum": "smooth"}

#: Upper bound of the weights of one group (512 MiB); catches typos and untrusted configs that would exhaust memory.
MOST_WEIGHTS = 2**27


def check_weights(count: int, keys: str) -> None:
    """Raise a ConfigError if settings need too many weights together; for a Config's __post_init__."""
    if count > MOST_WEIGHTS:
        raise ConfigError(
            f"frontend.{keys}: need {count:,} weights together, which is over the limit of {MOST_WEIGHTS:,}; "
            "choose smaller values"
        )


def _without_new_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """Drop settings that older versions did not have, where they change nothing: caches of those stay valid."""
    return {
        name: _without_new_defaults(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if name not in NEW_SETTINGS or value != NEW_SETTINGS[name]
    }
