"""Scan a folder: which sound files are kept, which are left out, and why."""

import math
import os
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from tqdm import tqdm

from ..audio.decoder import AUDIO_SUFFIXES, Decoder, mono_mix
from ..errors import AudioReadError, DataError, printable
from ..spec import Spec
from ..utils.devices import usable_cores
from ..utils.files import check_folder_is_there, sha256_file, walk
from ..utils.remote import RemotePath, as_folder, fetched, is_remote
from .duplicates import Fingerprint, find_copies
from .journal import Journal

#: Half the distance between the highest and the lowest sample. Below one 16-bit step a file is empty; below -50 dBFS it
#: is so faint that a model learns little but the noise.
NO_SOUND, FAINT = 2.0**-16, 10 ** (-50 / 20)
CLIPPED = 0.999
#: Files that are examined between two notes in the journal, and maximum number of threads.
GROUP, MOST_THREADS = 1000, 32
SUFFIXES = ", ".join(sorted(AUDIO_SUFFIXES))


@dataclass(frozen=True)
class FileEntry:
    """A sound file that is kept.

    Attributes:
        path: relative to the folder, with forward slashes.
        sha256: SHA-256 of the file's bytes.
        sample_rate: Hz, of the file.
        num_channels: 1 to 8.
        num_samples: per channel, at the file's own rate.
        peak, rms: of the mono mix, 1.0 being full scale.
        silent: whether it is almost inaudible, its peaks below -50 dBFS.
        clipped: fraction of the mono mix's samples at full scale.
        note: what is odd about a file that is read nevertheless; usually empty.
        sound: SHA-256 of the mono mix, rounded to 16 bits, and of the sample rate; independent of container, tags and
            bit depth. Empty in records of older versions.
    """

    path: str
    sha256: str
    sample_rate: int
    num_channels: int
    num_samples: int
    peak: float
    rms: float
    silent: bool
    clipped: float
    note: str = ""
    sound: str = ""

    @property
    def digests(self) -> list[str]:
        """Digests of its bytes and of its samples: files that share one are copies of each other."""
        return [digest for digest in (self.sha256, self.sound) if digest]

    @property
    def duration(self) -> float:
        """Duration in seconds."""
        return self.num_samples / self.sample_rate


@dataclass(frozen=True)
class Part:
    """A file, or the part of it between two fractions of its length, `start` and `stop`."""

    file: FileEntry
    start: float = 0.0
    stop: float = 1.0

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return (self.stop - self.start) * self.file.duration

    def span(self, length: int) -> tuple[int, int]:
        """Return the frames or samples [first, end) of a file of `length`, rounded inwards."""
        return math.ceil(self.start * length), math.floor(self.stop * length)


@dataclass(frozen=True)
class Rejected:
    """A file that is left out: its path as in FileEntry, and the reason in words."""

    path: str
    reason: str


@dataclass(frozen=True)
class Index:
    """A folder's sound files.

    Attributes:
        folder: the folder that paths are relative to.
        files: files that are kept, sorted by path; no two hold the same sound.
        rejected: files that are left out, sorted by path.
        ignored: number of files skipped because their suffix is not that of a sound file.
    """

    folder: Path
    files: Sequence[FileEntry]
    rejected: list[Rejected]
    ignored: int = 0

    @property
    def seconds(self) -> float:
        """Total duration of the files in seconds."""
        durations = getattr(self.files, "durations", None)  # of columns, at once
        return sum(file.duration for file in self.files) if durations is None else float(durations.sum())

    def require_files(self) -> None:
        """Check that at least one file is kept.

        Raises:
            DataError: none is; gives the first reasons.
        """
        if not self.files:
            reasons = "; ".join(f"{file.path}: {file.reason}" for file in self.rejected[:3])
            more = f"; and {len(self.rejected) - 3} more" if len(self.rejected) > 3 else ""
            raise DataError(
                f"{self.folder}: none of its {len(self.rejected)} sound files can be used "
                f"({reasons}{more}); add recordings that can"
            )


def scan(
    folder: str | Path | Sequence[Path], strict: bool = False, progress: bool = True, journal: Path | None = None
) -> Index:
    """Examine every sound file below a folder, in memory that does not grow with their length.

    Each file is decoded completely, once. Files that can't be read, are silent, or hold the same samples as an earlier
    one are left out, with a reason. Hidden files and folders (including the `._` files of macOS) are skipped; files
    whose suffix is not that of a sound file are skipped and counted. Linked folders are entered once.

    Args:
        folder: the folder to scan, or its URL in an object store; or several folders, whose paths then begin with their
            names (see `corpus_names`).
        strict: raise an error if a file or folder can't be read, or a file is odd.
        progress: show a progress bar on a terminal.
        journal: file in which what is found in a thousand files each is kept, so that a scan that was killed continues;
            unused if `strict`.

    Returns:
        The index, which depends on the content alone, not on the order of the file system. `files` may be empty.

    Raises:
        DataError: there is no such folder, or it has no sound files, or folders overlap.
        AudioReadError: with `strict`, names the first file by path that can't be read or is odd.

    Example:
        >>> write_audio("sounds/a.wav", torch.rand(1, 16000) - 0.5, 8000)
        >>> write_audio("sounds/b.wav", torch.zeros(1, 16000), 8000)
        >>> index = scan("sounds", progress=False)
        >>> index.seconds, [file.reason for file in index.rejected]
        (2.0, ['silent: nothing but zeros, or a constant'])
    """
    if isinstance(folder, str | Path | RemotePath):
        folder = as_folder(folder)
        paths, rejected, ignored = _find(folder)
    else:
        folder, paths, rejected, ignored = _find_in_all(folder)
    if strict and rejected:
        raise AudioReadError(f"{folder / rejected[0].path}: {rejected[0].reason}; check its permissions")
    if not paths:
        there = f"; its {ignored} files are of other kinds" if ignored else ""
        raise DataError(
            f"{folder}: holds no sound files ({SUFFIXES}){there}; give a folder with two or more of them, or a long one"
        )
    files, sketches = [], []
    kept = None if journal is None or strict else Journal(journal)
    for found in _examine_all(folder, paths, strict, progress, kept):
        if isinstance(found, Rejected):
            rejected.append(found)
        else:
            files.append(found[0])
            sketches.append(found[1])
    copies = find_copies(sketches, [(file.num_samples, file.sample_rate) for file in files])
    rejected += [
        Rejected(files[copy].path, f"has the same content as {files[first].path}") for copy, first in copies.items()
    ]
    files = [file for place, file in enumerate(files) if place not in copies]
    return Index(folder, files, sorted(rejected, key=lambda file: file.path), ignored)


def long_enough(index: Index, spec: Spec) -> Index:
    """Move files of fewer than two frames of a front-end from `files` to `rejected`.

    If the length of a frame varies (hop_length None), files need two samples.
    """
    hop_length = spec.hop_length or 1
    short = [file for file in index.files if resampled(file, spec.sample_rate) <= hop_length]
    if not short:
        return index
    paths = {file.path for file in short}
    added = [
        Rejected(
            file.path,
            f"too short: {file.duration:.4g} s is at most one frame of the front-end "
            f"({hop_length / spec.sample_rate:.4g} s); a model needs two frames",
        )
        for file in short
    ]
    return replace(
        index,
        files=[file for file in index.files if file.path not in paths],
        rejected=sorted(index.rejected + added, key=lambda file: file.path),
    )


def common_folder(folders: Sequence[Path]) -> Path:
    """Return the innermost folder that contains all of the folders.

    Raises:
        DataError: there is none, as they lie on different drives of Windows.
    """
    try:
        return Path(os.path.commonpath([folder.resolve() for folder in folders]))
    except ValueError:
        raise DataError(f"{folders[0]} and {folders[1]}: lie on different drives; move one of them") from None


def corpus_names(folders: Sequence[Path]) -> tuple[str, ...]:
    """Name folders that are used together: by their paths relative to the folder that contains them all.

    Raises:
        DataError: one of them contains another.

    Example:
        >>> corpus_names([Path("sounds/music"), Path("sounds/speech/digits")])
        ('music', 'speech/digits')
    """
    if len(folders) < 2:
        return ()
    places, root = [folder.resolve() for folder in folders], common_folder(folders)
    for i, place in enumerate(places):
        for j, other in enumerate(places):
            if i != j and place.is_relative_to(other):
                raise DataError(f"{folders[i]}: lies in {folders[j]}, or is the same; give each folder once")
    return tuple(place.relative_to(root).as_posix() for place in places)


def files_of(index: Index, name: str) -> Index:
    """Return the index of one of several folders that were scanned together, by its name in `corpus_names`."""
    prefix = f"{name}/"
    files = [replace(file, path=file.path.removeprefix(prefix)) for file in index.files if file.path.startswith(prefix)]
    wrong = [file for file in index.rejected if file.path.startswith(prefix)]
    rejected = [replace(file, path=file.path.removeprefix(prefix)) for file in wrong]
    return Index(index.folder / name, files, rejected)


def main_sample_rate(index: Index) -> int:
    """Return the sample rate (Hz) of most of the recorded time; of equal ones, the highest.

    Raises:
        DataError: the index has no files.
    """
    index.require_files()
    seconds: dict[int, float] = {}
    for file in index.files:
        seconds[file.sample_rate] = seconds.get(file.sample_rate, 0.0) + file.duration
    return max(seconds, key=lambda rate: (seconds[rate], rate))


def resampled(file: FileEntry, sample_rate: int) -> int:
    """Return its number of samples after `read_audio` has resampled it."""
    return (2 * file.num_samples * sample_rate + file.sample_rate) // (2 * file.sample_rate)


def _find(folder: Path) -> tuple[list[str], list[Rejected], int]:
    """Return the paths of sound files, what can't be read, and the number of other files."""
    if is_remote(folder):
        there = [Path(path) for path in cast(Any, folder).find()]
        shown = [path for path in there if not any(part.startswith(".") for part in path.parts)]
        sounds = [path.as_posix() for path in shown if path.suffix.lower() in AUDIO_SUFFIXES]
        return sorted(sounds), [], len(shown) - len(sounds)
    check_folder_is_there(folder)
    paths, rejected, ignored, entered = [], [], 0, set()

    def unreadable(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise DataError(f"{folder}: can't be read ({error.strerror}); check its permissions") from error
        where = Path(error.filename).relative_to(folder).as_posix()
        rejected.append(Rejected(where, f"is a folder that can't be read ({error.strerror})"))

    for root, folders, names in walk(folder, unreadable):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in entered:  # a link to a folder that was entered before
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if name.startswith("."):
                continue
            if Path(name).suffix.lower() in AUDIO_SUFFIXES:
                paths.append(Path(root, name).relative_to(folder).as_posix())
            else:
                ignored += 1
    return sorted(paths), rejected, ignored


def _find_in_all(folders: Sequence[Path]) -> tuple[Path, list[str], list[Rejected], int]:
    """Find the files of several folders: the folder that contains them all, and the same as `_find`."""
    paths, rejected, ignored = [], [], 0
    for folder, name in zip(folders, corpus_names(folders), strict=True):
        found, wrong, others = _find(folder)
        if not found:
            raise DataError(f"{folder}: holds no sound files ({SUFFIXES}); leave it out")
        paths += [f"{name}/{path}" for path in found]
        rejected += [replace(file, path=f"{name}/{file.path}") for file in wrong]
        ignored += others
    return common_folder(folders), sorted(paths), rejected, ignored


def _examine_all(
    folder: Path, paths: list[str], strict: bool, progress: bool, journal: Journal | None
) -> Iterator[tuple[FileEntry, np.ndarray] | Rejected]:
    """Examine files in threads, and yield the results in the order of the paths."""

    def examine(path: str) -> tuple[FileEntry, np.ndarray] | Rejected:
        known = None if journal is None else journal.get(folder, path)
        if known is not None:
            with suppress(LookupError, TypeError, ValueError):  # not what this version writes
                return FileEntry(**known["file"]), np.frombuffer(b64decode(known["sketch"]), np.float32)
        return _examine(folder, path, strict)

    with (
        ThreadPoolExecutor(MOST_THREADS if is_remote(folder) else min(MOST_THREADS, usable_cores())) as pool,
        tqdm(total=len(paths), unit="file", desc="reading", disable=None if progress else True) as bar,
    ):
        # In groups, so that an error or Ctrl-C does not wait for the rest of a large folder.
        for first in range(0, len(paths), GROUP):
            group = []
            for found in pool.map(examine, paths[first : first + GROUP]):
                bar.update()
                group.append(found)
                yield found
            if journal is not None and len(paths) > GROUP:
                kept = [found for found in group if not isinstance(found, Rejected)]  # others may have had bad luck
                journal.add(
                    folder,
                    {
                        file.path: {"file": asdict(file), "sketch": b64encode(sketch.tobytes()).decode()}
                        for file, sketch in kept
                    },
                )


def _examine(folder: Path, path: str, strict: bool) -> tuple[FileEntry, np.ndarray] | Rejected:
    with fetched(folder / path) as full:
        return _examine_file(full, path, strict)


def _examine_file(full: Path, path: str, strict: bool) -> tuple[FileEntry, np.ndarray] | Rejected:
    try:
        with Decoder(full) as decoder:
            low, high, squares, clipped, count, fingerprint = np.inf, -np.inf, 0.0, 0, 0, Fingerprint()
            for samples in decoder.blocks():
                x = mono_mix(samples).astype(np.float64).clip(-1, 1)
                low, high = min(low, x.min()), max(high, x.max())
                squares += float(x @ x)
                clipped += int(np.count_nonzero(np.abs(x) >= CLIPPED))
                count += len(x)
                fingerprint.add(x)
            info = decoder.info
        sha256, note = sha256_file(full), "; ".join(info.notes)
        if strict and note:
            raise AudioReadError(f"{full}: {note}; repair it, or omit --strict")
    except (AudioReadError, OSError) as error:
        if strict:
            raise AudioReadError(str(error)) from error
        return Rejected(path, str(error).removeprefix(printable(f"{full}: ")))
    swing = (high - low) / 2
    if swing < NO_SOUND:
        return Rejected(path, "silent: nothing but zeros, or a constant")
    entry = FileEntry(
        path,
        sha256,
        info.sample_rate,
        info.num_channels,
        count,
        peak=float(max(high, -low)),
        rms=(squares / count) ** 0.5,
        silent=bool(swing < FAINT),
        clipped=clipped / count,
        note=note,
        sound=fingerprint.digest(info.sample_rate),
    )
    return entry, fingerprint.sketch()
