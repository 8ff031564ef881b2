"""Ogg (Vorbis, Opus): the granule position of the last page, which is where the last sample ends.

That page must end the file, be marked as the end of the stream, and belong to the stream that the file began with.
So a cut is seen; a hole in the middle only decoding can tell.

    page: "OggS" <version> <flags> <granule position> <serial> <number> <CRC> <segments> <their sizes> <their bytes>
"""

import struct

from .header import CONVERT, Header, Source

_PAGE = struct.Struct("<4sBBqIIIB")
_MAX_PAGE_BYTES = _PAGE.size + 255 + 255 * 255
_END_OF_STREAM = 4
_OPUS_CLOCK = 48_000  # of granule positions, whatever the rate was before encoding (RFC 7845, section 4)
_OPUS_RATES = (8_000, 12_000, 16_000, 24_000)  # that libsndfile decodes to, where one suffices for the stated rate


def parse(source: Source, start: int) -> Header | None:
    """The header of the Ogg file that begins at byte `start`, or None where there is none."""
    first = source.read(start, _MAX_PAGE_BYTES)
    if first[:4] != b"OggS":
        return None
    *_, serial, _, _, num_segments = _PAGE.unpack_from(first)
    packet = first[_PAGE.size + num_segments :]
    if packet.startswith(b"\x01vorbis"):
        num_channels, sample_rate = struct.unpack_from("<BI", packet, 11)
        num_samples = _last_granule(source, start, serial)
    elif packet.startswith(b"OpusHead"):
        num_channels, skipped, sample_rate = struct.unpack_from("<BHI", packet, 9)
        sample_rate = next((rate for rate in _OPUS_RATES if rate >= sample_rate), _OPUS_CLOCK)
        num_samples = (_last_granule(source, start, serial) - skipped) * sample_rate // _OPUS_CLOCK
    else:
        raise source.refusal("is an Ogg file without Vorbis or Opus sound", CONVERT)
    # the longest block, 8,192 samples of Vorbis, takes a packet of a byte and the byte that states its size
    return Header("OGG", sample_rate, num_channels, num_samples, max_samples_per_byte=4096)


def _last_granule(source: Source, start: int, serial: int) -> int:
    tail = source.read(max(start, source.size - _MAX_PAGE_BYTES), _MAX_PAGE_BYTES)
    at = tail.rfind(b"OggS")
    while at >= 0 and not _ends_with_page(tail, at):  # the four letters also occur within compressed sound
        at = tail.rfind(b"OggS", 0, at + 3)
    if at < 0:
        raise source.refusal("is truncated: it does not end with a whole Ogg page")
    _, _, flags, granule, last_serial, *_ = _PAGE.unpack_from(tail, at)
    if last_serial != serial:
        raise source.refusal("holds several Ogg streams, and one is read", CONVERT)
    if not flags & _END_OF_STREAM:
        raise source.refusal("is truncated: its last Ogg page is not the end of the stream")
    return granule


def _ends_with_page(tail: bytes, at: int) -> bool:
    """Whether the page at `at` ends exactly where `tail`, the end of the file, does."""
    body = at + _PAGE.size
    if body > len(tail):
        return False
    sizes = tail[body : body + tail[body - 1]]
    return body + len(sizes) + sum(sizes) == len(tail)
