"""Damages sound files of every kind that is read and reads each: no crash, no surprise, no long wait, no large memory.

    python tests/bench/fuzz_audio.py --mutants 40000 --workers 2

The seeds are made by libsndfile, FFmpeg's libraries and, if it is installed, the ffmpeg command. Each mutant has some
bytes flipped, cut, doubled, zeroed or swapped, most often near its beginning; the checksums of Ogg pages are put right
in half of them. Each is read as a whole, as `scan` does it, and in stretches, by a process whose address space leaves
100 MiB, and which is killed over a file that takes 5 s of its time. A fault is

    a death by signal, any exception but AudioReadError, a message of several lines or one that calls a seed damaged,
    a sample that is not finite or beyond [-1, 1], another length than was announced, over 100 MiB, over 5 s.

Mutants of faults are kept in --keep. Exit code 1 if there was one.
"""

import argparse
import io
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).parents[1]))
from sound_files import ogg_page, sounds

#: For all.py.
SHORT = "--mutants 300 --workers 1"

ROOM = 100 << 20  # bytes
SECONDS = 5.0
MUXED = [  # container, coding, sample rate
    ("ipod", "aac", 16_000),
    ("ipod", "alac", 16_000),
    ("adts", "aac", 16_000),
    ("asf", "wmav2", 16_000),
    ("webm", "libopus", 48_000),
    ("matroska", "flac", 16_000),
    ("matroska", "pcm_s16le", 16_000),
    ("ogg", "flac", 16_000),
    ("ac3", "ac3", 48_000),
    ("mp2", "mp2", 16_000),
    ("tta", "tta", 16_000),
    ("wv", "wavpack", 16_000),
    ("wav", "libmp3lame", 16_000),
    ("amr", "libopencore_amrnb", 8_000),
]
STORED = [  # container, coding, channels
    ("WAV", "PCM_U8", 1),
    ("WAV", "PCM_16", 2),
    ("WAV", "PCM_24", 1),
    ("WAV", "FLOAT", 1),
    ("WAV", "DOUBLE", 1),
    ("WAV", "ULAW", 1),
    ("WAV", "IMA_ADPCM", 1),
    ("WAV", "MS_ADPCM", 1),
    ("WAV", "GSM610", 1),
    ("WAVEX", "PCM_24", 2),
    ("RF64", "PCM_16", 1),
    ("FLAC", "PCM_16", 2),
    ("FLAC", "PCM_24", 1),
    ("OGG", "VORBIS", 2),
    ("OGG", "OPUS", 1),
    ("MP3", "MPEG_LAYER_III", 2),
    ("AIFF", "PCM_16", 2),
    ("AIFF", "FLOAT", 1),
    ("CAF", "PCM_16", 1),
    ("CAF", "ALAC_16", 1),
    ("AU", "PCM_16", 1),
    ("AU", "ULAW", 1),
    ("W64", "PCM_16", 1),
]


def make_seeds() -> dict[str, bytes]:
    """Good files of half a second by name."""
    seeds = {}
    for container, coding, num_channels in STORED:
        sample_rate = 48_000 if coding == "OPUS" else 16_000
        buffer = io.BytesIO()
        x = sounds(sample_rate // 2, sample_rate, num_channels)
        soundfile.write(buffer, x, sample_rate, format=container, subtype=coding)
        seeds[f"{container}-{coding}"] = buffer.getvalue()
    for container, coding, sample_rate in MUXED:
        seeds[f"{container}-{coding}"] = mux(container, coding, sample_rate)
    mp3, vorbis, opus = (seeds[name] for name in ("MP3-MPEG_LAYER_III", "OGG-VORBIS", "OGG-OPUS"))
    wav = seeds["WAV-PCM_16"]
    seeds |= {
        "mp3-bare": mp3[mp3.index(mp3[:2], 2) :],
        "mp3-twice": 2 * mp3,
        "mp3-tagged": b"ID3\4\0\x10\0\0\0\x20" + bytes(32) + b"3DI\4\0\x10\0\0\0\x20" + mp3 + b"TAG" + bytes(125),
        "vorbis-twice": 2 * vorbis,
        "opus-twice": 2 * opus,
        "opus-rate0": ogg_page(opus, 0, 28 + 12, "<I", 0),
        "flac-twice": 2 * seeds["FLAC-PCM_16"],
        "wav-pipe": wav[:4] + b"\xff" * 4 + wav[8:40] + b"\xff" * 4 + wav[44:],
        "wav-stopped": wav[:4] + bytes(4) + wav[8:40] + bytes(4) + wav[44:],
    }
    if shutil.which("ffmpeg"):
        seeds |= by_command(wav)
    return seeds


def mux(container: str, coding: str, sample_rate: int) -> bytes:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(coding, rate=sample_rate, layout="mono")
        stream.bit_rate = 12_200 if container == "amr" else 48_000
        stream.codec_context.open()
        samples = (sounds(sample_rate // 2, sample_rate, 1).T * 32_767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate, frame.pts = sample_rate, 0
        size = stream.codec_context.frame_size or 1024
        layout = stream.codec_context.format.name
        resampler = av.AudioResampler(format=layout, layout="mono", rate=sample_rate, frame_size=size)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def by_command(wav: bytes) -> dict[str, bytes]:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.wav").write_bytes(wav)
        for name in ("a.m4a", "a.wma", "a.ogg", "a.opus", "a.mp3", "a.mka", "a.caf", "a.spx", "a.3gp"):
            done = subprocess.run(["ffmpeg", "-v", "quiet", "-y", "-i", f"{folder}/a.wav", f"{folder}/{name}"])
            if done.returncode == 0:
                found[f"command-{name}"] = Path(folder, name).read_bytes()
    return found


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        end = len(data) if rng.random() < 0.4 else min(len(data), int(rng.choice([64, 300, 2000])))
        at = int(rng.integers(0, max(end, 1)))
        count = int(rng.integers(1, 9))
        match rng.integers(0, 9):
            case 0 | 1:
                data[at : at + 1] = bytes([data[at] ^ 1 << int(rng.integers(0, 8))]) if at < len(data) else b""
            case 2 | 3:
                data[at : at + count] = rng.bytes(count)
            case 4:
                data[at : at + count] = bytes([int(rng.choice([0, 0xFF, 0x7F, 0x80]))]) * count
            case 5:
                del data[at:]
            case 6:
                del data[at : at + int(rng.integers(1, 200))]
            case 7:
                data[at:at] = data[at : at + int(rng.integers(1, 2000))]
            case _:
                other = int(rng.integers(0, max(len(data), 1)))
                data[at : at + count] = data[other : other + count]
    mutant = bytes(data)
    if rng.random() < 0.5:  # as if it had been written so: checksums of Ogg pages that are right
        at = mutant.find(b"OggS\0")
        while 0 <= at < len(mutant) - 27 and len(mutant) < 1 << 16:
            mutant = ogg_page(mutant, at, 4, "<B", 0)
            at = mutant.find(b"OggS\0", at + 5)
    return mutant


def read(path: Path) -> dict:
    """Reads a file in three ways, and says what came of it."""
    from audiogen.audio.decoder import Decoder
    from audiogen.audio.io import AudioFile, read_audio, read_blocks
    from audiogen.errors import AudioReadError

    try:
        with Decoder(path) as decoder:
            count = sum(len(samples) for samples in decoder.blocks())
            info = decoder.info
        assert count == info.num_samples > 0, f"{count} samples, announced were {info.num_samples}"
        assert all(note.isprintable() for note in info.notes)
        whole = read_audio(path)
        assert whole.shape == (1, count) and whole.isfinite().all() and whole.abs().max() <= 1, "samples"
        with AudioFile(path) as file:
            for start in (count // 2, 0, count - 1):
                part = file.read(start, 100)
                wanted = whole[:, start : start + 100]
                assert part.shape == wanted.shape and (part - wanted).abs().max() < 1e-5, f"stretch at {start}"
        assert sum(block.shape[1] for block in read_blocks(path, 8_000, 0.1)) >= 0
        return {"read": info.notes}
    except AudioReadError as error:
        message = str(error)
        assert message.isprintable() and str(path) in message and "; " in message, message
        return {"refused": message}


def work(tasks, answers, folder: str, good: list[Path]) -> None:
    """Reads one file after the other, with 100 MiB more than good files took."""
    import torch  # noqa: F401

    for path in good:
        read(path)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))
    answers.put(None)
    while (task := tasks.get()) is not None:
        number, name = task
        begin = time.process_time()
        try:
            answer = read(Path(folder, name))
        except BaseException as error:
            answer = {"fault": f"{type(error).__name__}: {error}"[:300]}
        if (spent := time.process_time() - begin) > SECONDS:
            answer = {"fault": f"took {spent:.1f} s"}
        answers.put((number, answer))


class Worker:
    def __init__(self, folder: str, good: list[Path]):
        context = multiprocessing.get_context("spawn")
        self.tasks, self.answers = context.Queue(), context.Queue()
        self.process = context.Process(target=work, args=(self.tasks, self.answers, folder, good), daemon=True)
        self.process.start()
        self.answers.get(timeout=600)
        self.task, self.since = None, 0.0

    def spent(self) -> float:
        """Seconds of processor time of its own since the task was given."""
        ticks = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=40_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the mutants that show a fault")
    args = parser.parse_args()
    seeds, counts, faults = make_seeds(), Counter(), []
    names = sorted(seeds)
    with tempfile.TemporaryDirectory() as folder:
        good = []
        for name in names:
            good.append(Path(folder, f"good-{name}"))
            good[-1].write_bytes(seeds[name])
            if "refused" in (answer := read(good[-1])):
                faults.append((name, -1, answer["refused"]))
        workers = [Worker(folder, good) for _ in range(args.workers)]
        number, done, begin, retried = 0, 0, time.time(), set()
        while done < args.mutants:
            for i, worker in enumerate(workers):
                if worker.task is None and number < args.mutants:
                    name = names[number % len(names)]
                    mutant = mutate(seeds[name], np.random.default_rng([args.seed, number]))
                    Path(folder, f"w{i}").write_bytes(mutant)
                    worker.task, worker.since = (number, name, mutant), worker.spent()
                    worker.tasks.put((number, f"w{i}"))
                    number += 1
            for i, worker in enumerate(workers):
                if worker.task is None:
                    continue
                at, name, mutant = worker.task
                try:
                    _, answer = worker.answers.get(timeout=0.02)
                except Exception:
                    if worker.process.is_alive() and worker.spent() - worker.since < 3 * SECONDS:
                        continue
                    code = worker.process.exitcode
                    worker.process.kill()
                    answer = {"fault": f"killed after {3 * SECONDS} s" if code is None else f"died with {code}"}
                    workers[i] = Worker(folder, good)
                    if code == -signal.SIGKILL and (at, name) not in retried:  # by a system that is short of memory
                        retried.add((at, name))
                        workers[i].task, workers[i].since = worker.task, workers[i].spent()
                        workers[i].tasks.put((at, f"w{i}"))
                        continue
                    worker = workers[i]
                worker.task, done = None, done + 1
                (outcome,) = answer
                counts[name.partition("-")[0], outcome] += 1
                if outcome == "fault":
                    faults.append((name, at, answer["fault"]))
                    print(f"{name}, mutant {at}: {answer['fault']}", flush=True)
                    if args.keep:
                        args.keep.mkdir(parents=True, exist_ok=True)
                        (args.keep / f"{at}-{name}").write_bytes(mutant)
                if done % 2000 == 0:
                    print(f"{done} mutants, {time.time() - begin:.0f} s, {len(faults)} faults", flush=True)
        for worker in workers:
            worker.tasks.put(None)
    for kind in sorted({kind for kind, _ in counts}):
        print(json.dumps({"kind": kind} | {what: counts[kind, what] for what in ("read", "refused", "fault")}))
    print(f"{done} mutants of {len(seeds)} seeds: {len(faults)} faults")
    for name, at, what in faults:
        print(f"{name}, mutant {at}: {what}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
