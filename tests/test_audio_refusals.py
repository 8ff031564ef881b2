"""Malformed sound files: each causes one error, in one line, that says what is wrong and what to do."""

import os
import struct

import pytest
import soundfile
from sound_files import flac, sounds, wav_bytes

from audiogen.audio.io import audio_info, read_audio, read_blocks
from audiogen.errors import AudioReadError


def stored_as(suffix: str, **settings):
    def make(path):
        soundfile.write(path.with_suffix(suffix), sounds(9_000, 16_000, 1), 16_000, **settings)
        return path.with_suffix(suffix)

    return make


def stored_and_cut(suffix: str, count: int):
    def make(path):
        path = stored_as(suffix)(path)
        return content(path.read_bytes()[:-count])(path)

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


def two_kinds_of_ogg(path):
    data = [stored_as(".ogg", subtype=subtype)(path).read_bytes() for subtype in ("VORBIS", "OPUS")]
    return content(b"".join(data))(path)


def sixteen_channels(path):
    """Make a WavPack file whose decoder returns planar samples; PyAV would crash on the ninth channel."""
    import av

    with av.open(str(path), "w", format="wv") as file:
        stream = file.add_stream("wavpack", rate=16_000, layout="hexadecagonal")
        stream.codec_context.open()
        settings = stream.codec_context
        frame = av.AudioFrame(format=settings.format.name, layout="hexadecagonal", samples=settings.frame_size)
        frame.sample_rate, frame.pts = 16_000, 0
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def au_that_begins_in_its_header(path):
    """Make an AU file from which libsndfile reads other samples after a seek than without one."""
    data = stored_as(".au", subtype="ULAW")(path).read_bytes()
    return content(data[:4] + struct.pack(">I", 8) + data[8:])(path)


PCM = struct.pack("<4h", 1, 2, 3, 4)
REFUSALS = {
    "16 channels by FFmpeg": (sixteen_channels, "states 16 channels, and 1 to 8 are read"),
    "missing": (lambda path: path, "can't be opened .No such file"),
    "nul in its name": (lambda path: f"{path}\0", "can't be opened"),
    "folder": (a_folder, "is a folder or a device"),
    "pipe": (a_pipe, "is a folder or a device"),
    "empty": (content(b""), r"is empty \(0 bytes\)"),
    "text": (content(b"dear diary, " * 50), "is not a sound file of a supported kind"),
    "header only": (content(wav_bytes(b"")), "has a header but no samples"),
    "less than a sample": (content(wav_bytes(b"a")), "no samples|can't be decoded"),
    "no data chunk": (content(wav_bytes(b"")[:36]), "no data chunk"),
    "FLAC without a frame": (
        lambda path: content(flac(path.with_suffix(".flac"), total=0).read_bytes()[:42])(path),
        "no samples|can't be decoded",
    ),
    "no format chunk": (content(b"RIFF\x10\0\0\0WAVEdata\4\0\0\0abcd"), "can't be decoded"),
    "short format chunk": (content(b"RIFF\x1e\0\0\0WAVEfmt \2\0\0\0\1\0data\4\0\0\0abcd"), "can't be decoded"),
    "cut in its header": (content(wav_bytes(PCM)[:30]), "no data chunk"),
    "zeros": (content(b"RIFF\0\0\0\0WAVE" + bytes(100_000)), "no data chunk"),
    "truncated": (
        content(wav_bytes(PCM, data_size=10)),
        "truncated: its header states 10 bytes of data, the file holds 8",
    ),
    "truncated by a byte": (content(wav_bytes(PCM[:-1], data_size=8)), "states 8 bytes of data, the file holds 7"),
    "claims 3 GB": (content(wav_bytes(PCM, data_size=0xBFFFFFF0)), "truncated"),
    "AU that begins in its header": (au_that_begins_in_its_header, "damaged: its header states that the sound begins"),
    "truncated RF64": (stored_and_cut(".rf64", 300), "truncated"),
    "truncated FLAC": (stored_and_cut(".flac", 100), "can't be decoded|damaged or truncated"),
    "truncated Vorbis": (stored_and_cut(".ogg", 1), "does not end with a whole Ogg page"),
    "truncated MP3": (stored_and_cut(".mp3", 700), "is truncated: its header states"),
    "FLAC states one more": (lambda path: flac(path.with_suffix(".flac"), total=5_001), "5001 samples, but only 5000"),
    "FLAC states more than it can": (lambda path: flac(path.with_suffix(".flac"), total=1 << 35), "bytes can hold"),
    "two kinds of Ogg": (two_kinds_of_ogg, "several codings or sample rates"),
    "other Ogg": (content(b"OggS\0\2" + bytes(20) + b"\1\7fishead"), "Ogg file without sound"),
    "no channels": (content(wav_bytes(PCM, num_channels=0)), "no samples"),
    "9 channels": (content(wav_bytes(bytes(36), num_channels=9)), "states 9 channels, and 1 to 8 are read"),
    "rate 0": (content(wav_bytes(PCM, sample_rate=0)), "can't be decoded|states a sample rate of 0 Hz"),
    "rate over 768 kHz": (content(wav_bytes(PCM, sample_rate=768_001)), "states a sample rate of 768001 Hz"),
    "a kind that nobody knows": (content(wav_bytes(bytes(12), bits=48)), "can't be decoded"),
    "NaN": (floats(0.1, float("nan"), 0.2), "NaN or infinite"),
    "infinite": (floats(0.1, -float("inf")), "NaN or infinite"),
    "absurd": (floats(0.5, -32_768.0, 0.25), r"absurd samples \(up to 3.28e\+04"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_refusals(tmp_path, kind):
    """Guards against anything but one line that names the file and says what is wrong and what to do."""
    make, message = REFUSALS[kind]
    path = make(tmp_path / "sound.wav")
    with pytest.raises(AudioReadError, match=message) as caught:
        read_audio(path)
    assert "sound" in str(caught.value) and "; " in str(caught.value) and str(caught.value).isprintable()
    with pytest.raises(AudioReadError):
        list(read_blocks(path, 8_000))


@pytest.mark.parametrize(
    "kind",
    [
        "empty",
        "text",
        "header only",
        "9 channels",
        "rate 0",
        "truncated",
        "truncated by a byte",
        "truncated RF64",
        "truncated Vorbis",
        "truncated MP3",
        "FLAC without a frame",
    ],
)
def test_info_refuses_what_headers_reveal(tmp_path, kind):
    """Guards against a folder of truncated files that are only detected during training."""
    with pytest.raises(AudioReadError):
        audio_info(REFUSALS[kind][0](tmp_path / "sound.wav"))


def test_a_hole_in_an_ogg_is_seen(tmp_path):
    """Guards against a lost page that the decoder skips, so that everything after it comes too early."""
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
    """Guards against returning silence for a position from an outdated index."""
    (tmp_path / "a.wav").write_bytes(wav_bytes(bytes(20)))
    with pytest.raises(AudioReadError, match="holds 10 samples"):
        read_audio(tmp_path / "a.wav", start=start, num_samples=num_samples)
