"""Does a run continue speech in the prompt's voice, and for how long is it speech?

    python tests/bench/continuations.py FOLDER RUN [RUN ...] [--num 100] [--prompt-seconds 3] [--seconds 3]

FOLDER holds speech SPEAKER_NAME.wav or .flac by at least ten speakers that the runs were not trained on, in files of at
least prompt and continuation together. Runs may have stages or not: one with `--stages semantic,mel` beside one without
shows what the semantic stage is worth. Prompts are taken evenly from the speakers. The table shows the recordings
themselves, their round trips through the run's front-end, and the continuations of each run:

- voice: cosine similarity (Resemblyzer) of the continuation and the prompt, and of the recording's own continuation.
- speaker: how often the speaker of the prompt is the nearest one; speakers are known by their other files, or by the
  rest of the file if there is only one.
- words: how many words a second pocketsphinx hears in the continuation.
- KAD x 1000 of the continuations to the recordings' own, with its 95 % interval; the row of recordings shows the floor,
  the prompts.
- level by half seconds: dB relative to the recordings' own, to see when speech breaks off or hums.

    pip install resemblyzer pocketsphinx
"""

import argparse
import collections
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from audiogen.audio.io import read_audio, resample
from audiogen.data import scan
from audiogen.evaluation.distribution import kad, log_mel_statistics
from audiogen.runs.run import Run, load_run

#: For all.py.
SHORT = "{speech} {run} --num 3"
NEEDS = ("resemblyzer", "pocketsphinx")

RATE = 16000  # Hz that Resemblyzer and pocketsphinx expect
STEPS = 4  # prompts begin every so many parts of prompt and continuation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--num", type=int, default=100)
    parser.add_argument("--prompt-seconds", type=float, default=3.0)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--guidance", type=float, nargs="+", help="default: the run's own")
    args = parser.parse_args()
    torch.set_num_threads(1)
    takes = prompts(args.folder, args.num, args.prompt_seconds, args.seconds)
    listeners = Listeners(args.folder, [speaker for speaker, _, _ in takes])
    print(f"{len(takes)} prompts of {len(set(speaker for speaker, _, _ in takes))} speakers")
    print("| | voice | speaker | words a second | KAD x 1000 | level by half seconds | times real time |")
    print("|" + " --- |" * 7)
    whole = [wav for _, wav, _ in takes]
    show("recordings", takes, whole, listeners, None, 0.0)
    for folder in args.runs:
        run = load_run(folder)
        show(f"{folder.name}, round trips", takes, [trip(run, wav) for wav in whole], listeners, whole, 0.0)
        for scale in args.guidance or [None]:
            made, took = continued(run, takes, args.seconds, scale)
            name = f"{folder.name}, continuations" + (f", guidance {scale:g}" if scale is not None else "")
            show(name, takes, made, listeners, whole, len(takes) * args.seconds / took)


Take = tuple[str, Tensor, int]  # speaker, wav (1, N) at RATE of prompt and continuation, samples of the prompt


def prompts(folder: Path, num: int, prompt_seconds: float, seconds: float) -> list[Take]:
    """Take prompts with what follows, evenly from speakers."""
    length, found = round((prompt_seconds + seconds) * RATE), collections.defaultdict(list)
    for file in scan(folder).files:
        wav = read_audio(folder / file.path, RATE)
        for begin in range(0, wav.shape[1] - length + 1, length // STEPS):
            found[Path(file.path).stem.split("_")[0]].append(wav[:, begin : begin + length])
    takes, turn = [], 0
    while len(takes) < num and turn < max(map(len, found.values())):
        takes += [(name, wavs[turn], round(prompt_seconds * RATE)) for name, wavs in found.items() if turn < len(wavs)]
        turn += 1
    return takes[:num]


class Listeners:
    """Resemblyzer and pocketsphinx, and how the speakers sound."""

    def __init__(self, folder: Path, speakers: Sequence[str]):
        from pocketsphinx import Decoder
        from resemblyzer import VoiceEncoder

        self.encoder, self.decoder = VoiceEncoder("cpu", verbose=False), Decoder(samprate=RATE)
        self.wavs, self._known = collections.defaultdict(list), {}
        for file in scan(folder).files:
            name = Path(file.path).stem.split("_")[0]
            if name in speakers:
                self.wavs[name].append(read_audio(folder / file.path, RATE))

    def voice(self, wav: Tensor) -> np.ndarray:
        return self.encoder.embed_utterance(wav[0].numpy())

    def speaker(self, voice: np.ndarray, take: Take) -> str:
        """Return the nearest speaker; that of the prompt is known without the take."""
        best = {}
        for name, wavs in self.wavs.items():
            others = [self._embedded(name, i) for i, wav in enumerate(wavs) if not _contains(wav, take[1])]
            if name == take[0] and not others:  # the rest of the only file
                rest = next(wav for wav in wavs if _contains(wav, take[1]))
                others = [self.voice(_without(rest, take[1]))]
            best[name] = max(float(voice @ other) for other in others)
        return max(best, key=lambda name: best[name])

    def _embedded(self, name: str, i: int) -> np.ndarray:
        key = name, i
        if key not in self._known:
            self._known[key] = self.voice(self.wavs[name][i])
        return self._known[key]

    def words(self, wav: Tensor) -> float:
        """Return words a second."""
        samples = (wav[0].clamp(-1, 1) * 32767).short().numpy().tobytes()
        self.decoder.start_utt()
        self.decoder.process_raw(samples, full_utt=True)
        self.decoder.end_utt()
        found = [segment.word for segment in self.decoder.seg() if not segment.word.startswith(("<", "["))]
        return len(found) * RATE / wav.shape[1]


def _place(wav: Tensor, part: Tensor) -> int:
    """Return where a part of a recording begins, or -1."""
    step = part.shape[1] // STEPS
    return next(
        (
            b
            for b in range(0, wav.shape[1] - part.shape[1] + 1, step)
            if torch.equal(wav[:, b : b + part.shape[1]], part)
        ),
        -1,
    )


def _contains(wav: Tensor, part: Tensor) -> bool:
    return _place(wav, part) >= 0


def _without(wav: Tensor, part: Tensor) -> Tensor:
    begin = _place(wav, part)
    rest = torch.cat([wav[:, :begin], wav[:, begin + part.shape[1] :]], dim=1)
    return rest if rest.shape[1] > RATE else part[:, : part.shape[1] // 2]


def trip(run: Run, wav: Tensor) -> Tensor:
    rate, own = run.sample_rate, resample(wav, RATE, run.sample_rate)
    back = run.frontend.decode(run.frontend.encode(own[None]))[0, :, : own.shape[1]]
    return resample(back, rate, RATE)[:, : wav.shape[1]]


def continued(run: Run, takes: Sequence[Take], seconds: float, guidance: float | None) -> tuple[list[Tensor], float]:
    """Continue each prompt; return prompt and continuation at RATE, and the seconds of processor time."""
    made, began = [], time.process_time()
    for seed, (_, wav, length) in enumerate(takes):
        prompt = resample(wav[:, :length], RATE, run.sample_rate)
        sound = run.generate(seconds=seconds, seed=seed, prompt=prompt, guidance=guidance)[0]
        own = resample(sound, run.sample_rate, RATE).mean(0, keepdim=True)
        made.append(torch.nn.functional.pad(own, (0, max(0, wav.shape[1] - own.shape[1])))[:, : wav.shape[1]])
    return made, time.process_time() - began


def show(
    name: str,
    takes: Sequence[Take],
    wavs: Sequence[Tensor],
    ears: Listeners,
    truth: Sequence[Tensor] | None,
    speed: float,
) -> None:
    """Print a row of the table."""
    voices, right, words = [], [], []
    after = [wav[:, length:] for wav, (_, _, length) in zip(wavs, takes, strict=True)]
    for wav, take in zip(after, takes, strict=True):
        prompt, voice = ears.voice(take[1][:, : take[2]]), ears.voice(wav)
        voices.append(float(prompt @ voice))
        right.append(ears.speaker(voice, take) == take[0])
        words.append(ears.words(wav))
    own = [wav[:, length:] for _, wav, length in takes]
    near = log_mel_statistics(own, RATE)
    given = [wav[:, :length] for _, wav, length in takes] if truth is None else after
    distance = kad(near, log_mel_statistics(given, RATE))
    half = RATE // 2
    levels = [
        10
        * np.log10(
            sum(float(x[:, b : b + half].square().mean()) for x in after)
            / sum(float(x[:, b : b + half].square().mean()) for x in own)
        )
        for b in range(0, own[0].shape[1] - half + 1, half)
    ]
    cells = [
        f"{np.mean(voices):.2f}",
        f"{100 * np.mean(right):.0f} %",
        f"{np.mean(words):.2f}",
        "{:.0f} ({:.0f} to {:.0f})".format(*(1000 * x for x in (distance.value, distance.low, distance.high))),
        " ".join(f"{x:+.0f}" for x in levels),
        f"{speed:.1f}" if speed else "",
    ]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
