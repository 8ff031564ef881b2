"""How a codec sounds beside Opus and MP3: the held-out files of a folder, in numbers.

    pip install pesq pystoi
    python tests/bench/codec_quality.py FOLDER [--codec codec] [--kbps 1.5 3 6] [--opus 6 12 24] [--mp3 16 32]
                                        [--clips 12] [--all] [--json FILE]

The codec is a front-end by name, or a folder that holds one. Held out are the files that `audiogen train` holds out too
(by their content); with --all every file counts, as of a speaker that the codec has not heard. They are resampled to
the codec's rate, and joined or cut to clips of 8 to 12 seconds, so that what a container adds to a short file does not
count. The bitrate in the table is that of the coded sound alone; behind it stands that of the file, and for the codec
what ideal entropy coding of its codes would need. Means over the clips, of SI-SDR the median.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from audiogen.audio.io import read_audio, resample
from audiogen.audio.lossy import OPUS_RATES, Coded, code_mp3, code_opus
from audiogen.data import scan, split
from audiogen.errors import AudiogenError
from audiogen.evaluation.reconstruction import (
    codebook_statistics,
    joined,
    mel_distance,
    pesq,
    si_sdr,
    stft_distance,
    stoi,
)
from audiogen.frontends import Frontend, load_frontend

#: For all.py.
SHORT = "{sounds} --clips 2 --kbps 3 6 --opus 12 --mp3 32"
NEEDS = ("pesq", "pystoi")

METRICS: dict[str, Callable[[Tensor, Tensor, int], float]] = {
    "mel distance": mel_distance,
    "STFT distance": stft_distance,
    "SI-SDR": lambda reference, estimate, rate: si_sdr(reference, estimate),
    "PESQ": pesq,
    "STOI": stoi,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--codec", default="codec")
    parser.add_argument("--kbps", type=float, nargs="+", default=[1.5, 3, 6])
    parser.add_argument("--opus", type=float, nargs="*", default=[6, 12, 24])
    parser.add_argument("--mp3", type=float, nargs="*", default=[16, 32])
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--all", action="store_true", help="all files, not only those that training would hold out")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    args = parser.parse_args()
    codec = load_frontend(args.codec)
    most = round(1000 * max(args.kbps) * codec.spec.num_codebooks / codec.spec.bitrate)
    if most > codec.spec.num_codebooks:
        codec = load_frontend(args.codec, num_codebooks=most)
    rate = codec.spec.sample_rate
    clips = clips_of(args.folder, rate, args.clips, args.all)
    print(f"{len(clips)} clips, {sum(clip.shape[1] for clip in clips) / rate:.0f} s at {rate} Hz\n")
    print("| coder | kbit/s | file, or entropy | " + " | ".join(METRICS) + " |")
    print("| --- " * (3 + len(METRICS)) + "|")
    rows, codes = [], [codec.encode(clip[None].to(codec.device)) for clip in clips]
    for kbps in args.kbps:
        count = round(1000 * kbps * codec.spec.num_codebooks / codec.spec.bitrate)
        if 1 <= count <= codec.spec.num_codebooks:
            rows.append(codec_row(codec, clips, codes, count))
    for name, code, rates in (("Opus", opus, args.opus), ("MP3", code_mp3, args.mp3)):
        for kbps in rates:
            coded = [code(clip, rate, 1000 * kbps) for clip in clips]
            rows.append(
                row(
                    f"{name} {kbps:g}",
                    statistics.mean(each.bitrate for each in coded),
                    statistics.mean(each.file_bitrate for each in coded),
                    clips,
                    [each.wav for each in coded],
                    rate,
                )
            )
    print()
    found = codebook_statistics([each[0] for each in codes], codec.spec)
    for k, (usage, perplexity) in enumerate(zip(found["codebook_usage"], found["perplexity"], strict=True)):
        print(
            f"codebook {k}: {usage:.0%} of {codec.spec.codebook_size} codes occur, perplexity {perplexity:.0f} "
            f"({perplexity / codec.spec.codebook_size:.0%})"
        )
    if args.json:
        args.json.write_text(json.dumps({"clips": len(clips), "rows": rows, "codebooks": found}, indent=2))


def opus(clip: Tensor, rate: int, bitrate: float) -> Coded:
    """Encode and decode with Opus, at 48 kHz if it does not know the rate."""
    if rate in OPUS_RATES:
        return code_opus(clip, rate, bitrate)
    coded = code_opus(resample(clip, rate, 48000), 48000, bitrate)
    return replace(coded, wav=resample(coded.wav, 48000, rate)[:, : clip.shape[1]])


def clips_of(folder: Path, rate: int, most: int, all_files: bool, seconds: float = 10.0) -> list[Tensor]:
    index = scan(folder)
    index.require_files()
    sides = split(index)
    parts = [*sides.train, *sides.held_out] if all_files else sides.held_out

    def wavs():
        for part in parts:
            first, end = part.span(part.file.num_samples)
            yield read_audio(folder / part.file.path, rate, first, min(end - first, round(3 * seconds * rate)))

    clips = joined(wavs(), rate, seconds)
    step = max(1, len(clips) // most)  # from all over the files
    return clips[::step][:most]


def codec_row(codec: Frontend, clips: list[Tensor], codes: list[Tensor], count: int) -> dict[str, float | str]:
    """The first `count` codebooks alone."""
    spec = codec.spec
    backs = [
        codec.decode(each[:, :count])[0, :, : clip.shape[1]].cpu() for clip, each in zip(clips, codes, strict=True)
    ]
    bitrate = count * math.log2(spec.codebook_size) * spec.frame_rate
    few = type(spec)(spec.sample_rate, spec.hop_length, count, spec.codebook_size)
    ideal = codebook_statistics([each[0, :count] for each in codes], few)["bits_per_second"]
    return row(f"codec, {count} codebooks", bitrate, ideal, clips, backs, spec.sample_rate)


def row(name: str, bitrate: float, file_bitrate: float, clips: list[Tensor], backs: list[Tensor], rate: int) -> dict:
    """Measures, prints and returns a row."""
    figures = {}
    for metric, measure in METRICS.items():
        try:
            values = [measure(clip, back, rate) for clip, back in zip(clips, backs, strict=True)]
        except AudiogenError as error:
            figures[metric] = None  # said once, at the first row
            METRICS[metric] = lambda *_: math.nan
            print(f"({error})")
            continue
        values = [value for value in values if math.isfinite(value)]
        mean = statistics.median if metric == "SI-SDR" else statistics.mean
        figures[metric] = mean(values) if values else None
    cells = [
        "-" if value is None else f"{value:.3f}" if metric != "SI-SDR" else f"{value:.1f} dB"
        for metric, value in figures.items()
    ]
    print(f"| {name} | {bitrate / 1000:.2f} | {file_bitrate / 1000:.2f} | " + " | ".join(cells) + " |", flush=True)
    return {"coder": name, "bitrate": bitrate, "file_bitrate": file_bitrate, **figures}


if __name__ == "__main__":
    main()
