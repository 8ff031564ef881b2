"""The overfit check of a front-end and a backbone on a folder: `audiogen doctor --overfit`."""

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor

from ..errors import DataError
from .experiment import overfit
from .verdicts import Verdict, verdict

if TYPE_CHECKING:
    from ..data import EncodedCache, Index, Part

#: Seconds of sound used in total, and minimum per file if there are many: enough for k-means.
SECONDS, SHORTEST_SHARE = 120.0, 10.0
#: Frames per crop: a few suffice to show order, and short crops cover more files.
CROP_FRAMES = 64


def check_overfit(
    console: Console,
    folder: "str | Path | Index | EncodedCache",
    frontend: str | None = None,
    backbone: str | None = None,
    device: str = "auto",
    overrides: Sequence[str] = (),
) -> Verdict:
    """Check whether the model that `train` would start with can learn from a folder, and print the verdict.

    Uses at most two minutes of the training side. A learned front-end is fitted to those; for one that takes long to
    train, its `quick_variant` is used.

    Args:
        console: where to print.
        folder: folder of sound files, a cache, or what `check_folder` returned.
        frontend: name of a front-end, or a folder that holds one; None for the default.
        backbone: name of a backbone; None for the default.
        device: "auto", "cpu" or "cuda".
        overrides: "a.b=1" assignments of settings.

    Raises:
        DataError: the folder has too little sound.
        ConfigError: a setting is wrong.
    """
    from ..commands.plan import Flags, Plan, open_source
    from ..data import EncodedCache, long_enough
    from ..runs.build import build_model
    from ..utils.devices import choose_device

    where = choose_device(device)
    source = open_source(folder) if isinstance(folder, str | Path) else folder
    plan = Plan.for_source(source, Flags(frontend, backbone, overrides))
    front, config = plan.frontend, plan.config
    cached = isinstance(source, EncodedCache)
    index = source.index if cached else long_enough(source, front.spec)
    parts = excerpts(plan.split(index).train, SECONDS)
    found = near_silence(parts)
    if found is None:
        if not cached:
            front = _fitted(front, index, parts)
        sequences = _cached(source, parts) if cached else _encoded(front.to(where), index, parts)
        torch.manual_seed(config.training.seed)
        model = build_model(config, front.spec).to(where)
        crops = cut(sequences, min(CROP_FRAMES, config.training.crop_frames))
        with console.status("overfitting one batch") if console.is_terminal else nullcontext():
            found = verdict(overfit(model, crops, config.training))
    colour = "green" if found.fault is None else "red"
    console.print(Text.assemble(f"overfit check, {plan.backbone_kind} on {plan.frontend_kind}: ", (str(found), colour)))
    return found


def near_silence(parts: Sequence["Part"]) -> Verdict | None:
    """Return a verdict if most of the sound is near-silent, else None."""
    seconds = sum(part.seconds for part in parts)
    silent = sum(part.seconds for part in parts if part.file.silent)
    if silent <= 0.5 * seconds:
        return None
    return Verdict(
        "silence",
        f"the recordings are near-silent: {silent / seconds:.0%} of the sound is below -50 "
        "dBFS, so a model would learn their noise; record louder, or remove these files",
    )


def excerpts(parts: Sequence["Part"], seconds: float) -> list["Part"]:
    """Choose at most `seconds` of sound from as many parts as possible, using the middle of long ones."""
    chosen, total, share = [], 0.0, max(seconds / len(parts), SHORTEST_SHARE)
    for part in parts:
        if part.seconds > share:
            spare = (part.seconds - share) / part.file.duration / 2
            part = dataclasses.replace(part, start=part.start + spare, stop=part.stop - spare)
        chosen.append(part)
        total += part.seconds
        if total >= seconds:
            break
    return chosen


def cut(sequences: Sequence[Tensor], num_frames: int) -> Tensor:
    """Join sequences (C, T) and cut them into crops (N, C, num_frames) in random order, N >= 2.

    Raises:
        DataError: there are fewer than four frames.
    """
    joined = torch.cat(list(sequences), dim=1)
    num_frames = min(num_frames, joined.shape[1] // 2)
    if num_frames < 2:
        raise DataError(f"{joined.shape[1]} frames are too few for the check; add recordings, or longer ones")
    count = joined.shape[1] // num_frames
    crops = joined[:, : count * num_frames].unflatten(1, (count, num_frames)).transpose(0, 1)
    return crops[torch.randperm(count, generator=torch.Generator().manual_seed(0)).to(crops.device)]


def _fitted(front: Any, index: "Index", parts: Sequence["Part"]) -> Any:
    from ..data import training_wavs

    if front.fitted:
        return front
    front = front.quick_variant()
    front.fit(training_wavs(index, parts, front.spec.sample_rate))
    return front.eval()


@torch.no_grad()
def _encoded(front: Any, index: "Index", parts: Sequence["Part"]) -> list[Tensor]:
    from ..data import training_wavs

    return [front.encode(wav[None].to(front.device))[0] for wav in training_wavs(index, parts, front.spec.sample_rate)]


def _cached(cache: "EncodedCache", parts: Sequence["Part"]) -> list[Tensor]:
    from ..data import Sequences

    return list(Sequences(cache, parts))
