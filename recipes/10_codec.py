"""Lesson 10: a neural codec, which learns what can be left out of a sound.

    python recipes/10_codec.py FOLDER [FOLDER ...] [--from shipped] [--out runs/10_codec] [--minutes 8] [--resume]

What it teaches. An encoder compresses the spectra of 20 ms into a vector; a decoder turns the vector back into spectra,
whose overlapping waveforms add up to sound. Between them is a residual vector quantizer: the first codebook chooses the
nearest of its 1,024 vectors, the next one encodes the remainder, and so on; each further codebook costs the same and
adds less. Choosing the nearest vector has no gradient, so the decoder's gradient is passed to the encoder unchanged (a
straight-through estimator), and each codeword moves towards the vectors that chose it. The losses imitate hearing: they
compare spectra at several resolutions on the mel scale. Each loss gets a fixed share of the gradient, so none can drown
out the others.

How it carries over to audio. Models that generate sound from tokens usually build on such a codec, and what it loses is
lost to every model after it. The encoder needs 10 ms of sound after each frame of 20 ms, and the decoder adds 10 ms, so
the codec is fast enough for a conversation. Its networks work on spectra because training time is short: a network that
outputs samples has to learn to oscillate first; in a trial, an hour of training got it no further than a few minutes
get these. The run folder is a front-end like any other:

    audiogen train FOLDER --out runs/mine --frontend runs/10_codec

What to try. --from shipped begins with the weights that come with audiogen: how much closer to your own sounds do eight
minutes get them, and how far behind are new weights? --set frontend.codebook_size=64: fewer bits, and how does it
sound? --set frontend.lookup_dim=8 makes the codebooks compare directions in only eight dimensions: are more of their
codes in use? On a GPU, --set frontend.adversarial_from=0.3 --set frontend.discriminator_channels=32 adds
discriminators, networks that learn to tell decoded from recorded spectra: what do they improve that no distance between
spectra does? On a CPU they take most of the time. This script, with --export, trained the codec that comes with
audiogen (see its card in audiogen/weights).
"""

from pathlib import Path

from torch import Tensor

from audiogen.audio.lossy import OPUS_RATES, code_opus
from audiogen.commands.defaults import frontend_settings
from audiogen.commands.train_frontend import export_weights, train_frontend
from audiogen.course.lesson_page import versions, write_lesson
from audiogen.course.lesson_parser import LessonParser
from audiogen.errors import ConfigError
from audiogen.evaluation.reconstruction import codebook_statistics, joined, mel_distance, si_sdr, stft_distance
from audiogen.frontends import Codec
from audiogen.listen import Line, clip_slider, line_chart, section, table, text
from audiogen.runs.event_log import read_metrics
from audiogen.utils.scripts import run_script


def main() -> None:
    """Run the lesson."""
    parser = LessonParser(__file__, __doc__)
    parser.add_argument("more", type=Path, nargs="*", metavar="folder", help="further folders")
    parser.add_argument("--minutes", type=float, default=8.0, help="training time; a codec keeps improving for hours")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--from",
        dest="start",
        choices=("scratch", "shipped"),
        default="scratch",
        help="new weights, or those that come with audiogen",
    )
    parser.add_argument("--resume", action="store_true", help="continue training")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="frontend.A=1", help="a setting of the codec"
    )
    parser.add_argument("--export", type=Path, help="also write the weights to this file, rounded to 16 bits")
    args = parser.parse_args()
    settings, unknown = frontend_settings(args.overrides)
    if unknown:
        raise ConfigError(f"--set {unknown[0]}: only settings of the codec can be set here, such as frontend.dim")
    if "weights" in settings:
        raise ConfigError("--set frontend.weights: this script always trains; use --from scratch or --from shipped")
    start = {"weights": "finetune" if args.start == "shipped" else "fit"}
    if args.short:
        small = {} if args.start == "shipped" else {"codebook_size": 16, "dim": 8, "latent_dim": 4}
        quick = {"num_codebooks": 4, "batch_size": 2, "adversarial_from": 0.5, "discriminator_channels": 2}
        settings = {**small, **quick, **settings}
    else:
        settings = {"num_codebooks": 12, **settings}

    # 1. Train: on the files that are not held out. Ctrl-C saves; --resume continues.
    trained = train_frontend(
        "codec",
        [args.folder, *args.more],
        args.out,
        {**settings, **start},
        steps=6 if args.short else None,
        minutes=None if args.short else args.minutes,
        resume=args.resume,
        device=args.device,
    )
    if not trained.finished:
        print("stopped and saved; continue with --resume")
        return
    codec = trained.frontend
    spec = codec.spec
    bits = spec.bitrate / spec.num_codebooks  # bits per second of one codebook
    print(
        f"{spec.frame_rate:g} frames per second, {spec.num_codebooks} codebooks of {bits:g} bits per second each; "
        f"latency {codec.latency_ms:g} ms"
    )
    if args.export:
        export_weights(codec, args.export)
        print(f"{args.export}: {args.export.stat().st_size / 1e6:.2f} MB")

    # 2. What each further codebook adds: on held-out files, joined into clips of ten seconds, since a single spoken
    #    digit is too short for the measures. Opus is the codec of most internet calls.
    clips = joined(trained.held_out, spec.sample_rate, 1.0 if args.short else 10.0)[:4]
    counts = sorted({max(1, spec.num_codebooks * part // 8) for part in (1, 2, 3, 4, 6, 8)})
    heard: dict[str, list[Tensor]] = {}
    rows = []
    for count in counts:
        decoded = [round_trip(codec, clip, count) for clip in clips]
        heard[f"{count} ({count * bits / 1000:g} kbit/s)"] = decoded[:3]
        rows.append([f"{count * bits / 1000:g} kbit/s", count, *figures(clips, decoded, spec.sample_rate)])
    heard["original"] = clips[:3]
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
    kinds = versions(args.out / "samples", heard, spec.sample_rate)
    page = write_lesson(
        __file__,
        args,
        section(
            "What each codebook adds",
            text(
                "Held-out files, joined into clips of about ten seconds. The mel distance compares log spectra on the "
                "mel scale, as hearing does; 0 is perfect. The STFT distance weights all frequencies equally. The "
                "signal-to-distortion ratio (SI-SDR) compares waveforms; higher is closer. A codec that replaces noise "
                "by other noise, which sounds the same, has a low ratio and may still sound good."
            ),
            table(["bitrate", "codebooks", "mel distance", "STFT distance", "SI-SDR (dB)"], rows),
            text(
                f"With ideal entropy coding of each code by its frequency, all {spec.num_codebooks} codebooks "
                f"would need {statistics['bits_per_second']:,.0f} instead of {spec.bitrate:,.0f} bits per second for "
                "these clips."
            ),
        ),
        section(
            "What it sounds like",
            text(
                "Move the slider while a clip plays: from few codebooks to all, and to the original. Listen for what "
                "gets lost first: breath and hiss, the edges of consonants, the shimmer of a high string. In the "
                "spectrograms, look at the highest frequencies and at the gaps between harmonics."
            ),
            clip_slider("codebooks", kinds, len(counts) - 1),
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
            text(
                "The codebooks are switched on early in training. From then on the decoder gets codewords instead of "
                "the encoder's own vectors, so the losses may jump up at that step."
            ),
        ),
        codebooks(books[-1] if books else None, spec.codebook_size),
        section("Rollbacks during training", *rollbacks(events)),
        before_after=[several[0] for several in list(kinds.values())[: len(counts) : max(1, len(counts) - 1)]],
    )
    print(f"open {page}")


def figures(originals: list[Tensor], decoded: list[Tensor], rate: int) -> list[float]:
    """Return the mel distance, STFT distance and SI-SDR of clips (1, N), each averaged over the clips."""
    measures = (mel_distance, stft_distance, lambda a, b, rate: si_sdr(a, b))
    pairs = list(zip(originals, decoded, strict=True))
    return [sum(measure(a, b, rate) for a, b in pairs) / len(pairs) for measure in measures]


def round_trip(codec: Codec, wav: Tensor, count: int) -> Tensor:
    """Encode a wav (1, N) and decode its first `count` codebooks: (1, N)."""
    codes = codec.encode(wav[None].to(codec.device))[:, :count]
    return codec.decode(codes)[0, :, : wav.shape[1]].cpu()


def codebooks(event: dict | None, size: int) -> str:
    """Report the perplexity and usage of each codebook, from the moving averages of training.

    Args:
        event: the last "codebooks" event of the run, or None.
        size: codewords per codebook.
    """
    if event is None:
        return section("The codebooks", text("The run was too short to measure the use of its codebooks."))
    rows = [
        [number + 1, perplexity, 100 * perplexity / size, 100 * used]
        for number, (perplexity, used) in enumerate(zip(event["perplexity"], event["usage"], strict=True))
    ]
    return section(
        "The codebooks",
        text(
            f"Each codebook has {size:,} codewords. The perplexity is the number of equally frequent codewords with "
            "the same entropy. During training, a codeword that hardly any frame chooses is replaced by the vector "
            "of a random frame."
        ),
        table(["codebook", "perplexity", "% of its size", "% in use"], rows),
    )


def rollbacks(events: list[dict]) -> list[str]:
    """Report each step at which the loss exploded and training went back to an earlier state."""
    found = [event for event in events if event["event"] == "rolled_back"]
    return [
        text(
            f"At step {event['exploded_at']:.0f} the loss exploded; training went back to step "
            f"{event['rolled_back_to']:.0f}, with the learning rate multiplied by {event['lr_scale']:g}."
        )
        for event in found
    ] or [text("The loss never exploded, so nothing was rolled back.")]


if __name__ == "__main__":
    raise SystemExit(run_script(main))
