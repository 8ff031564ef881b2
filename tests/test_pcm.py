"""WAVs that are read without libsndfile: equal to what libsndfile gives, to the bit, and as strict."""

import numpy as np
import pytest
import soundfile
import torch
from sound_files import sounds, wav_bytes

from audiogen.audio.containers import read_header
from audiogen.audio.io import AudioFile, audio_info, read_audio, write_audio
from audiogen.audio.pcm import PCMFile, is_pcm
from audiogen.errors import AudioReadError

PLAIN = [
    (container, subtype, num_channels)
    for container in ("WAV", "WAVEX", "RF64")
    for num_channels in (1, 2, 5)
    for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")
]


def values(subtype: str, num_channels: int) -> np.ndarray:
    """(N, C) as soundfile takes it: integers over their whole range, or floats of all magnitudes up to 3."""
    rng = np.random.default_rng(0)
    if subtype.startswith("PCM"):
        x = rng.integers(-(2**31), 2**31, (1009, num_channels)).astype(np.int32)
        x[:4, 0] = -(2**31), 2**31 - 1, 0, -1
        return x
    return rng.uniform(-3, 3, (1009, num_channels)) * 10.0 ** rng.integers(-40, 1, (1009, num_channels))


@pytest.mark.parametrize(("container", "subtype", "num_channels"), PLAIN)
def test_equals_soundfile_to_the_bit(tmp_path, container, subtype, num_channels):
    """Buries: 8 bits taken for signed, 24 bits with a neighbour's byte in them, a rounding of its own."""
    path = tmp_path / "a.wav"
    soundfile.write(path, values(subtype, num_channels), 16_000, subtype, format=container)
    expected = soundfile.read(path, dtype="float32", always_2d=True)[0]
    file = PCMFile(path, read_header(path))
    assert (file.subtype, file.frames, file.samplerate, file.channels) == (subtype, 1009, 16_000, num_channels)
    for start, count in ((0, 1009), (500, 7), (0, 1), (1008, 5), (3, 600)):
        assert file.seek(start) == start
        samples = file.next(count)
        assert samples.dtype == np.float32
        np.testing.assert_array_equal(samples, expected[start : start + count])
    assert file.seek(1004) == 1004 and len(file.next(10)) == 5 and len(file.next(10)) == 0
    file.close()
    assert audio_info(path).subtype == subtype


@pytest.mark.parametrize(
    "change",
    [{"bits": 12}, {"coding": 7, "bits": 8}, {"coding": 6, "bits": 8}, {"bits": 48}, {"coding": 3, "bits": 16}],
)
def test_what_is_not_plain_is_left_to_libsndfile(tmp_path, change):
    """Buries: mu-law read as integers; fields that contradict each other, guessed at in two places."""
    path = tmp_path / "a.wav"
    path.write_bytes(wav_bytes(bytes(48), **change))
    assert not is_pcm(read_header(path))
    soundfile.write(path, sounds(100, 8_000, 1), 8_000, endian="BIG")
    assert not is_pcm(read_header(path))


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.opus", "a.mp3"])
def test_a_file_held_open_is_read_in_any_order(tmp_path, name):
    """Buries: a decoder that only goes forwards, so that the second stretch is silently another."""
    path = tmp_path / name
    write_audio(path, torch.from_numpy(sounds(100_000, 16_000, 2).T), 16_000)
    with AudioFile(path) as file:
        assert file.info == audio_info(path)
        tolerance = {"rtol": 0, "atol": 0 if name[2:] in ("wav", "flac") else 1e-6}
        for start in (70_000, 10, 99_900, 40_000, 0, 40_100, 39_000):
            torch.testing.assert_close(file.read(start, 100), read_audio(path, None, start, 100), **tolerance)
        torch.testing.assert_close(file.read(500, 8_000, 8_000), read_audio(path, 8_000, 500, 8_000), **tolerance)
        with pytest.raises(AudioReadError, match="none can be read"):
            file.read(100_001)


@pytest.mark.parametrize(
    ("bad", "message"), [(np.nan, "NaN"), (np.inf, "NaN or infinite"), (1e300, "infinite"), (-5.0, "absurd")]
)
def test_bad_samples_are_refused_where_they_are_read(tmp_path, bad, message):
    """Buries: a double too large for a float32, let through or warned about."""
    x = np.zeros(1000)
    x[700] = bad
    soundfile.write(tmp_path / "a.wav", x, 8_000, "DOUBLE")
    with AudioFile(tmp_path / "a.wav") as file:
        assert file.read(0, 700).abs().max() == 0
        with pytest.raises(AudioReadError, match=message):
            file.read(600, 200)
        assert file.read(701).shape == (1, 299)


def test_a_file_that_shrinks_while_it_is_open(tmp_path):
    """Buries: silence, or an endless loop, in the place of what is gone."""
    soundfile.write(tmp_path / "a.wav", sounds(1000, 8_000, 1), 8_000)
    with AudioFile(tmp_path / "a.wav") as file:
        with open(tmp_path / "a.wav", "r+b") as cut:
            cut.truncate(44 + 2 * 600 + 1)
        with pytest.raises(AudioReadError, match="1000 samples, but only 600 can be decoded"):
            file.read()
