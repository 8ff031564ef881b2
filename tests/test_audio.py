"""Sound files: what is read is what was stored, at every offset, in every format; what is wrong is refused."""

import os
import struct
import tracemalloc
import warnings
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from audiogen.audio import AUDIO_SUFFIXES, audio_info, mono, read_audio, read_blocks, resample, write_audio
from audiogen.errors import AudiogenError, AudioReadError, ConfigError

# name, container, subtype, sample_rate, num_channels; a low-rate MP3 needs many earlier frames for each one
CODINGS = [
    ("u8.wav", "WAV", "PCM_U8", 8_000, 1),
    ("s16.wav", "WAV", "PCM_16", 44_100, 2),
    ("s24.wav", "WAV", "PCM_24", 48_000, 8),
    ("s32.wav", "WAV", "PCM_32", 192_000, 3),
    ("float.wav", "WAV", "FLOAT", 22_050, 2),
    ("double.wav", "WAV", "DOUBLE", 11_025, 1),
    ("ulaw.wav", "WAV", "ULAW", 8_000, 1),
    ("alaw.wav", "WAV", "ALAW", 8_000, 1),
    ("extensible.wav", "WAVEX", "PCM_24", 32_000, 4),
    ("rf64.wav", "RF64", "PCM_16", 44_100, 1),
    ("s8.flac", "FLAC", "PCM_S8", 16_000, 1),
    ("s16.flac", "FLAC", "PCM_16", 44_100, 2),
    ("s24.flac", "FLAC", "PCM_24", 96_000, 8),
    ("vorbis.ogg", "OGG", "VORBIS", 44_100, 2),
    ("six.oga", "OGG", "VORBIS", 48_000, 6),
    ("48.opus", "OGG", "OPUS", 48_000, 2),
    ("16.opus", "OGG", "OPUS", 16_000, 1),
    ("44.mp3", "MP3", "MPEG_LAYER_III", 44_100, 2),
    ("16.mp3", "MP3", "MPEG_LAYER_III", 16_000, 2),
    ("8.mp3", "MP3", "MPEG_LAYER_III", 8_000, 1),
]
LOSSY = {"VORBIS", "OPUS", "MPEG_LAYER_III"}


def sounds(num_samples: int, sample_rate: int, num_channels: int) -> np.ndarray:
    """(N, C) float64: another tone in each channel, with noise, within [-0.9, 0.9]."""
    time = np.arange(num_samples) / sample_rate
    tones = np.sin(2 * np.pi * np.outer(time, 300 + 100 * np.arange(num_channels)))
    return 0.6 * tones + np.random.default_rng(0).uniform(-0.3, 0.3, tones.shape)


@pytest.fixture(scope="module", params=CODINGS, ids=lambda coding: coding[0])
def stored(request, tmp_path_factory):
    """A file of two seconds, and what soundfile was given to store: path, (N, C), subtype, sample rate."""
    name, container, subtype, sample_rate, num_channels = request.param
    path = tmp_path_factory.mktemp("stored") / name
    given = sounds(2 * sample_rate + 7, sample_rate, num_channels)
    soundfile.write(path, given, sample_rate, format=container, subtype=subtype)
    return path, given, subtype, sample_rate


def flac(path: Path, total: int | None = None, num_samples: int = 5_000) -> Path:
    """A FLAC file, stating `total` samples in STREAMINFO in the place of what it holds."""
    soundfile.write(path, sounds(num_samples, 16_000, 1), 16_000)
    data = bytearray(path.read_bytes())
    if total is not None:
        data[18:26] = (int.from_bytes(data[18:26], "big") >> 36 << 36 | total).to_bytes(8, "big")
    path.write_bytes(data)
    return path


def wav_bytes(data: bytes, data_size: int | None = None, *, riff_size: int | None = None, coding: int = 1,
              num_channels: int = 1, sample_rate: int = 16_000, bits: int = 16, before: bytes = b"",
              after: bytes = b"") -> bytes:
    """A WAV made by hand, so that every field can lie."""
    align = num_channels * bits // 8
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, coding, num_channels, sample_rate, sample_rate * align & 0xFFFFFFFF,
                      align & 0xFFFF, bits)
    size = len(data) if data_size is None else data_size
    body = b"WAVE" + fmt + before + struct.pack("<4sI", b"data", size) + data + after
    return struct.pack("<4sI", b"RIFF", len(body) if riff_size is None else riff_size) + body


# ---- reading


def test_reads_every_format(stored):
    """Buries: a wrong scale, a lost channel, samples lost or added by a codec's delay."""
    path, given, subtype, sample_rate = stored
    wav = read_audio(path)
    assert wav.shape == (1, len(given)) and wav.dtype == torch.float32 and wav.is_contiguous()
    error = (wav[0].double() - torch.from_numpy(given.mean(axis=1))).square().mean().sqrt().item()
    assert error < {"PCM_U8": 5e-3, "PCM_S8": 5e-3, "ULAW": 2e-2, "ALAW": 2e-2}.get(subtype, 0.2 if subtype in LOSSY
                                                                                   else 2e-5)
    info = audio_info(path)
    assert (info.path, info.sample_rate, info.num_channels) == (path, sample_rate, given.shape[1])
    assert (info.num_samples, info.subtype, info.duration) == (len(given), subtype, len(given) / sample_rate)
    assert info.format in ("WAV", "FLAC", "OGG", "MP3")


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
@pytest.mark.parametrize("num_channels", [1, 2, 8])
def test_equals_the_wave_module(tmp_path, bits, num_channels):
    """Buries: x / 32767, which no longer gives back the stored integers."""
    raw = np.random.default_rng(0).integers(0, 256, 3 * 5 * 7 * 8 * bits // 8, dtype=np.uint8).tobytes()
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((num_channels, bits // 8, 16_000, 0, "NONE", ""))
        file.writeframes(raw)
    width = bits // 8
    values = [int.from_bytes(raw[i:i + width], "little", signed=bits > 8) for i in range(0, len(raw), width)]
    values = (np.array(values, dtype=np.float64) - (128 if bits == 8 else 0)) / 2 ** (bits - 1)
    expected = values.astype(np.float32).reshape(-1, num_channels).astype(np.float64).mean(axis=1)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav")[0].numpy(), expected, atol=1e-7)


def test_a_stretch_is_the_same_stretch_of_the_whole(stored):
    """Buries: libsndfile's Vorbis seek that misses (issue 885), and MP3 frames decoded without their forerunners."""
    path, given, subtype, _ = stored
    whole = read_audio(path)
    for start in np.random.default_rng(1).integers(0, len(given) - 500, 12).tolist() + [0, 1, len(given) - 500]:
        stretch = read_audio(path, start=start, num_samples=500)
        torch.testing.assert_close(stretch, whole[:, start:start + 500], rtol=0, atol=1e-6 if subtype in LOSSY else 0)
    assert read_audio(path, start=len(given) - 3, num_samples=500).shape == (1, 3)
    assert read_audio(path, start=5, num_samples=0).shape == read_audio(path, start=len(given)).shape == (1, 0)


@pytest.mark.parametrize("sample_rate", [None, 16_000, 44_101])
def test_blocks_equal_the_whole(stored, sample_rate):
    """Buries: a resampler that starts afresh, a decoder that is disturbed, at the seams between blocks."""
    path = stored[0]
    whole = read_audio(path, sample_rate)
    for block_seconds in (0.013, 0.7, 100.0):
        blocks = list(read_blocks(path, sample_rate, block_seconds))
        assert all(block.shape[0] == 1 and block.shape[1] > 0 for block in blocks)
        assert torch.equal(torch.cat(blocks, dim=1), whole)


@pytest.mark.parametrize("num_channels", range(1, 9))
def test_blocks_of_one_sample_mix_alike(tmp_path, num_channels):
    """Buries: a mean whose order of additions depends on how many samples are averaged at once."""
    soundfile.write(tmp_path / "a.wav", sounds(200, 8_000, num_channels), 8_000, subtype="FLOAT")
    blocks = torch.cat(list(read_blocks(tmp_path / "a.wav", block_seconds=1e-9)), dim=1)
    assert torch.equal(blocks, read_audio(tmp_path / "a.wav"))


def test_reading_at_a_rate_is_reading_and_resampling(stored):
    """Buries: two resamplers in one house. (Lossy files overshoot, which is clipped only after resampling.)"""
    path, given, subtype, sample_rate = stored
    wav = read_audio(path, 24_000)
    assert wav.shape == (1, (2 * len(given) * 24_000 + sample_rate) // (2 * sample_rate))
    if subtype not in LOSSY:
        assert torch.equal(wav, resample(read_audio(path), sample_rate, 24_000).clamp(-1, 1))


def test_a_long_file_is_not_loaded(tmp_path):
    """Buries: 2 GiB read to have 100 samples; blocks that pile up; a slow look at the header."""
    path = tmp_path / "long.wav"
    header = wav_bytes(b"", data_size=2_000_000_000, riff_size=2_000_000_036)
    with open(path, "wb") as file:
        file.write(header)
        file.seek(len(header) + 1_999_999_998)
        file.write(struct.pack("<h", 16_384))
    tracemalloc.start()
    assert audio_info(path).num_samples == 1_000_000_000
    assert read_audio(path, start=999_999_998)[0].tolist() == [0, 0.5]
    blocks = read_blocks(path, 8_000, block_seconds=1.0)
    assert sum(next(blocks).shape[1] for _ in range(200)) > 1_500_000
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_lengths_that_are_stated_nowhere(tmp_path):
    """Buries: a FLAC from a pipe that can't be read; an MP3 without a tag that is as long as libsndfile's guess."""
    whole = read_audio(flac(tmp_path / "known.flac"))
    piped = flac(tmp_path / "piped.flac", total=0)
    assert audio_info(piped).num_samples == 5_000
    assert torch.equal(read_audio(piped), whole)
    assert torch.equal(read_audio(piped, start=4_321, num_samples=50), whole[:, 4_321:4_371])

    soundfile.write(tmp_path / "a.mp3", sounds(20_000, 16_000, 1), 16_000, bitrate_mode="CONSTANT",
                    compression_level=0.5)
    data = (tmp_path / "a.mp3").read_bytes()
    frame_bytes = 72 * 80_000 // 16_000
    assert len(data) % frame_bytes == 0 and data[frame_bytes:frame_bytes + 2] == data[:2]
    (tmp_path / "bare.mp3").write_bytes(b"ID3\4\0\0\0\0\0\4abcd" + data[frame_bytes:] + b"TAG" + bytes(125))
    assert audio_info(tmp_path / "bare.mp3").num_samples == (len(data) // frame_bytes - 1) * 576
    assert read_audio(tmp_path / "bare.mp3").shape == (1, (len(data) // frame_bytes - 1) * 576)


def test_an_mp3_of_varying_bitrate_without_a_tag_is_refused(tmp_path):
    """Buries: the half of such a file that lies beyond libsndfile's guess, lost in silence."""
    loud_last = np.concatenate([0.8 * sounds(44_100, 44_100, 2), np.zeros((132_300, 2))])
    soundfile.write(tmp_path / "a.mp3", loud_last, 44_100)
    data = (tmp_path / "a.mp3").read_bytes()
    assert b"Xing" in data[:60]
    (tmp_path / "bare.mp3").write_bytes(data[data.index(data[:2], 2):])
    with pytest.raises(AudioReadError, match="by its container"):
        audio_info(tmp_path / "bare.mp3")


@pytest.mark.parametrize("after", [b"", b"\0", b"\0LIST\4\0\0\0INFO"])
def test_odd_data_and_chunks_around_it(tmp_path, after):
    """Buries: a missing padding byte taken for a missing sample, and chunks misread after an odd one."""
    data = wav_bytes(b"\x80\x00\xff", bits=8, before=b"odd \3\0\0\0abc\0", after=after)
    (tmp_path / "a.wav").write_bytes(data)
    assert read_audio(tmp_path / "a.wav")[0].tolist() == [0, -1, 127 / 128]


def test_a_wav_from_a_pipe_goes_to_the_end(tmp_path):
    """Buries: refusing what ffmpeg writes to a pipe. With a true RIFF size the same data size is a lie."""
    data = struct.pack("<3h", 1, 2, 3)
    (tmp_path / "a.wav").write_bytes(wav_bytes(data, data_size=0xFFFFFFFF, riff_size=0xFFFFFFFF))
    assert (read_audio(tmp_path / "a.wav")[0] * 32768).tolist() == [1, 2, 3]
    (tmp_path / "b.wav").write_bytes(wav_bytes(data, data_size=0xFFFFFFFF))
    with pytest.raises(AudioReadError, match="truncated"):
        read_audio(tmp_path / "b.wav")


def test_big_endian_and_tagged_files(tmp_path):
    """Buries: RIFX read in the wrong order, and a tag before the header that hides it."""
    soundfile.write(tmp_path / "a.wav", sounds(100, 8_000, 2), 8_000, endian="BIG")
    assert (tmp_path / "a.wav").read_bytes()[:4] == b"RIFX"
    assert audio_info(tmp_path / "a.wav").num_samples == 100
    tag = b"ID3\4\0\0\0\0\1\0" + bytes(128)
    for suffix in ("wav", "flac", "mp3"):
        path = tmp_path / f"b.{suffix}"
        soundfile.write(path, sounds(9_000, 16_000, 1), 16_000)
        plain = read_audio(path)
        path.write_bytes(tag + path.read_bytes())
        assert torch.equal(read_audio(path), plain)


def test_mild_overshoot_is_clipped(tmp_path):
    """Buries: samples outside [-1, 1] that a front-end would fold over."""
    soundfile.write(tmp_path / "a.wav", np.array([0.5, 1.5, -3.9, 1.0]), 16_000, subtype="FLOAT")
    assert read_audio(tmp_path / "a.wav")[0].tolist() == [0.5, 1.0, -1.0, 1.0]
    soundfile.write(tmp_path / "b.wav", np.tile([1.0, 1.0, -1.0, -1.0], 500), 16_000, subtype="FLOAT")
    assert read_audio(tmp_path / "b.wav", 44_100).abs().max() == 1  # resampling overshoots at the edges


@pytest.mark.parametrize("name", ["gehört 音.wav", "new\nline.wav", "-x.wav", "100%.wav", b"\xff\xfe.wav", "no suffix",
                                  "UPPER.WAV", "wrong.mp3"])
def test_odd_file_names(tmp_path, name):
    """Buries: names that are no valid Unicode, and messages of two lines. The suffix is not believed."""
    try:
        path = tmp_path / os.fsdecode(name)
        path.write_bytes(wav_bytes(bytes(20)))
    except OSError:
        pytest.skip("this file system has no such names")
    assert read_audio(path).shape == (1, 10)
    path.write_bytes(wav_bytes(bytes(20), data_size=40))
    with pytest.raises(AudioReadError) as caught:
        read_audio(path)
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()


# ---- refusals


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


def stored_as(suffix: str, **settings):
    def make(path):
        soundfile.write(path.with_suffix(suffix), sounds(9_000, 16_000, 1), 16_000, **settings)
        return path.with_suffix(suffix)
    return make


def stored_and_cut(suffix: str, count: int):
    def make(path):
        path = stored_as(suffix)(path)
        cut(path, count)
        return path
    return make


def content(data: bytes):
    def make(path):
        path.write_bytes(data)
        return path
    return make


def floats(*values: float):
    return content(wav_bytes(struct.pack(f"<{len(values)}f", *values), coding=3, bits=32))


def a_folder(path):
    path.mkdir()
    return path


def a_pipe(path):
    os.mkfifo(path)
    return path


def two_streams(path):
    soundfile.write(path, sounds(9_000, 16_000, 1), 16_000, format="OGG")
    data = path.read_bytes()
    path.write_bytes(data + data.replace(data[14:18], bytes(4)))
    return path


def no_end_of_stream(path):
    data = stored_as(".ogg")(path).read_bytes()
    flags = data.rindex(b"OggS") + 5
    return content(data[:flags] + b"\0" + data[flags + 1:])(path)


def raw_suffix(path):
    return content(wav_bytes(bytes(20)))(path.with_suffix(".raw"))


PCM = struct.pack("<4h", 1, 2, 3, 4)
REFUSALS = {
    "missing": (lambda path: path, "can't be opened .No such file"),
    "nul in its name": (lambda path: f"{path}\0", "can't be opened"),
    "folder": (a_folder, "is a folder or a device"),
    "pipe": (a_pipe, "is a folder or a device"),
    "empty": (content(b""), r"is empty \(0 bytes\)"),
    "text": (content(b"dear diary, " * 50), "is no WAV, FLAC, Ogg or MP3 file"),
    "another format": (stored_as(".aiff"), "is no WAV, FLAC, Ogg or MP3 file"),
    "called raw": (raw_suffix, "suffix"),
    "header only": (content(wav_bytes(b"")), "has a header but no samples"),
    "less than a sample": (content(wav_bytes(b"a")), "has a header but no samples"),
    "no data chunk": (content(wav_bytes(b"")[:36]), "no data chunk"),
    "no format chunk": (content(b"RIFF\x10\0\0\0WAVEdata\4\0\0\0abcd"), "no format chunk"),
    "short format chunk": (content(b"RIFF\x1e\0\0\0WAVEfmt \2\0\0\0\1\0data\4\0\0\0abcd"), "ends within its header"),
    "cut in its header": (content(wav_bytes(PCM)[:30]), "no data chunk"),
    "zeros": (content(b"RIFF\0\0\0\0WAVE" + bytes(100_000)), "no data among its first"),
    "unfinished header": (content(wav_bytes(PCM, data_size=0, riff_size=0)), "states 0 samples, though 8 bytes"),
    "truncated": (content(wav_bytes(PCM, data_size=10)), "truncated: its header states 5 samples, the file holds 4"),
    "truncated by a byte": (content(wav_bytes(PCM[:-1], data_size=8)), "states 4 samples, the file holds 3"),
    "claims 4 GB": (content(wav_bytes(PCM, data_size=0xFFFFFFF0)), "truncated"),
    "truncated RF64": (stored_and_cut(".rf64", 1), "truncated"),
    "truncated FLAC": (stored_and_cut(".flac", 100), "damaged or truncated"),
    "truncated Vorbis": (stored_and_cut(".ogg", 1), "does not end with a whole Ogg page"),
    "truncated MP3": (stored_and_cut(".mp3", 700), "is truncated: its header states"),
    "MP3 short of a byte": (stored_and_cut(".mp3", 1), "damaged or truncated"),
    "FLAC states one more": (lambda path: flac(path.with_suffix(".flac"), total=5_001), "5001 samples, but only 5000"),
    "FLAC states more than it can": (lambda path: flac(path.with_suffix(".flac"), total=1 << 35), "bytes can hold"),
    "two Ogg streams": (two_streams, "several Ogg streams"),
    "Ogg without its end": (no_end_of_stream, "is truncated: its last Ogg page is not the end"),
    "other Ogg": (content(b"OggS\0\2" + bytes(20) + b"\1\7fishead"), "without Vorbis or Opus"),
    "no channels": (content(wav_bytes(PCM, num_channels=0)), "0 bytes"),
    "9 channels": (content(wav_bytes(bytes(36), num_channels=9)), "states 9 channels, and 1 to 8 are read"),
    "rate 0": (content(wav_bytes(PCM, sample_rate=0)), "states a sample rate of 0 Hz"),
    "rate over 768 kHz": (content(wav_bytes(PCM, sample_rate=768_001)), "states a sample rate of 768001 Hz"),
    "compressed": (stored_as(".wav", subtype="MS_ADPCM"), "0x0002"),
    "two lengths": (content(wav_bytes(bytes(12), bits=12)), "12 samples by its container but 6 by its decoder"),
    "a kind libsndfile lacks": (content(wav_bytes(bytes(12), bits=48)), "can't be decoded .*unimplemented"),
    "NaN": (floats(0.1, float("nan"), 0.2), "NaN or infinite"),
    "infinite": (floats(0.1, -float("inf")), "NaN or infinite"),
    "absurd": (floats(0.5, -32_768.0, 0.25), r"absurd samples \(up to 3.28e\+04"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_refusals(tmp_path, kind):
    """Buries: anything but one line that names the file, says what is wrong and what to do."""
    make, message = REFUSALS[kind]
    path = make(tmp_path / "sound.wav")
    with pytest.raises(AudioReadError, match=message) as caught:
        read_audio(path)
    assert "sound" in str(caught.value) and "; " in str(caught.value) and str(caught.value).isprintable()
    with pytest.raises(AudioReadError):
        list(read_blocks(path, 8_000))


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "truncated by a byte", "truncated RF64",
                                  "truncated Vorbis", "truncated MP3", "9 channels", "rate 0", "header only"])
def test_info_refuses_what_headers_reveal(tmp_path, kind):
    """Buries: a folder of truncated files that is only found out while training."""
    with pytest.raises(AudioReadError):
        audio_info(REFUSALS[kind][0](tmp_path / "sound.wav"))


def test_a_hole_in_an_ogg_is_seen(tmp_path):
    """Buries: a page that a decoder passes over, so that all that follows it comes too early."""
    for subtype in ("VORBIS", "OPUS"):
        path = tmp_path / f"{subtype}.ogg"
        soundfile.write(path, sounds(48_000 * 3, 48_000, 1), 48_000, format="OGG", subtype=subtype)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
        assert audio_info(path).num_samples == 48_000 * 3
        with pytest.raises(AudioReadError, match="samples, but only"):
            read_audio(path)


@pytest.mark.parametrize(("start", "num_samples"), [(11, None), (-1, None), (0, -1)])
def test_a_stretch_outside_the_file(tmp_path, start, num_samples):
    """Buries: an index that belongs to another version of the file, answered with silence."""
    (tmp_path / "a.wav").write_bytes(wav_bytes(bytes(20)))
    with pytest.raises(AudioReadError, match="holds 10 samples"):
        read_audio(tmp_path / "a.wav", start=start, num_samples=num_samples)


# ---- resampling and mixing


@pytest.mark.parametrize(("from_rate", "to_rate"), [(44_100, 16_000), (16_000, 44_100), (8_000, 24_000),
                                                    (48_000, 44_100), (22_050, 8_000)])
def test_resampling_keeps_a_tone(from_rate, to_rate):
    """Buries: a delay of the filter, a changed level, a length that is off."""
    def tone(sample_rate):
        return torch.sin(2 * torch.pi * 1_000 * torch.arange(sample_rate, dtype=torch.float64) / sample_rate)[None]

    wav = resample(tone(from_rate), from_rate, to_rate)
    assert wav.shape == (1, to_rate) and wav.dtype == torch.float64
    edge = to_rate // 20
    torch.testing.assert_close(wav[:, edge:-edge], tone(to_rate)[:, edge:-edge], rtol=0, atol=1e-5)
    torch.testing.assert_close(resample(tone(from_rate).float(), from_rate, to_rate), wav.float(), rtol=0, atol=1e-5)


def test_resampling_does_not_alias():
    """Buries: dropping samples without a low-pass filter: 7 kHz would come back as 1 kHz."""
    tone = torch.sin(2 * torch.pi * 7_000 * torch.arange(48_000, dtype=torch.float64) / 48_000)[None]
    assert resample(tone, 48_000, 8_000)[:, 500:-500].abs().max() < 1e-5


def test_resampling_agrees_with_torchaudio():
    """Buries: a rewrite of the wrong direction or rate; noise below 3 kHz is the same by both."""
    noise = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
    band = torch.fft.irfft(torch.fft.rfft(noise) * (torch.arange(8_001) < 3_000))
    ours, theirs = resample(band, 16_000, 8_000), torchaudio.functional.resample(band, 16_000, 8_000, 64)
    torch.testing.assert_close(ours[:, 200:-200], theirs[:, 200:-200], rtol=0, atol=5e-3)


@pytest.mark.parametrize("shape", [(0,), (1,), (2, 1, 999), (3, 0), (0, 4), (2, 2, 2, 500)])
def test_resampling_shapes(shape):
    """Buries: rows of a batch that mix, and empty inputs that raise."""
    wav = torch.randn(shape)
    out = resample(wav, 44_100, 16_000)
    assert out.shape == (*shape[:-1], (2 * shape[-1] * 16_000 + 44_100) // 88_200) and out.dtype == wav.dtype
    for index in np.ndindex(shape[:-1]):
        assert torch.equal(resample(wav[index], 44_100, 16_000), out[index])
    assert resample(wav, 16_000, 16_000) is wav


@pytest.mark.parametrize("rate", [0, -1, 16_000.5, None, 999, 768_001])
def test_impossible_rates(tmp_path, rate):
    """Buries: a resampler asked for a rate of 0, and a file written that would not be read."""
    with pytest.raises(ConfigError, match="sample_rate="):
        resample(torch.zeros(1, 10), 16_000, rate)
    with pytest.raises(ConfigError):
        write_audio(tmp_path / "a.wav", torch.zeros(10), rate)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize(("from_rate", "to_rate"), [(44_100, 16_000), (16_000, 24_000), (8_000, 7_999)])
def test_resampling_on_a_gpu_agrees(from_rate, to_rate):
    """Buries: another length or another filter on a GPU than on the CPU."""
    noise = torch.randn(2, 1, 40_000, generator=torch.Generator().manual_seed(0))
    limit = 0.8 * min(1.0, to_rate / from_rate) * 20_001
    band = torch.fft.irfft(torch.fft.rfft(noise) * (torch.arange(20_001) < limit))
    ours, theirs = resample(band, from_rate, to_rate), resample(band.cuda(), from_rate, to_rate)
    assert theirs.is_cuda and theirs.shape == ours.shape
    torch.testing.assert_close(theirs.cpu()[..., 500:-500], ours[..., 500:-500], rtol=0, atol=2e-3)


def test_mono():
    """Buries: a sum in the place of a mean."""
    wav = torch.tensor([[[1.0, 0.0], [0.0, 0.5]]])
    assert mono(wav).tolist() == [[[0.5, 0.25]]]


# ---- writing


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_sixteen_bits_come_back_bit_for_bit(tmp_path, suffix):
    """Buries: libsndfile's factor of 32767, by which one sample in two changes on its way through a program."""
    stored = np.random.default_rng(0).permutation(np.arange(-32_768, 32_768)).astype(np.int16)
    soundfile.write(tmp_path / f"a.{suffix}", stored, 16_000)
    write_audio(tmp_path / f"b.{suffix}", read_audio(tmp_path / f"a.{suffix}"), 16_000)
    again, rate = soundfile.read(tmp_path / f"b.{suffix}", dtype="int16")
    assert rate == 16_000 and np.array_equal(again, stored)
    assert audio_info(tmp_path / f"b.{suffix}").subtype == "PCM_16"


@pytest.mark.parametrize(("name", "subtype", "bits"), [("a.wav", "PCM_U8", 8), ("a.flac", "PCM_S8", 8),
                                                       ("a.wav", "PCM_24", 24), ("a.flac", "PCM_24", 24)])
def test_other_widths_come_back_too(tmp_path, name, subtype, bits):
    """Buries: rounding by shifting, which is half a step too low."""
    values = np.unique(np.linspace(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 5_000).round())
    wav = torch.from_numpy(values / 2 ** (bits - 1)).float()
    write_audio(tmp_path / name, wav + 0.3 / 2 ** (bits - 1) if bits == 8 else wav, 16_000, subtype)
    assert torch.equal(read_audio(tmp_path / name)[0], wav)


@pytest.mark.parametrize("subtype", ["FLOAT", "PCM_32"])
def test_floats_and_32_bits(tmp_path, subtype):
    """Buries: full scale that wraps to -1."""
    wav = torch.tensor([[1.0, -1.0, 0.1, 1e-7]])
    write_audio(tmp_path / "a.wav", wav, 16_000, subtype)
    torch.testing.assert_close(read_audio(tmp_path / "a.wav"), wav, rtol=0, atol=1e-9)


@pytest.mark.parametrize("suffix", sorted(AUDIO_SUFFIXES))
@pytest.mark.parametrize("num_samples", [1, 100, 48_000])
def test_writes_what_it_reads(tmp_path, suffix, num_samples):
    """Buries: a format that loses or adds samples, at any length; a Vorbis encoder's stack that overflows."""
    path = tmp_path / f"a{suffix}"
    wav = torch.from_numpy(sounds(num_samples, 48_000, 2).T)
    write_audio(path, wav, 48_000)
    back = read_audio(path)
    assert back.shape == (1, num_samples) and audio_info(path).num_channels == 2
    if num_samples > 10_000:
        assert (back - mono(wav)).square().mean().sqrt() < 0.2


def test_long_vorbis(tmp_path):
    """Buries: the crash of libsndfile's Vorbis encoder on a long row of samples."""
    write_audio(tmp_path / "a.ogg", torch.zeros(1, 3_000_000), 8_000)
    assert audio_info(tmp_path / "a.ogg").num_samples == 3_000_000


def test_clips_with_a_warning(tmp_path):
    """Buries: samples that wrap around, and clipping that nobody hears of; full scale itself is no reason to warn."""
    with pytest.warns(UserWarning, match=r"a.wav: 2 of 4 samples clipped \(peak 2\)"):
        write_audio(tmp_path / "a.wav", torch.tensor([0.5, 1.5, -2.0, 0.0]), 16_000)
    assert (read_audio(tmp_path / "a.wav")[0] * 32768).tolist() == [16_384, 32_767, -32_768, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_audio(tmp_path / "b.wav", torch.tensor([1.0, -1.0]), 16_000)


@pytest.mark.parametrize(("name", "wav", "settings", "message"), [
    ("a.wav", torch.tensor([0.0, float("nan")]), {}, "NaN or infinite"),
    ("a.wav", torch.tensor([0.0, float("inf")]), {}, "NaN or infinite"),
    ("a.wav", torch.zeros(1, 0), {}, "no samples"),
    ("a.wav", torch.zeros(9, 10), {}, "shape"),
    ("a.wav", torch.zeros(1, 1, 10), {}, "shape"),
    ("a.aiff", torch.zeros(10), {}, "is no format to write; use .wav"),
    ("a", torch.zeros(10), {}, "no suffix"),
    ("a.flac", torch.zeros(10), {"subtype": "FLOAT"}, "FLAC can't hold"),
    ("a.wav", torch.zeros(10), {"subtype": "PCM_12"}, "WAV can't hold"),
    ("a.opus", torch.zeros(10), {"sample_rate": 44_100}, "OGG can't hold"),
    ("a.mp3", torch.zeros(3, 10), {}, "MP3 can't hold"),
])
def test_what_can_not_be_written(tmp_path, name, wav, settings, message):
    """Buries: a half-written or silent file in the place of a good one."""
    (tmp_path / name).write_bytes(b"before")
    with pytest.raises(AudiogenError, match=message) as caught:
        write_audio(tmp_path / name, wav, **{"sample_rate": 16_000, **settings})
    assert str(tmp_path / name) in str(caught.value)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"before"]


def test_writing_is_atomic(tmp_path, monkeypatch):
    """Buries: a good file lost because the disk was full while the next was written."""
    write_audio(tmp_path / "a.wav", torch.zeros(10), 16_000)
    before = (tmp_path / "a.wav").read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(AudiogenError, match="disk is full"):
        write_audio(tmp_path / "a.wav", torch.ones(1_000), 16_000)
    assert [file.name for file in tmp_path.iterdir()] == ["a.wav"] and (tmp_path / "a.wav").read_bytes() == before
