"""Memory does not grow with the folder: scan, encode, crops, over folders of more and more hours.

    python tests/bench/memory_of_a_folder.py [--hours 1 20] [--sample-rate 8000] [--file-seconds 30] [--limit 200]

Each folder of made-up noise is gone through by a process of its own, which watches its anonymous memory (RssAnon of
/proc/self/status, so Linux only): what it holds for itself, not what is mapped from files. The growth from the first
folder to the last, in MiB, must stay below the limit.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
import wave
from pathlib import Path

import numpy as np

#: For all.py.
SHORT = "--hours 0.05 0.5"


def anonymous() -> float:
    """MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("/proc/self/status has no RssAnon: this measurement needs Linux")


class Watch(threading.Thread):
    """The highest anonymous memory so far, asked for 200 times a second."""

    def __init__(self):
        super().__init__(daemon=True)
        self.highest = anonymous()
        self.start()

    def run(self) -> None:
        while True:
            self.highest = max(self.highest, anonymous())
            time.sleep(0.005)


def measure(folder: Path) -> dict[str, float]:
    """Goes through the folder as training does -> seconds and highest memory (MiB) of each stage."""
    from audiogen.data import Crops, EncodedCache, Sequences, scan, split, training_wavs
    from audiogen.frontends import load_frontend

    watch, figures = Watch(), {"imports_mib": anonymous()}

    def stage(name: str, began: float) -> float:
        figures[f"{name}_mib"], figures[f"{name}_s"] = watch.highest, time.perf_counter() - began
        return time.perf_counter()

    began = time.perf_counter()
    index = scan(folder, progress=False)
    began = stage("scan", began)
    sides = split(index)
    frontend = load_frontend("mulaw", sample_rate=index.files[0].sample_rate)
    for wav in training_wavs(index, sides.train, frontend.spec.sample_rate):  # what fitting would read
        float(wav.sum())
    began = stage("fit", began)
    EncodedCache.build(index, frontend, folder.parent / "cache", progress=False)
    began = stage("encode", began)
    cache = EncodedCache.open(folder.parent / "cache", frontend, index)
    crops = Crops(cache, sides.train, num_frames=8192, batch_size=16)
    for batch, _ in crops.loader(range(500)):
        int(batch.x.sum())
    began = stage("crops", began)
    for codes in Sequences(cache, sides.held_out):
        int(codes[:, :8192].sum())
    stage("held_out", began)
    return {**figures, "highest_mib": watch.highest, "gib_of_codes": cache.data.nbytes / 2**30}


def make_folder(folder: Path, hours: float, sample_rate: int, file_seconds: float) -> None:
    """Noise of 16 bits, mono, no two files alike."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(round(hours * 3600 / file_seconds)):
        with wave.open(str(folder / f"{number:06d}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(sample_rate)
            missing = round(file_seconds * sample_rate)
            while missing:
                count = min(missing, 1 << 20)
                file.writeframes(rng.bytes(2 * count))
                missing -= count


def in_a_process_of_its_own(hours: float, sample_rate: int, file_seconds: float, place: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=place) as temporary:
        folder = Path(temporary) / "sound"
        make_folder(folder, hours, sample_rate, min(file_seconds, hours * 3600))
        done = subprocess.run([sys.executable, __file__, "--measure", str(folder)], check=True, capture_output=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, nargs="+", default=[1, 20])
    parser.add_argument("--sample-rate", type=int, default=8000)
    parser.add_argument("--file-seconds", type=float, default=30)
    parser.add_argument("--limit", type=float, default=200)
    parser.add_argument("--place", type=Path, help="where the folders are made (default: the system's temporary one)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    figures = [
        in_a_process_of_its_own(hours, options.sample_rate, options.file_seconds, options.place)
        for hours in options.hours
    ]
    for name in figures[0]:
        print(f"{name:14}", *(f"{each[name]:10.2f}" for each in figures))
    growth = figures[-1]["highest_mib"] - figures[0]["highest_mib"]
    print(
        f"grows by {growth:.1f} MiB from {options.hours[0]:g} to {options.hours[-1]:g} hours; the limit is "
        f"{options.limit:g}"
    )
    sys.exit(growth >= options.limit)


if __name__ == "__main__":
    main()
