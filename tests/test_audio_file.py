"""A sound file that stays open: any part of it can be read, in any order, also after an error."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from sound_files import ogg_page, sounds

from audiogen.audio.io import AudioFile, audio_info, read_audio, write_audio
from audiogen.errors import AudioReadError


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.opus", "a.mp3", "a.aiff", "a.caf"])
def test_a_file_held_open_is_read_in_any_order(tmp_path, name):
    """Guards against a decoder that only reads forwards, so that a second read returns other samples."""
    path = tmp_path / name
    soundfile.write(
        path,
        sounds(100_000, 16_000, 2),
        16_000,
        format="OGG" if name == "a.opus" else None,
        subtype="OPUS" if name == "a.opus" else None,
    )
    with AudioFile(path) as file:
        assert file.info == audio_info(path)
        tolerance = {"rtol": 0, "atol": 0 if name[2:] in ("wav", "flac", "aiff", "caf") else 1e-6}
        for start in (70_000, 10, 99_900, 40_000, 0, 40_100, 39_000):
            torch.testing.assert_close(file.read(start, 100), read_audio(path, None, start, 100), **tolerance)
        torch.testing.assert_close(file.read(500, 8_000, 8_000), read_audio(path, 8_000, 500, 8_000), **tolerance)
        with pytest.raises(AudioReadError, match="none can be read"):
            file.read(100_001)


@pytest.mark.parametrize(
    ("bad", "message"), [(np.nan, "NaN"), (np.inf, "NaN or infinite"), (1e300, "infinite"), (-5.0, "absurd")]
)
def test_bad_samples_are_refused_where_they_are_read(tmp_path, bad, message):
    """Guards against a double that is too large for float32 and is returned, or only causes a warning."""
    x = np.zeros(1000)
    x[700] = bad
    soundfile.write(tmp_path / "a.wav", x, 8_000, "DOUBLE")
    with AudioFile(tmp_path / "a.wav") as file:
        assert file.read(0, 700).abs().max() == 0
        with pytest.raises(AudioReadError, match=message):
            file.read(600, 200)
        assert file.read(701).shape == (1, 299)


def test_a_file_that_shrinks_while_it_is_open(tmp_path):
    """Guards against silence, or an endless loop, instead of an error for the missing samples."""
    soundfile.write(tmp_path / "a.wav", sounds(1000, 8_000, 1), 8_000)
    with AudioFile(tmp_path / "a.wav") as file:
        with open(tmp_path / "a.wav", "r+b") as cut:
            cut.truncate(44 + 2 * 600 + 1)
        with pytest.raises(AudioReadError, match="1000 samples, but only 600 can be decoded"):
            file.read()


def test_a_page_with_a_wrong_number(tmp_path):
    """Guards against silence, or no samples, after a seek to a page with a wrong number, although the whole file can be
    read."""
    path = tmp_path / "a.opus"
    write_audio(path, torch.from_numpy(sounds(48_000, 48_000, 1).T), 48_000)
    data = path.read_bytes()
    third = [at for at in range(len(data)) if data[at : at + 5] == b"OggS\0"][2]
    path.write_bytes(ogg_page(data, third, 18, "<I", 9))
    whole = read_audio(path)
    with AudioFile(path) as file:
        for start, count in ((len(whole[0]) - 200, 100), (4_800, 37), (0, 10)):
            torch.testing.assert_close(file.read(start, count), whole[:, start : start + count], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.mp3", "a.wav"])
def test_after_an_error_the_rest_is_read_right(tmp_path, name):
    """Guards against a decoder that continues at a wrong position after an error."""
    path = tmp_path / name
    x = sounds(150_000, 16_000, 1)
    soundfile.write(path, x, 16_000)
    with AudioFile(path) as file:
        first = file.read(1_000, 500)
        file._decoder._file.next = lambda count: (_ for _ in ()).throw(OSError(5, "Input/output error"))
        with pytest.raises(AudioReadError, match="Input/output error"):
            file.read(40_000, 500)
        assert torch.equal(file.read(1_000, 500), first)


def test_signalling_nan_is_refused_without_a_warning(tmp_path):
    """Guards against a warning of numpy in addition to the error."""
    soundfile.write(tmp_path / "a.wav", np.zeros(1000), 8_000, "DOUBLE")
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[-16:-8] = bytes.fromhex("010000000000f07f")
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(AudioReadError, match="NaN or infinite"):
        read_audio(tmp_path / "a.wav")


def test_looking_at_files_needs_neither_torch_nor_ffmpeg(tmp_path):
    """Guards against a report on a folder that loads torch, and loading PyAV for a folder of WAVs."""
    soundfile.write(tmp_path / "a.wav", sounds(1000, 8_000, 1), 8_000)
    script = (
        "import sys; from audiogen.audio.decoder import Decoder, audio_info; "
        "assert audio_info(sys.argv[1]).num_samples == sum(map(len, Decoder(sys.argv[1]).blocks())); "
        "print(sorted({'torch', 'torchaudio', 'av', 'librosa'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a.wav")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"
