"""Encode and decode with Opus and MP3 (libsndfile's encoders), as a reference for codecs."""

import io
from dataclasses import dataclass

import numpy as np
import soundfile
import torch
from torch import Tensor

from ..errors import AudiogenError

OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)  # Hz
_MP3_BITRATES = ((32_000, (32_000, 320_000)), (16_000, (8000, 160_000)), (0, (8000, 64_000)))  # by minimum rate in Hz
_LONGEST_DELAY = 2400  # maximum delay of a coder in samples; MP3 has 1105


@dataclass(frozen=True)
class Coded:
    """A sound after encoding and decoding.

    Attributes:
        wav: (1, N), of the same length as the original and aligned with it.
        bitrate: bit/s of the encoded sound, without the container.
        file_bitrate: bit/s of the whole file.
    """

    wav: Tensor
    bitrate: float
    file_bitrate: float


def code_opus(wav: Tensor, sample_rate: int, bitrate: float) -> Coded:
    """Encode and decode wav (1, N) in [-1, 1] with Opus.

    Args:
        wav: (1, N).
        sample_rate: one of OPUS_RATES.
        bitrate: 6,000 to 256,000 bit/s.

    Raises:
        AudiogenError: the rate or bitrate is not supported.
    """
    if sample_rate not in OPUS_RATES or not 6000 <= bitrate <= 256_000:
        raise AudiogenError(
            f"Opus takes {', '.join(map(str, OPUS_RATES))} Hz and 6000 to 256000 bit/s, not "
            f"{sample_rate} Hz at {bitrate:g} bit/s; resample first, or choose another bitrate"
        )
    level = 1 - (bitrate - 6000) / 250_000  # the inverse of libsndfile's ogg_opus.c, for one channel
    data, decoded = _through(wav, sample_rate, "OGG", "OPUS", compression_level=level)
    return _coded(wav, decoded, sample_rate, data, _ogg_payload(data))


def code_mp3(wav: Tensor, sample_rate: int, bitrate: float) -> Coded:
    """Encode and decode wav (1, N) in [-1, 1] with MP3, at the constant bitrate nearest to the requested one.

    `Coded.bitrate` is that of the file, since an MP3 has no container apart from one frame of metadata.

    Args:
        wav: (1, N).
        sample_rate: 8,000 to 48,000 Hz.
        bitrate: bit/s.

    Raises:
        AudiogenError: the bitrate is not possible at this rate.
    """
    lowest, highest = next(bounds for rate, bounds in _MP3_BITRATES if sample_rate >= rate)
    if not lowest <= bitrate <= highest:
        raise AudiogenError(
            f"an MP3 of {sample_rate} Hz has {lowest} to {highest} bit/s, not {bitrate:g}; choose another bitrate"
        )
    level = min(
        (highest - bitrate) / (highest - lowest), 0.999
    )  # the inverse of libsndfile's mpeg_l3_encode.c, which refuses 1
    data, decoded = _through(
        wav, sample_rate, "MP3", "MPEG_LAYER_III", compression_level=level, bitrate_mode="CONSTANT"
    )
    return _coded(wav, decoded, sample_rate, data, len(data))


def _through(wav: Tensor, sample_rate: int, container: str, subtype: str, **settings) -> tuple[bytes, Tensor]:
    """Encode and decode; return the bytes of the file, and the decoded wav (1, N')."""
    buffer = io.BytesIO()
    samples = wav[0].detach().to("cpu", torch.float32).clamp(-1, 1).numpy()
    try:
        with soundfile.SoundFile(buffer, "w", sample_rate, 1, subtype, format=container, **settings) as file:
            for start in range(0, len(samples), 1 << 16):
                file.write(samples[start : start + (1 << 16)])
        data = buffer.getvalue()
        buffer.seek(0)
        decoded, rate = soundfile.read(buffer, dtype="float32")
    except soundfile.SoundFileError as error:
        raise AudiogenError(
            f"{container} can't hold {sample_rate} Hz as {subtype} with this libsndfile ({error})"
        ) from error
    if rate != sample_rate:
        raise AudiogenError(f"{container} gave {rate} Hz back for {sample_rate}; resample to {rate} Hz first")
    return data, torch.from_numpy(decoded)[None]


def _coded(wav: Tensor, decoded: Tensor, sample_rate: int, data: bytes, payload: int) -> Coded:
    seconds = wav.shape[1] / sample_rate
    return Coded(_aligned(wav.cpu(), decoded), 8 * payload / seconds, 8 * len(data) / seconds)


def _aligned(wav: Tensor, decoded: Tensor) -> Tensor:
    """Remove the delay of `decoded` at which it correlates best with `wav`, and match the length."""
    n = wav.shape[1]
    size = 2 * max(n, decoded.shape[1])
    likeness = torch.fft.irfft(torch.fft.rfft(decoded[0], size) * torch.fft.rfft(wav[0].float(), size).conj(), size)
    delay = int(likeness[: min(_LONGEST_DELAY, n)].argmax())
    shifted = decoded[:, delay : delay + n]
    return torch.nn.functional.pad(shifted, (0, n - shifted.shape[1]))


def _ogg_payload(data: bytes) -> int:
    """Return the bytes of sound in an Ogg file: the bodies of its pages after the two header pages (RFC 7845)."""
    at, total, page = 0, 0, 0
    while at < len(data):
        count = data[at + 26]
        body = int(np.frombuffer(data, np.uint8, count, at + 27).sum(dtype=np.int64))
        if data[at : at + 4] != b"OggS":
            raise AudiogenError("an Ogg file that was just written does not consist of pages")
        total += body if page >= 2 else 0
        at, page = at + 27 + count + body, page + 1
    return total
