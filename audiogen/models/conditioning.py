"""Conditions: named properties of a sound, and the vectors that pass them to a model.

A condition's values are (B, F, T) float32: F numbers for each frame; T is 1 if one value applies to the whole item. NaN
means "not given" and is replaced by a learned null vector. So dropped conditions, padding after the end of a shorter
item and frames without a value are all represented in the same way.

    label      index of the label among its values          (B, 1, 1 or T)
    number     the number itself                            (B, 1, 1 or T)
    pitch      a MIDI number, which may have a fraction     (B, 1, 1 or T)
    melody     the strength of each pitch class             (B, 12, T)
    loudness   dB relative to a full-scale sine             (B, 1, T)
    timbre     mean and deviation of the cepstrum           (B, 48, 1 or T)
    frames     any other vector for each frame              (B, F, T)
    codes      those of an earlier stage, see stages.py     (B, F, T)
    position   frames since the file began, and to its end  (B, 2, T)
    text       a caption as UTF-8 bytes, padded with NaN    (B, max_bytes, 1 or T)

Each condition becomes one vector per frame, which is added to the embedding of the step that predicts the frame. So all
backbones, patterns and specs support conditions. The last weights before the sum start at zero, so adding a condition
to a trained model does not change its sound until the condition is learned.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import ConfigError, nearest
from ..utils.pitch import HIGHEST, LOWEST, midi_pitch
from ..utils.text import fold
from . import t5
from .backbones.gpt import GPT
from .layers import Memory
from .stages import Arriving

#: Values by name; a name that is missing is not given.
Conditions = Mapping[str, Tensor]
#: In generation, those of an earlier stage may arrive while they are needed.
AskedConditions = Mapping[str, Tensor | Arriving]

#: Factor of the vectors that conditions add. The optimizer changes a weight by about the learning rate per step, so
#: without the factor, vectors that start at zero would take hundreds of steps to become as large as the embeddings. On
#: spoken digits, 160 steps of mel:gpt end at the same held-out loss with factors 1 and 4; digit and speaker account for
#: 0.15 nats per frame of it with factor 1, and for 0.37 with factor 4.
STRENGTH = 4.0
#: Maximum number of values of a label, of numbers per frame, and of embeddings of codes. They catch typos and untrusted
#: configs that would exhaust memory.
MAX_VALUES, MAX_FEATURES, MAX_EMBEDDINGS = 2**16, 2**12, 2**20
#: Number of sines, and of cosines, that encode a number at least; maximum number of doublings of the finest of them.
WAVES, MAX_OCTAVES = 8, 8


class Condition(nn.Module):
    """Base class of conditions. A condition is built by `__init__(config, dim)` from its nested Config.

    Attributes:
        num_features: F, numbers for each frame.
        stays_open: whether the condition is null by default: in half of the training crops, in evaluation, and in
            generation unless the user gives it. Other conditions are filled in from a training file.
        one_word: whether a value is a word, a number or a text that applies to a whole item.
    """

    Config: Any  # a frozen dataclass of settings
    num_features: int
    stays_open: ClassVar[bool] = False
    one_word: ClassVar[bool] = False

    def __init__(self, config: Any, dim: int):
        super().__init__()
        self.config = config
        self.null = nn.Parameter(torch.zeros(dim))

    def embed(self, x: Tensor) -> Tensor:
        """Embed values (B, F, T) that are all given -> (B, T, D)."""
        raise NotImplementedError

    def parse(self, name: str, value: Any) -> Tensor:
        """Convert a value given by the user to values (F, T).

        Args:
            name: name of the condition, for messages.
            value: what the user gave.

        Raises:
            ConfigError: the value is not allowed.
        """
        raise NotImplementedError

    def describe(self, x: Tensor) -> str | None:
        """Describe the values (F, T) of an item in a word; None if they are not given or can't be described so."""
        return None

    @classmethod
    def has_same_weights(cls, config: Any, other: Any) -> bool:
        """Whether trained weights mean the same with another config of this kind."""
        return config == other

    def missing(self, x: Tensor) -> Tensor:
        """Return where values (B, F, T) are not given: (B, T) bool."""
        return x.isnan().any(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map values (B, F, T) to vectors (B, T, D), with the null vector where they are not given."""
        x = x.to(self.null)
        y = self.embed(x.nan_to_num(0.0))
        return torch.where(self.missing(x)[..., None], self.null, y)


class Affine(nn.Module):
    """A linear layer initialised to zero. It draws no random numbers, so other initial weights do not change."""

    def __init__(self, num_features: int, dim: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(dim, num_features)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


def waves_of(x: Tensor, low: float, high: float, octaves: int = 0) -> Tensor:
    """Encode numbers (B, 1, T) by sines and cosines over their range, so that near numbers have similar codes.

    The frequencies are 1, 2, ..., WAVES half periods per range, then `octaves` doublings of the last.

    Source: Tancik et al. 2020, Fourier Features Let Networks Learn High Frequency Functions, section 4.

    Returns:
        (B, T, 2 (WAVES + octaves)).
    """
    u = (x - low) / max(high - low, 1e-9)  # from 0 to 1
    first = torch.arange(1, WAVES + 1, device=x.device, dtype=x.dtype)
    doubled = WAVES * 2 ** torch.arange(1, octaves + 1, device=x.device, dtype=x.dtype)
    angles = math.pi * torch.cat([first, doubled])[:, None] * u  # (B, waves, T)
    return torch.cat([angles.sin(), angles.cos()], dim=1).transpose(1, 2)


class Label(Condition):
    """One of a fixed set of values, such as the name of an instrument."""

    num_features = 1
    one_word = True

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
            values: the values, spelled as at their first occurrence. Case and outer spaces make no difference.
        """

        values: tuple[str, ...]

        def __post_init__(self) -> None:
            if not 0 < len(self.values) <= MAX_VALUES:
                raise ConfigError(f"values: must be from 1 to {MAX_VALUES:,} values, got {len(self.values):,}")
            if len({fold(value) for value in self.values}) < len(self.values):
                raise ConfigError("values: two values differ only in case or outer spaces")

    def __init__(self, config: Config, dim: int):
        super().__init__(config, dim)
        self.table = nn.Parameter(torch.zeros(len(config.values), dim))
        self._places = {fold(value): place for place, value in enumerate(config.values)}

    def embed(self, x: Tensor) -> Tensor:
        return nn.functional.embedding(x[:, 0].long(), self.table)

    def parse(self, name: str, value: Any) -> Tensor:
        place = self._places.get(fold(str(value)))
        if place is None:
            meant = nearest(str(value), self.config.values)
            raise ConfigError(f"{name}: there is no {str(value)!r}{meant}; choose one of {listed(self.config.values)}")
        return torch.tensor([[float(place)]])

    def describe(self, x: Tensor) -> str | None:
        return None if x.isnan().any() else self.config.values[int(x[0, 0])]


class Number(Condition):
    """A number, such as a tempo, encoded by sines and cosines (see `waves_of`)."""

    num_features = 1
    one_word = True

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
            low, high: the range of values in the training files.
            gap: the typical difference between neighbouring values; waves as fine as this are added, so that a pitch
                of 60 is told from one of 61. 0 adds none.
        """

        low: float
        high: float
        gap: float = 0.0

        def __post_init__(self) -> None:
            if not self.low <= self.high:
                raise ConfigError(f"low: must be at most high ({self.high:g}), got {self.low:g}")
            if not 0 <= self.gap < math.inf:
                raise ConfigError(f"gap: must be 0 or more, got {self.gap:g}")

    def __init__(self, config: Config, dim: int):
        super().__init__(config, dim)
        steps = (config.high - config.low) / config.gap if config.gap else 0.0  # of a gap each, in the range
        self.octaves = min(MAX_OCTAVES, int(math.log2(max(1.0, steps / WAVES))))
        self.linear = Affine(2 * (WAVES + self.octaves), dim)

    def embed(self, x: Tensor) -> Tensor:
        return self.linear(waves_of(x, self.config.low, self.config.high, self.octaves))

    def parse(self, name: str, value: Any) -> Tensor:
        low, high = self.config.low, self.config.high
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not low <= number <= high:
            raise ConfigError(f"{name}: must be a number from {low:g} to {high:g}; got {value!r}")
        return torch.tensor([[number]])

    def describe(self, x: Tensor) -> str | None:
        return None if x.isnan().any() else f"{float(x[0, 0]):g}"


class Pitch(Condition):
    """The pitch of a note: a vector for each MIDI number, and waves over the range, which pitches share.

    Between two MIDI numbers, their vectors are interpolated. All runs have the same vectors, whatever the range of
    their recordings, so those of the base model are taken over.
    """

    num_features = 1
    one_word = True

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
            low, high: the range of values in the training files, MIDI numbers.
        """

        low: float = LOWEST
        high: float = HIGHEST

        def __post_init__(self) -> None:
            if not LOWEST <= self.low <= self.high <= HIGHEST:
                raise ConfigError(f"low, high: must be MIDI numbers in order, got {self.low:g} and {self.high:g}")

    semitones: Tensor

    def __init__(self, config: Config, dim: int):
        super().__init__(config, dim)
        count = HIGHEST - LOWEST + 1
        self.linear = Affine(count + 2 * WAVES, dim)
        self.register_buffer("semitones", torch.arange(LOWEST, LOWEST + count)[:, None], persistent=False)

    def embed(self, x: Tensor) -> Tensor:
        near = (1 - (x - self.semitones).abs()).clamp_min(0)  # (B, 128, T)
        return self.linear(torch.cat([near.transpose(1, 2), waves_of(x, LOWEST, HIGHEST)], dim=2))

    def parse(self, name: str, value: Any) -> Tensor:
        low, high, pitch = self.config.low, self.config.high, midi_pitch(str(value))
        if not low <= pitch <= high:
            raise ConfigError(f"{name}: must be a pitch from {low:g} to {high:g}, such as {low:g} or C4; got {value!r}")
        return torch.tensor([[pitch]])

    def describe(self, x: Tensor) -> str | None:
        return None if x.isnan().any() else f"{float(x[0, 0]):g}"

    @classmethod
    def has_same_weights(cls, config: Any, other: Any) -> bool:
        return isinstance(config, cls.Config) and isinstance(other, cls.Config)


class Frames(Condition):
    """A vector for each frame, through one linear layer."""

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
            num_features: F, numbers for each frame; they should be about as large as 1.
        """

        num_features: int

        def __post_init__(self) -> None:
            if not 1 <= self.num_features <= MAX_FEATURES:
                raise ConfigError(f"num_features: must be from 1 to {MAX_FEATURES:,}, got {self.num_features}")

    def __init__(self, config: Config, dim: int):
        super().__init__(config, dim)
        self.num_features = config.num_features
        self.linear = Affine(config.num_features, dim)

    def embed(self, x: Tensor) -> Tensor:
        return self.linear(x.transpose(1, 2))

    def parse(self, name: str, value: Any) -> Tensor:
        return framewise(name, value, self.num_features)


class Codes(Condition):
    """Codes for each frame, such as those of an earlier stage: the sum of their embeddings."""

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
            num_codes: F, codes for each frame, each of which has its own embeddings.
            codebook_size: V.
        """

        num_codes: int
        codebook_size: int

        def __post_init__(self) -> None:
            for name, value, most in (
                ("num_codes", self.num_codes, MAX_FEATURES),
                ("codebook_size", self.codebook_size, MAX_VALUES),
            ):
                if not 1 <= value <= most:
                    raise ConfigError(f"{name}: must be from 1 to {most:,}, got {value:,}")
            if self.num_codes * self.codebook_size > MAX_EMBEDDINGS:
                raise ConfigError(f"num_codes, codebook_size: their product must be at most {MAX_EMBEDDINGS:,}")

    begins: Tensor

    def __init__(self, config: Config, dim: int):
        super().__init__(config, dim)
        self.num_features = config.num_codes
        self.table = nn.Parameter(torch.zeros(config.num_codes * config.codebook_size, dim))
        self.register_buffer("begins", config.codebook_size * torch.arange(config.num_codes), persistent=False)

    def embed(self, x: Tensor) -> Tensor:
        return nn.functional.embedding(x.transpose(1, 2).long() + self.begins, self.table).sum(dim=2)

    def parse(self, name: str, value: Any) -> Tensor:
        x = framewise(name, value, self.num_features)
        given = x[~x.isnan()]
        if bool(((given != given.round()) | (given < 0) | (given >= self.config.codebook_size)).any()):
            raise ConfigError(f"{name}: codes are whole numbers from 0 to {self.config.codebook_size - 1}")
        return x


class Melody(Condition):
    """The strength of each of 12 pitch classes, from 0 to 1: C, C sharp, ..., B.

    All zeros mean that there is no melody; NaN means that the melody is not given.
    """

    num_features = 12

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    def __init__(self, config: Any, dim: int):
        super().__init__(config, dim)
        self.linear = Affine(self.num_features, dim)

    def embed(self, x: Tensor) -> Tensor:
        return self.linear(x.transpose(1, 2))

    def parse(self, name: str, value: Any) -> Tensor:
        x = framewise(name, value, self.num_features)
        if bool(((x < 0) | (x > 1)).any()):
            raise ConfigError(f"{name}: the strength of a pitch class is from 0 to 1, got {span(x)}")
        return x


class Loudness(Condition):
    """The level in dB relative to a full-scale sine; below LOW, all are the same."""

    num_features = 1
    LOW, HIGH = -80.0, 0.0

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    def __init__(self, config: Any, dim: int):
        super().__init__(config, dim)
        self.linear = Affine(2 * WAVES, dim)

    def embed(self, x: Tensor) -> Tensor:
        return self.linear(waves_of(x.clamp(self.LOW, self.HIGH), self.LOW, self.HIGH))

    def parse(self, name: str, value: Any) -> Tensor:
        x = framewise(name, value, 1)
        given = x[~x.isnan()]
        if len(given) and (float(given.max()) > self.HIGH + 3 or float(given.min()) >= -1):  # not those of a wav
            raise ConfigError(
                f"{name}: levels are in dB below full scale, such as -20, got {span(x)}; a wav has the shape (1, 1, N)"
            )
        return x


class Timbre(Condition):
    """How a recording sounds as a whole: see `audio.descriptors.timbre`."""

    num_features = 48

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    def __init__(self, config: Any, dim: int):
        super().__init__(config, dim)
        self.linear = Affine(self.num_features, dim)

    def embed(self, x: Tensor) -> Tensor:
        return self.linear(x.transpose(1, 2))

    def parse(self, name: str, value: Any) -> Tensor:
        return framewise(name, value, self.num_features)


class Position(Condition):
    """The position of a frame in its file: frames since the beginning and until the end, each 0 at that end.

    With it, a model of short sounds can generate complete ones. Distances are encoded on scales that are powers of 4,
    so small ones are resolved most finely.
    """

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    scales: Tensor
    num_features = 2
    stays_open = True
    SCALES = tuple(4.0**power for power in range(6))  # frames: 1 to 1,024

    def __init__(self, config: Any, dim: int):
        super().__init__(config, dim)
        self.linear = Affine(2 * len(self.SCALES), dim)
        self.register_buffer("scales", torch.tensor(self.SCALES)[:, None], persistent=False)

    def embed(self, x: Tensor) -> Tensor:
        near = (-x[:, :, None] / self.scales).exp()  # (B, 2, scales, T), 1 at the edge, 0 far away
        return self.linear(near.flatten(1, 2).transpose(1, 2))

    def parse(self, name: str, value: Any) -> Tensor:
        """Return the positions in a file of `value` frames, or in files of these lengths one after another: (2, T)."""
        lengths = value if isinstance(value, tuple) else (value,)
        if not lengths or not all(isinstance(length, int) and length >= 1 for length in lengths):
            raise ConfigError(f"{name}: must be a whole number of frames, 1 or more, got {value!r}")
        return torch.cat([positions(length) for length in lengths], dim=1)


class Text(Condition):
    """A caption. A causal transformer reads its bytes; the mean of its outputs goes through one linear layer.

    Since the transformer is causal, padding after a text changes nothing. A published T5 may take its place; it
    stays as it is, and is not saved with the model.

    Source: Radford et al. 2021, Learning Transferable Visual Models From Natural Language Supervision, section 2.4 (a
    causal text encoder).
    """

    one_word = True

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
            max_bytes: bytes of UTF-8 that are read; the rest of a longer text is cut off.
            encoder: "bytes", or a T5: see `t5.load`.
            encoder_dim: width of the transformer, a multiple of 8; training sets it to that of a T5.
        """

        max_bytes: int = 256
        encoder: str = "bytes"
        encoder_dim: int = 128

        def __post_init__(self) -> None:
            if not 1 <= self.max_bytes <= MAX_FEATURES:
                raise ConfigError(f"max_bytes: must be from 1 to {MAX_FEATURES:,}, got {self.max_bytes}")
            if not 8 <= self.encoder_dim <= MAX_FEATURES or self.encoder_dim % 8:
                raise ConfigError(
                    f"encoder_dim: must be a multiple of 8 from 8 to {MAX_FEATURES:,}, got {self.encoder_dim}"
                )

    NUM_LAYERS, NUM_HEADS = 2, 4
    #: Layers of the backbone that attend to the text; 0 if it enters as one vector per frame.
    num_layers = 0

    def __init__(self, config: Config, dim: int):
        super().__init__(config, dim)
        self.num_features = config.max_bytes
        if config.encoder == "bytes":
            with torch.random.fork_rng(devices=[]):  # so that other initial weights do not change
                self.table = nn.Embedding(256, config.encoder_dim)
                self.encoder = GPT(GPT.Config(config.encoder_dim, self.NUM_LAYERS, self.NUM_HEADS, config.max_bytes))
        self.linear = Affine(config.encoder_dim, dim)

    def missing(self, x: Tensor) -> Tensor:
        return x.isnan().all(dim=1)

    def embed(self, x: Tensor) -> Tensor:
        texts, place = self._distinct(x)
        return self.linear(self.encode(texts))[place]

    def _distinct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the texts (N, L) in values (B, L, T), and which of them holds where, (B, T); mostly one for each.

        Their number is not known before, so a GPU is waited for, once per batch.
        """
        B, L, T = x.shape
        rows = x.transpose(1, 2).reshape(B * T, L).long()
        if len(rows) == 1:
            return rows, torch.zeros(B, T, dtype=torch.int64, device=x.device)
        begins = torch.ones(len(rows), dtype=torch.bool, device=x.device)
        begins[1:] = (rows[1:] != rows[:-1]).any(dim=1)  # a text is encoded once for all frames that it holds for
        return rows[begins], (begins.cumsum(0) - 1).view(B, T)

    def encode(self, texts: Tensor) -> Tensor:
        """Encode texts (N, L), padded with 0, to vectors (N, E)."""
        if self.config.encoder != "bytes":
            return self._encode_t5(texts)
        h, given = self._read(texts)
        return (h * given[..., None]).sum(dim=1) / given.sum(dim=1, keepdim=True).clamp(min=1)

    def _read(self, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the transformer's outputs (N, longest, E) for texts (N, L), and which bytes are given."""
        given = texts > 0
        # A graph has fixed shapes; the bytes after the end change nothing.
        longest = texts.shape[1] if torch.compiler.is_exporting() else max(1, int(given.sum(dim=1).max()))
        return self.encoder(self.table(texts[:, :longest]))[0], given[:, :longest]

    def serve(self, num_layers: int) -> None:
        """Give keys and values to so many layers of a backbone, instead of one vector per frame.

        Raises:
            ConfigError: a T5 reads the text.
        """
        if self.config.encoder != "bytes":
            raise ConfigError("backbone.cross_attention: the text must be read by encoder=bytes")
        with torch.random.fork_rng(devices=[]):
            self.keys_values = nn.Linear(self.config.encoder_dim, num_layers * 2 * len(self.null))
        self.null_byte = nn.Parameter(torch.zeros(1, self.config.encoder_dim))
        self.num_layers = num_layers
        del self.linear

    def memory(self, x: Tensor | None) -> Memory:
        """Read values (B, L, T), None for none; `wanted` is (B, T)."""
        if x is None:
            x = self.null.new_full((1, self.num_features, 1), math.nan)
        texts, place = self._distinct(x.to(self.null).nan_to_num(0.0))
        h, given = self._read(texts)
        owner = torch.cat([place.new_zeros(1), given.nonzero()[:, 0] + 1])
        keys_values = self.keys_values(torch.cat([self.null_byte, h[given]]))  # (M, layers * 2 * D)
        wanted = (place + 1) * given.any(dim=1)[place]
        return Memory(keys_values.unflatten(-1, (self.num_layers, 2, -1)), owner, wanted)

    def _encode_t5(self, texts: Tensor) -> Tensor:
        y, given = self.null.new_zeros(len(texts), self.config.encoder_dim), texts.any(dim=1)
        if given.any():
            captions = [bytes(text).rstrip(b"\0") for text in texts[given].tolist()]
            found = t5.encode(captions, self.config.encoder).to(y)
            if found.shape[1] != y.shape[1]:
                dims = f"a width of {found.shape[1]}, but the model was trained with {y.shape[1]}"
                raise ConfigError(f"encoder: {self.config.encoder} has {dims}")
            y[given] = found
        return y

    def parse(self, name: str, value: Any) -> Tensor:
        if not isinstance(value, str):
            raise ConfigError(f"{name}: must be a text, got {value!r}")
        data = " ".join(fold(value).replace("\0", " ").split()).encode()[: self.config.max_bytes]
        x = torch.full((self.config.max_bytes, 1), math.nan)
        x[: len(data), 0] = torch.tensor(list(data), dtype=torch.float32)
        return x

    def describe(self, x: Tensor) -> str | None:
        return bytes(x[~x[:, 0].isnan(), 0].byte().tolist()).decode(errors="ignore") or None


CONDITIONS: dict[str, type[Condition]] = {
    "label": Label,
    "number": Number,
    "pitch": Pitch,
    "melody": Melody,
    "loudness": Loudness,
    "timbre": Timbre,
    "frames": Frames,
    "codes": Codes,
    "position": Position,
    "text": Text,
}


def framewise(name: str, value: Any, num_features: int) -> Tensor:
    """Convert a user's array to values (F, T); NaN is "not given".

    Raises:
        ConfigError: it is of another shape, or of no numbers; begins with the condition's `name`.
    """
    wanted = f"{name}: must have the shape ({num_features}, frames)"
    try:
        x = torch.as_tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError(f"{wanted}, got {str(value)[:40]!r}") from None
    if x.ndim != 2 or x.shape[0] != num_features or not x.shape[1]:
        raise ConfigError(f"{wanted}, got {tuple(x.shape)}")
    return x


def span(x: Tensor) -> str:
    """Format the range of values: "0 to 1"."""
    return f"{float(x.nan_to_num(0.0).amin()):g} to {float(x.nan_to_num(0.0).amax()):g}"


def positions(num_frames: int) -> Tensor:
    """Return the positions of a file's frames: (2, T) float32, frames since its beginning and to its end."""
    since = torch.arange(num_frames, dtype=torch.float32)
    return torch.stack([since, since.flip(0)])


def listed(values: tuple[str, ...], most: int = 20) -> str:
    """List values in a sentence, at most the first `most`."""
    return ", ".join(values[:most]) + (f" and {len(values) - most} more" if len(values) > most else "")


class Conditioner(nn.Module):
    """All conditions of a model: maps values by name to the sum of their vectors, (B, S, D).

    Args:
        parts: conditions by name.
    """

    def __init__(self, parts: Mapping[str, Condition]):
        super().__init__()
        self._names = tuple(parts)
        for name, part in parts.items():  # prefixed, since nn.Module has attributes such as `type` and `float`
            self.add_module(f"condition_{name}", part)

    @property
    def parts(self) -> dict[str, Condition]:
        """The conditions by name."""
        return {name: getattr(self, f"condition_{name}") for name in self._names}

    def forward(self, conditions: Conditions, frames: Tensor) -> Tensor:
        """Sum the vectors of all conditions: `prepare`, then `Prepared.at`."""
        return self.prepare(conditions).at(frames)

    def prepare(self, conditions: AskedConditions) -> "Prepared":
        """Check the values, and embed those that are constant.

        Args:
            conditions: values by name, (B, F, 1 or T) each; a B of 1 serves all items.

        Raises:
            ConfigError: the model has no such condition, or the shape is wrong.
        """
        parts = self.parts
        for name, x in conditions.items():
            if name not in parts:
                raise ConfigError(f"conditions: this model has no {name!r}; it has {', '.join(parts)}")
            shape = (len(x), x.num_features, 1) if isinstance(x, Arriving) else tuple(x.shape)
            if len(shape) != 3 or shape[1] != parts[name].num_features or not shape[2]:
                raise ConfigError(
                    f"conditions: {name} must have the shape (items, {parts[name].num_features}, frames or 1), "
                    f"got {shape}"
                )
        terms, memory = [], None
        for name, part in parts.items():
            x = conditions.get(name)
            if isinstance(part, Text) and part.num_layers:
                memory, x = part.memory(x if isinstance(x, Tensor) else None), None
            changes = isinstance(x, Arriving) or x is not None and x.shape[2] > 1
            terms.append((part, x) if changes else part.null[None, None] if x is None else part(x))
        return Prepared(terms, memory)


@dataclass(frozen=True)
class Prepared:
    """Conditions whose constant values are already embedded.

    Attributes:
        terms: for each condition its vectors (B or 1, 1, D) if it is constant, else itself and its values
            (B or 1, F, T).
        memory: the texts that the backbone attends to, `wanted` at each frame; None for none.
    """

    terms: list[Tensor | tuple[Condition, Tensor | Arriving]]
    memory: Memory | None = None

    def memory_at(self, frames: Tensor) -> Memory | None:
        """Return the texts with `wanted` at the frame of each step, (S,)."""
        if self.memory is None or self.memory.wanted.shape[1] == 1:
            return self.memory
        wanted = self.memory.wanted
        return self.memory._replace(wanted=wanted.index_select(1, frames.clamp(max=wanted.shape[1] - 1)))

    def at(self, frames: Tensor) -> Tensor:
        """Sum the vectors of all conditions.

        Args:
            frames: (S,) int64, the frame whose values hold at each step; beyond the last one, the last one.

        Returns:
            (B, S, D); S is 1 if all conditions are constant, and B is 1 if they are the same for all items.
        """
        vectors = []
        for term in self.terms:
            if isinstance(term, tuple):
                part, x = term
                if isinstance(x, Arriving):
                    values = x.at(frames)  # (B, F, S)
                else:
                    values = x.index_select(2, frames.clamp(max=x.shape[2] - 1))
                term = part(values)  # (B, S, D)
            vectors.append(term)
        return STRENGTH * sum(vectors[1:], start=vectors[0])


@dataclass(frozen=True)
class Changed:
    """Conditions that are replaced during generation.

    Attributes:
        before, after: the conditions before and from the frame `start`.
    """

    before: Prepared
    after: Prepared
    start: int

    def at(self, frames: Tensor) -> Tensor:
        """Sum the vectors of all conditions: (B, S, D), as `Prepared.at`."""
        return torch.where((frames >= self.start)[:, None], self.after.at(frames), self.before.at(frames))
