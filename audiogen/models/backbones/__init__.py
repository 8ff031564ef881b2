"""Backbones: hidden (B, S, D) -> hidden (B, S, D). They know nothing of audio."""

from .base import Backbone
from .bigram import Bigram
from .gpt import GPT
from .gru import GRU
from .mlp import MLP
from .wavenet import WaveNet

BACKBONES: dict[str, type[Backbone]] = {"bigram": Bigram, "mlp": MLP, "wavenet": WaveNet, "gpt": GPT, "gru": GRU}

__all__ = ["BACKBONES", "GPT", "GRU", "MLP", "Backbone", "Bigram", "WaveNet"]
