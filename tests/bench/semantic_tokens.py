"""What do semantic tokens capture? Linear probes of digit and speaker, and ABX of words across speakers.

    python tests/bench/semantic_tokens.py FSDD [SPEECH] [--frontend semantic] [--held-out george,theo] [--triples 4000]

FSDD is the Free Spoken Digit Dataset (DIGIT_SPEAKER_TAKE.wav). SPEECH has recordings SPEAKER_NAME.flac, of which those
whose speaker the shipped weights have not heard are used: sha256(SPEAKER) % 10 == 0.

The table shows codes of a front-end beside codes by k-means (100) of MFCCs (13, their deltas and second deltas; the
mean over the file removed) and of log-mel frames (40), all at 50 codes a second. k-means and probes learn from takes
>= 10,
the figures are of takes < 10, except that all takes of a held-out voice are judged.

- digit, held-out voice: a linear probe (logistic regression on how often each code occurs in each third of a clip)
  learns digits from the other voices. Chance is 10 %.
- digit, known voices: it learns from other takes of the same voices.
- speaker: the same probe, of the speaker. Lower is better; chance is 1 / speakers.
- ABX: A and X are one word by two speakers, B another word by A's speaker. The error is how often X is nearer to B than
  to A (ties count half) by dynamic time warping; codes are as far apart as their codewords. Chance is 50 %.

In SPEECH, words are what pocketsphinx hears (it has its own weights), at least WORD seconds long and said by two
speakers or more; the speaker is probed on two seconds, learned from other halves of recordings.
"""

import argparse
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import librosa
import numpy as np
import torch
from numba import njit
from sklearn.linear_model import LogisticRegression

from audiogen import load_frontend
from audiogen.audio.io import read_audio, resample
from audiogen.frontends.neural.crops import generator_for
from audiogen.frontends.neural.kmeans import kmeans, nearest

#: For all.py.
SHORT = "{digits} --triples 400"

NUM_CODES, RATE, HOP = 100, 50, 0.02
WORD = 0.2  # seconds
Codes = list[np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fsdd", type=Path)
    parser.add_argument("speech", type=Path, nargs="?")
    parser.add_argument("--frontend", action="append", help="a name, or the folder of a run; may be given repeatedly")
    parser.add_argument("--held-out", default="george,theo", help="voices of digits that the encoder has not heard")
    parser.add_argument("--triples", type=int, default=4000, help="of each ABX error")
    parser.add_argument("--words", type=Path, help="file to keep the words of SPEECH in")
    args = parser.parse_args()
    digits = Digits(args.fsdd, args.held_out.split(","))
    speech = Speech(args.speech, args.words) if args.speech else None
    ways: dict[str, Callable] = {"mel k-means": by_kmeans(mel_features), "MFCC k-means": by_kmeans(mfcc_features)}
    for name in args.frontend or ["semantic"]:
        ways[name] = by_frontend(name)
    columns = digits.columns + (speech.columns if speech else [])
    print("| codes | codes used | bit/s | " + " | ".join(columns) + " |")
    print("| --- " * (3 + len(columns)) + "|")
    for name, encode in ways.items():
        figures = digits.judge(encode, args.triples) + (speech.judge(encode, args.triples) if speech else [])
        print(f"| {name} | " + " | ".join(figures) + " |", flush=True)


# ---- ways to encode: (wavs at 16 kHz to learn from, wavs) -> codes of each, distances of codes (V, V)


def by_frontend(name: str):
    """Encode with a front-end whose weights are there."""

    def encode(_, wavs: list[np.ndarray]) -> tuple[Codes, np.ndarray]:
        frontend = load_frontend(name)
        rate = frontend.spec.sample_rate
        pieces = [resample(torch.from_numpy(wav)[None], 16000, rate)[None] for wav in wavs]
        codes = [frontend.encode(piece)[0, 0].numpy() for piece in pieces]
        return codes, distances(frontend.codewords)

    return encode


def by_kmeans(features):
    """Cluster features of the wavs to learn from, and encode by the nearest centre."""

    def encode(learned: list[np.ndarray], wavs: list[np.ndarray]) -> tuple[Codes, np.ndarray]:
        points = torch.from_numpy(np.concatenate([features(wav) for wav in learned])).float()
        mean, std = points.mean(0), points.std(0)
        centres = kmeans((points - mean) / std, NUM_CODES, generator_for(0))
        codes = [nearest((torch.from_numpy(features(wav)).float() - mean) / std, centres).numpy() for wav in wavs]
        return codes, distances(centres)

    return encode


def distances(codewords: torch.Tensor) -> np.ndarray:
    """Return the distance of each pair of codewords: (V, d) -> (V, V)."""
    return torch.cdist(codewords, codewords).double().numpy()


def mel_features(wav: np.ndarray, bands: int = 40) -> np.ndarray:
    """Log-mel frames up to 4 kHz: (N,) -> (T, bands)."""
    power = librosa.feature.melspectrogram(
        y=wav, sr=16000, n_fft=512, win_length=400, hop_length=320, n_mels=bands, fmax=4000
    )
    return np.log(power + 1e-5).T[: -(-len(wav) // 320)]


def mfcc_features(wav: np.ndarray) -> np.ndarray:
    """13 MFCCs up to 4 kHz without their mean over the file, with deltas: (N,) -> (T, 39)."""
    mfcc = librosa.feature.mfcc(
        y=wav, sr=16000, n_mfcc=13, n_fft=512, win_length=400, hop_length=160, n_mels=40, fmax=4000
    )
    mfcc = mfcc - mfcc.mean(1, keepdims=True)
    deltas = [librosa.feature.delta(mfcc, width=5, order=n, mode="nearest") for n in (1, 2)]
    frames = np.concatenate([mfcc, *deltas]).T
    pairs = frames[: len(frames) // 2 * 2].reshape(-1, 2, 39).mean(1)
    count = -(-len(wav) // 320)
    return np.concatenate([pairs, np.repeat(pairs[-1:], max(0, count - len(pairs)), 0)])[:count]


# ---- spoken digits


class Digits:
    """The spoken digits: clips, their digit and speaker."""

    columns = ["digit, held-out voice", "digit, known voices", "speaker", "ABX error", "ABX error, held-out voices"]

    def __init__(self, folder: Path, held_out: list[str]):
        names = sorted(folder.rglob("*_*_*.wav"))
        parts = [path.stem.split("_") for path in names]
        self.digit = np.array([int(part[0]) for part in parts])
        self.speaker = np.array([part[1] for part in parts])
        self.new = np.array([int(part[2]) < 10 for part in parts])
        self.held_out = held_out
        self.wavs = [read_audio(path, 16000)[0].numpy() for path in names]

    def judge(self, encode, triples: int) -> list[str]:
        """Return the figures of one way to encode."""
        voices = np.isin(self.speaker, self.held_out)
        learned = [wav for wav, skip in zip(self.wavs, voices | self.new, strict=True) if not skip]
        codes, apart = encode(learned, self.wavs)
        x = np.stack([thirds(one) for one in codes])
        unheard = probe(x[~voices & ~self.new], self.digit[~voices & ~self.new], x[voices], self.digit[voices])
        known = probe(x[~self.new], self.digit[~self.new], x[self.new], self.digit[self.new])
        speaker = probe(x[~self.new], self.speaker[~self.new], x[self.new], self.speaker[self.new])
        some = [i for i in range(len(codes)) if self.new[i]]
        items = [(self.digit[i], self.speaker[i], codes[i]) for i in some]
        error, unheard_error = abx(items, apart, triples), abx(items, apart, triples, set(self.held_out))
        seconds = sum(map(len, self.wavs)) / 16000
        used = len(np.unique(np.concatenate(codes)))
        return [
            str(used),
            f"{bits(codes) / seconds:.0f}",
            *(f"{100 * share:.1f} %" for share in (unheard, known, speaker, error, unheard_error)),
        ]


# ---- speech


class Speech:
    """Recordings of speakers that the shipped weights have not heard, and the words in them."""

    columns = ["speech: speaker", "speech: ABX error"]

    def __init__(self, folder: Path, kept: Path | None):
        paths = [path for path in sorted(folder.rglob("*.flac")) if is_held_out(speaker_of(path))]
        self.speakers = [speaker_of(path) for path in paths]
        self.wavs = [read_audio(path, 16000)[0].numpy() for path in paths]
        if kept and kept.exists():
            self.words = json.loads(kept.read_text())
        else:
            self.words = [
                words_of(wav) if path.stem.startswith("ls") else [] for path, wav in zip(paths, self.wavs, strict=True)
            ]
        if kept:
            kept.write_text(json.dumps(self.words))
        speakers = defaultdict(set)
        for speaker, words in zip(self.speakers, self.words, strict=True):
            for word, *_ in words:
                speakers[word].add(speaker)
        self.common = {word for word, by in speakers.items() if len(by) > 1}

    def judge(self, encode, triples: int) -> list[str]:
        """Return the figures of one way to encode."""
        codes, apart = encode(self.wavs, self.wavs)
        items = []
        for speaker, words, one in zip(self.speakers, self.words, codes, strict=True):
            for word, begin, end in words:
                piece = one[round(begin / HOP) : round(end / HOP)]
                if word in self.common and len(piece) >= WORD / HOP:
                    items.append((word, speaker, piece))
        halves = [[], []]
        for speaker, one in zip(self.speakers, codes, strict=True):
            for piece in range(0, len(one) - 100 + 1, 100):
                halves[piece >= len(one) // 2].append((histogram(one[piece : piece + 100]), speaker))
        (x, y), (x_new, y_new) = (tuple(map(np.stack, zip(*half, strict=True))) for half in halves)
        return [f"{100 * probe(x, y, x_new, y_new):.1f} %", f"{100 * abx(items, apart, triples):.1f} %"]


def speaker_of(path: Path) -> str:
    return path.stem.split("_")[0]


def is_held_out(speaker: str) -> bool:
    return int(hashlib.sha256(speaker.encode()).hexdigest(), 16) % 10 == 0


def words_of(wav: np.ndarray) -> list[tuple[str, float, float]]:
    """Return (word, begin, end) in seconds, as pocketsphinx hears them."""
    from pocketsphinx import Decoder

    decoder = Decoder(samprate=16000)
    decoder.start_utt()
    decoder.process_raw((32767 * wav.clip(-1, 1)).astype(np.int16).tobytes(), full_utt=True)
    decoder.end_utt()
    return [
        (one.word.split("(")[0], one.start_frame / 100, (one.end_frame + 1) / 100)
        for one in decoder.seg()
        if one.word[0].isalpha()
    ]


# ---- figures


def histogram(codes: np.ndarray) -> np.ndarray:
    """How often each code occurs: (T,) -> (V,)."""
    return np.bincount(codes, minlength=1024)[:1024] / max(1, len(codes))


def thirds(codes: np.ndarray) -> np.ndarray:
    """How often each code occurs in each third: (T,) -> (3 V,)."""
    return np.concatenate([histogram(part) for part in np.array_split(codes, 3)])


def probe(x: np.ndarray, y: np.ndarray, x_new: np.ndarray, y_new: np.ndarray) -> float:
    """Return the share of x_new that a linear probe, learned from x and y, takes for y_new."""
    used = x.any(0)
    model = LogisticRegression(C=10.0, max_iter=300).fit(x[:, used], y)
    return float((model.predict(x_new[:, used]) == y_new).mean())


def bits(codes: Codes) -> float:
    """Return the bits of all codes, where a code costs its entropy and repetitions are removed."""
    kept = np.concatenate([one[np.r_[True, one[1:] != one[:-1]]] for one in codes])
    share = np.bincount(kept) / len(kept)
    return float(-len(kept) * (share * np.log2(share.clip(1e-12))).sum())


def abx(items: list[tuple], apart: np.ndarray, triples: int, voices: set | None = None) -> float:
    """Return the ABX error of (word, speaker, codes) across speakers; of `voices`, if given, A or X has one.

    `apart` (V, V) holds the distances of codes.
    """
    rng = np.random.default_rng(0)
    by = defaultdict(list)
    for i, (word, speaker, _) in enumerate(items):
        by[word, speaker].append(i)
    words, own = defaultdict(list), defaultdict(list)
    for word, speaker in by:
        words[word].append(speaker)
        own[speaker].append(word)
    errors: list[float] = []
    keys = sorted(by, key=str)
    while len(errors) < triples:
        word, speaker = keys[rng.integers(len(keys))]
        others = [one for one in words[word] if one != speaker]
        different = [one for one in own[speaker] if one != word]
        if not others or not different:
            continue
        other = others[rng.integers(len(others))]
        if voices and not voices & {speaker, other}:
            continue
        wrong = different[rng.integers(len(different))]
        a, x, b = (
            items[some[rng.integers(len(some))]][2] for some in (by[word, speaker], by[word, other], by[wrong, speaker])
        )
        to_a, to_b = warped_distance(a, x, apart), warped_distance(b, x, apart)
        errors.append(0.5 if to_a == to_b else float(to_a > to_b))
    return float(np.mean(errors))


@njit(cache=True)
def warped_distance(a: np.ndarray, b: np.ndarray, apart: np.ndarray) -> float:
    """Return the mean distance of codes on the best path of dynamic time warping."""
    cost = np.full((len(a) + 1, len(b) + 1), np.inf)
    steps = np.zeros((len(a) + 1, len(b) + 1))
    cost[0, 0] = 0
    for i in range(len(a)):
        for j in range(len(b)):
            best, from_i, from_j = cost[i, j], i, j
            if cost[i, j + 1] < best:
                best, from_i, from_j = cost[i, j + 1], i, j + 1
            if cost[i + 1, j] < best:
                best, from_i, from_j = cost[i + 1, j], i + 1, j
            cost[i + 1, j + 1] = best + apart[a[i], b[j]]
            steps[i + 1, j + 1] = steps[from_i, from_j] + 1
    return cost[-1, -1] / steps[-1, -1]


if __name__ == "__main__":
    main()
