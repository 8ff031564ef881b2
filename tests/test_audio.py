"""Reading sound files: what is read is what was stored, in every format, at every offset, in blocks or as a whole."""

import os
import struct
import tracemalloc
import wave

import numpy as np
import pytest
import soundfile
import torch
from sound_files import flac, ogg_page, sounds, wav_bytes

from audiogen.audio.io import audio_info, read_audio, read_blocks, resample, write_audio
from audiogen.errors import AudioReadError

# name, container, subtype, sample_rate, num_channels
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
    ("22.mp3", "MP3", "MPEG_LAYER_III", 22_050, 1),
]
SETTINGS = {"22.mp3": {"compression_level": 0.9, "bitrate_mode": "VARIABLE"}}  # whose frames lean on many earlier ones
LOSSY = {"VORBIS", "OPUS", "MPEG_LAYER_III"}


@pytest.fixture(scope="module", params=CODINGS, ids=lambda coding: coding[0])
def stored(request, tmp_path_factory):
    """A file of three seconds, and what soundfile was given to store: path, (N, C), subtype, sample rate."""
    name, container, subtype, sample_rate, num_channels = request.param
    path = tmp_path_factory.mktemp("stored") / name
    given = sounds(3 * sample_rate + 7, sample_rate, num_channels)
    soundfile.write(path, given, sample_rate, format=container, subtype=subtype, **SETTINGS.get(name, {}))
    return path, given, subtype, sample_rate


def test_reads_every_format(stored):
    """Guards against a wrong scale, a lost channel, samples lost or added by a codec's delay."""
    path, given, subtype, sample_rate = stored
    wav = read_audio(path)
    assert wav.shape == (1, len(given)) and wav.dtype == torch.float32 and wav.is_contiguous()
    expected = torch.from_numpy(given.mean(axis=1))
    error = (wav[0] - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    lossy = 0.7 if path.name == "six.oga" else 0.45  # they give up the noise, and all but the bass of a sixth channel
    assert error < {"PCM_U8": 1e-2, "PCM_S8": 1e-2, "ULAW": 5e-2, "ALAW": 5e-2}.get(
        subtype, lossy if subtype in LOSSY else 1e-4
    )
    info = audio_info(path)
    assert (info.path, info.sample_rate, info.num_channels) == (path, sample_rate, given.shape[1])
    assert (info.num_samples, info.duration, info.notes) == (len(given), len(given) / sample_rate, ())
    assert info.subtype == {"MPEG_LAYER_III": "mp3"}.get(subtype, subtype)
    assert info.format in ("WAV", "FLAC", "OGG", "MP3")


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
@pytest.mark.parametrize("num_channels", [1, 2, 8])
def test_equals_the_wave_module(tmp_path, bits, num_channels):
    """Guards against x / 32767, which no longer gives back the stored integers."""
    raw = np.random.default_rng(0).integers(0, 256, 3 * 5 * 7 * 8 * bits // 8, dtype=np.uint8).tobytes()
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((num_channels, bits // 8, 16_000, 0, "NONE", ""))
        file.writeframes(raw)
    width = bits // 8
    values = [int.from_bytes(raw[i : i + width], "little", signed=bits > 8) for i in range(0, len(raw), width)]
    values = (np.array(values, dtype=np.float64) - (128 if bits == 8 else 0)) / 2 ** (bits - 1)
    expected = values.astype(np.float32).reshape(-1, num_channels).astype(np.float64).mean(axis=1)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav")[0].numpy(), expected, atol=1e-7)


def test_a_stretch_is_the_same_stretch_of_the_whole(stored):
    """Guards against libsndfile's Vorbis seek that misses (issue 885), and MP3 frames decoded without their
    forerunners."""
    path, given, subtype, _ = stored
    whole = read_audio(path)
    last = len(given) - 500
    for start in [0, 1, *np.random.default_rng(1).integers(0, last, 12).tolist(), last - 5_000, last]:
        stretch = read_audio(path, start=start, num_samples=500)
        torch.testing.assert_close(stretch, whole[:, start : start + 500], rtol=0, atol=1e-6 if subtype in LOSSY else 0)
    assert read_audio(path, start=len(given) - 3, num_samples=500).shape == (1, 3)
    assert read_audio(path, start=5, num_samples=0).shape == read_audio(path, start=len(given)).shape == (1, 0)


@pytest.mark.parametrize("sample_rate", [None, 16_000, 44_101])
def test_blocks_equal_the_whole(stored, sample_rate):
    """Guards against a resampler that starts afresh, a decoder that is disturbed, at the seams between blocks."""
    path = stored[0]
    whole = read_audio(path, sample_rate)
    for block_seconds in (0.013, 0.7, 100.0):
        blocks = list(read_blocks(path, sample_rate, block_seconds))
        assert all(block.shape[0] == 1 and block.shape[1] > 0 for block in blocks)
        assert torch.equal(torch.cat(blocks, dim=1), whole)


@pytest.mark.parametrize("num_channels", range(1, 9))
def test_blocks_of_one_sample_mix_alike(tmp_path, num_channels):
    """Guards against a mean whose order of additions depends on how many samples are averaged at once."""
    soundfile.write(tmp_path / "a.wav", sounds(200, 8_000, num_channels), 8_000, subtype="FLOAT")
    blocks = torch.cat(list(read_blocks(tmp_path / "a.wav", block_seconds=1e-9)), dim=1)
    assert torch.equal(blocks, read_audio(tmp_path / "a.wav"))


def test_reading_at_a_rate_is_reading_and_resampling(stored):
    """Guards against two resamplers that differ. (Lossy files overshoot, which is clipped only after resampling.)"""
    path, given, subtype, sample_rate = stored
    wav = read_audio(path, 24_000)
    assert wav.shape == (1, (2 * len(given) * 24_000 + sample_rate) // (2 * sample_rate))
    if subtype not in LOSSY:
        assert torch.equal(wav, resample(read_audio(path), sample_rate, 24_000).clamp(-1, 1))


def test_a_long_file_is_not_loaded(tmp_path):
    """Guards against 2 GiB read to have 100 samples; blocks that pile up; a slow look at the header."""
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


def test_a_flac_from_a_pipe(tmp_path):
    """Guards against a length of 2^63 - 1, or of 0, where STREAMINFO states none."""
    whole = read_audio(flac(tmp_path / "known.flac"))
    piped = flac(tmp_path / "piped.flac", total=0)
    assert audio_info(piped).num_samples == 5_000
    assert torch.equal(read_audio(piped), whole)
    assert torch.equal(read_audio(piped, start=4_321, num_samples=50), whole[:, 4_321:4_371])


@pytest.mark.parametrize("tag", ["none", "Info", "Info without a count", "VBRI"])
def test_what_tags_say_of_an_mp3(tmp_path, tag):
    """Guards against a tag's frame that is played, and a file as long as libsndfile's guess."""
    path = tmp_path / "a.mp3"
    soundfile.write(path, sounds(20_000, 16_000, 1), 16_000, bitrate_mode="CONSTANT", compression_level=0.5)
    data = path.read_bytes()
    size = 72 * 80_000 // 16_000  # of a frame: 576 samples at 80 kbit/s
    num_frames = len(data) // size - 1
    assert len(data) % size == 0 and data[13:17] == b"Info" and data[21:25] == num_frames.to_bytes(4, "big")
    vbri = struct.pack(">4sHHHII", b"VBRI", 1, 0, 0, len(data), num_frames)
    first, length = {
        "none": (b"", num_frames * 576),
        "Info": (data[:size], 20_000),
        # LAME's part states the samples to leave off at the beginning, and those at the end only beside a count
        "Info without a count": (data[:21] + bytes(4) + data[25:size], num_frames * 576 - 1105),
        "VBRI": ((data[:4] + bytes(32) + vbri).ljust(size, b"\0"), num_frames * 576),
    }[tag]
    path.write_bytes(b"ID3\4\0\0\0\0\0\4abcd" + first + data[size:] + b"TAG" + bytes(125))
    assert read_audio(path).shape[1] == audio_info(path).num_samples == length


def test_a_vbri_tag_has_to_be_right(tmp_path):
    """Guards against an MP3 cut between two frames."""
    soundfile.write(
        tmp_path / "a.mp3", sounds(20_000, 16_000, 1), 16_000, bitrate_mode="CONSTANT", compression_level=0.5
    )
    data = (tmp_path / "a.mp3").read_bytes()
    vbri = struct.pack(">4sHHHII", b"VBRI", 1, 0, 0, len(data) + 720, len(data) // 360 + 2)
    (tmp_path / "a.mp3").write_bytes((data[:4] + bytes(32) + vbri).ljust(360, b"\0") + data[360:])
    with pytest.raises(AudioReadError, match="is truncated: its header states more"):
        audio_info(tmp_path / "a.mp3")


def test_an_mp3_of_varying_bitrate_without_a_tag(tmp_path):
    """Guards against the half of such a file that lies beyond libsndfile's guess, lost in silence."""
    loud_last = np.concatenate([0.8 * sounds(44_100, 44_100, 2), np.zeros((132_300, 2))])
    soundfile.write(tmp_path / "a.mp3", loud_last, 44_100)
    data = (tmp_path / "a.mp3").read_bytes()
    assert b"Xing" in data[:60]
    (tmp_path / "bare.mp3").write_bytes(data[data.index(data[:2], 2) :])
    assert 4 * 44_100 <= audio_info(tmp_path / "bare.mp3").num_samples < 4.1 * 44_100


@pytest.mark.parametrize("after", [b"", b"\0", b"\0LIST\4\0\0\0INFO"])
def test_odd_data_and_chunks_around_it(tmp_path, after):
    """Guards against a missing padding byte taken for a missing sample, and chunks misread after an odd one."""
    data = wav_bytes(b"\x80\x00\xff", bits=8, before=b"odd \3\0\0\0abc\0", after=after)
    (tmp_path / "a.wav").write_bytes(data)
    assert read_audio(tmp_path / "a.wav")[0].tolist() == [0, -1, 127 / 128]


def test_a_wav_from_a_pipe_goes_to_the_end(tmp_path):
    """Guards against refusing what ffmpeg writes to a pipe, also if RIFF's own size was put right since."""
    data = struct.pack("<3h", 1, 2, 3)
    (tmp_path / "a.wav").write_bytes(wav_bytes(data, data_size=0xFFFFFFFF, riff_size=0xFFFFFFFF))
    assert (read_audio(tmp_path / "a.wav")[0] * 32768).tolist() == [1, 2, 3]
    assert audio_info(tmp_path / "a.wav").notes == ()
    (tmp_path / "b.wav").write_bytes(wav_bytes(data, data_size=0xFFFFFFFF))
    assert (read_audio(tmp_path / "b.wav")[0] * 32768).tolist() == [1, 2, 3]
    assert "states no length" in audio_info(tmp_path / "b.wav").notes[0]


def test_big_endian_and_tagged_files(tmp_path):
    """Guards against RIFX read in the wrong order, and a tag before the header that hides it."""
    soundfile.write(tmp_path / "a.wav", sounds(100, 8_000, 2), 8_000, endian="BIG")
    assert (tmp_path / "a.wav").read_bytes()[:4] == b"RIFX"
    assert audio_info(tmp_path / "a.wav").num_samples == 100
    tag = 2 * (b"ID3\4\0\0\0\0\1\0" + bytes(128))
    for suffix in ("wav", "flac", "mp3"):
        path = tmp_path / f"b.{suffix}"
        soundfile.write(path, sounds(9_000, 16_000, 1), 16_000)
        plain = read_audio(path)
        path.write_bytes(tag + path.read_bytes())
        assert torch.equal(read_audio(path), plain)


@pytest.mark.parametrize(("stated", "sample_rate"), [(0, 48_000), (11_025, 12_000), (22_050, 24_000), (44_100, 48_000)])
def test_opus_rates(tmp_path, stated, sample_rate):
    """Guards against the rate before encoding taken for that of decoding, and so a wrong length; 0 says any, not 8
    kHz."""
    write_audio(tmp_path / "a.opus", torch.zeros(24_000), 48_000)
    data = (tmp_path / "a.opus").read_bytes()
    (tmp_path / "a.opus").write_bytes(ogg_page(data, 0, data.index(b"OpusHead") + 12, "<I", stated))
    info = audio_info(tmp_path / "a.opus")
    assert (info.sample_rate, info.num_samples) == (sample_rate, sample_rate // 2)
    assert read_audio(tmp_path / "a.opus").shape == (1, sample_rate // 2)


def test_mild_overshoot_is_clipped(tmp_path):
    """Guards against samples outside [-1, 1] that a front-end would fold over."""
    soundfile.write(tmp_path / "a.wav", np.array([0.5, 1.5, -3.9, 1.0]), 16_000, subtype="FLOAT")
    assert read_audio(tmp_path / "a.wav")[0].tolist() == [0.5, 1.0, -1.0, 1.0]
    soundfile.write(tmp_path / "b.wav", np.tile([1.0, 1.0, -1.0, -1.0], 500), 16_000, subtype="FLOAT")
    assert read_audio(tmp_path / "b.wav", 44_100).abs().max() == 1  # resampling overshoots at the edges


@pytest.mark.parametrize(
    "name",
    ["gehört 音.wav", "new\nline.wav", "-x.wav", "100%.wav", b"\xff\xfe.wav", "no suffix", "UPPER.WAV", "wrong.mp3"],
)
def test_odd_file_names(tmp_path, name):
    """Guards against names that are no valid Unicode, and messages of two lines. The suffix is not believed."""
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
