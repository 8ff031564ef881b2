"""Writing sound files: bit for bit where the format can, whole or not at all."""

import os
import warnings

import numpy as np
import pytest
import soundfile
import torch
from sound_files import sounds

from audiogen.audio.io import WRITE_SUFFIXES, audio_info, mono, read_audio, write_audio
from audiogen.errors import AudiogenError, ConfigError


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_sixteen_bits_come_back_bit_for_bit(tmp_path, suffix):
    """Guards against libsndfile's factor of 32767, by which one sample in two changes on its way through a program."""
    stored = np.random.default_rng(0).permutation(np.arange(-32_768, 32_768)).astype(np.int16)
    soundfile.write(tmp_path / f"a.{suffix}", stored, 16_000)
    write_audio(tmp_path / f"b.{suffix}", read_audio(tmp_path / f"a.{suffix}"), 16_000)
    again, rate = soundfile.read(tmp_path / f"b.{suffix}", dtype="int16")
    assert rate == 16_000 and np.array_equal(again, stored)
    assert audio_info(tmp_path / f"b.{suffix}").subtype == "PCM_16"


@pytest.mark.parametrize(
    ("name", "subtype", "bits"),
    [("a.wav", "PCM_U8", 8), ("a.flac", "PCM_S8", 8), ("a.wav", "PCM_24", 24), ("a.flac", "PCM_24", 24)],
)
def test_other_widths_come_back_too(tmp_path, name, subtype, bits):
    """Guards against rounding down, which is half a step too low."""
    scale = 2 ** (bits - 1)
    wav = torch.from_numpy(np.unique(np.linspace(-scale, scale - 1, 5_000).round()) / scale).float()
    off = 0.3 / scale * wav.sign() if bits == 8 else 0  # a float32 holds no more than 24 bits
    write_audio(tmp_path / name, wav - off, 16_000, subtype)
    assert torch.equal(read_audio(tmp_path / name)[0], wav)


@pytest.mark.parametrize("subtype", ["FLOAT", "PCM_32"])
def test_floats_and_32_bits(tmp_path, subtype):
    """Guards against full scale that wraps to -1."""
    wav = torch.tensor([[1.0, -1.0, 0.1, 1e-7]])
    write_audio(tmp_path / "a.wav", wav, 16_000, subtype)
    torch.testing.assert_close(read_audio(tmp_path / "a.wav"), wav, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "bits", "subtype"),
    [
        ("a.wav", 16, "PCM_16"),
        ("a.wav", 24, "PCM_24"),
        ("a.wav", 32, "FLOAT"),
        ("a.flac", 16, "PCM_16"),
        ("a.flac", 24, "PCM_24"),
    ],
)
def test_bits_per_sample(tmp_path, name, bits, subtype):
    """Guards against: a width that only changes the header, so that quiet sound is as coarse as before."""
    wav = 1e-4 * torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))
    write_audio(tmp_path / name, wav, 16_000, bits=bits)
    error = float((read_audio(tmp_path / name) - wav).abs().max())
    assert soundfile.info(tmp_path / name).subtype == subtype
    assert error <= (0 if bits == 32 else 2.0**-bits + 1e-9)
    assert error == 0 or error > 2.0 ** (-bits - 1)


@pytest.mark.parametrize("suffix", sorted(WRITE_SUFFIXES))
@pytest.mark.parametrize("num_samples", [1, 100, 48_000])
def test_writes_what_it_reads(tmp_path, suffix, num_samples):
    """Guards against a format that loses or adds samples, at any length; a Vorbis encoder's stack that overflows."""
    path = tmp_path / f"a{suffix}"
    wav = torch.from_numpy(sounds(num_samples, 48_000, 2).T)
    write_audio(path, wav, 48_000)
    back = read_audio(path)
    assert back.shape == (1, num_samples) and audio_info(path).num_channels == 2
    if num_samples > 10_000:
        assert (back - mono(wav)).square().mean().sqrt() < 0.2


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32])
def test_integers_are_scaled_by_their_type(tmp_path, dtype):
    """Guards against an array of int16, as every other library gives it, written as a square wave."""
    limits = np.iinfo(dtype)
    whole = np.linspace(limits.min, limits.max, 256).astype(dtype)
    write_audio(tmp_path / "a.wav", whole, 16_000, "PCM_24")
    span = limits.max - limits.min + 1.0
    expected = (whole.astype(np.float64) - limits.min) / span * 2 - 1
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav")[0].numpy(), expected, atol=2.0**-23)


def test_long_vorbis(tmp_path):
    """Guards against the crash of libsndfile's Vorbis encoder on a long row of samples."""
    write_audio(tmp_path / "a.ogg", torch.zeros(1, 3_000_000), 8_000)
    assert audio_info(tmp_path / "a.ogg").num_samples == 3_000_000


def test_clips_with_a_warning(tmp_path):
    """Guards against samples that wrap around, and clipping that nobody hears of; full scale itself is no reason to
    warn."""
    with pytest.warns(UserWarning, match=r"a.wav: 2 of 4 samples clipped \(peak 2\)"):
        write_audio(tmp_path / "a.wav", torch.tensor([0.5, 1.5, -2.0, 0.0]), 16_000)
    assert (read_audio(tmp_path / "a.wav")[0] * 32768).tolist() == [16_384, 32_767, -32_768, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_audio(tmp_path / "b.wav", torch.tensor([1.0, -1.0]), 16_000)


@pytest.mark.parametrize(
    ("name", "wav", "settings", "message"),
    [
        ("a.wav", torch.tensor([0.0, float("nan")]), {}, "NaN or infinite"),
        ("a.wav", torch.tensor([0.0, float("inf")]), {}, "NaN or infinite"),
        ("a.wav", torch.tensor([0.0, 32_767.0]), {}, r"absurd samples \(up to 3.28e\+04.*scale them"),
        ("a.wav", torch.zeros(10, dtype=torch.int64), {}, "int64 have no full scale"),
        ("a.wav", torch.zeros(10, dtype=torch.complex64), {}, "complex64 have no full scale"),
        ("a.wav", torch.zeros(1, 0), {}, "no samples"),
        ("a.wav", torch.zeros(9, 10), {}, "shape"),
        ("a.wav", torch.zeros(1, 1, 10), {}, "shape"),
        ("a.aiff", torch.zeros(10), {}, "can.t be written; use .wav"),
        ("a", torch.zeros(10), {}, "no suffix"),
        ("a.flac", torch.zeros(10), {"subtype": "FLOAT"}, "FLAC can't hold"),
        ("a.wav", torch.zeros(10), {"subtype": "PCM_12"}, "WAV can't hold"),
        ("a.opus", torch.zeros(10), {"sample_rate": 44_100}, "OGG can't hold"),
        ("a.mp3", torch.zeros(3, 10), {}, "MP3 can't hold"),
    ],
)
def test_what_can_not_be_written(tmp_path, name, wav, settings, message):
    """Guards against a half-written or silent file in the place of a good one."""
    (tmp_path / name).write_bytes(b"before")
    with pytest.raises(AudiogenError, match=message) as caught:
        write_audio(tmp_path / name, wav, **{"sample_rate": 16_000, **settings})
    assert str(tmp_path / name) in str(caught.value)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"before"]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("a.flac", {"bits": 32}, "bits: a flac holds 16, 24 bits .*, not 32"),
        ("a.wav", {"bits": 8}, "bits: a wav holds 16, 24, 32 bits .*, not 8"),
        ("a.mp3", {"bits": 16}, "format: 'mp3' is unknown; choose wav or flac"),
        ("a.wav", {"bits": 16, "subtype": "PCM_16"}, "bits or subtype, not both"),
    ],
)
def test_widths_that_a_format_does_not_have(tmp_path, name, settings, message):
    """Guards against: a width that is silently another one."""
    with pytest.raises(ConfigError, match=message):
        write_audio(tmp_path / name, torch.zeros(10), 16_000, **settings)
    assert not list(tmp_path.iterdir())


def test_writing_is_atomic(tmp_path, monkeypatch):
    """Guards against a good file lost because the disk was full while the next was written."""
    write_audio(tmp_path / "a.wav", torch.zeros(10), 16_000)
    before = (tmp_path / "a.wav").read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(AudiogenError, match="disk is full"):
        write_audio(tmp_path / "a.wav", torch.ones(1_000), 16_000)
    assert [file.name for file in tmp_path.iterdir()] == ["a.wav"] and (tmp_path / "a.wav").read_bytes() == before
