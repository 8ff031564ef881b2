"""Lesson 11: a vocoder, which learns to turn mel frames into sound.

    python recipes/11_vocoder.py FOLDER [FOLDER ...] [--out runs/11_vocoder] [--minutes 8] [--resume]

What it teaches. A mel frame says how loud each band is, but nothing about the phases of its waves. Griffin-Lim searches
for phases with which overlapping spectra agree; it starts from random phases for each sound and takes many iterations.
A vocoder learns from the folder which phases go with which frames. It is the codec's decoder (lesson 10) with frames
instead of codes: a few blocks at the frame rate, then a magnitude and a phase for each bin of two spectra per frame,
whose overlapping waveforms add up to the samples. It is trained with the same losses, on crops of the same kind. The
lesson compares it with two versions of Griffin-Lim: the usual one (librosa estimates the linear spectrum of each frame
once, and restores it in each iteration), and that of the front-end, which in each iteration only scales the spectrum
until its bands have the right power. Which is closest to the original depends on how much the frames still hold: 80
bands at the bandwidth of a telephone hold almost everything.

How it carries over to audio. Many systems for speech and singing work in these two steps: a model of mel frames, which
are few and smooth, and a vocoder. Here one front-end does the encoding and the vocoding. So a model of mel frames that
uses the folder written by this script sounds through its vocoder, and streams with a short delay (`audiogen generate
--stream`), since the vocoder waits for only one more frame:

    audiogen train FOLDER --out runs/mine --frontend runs/11_vocoder --backbone gpt

What to try. --minutes 30: the vocoder keeps improving for long. --frontend melvq --set frontend.num_codebooks=4 learns
to decode quantized frames, and so repairs a little of what the centroids lost. Train it on spoken digits and give it
music: what does a violin become? --set frontend.num_features=20 keeps a quarter of the bands: which suffers more,
Griffin-Lim or the vocoder?
"""

import math
import time
from pathlib import Path

import torch
from torch import Tensor

from audiogen.commands.defaults import frontend_settings
from audiogen.commands.train_frontend import train_frontend
from audiogen.course.lesson_page import versions, write_lesson
from audiogen.course.lesson_parser import LessonParser
from audiogen.errors import AudiogenError, ConfigError
from audiogen.evaluation.reconstruction import joined, mel_distance, pesq, stft_distance
from audiogen.frontends import FRONTENDS
from audiogen.frontends.mel.vocoder import MelFrontend
from audiogen.listen import Line, clip_cards, grid, line_chart, section, table, text
from audiogen.runs.event_log import read_metrics
from audiogen.utils.scripts import run_script


def main() -> None:
    """Run the lesson."""
    parser = LessonParser(__file__, __doc__)
    parser.add_argument("more", type=Path, nargs="*", metavar="folder", help="further folders")
    parser.add_argument(
        "--frontend",
        choices=[kind for kind, part in FRONTENDS.items() if issubclass(part, MelFrontend)],
        default="mel",
        help="front-end whose frames the vocoder decodes",
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="training time")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--resume", action="store_true", help="continue training")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="frontend.A=1",
        help="a setting of the front-end",
    )
    args = parser.parse_args()
    settings, unknown = frontend_settings(args.overrides)
    if unknown:
        raise ConfigError(
            f"--set {unknown[0]}: only settings of the front-end can be set here, such as frontend.num_features"
        )
    settings = {"vocoder": {}, **settings}
    if args.short:
        settings = {
            "num_features": 20,
            "griffin_lim_iterations": 2,
            **settings,
            "vocoder": {"dim": 8, "num_layers": 1, **settings["vocoder"]},
        }
        if args.frontend == "melvq":
            settings = {"num_codebooks": 1, "codebook_size": 8, **settings}

    # 1. Train: on the files that are not held out. Ctrl-C saves; --resume continues.
    trained = train_frontend(
        args.frontend,
        [args.folder, *args.more],
        args.out,
        settings,
        steps=6 if args.short else None,
        minutes=None if args.short else args.minutes,
        resume=args.resume,
        device=args.device,
    )
    if not trained.finished:
        print("stopped and saved; continue with --resume")
        return
    vocoder, rate = trained.frontend, trained.frontend.spec.sample_rate
    print(f"latency of encoder and vocoder together: {vocoder.latency_ms:g} ms")

    # 2. Three ways back to sound: from the same frames of held-out files, joined into clips of ten seconds.
    clips = joined(trained.held_out, rate, 1.0 if args.short else 10.0)[:4]
    encoded = [vocoder.encode(clip[None].to(vocoder.device)) for clip in clips]
    iterations = vocoder.config.griffin_lim_iterations
    ways = {
        f"Griffin-Lim of librosa, {iterations} iterations": lambda x: griffin_lim_by_librosa(vocoder, x),
        f"Griffin-Lim of audiogen, {iterations} iterations": vocoder.without_vocoder().decode,
        "vocoder": vocoder.decode,
    }
    heard, rows = {"original": clips}, []
    for name, way in ways.items():
        way(encoded[0][..., :16])  # the first call loads and compiles things
        began = time.perf_counter()
        heard[name] = [way(x)[0, :, : clip.shape[1]].cpu() for x, clip in zip(encoded, clips, strict=True)]
        speed = sum(clip.shape[1] for clip in clips) / rate / (time.perf_counter() - began)
        rows.append([name, *figures(clips, heard[name], rate), speed])
        print(
            f"{name:>38}: mel distance {rows[-1][1]:.3f}, STFT distance {rows[-1][2]:.3f}, PESQ "
            f"{'-' if rows[-1][3] is None else format(rows[-1][3], '.2f')}, {speed:.0f} times real time"
        )

    # 3. The page.
    kinds = versions(args.out / "samples", heard, rate)
    steps = [event for event in read_metrics(args.out) if event["event"] == "train"]
    page = write_lesson(
        __file__,
        args,
        section(
            "Three ways back",
            text(
                "Held-out files, joined into clips of about ten seconds; all methods decode the same frames. The "
                "distances compare spectra; 0 is perfect. PESQ rates speech from 1 (bad) to 4.5 (perfect)."
            ),
            table(["method", "mel distance", "STFT distance", "PESQ", "times real time"], rows),
            text(verdict(rows, settings.get("num_features", 80), rate)),
        ),
        section(
            "What they sound like",
            text(
                "Where Griffin-Lim fails, the sound is hollow, as if heard through a pipe, and onsets are smeared. A "
                "vocoder with too little training sounds wrong in another way: it buzzes, or is rough where a tone "
                "should be steady. In the spectrograms, look at the gaps between harmonics."
            ),
            grid(clip_cards([clip for same in zip(*kinds.values(), strict=True) for clip in same])),
        ),
        section(
            "Training",
            line_chart(
                [
                    Line("log mel distance", [e["step"] for e in steps], [e["mel"] for e in steps]),
                    Line("linear magnitudes", [e["step"] for e in steps], [e["stft"] for e in steps]),
                ],
                {},
                "steps",
                "loss",
                "Losses by step.",
            ),
        ),
        before_after=[several[0] for several in list(kinds.values())[1::2]],
    )
    print(f"open {page}")


def verdict(rows: list[list], num_features: int, rate: int) -> str:
    """Say in words which method has the lowest mel distance, and how fast the vocoder is.

    Args:
        rows: one row for each method: librosa's Griffin-Lim, ours, the vocoder. Each row has the name, mel distance,
            STFT distance, PESQ and speed.
        num_features: number of mel bands.
        rate: Hz.
    """
    (_, usual, *_, usual_speed), (_, ours, *_, our_speed), (_, vocoder, *_, speed) = rows
    faster = (
        f"The vocoder is {speed / usual_speed:.1f} times as fast as librosa's Griffin-Lim and "
        f"{speed / our_speed:.1f} times as fast as audiogen's"
    )
    if vocoder < min(usual, ours):
        return f"By mel distance, the vocoder is closest to the originals. {faster}."
    closest, second, other = ("audiogen's", usual, "librosa's") if ours <= usual else ("librosa's", ours, "audiogen's")
    return (
        f"By mel distance, {closest} Griffin-Lim is closest to the originals: {num_features} bands at {rate} Hz may "
        "hold enough of the sound for it, or the vocoder needs longer training. "
        + (f"The vocoder is closer than {other} Griffin-Lim. " if vocoder < second else "")
        + f"{faster}."
    )


def griffin_lim_by_librosa(frontend: MelFrontend, x: Tensor) -> Tensor:
    """Decode the front-end's frames or codes (1, C, T) with librosa, in as many iterations as its own Griffin-Lim.

    Returns:
        wav (1, 1, T hop_length).
    """
    import librosa

    mel = getattr(frontend, "mel", frontend)
    power = mel.power_of(frontend.frames_of(x))[0].cpu()  # (F, T)
    power = torch.cat([power, power[:, -1:]], dim=1)  # librosa expects one more frame, at the end
    magnitude = librosa.feature.inverse.mel_to_stft(power.numpy(), sr=mel.spec.sample_rate, n_fft=mel.n_fft)
    wav = librosa.griffinlim(
        magnitude,
        n_iter=mel.config.griffin_lim_iterations,
        hop_length=mel.spec.hop_length,
        n_fft=mel.n_fft,
        random_state=0,
    )
    return torch.from_numpy(wav).float().clamp(-1, 1)[None, None]


def figures(originals: list[Tensor], decoded: list[Tensor], rate: int) -> list[float | None]:
    """Return the mel distance, STFT distance and PESQ of clips (1, N), each averaged over the clips.

    PESQ is None if it can't be measured.
    """
    pairs = list(zip(originals, decoded, strict=True))
    means: list[float | None] = [
        sum(measure(a, b, rate) for a, b in pairs) / len(pairs) for measure in (mel_distance, stft_distance)
    ]
    try:
        judged = sum(pesq(a, b, rate) for a, b in pairs) / len(pairs)
    except AudiogenError:  # the package is not installed
        return [*means, None]
    return [*means, judged if math.isfinite(judged) else None]  # NaN if no speech was found


if __name__ == "__main__":
    raise SystemExit(run_script(main))
