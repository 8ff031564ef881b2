"""Lesson 11: a vocoder, which makes sound of mel frames by having heard much of it.

    python recipes/11_vocoder.py FOLDER [FOLDER ...] [--out runs/11_vocoder] [--minutes 8] [--resume]

What it teaches. A mel frame says how loud each band is, and nothing of how its waves lie: the phases are lost.
Griffin-Lim looks for phases under which neighbouring spectra agree, from nothing and anew for each sound, over and
over; it needs the whole sound, and time. A vocoder has learned from the folder what phases go with what frames. It is
the codec's decoder (lesson 10) with frames in the place of codes: a few blocks at the frame rate, then a magnitude and
a phase for each bin of two spectra a frame, which add up to the samples. It is trained by the same losses, on the same
crops. Griffin-Lim stands here twice: as it is usually done (librosa spreads each band over its frequencies once, and
puts that back in each round), and as the front-end does it, which in each round only scales the spectrum that it has,
so that its bands have the power they should. Which way is closer depends on how much the frames still hold: 80 bands of
a telephone's sound say nearly all, and who keeps to their power needs no more.

How it carries over to audio. Most systems that speak or sing do it in these two steps: a model of mel frames, which are
few and smooth, and a vocoder. Here both read one front-end, so the folder that this script writes gives a model of mel
frames its voice, and `audiogen generate --stream` too, since a vocoder waits for no more than the next frame:

    audiogen train FOLDER --out runs/mine --frontend runs/11_vocoder --backbone gpt

What to try. --minutes 30: it gains for long. --frontend melvq learns to say what quantised frames mean, and so mends a
little of what the centroids lost: --set frontend.num_codebooks=4. Train it on digits and let it speak music: what does
it take a violin for? --set frontend.num_features=20 leaves a fourth of the bands: which of the two ways back suffers
more?
"""

import math
import time
from pathlib import Path

import torch
from torch import Tensor

from audiogen.commands.defaults import frontend_settings
from audiogen.commands.train_frontend import train_frontend
from audiogen.course.lesson_page import side_by_side, write_lesson
from audiogen.course.lesson_parser import LessonParser
from audiogen.errors import AudiogenError, ConfigError
from audiogen.evaluation.reconstruction import joined, mel_distance, pesq, stft_distance
from audiogen.frontends import FRONTENDS
from audiogen.frontends.mel.vocoder import MelFrontend
from audiogen.listen import Line, line_chart, section, table, text
from audiogen.runs.event_log import read_metrics
from audiogen.utils.scripts import run_script


def main() -> None:
    parser = LessonParser(__file__, __doc__)
    parser.add_argument("more", type=Path, nargs="*", metavar="folder", help="further folders")
    parser.add_argument(
        "--frontend",
        choices=[kind for kind, part in FRONTENDS.items() if issubclass(part, MelFrontend)],
        default="mel",
        help="whose frames it is to speak",
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="training time")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--resume", action="store_true", help="go on where it was stopped")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="frontend.A=1",
        help="any setting of the front-end",
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

    # 1. Training, on the files that are not held out. Ctrl-C saves; --resume goes on.
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
        print("stopped and saved: go on with --resume")
        return
    vocoder, rate = trained.frontend, trained.frontend.spec.sample_rate
    print(f"a frame of sound is heard {vocoder.latency_ms:g} ms after its first sample went in")

    # 2. The ways back, from the same frames of held-out files, joined to clips of ten seconds.
    clips = joined(trained.held_out, rate, 1.0 if args.short else 10.0)[:4]
    encoded = [vocoder.encode(clip[None].to(vocoder.device)) for clip in clips]
    iterations = vocoder.config.griffin_lim_iterations
    ways = {
        f"Griffin-Lim, librosa, {iterations}": lambda x: griffin_lim_by_librosa(vocoder, x),
        f"Griffin-Lim, ours, {iterations}": vocoder.without_vocoder().decode,
        "vocoder": vocoder.decode,
    }
    heard, rows = {"original": clips}, []
    for name, way in ways.items():
        way(encoded[0][..., :16])  # what is loaded at the first call
        began = time.perf_counter()
        heard[name] = [way(x)[0, :, : clip.shape[1]].cpu() for x, clip in zip(encoded, clips, strict=True)]
        speed = sum(clip.shape[1] for clip in clips) / rate / (time.perf_counter() - began)
        rows.append([name, *figures(clips, heard[name], rate), speed])
        print(
            f"{name:>24}: mel distance {rows[-1][1]:.3f}, STFT distance {rows[-1][2]:.3f}, PESQ "
            f"{'-' if rows[-1][3] is None else format(rows[-1][3], '.2f')}, {speed:.0f} times real time"
        )

    # 3. The page.
    steps = [event for event in read_metrics(args.out) if event["event"] == "train"]
    page = write_lesson(
        __file__,
        args.out / "index.html",
        section(
            "Three ways back",
            text(
                "Held-out files, joined to clips of about ten seconds; all ways are given the very same frames. "
                "The distances are of spectra, 0 is perfect. PESQ judges speech, from 1 (bad) to 4.5 (perfect)."
            ),
            table(["way", "mel distance", "STFT distance", "PESQ", "times real time"], rows),
            text(verdict(rows, settings.get("num_features", 80), rate)),
        ),
        section(
            "What they sound like",
            text(
                "Where Griffin-Lim fails it is hollow, as if heard through a pipe, and onsets are smeared. What a "
                "vocoder that has not heard enough gets wrong is another thing: it buzzes, or is rough where a "
                "tone should be steady. In the spectrograms look at the gaps between the harmonics."
            ),
            side_by_side(args.out / "samples", heard, rate),
        ),
        section(
            "How it learned",
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
    )
    print(f"open {page}")


def verdict(rows: list[list], num_features: int, rate: int) -> str:
    """What the figures of the ways come to."""
    (_, usual, *_, slowest), (_, slow, *_, before), (_, fast, *_, after) = rows
    faster = f"The vocoder is {after / slowest:.0f} and {after / before:.0f} times as fast as the two"
    if fast < min(usual, slow):
        return f"The vocoder is the closest. {faster}."
    closest = "Our Griffin-Lim" if slow <= usual else "Griffin-Lim as it is usually done"
    said = (
        f"{closest} is the closest: {num_features} bands say much of a sound at {rate} Hz, and the vocoder "
        f"has not been trained for long. {faster}, and can speak while the frames come."
    )
    return said + (
        " It is closer than Griffin-Lim as it is usually done."
        if fast < usual
        else " It is closer than our Griffin-Lim."
        if fast < slow
        else ""
    )


def griffin_lim_by_librosa(frontend: MelFrontend, x: Tensor) -> Tensor:
    """The front-end's frames or codes (1, C, T) -> wav (1, 1, T hop_length), in as many iterations as its own takes."""
    import librosa

    mel = getattr(frontend, "mel", frontend)
    power = mel.power_of(frontend.frames_of(x))[0].cpu()  # (F, T)
    power = torch.cat([power, power[:, -1:]], dim=1)  # librosa has one more, behind the end
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
    """Means over clips (1, N): mel distance, STFT distance, PESQ; None where that can't be measured."""
    pairs = list(zip(originals, decoded, strict=True))
    means: list[float | None] = [
        sum(measure(a, b, rate) for a, b in pairs) / len(pairs) for measure in (mel_distance, stft_distance)
    ]
    try:
        judged = sum(pesq(a, b, rate) for a, b in pairs) / len(pairs)
    except AudiogenError:  # the package is not there
        return [*means, None]
    return [*means, judged if math.isfinite(judged) else None]  # NaN where no speech was found


if __name__ == "__main__":
    raise SystemExit(run_script(main))
