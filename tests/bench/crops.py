"""Random one-second crops from a WAV that is held open, beside soundfile: every PCM and float coding.

    python tests/bench/crops.py [--sample-rate 16000] [--channels 1] [--rounds 20] [--json crops.json]

A minute of noise in each coding, the same random starts for all sides, in turn. `soundfile` opens, seeks and reads, as
a data set of many files does; `held open` keeps its file, seeks and reads; `AudioFile` is this library's, with its
checks and mixing to mono; `read_audio` opens and checks the file each time. The first two give what the file holds,
the last two a tensor that was checked. All must be equal to the bit. One thread; the time is the processor's, so that
other work on the machine counts for nobody.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from audiogen import AudioFile, read_audio

#: For all.py.
SHORT = "--rounds 1"

CODINGS = {
    "PCM_U8": "WAV",
    "PCM_16": "WAV",
    "PCM_24": "WAV",
    "PCM_32": "WAV",
    "FLOAT": "WAV",
    "DOUBLE": "WAV",
    "PCM_24 extensible": "WAVEX",
}
CROPS = 500  # a round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample-rate", type=int, default=16_000)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    args = parser.parse_args()
    rows = {}
    print("| coding | soundfile | held open | AudioFile | read_audio | AudioFile / soundfile | AudioFile / held open |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for name, container in CODINGS.items():
            path = Path(folder, f"{name}.wav")
            noise = np.random.default_rng(0).uniform(-0.5, 0.5, (60 * args.sample_rate, args.channels))
            soundfile.write(path, noise, args.sample_rate, name.split()[0], format=container)
            rates = race(path, args.sample_rate, args.rounds)
            rows[name] = rates
            ratios = [rates["AudioFile"] / rates[peer] for peer in ("soundfile", "held open")]
            print(
                "|",
                name,
                *(f"| {rate:,.0f}" for rate in rates.values()),
                *(f"| {ratio:.1f}" for ratio in ratios),
                "|",
                flush=True,
            )
    if args.json:
        args.json.write_text(
            json.dumps(
                {
                    "crops_per_second": rows,
                    "python": platform.python_version(),
                    "soundfile": soundfile.__version__,
                    **vars(args),
                },
                indent=2,
                default=str,
            )
        )


def race(path: Path, length: int, rounds: int) -> dict[str, float]:
    """Crops a second by each side: the median of the rounds."""

    def opened(start: int) -> np.ndarray:
        with soundfile.SoundFile(path) as file:
            return held_open(start, file)

    def held_open(start: int, file: soundfile.SoundFile) -> np.ndarray:
        file.seek(start)
        return file.read(length, dtype="float32", always_2d=True)

    with soundfile.SoundFile(path) as theirs, AudioFile(path) as ours:
        sides = {
            "soundfile": opened,
            "held open": lambda start: held_open(start, theirs),
            "AudioFile": lambda start: ours.read(start, length),
            "read_audio": lambda start: read_audio(path, None, start, length),
        }
        times = {name: [] for name in sides}
        for r in range(rounds):
            starts = np.random.default_rng(r).integers(0, ours.info.num_samples - length, CROPS).tolist()
            for name, side in sides.items():
                began = time.process_time()
                for start in starts:
                    side(start)
                times[name].append(time.process_time() - began)
            wavs = [np.asarray(side(starts[0])) for side in sides.values()]
            if wavs[0].shape[1] == 1:
                assert all(np.array_equal(wav.ravel(), wavs[0].ravel()) for wav in wavs)
    return {name: CROPS / statistics.median(seconds) for name, seconds in times.items()}


if __name__ == "__main__":
    main()
