"""Shared by the scripts in datasets/: turn an archive on the web into a folder of WAVs, completely or not at all."""

import argparse
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from ..errors import DataError, DownloadError
from ..utils.archives import Member, unpack
from ..utils.download import fetch
from ..utils.files import atomic_write_json

SOURCE_FILE = "SOURCE.json"  # in the finished folder: its origin and licence


@dataclass(frozen=True)
class Corpus:
    """An archive of recordings.

    Attributes:
        name: display name.
        page: address of the page that describes it.
        licence: name and address of the licence.
        credit: attribution that the licence requires.
        url: address of the archive.
        sha256: published SHA-256 of the archive; None if none is published.
        place: maps a file's name in the archive to its name in the folder, or to None to skip it.
        max_bytes: upper bound on the size of the archive, and on that of its contents.
        max_files: upper bound on the number of entries.
    """

    name: str
    page: str
    licence: str
    credit: str
    url: str
    sha256: str | None
    place: Callable[[str], str | None]
    max_bytes: int
    max_files: int


def make_corpus(corpus: Corpus, out: str | Path, check: Callable[[list[Member]], None] = lambda members: None) -> Path:
    """Download, verify and unpack a corpus, and return its folder, which appears only when it is complete.

    Until then, all data is in OUT.part beside it, and a later call resumes from there. A complete folder is left as it
    is.

    Args:
        corpus: the corpus to fetch.
        out: folder to make; may exist if it is empty.
        check: called with the unpacked files; raises if they are wrong, and may delete some.

    Raises:
        DataError: `out` holds something else.
        DownloadError: see `fetch` and `unpack`.
    """
    out = Path(out).resolve()
    if (out / SOURCE_FILE).exists():
        print(f"{out}: exists already; delete it to download it again")
        return out
    if out.exists() and not (out.is_dir() and next(out.iterdir(), None) is None):
        raise DataError(f"{out}: exists and is not empty; name another folder")
    work = out.with_name(out.name + ".part")
    archive = work / (PurePosixPath(unquote(urlsplit(corpus.url).path)).name or "archive")
    print(f"{corpus.name}, {corpus.page}\nlicence: {corpus.licence}; credit: {corpus.credit}\nfrom {corpus.url}")
    digest = fetch(corpus.url, archive, corpus.sha256, corpus.max_bytes)
    print(f"SHA-256 {digest}" + (", as expected" if corpus.sha256 else ""))
    folder = work / "unpacked"
    if folder.exists():
        shutil.rmtree(folder)
    try:
        check(unpack(archive, folder, corpus.place, corpus.max_bytes, corpus.max_files))
    except DownloadError:
        if corpus.sha256 is None:  # otherwise it is the right archive, and downloading it again would not help
            archive.unlink()
        raise
    num_wavs = sum(1 for _ in folder.rglob("*.wav"))
    if not num_wavs:
        raise DataError(f"{corpus.url}: holds no recordings where {corpus.name} has them; check the address")
    atomic_write_json(
        folder / SOURCE_FILE,
        {
            "name": corpus.name,
            "page": corpus.page,
            "licence": corpus.licence,
            "credit": corpus.credit,
            "url": corpus.url,
            "sha256": digest,
            "files": num_wavs,
        },
    )
    if hasattr(os, "sync"):  # the files must be on disk before the folder gets its final name
        os.sync()
    os.replace(folder, out)
    shutil.rmtree(work)
    print(f"{num_wavs} WAVs in {out}")
    return out


def corpus_parser(description: str, corpus: Corpus) -> argparse.ArgumentParser:
    """Return a parser of the arguments OUT, --url and --sha256."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", help="the folder of WAVs to make")
    parser.add_argument("--url", default=corpus.url, help="the archive, or a mirror of it (default: %(default)s)")
    parser.add_argument("--sha256", default=corpus.sha256, help="the archive's SHA-256 (default: %(default)s)")
    return parser
