"""Byte-pair encoding over another front-end: frequent pairs of codes become one code, so the rate varies."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...audio.limiter import Limiter
from ...config import find, part_from_dict, part_to_dict
from ...errors import ConfigError, DataError
from ...spec import TokenSpec
from ..base import Frontend, check_setting, training_wavs

#: Front-ends that can be wrapped: those that can encode to one row of codes. The registry fills it in.
BASES: dict[str, type[Frontend]] = {}
#: Upper bound of num_merges * longest.
MOST_CONTENT = 1 << 24


class BPE(Frontend):
    """Byte-pair encoding over another front-end: frequent pairs of codes become one code.

    Each of the codes (B, 1, T) represents one frame of the base front-end or a run of frames.

    The base's V codes keep their numbers; merge i makes code V + i of two earlier codes. Merging is lossless: the
    decoded audio is that of the base. A wav is encoded as a whole, so a prompt that ends in the middle of a frequent
    run is encoded differently from the same samples in a longer recording.

    Example:
        >>> frontend = BPE(BPE.Config(base="mulaw", num_merges=2))
        >>> frontend.learn([torch.tensor([[128] * 6])])
        >>> frontend.merge(torch.tensor([[7, 128, 128, 128]]))
        tensor([[  7, 256, 128]])
    """

    merges: Tensor
    code_lengths: Tensor
    content: Tensor
    begins: Tensor
    learned = True

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
            base: name of the front-end to wrap, or its settings, {"kind": "melvq", "codebook_size": 128}.
            num_merges: number of codes added to those of the base.
            longest: most frames of the base that one code represents. It bounds the model's memory of the past, and the
                memory that an untrusted file can use.
            fit_frames: learn the merges from at most this many frames of the base (the first ones).
        """

        base: str | dict = "melvq"
        num_merges: int = 512
        longest: int = 32
        fit_frames: int = 5_000_000

        def __post_init__(self) -> None:
            try:
                whole = part_to_dict(part_from_dict(_named(self.base), BASES, "frontend.base"), BASES)
            except ConfigError as error:
                raise _of_base(error) from error
            object.__setattr__(self, "base", whole)
            check_setting(1 <= self.num_merges <= 65536, "num_merges", "from 1 to 65536", self.num_merges)
            most = MOST_CONTENT // self.num_merges
            check_setting(
                2 <= self.longest <= most, "longest", f"from 2 to {most} frames with this many merges", self.longest
            )
            check_setting(1 <= self.fit_frames <= 100_000_000, "fit_frames", "from 1 to 100000000", self.fit_frames)

    def __init__(self, config: Config):
        super().__init__(config)
        try:
            self.base = BASES[self.config.base["kind"]](part_from_dict(self.config.base, BASES, "frontend.base"))
        except ConfigError as error:
            raise _of_base(error) from error
        inner = self.base.spec
        check_setting(inner.discrete, "base.kind", "a front-end that gives codes", self.config.base["kind"])
        check_setting(
            inner.num_codebooks == 1,
            "base.num_codebooks",
            "1, since only codes of a single row can be merged",
            inner.num_codebooks,
        )
        self.spec = TokenSpec(inner.sample_rate, None, 1, inner.codebook_size + config.num_merges)
        self.reconfigurable = frozenset({"num_merges", *(f"base.{name}" for name in self.base.reconfigurable)})
        self.register_buffer("merges", torch.zeros(config.num_merges, 2, dtype=torch.int64))
        for name in ("code_lengths", "content", "begins"):  # derived from the merges by _prepare
            self.register_buffer(name, torch.zeros(0, dtype=torch.int64), persistent=False)
        self._table = None  # for `merge`
        self.register_load_state_dict_post_hook(lambda module, keys: module._prepare())

    @classmethod
    def over(cls, base: Frontend, **settings: Any) -> "BPE":
        """Wrap an existing front-end and copy its weights; call `learn` next.

        Args:
            base: a fitted front-end with one row of codes.
            **settings: fields of the Config other than `base`.
        """
        bpe = cls(cls.Config(base=part_to_dict(base.config, BASES), **settings)).to(base.device, base.dtype)
        bpe.base.load_state_dict(base.state_dict())
        return bpe.eval()

    @classmethod
    def at_rate(cls, settings: Mapping[str, Any], sample_rate: int) -> dict[str, Any]:
        base = _named(settings.get("base", {}))
        return {**settings, "base": find(base["kind"], BASES, "frontend.base").at_rate(base, sample_rate)}

    def quick_variant(self) -> "BPE":
        base = part_to_dict(self.base.quick_variant().config, BASES)
        return (
            self
            if self.fitted or base == self.config.base
            else type(self)(replace(self.config, base=base)).to(self.device, self.dtype)
        )

    def load_pretrained(self) -> None:
        self.base.load_pretrained()

    def num_frames(self, num_samples: int) -> int:
        return self.base.num_frames(num_samples)

    @property
    def longest_frame(self) -> int:
        return self.config.longest * self.base.longest_frame

    def frame_lengths(self, x: Tensor) -> Tensor:
        return self.code_lengths[x[:, 0]] * self.base.spec.hop_length

    @torch.no_grad()
    def _encode(self, wav: Tensor) -> Tensor:
        """Encode a wav (B, 1, N) as codes (B, 1, T); items with fewer codes end in holes (the code V)."""
        self.check_wav(wav)
        return self._merged(self.base.encode(wav))

    @torch.no_grad()
    def encode_stream(self, chunks: Iterable[Tensor], block_frames: int | None = None) -> Iterator[Tensor]:
        """Yield all codes at the end, since late merges may change early codes; the base's codes stay in memory."""
        pieces = list(self.base.encode_stream(chunks, block_frames))
        if pieces:
            yield self._merged(torch.cat(pieces, dim=-1))

    def unlimited(self, chunks: Iterable[Tensor], block_frames: int | None = None) -> Iterator[Tensor]:
        """Decode a stream of one item (B = 1) by the base; the items of a batch would have different lengths.

        Raises:
            ValueError: a chunk has several items.
        """

        def expanded() -> Iterator[Tensor]:
            for chunk in chunks:
                if chunk.ndim == 3 and len(chunk) != 1:
                    raise ValueError(f"a stream of codes at a variable rate holds one item, got {len(chunk)}")
                if chunk.ndim != 3 or chunk.shape[2]:
                    self.check(chunk)
                    yield self.expand(chunk[0])[None]

        return self.base.unlimited(expanded(), block_frames)

    @property
    def streams(self) -> bool:
        return self.base.streams

    @property
    def overshoots(self) -> bool:  # type: ignore[override]
        return self.base.overshoots

    @property
    def latency_ms(self) -> float:
        return math.inf

    @torch.no_grad()
    def decode(self, x: Tensor, limiter: Limiter | None = None) -> Tensor:
        """Decode codes (B, 1, T), with holes after the end of shorter items, to a wav (B, 1, samples of the longest).

        Shorter items end in zeros; `frame_lengths` gives their lengths.
        """
        self.check(x)
        items = [self.expand(codes) for codes in x]  # (1, frames of the base) each
        lengths = torch.tensor([codes.shape[1] for codes in items])
        hop_length = self.base.spec.hop_length
        wav = torch.zeros(len(x), 1, int(lengths.max()) * hop_length, dtype=self.dtype, device=self.device)
        for length in lengths.unique().tolist():  # items of equal length at once: padding could be audible
            alike = (lengths == length).nonzero()[:, 0].tolist()
            sound = self.base.unlimited([torch.stack([items[i] for i in alike])])
            wav[alike, :, : length * hop_length] = torch.cat(list(sound), dim=-1)
        limiter = self.limiter(limiter)
        return wav if limiter is None else limiter(wav, last=True)

    def fit(self, wavs: Iterable[Tensor]) -> None:
        """Fit the base, if it is learned, and then the merges.

        Args:
            wavs: re-iterable of (1, N) at spec.sample_rate; no code spans two of them.

        Raises:
            DataError: there are no wavs, or too few pairs of codes occur twice.
        """
        self.is_fitted.zero_()
        if self.base.learned:
            self.base.fit(wavs)
        self.learn(self._base_codes(wavs))

    def learn(self, sequences: Iterable[Tensor]) -> None:
        """Learn only the merges, from sequences (1, T) of codes of the fitted base.

        Raises:
            DataError: too few pairs of codes occur twice for num_merges.
        """
        from .merges import learn_merges  # numba: takes a moment

        self.is_fitted.zero_()
        num_merges, size = self.config.num_merges, self.base.spec.codebook_size
        merges = learn_merges(
            (codes[0].cpu().numpy() for codes in self._first(sequences)), size, num_merges, self.config.longest
        )
        if len(merges) < num_merges:
            raise DataError(
                f"frontend.num_merges: {num_merges} are too many for this corpus: after {len(merges)} merges no pair "
                "of codes occurs twice; choose fewer, or add recordings"
            )
        self.merges.copy_(torch.from_numpy(merges))
        self.is_fitted.fill_(1)
        self._prepare()

    def merge(self, codes: Tensor) -> Tensor:
        """Merge codes of the base (1, T) into fewer codes (1, at most T)."""
        self.check_fitted()
        from .merges import apply_merges, rank_table

        if self._table is None:
            self._table = rank_table(self.merges.cpu().numpy())
        merged = apply_merges(codes[0].cpu().numpy(), self._table, self.base.spec.codebook_size)
        return torch.from_numpy(merged)[None].to(codes.device)

    def expand(self, codes: Tensor) -> Tensor:
        """Expand codes (1, T) to codes of the base (1, at least T); drop holes."""
        self.check_fitted()
        lengths, begins = self.code_lengths[codes[0]], self.begins[codes[0]]
        # Counts up from 0 within each code:  lengths 3 1 2 -> 0 1 2  0  0 1
        before = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        within = torch.arange(len(before), device=codes.device) - before
        return self.content[begins.repeat_interleave(lengths) + within][None]

    def check_codes(self, codes: Tensor) -> None:
        holes = codes == self.spec.codebook_size
        super().check_codes(codes.masked_fill(holes, 0))
        if not bool(~holes[..., 0].any() & (holes[..., 1:] | ~holes[..., :-1]).all()):
            raise ValueError("codes must have holes only after the end of an item")

    def _merged(self, base_codes: Tensor) -> Tensor:
        items = [self.merge(codes)[0] for codes in base_codes]
        return pad_sequence(items, batch_first=True, padding_value=self.spec.codebook_size)[:, None]

    def _base_codes(self, wavs: Iterable[Tensor]) -> Iterator[Tensor]:
        return (self.base.encode(wav.to(self.device, self.dtype)[None])[0] for wav in training_wavs(wavs))

    def _first(self, sequences: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield sequences (1, T) until `fit_frames` frames in total."""
        left = self.config.fit_frames
        for codes in sequences:
            yield codes[:, :left]
            left -= codes.shape[1]
            if left <= 0:
                break

    def _prepare(self) -> None:
        """Derive from the merges which codes of the base each code represents (a hole: none).

        Raises:
            RuntimeError: a merge refers to later codes or is too long; load_state_dict passes it on.
        """
        self._table = None
        contents = [[code] for code in range(self.base.spec.codebook_size)]
        for pair in self.merges.tolist() if self.is_fitted else ():
            if not all(0 <= code < len(contents) for code in pair):
                raise RuntimeError(f"merge {pair} makes code {len(contents)} from codes that do not precede it")
            contents.append(contents[pair[0]] + contents[pair[1]])
            if len(contents[-1]) > self.config.longest:
                raise RuntimeError(f"code {len(contents) - 1} represents {len(contents[-1])} frames")
        lengths = torch.tensor([*map(len, contents), 0], device=self.device)
        self.code_lengths, self.begins = lengths, lengths.cumsum(0) - lengths
        self.content = torch.tensor([code for content in contents for code in content], device=self.device)


def _named(base: str | Mapping[str, Any]) -> dict[str, Any]:
    """Complete the settings of a base: kind "melvq" by default, and one codebook unless set."""
    settings = {"kind": "melvq", **base} if isinstance(base, Mapping) else {"kind": base}
    part = find(settings["kind"], BASES, "frontend.base")
    has_codebooks = "num_codebooks" in {field.name for field in fields(part.Config)}
    return {"num_codebooks": 1, **settings} if has_codebooks else settings


def _of_base(error: ConfigError) -> ConfigError:
    """Change the key of an error from `frontend.codebook_size` to `frontend.base.codebook_size`."""
    return ConfigError(re.sub(r"frontend\.(?!base\b)", "frontend.base.", str(error)))
