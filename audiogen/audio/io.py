"""Read sound files of almost any format as tensors, and write some formats.

`Decoder` returns the samples of a file, or raises one clear `AudioReadError` rather than returning wrong sound; soxr
resamples, and soundfile (libsndfile) encodes. Reading is done block by block:

    decode -> check every sample -> mean of the channels -> resample -> clip to [-1, 1]

Memory depends on what is decoded, never on what a header claims.
"""

import io
import math
import warnings
from collections.abc import Iterator
from numbers import Integral
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch

from ..errors import AudiogenError, AudioReadError, ConfigError
from ..utils.files import atomic_write_bytes
from ..utils.installation import load_torchaudio
from .coding import Coding
from .containers import MAX_CHANNELS, MAX_PEAK, MAX_SAMPLE_RATE, MIN_SAMPLE_RATE, refusal
from .decoder import DECODE_AT_ONCE, AudioInfo, Decoder, mono_mix
from .decoder import audio_info as audio_info

_FORMATS = {  # by suffix: the container and the default coding
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".oga": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
WRITE_SUFFIXES = frozenset(_FORMATS)
"""Lower-case suffixes of the formats that can be written."""

_FULL_SCALE = {torch.int8: 2.0**7, torch.int16: 2.0**15, torch.int32: 2.0**31}
_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
_WRITE_AT_ONCE = 1 << 16  # more samples at once overflow the stack of the Vorbis encoder


class AudioFile:
    """A sound file that stays open, to read many parts of it: its headers are read only once.

    Raises:
        AudioReadError: as in `audio_info`.

    Example:
        >>> write_audio("a.wav", torch.zeros(1, 8000), 8000)
        >>> with AudioFile("a.wav") as file:
        ...     crops = [file.read(start, 100) for start in (0, 1000, 5000)]
        >>> file.info.duration, crops[0].shape
        (1.0, torch.Size([1, 100]))
    """

    def __init__(self, path: str | Path):
        self._decoder = Decoder(path)

    @property
    def info(self) -> AudioInfo:
        """Format, length and sample rate of the file."""
        return self._decoder.info

    def read(self, start: int = 0, num_samples: int | None = None, sample_rate: int | None = None) -> torch.Tensor:
        """Read a part as mono, (1, N) float32 in [-1, 1]; see `read_audio` for arguments and errors."""
        blocks = list(_read(self._decoder, sample_rate, start, num_samples, block_seconds=math.inf))
        return blocks[0] if len(blocks) == 1 else torch.cat([torch.zeros(1, 0), *blocks], dim=1)

    def close(self) -> None:
        """Close the file."""
        self._decoder.close()

    def __enter__(self) -> "AudioFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_audio(
    path: str | Path, sample_rate: int | None = None, start: int = 0, num_samples: int | None = None
) -> torch.Tensor:
    """Read a sound file, or a part of it, as mono.

    Channels are averaged, and samples beyond full scale, which lossy codecs and resampling produce, are clipped. A part
    is resampled as if it were surrounded by silence; it equals the same part of the whole file up to rounding (1e-6).
    In WAV, FLAC, AIFF and similar formats, reading seeks to `start`; other formats are decoded from the beginning.

    Args:
        path: a file that libsndfile or FFmpeg reads, such as WAV, FLAC, Ogg, MP3, AIFF, M4A, WMA or WebM, whatever its
            suffix; 1 to 768 kHz, 1 to 8 channels.
        sample_rate: Hz to resample to; None keeps the file's own.
        start: first sample to read, at the file's own rate.
        num_samples: number of samples to read, at the file's own rate; None, or more than there are, reads to the end.

    Returns:
        (1, N) float32 in [-1, 1]. N = floor(n * sample_rate / rate of the file + 1/2) for n samples read.

    Raises:
        AudioReadError: not audio, empty, damaged, shorter than `start` or than its header states, or with samples that
            are NaN, infinite, or beyond 4.0 (12 dB over full scale, which means a wrong format, not loud sound).

    Example:
        >>> write_audio("a.wav", torch.zeros(2, 16000), 16000)
        >>> read_audio("a.wav", sample_rate=8000).shape
        torch.Size([1, 8000])
    """
    with AudioFile(path) as file:
        return file.read(start, num_samples, sample_rate)


def read_blocks(
    path: str | Path, sample_rate: int | None = None, block_seconds: float = 10.0
) -> Iterator[torch.Tensor]:
    """Read a sound file in blocks, and so in constant memory; concatenated, they equal `read_audio` bit for bit.

    Args:
        path: a sound file; see `read_audio`.
        sample_rate: Hz to resample to; None keeps the file's own.
        block_seconds: approximate maximum length of a block.

    Yields:
        (1, n) float32 in [-1, 1], n > 0; nothing if the file is too short for one sample at `sample_rate`.

    Raises:
        AudioReadError: as in `read_audio`; wrong samples raise it when the iteration reaches them.

    Example:
        >>> write_audio("long.wav", torch.zeros(1, 20000), 8000)
        >>> sum(block.shape[1] for block in read_blocks("long.wav", block_seconds=1.0))
        20000
    """
    with Decoder(path) as decoder:
        yield from _read(decoder, sample_rate, start=0, num_samples=None, block_seconds=block_seconds)


def read_at_most(path: str | Path, sample_rate: int, seconds: float) -> torch.Tensor:
    """Read a sound file of a stranger as mono, and refuse one that is longer than `seconds`.

    No more than `seconds` are decoded, whatever the file states: one of a megabyte can hold days of silence.

    Returns:
        (1, N) float32 in [-1, 1] at `sample_rate`, as `read_audio` returns it; N is 0 if it is too short for a sample.

    Raises:
        AudioReadError: as in `read_audio`, or the file is too long.

    Example:
        >>> write_audio("a.wav", torch.zeros(1, 8000), 8000)
        >>> read_at_most("a.wav", 8000, seconds=0.5)
        Traceback (most recent call last):
        audiogen.errors.AudioReadError: a.wav: is longer than 0.5 s; cut it
    """
    with Decoder(path) as decoder:
        most, blocks = int(seconds * decoder.sample_rate), []
        while decoder.num_samples is None or decoder.position < min(decoder.num_samples, most + 1):
            samples = decoder.next(min(1 << 16, most + 1 - decoder.position))
            if len(samples) == 0:
                break
            blocks.append(mono_mix(samples))  # one channel of up to 8
            if decoder.position > most:
                raise AudioReadError(f"{path}: is longer than {seconds:g} s; cut it")
        wav = torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *blocks])).clamp(-1, 1)[None]
        return resample(wav, decoder.sample_rate, sample_rate).clamp(-1, 1)


def write_audio(
    path: str | Path, wav: torch.Tensor, sample_rate: int, subtype: str | None = None, bits: int | None = None
) -> None:
    """Write a sound file, completely or not at all.

    Reading a mono file of 8, 16 or 24 bits and writing it with as many bits does not change a sample.

    Args:
        path: its suffix determines the format: .wav, .flac, .ogg or .oga (Vorbis), .opus, .mp3.
        wav: (N,), (1, N) or (C, N), 1 to 8 channels. Floats in [-1, 1]; values beyond are clipped, with a warning. Or
            uint8, int8, int16 or int32, using their whole range.
        sample_rate: Hz.
        subtype: libsndfile's name of the coding, such as "ULAW"; None is 16 bits for WAV and FLAC.
        bits: in place of `subtype`, bits per sample of a WAV or a FLAC: 16, 24, or in a WAV 32, which are floats.

    Raises:
        ConfigError: the format does not support this number of bits, or `bits` and `subtype` are both given.
        AudiogenError: the suffix is unknown; samples are NaN, infinite, beyond 4.0, or of another integer type; the
            format does not support the shape, rate or coding; or the disk is full.

    Example:
        >>> write_audio("sine.flac", 0.5 * torch.sin(0.1 * torch.arange(8000)), 8000)
        >>> read_audio("sine.flac").shape
        torch.Size([1, 8000])
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise AudiogenError(f"{path}: {suffix or 'no suffix'} can't be written; use {', '.join(_FORMATS)}")
    _check_rate(sample_rate)
    wav = _as_float(path, torch.as_tensor(wav).detach().cpu())
    samples = np.atleast_2d(wav.numpy()).T  # (N, C)
    if samples.ndim != 2 or not 1 <= samples.shape[1] <= MAX_CHANNELS:
        raise AudiogenError(
            f"{path}: a wav of shape {tuple(wav.shape)} can't be written; give (N,) or (C, N) with "
            f"1 to {MAX_CHANNELS} channels"
        )
    if samples.size == 0:
        raise AudiogenError(f"{path}: there are no samples to write; make at least one")
    peak = float(np.abs(samples).max())
    if not math.isfinite(peak):
        raise AudiogenError(f"{path}: NaN or infinite samples can't be written; find out where they come from")
    if peak > MAX_PEAK:
        raise AudiogenError(
            f"{path}: absurd samples (up to {peak:.3g}, where full scale is 1) can't be written; scale them to "
            "[-1, 1], or give int16 or int32"
        )
    if peak > 1:
        count = np.count_nonzero(np.abs(samples) > 1)
        warnings.warn(
            f"{path}: {count} of {samples.size} samples clipped (peak {peak:.3g}); lower the level", stacklevel=2
        )
    container, usual = _FORMATS[suffix]
    if bits is not None:
        if subtype is not None:
            raise ConfigError("bits: give bits or subtype, not both")
        subtype = Coding(suffix[1:], bits).subtype
    atomic_write_bytes(path, _encode(path, samples, sample_rate, container, subtype or usual))


def resample(wav: torch.Tensor, from_rate: int, to_rate: int) -> torch.Tensor:
    """Change the sample rate, using soxr (HQ) on the CPU and torchaudio (Kaiser-windowed sinc) on other devices.

    The two agree below 0.9 times the lower Nyquist frequency. Results may overshoot [-1, 1] and are not clipped. On the
    CPU there is no gradient; on a GPU, rates without a common factor need large filters.

    Args:
        wav: (..., N) float.
        from_rate: Hz of wav.
        to_rate: Hz of the result.

    Returns:
        (..., N') of the same dtype and device, N' = floor(N * to_rate / from_rate + 1/2).

    Raises:
        ConfigError: a rate is not an integer from 1,000 to 768,000.

    Example:
        >>> resample(torch.zeros(1, 44100), 44100, 16000).shape
        torch.Size([1, 16000])
    """
    _check_rate(from_rate)
    _check_rate(to_rate)
    if from_rate == to_rate:
        return wav
    num_samples = _num_resampled(wav.shape[-1], from_rate, to_rate)
    if wav.numel() == 0:
        return wav.new_zeros(*wav.shape[:-1], num_samples)
    if wav.device.type == "cpu":
        dtype = torch.float64 if wav.dtype == torch.float64 else torch.float32
        rows = wav.detach().to(dtype).reshape(-1, wav.shape[-1])  # (R, N)
        samples = np.pad(rows.numpy().T, ((0, 1), (0, 0)))  # (N + 1, R); see `_read`
        resampled = soxr.resample(samples, from_rate, to_rate)[:num_samples]  # (N', R)
        return torch.from_numpy(resampled.T).reshape(*wav.shape[:-1], num_samples).to(wav.dtype)
    return load_torchaudio().functional.resample(
        wav,
        from_rate,
        to_rate,
        lowpass_filter_width=64,
        rolloff=0.9475937167399596,
        resampling_method="sinc_interp_kaiser",
        beta=14.769656459379492,
    )[..., :num_samples]


def _num_resampled(num_samples: int, from_rate: int, to_rate: int) -> int:
    return (2 * num_samples * to_rate + from_rate) // (2 * from_rate)


def mono(wav: torch.Tensor) -> torch.Tensor:
    """Average the channels: (..., C, N) -> (..., 1, N)."""
    return wav.mean(dim=-2, keepdim=True)


# ---- reading


def _read(
    decoder: Decoder, sample_rate: int | None, start: int, num_samples: int | None, block_seconds: float
) -> Iterator[torch.Tensor]:
    if sample_rate is not None:
        _check_rate(sample_rate)
    info = decoder.info
    stop = info.num_samples if num_samples is None else min(start + num_samples, info.num_samples)
    if not 0 <= start <= stop:
        raise refusal(
            info.path,
            f"holds {info.num_samples} samples, and none can be read from {start} to {stop}",
            "choose a part within it",
        )
    to_rate = sample_rate or info.sample_rate
    stream = soxr.ResampleStream(info.sample_rate, to_rate, 1) if to_rate != info.sample_rate else None
    left = _num_resampled(stop - start, info.sample_rate, to_rate)
    block = min(block_seconds * info.sample_rate, DECODE_AT_ONCE, DECODE_AT_ONCE * info.sample_rate / to_rate)
    decoder.seek(start)
    while decoder.position < stop:
        samples = decoder.next(min(max(int(block), 1), stop - decoder.position))  # (n, C)
        wav = mono_mix(samples)[None]  # (1, n)
        if stream is not None:
            last = decoder.position == stop
            if last:  # soxr rounds some halves down: with one more sample of silence, it never gives too few
                wav = np.pad(wav, ((0, 0), (0, 1)))
            wav = stream.resample_chunk(wav[0], last=last)[None, :left]
            left -= wav.shape[1]
        if decoder.peak > 1 or stream is not None:
            wav = np.clip(wav, -1, 1)
        if wav.size > 0:
            yield torch.from_numpy(wav)


def _check_rate(sample_rate: int) -> None:
    if not isinstance(sample_rate, Integral) or not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
        raise ConfigError(
            f"sample_rate={sample_rate} is not possible; give a whole number of Hz from "
            f"{MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE}"
        )


# ---- writing


def _as_float(path: str | Path, wav: torch.Tensor) -> torch.Tensor:
    """Convert samples of any dtype to floats with a full scale of 1."""
    if wav.is_floating_point():
        return wav.float()
    if wav.dtype == torch.uint8:
        return wav.float() / 128 - 1
    if wav.dtype not in _FULL_SCALE:
        raise AudiogenError(
            f"{path}: samples of {wav.dtype} have no full scale and can't be written; give floats in [-1, 1], or int16"
        )
    return wav.double() / _FULL_SCALE[wav.dtype]


def _encode(path: str | Path, samples: np.ndarray, sample_rate: int, container: str, subtype: str) -> bytes:
    """Encode a sound file in memory, so that utils/files.py handles a full disk."""
    buffer = io.BytesIO()
    try:
        with soundfile.SoundFile(buffer, "w", sample_rate, samples.shape[1], subtype, format=container) as sound:
            for start in range(0, len(samples), _WRITE_AT_ONCE):
                block = samples[start : start + _WRITE_AT_ONCE].clip(-1, 1)
                sound.write(_to_integers(block, _BITS[subtype]) if subtype in _BITS else block)
    except (soundfile.SoundFileError, ValueError) as error:
        reason = getattr(error, "error_string", None) or str(error)
        raise AudiogenError(
            f"{path}: {container} can't hold {samples.shape[1]} channels at {sample_rate} Hz as "
            f"{subtype} ({reason.strip(' .')}); choose another format, rate or coding"
        ) from error
    return buffer.getvalue()


def _to_integers(samples: np.ndarray, bits: int) -> np.ndarray:
    """Round samples to `bits` bits, in the upper bits of int32, as libsndfile expects them.

    Full scale is 2^(bits - 1), as in reading, so a round trip changes nothing; libsndfile itself would multiply by
    2^(bits - 1) - 1.
    """
    scale = 2.0 ** (bits - 1)
    return np.rint(samples * np.float64(scale)).clip(-scale, scale - 1).astype(np.int32) << (32 - bits)
