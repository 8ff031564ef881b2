"""Lesson 10: a neural codec, which learns what of a sound can be left out.

    python recipes/10_codec.py FOLDER [FOLDER ...] [--out runs/10_codec] [--minutes 8] [--resume]

What it teaches. An encoder squeezes 20 ms of spectra into a vector, a decoder says spectra of it again, which add up to
sound. Between them stands a residual vector quantizer: a codebook names the nearest of its 1,024 vectors, the next one
codes what that left over, and so on, so that each further codebook costs the same and adds less. No gradient passes
such a choice, so the decoder's is handed straight through to the encoder, and the codewords follow the vectors that
chose them. What counts as close is a matter of ears: spectra at several resolutions are compared, on the mel scale, and
no loss may shout down the others, since each is given its share of the gradient.

How it carries over to audio. Everything that generates sound from tokens stands on such a codec, and what it loses is
lost to every model after it. A frame waits for its own 20 ms and for ten more, and is heard ten later, so it is of use
while one speaks. The networks work on spectra since there is little time: networks that speak in samples have to learn
to oscillate first, and an hour of a processor took them no further than a few minutes take these. The run folder is a
front-end like any other:

    audiogen train FOLDER --out runs/mine --frontend runs/10_codec

What to try. --set frontend.codebook_size=64: fewer bits, and how does it sound? --set frontend.lookup_dim=8 lets the
codebooks look at directions in eight dimensions alone: are more of their codes in use? On a GPU, --set
frontend.adversarial_from=0.3 --set frontend.discriminator_channels=32 lets networks that tell decoded from recorded
spectra take part: what do they add that no distance of spectra does? On a CPU they cost most of the time. The codec
that comes with audiogen was trained by this script, with --export (its card is beside it, in audiogen/weights).
"""

from pathlib import Path

from torch import Tensor

from audiogen.audio.lossy import OPUS_RATES, code_opus
from audiogen.commands.defaults import frontend_settings
from audiogen.commands.train_frontend import export_weights, train_frontend
from audiogen.course.lesson_page import side_by_side, write_lesson
from audiogen.course.lesson_parser import LessonParser
from audiogen.errors import ConfigError
from audiogen.evaluation.reconstruction import codebook_statistics, joined, mel_distance, si_sdr, stft_distance
from audiogen.frontends import Codec
from audiogen.listen import Line, line_chart, section, table, text
from audiogen.runs.event_log import read_metrics
from audiogen.utils.scripts import run_script


def main() -> None:
    parser = LessonParser(__file__, __doc__)
    parser.add_argument("more", type=Path, nargs="*", metavar="folder", help="further folders")
    parser.add_argument("--minutes", type=float, default=8.0, help="training time; a codec goes on gaining for hours")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--resume", action="store_true", help="go on where it was stopped")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="frontend.A=1", help="any setting of the codec"
    )
    parser.add_argument("--export", type=Path, help="also write the weights to this file, in half the bytes")
    args = parser.parse_args()
    settings, unknown = frontend_settings(args.overrides)
    if unknown:
        raise ConfigError(f"--set {unknown[0]}: only settings of the codec can be set here, such as frontend.dim")
    if settings.get("weights", "fit") != "fit":
        raise ConfigError("--set frontend.weights: this script fits its own; leave it out")
    if args.short:
        settings = {
            "num_codebooks": 4,
            "codebook_size": 16,
            "dim": 8,
            "latent_dim": 4,
            "batch_size": 2,
            "adversarial_from": 0.5,
            "discriminator_channels": 2,
            **settings,
        }
    else:
        settings = {"num_codebooks": 12, **settings}

    # 1. Training, on the files that are not held out. Ctrl-C saves; --resume goes on.
    trained = train_frontend(
        "codec",
        [args.folder, *args.more],
        args.out,
        {**settings, "weights": "fit"},
        steps=6 if args.short else None,
        minutes=None if args.short else args.minutes,
        resume=args.resume,
        device=args.device,
    )
    if not trained.finished:
        print("stopped and saved: go on with --resume")
        return
    codec = trained.frontend
    spec = codec.spec
    bits = spec.bitrate / spec.num_codebooks  # a second, of one codebook
    print(
        f"{spec.frame_rate:g} frames a second of {spec.num_codebooks} codebooks, {bits:g} bits a second each; "
        f"a frame is heard after {codec.latency_ms:g} ms"
    )
    if args.export:
        export_weights(codec, args.export)
        print(f"{args.export}: {args.export.stat().st_size / 1e6:.2f} MB")

    # 2. What each further codebook is worth, on held-out files: joined to clips of ten seconds, since a spoken digit
    #    alone is too short to be judged. Opus is what one hears in every call, at four times the bits.
    clips = joined(trained.held_out, spec.sample_rate, 1.0 if args.short else 10.0)[:4]
    counts = sorted({max(1, spec.num_codebooks * part // 8) for part in (1, 2, 4, 8)})
    heard = {"original": clips}
    rows = []
    for count in counts:
        name = f"{count * bits / 1000:g} kbit/s"
        heard[name] = [round_trip(codec, clip, count) for clip in clips]
        rows.append([name, count, *figures(clips, heard[name], spec.sample_rate)])
    for bitrate in (6000, 12000, 24000) if spec.sample_rate in OPUS_RATES else ():
        coded = [code_opus(clip, spec.sample_rate, bitrate).wav for clip in clips]
        rows.append([f"Opus, {bitrate / 1000:g} kbit/s", None, *figures(clips, coded, spec.sample_rate)])
    for name, _, mel, stft, ratio in rows:
        print(f"{name:>16}: mel distance {mel:.3f}, STFT distance {stft:.3f}, SI-SDR {ratio:.2f} dB")
    statistics = codebook_statistics([codec.encode(clip[None].to(codec.device))[0] for clip in clips], spec)

    # 3. The page.
    events = read_metrics(args.out)
    steps = [event for event in events if event["event"] == "train"]
    books = [event for event in events if event["event"] == "codebooks"]
    page = write_lesson(
        __file__,
        args.out / "index.html",
        section(
            "What each codebook is worth",
            text(
                "Held-out files, joined to clips of about ten seconds. The mel distance is what ears would notice "
                "first, 0 is perfect; the STFT distance counts high and low frequencies alike. The ratio of "
                "signal to distortion compares waveforms, higher is closer; a codec that makes up what can't be "
                "told apart is low there and may sound well."
            ),
            table(["bitrate", "codebooks", "mel distance", "STFT distance", "SI-SDR (dB)"], rows),
            text(
                f"With ideal entropy coding of each code by its frequency, all {spec.num_codebooks} codebooks "
                f"would need {statistics['bits_per_second']:,.0f} bits a second of these clips in the place of "
                f"{spec.bitrate:,.0f}."
            ),
        ),
        section(
            "What it sounds like",
            text(
                "Each original is followed by what is left of it, with few codebooks first. Listen for what goes "
                "first: breath and hiss, the edges of consonants, the shimmer of a high string. In the "
                "spectrograms look at the top, and at the gaps between the harmonics."
            ),
            side_by_side(args.out / "samples", heard, spec.sample_rate),
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
            text(
                "The step upwards, early on, is where the codebooks come in: from then on the decoder hears what "
                "they say in the place of what the encoder meant."
            ),
        ),
        codebooks(books[-1] if books else None, spec.codebook_size),
        section("What happened on the way", *rollbacks(events)),
    )
    print(f"open {page}")


def figures(originals: list[Tensor], decoded: list[Tensor], rate: int) -> list[float]:
    """Means over clips (1, N): mel distance, STFT distance, SI-SDR."""
    measures = (mel_distance, stft_distance, lambda a, b, rate: si_sdr(a, b))
    pairs = list(zip(originals, decoded, strict=True))
    return [sum(measure(a, b, rate) for a, b in pairs) / len(pairs) for measure in measures]


def round_trip(codec: Codec, wav: Tensor, count: int) -> Tensor:
    """(1, N) through its first `count` codebooks and back."""
    codes = codec.encode(wav[None].to(codec.device))[:, :count]
    return codec.decode(codes)[0, :, : wav.shape[1]].cpu()


def codebooks(event: dict | None, size: int) -> str:
    """How much of each codebook is in use, by the moving averages of training."""
    if event is None:
        return section("The codebooks", text("The run was too short for its codebooks to be counted."))
    rows = [
        [number + 1, perplexity, 100 * perplexity / size, 100 * used]
        for number, (perplexity, used) in enumerate(zip(event["perplexity"], event["usage"], strict=True))
    ]
    return section(
        "The codebooks",
        text(
            f"Each has {size:,} codewords. The perplexity is how many of them, used equally often, would "
            "say as much. A codeword that hardly any frame chooses is put where a frame is."
        ),
        table(["codebook", "perplexity", "% of its size", "% in use"], rows),
    )


def rollbacks(events: list[dict]) -> list[str]:
    found = [event for event in events if event["event"] == "rolled_back"]
    return [
        text(
            f"At step {event['exploded_at']:.0f} the loss exploded: training went back to step "
            f"{event['rolled_back_to']:.0f}, with the learning rate times {event['lr_scale']:g}."
        )
        for event in found
    ] or [text("No step exploded, so nothing had to be rolled back.")]


if __name__ == "__main__":
    raise SystemExit(run_script(main))
