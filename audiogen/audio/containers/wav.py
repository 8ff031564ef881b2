"""WAV (RIFF, RIFX, RF64; plain and extensible): the data chunk's size, which must be there to the last byte.

A size of 0xFFFFFFFF in RIFF and data alike is how a writer to a pipe (ffmpeg) says "until the end of the file", and
is read so; no other size is taken for unknown. A data chunk of 0 bytes is an empty file, whatever follows it: its
writer was stopped before it could finish the header. Frames cut short at the end and a missing padding byte are let
pass, and RIFF's own size and the fact chunk are not looked at: many good files have them wrong.

    "RIFF" <size> "WAVE", then chunks of <id> <size> <bytes, padded to an even number>
"""

import struct

from .header import CONVERT, Header, Source

_CODINGS = {1: "PCM", 3: "float", 6: "A-law", 7: "mu-law"}
_EXTENSIBLE = 0xFFFE  # the coding stands at byte 24 of the format chunk
_UNKNOWN = 0xFFFFFFFF
_MAX_CHUNKS = 10_000  # before the data; a file of zeros would be an endless row of empty chunks


def parse(source: Source, start: int) -> Header | None:
    """The header of the WAV that begins at byte `start`, or None where there is none."""
    magic = source.read(start, 12)
    if magic[:4] not in (b"RIFF", b"RIFX", b"RF64") or magic[8:] != b"WAVE":
        return None
    order = ">" if magic[:4] == b"RIFX" else "<"
    (riff_size,) = struct.unpack_from(order + "I", magic, 4)
    form = long_size = None
    offset = start + 12
    for _ in range(_MAX_CHUNKS):
        if offset + 8 > source.size:
            raise source.refusal("has a WAV header but no data chunk")
        name, length = struct.unpack(order + "4sI", source.read(offset, 8))
        offset += 8
        if name == b"data":
            break
        if name == b"ds64":
            (long_size,) = struct.unpack("<8xQ", source.read(offset, 16))
        elif name == b"fmt ":
            form = source.read(offset, min(length, 26))
        offset += length + length % 2
    else:
        raise source.refusal(f"has no data among its first {_MAX_CHUNKS} chunks")
    if form is None:
        raise source.refusal("has no format chunk before its data")

    coding, num_channels, sample_rate, bytes_per_sample = struct.unpack_from(order + "HHI4xH", form)
    if coding == _EXTENSIBLE:
        (coding,) = struct.unpack_from(order + "H", form, 24)
    if coding not in _CODINGS:
        raise source.refusal(
            f"holds samples of kind 0x{coding:04X}, and a WAV is read where it holds {', '.join(_CODINGS.values())}",
            CONVERT,
        )
    if bytes_per_sample == 0:
        raise source.refusal("states samples of 0 bytes")

    held = source.size - offset
    if length == _UNKNOWN and long_size is not None:
        length = long_size
    elif length == _UNKNOWN == riff_size:
        length = held
    if length > held:
        raise source.refusal(
            f"is truncated: its header states {length // bytes_per_sample} samples, the file holds "
            f"{held // bytes_per_sample}"
        )
    if length == 0 and held > 0:
        raise source.refusal(
            f"states 0 samples, though {held} bytes follow: its header was never finished",
            "save it again, for example with ffmpeg, or remove it",
        )
    # Where the fields contradict each other libsndfile knows which programs wrote such files, and what they meant.
    bits = int.from_bytes(form[14:16], "little")
    plain = order == "<" and 8 * bytes_per_sample == num_channels * bits
    return Header(
        "WAV",
        sample_rate,
        num_channels,
        length // bytes_per_sample,
        max_samples_per_byte=1,
        plain=(_CODINGS[coding], bits, offset) if plain else None,
    )
