"""Does guidance make a run say what it is asked for, and at what price in variety?

    python tests/bench/asked.py RUN FOLDER [--num 200] [--guidance 1 1.5 2 3 5] [--pocketsphinx digit]

RUN was trained with labels on the files of FOLDER. For each guidance, the same seeds ask for the same labels. The table
gives the share of sounds whose label is heard as asked, by a judge of the training files; beside it stand the held-out
files, and their round trips through the front-end, by the same judge. What guidance costs shows in three columns:
`heard` is how many values are heard equally often (the perplexity of their shares), `variety` the mean distance between
sounds of the same value, relative to that of the held-out files (of log-mel statistics), and KAD x 1000 the distance
from all held-out files, whose floor is that of training files.

For spoken digits, `--pocketsphinx LABEL` adds a recogniser that was trained on other speech:

    pip install pocketsphinx
"""

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from audiogen.audio.io import resample
from audiogen.evaluation.distribution import kad, log_mel_statistics, mean_and_deviation
from audiogen.evaluation.heard import Labelled, generate_labelled, heard_as_asked, judge_of, label_values, tally
from audiogen.evaluation.judges import levels
from audiogen.evaluation.report import labelled_sounds
from audiogen.runs.run import Run, load_run
from audiogen.utils.files import atomic_write_json

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
#: Hz that pocketsphinx expects, and silence before and after a word in seconds.
RATE, PAUSE = 16000, 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num", type=int, default=200, help="sounds for each guidance")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first one")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1, 1.5, 2, 3, 5])
    parser.add_argument("--pocketsphinx", metavar="LABEL", help="the label that is a spoken digit, 0 to 9")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    run = load_run(args.run)
    if not label_values(run):
        parser.error(f"{args.run} was trained without labels")
    train, held_out = (
        labelled_sounds(args.folder, parts, run.sample_rate, run.labels)
        for parts in (run.split().train, run.split().held_out)
    )
    training, recordings = list(train), list(held_out)
    judge = judge_of(run, training)
    reference = log_mel_statistics([wav for wav, _ in recordings], run.sample_rate)
    trips = list(round_trips(run, recordings))
    sets: Iterator[tuple[str, list[Labelled]]] = itertools.chain(
        [("held-out files", recordings), ("their round trips", trips)],
        (
            (f"guidance {scale:g}", list(generate_labelled(run, args.num, args.seed, guidance=scale)))
            for scale in args.guidance
        ),
    )
    labels = list(judge.values)
    header = ["sounds", *(f"{label}, heard" for label in labels), "variety", "KAD x 1000"]
    header += [f"{args.pocketsphinx} by pocketsphinx"] if args.pocketsphinx else []
    print(f"| {' | '.join(header)} |\n|{' --- |' * len(header)}")
    own, rows = variety(recordings, labels[0], run.sample_rate), []
    floor = kad(reference, log_mel_statistics([wav for wav, _ in training], run.sample_rate))
    for name, sounds in sets:
        heard = {label: found["generated"] for label, found in heard_as_asked(judge, run, sounds, []).items()}
        row = {"sounds": name, **heard, "variety": variety(sounds, labels[0], run.sample_rate) / own}
        distance = (
            floor
            if sounds is recordings
            else kad(reference, log_mel_statistics([x for x, _ in sounds], run.sample_rate))
        )
        row["kad"] = [1000 * x for x in (distance.value, distance.low, distance.high)]
        cells = [f"{100 * one['right']:.1f} % ({one['n']}), {one['spread']:.1f}" for one in heard.values()]
        cells += [f"{row['variety']:.2f}", "{:.0f} ({:.0f} to {:.0f})".format(*row["kad"])]
        if args.pocketsphinx:
            row["pocketsphinx"] = spoken(sounds, args.pocketsphinx, run.sample_rate)
            cells.append(f"{100 * row['pocketsphinx']:.1f} %")
        rows.append(row)
        print(f"| {' | '.join([name, *cells])} |", flush=True)
    print("\nKAD in the row of held-out files is that of the training files, the floor.")
    if args.json:
        atomic_write_json(args.json, rows)


@torch.inference_mode()
def round_trips(run: Run, sounds: Sequence[Labelled]) -> Iterator[Labelled]:
    for wav, row in sounds:
        yield run.frontend.decode(run.frontend.encode(wav[None]))[0, :, : wav.shape[1]], row


def variety(sounds: Sequence[Labelled], label: str, sample_rate: int) -> float:
    """Mean distance between the log-mel statistics of two sounds of the same value."""
    values: dict[str, list[Tensor]] = {}
    for wav, row in sounds:
        if label in row:
            values.setdefault(row[label], []).append(mean_and_deviation(levels(wav, sample_rate)[None])[0])
    distances = [torch.pdist(torch.stack(several)) for several in values.values() if len(several) > 1]
    return float(torch.cat(distances).mean()) if distances else math.nan


def spoken(sounds: Sequence[Labelled], label: str, sample_rate: int) -> float:
    """Share of sounds in which pocketsphinx recognises the digit asked for, out of the ten."""
    from pocketsphinx import Decoder

    decoder = Decoder(samprate=RATE, lm=None, loglevel="FATAL")
    decoder.add_jsgf_string("digits", f"#JSGF V1.0; grammar digits; public <digit> = {' | '.join(WORDS)};")
    decoder.activate_search("digits")
    pairs = []
    for wav, row in sounds:
        pause = torch.zeros(round(PAUSE * RATE))
        loud = resample(wav[0], sample_rate, RATE)
        loud = torch.cat([pause, 0.5 * loud / loud.abs().max().clamp_min(1e-3), pause])
        decoder.start_utt()
        decoder.process_raw((loud * 32767).short().numpy().tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        word = found.hypstr.split()[0] if found is not None and found.hypstr else ""
        pairs.append((row.get(label, ""), str(WORDS.index(word)) if word in WORDS else "none"))
    return tally(pairs, [str(digit) for digit in range(10)])["right"]


if __name__ == "__main__":
    main()
