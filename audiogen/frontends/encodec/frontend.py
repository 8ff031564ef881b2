"""EnCodec's 24 kHz model as a front-end (Défossez et al. 2022, https://arxiv.org/abs/2210.13438).

The networks are our own implementation (seanet.py). The published weights are under CC-BY-NC 4.0: no commercial use.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import DownloadError, NotFittedError
from ...spec import TokenSpec
from ..base import Frontend, check_setting, hash_tensors
from ..determinism import full_precision
from ..neural.kmeans import nearest
from .seanet import DIMENSION, START_FRAMES, Conv, Decoder, Encoder
from .weights import load_weights

CODEBOOK_SIZE = 1024
PACKAGE_CODEBOOKS = 32  # in the package's state dict
BANDWIDTHS = (1.5, 3.0, 6.0, 12.0, 24.0)  # kbit/s that the model was trained for


class EnCodec(Frontend):
    """Meta's EnCodec: 24 kHz mono audio at 1.5 to 24 kbit/s, residual-quantised by 2 to 32 codebooks.

    `encode` gives the codes of the original package for the whole file: identical in float64; in float32 they differ
    only where the two nearest codewords are equally near up to rounding. Code row k refines rows 0 to k - 1, so
    `decode` also accepts only the first rows. Encoder and decoder are causal, but the beginning of the file is
    mirrored, which needs the first 7 frames (93 ms).

    A new EnCodec has no weights until `load_pretrained` (which `load_frontend("encodec")` calls) or `load_state_dict`.

    Example:
        >>> from audiogen import load_frontend
        >>> frontend = load_frontend("encodec", bandwidth=6.0, weights="random")
        >>> frontend.encode(torch.zeros(1, 1, 24000)).shape  # (B, K, T)
        torch.Size([1, 8, 75])
    """

    codebooks: Tensor
    has_weights: Tensor
    ends_in_zeros = False  # the end is mirrored, as in the published model
    start_frames: ClassVar[int] = START_FRAMES

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
            bandwidth: kbit/s, one of BANDWIDTHS; two codebooks per 1.5 kbit/s.
            weights: "download" for the published weights, downloaded on first use; the path of a local copy of that .th
                file or of a .safetensors with the package's keys; or "random" for an untrained codec, for tests.
        """

        bandwidth: float = 6.0
        weights: str = "download"

        def __post_init__(self):
            check_setting(
                self.bandwidth in BANDWIDTHS,
                "bandwidth",
                f"one of {', '.join(map(str, BANDWIDTHS))} kbit/s",
                self.bandwidth,
            )
            check_setting(
                self.weights in ("download", "random") or self.weights.endswith((".th", ".safetensors")),
                "weights",
                '"download", "random" or the path of a .th or .safetensors file',
                self.weights,
            )

    def __init__(self, config: Config):
        super().__init__(config)
        num_codebooks = round(config.bandwidth / 0.75)  # 10 bits * 75 frames/s each
        with torch.device("meta"):  # skip the initial weights, which are never used
            self.encoder, self.decoder = Encoder(), Decoder()
        self.encoder.to_empty(device="cpu")
        self.decoder.to_empty(device="cpu")
        self.register_buffer("codebooks", torch.zeros(num_codebooks, CODEBOOK_SIZE, DIMENSION))
        self.register_buffer("has_weights", torch.zeros((), dtype=torch.uint8))
        self.requires_grad_(False)
        for parameter in self.parameters():
            parameter.zero_()
        self.spec = TokenSpec(24000, 320, num_codebooks, CODEBOOK_SIZE)

    @property
    def fitted(self) -> bool:
        """Whether there are weights."""
        return bool(self.has_weights)

    def check_fitted(self) -> None:
        """Raise NotFittedError if there are no weights."""
        if not self.fitted:
            raise NotFittedError(
                'EnCodec has no weights yet: call load_pretrained(), or load_frontend("encodec"), or load a folder '
                "where it was saved"
            )

    def fingerprint(self) -> str:
        """Return the SHA-256 of the weights, which determine the bandwidth; their source does not matter."""
        return hash_tensors(self.state_dict())

    def load_pretrained(self) -> None:
        """Load the weights that `config.weights` names.

        Raises:
            DownloadError: they can't be downloaded or read, or are not the published ones.
        """
        if self.config.weights == "random":
            self._randomise()
            return
        path, state = load_weights(self.config.weights)
        try:
            self.load_package_state(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:400]
            raise DownloadError(
                f"{path}: these are not the weights of EnCodec's 24 kHz model ({reason}); give the published file"
            ) from error

    @torch.no_grad()
    def load_package_state(self, state: Mapping[str, Tensor]) -> None:
        """Load the state dict of the package's 24 kHz model, with weight norm folded in at this module's dtype.

        Raises:
            RuntimeError: a key is missing or unknown, or a shape differs.
        """
        state = {name: tensor.to(self.dtype) for name, tensor in state.items()}
        for name in [name for name in state if name.endswith(".weight_v")]:
            stem = name.removesuffix("_v")
            direction, length = state.pop(name), _taken(state, f"{stem}_g")
            state[stem] = direction * (length / direction.flatten(1).norm(dim=1)[:, None, None])
        books = []
        for k in range(PACKAGE_CODEBOOKS):
            books.append(_taken(state, f"quantizer.vq.layers.{k}._codebook.embed"))
            for name in ("inited", "cluster_size", "embed_avg"):  # needed only for training
                _taken(state, f"quantizer.vq.layers.{k}._codebook.{name}")
        state["codebooks"] = torch.stack(books)[: self.spec.num_codebooks]  # (K, V, D)
        state["has_weights"] = torch.ones_like(self.has_weights)
        self.load_state_dict(state, strict=True)

    @property
    def block_frames(self) -> int:
        return 75 if self.device.type == "cpu" else 3000

    def encode_block(self, wav: Tensor, state: Any, last: bool) -> tuple[Tensor, Any]:
        """Encode a wav (B, 1, N) as codes (B, K, T) int64, T = ceil(N / 320)."""
        with full_precision(wav.device):
            z, state = self.encoder(wav, state, last)  # (B, D, T)
            return quantize(z.transpose(1, 2), self.codebooks).permute(1, 0, 2), state

    def decode_block(self, x: Tensor, state: Any, last: bool) -> tuple[Tensor, Any]:
        """Decode codes (B, k, T), k <= K, to a wav (B, 1, T * 320)."""
        books = zip(x.unbind(1), self.codebooks, strict=False)  # of the rows that there are
        z = sum((F.embedding(row, book) for row, book in books), self.codebooks.new_zeros(()))  # (B, T, D)
        with full_precision(x.device):
            wav, state = self.decoder(z.transpose(1, 2), state, last)
        return wav, state

    @torch.no_grad()
    def _randomise(self) -> None:
        """Set fixed random weights, and fill the codebooks from the encoder's output for synthetic sounds.

        torch's default initial weights would shrink the signal a thousandfold; these keep its variance. The package
        initialises codebooks with zeros, which would make all codes equal.
        """
        generator = torch.Generator().manual_seed(0)
        device, dtype = self.device, self.dtype
        self.to("cpu", torch.float32)
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                stride = module.stride[0] if isinstance(module, nn.ConvTranspose1d) else 1
                fan_in = module.in_channels * module.kernel_size[0] / stride
                module.weight.normal_(0, 1 / math.sqrt(fan_in), generator=generator)
            elif isinstance(module, nn.LSTM):
                for parameter in module.parameters():
                    parameter.uniform_(-1, 1, generator=generator).div_(math.sqrt(module.hidden_size))
        last = self.decoder.model[-1]
        assert isinstance(last, Conv)
        last.layer.weight.mul_(0.2)  # about as loud as the input
        with one_thread():  # the number of threads affects rounding
            residual = self.encoder(made_up_sounds(generator))[0].transpose(1, 2).reshape(-1, DIMENSION)
            for book in self.codebooks:
                residual = fill_codebook(book, residual, generator)
        self.has_weights.fill_(1)
        self.to(device, dtype)


def quantize(residual: Tensor, codebooks: Tensor) -> Tensor:
    """Quantize residually, each stage to the nearest codeword: (B, T, D), codebooks (K, V, D) -> codes (K, B, T)."""
    shape, residual = residual.shape[:-1], residual.reshape(-1, residual.shape[-1])
    rows = []
    for book in codebooks:
        rows.append(nearest(residual, book))
        residual = residual - F.embedding(rows[-1], book)
    return torch.stack(rows).view(len(codebooks), *shape)


def fill_codebook(book: Tensor, residual: Tensor, generator: torch.Generator) -> Tensor:
    """Fill a codebook (V, D) with 2/3 of the means of random pairs of residuals (M, D); return the next residuals.

    Full means would overshoot most residuals, so that each stage would add to the error. A vector is not quantized with
    a codeword that it is part of: it is closer to that than other sounds would be, and the next codebooks would become
    too small.
    """
    first = torch.randint(len(residual), (len(book),), generator=generator)
    second = (first + torch.randint(1, len(residual), (len(book),), generator=generator)) % len(residual)
    book.copy_((residual[first] + residual[second]) / 3)
    distance = torch.cdist(residual, book)
    distance[first, torch.arange(len(book))] = math.inf
    distance[second, torch.arange(len(book))] = math.inf
    return residual - book[distance.argmin(1)]


def made_up_sounds(generator: torch.Generator, count: int = 4, num_samples: int = 80 * 320) -> Tensor:
    """Make decaying tones of random pitch in noise of random loudness: (count, 1, num_samples) in [-1, 1] at 24 kHz."""
    t = torch.arange(num_samples) / 24000

    def draw(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator)

    pitch = 60 * 40 ** draw(6, 1)
    decay = torch.exp(-4 * ((3 * t + draw(6, 1)) % 1))
    tones = draw(6, 1) * torch.sin(2 * math.pi * pitch * t) * decay  # (count, 6, num_samples)
    noise = 0.06 * draw(1) * torch.randn(count, num_samples, generator=generator)
    return (tones.sum(1) / 6 + noise).clamp(-1, 1)[:, None]


def _taken(state: dict[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise RuntimeError(f"{name} is missing")
    return state.pop(name)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use a single thread within this context."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
