"""Speech Commands 0.02 as a folder of WAVs: 100,000 spoken words of a second, 16 kHz mono, a 2.4 GB download.

    python datasets/speech_commands.py OUT

One folder per word. The long recordings of background noise are left out; the official lists of held-out files are
included (validation_list.txt, testing_list.txt).
"""

from dataclasses import replace

from audiogen.data.corpus import Corpus, corpus_parser, make_corpus
from audiogen.utils.scripts import run_script


def place(name: str) -> str | None:
    """Map ./yes/004ae714_nohash_0.wav to yes/004ae714_nohash_0.wav, and background noise to None."""
    return None if name.startswith("_background_noise_/") else name


VERSION_2 = Corpus(
    name="Speech Commands 0.02",
    page="https://arxiv.org/abs/1804.03209",
    licence="CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
    credit="Pete Warden, Google",
    # Both as in torchaudio 2.11, torchaudio/datasets/speechcommands.py, _CHECKSUMS.
    url="http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
    sha256="af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
    place=place,
    max_bytes=8 * 2**30,
    max_files=200_000,
)


def main() -> None:
    arguments = corpus_parser(__doc__, VERSION_2).parse_args()
    make_corpus(replace(VERSION_2, url=arguments.url, sha256=arguments.sha256), arguments.out)


if __name__ == "__main__":
    raise SystemExit(run_script(main, stopped="run the same command again to continue"))
