"""The Free Spoken Digit Dataset as a folder of WAVs: 20 minutes of spoken digits, 8 kHz mono, a 16 MB download.

    python datasets/fsdd.py OUT

Six speakers say each digit 50 times; the files are named DIGIT_SPEAKER_INDEX.wav. By default, only the official
training part is kept (index 5 to 49, 2700 files), so that the official test part stays unseen.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import PurePosixPath

from audiogen.data.corpus import Corpus, corpus_parser, make_corpus
from audiogen.errors import DownloadError
from audiogen.utils.archives import Member
from audiogen.utils.scripts import run_script

# GitHub creates the archive of a commit on request, so its SHA-256 may change. The contents have a fixed hash: git
# identifies a folder by the hash of everything in it, which `git rev-parse COMMIT:recordings` prints.
COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
RECORDINGS_TREE = "d04322e322a9f937f6f4f7c8546693755184df5b"

# First and last index, from the dataset's README ("Usage").
PARTS = {"train": (5, 49), "test": (0, 4), "all": (0, 49)}


def place(name: str) -> str | None:
    """Map free-spoken-digit-dataset-COMMIT/recordings/7_jackson_32.wav to 7_jackson_32.wav."""
    parts = PurePosixPath(name).parts
    return parts[2] if len(parts) == 3 and parts[1] == "recordings" else None


FSDD = Corpus(
    name="Free Spoken Digit Dataset",
    page="https://github.com/Jakobovski/free-spoken-digit-dataset",
    licence="CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/",
    credit="Zohar Jackson and the FSDD contributors",
    url=f"https://github.com/Jakobovski/free-spoken-digit-dataset/archive/{COMMIT}.tar.gz",
    sha256=None,
    place=place,
    max_bytes=128 * 2**20,
    max_files=10_000,
)


def git_tree(members: Iterable[Member]) -> str:
    """Return git's id of a folder of these files: the SHA-1 of their modes, names and SHA-1s."""

    def sha1(kind: str, data: bytes) -> bytes:
        return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).digest()

    tree = b""
    for member in sorted(members, key=lambda member: member.path.name.encode()):
        mode = "100755" if member.executable else "100644"
        tree += f"{mode} {member.path.name}\0".encode() + sha1("blob", member.path.read_bytes())
    return sha1("tree", tree).hex()


def main() -> None:
    parser = corpus_parser(__doc__, FSDD)
    parser.add_argument("--part", choices=PARTS, default="train", help="files to keep (default: %(default)s)")
    parser.add_argument("--tree", default=RECORDINGS_TREE, help="git's id of recordings/ (default: %(default)s)")
    arguments = parser.parse_args()
    first, last = PARTS[arguments.part]

    def check(members: list[Member]) -> None:
        tree = git_tree(members)
        if tree != arguments.tree:
            raise DownloadError(
                f"{arguments.url}: git's id of its recordings is {tree}, not {arguments.tree}, so they "
                "are not those of that commit; try again, or another mirror"
            )
        for member in members:
            index = member.path.stem.rpartition("_")[2]
            if not (index.isdecimal() and first <= int(index) <= last):
                member.path.unlink()

    make_corpus(replace(FSDD, url=arguments.url, sha256=arguments.sha256), arguments.out, check)


if __name__ == "__main__":
    raise SystemExit(run_script(main, stopped="run the same command again to continue"))
