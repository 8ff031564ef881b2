"""Start a codec from the weights of another whose frames are as long, at any sample rate.

Bins of the spectra are equally far apart then, whatever the sample rate, so the weights of those that both codecs have
are the same, and so are all others.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .networks import SPECTRA

INTO = "encoder.blocks.into.weight"  # (dim, bins of SPECTRA spectra with 3 features each)
OUT = ("decoder.blocks.out.weight", "decoder.blocks.out.bias")  # (bins of SPECTRA spectra with 2 values each, ...)
MAGNITUDE = 0  # of a bin's two values; the other is the phase
KEPT = ("level", "is_fitted")  # not weights


@torch.no_grad()
def transplant(source: Mapping[str, Tensor], codec: nn.Module) -> None:
    """Copy the weights of a codec into another.

    Bins that only `codec` has are ignored by its encoder at first; its decoder takes the magnitude of the highest bin
    that both have. Of the codebooks, as many as `codec` has are copied.

    Args:
        source: state dict of the codec that is copied.
        codec: a codec of the same widths, layers and length of frames, with fresh weights.
    """
    target = codec.state_dict()
    for name, theirs in source.items():
        if name in KEPT:
            continue
        mine = target[name]
        if name == INTO:
            mine, theirs = (weight.view(len(weight), SPECTRA, 3, -1) for weight in (mine, theirs))
            shared = min(mine.shape[-1], theirs.shape[-1])
            mine.zero_()
            mine[..., :shared] = theirs[..., :shared].to(mine)
        elif name in OUT:
            mine, theirs = (weight.view(SPECTRA, 2, -1, *weight.shape[1:]) for weight in (mine, theirs))
            shared = min(mine.shape[2], theirs.shape[2])
            mine[:, MAGNITUDE, shared:] = theirs[:, MAGNITUDE, shared - 1 : shared].to(mine)
            mine[:, :, :shared] = theirs[:, :, :shared].to(mine)
        else:
            mine.copy_(theirs[: len(mine)] if mine.ndim else theirs)
