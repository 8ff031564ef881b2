"""Decode a .npy file of codes or frames to sound: part of `audiogen decode`."""

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..audio.io import write_audio
from ..audio.limiter import log_reductions
from ..errors import CacheError
from ..frontends import Frontend
from ..utils.files import open_regular

#: First bytes of a .npy file (numpy.lib.format).
MAGIC = b"\x93NUMPY"


def check_code_file(path: str | Path) -> None:
    """Check that a path is a .npy file, by its first bytes.

    Raises:
        CacheError: it is missing, unreadable or something else.
    """
    try:
        with open_regular(path) as file:
            begins = file.read(len(MAGIC))
    except FileNotFoundError:
        raise CacheError(f"{path}: is not there; give an encoded cache, or a .npy file of codes") from None
    except OSError as error:
        raise CacheError(f"{path}: can't be read ({error.strerror}); check what it is, and its permissions") from error
    if begins != MAGIC:
        raise CacheError(f"{path}: is not a .npy file; give an encoded cache, or codes that numpy.save wrote")


def read_codes(path: str | Path, frontend: Frontend) -> Tensor:
    """Read codes (B, K, T) int64, or frames (B, F, T), from a .npy file to the front-end's device.

    An array (T,) is one row, (C, T) is one item. Arrays of objects are refused, so no code in the file is run.

    Raises:
        CacheError: not a .npy file, or its shape or type does not fit the front-end; names the file.
    """
    path = Path(path)
    check_code_file(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # from Python's parser, which reads the header
            array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped, since a header may claim any size
    except Exception as error:  # a damaged header can make that parser raise anything
        reason = " ".join(str(error).split())[:200]
        raise CacheError(
            f"{path}: can't be read as codes ({reason}); give an encoded cache, or a .npy file of codes (numpy.save)"
        ) from error
    codes, rows = frontend.spec.discrete, frontend.spec.num_channels
    if array.dtype.kind not in ("iu" if codes else "f") or not 1 <= array.ndim <= 3 or not array.size:
        kind = f"integers (B, {rows}, T)" if codes else f"floating-point frames (B, {rows}, T)"
        raise CacheError(f"{path}: holds {array.dtype} {array.shape}, but this front-end decodes {kind}")
    x = torch.from_numpy(array.astype(np.int64 if codes else np.float32))
    x = x.reshape(*[1] * (3 - x.ndim), *x.shape)  # (B, C, T)
    return x.to(frontend.device, x.dtype if codes else frontend.dtype)


@torch.inference_mode()
def decode_file(path: str | Path, frontend: Frontend, out: str | Path) -> list[Path]:
    """Decode a file of codes to OUT/NAME.wav, or to OUT/NAME-0.wav, OUT/NAME-1.wav, ... if it holds several items.

    Returns:
        The paths written.

    Raises:
        CacheError: the file does not fit the front-end.
    """
    path, x, limiter = Path(path), read_codes(path, frontend), frontend.limiter()
    try:
        wavs = frontend.decode(x, limiter)  # (B, 1, N)
    except ValueError as error:
        raise CacheError(f"{path}: {error}; name the front-end that made it with --frontend") from error
    names = [path.stem] if len(wavs) == 1 else [f"{path.stem}-{i}" for i in range(len(wavs))]
    lengths = frontend.frame_lengths(x).sum(dim=1).tolist()  # items differ in length if the rate varies
    for name, wav, length in zip(names, wavs, lengths, strict=True):
        write_audio(Path(out, f"{name}.wav"), wav[:, :length].float().cpu(), frontend.spec.sample_rate)
    log_reductions([] if limiter is None else limiter.reductions)
    return [Path(out, f"{name}.wav") for name in names]
