"""Read texts with a published T5 encoder, which the package `transformers` loads."""

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError

#: Names for encoders; all others are folders, or names on the Hugging Face Hub.
NAMES = {"t5": "google-t5/t5-base"}
#: Vectors by encoder and text, which serve all models of the process. Runs know some thousand captions at most.
_VECTORS: dict[tuple[str, bytes], Tensor] = {}


@functools.cache
def load(name: str) -> tuple[Any, Any]:
    """Load a tokenizer and a frozen encoder from this machine; nothing is downloaded, and no code is loaded.

    Args:
        name: a key of NAMES, a folder that holds a T5 as `save_pretrained` writes it, or a name on the Hugging Face Hub
            of one that was downloaded before.

    Raises:
        ConfigError: `transformers` is not installed, or the weights are not there.
    """
    name = NAMES.get(name, name)
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise ConfigError(
            f"encoder: a T5 needs transformers ({error.name} can't be imported); pip install transformers"
        ) from error
    try:
        with torch.random.fork_rng(devices=[]):
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, local_files_only=True)
            encoder = transformers.T5EncoderModel.from_pretrained(name, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"encoder: there is no T5 called {name} on this machine; run hf download {name}, or give a folder that "
            "holds config.json, model.safetensors and a tokenizer"
        ) from error
    return tokenizer, encoder.float().eval().requires_grad_(False)


def width(name: str) -> int:
    """Return the width of an encoder's vectors.

    Raises:
        ConfigError: as in `load`.
    """
    return load(name)[1].config.d_model


@torch.no_grad()
def encode(texts: list[bytes], name: str) -> Tensor:
    """Encode texts, each once in a process.

    Args:
        texts: N texts in UTF-8; a letter that is cut at the end is left out.
        name: as in `load`.

    Returns:
        (N, E) float32 on the CPU, the mean of the encoder's outputs over the tokens of each text.

    Raises:
        ConfigError: as in `load`.
    """
    for text in texts:
        if (name, text) not in _VECTORS:
            tokenizer, encoder = load(name)
            # One by one, so that a vector does not depend on the padding of others.
            tokens = tokenizer(text.decode(errors="ignore"), return_tensors="pt").input_ids
            with torch.autocast("cpu", enabled=False):
                _VECTORS[name, text] = encoder(input_ids=tokens).last_hidden_state[0].mean(dim=0).clone()
    return torch.stack([_VECTORS[name, text] for text in texts])
