"""The commands as users type them: what they print and where, which files they leave, and their exit status."""

import json
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from corpus import RATE, folder_of_notes, note, tiny_settings
from folders import write_wav
from processes import Result, audiogen

from audiogen.audio.io import audio_info, read_audio
from audiogen.runs.event_log import read_metrics
from audiogen.runs.run import load_run
from audiogen.training.checkpoint import load_checkpoint

TINY = ["--frontend", "mulaw", "--backbone", "bigram", "--device", "cpu"]
SETTINGS = [
    "frontend.bits=4",
    "backbone.dim=8",
    "training.crop_frames=32",
    "training.batch_size=2",
    "training.evaluations=2",
    "training.sample_seconds=0.02",
]
SET = [word for setting in SETTINGS for word in ("--set", setting)]
FROM_CACHE = [word for setting in SETTINGS if "frontend" not in setting for word in ("--set", setting)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return folder_of_notes(tmp_path_factory.mktemp("corpus"), [2000, 1500, 2500, 1800])


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """A run trained by the command line, and what the command printed."""
    place = tmp_path_factory.mktemp("trained")
    result = audiogen(place, "train", corpus, "--out", place / "run", *TINY, "--steps", "4", *SET)
    assert result.code == 0, result.err
    return place / "run", result


def assert_refused(result: Result, message: str, code: int = 1):
    """Check for one line on stderr that says what is wrong, no traceback, nothing on stdout, and the exit status."""
    assert result.code == code, result
    assert "Traceback" not in result.err + result.out
    assert result.out == ""
    (line,) = (line for line in result.err.splitlines() if line.startswith("audiogen: "))
    assert result.err.splitlines()[-1] == line
    assert re.search(message, line), line


# ---- the way through


def test_train_leaves_a_run_and_says_what_matters(trained, corpus):
    """Guards against a loss printed without anything to compare it with, progress bars in a log file, and a page whose
    path is not printed."""
    run, result = trained
    assert result.out == ""
    assert "3 files (0.0 min) to train on, 1 (0.0 min) held out" in result.err
    for line in (
        "bits per code: ",
        "bits per sample: ",
        "bits per second of audio: ",
        "uniform, counted",
        "unigram, counted",
        "bigram, counted",
        "round trip of 1 file: mel distance",
    ):
        assert line in result.err
    assert f"listen: open {run / 'index.html'}" in result.err
    assert "\r" not in result.err and "it/s" not in result.err
    assert (run / "index.html").exists()
    assert load_run(run).step in (2, 4)


def test_train_resume_generate_evaluate_listen(trained, corpus, tmp_path):
    """Guards against commands that need more than the previous one has left, a seed that is not printed, and JSON mixed
    with text. Runs the main commands one after another."""
    run = shutil.copytree(trained[0], tmp_path / "run")
    again = audiogen(tmp_path, "train", corpus, "--out", run, *TINY, "--steps", "6", *SET, "--resume")
    assert again.code == 0, again.err
    assert load_checkpoint(run / "checkpoints").step == 6
    assert [event["step"] for event in read_metrics(run) if event["event"] == "held_out"] == [2, 4, 6]

    shutil.move(run, tmp_path / "moved")
    run = tmp_path / "moved"
    made = audiogen(tmp_path, "generate", run, "--out", tmp_path / "out", "--seconds", "0.05", "--num", "3")
    assert made.code == 0 and not [line for line in made.err.splitlines() if not line.startswith("limiter: ")]
    written = dict(re.fullmatch(r"(\S+)  seed (\d+)", line).groups() for line in made.out.splitlines())
    assert len(written) == 3
    for path, seed in written.items():
        said = json.loads(Path(path).with_suffix(".json").read_text())
        assert said["seed"] == int(seed) and said["kind"] == "generated"
        assert audio_info(path).num_samples == 400
        one = audiogen(
            tmp_path, "generate", run, "--out", tmp_path / "again", "--seconds", "0.05", "--num", "1", "--seed", seed
        )
        assert Path(one.out.split()[0]).read_bytes() == Path(path).read_bytes()

    prompt = next(corpus.iterdir())
    on = audiogen(
        tmp_path,
        "generate",
        run,
        "--out",
        tmp_path / "on",
        "--seconds",
        "0.05",
        "--num",
        "1",
        "--prompt",
        prompt,
        "--temperature",
        "0.8",
        "--top-k",
        "5",
        "--top-p",
        "0.9",
        "--min-p",
        "0.01",
        "--seed",
        "7",
    )
    assert on.code == 0, on.err
    said = json.loads((tmp_path / "on" / "sample-7.json").read_text())
    assert said["sampling"] == {"temperature": 0.8, "top_k": 5, "top_p": 0.9, "min_p": 0.01}
    assert audio_info(tmp_path / "on" / "sample-7.wav").num_samples == audio_info(prompt).num_samples + 400
    decoded = load_run(run).frontend.decode(load_run(run).frontend.encode(read_audio(prompt)[None]))[0]
    kept = read_audio(tmp_path / "on" / "sample-7.wav")[:, : decoded.shape[1]]
    half = kept.shape[1] // 2  # before a louder continuation, the limiter turns down the end of the prompt as well
    assert float((kept - decoded)[:, :half].abs().max()) < 1e-3  # it begins with the prompt

    found = audiogen(tmp_path, "evaluate", run, corpus, "--json")
    assert found.code == 0, found.err
    report = json.loads(found.out)
    assert (report["unit"], report["files"], report["seen"]) == ("bits", 1, 3)
    table = audiogen(tmp_path, "evaluate", run, corpus)
    assert f"{report['loss']:.3f}" in table.out and "bigram" in table.out and "as unsure as" in table.out

    (run / "index.html").unlink()
    page = audiogen(tmp_path, "listen", run, trained[0], "--out", tmp_path / "both.html")
    assert page.code == 0 and page.out == f"open {tmp_path / 'both.html'}\n"
    text = (tmp_path / "both.html").read_text()
    assert "moved" in text and "<audio" in text
    assert audiogen(tmp_path, "listen", run).out == f"open {run / 'index.html'}\n"
    before = (run / "index.html").read_bytes()
    both = audiogen(tmp_path, "listen", run, trained[0])
    assert both.out == f"open {tmp_path / 'side-by-side.html'}\n"
    assert (run / "index.html").read_bytes() == before, "a page of two runs takes the place of neither's own"


def test_tokenize_train_from_the_cache_decode(trained, corpus, tmp_path):
    """Guards against a cache that trains another model than its folder, and decoded sounds that are renamed or cut."""
    cache = tmp_path / "cache"
    result = audiogen(tmp_path, "tokenize", corpus, cache, *TINY[:2], "--set", "frontend.bits=4")
    assert result.code == 0, result.err
    assert result.out == f"{cache}: files encoded: 4; train on it with: audiogen train {cache} --out runs/NAME\n"
    run = tmp_path / "run"
    result = audiogen(tmp_path, "train", cache, "--out", run, *TINY[2:], "--steps", "4", *FROM_CACHE)
    assert result.code == 0, result.err
    assert (run / "model.safetensors").read_bytes() == (trained[0] / "model.safetensors").read_bytes()
    assert not (run / "cache").exists()
    counted = [
        json.loads(audiogen(tmp_path, "evaluate", folder, cache, "--json").out)["baselines"]
        for folder in (trained[0], run)
    ]
    assert counted[0] == counted[1] is not None, "a run finds the codes that it was trained from, wherever they lie"

    result = audiogen(tmp_path, "decode", cache, tmp_path / "wavs")
    assert result.code == 0 and result.out == f"{tmp_path / 'wavs'}: files written: 4\n"
    frontend = load_run(run).frontend
    for path in corpus.iterdir():
        original, back = read_audio(path), read_audio(tmp_path / "wavs" / path.name)
        assert back.shape == original.shape
        assert float((back - frontend.decode(frontend.encode(original[None]))[0]).abs().max()) < 1e-4


def test_a_file_of_codes_is_decoded_by_the_front_end_that_is_named(trained, corpus, tmp_path):
    """Guards against codes that only decode from a cache, a file whose pickle is executed, and codes of another
    front-end that are decoded to noise without an error."""
    frontend = load_run(trained[0]).frontend
    wav = read_audio(next(corpus.iterdir()))
    codes = frontend.encode(wav[None])
    np.save(tmp_path / "one.npy", codes[0, 0].numpy())
    np.save(tmp_path / "two.npy", torch.cat([codes, codes.flip(2)]).numpy())
    result = audiogen(tmp_path, "decode", tmp_path / "one.npy", tmp_path / "wavs", "--frontend", trained[0])
    assert result.code == 0 and result.out == f"{tmp_path / 'wavs'}: files written: 1\n"
    back = read_audio(tmp_path / "wavs" / "one.wav")
    assert float((back - frontend.decode(codes)[0]).abs().max()) < 1e-4
    assert audiogen(tmp_path, "decode", tmp_path / "two.npy", tmp_path / "wavs", "--frontend", trained[0]).code == 0
    assert read_audio(tmp_path / "wavs" / "two-1.wav").shape == back.shape

    assert_refused(
        audiogen(tmp_path, "decode", tmp_path / "one.npy", tmp_path / "wavs", "--frontend", "melvq"),
        "melvq: learns from recordings, .*give the folder",
        code=2,
    )
    assert_refused(audiogen(tmp_path, "decode", tmp_path / "one.npy", tmp_path / "wavs"), "add --frontend", code=2)
    np.save(tmp_path / "large.npy", np.full(9, 99))
    result = audiogen(tmp_path, "decode", tmp_path / "large.npy", tmp_path / "wavs", "--frontend", trained[0])
    assert result.code == 1 and "large.npy: codes must lie in [0, 16)" in result.err
    np.save(tmp_path / "evil.npy", np.array([print], dtype=object), allow_pickle=True)
    (tmp_path / "README.md").write_text("# mine")
    for name, message in (
        ("evil.npy", "evil.npy: can't be read as codes .*Python objects"),
        ("not-there.npy", "not-there.npy: is not there; give an encoded cache"),
        ("README.md", "README.md: is not a .npy file; give an encoded cache"),
    ):
        for more in ([], ["--frontend", "mulaw"]) if "evil" not in name else (["--frontend", "mulaw"],):
            result = audiogen(tmp_path, "decode", tmp_path / name, tmp_path / "wavs", *more)
            assert_refused(result, message)
            assert "Errno" not in result.err and "pickle" not in result.err
    np.save(tmp_path / "frames.npy", np.zeros((1, 80, 9), np.float32))
    result = audiogen(tmp_path, "decode", tmp_path / "frames.npy", tmp_path / "wavs", "--frontend", "mulaw")
    assert result.code == 1 and "frames.npy: holds float32 (1, 80, 9), but this front-end decodes int" in result.err


def test_a_front_end_can_be_taken_from_a_run(trained, corpus, tmp_path):
    """Guards against a --frontend RUN that is fitted again, or used with default settings."""
    result = audiogen(tmp_path, "tokenize", corpus, tmp_path / "cache", "--frontend", trained[0])
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "cache" / "config.json").read_text())["frontend"]["bits"] == 4


def test_a_learned_front_end_is_fitted_on_training_files_alone(corpus, tmp_path):
    """Guards against fitting on held-out sound: with another held-out file, the front-end must stay the same."""
    settings = [word for name, value in tiny_settings("mel").items() for word in ("--set", f"frontend.{name}={value}")]
    tail = [
        "--frontend",
        "mel",
        "--backbone",
        "bigram",
        "--steps",
        "1",
        *settings,
        "--set",
        "backbone.dim=4",
        "--set",
        "training.sample_seconds=0.02",
        "--set",
        "training.crop_frames=8",
    ]
    first = audiogen(tmp_path, "train", corpus, "--out", tmp_path / "run", *tail)
    assert first.code == 0, first.err
    (held_out,) = (part.file for part in load_run(tmp_path / "run").split().held_out)
    for seed in range(50, 90):
        other = shutil.copytree(corpus, tmp_path / f"other-{seed}")
        write_wav(other / held_out.path, note(seed, held_out.num_samples))
        second = audiogen(tmp_path, "train", other, "--out", tmp_path / f"run-{seed}", *tail)
        assert second.code == 0, second.err
        if [part.file.path for part in load_run(tmp_path / f"run-{seed}").split().held_out] == [held_out.path]:
            break  # its hash, too, comes first
    assert (tmp_path / f"run-{seed}" / "frontend.safetensors").read_bytes() == (
        tmp_path / "run" / "frontend.safetensors"
    ).read_bytes()


def test_the_doctor_looks_through_a_folder(corpus, tmp_path):
    """Guards against a doctor that needs more than the package, or does not mention a bad file."""
    folder = shutil.copytree(corpus, tmp_path / "corpus")
    (folder / "bad.wav").write_bytes(b"RIFF")
    alone, with_folder = audiogen(tmp_path, "doctor"), audiogen(tmp_path, "doctor", folder)
    assert alone.code == with_folder.code == 0, alone.err + with_folder.err
    assert "torch" in alone.out
    assert "bad.wav" in with_folder.out and "note-00.wav" in with_folder.out
    assert_refused(audiogen(tmp_path, "doctor", tmp_path / "none"), "none: there is no such folder")


# ---- wrong usage


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["sing"], "No such command"),
        (["train"], "Missing"),
        (["train", "x"], "Missing"),
        (["train", "x", "--out", "y", "--stepz", "3"], "No such option"),
        (["train", "x", "--out", "y", "--steps", "many"], "--steps"),
        (["generate", "x", "--out", "y", "--num", "0"], "--num"),
        (["generate", "x", "--out", "y", "--seconds", "long"], "--seconds"),
        (["doctor", "--overfit"], "needs a FOLDER"),
        (["listen"], "Missing"),
    ],
)
def test_wrong_usage_exits_with_2(tmp_path, arguments, message):
    """Guards against scripts that can't distinguish a typo from a bad file."""
    result = audiogen(tmp_path, *arguments)
    assert result.code == 2, result
    assert message in result.err and "Traceback" not in result.err


def test_help_names_every_command_and_option(tmp_path):
    """Guards against renaming a command or an option that users rely on."""
    fixed = {
        "doctor": ["--overfit"],
        "tokenize": ["--frontend"],
        "decode": [],
        "listen": [],
        "evaluate": ["--json"],
        "train": [
            "--out",
            "--frontend",
            "--backbone",
            "--steps",
            "--minutes",
            "--seed",
            "--device",
            "--resume",
            "--set",
            "--strict",
            "--diagnostics",
        ],
        "generate": [
            "--out",
            "--seconds",
            "--num",
            "--prompt",
            "--temperature",
            "--top-k",
            "--top-p",
            "--min-p",
            "--seed",
            "--device",
        ],
    }
    said = audiogen(tmp_path, "--help")
    assert said.code == 0
    for command, options in fixed.items():
        assert re.search(rf"\b{command}\b", said.out)
        more = audiogen(tmp_path, command, "--help")
        assert more.code == 0
        assert [option for option in options if option not in more.out] == []


def test_the_module_runs_as_a_command(tmp_path):
    """Guards against an entry point that works only in tests, and tracebacks that tests do not show."""
    command = [sys.executable, "-m", "audiogen"]
    result = subprocess.run([*command, "evaluate", tmp_path / "none", tmp_path], capture_output=True, text=True)
    assert_refused(Result(result.returncode, result.stdout, result.stderr), "none: there is no such folder")


# ---- settings


@pytest.mark.parametrize(
    "settings, message",
    [
        (["training.learning_rat=1"], "training.learning_rat: unknown setting, did you mean training.learning_rate"),
        (["backbone.dims=3"], "backbone.dims: unknown setting, did you mean backbone.dim"),
        (["frontend.bitz=3"], "frontend.bitz: unknown setting, did you mean frontend.bits"),
        (["trainin.steps=3"], "trainin.steps: unknown setting, did you mean training"),
        (["pattern.kin=delay"], "pattern.kin: unknown setting, did you mean pattern.kind"),
        (["bakbone=3"], "bakbone: unknown setting, did you mean backbone"),
        (["pattern.kind=dealy"], "there is no 'dealy', did you mean delay"),
        (["training"], "'training': settings are written as name=value"),
        (["=1"], "settings are written as name=value"),
        (["training=3"], "training: is a group of settings"),
        (["training.batch_size=many"], "training.batch_size: expected int, got 'many'"),
        (["training.crop_frames=long"], "training.crop_frames: expected int"),
        (["training.crop_frames=null"], "training.crop_frames: expected int"),
        (["training.crop_frames=0"], "training.crop_frames: must be 1 or more"),
        (["training.precision=fp8"], "training.precision: expected one of auto, fp32, bf16"),
        (["training.steps=5", "training.minutes=1"], "set either steps or minutes"),
        (["backbone.dim=0"], "backbone.dim: must be 1 or more"),
        (["backbone.dim=1e9"], "backbone.dim: expected int"),
        (["frontend.bits=99"], "frontend.bits: must be from 2 to 16"),
        (["data.held_out=1"], "data.held_out"),
    ],
)
def test_settings_that_can_not_be_are_refused(corpus, tmp_path, settings, message):
    """Guards against ignoring a wrong setting and training for an hour without it."""
    more = [word for setting in settings for word in ("--set", setting)]
    assert_refused(audiogen(tmp_path, "train", corpus, "--out", tmp_path / "run", *TINY, *more), message, code=2)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    "command, setting",
    [
        ("tokenize", "backbone.dim"),
        ("tokenize", "training.seed"),
        ("tokenize", "pattern.kind"),
        ("decode", "backbone.dim"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(corpus, tmp_path, command, setting):
    """Guards against accepting a model setting in a command that makes no model, and silently ignoring it."""
    np.save(tmp_path / "codes.npy", np.zeros(9, int))
    what = corpus if command == "tokenize" else tmp_path / "codes.npy"
    assert_refused(
        audiogen(tmp_path, command, what, tmp_path / "out", "--frontend", "mulaw", "--set", f"{setting}=8"),
        f"{setting}: nothing is trained here",
        code=2,
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--steps", "3", "--minutes", "1"], "give one of them, not both"),
        (["--steps", "0"], "training.steps"),
        (["--minutes", "-1"], "training.minutes"),
        (["--minutes", "nan"], "training.minutes"),
        (["--seed", "-1"], "training.seed"),
        (["--seed", str(2**64)], "training.seed"),
        (["--device", "gpu"], "--device: 'gpu' is unknown; choose auto, cpu or cuda"),
        (["--device", "cpu:x"], "--device: 'cpu:x' is unknown; choose auto, cpu or cuda"),
        (["--frontend", "melvg"], "there is no 'melvg', did you mean melvq"),
        (["--backbone", "gtp"], "there is no 'gtp', did you mean gpt"),
        (["--frontend", "mel", "--set", "pattern.kind=delay"], "only parallel fits"),
        (["--device", "cuda:99"], "--device: there is no GPU 'cuda:99'"),
    ],
)
def test_options_that_can_not_be_are_refused(corpus, tmp_path, arguments, message):
    """Guards against a traceback for a bad value of an option."""
    assert_refused(
        audiogen(tmp_path, "train", corpus, "--out", tmp_path / "run", "--backbone", "bigram", *arguments),
        message,
        code=2,
    )


@pytest.mark.parametrize(
    "frontend, message",
    [
        ("./none", "none: there is no such folder"),
        ("melvq", "frontend.codebook_size: 256 codes .*choose fewer, or add recordings"),
    ],
)
def test_front_ends_that_do_not_go_with_what_is_there_are_refused(corpus, tmp_path, frontend, message):
    """Guards against exit status 2 (wrong usage) for a fault of files on the disk."""
    assert_refused(
        audiogen(tmp_path, "train", corpus, "--out", tmp_path / "run", "--backbone", "bigram", "--frontend", frontend),
        message,
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--seconds", "0"], "seconds: must be above 0"),
        (["--seconds", "nan"], "seconds"),
        (["--temperature", "-1"], "temperature: must be 0 or more"),
        (["--temperature", "nan"], "temperature"),
        (["--top-k", "0"], "top_k"),
        (["--top-p", "0"], "top_p"),
        (["--min-p", "2"], "min_p"),
        (["--seed", "-1"], "seed.*-1"),
        (["--seed", str(2**64)], "seed"),
        (["--device", "gpu"], "--device"),
    ],
)
def test_generate_refuses_what_can_not_be(trained, tmp_path, arguments, message):
    """Guards against generating with an option that is out of range."""
    assert_refused(audiogen(tmp_path, "generate", trained[0], "--out", tmp_path / "out", *arguments), message, code=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("prompt", ["none.wav", __file__])
def test_generate_refuses_a_prompt_that_is_no_sound(trained, tmp_path, prompt):
    """Guards against continuing something other than the file that was named."""
    result = audiogen(tmp_path, "generate", trained[0], "--out", tmp_path / "out", "--prompt", prompt)
    assert_refused(result, Path(prompt).name)
    assert not (tmp_path / "out").exists()


def test_settings_are_checked_before_the_folder_is_read(tmp_path):
    """Guards against reading an hour of recordings before reporting a mistyped setting."""
    sound, out = tmp_path / "sound", tmp_path / "out"
    sound.mkdir()
    (sound / "broken.wav").write_bytes(b"RIFF")
    assert_refused(
        audiogen(tmp_path, "train", sound, "--out", out, "--set", "backbone.dimm=1"),
        "backbone.dimm: unknown setting",
        code=2,
    )
    assert_refused(
        audiogen(tmp_path, "tokenize", sound, out, "--set", "frontend.bitz=1"), "frontend.bitz: unknown setting", code=2
    )


def test_a_run_that_was_not_there_is_begun_aloud(corpus, tmp_path):
    """Guards against a --resume with a mistyped --out that starts a new run without saying so."""
    result = audiogen(tmp_path, "train", corpus, "--out", tmp_path / "rnu", *TINY, "--steps", "2", *SET, "--resume")
    assert result.code == 0 and "rnu: holds no run yet" in result.err
    again = audiogen(tmp_path, "train", corpus, "--out", tmp_path / "rnu", *TINY, *SET, "--resume")
    assert again.code == 0 and "budget was spent at step 2, so there was nothing left to train" in again.err


def test_what_only_the_front_end_can_not_use_is_told_of(corpus, tmp_path):
    """Guards against silently dropping a file that is long enough for the scan but too short for two frames of a
    front-end."""
    sound = shutil.copytree(corpus, tmp_path / "sound")
    write_wav(sound / "tick.wav", note(5, 100))
    for command in (
        ["tokenize", sound, tmp_path / "cache", "--frontend", "melvq", "--set", "frontend.codebook_size=8"],
        [
            "train",
            sound,
            "--out",
            tmp_path / "run",
            "--frontend",
            "melvq",
            "--set",
            "frontend.codebook_size=8",
            "--backbone",
            "bigram",
            "--steps",
            "1",
            "--device",
            "cpu",
        ],
    ):
        result = audiogen(tmp_path, *command)
        assert result.code == 0 and "left out: tick.wav: too short" in result.err, result.err


def test_places_that_are_none_are_refused(trained, corpus, tmp_path):
    """Guards against tracebacks for folders that are files, runs that are caches, and mistyped names."""
    run, empty, file = trained[0], tmp_path / "empty", tmp_path / "file"
    empty.mkdir()
    file.write_text("mine")
    out = ["--out", tmp_path / "out"]
    for arguments, message in (
        (["train", corpus, "--out", run, *TINY], "holds a run already; continue it with --resume"),
        (["train", corpus, "--out", corpus / "run", *TINY], "lies in .*samples would be trained on"),
        (["train", corpus, "--out", file, *TINY], "file: is a file; give a"),
        (["train", corpus, "--out", file / "run", *TINY, "--steps", "1"], "file"),
        (["train", tmp_path / "none", *out], "none: there is no such folder"),
        (["train", empty, *out], "holds no sound files"),
        (["train", file, *out], "is a file; give the folder that contains it"),
        (["tokenize", corpus, run / "cache"], "cache: holds a cache already; choose another"),
        (["tokenize", corpus, corpus, "--frontend", "mulaw"], "already holds other files"),
        (["decode", corpus, tmp_path / "out"], "holds no encoded cache"),
        (["decode", empty, tmp_path], "holds no encoded cache"),
        (["generate", empty, *out], "is not a run, cache or saved front-end"),
        (["generate", run / "cache", *out], "holds a front-end or a cache"),
        (["generate", run, "--out", file], "file: is a file; give a"),
        (["generate", run, "--out", file, "--stream"], "file: is a file; give a"),
        (["decode", run / "cache", file], "file: is a file; give a"),
        (["tokenize", corpus, file], "file: is a file; give a"),
        (["evaluate", run, empty], "holds no sound files"),
        (["evaluate", corpus, corpus], "is not a run, cache or saved front-end"),
        (["listen", empty], "is not a run, cache or saved front-end"),
        (["listen", run, tmp_path / "none"], "none: there is no such folder"),
        (["listen", run, "--out", file / "page.html"], "page.html"),
    ):
        assert_refused(audiogen(tmp_path, *arguments), message)
    for arguments, message in (
        (["train", run / "cache", *out, "--frontend", "mulaw"], "fixes the front-end; leave out --frontend"),
        (["train", run / "cache", *out, "--set", "frontend.bits=3"], "fixes the front-end"),
        (["tokenize", run / "cache", tmp_path / "out"], "is encoded already"),
        (["decode", run / "cache", tmp_path / "out", "--frontend", "mulaw"], "holds its own front-end"),
    ):
        assert_refused(audiogen(tmp_path, *arguments), message, code=2)
    assert file.read_text() == "mine"
    assert not (tmp_path / "out").exists()
    assert not list(corpus.glob("*.json"))


def test_trouble_with_the_disk_is_a_line_too(corpus, tmp_path):
    """Guards against a traceback for errors of the file system that no code of ours expects, such as a file where
    TensorBoard needs its folder."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").write_text("mine")
    result = audiogen(tmp_path, "train", corpus, "--out", tmp_path / "run", *TINY, "--steps", "1", *SET)
    assert_refused(result, "tensorboard: File exists")


def test_a_path_is_printed_as_it_is(trained, tmp_path):
    """Guards against brackets in a path that are taken for markup and left out of the printed path."""
    out = tmp_path / "[bold] and [" / "x]"
    result = audiogen(tmp_path, "generate", trained[0], "--out", out, "--seconds", "0.01", "--num", "1", "--seed", "1")
    assert result.out == f"{out / 'sample-1.wav'}  seed 1\n"


# ---- sound that is none


def header_only(path):
    kind = struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    path.write_bytes(b"RIFF" + struct.pack("<I", 36) + b"WAVEfmt " + kind + b"data" + struct.pack("<I", 0))


def truncated(path):
    write_wav(path, note(9, 2000))
    path.write_bytes(path.read_bytes()[:-1000])


def bad_float(value):
    def write(path):
        soundfile.write(path, np.array([0.1, value, 0.2] * 500), RATE, "FLOAT")

    return write


BAD = {
    "text.wav": lambda path: path.write_text("la la la"),
    "empty.wav": lambda path: path.write_bytes(b""),
    "header-only.wav": header_only,
    "truncated.wav": truncated,
    "nan.wav": bad_float(np.nan),
    "inf.wav": bad_float(np.inf),
    "absurd.wav": bad_float(1e6),
    "silent.wav": lambda path: write_wav(path, np.zeros(900)),
    "one-sample.wav": lambda path: write_wav(path, np.array([0.5])),
    "lying.flac": lambda path: path.write_bytes(b"fLaC" + b"\xff" * 60),
}


def test_bad_files_are_left_out_and_told_of(corpus, tmp_path):
    """Guards against a training run that ends, or silently goes wrong, because of one bad file among thousands."""
    folder = shutil.copytree(corpus, tmp_path / "corpus")
    for name, write in BAD.items():
        write(folder / name)
    shutil.copy(corpus / "note-00.wav", folder / "zz-copy.wav")
    result = audiogen(tmp_path, "train", folder, "--out", tmp_path / "run", *TINY, "--steps", "1", *SET)
    assert result.code == 0, result.err
    for name in [*BAD, "zz-copy.wav"]:
        assert re.search(rf"left out: {name}: \w", result.err), name
    sides = load_run(tmp_path / "run").split()
    assert {part.file.path for part in [*sides.train, *sides.held_out]} == {path.name for path in corpus.iterdir()}


@pytest.mark.parametrize("name", [name for name in BAD if name not in ("silent.wav", "one-sample.wav")])
def test_bad_files_are_errors_when_asked(corpus, tmp_path, name):
    """Guards against a --strict that has no effect."""
    folder = shutil.copytree(corpus, tmp_path / "corpus")
    BAD[name](folder / name)
    result = audiogen(tmp_path, "train", folder, "--out", tmp_path / "run", *TINY, "--strict", "--steps", "1", *SET)
    assert_refused(result, name)
    assert not (tmp_path / "run").exists()


def test_folders_that_hold_too_little_say_what_would_do(tmp_path):
    """Guards against an empty training or held-out part, which would fail somewhere inside a model."""
    for number, (files, message) in enumerate(
        [
            ({"a.txt": lambda path: path.write_text("la")}, "holds no sound files.*1 files are of other kinds"),
            (BAD, "none of its 10 sound files can be used"),
            ({"short.wav": lambda path: write_wav(path, note(0, 200))}, "one file only .*add a second file"),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, write in files.items():
            write(folder / name)
        result = audiogen(tmp_path, "train", folder, "--out", tmp_path / "run", *TINY, "--steps", "1", *SET)
        assert_refused(result, message)
        assert not (tmp_path / "run" / "config.json").exists()


def test_one_long_file_is_cut_and_the_report_says_so(tmp_path):
    """Guards against evaluating on training sound when there is only one file."""
    folder = folder_of_notes(tmp_path / "corpus", [16000])
    result = audiogen(tmp_path, "train", folder, "--out", tmp_path / "run", *TINY, "--steps", "1", *SET)
    assert result.code == 0, result.err
    assert "one file only: its last 10% (0.2 s) is held out, after a gap of" in result.err
