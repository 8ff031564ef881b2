"""LJ Speech 1.1 as a folder of WAVs: 24 hours of one reader, 22.05 kHz mono, a 2.6 GB download.

    python datasets/ljspeech.py OUT

13,100 clips of 1 to 10 seconds, and their transcripts in metadata.csv.
"""

from dataclasses import replace
from pathlib import PurePosixPath

from audiogen.data.corpus import Corpus, corpus_parser, make_corpus
from audiogen.utils.scripts import run_script


def place(name: str) -> str | None:
    """Map LJSpeech-1.1/wavs/LJ001-0001.wav to LJ001-0001.wav."""
    path = PurePosixPath(name)
    return path.name if path.suffix == ".wav" or path.name in ("metadata.csv", "README") else None


LJSPEECH = Corpus(
    name="LJ Speech 1.1",
    page="https://keithito.com/LJ-Speech-Dataset/",
    licence="public domain",
    credit="read by Linda Johnson for LibriVox, aligned by Keith Ito",
    # Both as in torchaudio 2.11, torchaudio/datasets/ljspeech.py, _RELEASE_CONFIGS.
    url="https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2",
    sha256="be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5",
    place=place,
    max_bytes=8 * 2**30,
    max_files=20_000,
)


def main() -> None:
    arguments = corpus_parser(__doc__, LJSPEECH).parse_args()
    make_corpus(replace(LJSPEECH, url=arguments.url, sha256=arguments.sha256), arguments.out)


if __name__ == "__main__":
    raise SystemExit(run_script(main, stopped="run the same command again to continue"))
