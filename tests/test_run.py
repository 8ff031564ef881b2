"""Run folders: what is saved comes back, what is damaged says so, and a stranger's can at worst fail to load."""

import dataclasses
import json
import math
import pickle
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from corpus import folder_of_notes, note, tiny_settings
from folders import write_wav
from safetensors.torch import load_file, save_file

from audiogen import audio_info, read_audio
from audiogen.audio.coding import Coding
from audiogen.commands import samples
from audiogen.commands.samples import FileRequest, generate_files, stream_files, write_generated, write_round_trips
from audiogen.commands.train import train
from audiogen.errors import AudiogenError, AudioReadError, ConfigError, RunError
from audiogen.frontends import load_frontend, save_frontend
from audiogen.generation import audio as sound_module
from audiogen.models.sampling import Sampling
from audiogen.runs.build import blank_model, build_model
from audiogen.runs.folder import holds_run, read_config, read_split
from audiogen.runs.run import load_run
from audiogen.utils.files import alone_in, sha256_file

RATE, HOP = 8000, 64


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run folder that nobody may change."""
    place = tmp_path_factory.mktemp("made")
    overrides = [
        "backbone.dim=8",
        "backbone.num_layers=1",
        "backbone.num_heads=2",
        "training.crop_frames=16",
        "training.sample_seconds=0.1",
        "training.evaluations=2",
        "training.sample_every=1",
        *(f"frontend.{name}={value}" for name, value in tiny_settings("melvq").items()),
    ]
    train(folder_of_notes(place / "corpus", [4000] * 6), place / "run", "melvq", "gpt", steps=4, overrides=overrides)
    return place / "run"


@pytest.fixture(scope="module")
def run(made):
    return load_run(made)


def test_a_run_describes_itself_in_a_line(made, run):
    """Guards against the forty lines of both networks wherever a notebook shows a run."""
    assert repr(run) == f"Run({str(made)!r}: MelVQ and GPT, 8000 Hz, step {run.step}, conditions position)"


@pytest.fixture
def folder(made, tmp_path):
    """A copy of the run folder that may be changed."""
    return shutil.copytree(made, tmp_path / "run")


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def assert_refused(folder, message):
    """One line that names what is wrong, whichever way the folder is opened."""
    with pytest.raises(RunError, match=message) as caught:
        load_run(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


# ---- what is in a folder


def test_a_folder_holds_what_the_design_promises(made, run):
    """Guards against a run that can't be understood, gone on with, or listened to from its folder alone."""
    there = {path.name for path in made.iterdir()}
    assert there >= {
        "config.json",
        "frontend.safetensors",
        "model.safetensors",
        "checkpoints",
        "metrics.jsonl",
        "samples",
        "split.json",
        "index.html",
    }
    assert not [path for path in made.rglob("*") if ".tmp" in path.name]
    config = config_of(made)
    assert config["format"] == 1
    parts = ["format", "frontend", "backbone", "pattern", "data", "training", "conditions", "guidance", "sampling"]
    assert list(config) == parts and list(config["conditions"]) == ["position"]  # the files are short
    assert config["frontend"]["kind"] == "melvq" and config["pattern"] == {"kind": "delay"}
    assert {path.name for path in (made / "checkpoints" / "step-4").iterdir()} == {
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "manifest.json",
    }
    assert run.config == read_config(made)
    assert not run.model.training and not run.frontend.training
    assert sorted(part.file.path for part in [*run.split().train, *run.split().held_out]) == [
        f"note-{i:02d}.wav" for i in range(6)
    ]


def test_samples_say_how_to_make_them_again(made, run, tmp_path):
    """Guards against sounds that nobody can trace: no seed, the seed of another item, the weights of another step."""
    notes = {path.stem: json.loads(path.read_text()) for path in (made / "samples").glob("*.json")}
    assert {name for name in notes if name[-1] in "0"} == {
        "original-0",
        "round-trip-0",
        "generated-0",
        "continued-0",
        "step-2-0",
        "step-4-0",
    }
    assert {path.stem for path in (made / "samples").glob("*.wav")} == set(notes)
    keys = {
        "kind",
        "source",
        "seed",
        "sampling",
        "precision",
        "prompt",
        "prompt_seconds",
        "step",
        "checkpoint",
        "seconds",
    }
    for name, note_ in notes.items():
        assert set(note_) - {"guidance"} == keys, name
        assert note_["seconds"] == audio_info(made / "samples" / f"{name}.wav").duration
    assert notes["original-0"]["kind"] == "original" and notes["round-trip-0"]["kind"] == "round-trip"
    assert notes["original-0"]["source"] == notes["round-trip-0"]["source"] == notes["continued-0"]["prompt"]
    assert notes["original-0"]["source"] == run.split().held_out[0].file.path

    generated = notes["generated-2"]
    assert (generated["kind"], generated["seed"], generated["step"]) == ("generated", 2, run.step)
    assert generated["checkpoint"] == sha256_file(made / "model.safetensors")
    assert generated["sampling"] == {"temperature": 1.0, "top_k": None, "top_p": None, "min_p": None}
    again = dict(
        (seed, path) for path, seed, _ in write_generated(tmp_path, run, FileRequest(generated["seconds"]), range(4))
    )
    assert again[2].read_bytes() == (made / "samples" / "generated-2.wav").read_bytes()
    last = made / "checkpoints" / "step-4" / "model.safetensors"
    assert (notes["step-4-0"]["step"], notes["step-4-0"]["checkpoint"]) == (4, sha256_file(last))
    assert notes["step-2-0"]["step"] == 2
    assert notes["step-2-0"]["checkpoint"] not in (notes["step-4-0"]["checkpoint"], generated["checkpoint"], None)
    assert notes["continued-0"]["prompt_seconds"] + 0.1 == pytest.approx(notes["continued-0"]["seconds"])


# ---- generating


def test_generate_is_reproducible_by_seed_item_by_item(run):
    """Guards against a seed that is for the batch alone: an item must come out by itself as it did among others."""
    wavs = run.generate(seconds=0.2, num=3, seed=5)
    assert wavs.shape == (3, 1, 1600) and wavs.dtype == torch.float32
    assert torch.equal(run.generate(seconds=0.2, num=3, seed=5), wavs)
    for item in range(3):
        alone = run.generate(seconds=0.2, num=1, seed=5 + item)
        torch.testing.assert_close(alone[0], wavs[item], rtol=0, atol=1e-4)
    assert not torch.equal(wavs[0], wavs[1])
    assert run.request(num=3, seed=5).seeds == (5, 6, 7)
    fresh = run.generate_request(0.2, run.request(num=2, seconds=0.2))
    assert fresh.lengths == (1600, 1600)
    assert torch.equal(run.generate(seconds=0.2, seeds=fresh.seeds), fresh.x)
    assert len({*fresh.seeds, *run.request(num=2).seeds}) == 4


@pytest.mark.parametrize("seconds", [0.1, 4.03, 1 / 3, 0.01005, 0.00001])
@pytest.mark.parametrize("prompt", [None, 1, HOP, 3 * HOP + 5])
def test_generate_gives_the_length_it_is_asked_for(run, seconds, prompt):
    """Guards against a sample too many where a float is a hair over (4.03 s at 8000 Hz), and prompts not of whole
    frames."""
    sound = None if prompt is None else torch.from_numpy(note(0, prompt)).float()[None]
    wav = run.generate(seconds=seconds, seed=0, prompt=sound)
    assert wav.shape == (1, 1, max(1, round(seconds * RATE)) + (prompt or 0))
    assert wav.isfinite().all()


def test_generate_goes_on_from_the_prompt(run):
    """Guards against a prompt that is dropped, put at the end, or generated over."""
    sound = torch.from_numpy(note(1, 20 * HOP)).float()[None]
    wav = run.generate(seconds=0.1, seed=1, prompt=sound)
    codes = run.frontend.encode(sound[None])
    again = run.frontend.encode(wav[:, :, : 20 * HOP])
    assert (codes == again).float().mean() > 0.5  # Griffin-Lim gives most of them back
    assert torch.equal(run.generate(seconds=0.1, seed=1, prompt=sound[None]), wav)
    other = run.generate(seconds=0.1, seed=1, prompt=torch.from_numpy(note(3, 20 * HOP)).float()[None])
    assert not torch.equal(other, wav)


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf])
def test_generate_refuses_impossible_lengths(run, seconds):
    """Guards against nan that passes every comparison, and hours of work on an infinite length."""
    with pytest.raises(ConfigError, match="seconds: must be above 0"):
        run.generate(seconds=seconds)


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"seconds": 1e9}, r"seconds: must be .* or less for each of 4 items.* got 1e\+09; choose fewer, or a stream"),
        ({"seconds": 1e300}, "seconds: must be .* for each of 4 items"),
        ({"seed": 2**64 - 3}, "seed: must be from 0 to .* to 18446744073709551616"),
        ({"seed": -1}, "seed: must be from 0"),
        ({"num": 10**12}, "batch_size: must be from 1 to 65,536 items, got 1,000,000,000,000"),
        ({"num": 0}, "num: must be 1 or more, got 0"),
    ],
)
def test_generate_refuses_what_no_memory_holds(run, asked, message):
    """Guards against a traceback of torch's allocator, and a list of a billion seeds made before any check."""
    with pytest.raises(ConfigError, match=message):
        run.generate(**{"seconds": 0.1, "num": 4, **asked})


@pytest.mark.parametrize("write", [generate_files, stream_files])
@pytest.mark.parametrize(
    "num, seed, message",
    [(40, 2**64 - 20, "seed: must be from 0 to"), (10**8, None, "num: must be 1,000,000 or less"), (0, 1, "num: .*0")],
)
def test_seeds_are_checked_before_the_first_file(run, tmp_path, write, num, seed, message):
    """Guards against half of the files written when the seeds run out, and memory for a list of all of them."""
    with pytest.raises(ConfigError, match=message):
        list(write(run, tmp_path / "out", FileRequest(0.05), num, seed=seed))
    assert not (tmp_path / "out").exists()


def test_long_items_go_in_smaller_batches(run, tmp_path, monkeypatch):
    """Guards against a refusal of several files that are made one after the other anyway."""
    monkeypatch.setattr(samples, "MAX_SAMPLES", 900)
    monkeypatch.setattr(sound_module, "MAX_SAMPLES", 900)
    assert len(list(generate_files(run, tmp_path, FileRequest(0.05), 3, seed=10))) == 3  # 400 samples each
    with pytest.raises(ConfigError, match="seconds: must be 0 or less"):
        list(generate_files(run, tmp_path, FileRequest(0.2), 1, seed=10))


def test_a_run_takes_requests(run):
    """Guards against a precision of the run that its requests do not have, and a prompt that is dropped on the way."""
    prompt = torch.from_numpy(note(1, 3 * HOP)).float()[None]
    request = dataclasses.replace(run, precision="int8").request(2, 7, prompt, Sampling(0.5))
    assert (request.precision, request.batch_size, request.seeds) == ("int8", 2, (7, 8))
    made = run.generate_request(0.1, dataclasses.replace(request, precision="fp32"))
    assert torch.equal(made.x, run.generate(0.1, 2, 7, prompt, Sampling(0.5)))
    assert made.lengths == (3 * HOP + 800,) * 2


def test_sampling_reaches_the_head(run):
    """Guards against options that are parsed, written into the .json, and never used."""
    free = run.generate(seconds=0.3, num=2, seed=0)
    greedy = run.generate(seconds=0.3, num=2, seed=0, sampling=Sampling(temperature=0))
    torch.testing.assert_close(greedy[0], greedy[1], rtol=0, atol=1e-4)
    assert not torch.equal(free[0], greedy[0])


def test_many_items_go_in_batches(run, tmp_path, monkeypatch):
    """Guards against memory that grows with --num, and items lost or doubled where a batch ends."""
    monkeypatch.setattr(samples, "BATCH", 2)
    written = list(generate_files(run, tmp_path, FileRequest(0.05), 5, seed=10))
    assert [(path.name, seed) for path, seed, _ in written] == [(f"sample-{seed}.wav", seed) for seed in range(10, 15)]
    monkeypatch.setattr(samples, "BATCH", 16)
    together = list(generate_files(run, tmp_path / "together", FileRequest(0.05), 5, seed=10))
    for (path, *_), (other, *_) in zip(written, together, strict=True):
        torch.testing.assert_close(read_audio(path), read_audio(other), rtol=0, atol=1e-3)


def test_files_of_another_format(run, tmp_path):
    """Guards against a name that ends in what the file is not, and a stream that is written as something else."""
    plain = list(generate_files(run, tmp_path, FileRequest(0.05), 1, seed=3))
    ((path, *_),) = generate_files(run, tmp_path, FileRequest(0.05, coding=Coding("flac", 24)), 1, seed=3)
    info = audio_info(path)
    assert (path.name, info.format, info.subtype) == ("sample-3.flac", "FLAC", "PCM_24")
    torch.testing.assert_close(read_audio(path), read_audio(plain[0][0]), rtol=0, atol=0.51 / 2**15)
    assert json.loads(path.with_suffix(".json").read_text())["seed"] == 3
    (streamed,) = stream_files(run, tmp_path / "stream", FileRequest(0.05, coding=Coding("wav", 32)), 1, seed=3)
    assert audio_info(streamed.path).subtype == "FLOAT"
    with pytest.raises(ConfigError, match="--stream: writes WAVs, .*; for flac leave out --stream"):
        list(stream_files(run, tmp_path / "stream", FileRequest(0.05, coding=Coding("flac")), 1, seed=3))


def test_a_prompt_file_is_resampled_and_named(run, tmp_path):
    """Guards against a prompt taken at another rate, an octave too low."""
    prompt = folder_of_notes(tmp_path / "prompt", [22050], rate=22050) / "note-00.wav"
    ((path, *_),) = generate_files(run, tmp_path / "out", FileRequest(0.1, prompt), 1, seed=0)
    assert audio_info(path).num_samples == 8000 + 800
    said = json.loads(path.with_suffix(".json").read_text())
    assert (said["prompt"], said["prompt_seconds"], said["seconds"]) == (str(prompt), 1.0, 1.1)


@pytest.mark.parametrize("write", [generate_files, stream_files])
def test_the_end_of_a_prompt_is_continued_and_left_out(run, tmp_path, write):
    """Guards against a continuation of the beginning of a long recording, and against new sound cut off with it."""
    prompt = folder_of_notes(tmp_path / "prompt", [8000]) / "note-00.wav"
    end = read_audio(prompt, run.sample_rate)[:, -2000:]
    whole = run.generate(0.1, prompt=end, seed=4)[0]
    for only_new, expected in ((False, whole), (True, whole[:, 2000:])):
        request = FileRequest(0.1, prompt, 0.25, only_new)
        (made,) = write(run, tmp_path / str(only_new), request, 1, seed=4)
        path = made.path if write is stream_files else made[0]
        torch.testing.assert_close(read_audio(path), expected, rtol=0, atol=2e-3)
        about = json.loads(path.with_suffix(".json").read_text())
        # The page marks where the prompt ends, so it must not where there is none.
        assert (about["prompt_seconds"], about["seconds"]) == ((0.0, 0.1) if only_new else (0.25, 0.35))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"prompt_seconds": 1.0}, "--prompt-seconds: there is no prompt"),
        ({"only_new": True}, "--only-new: there is no prompt"),
        ({"prompt": Path("a.wav"), "prompt_seconds": 0.0}, "--prompt-seconds: must be above 0"),
        ({"prompt": Path("a.wav"), "seconds": None}, "seconds: after a prompt"),
    ],
)
def test_requests_that_contradict_themselves(changes, message):
    """An option that is ignored."""
    with pytest.raises(ConfigError, match=message):
        FileRequest(**{"seconds": 1.0, **changes})


def test_round_trips_are_as_long_as_the_originals(run, tmp_path):
    """Guards against the padding of the last frame left on the end."""
    sound = [("a.wav", torch.from_numpy(note(0, 3 * HOP + 1)).float()[None])]
    write_round_trips(tmp_path, run.frontend, sound)
    assert read_audio(tmp_path / "round-trip-0.wav").shape == read_audio(tmp_path / "original-0.wav").shape == (1, 193)


# ---- damage


def test_a_folder_that_is_no_run_says_so(tmp_path):
    """Guards against a traceback for a mistyped name."""
    assert_refused(tmp_path, "it has no config.json; give a folder that audiogen train or tokenize wrote")
    assert_refused(tmp_path / "gone", "there is no such folder")


def test_a_front_end_is_no_run_and_says_so(tmp_path):
    """Guards against "this group of settings is missing" for who gives generate the folder of the codec that they
    trained."""
    save_frontend(load_frontend("mulaw"), tmp_path)
    assert_refused(tmp_path, "holds a front-end or a cache, not a run")


@pytest.mark.parametrize("name", ["config.json", "frontend.safetensors", "model.safetensors"])
@pytest.mark.parametrize("damage", ["gone", "empty", "half", "flipped", "other", "folder"])
def test_a_damaged_folder_gives_one_clear_error(folder, name, damage):
    """Guards against tracebacks, and damage that loads: a flipped bit in the weights makes a model that only sounds
    broken."""
    path = folder / name
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage == "half":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[-5] ^= 0x10
        path.write_bytes(data)
    elif damage == "folder":
        path.mkdir()
    elif damage != "gone":
        path.write_bytes(b"" if damage == "empty" else b"\x80\x04\xff not what you think\n" * 9)
    if name == "config.json" and damage == "flipped":  # }, the last brace, as something else
        assert_refused(folder, "config.json.*damaged")
        return
    assert_refused(folder, "no config.json" if (name, damage) == ("config.json", "gone") else name)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda config: config.update(format=3), "has format 3, this audiogen reads up to 2; upgrade"),
        (lambda config: config.update(format="1"), "format"),
        (lambda config: config.pop("format"), "format"),
        (lambda config: config.pop("training"), "training: this group of settings is missing"),
        (lambda config: config.pop("frontend"), "frontend"),
        (lambda config: config.update(backbone=None), "backbone"),
        (lambda config: config.update(backbone=[]), "backbone"),
        (lambda config: config.update(extra=1), "extra: unknown setting"),
        (lambda config: config["backbone"].update(kind="os.system"), "there is no 'os.system'"),
        (lambda config: config["backbone"].update(kind=["gpt"]), "backbone"),
        (lambda config: config["backbone"].pop("kind"), "backbone.*kind"),
        (lambda config: config["backbone"].update(dims=8), "backbone.dims: unknown setting, did you mean backbone.dim"),
        (lambda config: config["backbone"].update(dim="8"), "backbone.dim: expected int, got '8'"),
        (lambda config: config["backbone"].update(dim=True), "backbone.dim: expected int, got True"),
        (lambda config: config["backbone"].update(dim=8.5), "backbone.dim: expected int"),
        (lambda config: config["backbone"].update(dim=-8), "backbone.dim: must be 1 or more"),
        (lambda config: config["backbone"].update(num_heads=3), "backbone.dim"),
        (lambda config: config["backbone"].update(num_heads=0), "backbone.num_heads: must be 1 or more"),
        (lambda config: config["backbone"].update(window=0), "backbone.window: must be 1 or more"),
        (lambda config: config["backbone"].update(dropout=7), "backbone.*dropout"),
        (lambda config: config["backbone"].update(dim=2**20), "backbone: this gpt can't be built"),
        (lambda config: config["backbone"].update(dim=10**9), "backbone.dim: must be 1048576 or less"),
        (lambda config: config["backbone"].update(num_layers=10**6), "backbone.num_layers: must be 1024 or less"),
        (lambda config: config["backbone"].update(dim=64), "model.safetensors.*backbone"),
        (lambda config: config["backbone"].update(num_layers=3), "model.safetensors.*num_layers|missing"),
        (lambda config: config.update(backbone={"kind": "bigram", "dim": 8}), "model.safetensors.*not known"),
        (lambda config: config.update(pattern={"kind": "zigzag"}), "pattern.kind: there is no 'zigzag'"),
        (lambda config: config.update(pattern={"kind": "delay", "steps": 2}), "pattern.steps: unknown setting"),
        (lambda config: config["frontend"].update(kind="mulaw"), "frontend"),
        (lambda config: config["frontend"].update(codebook_size=16), "frontend.safetensors"),
        (lambda config: config["frontend"].update(sample_rate=10**12), "frontend.sample_rate"),
        (lambda config: config["training"].update(steps=-1), "training.steps: must be 1 or more"),
        (lambda config: config["training"].update(learning_rate=math.nan), "config.json: is damaged .NaN is no"),
        (lambda config: config["training"].update(minutes="10"), "training.minutes: expected"),
        (lambda config: config["data"].update(held_out=2.0), "data.held_out"),
    ],
)
def test_a_config_that_does_not_fit_gives_one_clear_error(folder, change, message):
    """Guards against keys that are ignored, values that are bent into shape, and memory taken for what a config
    claims."""
    config = config_of(folder)
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    assert_refused(folder, message)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "7",
        "[]",
        "[[1]]",
        '"run"',
        "{",
        "{}",
        '{"format": 1}',
        "\x00" * 50,
        "[" * 100_000,
        '{"format": 1, "format": null}',
    ],
    ids=range(12),
)
def test_a_config_of_any_text_gives_one_clear_error(folder, text):
    """Guards against a TypeError, a RecursionError and a UnicodeError, which the commands would show as tracebacks; and
    a run that is trained over because its damaged config was taken for none."""
    (folder / "config.json").write_text(text)
    assert_refused(folder, "config.json")
    assert holds_run(folder)
    with pytest.raises(RunError, match="holds a run already"):
        train(folder.parent / "made-up", folder)
    (folder / "config.json").write_bytes(b"\xff\xfe\xff")
    assert_refused(folder, "config.json")
    assert holds_run(folder)


def test_only_a_finished_start_is_a_run(made, tmp_path):
    """Guards against a folder that was killed while it was made and can neither be begun nor gone on with."""
    assert not holds_run(tmp_path)
    save_frontend(load_frontend(made), tmp_path)  # writes a config.json of the front-end alone
    with pytest.raises(RunError, match="holds a saved front-end"):
        holds_run(tmp_path)
    shutil.copy(made / "split.json", tmp_path)  # which a run writes before that
    assert not holds_run(tmp_path)
    assert holds_run(made)


def test_a_run_before_its_first_evaluation_says_so(folder):
    """Guards against "damaged" said of a run that only needs to be gone on with."""
    (folder / "model.safetensors").unlink()
    assert_refused(folder, "model.safetensors: is not there yet, since no evaluation was reached; continue .*--resume")


def test_weights_of_another_run_are_refused(folder):
    """Guards against weights that fit by their shapes and were meant for other codes, taken without their checksum."""
    weights = load_file(folder / "model.safetensors")
    save_file(weights, folder / "model.safetensors")
    assert_refused(folder, "model.safetensors: is damaged .*no checksum")
    save_file(weights, folder / "model.safetensors", {"audiogen": '{"step": 1, "sha256": "0"}'})
    assert_refused(folder, "model.safetensors.*checksum")


@pytest.mark.parametrize("text", ["{", "[]", '{"train": 1}', '{"train": [7], "held_out": [], "note": ""}'])
def test_a_damaged_split_gives_one_clear_error(folder, text):
    """Guards against training files scored as if they had been held out."""
    (folder / "split.json").write_text(text)
    with pytest.raises(RunError, match="split.json: is damaged"):
        read_split(folder)
    (folder / "split.json").unlink()
    assert read_split(folder).held_out == []


# ---- strangers


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("name", ["model.safetensors", "frontend.safetensors"])
def test_nothing_is_unpickled(folder, name, monkeypatch, tmp_path):
    """Guards against a loader that tries torch.load when safetensors fails: a stranger's file would run what it
    likes."""
    monkeypatch.chdir(tmp_path)
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    assert_refused(folder, name)
    torch.save(Bomb(), folder / name)
    assert_refused(folder, name)
    assert not (tmp_path / "exploded").exists()
    assert pickle.loads(pickle.dumps(Bomb())) is None
    assert (tmp_path / "exploded").exists()  # the bomb works


def header(names, size=0):
    text = json.dumps(names).encode()
    return struct.pack("<Q", size or len(text)) + text


@pytest.mark.parametrize(
    "data",
    [
        header({}, 2**63),
        header({}, 2**40),
        header({}, 100_000_000),
        header({"bos": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        header({"bos": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 16]}}) + b"\0" * 16,
        header({"bos": {"dtype": "F32", "shape": [8], "data_offsets": [16, 0]}}) + b"\0" * 16,
    ],
    ids=["size-2^63", "size-2^40", "size-10^8", "tensor-2^40", "shape-overflow", "backwards"],
)
@pytest.mark.parametrize("name", ["model.safetensors", "frontend.safetensors"])
def test_false_headers_are_refused_before_memory_is_taken(folder, name, data):
    """Guards against gigabytes taken because eight bytes ask for them."""
    (folder / name).write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert_refused(folder, name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


def test_a_large_claim_is_refused_before_memory_is_touched(folder):
    """Guards against a model of 12 GB that is built, and filled with random numbers, before its weights are looked
    for."""
    config = config_of(folder)
    config["backbone"].update(dim=16384, num_layers=1)
    (folder / "config.json").write_text(json.dumps(config))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert_refused(folder, "model.safetensors|can't be built")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


def test_blank_models_have_the_shapes_of_built_ones_and_load_quickly(made, run):
    """Guards against a skeleton that differs from the model, and a start that imports seconds of compiler for its
    sake."""
    blank = blank_model(run.config, run.frontend.spec)
    built = build_model(run.config, run.frontend.spec)
    assert {name: x.shape for name, x in blank.state_dict().items()} == {
        name: x.shape for name, x in built.state_dict().items()
    }
    assert dict(blank.named_buffers()).keys() == dict(built.named_buffers()).keys()
    assert all(torch.equal(x, dict(built.named_buffers())[name]) for name, x in blank.named_buffers())
    script = (
        "import sys; from audiogen.runs.run import load_run; load_run(sys.argv[1]).generate(seconds=0.05); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(made)]).returncode == 0


def test_leftovers_of_a_killed_process_are_cleared(folder):
    """Guards against half-written files that fill the disk, or appear on the page as samples."""
    there = set(folder.rglob("*"))
    for name in (
        ".model-0123456789abcdef.tmp.safetensors",
        ".tmpA1b2C3",  # of safetensors, as older versions used it
        "samples/.generated-0-0123456789abcdef.tmp.wav",
        "cache/.data-0123456789abcdef.tmp.bin",
        "checkpoints/.step-9.tmp/state.json",  # of older versions
        "checkpoints/.step-9-0123456789abcdef.tmp/state.json",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"half")
    (folder / ".mine.tmp.txt").write_text("a user's own")
    with alone_in(folder):
        pass
    assert set(folder.rglob("*")) == {*there, folder / ".mine.tmp.txt"}


# ---- where a run may be


@pytest.mark.parametrize(
    "place, message",
    [
        ("file", "is a file; give a new or existing folder"),
        ("corpus/run", "lies in .*samples would be trained on"),
        ("corpus", "lies in .*samples would be trained on"),
        ("cache", "is an encoded cache"),
    ],
)
def test_a_run_needs_a_place_of_its_own(made, tmp_path, place, message):
    """Guards against a run that writes its samples among the recordings, where the next run learns from them, one that
    turns a cache into half a run, and a traceback for a file."""
    corpus = folder_of_notes(tmp_path / "corpus", [2000] * 3)
    (tmp_path / "file").write_text("mine")
    shutil.copytree(made / "cache", tmp_path / "cache")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(AudiogenError, match=message):
        train(corpus, tmp_path / place, steps=1)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_front_end_that_claims_all_memory_is_refused_before_it_is_built(folder):
    """Guards against gigabytes taken for the front-end of a stranger's config, before its weights are even looked
    at."""
    claims = (
        {
            "kind": "melvq",
            "sample_rate": 16000,
            "num_codebooks": 64,
            "codebook_size": 65536,
            "num_features": 1024,
            "hop_length": 4096,
        },
        {"kind": "codec", "weights": "fit", "dim": 4096, "hop_length": 16384},
    )
    for claim in claims:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "frontend": claim}))
        began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(RunError, match="config.json.*weights together"):
            load_frontend(folder)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began < 100_000  # KiB


def test_generated_sound_can_be_changed_in_place(run):
    """Guards against a tensor of inference mode handed to the caller."""
    wav = run.generate(seconds=0.05, num=1, seed=0)
    wav *= 0.5


def test_a_prompt_of_nothing_is_refused(run, tmp_path):
    """Guards against a traceback for a click that resamples to no sample at all."""
    write_wav(tmp_path / "click.wav", np.full(1, 0.5), 96_000)
    with pytest.raises(AudioReadError, match="click.wav: too short"):
        list(generate_files(run, tmp_path / "out", FileRequest(0.05, tmp_path / "click.wav"), 1))
