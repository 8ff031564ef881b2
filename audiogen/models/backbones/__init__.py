"""Backbones: causal networks from hidden (B, S, D) to hidden (B, S, D). They do not depend on the kind of signal."""

from .base import Backbone
from .bigram import Bigram
from .gpt import GPT
from .gru import GRU
from .mlp import MLP
from .wavenet import WaveNet

BACKBONES: dict[str, type[Backbone]] = {"bigram": Bigram, "mlp": MLP, "wavenet": WaveNet, "gpt": GPT, "gru": GRU}

__all__ = ["BACKBONES", "GPT", "GRU", "MLP", "Backbone", "Bigram", "WaveNet"]
