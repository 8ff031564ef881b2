"""What the scripts in datasets/ share: from an archive on the web to a folder of WAVs, which is whole or not there."""

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

SOURCE_FILE = "SOURCE.json"  # in the finished folder: where it is from, and under which licence


@dataclass(frozen=True)
class Corpus:
    """An archive of recordings.

    Attributes:
        name: for people.
        page: where it is described.
        licence: name and address.
        credit: whom to name.
        url: of the archive.
        sha256: of the archive, as published; None where it is not.
        place: from a file's name in the archive to its name in the folder, or None to leave it out.
        max_bytes: bound on the archive, and on what it holds.
        max_files: bound on its entries.
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
    """Downloads, checks and unpacks a corpus; returns its folder, which is there only once it is whole.

    Until then everything lies in a folder beside it, OUT.part, from which a later call goes on. A folder that was
    made already is left as it is.

    Args:
        corpus: what to fetch.
        out: the folder to make; it may be there if it is empty.
        check: is given the unpacked files; raises if something is wrong with them, and may remove some.

    Raises:
        DataError: `out` holds something else.
        DownloadError: see `fetch` and `unpack`.
    """
    out = Path(out).resolve()
    if (out / SOURCE_FILE).exists():
        print(f"{out}: is there already; delete it to make it anew")
        return out
    if out.exists() and not (out.is_dir() and next(out.iterdir(), None) is None):
        raise DataError(f"{out}: is there, and not empty: name another folder")
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
        if corpus.sha256 is None:  # else it is the right archive, and another download would bring the same
            archive.unlink()
        raise
    num_wavs = sum(1 for _ in folder.rglob("*.wav"))
    if not num_wavs:
        raise DataError(f"{corpus.url}: holds no recordings in the places of {corpus.name}: check the address")
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
    if hasattr(os, "sync"):  # the files must be on the disk before the name says that they are whole
        os.sync()
    os.replace(folder, out)
    shutil.rmtree(work)
    print(f"{num_wavs} WAVs in {out}")
    return out


def corpus_parser(description: str, corpus: Corpus) -> argparse.ArgumentParser:
    """OUT, --url and --sha256."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", help="the folder of WAVs to make")
    parser.add_argument("--url", default=corpus.url, help="the archive, or a mirror of it (default: %(default)s)")
    parser.add_argument("--sha256", default=corpus.sha256, help="the archive's SHA-256 (default: %(default)s)")
    return parser
