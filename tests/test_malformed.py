"""200 malformed sound files: each is refused in one line, or read to a length that the file itself agrees with.

They are read in another process, so that a crash inside libsndfile fails the test instead of ending it, and with an
address space that leaves 100 MiB, so that a header that makes anyone reserve more fails it too.
"""

import io
import json
import os
import struct
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import soundfile
from sound_files import ogg_page, put

WORKER = """
import json, sys
from audiogen.audio import io as audio
from audiogen.errors import AudioReadError

sound_ones, malformed, room = sys.argv[1].split("|"), sys.argv[2].split("|"), int(sys.argv[3])

def read(path):
    info = audio.audio_info(path)
    wav = audio.read_audio(path)
    assert wav.shape == (1, info.num_samples) and wav.isfinite().all() and wav.abs().max() <= 1
    stretch = audio.read_audio(path, start=info.num_samples // 2, num_samples=100)
    assert stretch.shape == (1, min(100, info.num_samples - info.num_samples // 2))
    resampled = sum(block.shape[1] for block in audio.read_blocks(path, 16000, 0.1))
    assert resampled == audio.read_audio(path, 16000).shape[1]
    return {"length": info.num_samples, "notes": info.notes}

for path in sound_ones:
    read(path)  # takes the memory that reading needs anyway
if sys.platform == "linux":
    import resource
    taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + room, taken + room))
for path in malformed:
    print("reading", path, file=sys.stderr, flush=True)
    try:
        outcome = read(path)
    except AudioReadError as error:
        outcome = {"refused": str(error)}
    except BaseException as error:
        outcome = {"raised": repr(error)}
    print(json.dumps({"path": path, **outcome}), flush=True)
"""


def make(num_samples, sample_rate, num_channels, container, subtype, **settings) -> bytes:
    """Write a good file: tones with some noise, so that FLAC and MP3 frames differ in size."""
    time = np.arange(num_samples) / sample_rate
    tones = np.sin(2 * np.pi * np.outer(time, 220 * np.arange(1, num_channels + 1)))
    noise = np.random.default_rng(0).normal(0, 0.1, tones.shape)
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.5 * tones + noise, sample_rate, format=container, subtype=subtype, **settings)
    return buffer.getvalue()


def without_mp3_tag(data: bytes) -> bytes:
    """Remove the first frame, which holds the Xing tag; the second frame begins with the same bytes."""
    return data[data.index(data[:2], 2) :]


BASES = {
    "pcm16.wav": make(8_000, 8_000, 1, "WAV", "PCM_16"),
    "pcm24.wav": make(3_000, 44_100, 3, "WAVEX", "PCM_24"),
    "float.wav": make(2_000, 16_000, 2, "WAV", "FLOAT"),
    "rf64.wav": make(4_000, 16_000, 1, "RF64", "PCM_16"),
    "pcm16.flac": make(16_000, 16_000, 1, "FLAC", "PCM_16"),
    "pcm24.flac": make(10_000, 48_000, 2, "FLAC", "PCM_24"),
    "vorbis.ogg": make(30_000, 22_050, 2, "OGG", "VORBIS"),
    "opus.ogg": make(48_000, 48_000, 1, "OGG", "OPUS"),
    "xing.mp3": make(44_100, 44_100, 2, "MP3", "MPEG_LAYER_III"),
    "bare.mp3": without_mp3_tag(
        make(16_000, 16_000, 1, "MP3", "MPEG_LAYER_III", bitrate_mode="CONSTANT", compression_level=0.5)
    ),
}


def false_headers(name: str, data: bytes) -> list[bytes]:
    """Make six files with false headers from one good file, most of them about its length."""
    if name.endswith(".wav"):
        fmt, size = data.index(b"fmt ") + 8, data.index(b"data") + 4
        if name == "rf64.wav":
            long_size = data.index(b"ds64") + 16
            return [
                put(data, long_size, "<Q", 1 << 62),
                put(data, long_size, "<Q", len(data)),
                put(data, long_size, "<Q", 0),
                put(data, data.index(b"ds64") + 4, "<I", 1 << 31),
                put(data, size, "<I", 0x7FFFFFF0),
                put(data, fmt + 12, "<H", 0),
            ]
        claims = {"pcm16.wav": 0x7FFFFFF0, "pcm24.wav": 0xFFFFFFFF, "float.wav": len(data)}
        return [
            put(data, size, "<I", claims[name]),
            put(data, size, "<I", 0),
            put(data, fmt + 2, "<H", 65_535),
            put(data, fmt + 4, "<I", (1 << 32) - 1),
            put(data, fmt + 4, "<I", 1),
            put(data, fmt + 12, "<H", 1),
        ]
    if name.endswith(".flac"):
        (packed,) = struct.unpack_from(">Q", data, 18)
        total = packed & (1 << 36) - 1
        return [
            put(data, 18, ">Q", packed | (1 << 36) - 1),
            put(data, 18, ">Q", packed - total + 60_000_000),
            put(data, 18, ">Q", packed + 1),
            put(data, 18, ">Q", packed & (1 << 44) - 1),
            put(data, 18, ">Q", packed | 7 << 41),
            put(data, 5, ">H", 0xFFFF),
        ]
    if name.endswith(".ogg"):
        last = data.rindex(b"OggS")
        head = data.index(b"OpusHead") + 9 if name == "opus.ogg" else data.index(b"vorbis") + 10
        rate = head + (3 if name == "opus.ogg" else 1)
        return [
            ogg_page(data, last, 6, "<q", (1 << 62)),
            ogg_page(data, last, 6, "<q", 100_000_000),
            ogg_page(data, last, 6, "<q", -1),
            ogg_page(data, last, 5, "<B", 0),
            ogg_page(data, 0, head, "<B", 255),
            ogg_page(data, 0, rate, "<I", (1 << 32) - 1),
        ]
    if name == "xing.mp3":
        tag = data.index(b"Xing") + 8
        (frames,) = struct.unpack_from(">I", data, tag)
        return [
            put(data, tag, ">I", (1 << 32) - 1),
            put(data, tag, ">I", frames + 1),
            put(data, tag, ">I", frames * 3),
            put(data, tag + 4, ">I", (1 << 32) - 1),
            put(data, tag + 132, ">I", (1 << 32) - 1),
            b"ID3\4\0\0\x7f\x7f\x7f\x7f" + data,
        ]
    return [
        b"ID3\4\0\0\0\0\0\x7f" + data,
        b"ID3\4\0\0\0\0\0\0" * 9 + data,
        data + data[:100],
        put(data, 1, ">B", 0xE3),
        put(data, 2, ">B", 0xF0),
        data[:2_000] + data,
    ]


def malformed(name: str, data: bytes, rng: np.random.Generator) -> dict[str, bytes]:
    """Make 20 files from one good file: 7 cut short, 7 with flipped bytes (odd ones in their first 100), 6 with false
    headers."""
    files = {}
    for i in range(7):
        end = rng.integers(1, len(data)) if i > 1 else (40, len(data) - 1)[i]
        files[f"cut{i}"] = data[:end]
        flipped = bytearray(data)
        for at in rng.integers(0, 100 if i % 2 else len(data), size=1 + i):
            flipped[at] ^= rng.integers(1, 256)
        files[f"flip{i}"] = bytes(flipped)
    files |= {f"lie{i}": lie for i, lie in enumerate(false_headers(name, data))}
    return {f"{kind}-{name}": content for kind, content in files.items()}


def stated_length(name: str, data: bytes) -> tuple[int, int] | None:
    """Return the shortest and the longest length that the file's own headers allow, read independently of audiogen."""
    if name.endswith(".wav"):
        fmt, at = data.index(b"fmt ") + 8, 12
        while data[at : at + 4] != b"data":
            (length,) = struct.unpack_from("<I", data, at + 4)
            at += 8 + length + length % 2
        (length,) = struct.unpack_from("<I", data, at + 4)
        if length == 0xFFFFFFFF and b"ds64" in data:
            (length,) = struct.unpack_from("<Q", data, data.index(b"ds64") + 16)
        elif length == 0xFFFFFFFF == struct.unpack_from("<I", data, 4)[0]:
            length = len(data) - at - 8
        assert length <= len(data) - at - 8
        num_channels, bits = struct.unpack_from("<H10xH", data, fmt + 2)
        return (length // (num_channels * bits // 8),) * 2  # whatever the block alignment says
    if name.endswith(".flac"):
        total = int.from_bytes(data[21:26], "big") & (1 << 36) - 1
        return (total, total) if total else None
    if name.endswith(".ogg"):
        (granule,) = struct.unpack_from("<q", data, data.rindex(b"OggS") + 6)
        skipped = struct.unpack_from("<H", data, data.index(b"OpusHead") + 10)[0] if b"OpusHead" in data else 0
        return (granule - skipped,) * 2
    tag = max(data.find(b"Xing", 0, 60), data.find(b"Info", 0, 60))
    if tag < 0 or not data[tag + 7] & 1:
        return None
    frames, added = (int.from_bytes(data[tag + at : tag + at + size], "big") for at, size in ((8, 4), (141, 3)))
    longest = frames * 1152 - ((added >> 12) + (added & 4095) if data[tag + 7] == 15 else 0)
    return longest - 1152 - 529, longest + 1152  # a tag may count its own frame; decoders may take their own delay off


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, tuple[bytes, dict]]:
    folder = tmp_path_factory.mktemp("malformed")
    rng = np.random.default_rng(2)
    files = {}
    for name, data in BASES.items():
        (folder / name).write_bytes(data)
        files |= malformed(name, data, rng)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    lists = ["|".join(str(folder / name) for name in names) for names in (BASES, files)]
    settings = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", WORKER, *lists, str(100 << 20)],
        capture_output=True,
        text=True,
        env=os.environ | settings,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(files) == 200
    return {name: (files[name], outcome) for name, outcome in zip(files, found, strict=True)}


def test_nothing_but_audio_read_errors_in_one_line(outcomes):
    """Guards against a struct.error, MemoryError or LibsndfileError shown to users, a crash, and a header that
    allocates 4 GB."""
    for name, (_, outcome) in outcomes.items():
        assert "raised" not in outcome, (name, outcome)
        if "refused" in outcome:
            assert name in outcome["refused"] and "\n" not in outcome["refused"] and ";" in outcome["refused"]


def test_what_is_read_has_the_stated_length(outcomes):
    """Guards against libsndfile's habit of reading what is left of a truncated file as if it were complete."""
    for name, (data, outcome) in outcomes.items():
        if "length" in outcome and not outcome["notes"] and (stated := stated_length(name, data)) is not None:
            # What else the container says may be right: an Ogg page may have no position, an Opus is decoded at the
            # rate that its header asks for, and an MP3 whose count of bytes is right lacks no frame.
            if stated[0] >= 0 and not (name.startswith("lie") and name.endswith(("opus.ogg", "xing.mp3"))):
                assert stated[0] <= outcome["length"] <= stated[1], (name, stated, outcome)


def test_every_cut_is_seen(outcomes):
    """Guards against a file that is cut at any byte and read as a shorter one."""
    cuts = {name: outcome for name, (_, outcome) in outcomes.items() if name.startswith("cut")}
    read = {name: outcome["notes"] for name, outcome in cuts.items() if "length" in outcome}
    assert all(read.values()) and len(cuts) == 70
    assert all(name.startswith("cut1-") or "bare.mp3" in name for name in read), read


def test_both_outcomes_occur(outcomes):
    """Guards against a reader that passes these tests by refusing every file."""
    read = Counter(name.partition("-")[2] for name, (_, outcome) in outcomes.items() if "length" in outcome)
    assert {"pcm16.wav", "pcm24.wav", "float.wav", "rf64.wav", "xing.mp3"} <= set(read)
    assert sum(read.values()) < 90
