"""Read the headers of sound files: whether a file is complete, what is odd about it, and which backend reads all of it.

libsndfile opens truncated files without complaint, and reads some intact ones only in part. So the size that a
container states is compared with the file. If the header is wrong but the sound is there, the file gets a note and is
left to FFmpeg.

    WAV, AIFF   "RIFF" <size> "WAVE", then chunks of <id> <size> <bytes, padded to an even number>
    CAF         "caff" <version>, then chunks of <id> <size of 64 bits>; a size of -1 is the rest of the file
    W64         <16 bytes> <size> <16 bytes>, then chunks of <16 bytes> <size of 64 bits, with both>, padded to 8
    AU          ".snd" <offset> <size>; a size of 0xFFFFFFFF is the rest of the file
    Ogg         pages of "OggS" <0> <flags> <position: 8> <serial> <number> <CRC> <segments> <their sizes> <their bytes>
    MP3         frames; the first one often holds "Xing", "Info" or "VBRI" and the number of frames instead of sound
"""

import mmap
import os
import re
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import AudioReadError

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 1_000, 768_000  # Hz; a rate of 1 in a header would resample to gigabytes
MAX_CHANNELS = 8
#: Larger samples, 12 dB over full scale, are refused: they mean a wrong format rather than loud sound.
MAX_PEAK = 4.0

FETCH_AGAIN = "copy it again from where it came from, or remove it"
CONVERT = "convert it, for example with ffmpeg, or remove it"
MEND = "copy it again from where it came from, convert it, or remove it"

_AU_HEADER = 24  # bytes
_CHUNKS = {  # by magic: container, offset of the first chunk, layout of chunk headers, padding, name of the sound chunk
    b"RIFF": ("WAV", 12, "<4sI", 2, b"data"),
    b"RIFX": ("WAV", 12, ">4sI", 2, b"data"),
    b"RF64": ("WAV", 12, "<4sI", 2, b"data"),
    b"BW64": ("WAV", 12, "<4sI", 2, b"data"),
    b"FORM": ("AIFF", 12, ">4sI", 2, b"SSND"),
    b"caff": ("CAF", 8, ">4sq", 1, b"data"),
    b"riff": ("W64", 40, "<16sq", 8, b"data"),
}
_MAX_CHUNKS = 10_000  # a file of zeros would contain endless empty chunks
_UNKNOWN = 0xFFFFFFFF
_OGG_SOUND = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex   ")
_MP3_COUNT = (  # the numbers of frames and bytes stated by the first frame
    re.compile(
        rb"\xff[\xe2-\xfb].{11,36}?(?:Xing|Info)\0\0\0[\1\3\5\7\11\13\15\17](?P<frames>.{4})(?P<bytes>.{4})", re.S
    ),
    re.compile(rb"\xff[\xe2-\xfb].{34}VBRI.{6}(?P<bytes>.{4})(?P<frames>.{4})", re.S),
)


@dataclass(frozen=True)
class Header:
    """What the header of a sound file says.

    Attributes:
        container: "WAV", "FLAC", "OGG", "AIFF", ...; empty if FFmpeg has to find out.
        decoder: the backend that reads the whole file, "ffmpeg" or "libsndfile".
        notes: what is odd about the file, in words.
        num_frames: stated number of frames of an MP3; 0 if it states none.
        num_samples: stated number of samples of a FLAC; needed since FFmpeg skips damaged frames silently.
        end: position stated by the last page of an Ogg Vorbis or Opus file, in seconds.
    """

    container: str = ""
    decoder: str = "ffmpeg"
    notes: tuple[str, ...] = ()
    num_frames: int = 0
    num_samples: int | None = None
    end: float | None = None


@dataclass(frozen=True)
class _Source:
    path: str | Path
    file: BinaryIO
    size: int

    def read(self, offset: int, count: int) -> bytes:
        self.file.seek(offset)
        return self.file.read(count)

    def refusal(self, problem: str, advice: str = FETCH_AGAIN) -> AudioReadError:
        return refusal(self.path, problem, advice)


def read_header(path: str | Path) -> Header:
    """Read the header of a sound file, but not its samples.

    Raises:
        AudioReadError: not a regular file, empty, without samples, or shorter than its header states.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # checked first, since opening a pipe would block forever
            raise refusal(path, "is a folder or a device, not a file", "give the path of a sound file")
        with open(path, "rb") as file:
            source = _Source(path, file, os.fstat(file.fileno()).st_size)
            if source.size == 0:
                raise source.refusal("is empty (0 bytes)")
            return _look(source, _skip_id3(source))
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL in it
        reason = getattr(error, "strerror", None) or error
        raise refusal(path, f"can't be opened ({reason})", "check the path and its permissions") from error
    except (struct.error, IndexError) as error:
        raise refusal(path, "is truncated: it ends within its header") from error


def refusal(path: str | Path, problem: str, advice: str = FETCH_AGAIN) -> AudioReadError:
    """Return the AudioReadError for a file: what is wrong with it, and what to do."""
    return AudioReadError(f"{path}: {problem}; {advice}")


def check_channels(path: str | Path, num_channels: int) -> None:
    """Raise an AudioReadError unless a number of channels is one that is read."""
    if not 1 <= num_channels <= MAX_CHANNELS:
        raise refusal(path, f"states {num_channels} channels, and 1 to {MAX_CHANNELS} are read", CONVERT)


def _look(source: _Source, start: int) -> Header:
    head = source.read(start, 1 << 12)
    if head[:4] in _CHUNKS and (head[:4] in (b"caff", b"riff") or head[8:11] in (b"WAV", b"AIF")):
        return _look_at_chunks(source, start)
    if head[:4] == b".snd":
        offset, stated = struct.unpack_from(">II", head, 4)
        if offset < _AU_HEADER:  # libsndfile reads such a file from one place and seeks to another
            raise source.refusal(f"is damaged: its header states that the sound begins at byte {offset}, inside itself")
        return _header(source, "AU", start + offset, stated)
    if head[:4] == b"fLaC":
        with mmap.mmap(source.file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            joined = data.find(b"fLaC\0\0\0\x22", start + 4) > 0  # libsndfile reads only the first stream
        notes = ("holds several FLAC streams, which are joined",) if joined else ()
        stated = None if joined else int.from_bytes(head[18:26]) & (1 << 36) - 1 or None
        return Header("FLAC", "ffmpeg" if joined else "libsndfile", notes, num_samples=stated)
    if head[:4] == b"OggS":
        return _look_at_pages(source)
    if head[:8] == b"0&\xb2u\x8ef\xcf\x11":  # ASF (WMA); the object below states its size
        at = head.find(b"\xa1\xdc\xab\x8cG\xa9\xcf\x11")
        if at >= 0 and (stated := int.from_bytes(head[at + 40 : at + 48], "little")) > source.size - start:
            raise source.refusal(f"is truncated: its header states {stated} bytes, the file holds {source.size}")
        return Header("ASF")
    if head[4:8] == b"ftyp":
        return Header("MOV")
    if head[:4] == b"\x1aE\xdf\xa3":
        return _look_at_matroska(source, start, head)
    if (found := _MP3_COUNT[0].search(head) or _MP3_COUNT[1].search(head)) is not None:
        num_frames, num_bytes = (int.from_bytes(found[field], "big") for field in ("frames", "bytes"))
        held = source.size - start - found.start()
        # If the number of bytes is right, a wrong number of frames does not mean that sound is missing.
        return Header(num_frames=num_frames if abs(num_bytes - held) > held // 100 else 0)
    return Header()


def _look_at_chunks(source: _Source, start: int) -> Header:
    magic = source.read(start, 12)
    name, first, layout, padding, wanted = _CHUNKS[magic[:4]]
    size, offset, sounds, long_size = struct.calcsize(layout), start + first, [], None
    for _ in range(_MAX_CHUNKS):
        if offset + size > source.size:
            break
        chunk, length = struct.unpack(layout, source.read(offset, size))
        length -= size if name == "W64" else 0
        if chunk == b"ds64":
            (long_size,) = struct.unpack("<8xQ", source.read(offset + size, 16))
        elif chunk[:4] == wanted:
            sounds.append((offset + size, length))
        if length < 0:
            break
        offset += size + length + -length % padding
    if not sounds:
        raise source.refusal(f"has a {name} header but no {wanted.decode()} chunk")
    (offset, stated), held = sounds[0], source.size - sounds[0][0]
    if name == "WAV" and stated == _UNKNOWN and long_size is not None:
        stated = long_size
    if name == "WAV":
        (riff_size,) = struct.unpack(layout[0] + "I", magic[4:8])
        if _is_placeholder(stated) and stated > held:
            # ffmpeg writes this to pipes, which is too common to deserve a note.
            note = ("states no length, as if written to a pipe; it is read to its end",)
            return Header(name, notes=() if riff_size == stated == _UNKNOWN else note)
        if stated == 0 < held and (start + 8 + riff_size <= offset or _is_placeholder(riff_size)):
            note = "its header was never finished and states 0 bytes of data; it is read to its end"
            return Header(name, notes=(note,))
    notes = (f"holds {len(sounds)} chunks of sound, of which the first is read",) if len(sounds) > 1 else ()
    return _header(source, name, offset, stated, notes)


def _header(source: _Source, name: str, offset: int, stated: int, notes: tuple[str, ...] = ()) -> Header:
    """Return the header of a file whose sound begins at byte `offset`, with a stated size of `stated` bytes."""
    held = source.size - offset
    if stated == 0 or held <= 0 and stated in (-1, _UNKNOWN):
        raise source.refusal("has a header but no samples")
    if stated <= held or name != "WAV" and stated in (-1, _UNKNOWN):
        return Header(name, "libsndfile", notes)
    # Writers that count their header as sound are off by tens of bytes; truncation rarely removes so few.
    if stated - held > min(64, stated // 100):
        raise source.refusal(f"is truncated: its header states {stated} bytes of data, the file holds {held}")
    note = f"its header states {stated} bytes of data, and the {held} that it holds are read"
    return Header(name, "libsndfile", (*notes, note))


def _is_placeholder(size: int) -> bool:
    """Return whether a size is a placeholder for an unknown one, such as 0x7FFFF000, 0x80000000 or 0xFFFFFFFF."""
    return size <= _UNKNOWN and min(abs(size - 2**31), 2**32 - size) <= 1 << 16


def _look_at_pages(source: _Source) -> Header:
    """Read the pages of an Ogg file. libsndfile reads only files with one regular stream of Vorbis or Opus."""
    with mmap.mmap(source.file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        begins = [found.start() for found in re.finditer(rb"OggS\0[\2\3\6\7]", data)]
        bodies = [at + 27 + data[at + 26] for at in begins if at + 27 < source.size]
        heads = [data[at : at + 16] for at in bodies if data[at : at + 16].startswith(_OGG_SOUND)]
        last = data.rfind(b"OggS\0")
        page = data[last : last + 27 + 255]
    sizes = page[27 : 27 + page[26]] if len(page) >= 27 else b""
    end = last + 27 + len(sizes) + sum(sizes)
    if end > source.size:
        raise source.refusal("is truncated: it does not end with a whole Ogg page")
    if not heads:
        raise source.refusal("is an Ogg file without sound", CONVERT)
    opus = heads[0].startswith(b"OpusHead")
    if len({head[:10] if opus else head for head in heads}) > 1:
        raise source.refusal("holds Ogg streams of several codings or sample rates, which can't be joined", CONVERT)
    notes = (f"holds {len(heads)} Ogg streams of sound",) if len(heads) > 1 else ()
    if end < source.size:
        notes += (f"{source.size - end} bytes after its last Ogg page are skipped",)
    flags, position = struct.unpack_from("<Bq", page, 5)
    if not flags & 4:
        notes += ("its last Ogg page is not marked as the end of the stream",)
    rate = int.from_bytes(heads[0][12:16], "little")
    stated_rate = rate if opus else 1  # 0 means unspecified; libsndfile would assume 8 kHz
    regular = (
        len(begins) == 1 and not notes and position > 0 and stated_rate > 0 and heads[0][:5] in (b"\1vorb", b"OpusH")
    )
    end = (position - int.from_bytes(heads[0][10:12], "little")) / 48_000 if opus else position / max(1, rate)
    return Header("OGG", "libsndfile" if regular else "ffmpeg", notes, end=end if regular else None)


def _look_at_matroska(source: _Source, start: int, head: bytes) -> Header:
    """Read a Matroska header: EBML <size> ..., then the segment with everything else: <name: 4> <size>."""
    length, offset = _variable_size(head, 4)
    length, offset = _variable_size(head, offset + (length or 0) + 4)
    held = source.size - start - offset
    if length is not None and length > held:
        raise source.refusal(f"is truncated: its header states {length} bytes, the file holds {held}")
    return Header("MATROSKA")


def _variable_size(head: bytes, at: int) -> tuple[int | None, int]:
    """Read a variable-length size (the number of leading zero bits gives its length); None if unknown (all ones)."""
    width = 9 - head[at].bit_length()
    most = (1 << 7 * width) - 1
    size = int.from_bytes(head[at : at + width], "big") & most
    return None if size == most else size, at + width


def _skip_id3(source: _Source) -> int:
    """Return the offset after the ID3v2 tags, which taggers put before files of any kind."""
    offset = 0
    for _ in range(8):  # a file of empty tags could take hours
        tag = source.read(offset, 10)
        if len(tag) < 10 or tag[:3] != b"ID3":
            break
        length = 0
        for byte in tag[6:]:  # 7 bits each
            length = length << 7 | byte & 0x7F
        offset += 10 + length + (10 if tag[5] & 0x10 else 0)  # a footer repeats the header
    return offset
