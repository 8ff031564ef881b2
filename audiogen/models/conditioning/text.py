"""Captions as conditions."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...utils.text import fold
from .. import t5
from ..backbones.gpt import GPT
from ..layers import Memory
from .condition import MAX_FEATURES, Affine, Condition


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
