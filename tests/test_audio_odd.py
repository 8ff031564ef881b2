"""Odd but whole files, each of a kind that people reported to some project: read whole, and what is odd is noted."""

import io
import re
import struct

import numpy as np
import pytest
import soundfile
from sound_files import ogg_page, put, sounds, wav_bytes

from audiogen.audio.decoder import audio_info
from audiogen.audio.io import AudioFile, read_audio
from audiogen.data import scan
from audiogen.errors import AudioReadError

RATE = 16_000
PCM = (sounds(RATE, RATE, 1)[:, 0] * 32_767).astype("<i2").tobytes()  # one second
PCM_64 = (0.99 * 2.0**63 * sounds(RATE, RATE, 2)).astype("<i8").tobytes()  # of stereo, one second too


def encoded(container: str, subtype: str, seconds: float = 2.0, sample_rate: int = RATE, **settings) -> bytes:
    """A good file by libsndfile."""
    buffer = io.BytesIO()
    x = sounds(round(seconds * sample_rate), sample_rate, 1)
    soundfile.write(buffer, x, sample_rate, format=container, subtype=subtype, **settings)
    return buffer.getvalue()


def muxed(container: str, coding: str, seconds: float = 2.0, sample_rate: int = RATE, beside: str = "") -> bytes:
    """A good file by FFmpeg; `beside` names the coding of a picture stream to put in too."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(coding, rate=sample_rate, layout="mono", options={"strict": "experimental"})
        stream.bit_rate = 48_000
        picture = file.add_stream(beside, rate=1, width=32, height=32, pix_fmt="yuv420p") if beside else None
        samples = (sounds(round(seconds * sample_rate), sample_rate, 1).T * 32_767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate, frame.pts = sample_rate, 0
        stream.codec_context.open()
        layout, size = stream.codec_context.format.name, stream.codec_context.frame_size or 1024
        resampler = av.AudioResampler(format=layout, layout="mono", rate=sample_rate, frame_size=size)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            file.mux(stream.encode(part))
        if picture is not None:
            file.mux(picture.encode(av.VideoFrame(32, 32, "yuv420p")))
            file.mux(picture.encode(None))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def chained(subtype: str, *serials: int) -> bytes:
    data = encoded("OGG", subtype)
    return b"".join(with_serial(data, serial) for serial in serials)


def pages(data: bytes) -> list[int]:
    return [found.start() for found in re.finditer(rb"OggS\0", data)]


def on_each_page(data: bytes, offset: int, layout: str, change) -> bytes:
    for at in pages(data):
        data = ogg_page(data, at, offset, layout, change(*struct.unpack_from(layout, data, at + offset)))
    return data


def with_serial(data: bytes, serial: int) -> bytes:
    return on_each_page(data, 14, "<I", lambda _: serial)


def with_empty_last_page(data: bytes) -> bytes:
    """As messengers write Opus: the end of the stream is a page of its own, without packets."""
    last = pages(data)[-1]
    serial, number = struct.unpack_from("<II", data, last + 14)
    empty = struct.pack("<4sBBqIIIB", b"OggS", 0, 4, -1, serial, number + 1, 0, 0)
    return ogg_page(ogg_page(data, last, 5, "<B", 0) + empty, len(data), 5, "<B", 4)


def without_count(data: bytes) -> bytes:
    """An MP3 without its first frame, which holds the Xing tag: the second begins with the same first bytes."""
    return data[data.index(data[:2], 2) :]


def id3(footer: bool) -> bytes:
    size = bytes([0, 0, 2, 0])  # 256
    return b"ID3\4\0" + (b"\x10" if footer else b"\0") + size + bytes(256) + (b"3DI\4\0\x10" + size) * footer


def bw64(data: bytes) -> bytes:
    plain = wav_bytes(data, data_size=0xFFFFFFFF)
    ds64 = struct.pack("<4sIQQQI", b"ds64", 28, len(plain) + 28, len(data), len(data) // 2, 0)
    return b"BW64\xff\xff\xff\xffWAVE" + ds64 + plain[12:]


def aligned(align: int) -> bytes:
    return put(wav_bytes(PCM), 32, "<H", align)


def placeholders(size: int) -> bytes:
    return wav_bytes(PCM, data_size=size, riff_size=(size + 36) & 0xFFFFFFFF)


MP3 = encoded("MP3", "MPEG_LAYER_III", bitrate_mode="CONSTANT", compression_level=0.5)
BARE = without_count(MP3)
FRAME = BARE.index(BARE[:2], 2)  # its length in bytes
VORBIS, OPUS = encoded("OGG", "VORBIS"), encoded("OGG", "OPUS", sample_rate=48_000)
LONG_VORBIS = encoded("OGG", "VORBIS", seconds=4)

CASES = {  # the file, its seconds, and a word of the note; None: nothing about it is odd
    "two MP3s of which the first states its own part": (MP3 + MP3, 4.0, "states"),
    "an MP3 behind another's ID3v1 tag": (MP3 + b"TAG" + bytes(125) + MP3, 4.0, "states"),
    "chained Vorbis, same serial": (chained("VORBIS", 7, 7), 4.0, "2 Ogg streams"),
    "chained Vorbis, other serials": (chained("VORBIS", 7, 8, 9), 6.0, "3 Ogg streams"),
    "chained Opus": (chained("OPUS", 7, 8), 4.0, "2 Ogg streams"),
    "two FLACs": (2 * encoded("FLAC", "PCM_16"), 4.0, "FLAC streams"),
    "sox from a pipe": (placeholders(0x7FFFF000), 1.0, "states no length"),
    "another pipe": (placeholders(0x7FFFFFFF), 1.0, "states no length"),
    "ffmpeg from a pipe": (wav_bytes(PCM, 0xFFFFFFFF, riff_size=0xFFFFFFFF), 1.0, None),
    "a recorder that was stopped": (wav_bytes(PCM, 0, riff_size=0), 1.0, "never finished"),
    "a recorder that was stopped later": (wav_bytes(PCM, 0, riff_size=36), 1.0, "never finished"),
    "data size 1 too large": (wav_bytes(PCM, len(PCM) + 1), 1.0, "states 32001 bytes"),
    "data size 16 too large": (wav_bytes(PCM, len(PCM) + 16, riff_size=len(PCM) + 52), 1.0, "states 32016 bytes"),
    "data size 36 too large": (wav_bytes(PCM, len(PCM) + 36), 1.0, "states 32036 bytes"),
    "block align 0": (aligned(0), 1.0, None),
    "block align 1": (aligned(1), 1.0, None),
    "block align 4": (aligned(4), 1.0, None),
    "two data chunks": (wav_bytes(PCM, after=struct.pack("<4sI", b"data", len(PCM)) + PCM), 1.0, "first is read"),
    "12 bits in 16": (wav_bytes(PCM, bits=12), 1.0, None),
    "64 bits": (wav_bytes(PCM_64, bits=64, num_channels=2), 1.0, None),
    "BW64": (bw64(PCM), 1.0, None),
    "IMA ADPCM": (encoded("WAV", "IMA_ADPCM", sample_rate=8_000), 2.0, None),
    "MS ADPCM": (encoded("WAV", "MS_ADPCM"), 2.0, None),
    "GSM": (encoded("WAV", "GSM610", sample_rate=8_000), 2.0, None),
    "MP3 in a WAV": (muxed("wav", "libmp3lame"), 2.0, None),
    "zeros before MP3": (bytes(1000) + BARE, 2.0, "before its first frame"),
    "CRLF before MP3": (b"\r\n" + BARE, 2.0, "before its first frame"),
    "half a frame before MP3": (BARE[-FRAME // 2 :] + BARE, 2.0, "before its first frame"),
    "ID3 before MP3": (id3(False) + MP3, 2.0, None),
    "ID3 with a footer before MP3": (id3(True) + MP3, 2.0, None),
    "ID3 with a footer before FLAC": (id3(True) + encoded("FLAC", "PCM_16"), 2.0, None),
    "ID3 before Ogg": (id3(False) + VORBIS, 2.0, None),
    "MP3 without a count": (BARE, 2.0, None),
    "junk within MP3": (BARE[: 20 * FRAME] + b"junk" * 5 + BARE[20 * FRAME :], 2.0, "can't be decoded"),
    "CRLF behind MP3": (BARE + b"\r\n", 2.0, "can't be decoded"),
    "MP3 whose last frame is cut": (BARE[:-20], 2.0, "cut short"),
    "MP3 with a count, whose last frame is cut": (MP3[:-20], 2.0, "cut short"),
    "an Opus rate of 0": (ogg_page(OPUS, 0, 28 + 12, "<I", 0), 2.0, None),
    "an Ogg whose last page has no position": (with_empty_last_page(OPUS), 2.0, None),
    "an Ogg without its end": (ogg_page(VORBIS, pages(VORBIS)[-1], 5, "<B", 0), 2.0, "not marked as the end"),
    "a tag behind an Ogg": (VORBIS + b"TAG" + bytes(125), 2.0, "128 bytes after"),
    "an Ogg recorded midway": (
        on_each_page(LONG_VORBIS, 6, "<q", lambda position: position + 160_000 * (position > 0)),
        4.0,
        "begins at sample 160000",
    ),
    "FLAC in Ogg": (muxed("ogg", "flac"), 2.0, None),
    "AIFF": (encoded("AIFF", "PCM_24"), 2.0, None),
    "CAF": (encoded("CAF", "PCM_16"), 2.0, None),
    "ALAC in CAF": (encoded("CAF", "ALAC_16"), 2.0, None),
    "AU": (encoded("AU", "ULAW"), 2.0, None),
    "W64": (encoded("W64", "FLOAT"), 2.0, None),
    "M4A": (muxed("ipod", "aac"), 2.0, None),
    "ALAC in M4A": (muxed("ipod", "alac"), 2.0, None),
    "AAC": (muxed("adts", "aac"), 2.0, None),
    "WMA": (muxed("asf", "wmav2"), 2.0, None),
    "WebM": (muxed("webm", "libopus", sample_rate=48_000), 2.0, None),
    "Matroska with pictures": (muxed("matroska", "flac", beside="ffv1"), 2.0, None),
}


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    """The suffix is that of nothing: content decides."""
    data, seconds, note = CASES[request.param]
    (tmp_path / "sound.wav").write_bytes(data)
    return tmp_path / "sound.wav", seconds, note


def test_odd_files_are_read_whole(case):
    """Guards against half of a file dropped silently, a whole file called damaged, an oddity that nobody hears of."""
    path, seconds, note = case
    info, wav = audio_info(path), read_audio(path)
    assert wav.shape[1] == info.num_samples
    assert info.duration == pytest.approx(seconds, abs=0.15)
    # Half of the sound's power is tones of even strength: a part that was left off or is silent shows.
    quarters = wav[0, : wav.shape[1] // 4 * 4].reshape(4, -1).square().mean(dim=1)
    assert quarters.min() > 0.7 * quarters.max() > 0.05
    assert [word for word in ["truncated", "damaged"] if word in " ".join(info.notes)] == []
    assert info.notes == () if note is None else note in "; ".join(info.notes)


def test_odd_files_are_read_in_any_order(case):
    """Guards against a stretch of a chained or damaged file that is another one than in the whole."""
    path, *_ = case
    whole = read_audio(path)
    with AudioFile(path) as file:
        for start in (whole.shape[1] - 300, 40, whole.shape[1] // 2):
            assert (file.read(start, 200) - whole[:, start : start + 200]).abs().max() < 1e-6


def test_notes_are_reported_and_errors_only_if_strict(tmp_path):
    """Guards against an oddity that the report keeps to itself."""
    for name, case in (("a.wav", "data size 36 too large"), ("b.m4a", "M4A")):
        (tmp_path / name).write_bytes(CASES[case][0])
    index = scan(tmp_path)
    assert [(file.path, file.note[:12]) for file in index.files] == [("a.wav", "its header s"), ("b.m4a", "")]
    with pytest.raises(AudioReadError, match="a.wav: its header states 32036 bytes of data.*--strict"):
        scan(tmp_path, strict=True)


CUTS = {
    name: CASES[name][0]
    for name in ("AIFF", "CAF", "AU", "W64", "WMA", "WebM", "M4A", "chained Opus", "BW64", "MS ADPCM", "MP3 in a WAV")
} | {"MP3": MP3, "Vorbis": VORBIS, "Opus": OPUS, "WAV": wav_bytes(PCM), "FLAC": encoded("FLAC", "PCM_16")}


@pytest.mark.parametrize("kind", CUTS)
@pytest.mark.parametrize("fraction", [0.55, 0.9])
def test_what_is_really_cut_is_refused(tmp_path, kind, fraction):
    """Guards against leniency towards odd headers that lets half a file pass for a whole one."""
    data = CUTS[kind]
    (tmp_path / "sound.wav").write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(AudioReadError, match="truncated|can't be decoded"):
        read_audio(tmp_path / "sound.wav")
