"""FLAC: STREAMINFO's total, where 0 says that it is not known. Whether the samples are there only decoding can tell.

"fLaC" <kind> <length> <block sizes 2 x 16 bits> <frame sizes 2 x 24> <rate 20> <channels - 1: 3> <bits - 1: 5>
<total samples 36> <MD5 128>                                   (RFC 9639, section 8.2)
"""

import struct

from .header import Header, Source


def parse(source: Source, start: int) -> Header | None:
    """The header of the FLAC that begins at byte `start`, or None where there is none."""
    if source.read(start, 4) != b"fLaC":
        return None
    kind, packed = struct.unpack_from(">B13xQ", source.read(start + 4, 38))
    if kind & 0x7F != 0:
        raise source.refusal("is a FLAC file that does not begin with STREAMINFO")
    num_samples = packed & (1 << 36) - 1
    # 65,535 samples of one value, the longest block, take a frame of 10 bytes
    return Header("FLAC", packed >> 44, (packed >> 41 & 7) + 1, num_samples or None, max_samples_per_byte=6554)
