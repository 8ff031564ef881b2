"""The encodec package's own model, with a random codec's weights: what the EnCodec front-end is held against."""

import warnings

import pytest
import torch

from audiogen.frontends.encodec import frontend as encodec

encodec_package = pytest.importorskip("encodec")


def package_model():
    with warnings.catch_warnings():  # torch has a newer weight norm
        warnings.simplefilter("ignore")
        return encodec_package.EncodecModel.encodec_model_24khz(pretrained=False).eval()


def package_layout(frontend):
    """The weights of a frontend with 32 codebooks in the package's layout: with a weight norm that has to be folded."""
    ours, state = frontend.state_dict(), package_model().state_dict()
    for name in state:
        if name.endswith("weight_v"):  # g v / |v|: any length of v will do
            weight = ours[name.replace("weight_v", "weight")]
            state[name] = 3 * weight
            state[name.replace("weight_v", "weight_g")] = weight.flatten(1).norm(dim=1)[:, None, None]
        elif name.endswith("_codebook.embed"):
            state[name] = ours["codebooks"][int(name.split(".")[3])].clone()
        elif name in ours:
            state[name] = ours[name].clone()
    return state


def sounds(num_samples, batch=1, seed=7):
    return encodec.made_up_sounds(torch.Generator().manual_seed(seed), batch, num_samples)
