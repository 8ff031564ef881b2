"""HuBERT base (Hsu et al. 2021) as torchaudio publishes it, as an encoder of blocks of samples."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import DownloadError, NotFittedError
from ...utils.download import cache_folder, fetch
from ...utils.installation import load_torchaudio
from ...utils.tensors import read_tensors, write_tensors

LAYER = 9  # of 12; the features of AudioLM's open implementations, and near the best for words
SAMPLE_RATE, HOP = 16000, 320
REACH = 100  # frames on either side that a block sees; the model itself sees all there is
URL = "https://download.pytorch.org/torchaudio/models/hubert_fairseq_base_ls960.pth"  # torchaudio's HUBERT_BASE
MAX_BYTES = 500 * 2**20  # the file is about 360 MB


class HuBERT(nn.Module):
    """Blocks of samples (B, T, HOP) -> hidden vectors (B, T, D) of layer LAYER.

    The model normalises over all it sees and attends to all of it, so a frame depends on the block that it is in.
    """

    reach = REACH

    def __init__(self):
        super().__init__()
        with torch.device("meta"):  # its initial weights are never used
            self.model = load_torchaudio().models.hubert_base()
        self.model.to_empty(device="cpu")
        for tensor in self.model.state_dict().values():
            tensor.zero_()
        self.dim = self.model.encoder.feature_projection.projection.out_features  # 768
        self.requires_grad_(False)
        self.train(False)

    def check_loaded(self) -> None:
        """Raise NotFittedError if there are no weights yet."""
        if not any(bool(parameter.any()) for parameter in self.parameters()):
            raise NotFittedError(
                'HuBERT base has no weights yet: load_frontend("semantic", encoder="hubert_base") does'
            )

    @torch.no_grad()
    def load(self, weights: str) -> None:
        """Load the weights that `weights` names: see `load_weights`; "random" for fixed random ones.

        Raises:
            DownloadError: they can't be downloaded or read, or are not those of HuBERT base.
        """
        if weights == "random":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                state = load_torchaudio().models.hubert_base().state_dict()
            path = Path(weights)
        else:
            path, state = load_weights(weights)
        try:
            self.model.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:400]
            raise DownloadError(
                f"{path}: these are not the weights of HuBERT base ({reason}); give {Path(URL).name}"
            ) from error

    def train(self, mode: bool = True) -> "HuBERT":
        """Stay in evaluation mode: dropout would change codes."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """Encode blocks of samples."""
        # 400 samples make a frame, HOP apart: with 40 zeros on either side, T * HOP samples make T frames.
        wav = F.pad(x.flatten(1), (40, 40))
        return self.model.extract_features(wav, num_layers=LAYER)[0][-1]


def load_weights(weights: str) -> tuple[Path, dict[str, Tensor]]:
    """Load the published weights to the CPU.

    Args:
        weights: "download", or the path of the .pth or of a .safetensors with the same keys. The download is kept as
            .safetensors in the cache folder.

    Returns:
        The path that they came from, and the tensors by name.

    Raises:
        DownloadError: they can't be downloaded or read.
    """
    if weights != "download":
        path = Path(weights).expanduser()
        if not path.is_file():
            raise DownloadError(f'{path}: there is no such file; give the path of {Path(URL).name}, or "download"')
        return path, _read(path)
    kept = cache_folder() / Path(URL).with_suffix(".safetensors").name
    if not kept.exists():
        path = cache_folder() / Path(URL).name
        advice = f"or get that file in another way and give its path: frontend.weights=/path/to/{path.name}"
        fetch(URL, path, None, MAX_BYTES, advice)
        write_tensors(kept, _read(path), source=path.name)
        path.unlink()
    return kept, _read(kept)


def _read(path: Path) -> dict[str, Tensor]:
    """Read a file without running code from it (weights_only)."""
    if path.suffix == ".safetensors":
        return read_tensors(path, DownloadError, "delete it and run this again", with_sum=False)[0]
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DownloadError(f"{path}: contains more than weights, or is damaged ({reason}); get it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DownloadError(f"{path}: contains no state dict; get it again from {URL}")
    return {name: tensor.contiguous() for name, tensor in state.items()}
