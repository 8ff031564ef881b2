"""The command line: `audiogen COMMAND ...`."""

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperCommand

from .commands.defaults import BACKBONE, FRONTEND, frontend_settings, refuse_settings
from .commands.options import (
    in_brackets,
    parse_backbone,
    parse_budget,
    parse_device,
    parse_frontend,
    parse_labels,
    parse_seconds,
    parse_settings,
    parse_stages,
    parse_start,
    registered,
    seeds_of_files,
    split_names,
)
from .errors import AudiogenError, ConfigError, printable, reports
from .runs.address import check_name, is_address, parse_address
from .utils.files import check_folder_is_there, check_holds_config, check_is_no_file
from .utils.graph import check_export
from .utils.remote import as_folder, is_remote
from .utils.terminal import Terminal, Terminated, set_up

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="From a folder of WAVs to a generative model that you can listen to.",
)
console = Terminal(highlight=False, soft_wrap=True, markup=False)  # [x] is part of a path, not a style

# Not checked by typer: the code that reads a path reports errors, in one line.
Given = Annotated[Path, typer.Argument(readable=False)]
GivenRun = Annotated[Path, typer.Argument(readable=False, help="A run folder, or hf://OWNER/NAME on the hub.")]


class PartsCommand(TyperCommand):
    """A command whose help lists the registered parts."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Fill in the names, then print the help."""
        names = {
            "{frontends}": ", ".join(registered("frontends", "FRONTENDS")),
            "{backbones}": ", ".join(registered("models/backbones", "BACKBONES")),
            "{frontend}": FRONTEND,
            "{backbone}": BACKBONE,
        }
        parameters: list[Any] = self.params
        for parameter in parameters:
            for placeholder, text in names.items():
                if getattr(parameter, "help", None):
                    parameter.help = parameter.help.replace(placeholder, text)
        super().format_help(ctx, formatter)


class TokenizeCommand(PartsCommand):
    """The command tokenize, where --ray may stand without an address."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Add the address that --ray alone stands for."""
        for place in [place for place, word in enumerate(args) if word == "--ray"][::-1]:
            if not re.fullmatch(r"auto|(ray://)?[^/\\]+:\d+", "".join(args[place + 1 : place + 2])):
                args = [*args[: place + 1], "auto", *args[place + 1 :]]
        return super().parse_args(ctx, args)


Device = Annotated[str, typer.Option(callback=parse_device, help="auto, cpu or cuda.")]
Frontend = Annotated[
    str | None,
    typer.Option(
        callback=parse_frontend,
        help="One of {frontends}; or the folder of a run, cache or front-end, to use its own. Default: {frontend}.",
    ),
]
Backbone = Annotated[str | None, typer.Option(callback=parse_backbone, help="One of {backbones}. Default: {backbone}.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="A.B=1",
        callback=parse_settings,
        help="A setting, by its name in a run's config.json; may be repeated.",
    ),
]
Pattern = Annotated[
    str | None,
    typer.Option(metavar="PATTERN", help="Labels in file names, such as {digit}_{speaker}_{}; {} is what is no label."),
]


def main() -> None:
    """Run a command. Errors that the user can fix print one line and exit with 1, or with 2 for wrong usage."""
    set_up()
    try:
        app()
    except AudiogenError as error:
        if reports(error):
            print(f"audiogen: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        print(
            printable(f"audiogen: {where}{error.strerror or error}; check the path and its permissions"),
            file=sys.stderr,
        )
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":  # torch's, of a GPU
            raise
        what = " ".join(str(error).split())[:200]
        print(printable(f"audiogen: not enough memory ({what}); request less at once"), file=sys.stderr)
        sys.exit(1)
    except Terminated:
        print("audiogen: terminated; what was saved stays", file=sys.stderr)
        sys.exit(143)
    except SystemExit as ended:
        if ended.code == 130:  # typer's code for Ctrl-C
            print("audiogen: interrupted", file=sys.stderr)
        raise


@app.command(cls=PartsCommand)
def doctor(
    folder: Annotated[Path | None, typer.Argument(readable=False, help="A folder of sound files.")] = None,
    overfit: Annotated[bool, typer.Option("--overfit", help="Overfit a single batch as a sanity check.")] = False,
    label_pattern: Pattern = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="List every file.")] = False,
    frontend: Frontend = None,
    backbone: Backbone = None,
    device: Device = "auto",
    settings: Settings = None,
) -> None:
    """Show versions and devices; or, for a folder, which files are used, and why others are not."""
    if overfit and folder is None:
        raise ConfigError("--overfit: needs a FOLDER to take a batch from")
    if not overfit and (frontend or backbone or settings):
        raise ConfigError("--frontend, --backbone and --set apply to --overfit only: add --overfit")
    if folder is None:
        from .doctor.setup import check_setup

        check_setup(console)
        return
    from .doctor.folder import check_folder

    check_folder_is_there(folder)
    if not overfit:
        check_folder(console, folder, verbose, label_pattern=label_pattern)
        return
    from .commands.plan import Flags
    from .doctor.check import check_overfit

    found = check_folder(console, folder, verbose, Flags(frontend, backbone, settings or []), label_pattern)
    check_overfit(console, found, frontend, backbone, device, settings or [])


@app.command(cls=TokenizeCommand)
def tokenize(
    folder: Given,
    out: Given,
    frontend: Frontend = None,
    label_pattern: Pattern = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Encode in this many processes. Default: one per core or GPU, where it saves time."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:PORT]",
            help="Encode on a Ray cluster; without an address, on that of this machine, or a new one here.",
        ),
    ] = None,
    device: Device = "auto",
    settings: Settings = None,
) -> None:
    """Encode a folder once into OUT, which train accepts instead of the folder.

    FOLDER may be the URL of one in an object store, such as s3://BUCKET/FOLDER. If the command is interrupted, the same
    one continues. --set accepts settings of the front-end, and data.held_out.
    """
    if not is_remote(as_folder(folder)):
        check_folder_is_there(folder)
    if ray is not None and workers is not None:
        raise ConfigError("--ray, --workers: a cluster has a process for each of its CPUs; give only one of the two")
    from .commands.tokenize import tokenize as run_tokenize

    cache = run_tokenize(folder, out, frontend, device, settings or [], label_pattern, workers, ray)
    console.print(f"{out}: files encoded: {len(cache)}; train on it with: audiogen train {out} --out runs/NAME")


@app.command()
def decode(
    codes: Given,
    out: Given,
    frontend: Annotated[
        str | None, typer.Option(help="For a file of codes: the front-end that made them, a name or a folder.")
    ] = None,
    device: Device = "auto",
    settings: Settings = None,
) -> None:
    """Decode a cache, or a .npy file of codes, to WAVs."""
    check_is_no_file(out)
    of_frontend, rest = frontend_settings(settings or [])
    refuse_settings(rest)
    from .commands.decode import check_code_file, decode_file
    from .data import EncodedCache
    from .frontends import load_frontend
    from .utils.devices import choose_device

    if not codes.is_dir():
        check_code_file(codes)
        if frontend is None:
            raise ConfigError(f"--frontend: {codes} does not say what made it; add --frontend NAME_OR_RUN")
        front = load_frontend(frontend, **of_frontend).to(choose_device(device))
        if not front.fitted:
            raise ConfigError(
                f"{frontend}: learns from recordings, so its name alone does not determine how to decode; give the "
                "folder of the run or cache that it was fitted in"
            )
        written = decode_file(codes, front, out)
    else:
        if frontend is not None or settings:
            raise ConfigError(f"{codes}: an encoded cache holds its own front-end; leave out --frontend and --set")
        cache = EncodedCache.open(codes)
        cache.frontend().to(choose_device(device))
        written = cache.write_wavs(out)
    console.print(f"{out}: files written: {len(written)}")


@app.command(cls=PartsCommand)
def train(
    folders: Annotated[list[Path], typer.Argument(readable=False, metavar="FOLDER...")],
    out: Annotated[Path, typer.Option(readable=False, help="The run folder to create.")],
    frontend: Frontend = None,
    backbone: Backbone = None,
    stages: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Front-ends of several models, each conditioned on the codes of the one before, such as semantic,mel.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Train for this many steps.")] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Train for this many minutes (default: 10), not counting encoding, evaluation and samples."),
    ] = None,
    condition: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="What to ask for later: labels, such as digit,speaker, and melody, loudness, timbre, position; or "
            "none. Default: all labels found.",
        ),
    ] = None,
    label_pattern: Pattern = None,
    seed: Annotated[int | None, typer.Option(help="Determines weights, crops and dropout (default: 0).")] = None,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in OUT.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop with an error at a bad file.")] = False,
    diagnostics: Annotated[
        bool, typer.Option("--diagnostics", help="Record activations, gradients and weight updates.")
    ] = False,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            callback=parse_start,
            metavar="base|scratch",
            help="Fine-tune the base model, which ships with the package, or train new weights. Default: base where "
            "the front-end and the backbone are the default ones.",
        ),
    ] = None,
    logger: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Also log to tensorboard, wandb (Weights & Biases) or both; none for neither. Default: tensorboard "
            "where it is installed.",
        ),
    ] = None,
    settings: Settings = None,
) -> None:
    """Train a model on a folder of sound files or on a cache, and write a page to listen to.

    Of several folders, --set data.weights=[0.7,0.3] says how often each is heard.
    """
    for folder in folders:
        check_folder_is_there(folder)
    parse_budget(steps, minutes, seed)
    named = parse_stages(stages)
    from .commands.train import train as run_train

    run_train(
        folders,
        out,
        frontend=frontend,
        backbone=backbone,
        steps=steps,
        minutes=minutes,
        seed=seed,
        device=device,
        resume=resume,
        strict=strict,
        diagnostics=diagnostics,
        start=start,
        overrides=settings or [],
        condition=None if condition is None else split_names(condition),
        label_pattern=label_pattern,
        stages=named,
        loggers=None if logger is None else split_names(logger),
    )


@app.command()
def generate(
    run: GivenRun,
    out: Annotated[Path, typer.Option(readable=False, help="Folder for the files.")],
    seconds: Annotated[
        str | None,
        typer.Option(
            help="Seconds of new sound in each file; auto: a complete sound, as long as a training file. Default: auto "
            "if the run has learned short files, else 4; with --like, as long as that recording."
        ),
    ] = None,
    num: Annotated[int, typer.Option(min=1, help="Number of files.")] = 4,
    prompt: Annotated[Path | None, typer.Option(readable=False, help="A sound file to continue.")] = None,
    prompt_seconds: Annotated[
        float | None, typer.Option(help="Continue only so much of the prompt, from its end back. Default: all of it.")
    ] = None,
    only_new: Annotated[bool, typer.Option("--only-new", help="Leave the prompt out of the files.")] = False,
    meaning: Annotated[
        Path | None,
        typer.Option(readable=False, help="A sound file to render, in the prompt's voice; for a run with stages."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="What to ask for; may be repeated. Default: as in the training files."),
    ] = None,
    text: Annotated[str | None, typer.Option(help="A caption to ask for, if the run has learned captions.")] = None,
    melody: Annotated[
        Path | None, typer.Option(readable=False, help="A sound file whose melody to follow, from the beginning on.")
    ] = None,
    loudness: Annotated[
        Path | None, typer.Option(readable=False, help="A sound file whose loudness to follow.")
    ] = None,
    timbre: Annotated[
        Path | None,
        typer.Option(readable=False, help="A sound file to sound like. Default: the prompt, if there is one."),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(readable=False, help="A sound file to vary: its labels, melody, loudness, timbre and length."),
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How strongly to follow it; 1 is as learned. Default: the run's own.")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Below 1, favour probable codes; 1 draws as predicted; 0 is greedy. Default: the run's own."),
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw among the K most probable codes.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw among the most probable codes that add up to this probability.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Drop codes less probable than this fraction of the most probable one.")
    ] = None,
    best_of: Annotated[
        int, typer.Option(help="Draw each file so many times; keep the one that says most clearly what is asked for.")
    ] = 1,
    seed: Annotated[int | None, typer.Option(help="Seed of the first file; the others count up.")] = None,
    precision: Annotated[str, typer.Option(help="Weights in an engine: fp32, bf16 or int8.")] = "fp32",
    stream: Annotated[bool, typer.Option("--stream", help="Write each WAV while it is generated.")] = False,
    format: Annotated[str, typer.Option(metavar="wav|flac", help="Format of the files.")] = "wav",
    bits: Annotated[
        int, typer.Option(metavar="16|24|32", help="Bits per sample; 32 are floats, and for WAV only.")
    ] = 16,
    device: Device = "auto",
) -> None:
    """Generate sound files with a run, and print the seed of each."""
    check_is_no_file(out)
    asked, length = parse_labels(label or []), None if seconds is None else parse_seconds(seconds)
    others = {"text": text, "melody": melody, "loudness": loudness, "timbre": timbre}
    asked = {**asked, **{name: value for name, value in others.items() if value is not None}}
    if stream and length is None and seconds is not None:
        raise ConfigError("--stream: a stream has no end of its own; give --seconds a number")
    from .audio.coding import Coding
    from .generation.request import DEFAULT_SECONDS, check_best_of, check_guidance, check_precision
    from .models.sampling import Sampling

    coding = Coding(format.lower(), bits)
    filters = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    filters = {name: value for name, value in filters.items() if value is not None}
    Sampling(**filters)
    check_precision(precision)
    check_guidance(1.0 if guidance is None else guidance)
    check_best_of(best_of)
    seeds_of_files(num * best_of, seed)
    check_is_run(run)
    from .commands.samples import FileRequest, asked_like, generate_files, stream_files
    from .runs.run import load_run
    from .utils.devices import choose_device

    loaded = load_run(run, choose_device(device), precision)
    if meaning is not None and loaded.before is None:
        raise ConfigError(f"--meaning: {run} has no stages; audiogen train FOLDER --out RUN --stages semantic,mel")
    sampling = loaded.sampling_with(**filters)
    if like is not None:
        found, duration = asked_like(loaded, like)
        asked, length = {**found, **asked}, duration if seconds is None else length
    elif seconds is None and meaning is not None:
        from .audio.io import audio_info

        length = audio_info(meaning).duration
    elif seconds is None and (stream or prompt is not None or not loaded.knows_ends):
        length = DEFAULT_SECONDS
    request = FileRequest(length, prompt, prompt_seconds, only_new, sampling, asked, guidance, meaning, coding, best_of)
    if stream:
        for made in stream_files(loaded, out, request, num, seed):
            console.print(
                f"{made.path}  seed {made.seed}{in_brackets(made.asked)}  first sound after {made.first_sound:.2f} s, "
                f"{made.real_times:.2f} times real time"
            )
        return
    for path, used, said in generate_files(loaded, out, request, num, seed):
        console.print(f"{path}  seed {used}{in_brackets(said)}")


@app.command()
def evaluate(
    run: GivenRun,
    folder: Given,
    generate: Annotated[
        int, typer.Option(min=0, max=1000, help="Generate this many clips and compare them with the files.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    device: Device = "auto",
) -> None:
    """Score a run on files of a folder that it was not trained on, beside count-based baselines."""
    check_is_run(run)
    check_folder_is_there(folder)
    from .evaluation.report import evaluate_folder
    from .evaluation.wording import heard_tables, in_words, report_rows
    from .runs.folder import write_report
    from .runs.run import load_run
    from .utils.devices import choose_device

    loaded = load_run(run, choose_device(device))
    report = evaluate_folder(loaded, folder, generate)
    if loaded.address is None and "likeness" not in report:  # on other files it does not tell what the run has learned
        write_report(loaded.folder, report)
    if as_json:
        print(json.dumps(report, indent=2))
        return
    table = Table("what", "value", title=f"{run} on {folder}")
    for row in report_rows(report):
        table.add_row(*row)
    console.print(table)
    for title, header, rows in heard_tables(report):
        table = Table(*header, title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(in_words(report))


@app.command()
def export(
    run: GivenRun,
    out: Given,
    format: Annotated[
        str,
        typer.Option(
            metavar="onnx|web|torch",
            help="ONNX; ONNX with a page that plays the run in a browser; or programs of torch.export.",
        ),
    ] = "onnx",
    precision: Annotated[
        str, typer.Option(metavar="fp32|fp16", help="How the weights are stored; fp16 halves the file.")
    ] = "fp32",
    settings: Settings = None,
) -> None:
    """Write a run as graphs that run without audiogen, and check each against PyTorch."""
    check_is_no_file(out)
    check_export(format, precision)
    of_frontend, rest = frontend_settings(settings or [])
    refuse_settings(rest)
    check_is_run(run)
    from .commands.export import export_files
    from .runs.run import load_run

    for line in export_files(load_run(run), out, format, precision, of_frontend):
        console.print(line)


@app.command()
def listen(
    runs: Annotated[list[Path], typer.Argument(readable=False)],
    out: Annotated[Path | None, typer.Option(readable=False, help="Path of the page.")] = None,
) -> None:
    """Write the listening page of a run, or a page that compares several, in the folder above the first."""
    for run in runs:
        check_holds_config(run)
    from .listen import write_page

    console.print(f"open {write_page(runs, out)}")


@app.command()
def serve(
    run: GivenRun,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 7860,
    host: Annotated[
        str, typer.Option(help="Address to listen at; by default, only this machine reaches it. There is no password.")
    ] = "127.0.0.1",
    max_seconds: Annotated[
        float, typer.Option(min=0.5, max=600, help="Maximum seconds of new sound in a request.")
    ] = 60.0,
    precision: Annotated[str, typer.Option(help="Weights in an engine: fp32, bf16 or int8.")] = "fp32",
    device: Device = "auto",
) -> None:
    """Generate in the browser, and over HTTP: serve a page and an API."""
    check_is_run(run)
    from .generation.request import check_precision

    check_precision(precision)
    from .commands.serve import serve as run_serve

    run_serve(run, host, port, max_seconds, device, precision)


@app.command()
def push(
    run: Given,
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Its name on the hub.")],
    license: Annotated[
        str | None, typer.Option(help="Identifier of a licence for the model card, such as cc-by-4.0.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Push a run to the Hugging Face hub, with a model card and a few samples, but no recordings."""
    check_name(name)
    check_holds_config(run)
    from .runs.card import license_of
    from .runs.hub import push_run

    address = push_run(run, name, license, private)
    card = (run / "README.md").read_text(encoding="utf-8") if (run / "README.md").exists() else ""
    console.print(f"{address}: pushed; load it with: audiogen generate hf://{address.name} --out out")
    if license_of(card) == "unknown":
        console.print("its licence is unknown to others; push again with --license, such as cc-by-4.0")


def check_is_run(run: Path) -> None:
    """Check that this can be a run: a folder with a config.json, or a well-formed address on the hub."""
    if is_address(run):
        parse_address(run)
    else:
        check_holds_config(run)


if __name__ == "__main__":
    main()
