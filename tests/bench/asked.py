"""Does guidance make a run say what it is asked for, and at what price in variety?

    python tests/bench/asked.py RUN FOLDER [--num 200] [--guidance 1 1.5 2 3 5] [--values]

RUN was trained with labels on the files of FOLDER. For each guidance, the same seeds ask for the same labels. The table
gives the share of sounds whose label is heard as asked, by a judge of the training files; beside it stand the held-out
files, and their round trips through the front-end, by the same judge. What guidance costs shows in three columns:
`heard` is how many values are heard equally often (the perplexity of their shares), `variety` the mean distance between
sounds of the same value, relative to that of the held-out files (of log-mel statistics), and KAD x 1000 the distance
from all held-out files, whose floor is that of training files. Above the table stands what labels are worth: the
held-out loss with and without them.

If the run has learned where files end, `ends` is the share of sounds that are a single one and fade: in the last 50 ms
they are at least 20 dB below their loudest 50 ms, after which the level never rises by 6 dB again (of what is less than
30 dB below it). Held-out files give the share among recordings. `--values` adds a table of each label's values.

For spoken digits, `--pocketsphinx LABEL` adds a recogniser that was trained on other speech; for notes, `--basic-pitch
LABEL` one of pitch, as a MIDI number, whose answer may be a semitone off:

    pip install pocketsphinx
    pip install --no-deps basic-pitch && pip install onnxruntime
"""

import argparse
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiogen.audio.io import resample
from audiogen.data import EncodedCache, Sequences
from audiogen.evaluation.distribution import kad, log_mel_statistics, mean_and_deviation
from audiogen.evaluation.heard import heard_as_asked, judge_of, label_values, tally
from audiogen.evaluation.judges import levels
from audiogen.evaluation.likelihood import EXACT_FRAMES
from audiogen.evaluation.report import labelled_sounds
from audiogen.evaluation.scores import held_out_score
from audiogen.evaluation.sounds import Labelled, generate_sounds
from audiogen.runs.folder import read_source
from audiogen.runs.run import Run, load_run
from audiogen.spec import Unit
from audiogen.utils.files import atomic_write_json

#: For all.py.
SHORT = "{run} {sounds} --num 6 --guidance 1"

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
#: Hz that pocketsphinx expects, and silence before and after a word in seconds.
RATE, PAUSE = 16000, 0.3
#: Hz and samples that basic-pitch expects; its lowest note.
PITCH_RATE, PITCH_SAMPLES, LOWEST_NOTE = 22050, 43844, 21
#: Seconds of a level; dB of what a sound that ends falls by, does not rise by again, and is heard above.
LEVEL_SECONDS, FALL, RISE, AUDIBLE = 0.05, 20.0, 6.0, 30.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num", type=int, default=200, help="sounds for each guidance")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first one")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1, 1.5, 2, 3, 5])
    parser.add_argument("--best-of", type=int, default=1, help="draw each sound so many times, and keep the best")
    parser.add_argument("--pocketsphinx", metavar="LABEL", help="the label that is a spoken digit, 0 to 9")
    parser.add_argument("--basic-pitch", metavar="LABEL", help="the label that is a pitch, as a MIDI number")
    parser.add_argument("--values", action="store_true", help="show each value of each label, too")
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
    show_worth(run)
    judge = judge_of(run, training)
    reference = log_mel_statistics([wav for wav, _ in recordings], run.sample_rate)
    trips = list(round_trips(run, recordings))
    sets: Iterator[tuple[str, list[Labelled]]] = itertools.chain(
        [("held-out files", recordings), ("their round trips", trips)],
        (
            (f"guidance {scale:g}", generate_sounds(run, args.num, args.seed, guidance=scale, best_of=args.best_of))
            for scale in args.guidance
        ),
    )
    labels = list(judge.values)
    header = ["sounds", *(f"{label}, heard" for label in labels), "variety", "KAD x 1000"]
    measures: dict[str, Callable[[Sequence[Labelled]], float]] = {}
    if run.knows_ends:
        measures["ends"] = lambda sounds: sum(ends(wav, run.sample_rate) for wav, _ in sounds) / len(sounds)
    if args.pocketsphinx:
        measures[f"{args.pocketsphinx} by pocketsphinx"] = lambda x: spoken(x, args.pocketsphinx, run.sample_rate)
    if args.basic_pitch:
        measures[f"{args.basic_pitch} by basic-pitch"] = lambda x: pitched(x, args.basic_pitch, run.sample_rate)
    header += measures
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
        row |= {measure: share(sounds) for measure, share in measures.items()}
        cells += [f"{100 * row[measure]:.1f} %" for measure in measures]
        rows.append(row)
        print(f"| {' | '.join([name, *cells])} |", flush=True)
    print("\nKAD in the row of held-out files is that of the training files, the floor.")
    if args.values:
        show_values(rows, labels)
    if args.json:
        atomic_write_json(args.json, rows)


def show_worth(run: Run) -> None:
    """Print the held-out loss with and without the labels of the files."""
    cache = EncodedCache.open(read_source(run.folder), run.frontend)
    held_out, known = Sequences(cache, run.split().held_out).limited(EXACT_FRAMES), run.file_conditions(cache)
    given = [known.of_item(held_out.piece(i)) for i in range(len(held_out))] if known else None
    told, untold = (held_out_score(run.model, held_out, None, values) for values in (given, None))
    unit = Unit(told.unit).per_entry
    print(f"Held-out loss in {unit}: {told.loss:.3f} with labels, {untold.loss:.3f} without them\n")


def show_values(rows: Sequence[dict[str, Any]], labels: Sequence[str]) -> None:
    """Print how often each value is heard as asked, of how many."""
    for label in labels:
        print(f"\n| {label} | {' | '.join(row['sounds'] for row in rows)} |\n|{' --- |' * (len(rows) + 1)}")
        for value in rows[0][label]["values"]:
            found = [row[label]["values"][value] for row in rows]
            cells = [f"{100 * one['right']:.0f} % ({one['n']})" if one["n"] else "-" for one in found]
            print(f"| {value} | {' | '.join(cells)} |")


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


def ends(wav: Tensor, sample_rate: int) -> bool:
    """Return whether a wav (1, N) is one sound that fades: its end is quiet, and nothing begins after its loudest."""
    length = round(LEVEL_SECONDS * sample_rate)
    whole = torch.nn.functional.pad(wav[0], (-wav.shape[1] % length, 0)).view(-1, length)
    levels = 10 * (2 * whole.square().mean(dim=1) + 1e-12).log10()
    after = levels[int(levels.argmax()) :]
    rises = (after - after.cummin(dim=0).values)[after > levels.max() - AUDIBLE]
    return bool(levels.max() - levels[-1] >= FALL and rises.max() < RISE)


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


def pitched(sounds: Sequence[Labelled], label: str, sample_rate: int) -> float:
    """Return the share of sounds in which basic-pitch hears most of the pitch asked for, or a semitone beside it."""
    import onnxruntime

    package = find_spec("basic_pitch")
    if package is None or package.origin is None:
        raise SystemExit("basic-pitch is not installed: pip install --no-deps basic-pitch")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    weights = Path(package.origin).parent / "saved_models" / "icassp_2022" / "nmp.onnx"
    session, right, asked = onnxruntime.InferenceSession(str(weights), options), 0, 0
    for wav, row in sounds:
        if label in row:
            x = resample(wav[0], sample_rate, PITCH_RATE)[:PITCH_SAMPLES]
            x = torch.nn.functional.pad(0.5 * x / x.abs().max().clamp_min(1e-3), (0, PITCH_SAMPLES - len(x)))
            given = {"serving_default_input_2:0": x[None, :, None].numpy()}
            (notes,) = session.run(["StatefulPartitionedCall:1"], given)  # (1, frames, 88), from 0 to 1
            right += abs(LOWEST_NOTE + int(notes[0].sum(axis=0).argmax()) - float(row[label])) <= 1
            asked += 1
    return right / asked if asked else math.nan


if __name__ == "__main__":
    main()
