"""MP3 (Layer III): the frames and bytes in a Xing or Info tag; without one the frames are counted.

The file may be one percent shorter than the tag's bytes before it is called truncated, since taggers get them wrong;
what is missing by less shows in decoding. Counting follows the frame headers, so that a cut within a frame is seen. A
VBRI tag has to agree with the count; libsndfile doesn't know it, and decodes the frame that it is in as silence.

    frame: 0xFFE + version, layer, bitrate, rate, padding, channel mode; then side information; then sound, or a tag
"""

import struct
from typing import NamedTuple

from .header import Header, Source

_KBITS = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG 1
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG 2 and 2.5
}
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_SIDE_BYTES = {3: (17, 32), 2: (9, 17), 0: (9, 17)}  # mono, stereo
_DECODER_DELAY = 529  # samples that a decoder adds, and may take off again where the encoder states no padding
_VBRI_OFFSET = 36
_MAY_FOLLOW = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"\0")  # behind the last frame


class _Frame(NamedTuple):
    sample_rate: int
    num_channels: int
    num_samples: int
    num_bytes: int
    tag_offset: int  # of "Xing" or "Info", in the place of the sound


class _Tag(NamedTuple):
    num_frames: int  # 0: not stated
    num_bytes: int  # 0: not stated
    num_added: int  # samples that the encoder put before and behind the sound


def parse(source: Source, start: int) -> Header | None:
    """The header of the MP3 that begins at byte `start`, or None where there is none."""
    head = source.read(start, 2048)  # more than any frame
    frame = _parse_frame(head)
    if frame is None:
        return None
    tag = _parse_tag(head, frame)
    if tag is not None and tag.num_frames > 0:
        if source.size - start < 0.99 * tag.num_bytes:
            raise source.refusal(
                f"is truncated: its header states {tag.num_bytes} bytes, the file holds {source.size - start}"
            )
        num_samples = tag.num_frames * frame.num_samples - tag.num_added
    else:
        num_frames = _count_frames(source, start + (frame.num_bytes if tag is not None else 0))
        if head[_VBRI_OFFSET : _VBRI_OFFSET + 4] == b"VBRI":
            (stated,) = struct.unpack_from(">I", head, _VBRI_OFFSET + 14)
            if num_frames - stated not in (0, 1):  # encoders differ on whether the tag's own frame is one
                raise source.refusal(f"is truncated: its header states {stated} frames, the file holds {num_frames}")
        num_samples = num_frames * frame.num_samples
    # 576 samples at 8 kbit/s and 24 kHz take a frame of 24 bytes
    return Header(
        "MP3",
        frame.sample_rate,
        frame.num_channels,
        num_samples,
        max_samples_per_byte=24,
        tolerance=_DECODER_DELAY,
        counted=tag is None or tag.num_frames == 0,
    )


def _parse_frame(head: bytes) -> _Frame | None:
    word = int.from_bytes(head[:4], "big")
    version, layer, kbits, rate = word >> 19 & 3, word >> 17 & 3, word >> 12 & 15, word >> 10 & 3
    if len(head) < 4 or word >> 21 != 0x7FF or version == 1 or layer != 1 or kbits in (0, 15) or rate == 3:
        return None
    sample_rate = _RATES[version][rate]
    num_channels = 1 if word >> 6 & 3 == 3 else 2
    num_samples = 1152 if version == 3 else 576
    num_bytes = num_samples * 125 * _KBITS[max(version, 2)][kbits] // sample_rate + (word >> 9 & 1)
    return _Frame(sample_rate, num_channels, num_samples, num_bytes, 4 + _SIDE_BYTES[version][num_channels - 1])


def _parse_tag(head: bytes, frame: _Frame) -> _Tag | None:
    """The Xing or Info tag in the place of the first frame's sound, or None where there is none.

    "Xing" or "Info", flags, then the fields that they name: frames, bytes, 100 bytes of places, quality; then LAME's
    part, with the added samples in 2 x 12 bits behind 21 bytes (http://gabriel.mp3-tech.org/mp3infotag.html).
    """
    if head[frame.tag_offset : frame.tag_offset + 4] not in (b"Xing", b"Info"):
        return None
    (flags,) = struct.unpack_from(">I", head, frame.tag_offset + 4)
    offset = frame.tag_offset + 8
    fields = []
    for flag, length in ((1, 4), (2, 4), (4, 100), (8, 4)):
        present = length if flags & flag else 0
        fields.append(int.from_bytes(head[offset : offset + present], "big"))
        offset += present
    added = int.from_bytes(head[offset + 21 : offset + 24], "big") if head[offset : offset + 1] != b"\0" else 0
    return _Tag(fields[0], fields[1], (added >> 12) + (added & 0xFFF))


def _count_frames(source: Source, offset: int) -> int:
    num_frames = 0
    while frame := _parse_frame(source.read(offset, 4)):
        offset += frame.num_bytes
        num_frames += 1
        if offset > source.size:
            raise source.refusal(f"is truncated: it ends within frame {num_frames}")
    if offset < source.size and not source.read(offset, 16).startswith(_MAY_FOLLOW):
        raise source.refusal(f"is damaged: no MP3 frame where frame {num_frames + 1} should begin")
    return num_frames
