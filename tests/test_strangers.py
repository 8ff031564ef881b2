"""Folders of a stranger, right by their checksums: each is refused in one line, and nothing outside is touched."""

import json
import os
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from folders import folder_of_noise

from audiogen.commands.decode import read_codes
from audiogen.data import EncodedCache, scan
from audiogen.data.cache_index import _checksum as checksum
from audiogen.errors import AudiogenError, CacheError, ConfigError, RunError
from audiogen.frontends import MelVQ, MuLaw, load_frontend, read_config_file, save_frontend
from audiogen.listen.run_reader import read_folder, read_sample
from audiogen.runs.config import RunConfig
from audiogen.runs.event_log import Metrics, read_metrics
from audiogen.runs.folder import read_config, read_source, read_split, read_weights, require_own_folders, save_weights
from audiogen.runs.run import load_run
from audiogen.training.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, save_checkpoint
from audiogen.utils.files import alone_in, sha256_file
from audiogen.utils.tensors import hash_tensors, read_tensors

OLD = Path(__file__).parent / "format1"
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX alone")


@pytest.fixture
def run(tmp_path):
    return shutil.copytree(OLD / "run", tmp_path / "run")


@pytest.fixture
def impatient():
    """Ends a test that waits for ever."""
    signal.alarm(60)
    yield
    signal.alarm(0)


def one_line(error):
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000
    return True


# ---- caches


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Codes of 2 rows of 16, so that a byte can hold a code that there is not."""
    place = tmp_path_factory.mktemp("cache")
    folder = folder_of_noise(place / "sound", [3000, 3500], sample_rate=8000)
    settings = {"num_features": 8, "hop_length": 64, "num_codebooks": 2, "codebook_size": 16}
    frontend = MelVQ(MelVQ.Config(sample_rate=8000, griffin_lim_iterations=2, **settings))
    frontend.fit([torch.randn(1, 4000) / 9])
    EncodedCache.build(scan(folder), frontend, place / "cache")
    return place / "cache"


def forge(folder, change, data=lambda data: data):
    """Changes index.json and data.bin, and their checksums with them."""
    path = folder / "index.json"
    values = json.loads(path.read_text())
    version, _ = values.pop("format"), values.pop("checksum")
    content = data((folder / "data.bin").read_bytes())
    (folder / "data.bin").write_bytes(content)
    values["data_sha256"] = sha256_file(folder / "data.bin")
    change(values)
    path.write_text(json.dumps({"format": version, **values, "checksum": checksum(values)}))


def first(**values):
    return lambda index: index["files"][0].update(values)


def entry(**values):
    return lambda index: index["files"][0]["entry"].update(values)


def shape(dtype, rows):
    def change(index):
        frames = sum(file["num_frames"] for file in index["files"])
        index.update(dtype=dtype, shape=[frames, rows])

    return change


SAME = bytes
EVIL = {
    "a code that there is not": (dict, lambda data: data[:-1] + b"\x10"),
    "frames": (shape("<f4", 2), lambda data: data * 4),
    "wide codes": (shape("<u4", 2), lambda data: data * 4),
    "wider codes": (shape("<u2", 2), lambda data: data * 2),
    "no rows": (shape("<u1", 0), lambda data: b""),
    "rows of half a number": (shape("<u1", 2.0), SAME),
    "one row of two": (shape("<u1", 1), lambda data: data[::2]),
    "a rate of nothing": (entry(sample_rate=0), SAME),
    "a rate in words": (entry(sample_rate="x"), SAME),
    "a rate that is true": (entry(sample_rate=True), SAME),
    "a hash of nothing": (entry(sha256=None), SAME),
    "clipping of nothing": (entry(clipped=None), SAME),
    "a peak of infinity": (entry(peak=float("inf")), SAME),
    "an unknown key": (entry(more=1), SAME),
    "no samples": (first(num_samples=0), SAME),
    "frames of half a number": (first(num_frames=1.5), SAME),
    "more frames than there are": (first(num_frames=10**30), SAME),
    "a path with NUL": (entry(path="a\0b.wav"), SAME),
    "a path that no file has": (entry(path="a\ud800.wav"), SAME),
    "two files of one path": (lambda index: index["files"][1]["entry"].update(path="00.wav"), SAME),
    "no files": (lambda index: index.update(files=[], shape=[0, 2]), lambda data: b""),
    "files in words": (lambda index: index.update(files="ab"), SAME),
    "reasons of numbers": (lambda index: index.update(rejected=[{"path": 1, "reason": 2}]), SAME),
    "ignored in words": (lambda index: index.update(ignored="x"), SAME),
    "a shape in words": (lambda index: index.update(shape="ab"), SAME),
    "an unknown group": (lambda index: index.update(more=1), SAME),
}


@pytest.mark.parametrize("name", EVIL)
def test_an_evil_cache_is_refused(cache, tmp_path, name):
    """Guards against tracebacks in decode, train and doctor, and 32 GiB asked for by counting codes of four bytes."""
    folder = shutil.copytree(cache, tmp_path / "cache")
    forge(folder, dict, SAME)  # which alone does no harm
    assert EncodedCache.open(folder).files[0].path == "00.wav"
    forge(folder, *EVIL[name])
    with pytest.raises(CacheError, match="damaged") as caught:
        EncodedCache.open(folder)
    assert one_line(caught)


def test_frames_that_are_no_numbers_are_refused(tmp_path):
    """Guards against NaN that a model would learn from a stranger's cache."""
    folder = folder_of_noise(tmp_path / "sound", [3000, 3500], sample_rate=8000)
    frontend = load_frontend("mel", sample_rate=8000, num_features=8, hop_length=64)
    frontend.fit([torch.randn(1, 4000) / 9])
    EncodedCache.build(scan(folder), frontend, tmp_path / "cache")
    forge(tmp_path / "cache", dict, lambda data: data[:-4] + np.float32("nan").tobytes())
    with pytest.raises(CacheError, match="holds NaN"):
        EncodedCache.open(tmp_path / "cache")


def test_two_files_of_one_name_are_both_decoded(tmp_path):
    """Guards against a.aiff and a.aiff.wav written over each other."""
    cache = EncodedCache.build(
        folder_of_noise(tmp_path / "sound", [500, 600], sample_rate=8000), MuLaw(MuLaw.Config(8000)), tmp_path / "cache"
    )
    names = iter(["a.flac", "a.flac.wav"])
    forge(tmp_path / "cache", lambda index: [file["entry"].update(path=next(names)) for file in index["files"]])
    cache = EncodedCache.open(tmp_path / "cache")
    written = cache.write_wavs(tmp_path / "out")
    assert len(cache) == len(set(written)) == len(list((tmp_path / "out").iterdir())) == 2


# ---- .npy files


def test_damaged_npy_headers_are_one_clear_error(tmp_path):
    """Guards against whatever Python's parser raises of a header: numpy reads it as Python."""
    frontend = MuLaw(MuLaw.Config(sample_rate=8000))
    path, rng = tmp_path / "a.npy", random.Random(0)
    np.save(path, np.zeros((1, 1, 50), np.int64))
    whole, refused = path.read_bytes(), 0
    for _ in range(600):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(6, 128)] = rng.choice(b"\0\n\xff'\"()[]{}:,0L\\#-u" + bytes(range(256)))
        path.write_bytes(damaged)
        try:
            read_codes(path, frontend)
        except CacheError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 300


@pytest.mark.parametrize(
    "header", ["{'descr': '<i8', (", "{1: [", "'" * 3, "{'descr': [], 'shape': (), 1: 2}", "(" * 90]
)
def test_npy_headers_of_any_text(tmp_path, header):
    """Guards against the TokenError, SyntaxError and TypeError that were found."""
    text = header.encode().ljust(117) + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + bytes(64))
    with pytest.raises(CacheError, match="a.npy: can't be read as codes"):
        read_codes(tmp_path / "a.npy", MuLaw(MuLaw.Config(sample_rate=8000)))


# ---- run folders


@pytest.mark.parametrize("step", [float("inf"), -1, 1.5, "1", None, True, [1]])
def test_a_step_that_is_none(run, step):
    """Guards against an OverflowError for Infinity, and a step of any other kind taken for one."""
    tensors, _ = read_tensors(run / "model.safetensors", RunError, "")
    about = json.dumps({"step": step, "sha256": hash_tensors(tensors)})
    (run / "model.safetensors").write_bytes(safetensors.torch.save(tensors, {"audiogen": about}))
    with pytest.raises(RunError, match="model.safetensors: is damaged .*(step|finite)") as caught:
        load_run(run)
    assert one_line(caught)


@pytest.mark.parametrize("step", [None, "x", [1], 1.5, {}])
def test_events_of_no_step_do_not_stop_a_resume(tmp_path, step):
    """Guards against a TypeError for a line of metrics.jsonl whose step is no number."""
    lines = [{"event": "train", "step": 1}, {"event": "train", "step": step}, {"event": "baselines"}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "[" * 9999)
    Metrics(tmp_path, after=1).close()
    assert read_metrics(tmp_path) == [lines[0], lines[2]]


@pytest.mark.parametrize("depth", [50, 5000, 200_000])
def test_nesting(run, depth):
    """Guards against a RecursionError in `listen`."""
    deep = '{"a":' * depth + "1" + "}" * depth
    sample = run / "samples" / "generated-0.json"
    sample.parent.mkdir()
    sample.write_text(f'{{"kind": "generated", "more": {deep}}}')
    assert read_sample(sample.with_suffix(".wav")).kind == ""
    (run / "split.json").write_text(deep)
    (run / "config.json").write_text(f'{{"format": 1, "frontend": {deep}}}')
    for read in (read_folder, read_config, read_config_file, load_run, load_frontend, read_split):
        with pytest.raises(RunError, match="json: is damaged .*(nested deeper|more than 1048576 bytes)") as caught:
            read(run)
        assert one_line(caught)


@pytest.mark.parametrize(
    "change",
    [
        {"start": "x"},
        {"start": -0.5},
        {"start": 0.5, "stop": 0.5},
        {"stop": 1e308},
        {"stop": None},
        {"sha256": [1]},
        {"sample_rate": 0},
        {"file": None},
        {"more": 1},
    ],
)
def test_a_split_that_is_none(run, change):
    """Guards against TypeError, ValueError and OverflowError in `evaluate`."""
    values = json.loads((run / "split.json").read_text())
    part = values["held_out"][0]
    (part["file"] if change.keys() & part["file"].keys() else part).update(change)
    (run / "split.json").write_text(json.dumps(values))
    with pytest.raises(RunError, match="split.json: is damaged") as caught:
        read_split(run)
    assert one_line(caught)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "1e999", "-1e999"])
def test_numbers_that_are_none(run, constant):
    """Guards against values that no other reader of JSON takes, and that no comparison refuses."""
    text = (run / "split.json").read_text()
    (run / "split.json").write_text(text.replace('"start": 0.0', f'"start": {constant}'))
    with pytest.raises(RunError, match="split.json: is damaged .*no finite number"):
        read_split(run)


@pytest.mark.parametrize(
    "setting, value",
    [
        ("training.batch_size", 10**9),
        ("training.crop_frames", 10**12),
        ("training.sample_seconds", 1e12),
        ("training.evaluations", 10**15),
        ("data.num_workers", 100_000),
    ],
)
def test_absurd_sizes_are_refused_before_memory_is_taken(run, setting, value):
    """Guards against a MemoryError, and processes that are forked without bound."""
    values = json.loads((run / "config.json").read_text())
    group, name = setting.split(".")
    values[group][name] = value
    with pytest.raises(ConfigError, match=setting):
        RunConfig.from_dict(values)
    (run / "config.json").write_text(json.dumps(values))
    with pytest.raises(RunError, match=f"config.json: .*{setting}"):
        read_config(run)


@posix
@pytest.mark.parametrize(
    "name", ["config.json", "metrics.jsonl", "split.json", "model.safetensors", "cache/index.json"]
)
def test_pipes_are_refused(run, impatient, name):
    """Guards against a command that waits for ever for somebody to write into a named pipe."""
    (run / name).unlink()
    os.mkfifo(run / name)
    read = {
        "metrics.jsonl": read_folder,
        "split.json": read_split,
        "cache/index.json": lambda run: EncodedCache.open(run / "cache"),
    }.get(name, load_run)
    with pytest.raises(AudiogenError, match=f"{Path(name).name}: .*no regular file"):
        read(run)


@posix
def test_other_pipes_are_refused(run, impatient):
    """Guards against the same for data.bin, checkpoints, the sounds' notes and a file of codes."""
    (run / "samples").mkdir()
    os.mkfifo(run / "samples" / "a.json")
    assert read_sample(run / "samples" / "a.wav").kind == ""
    os.mkfifo(run / "a.npy")
    with pytest.raises(CacheError, match="a.npy: can't be read .*no regular file"):
        read_codes(run / "a.npy", MuLaw(MuLaw.Config(sample_rate=8000)))
    for name in ("cache/data.bin", "checkpoints/step-3/model.safetensors"):
        (run / name).unlink()
        os.mkfifo(run / name)
    with pytest.raises(CacheError, match="data.bin"):
        EncodedCache.open(run / "cache")
    with pytest.raises(RunError, match="no older checkpoint is intact"):
        load_checkpoint(run / "checkpoints")


def test_the_place_of_a_cache_may_be_no_path(run):
    """Guards against a ValueError for NUL in the path of the cache that a run was trained from."""
    values = json.loads((run / "split.json").read_text())
    for place in ("a\0b", 7, None, {}):
        (run / "split.json").write_text(json.dumps({**values, "cache": place}))
        assert read_source(run) == run / "cache"


# ---- links


def snapshot(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@posix
@pytest.mark.parametrize("name", ["checkpoints", "samples", "cache", "tensorboard", "wandb"])
def test_linked_folders_are_never_entered_to_delete(run, tmp_path, name):
    """Guards against files outside of a run that are deleted because a stranger's run links to their folder."""
    outside = tmp_path / "outside"
    for path in (outside / "step-1" / "a", outside / ".step-9.tmp" / "b", outside / ".tmpA1b2C3"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    before = snapshot(outside)
    shutil.rmtree(run / name, ignore_errors=True)
    (run / name).symlink_to(outside)
    with pytest.raises(RunError, match=f"{name}: is a link"):
        require_own_folders(run)
    with alone_in(run):
        pass
    assert snapshot(outside) == before


@posix
def test_links_inside_of_checkpoints_are_removed_and_not_followed(tmp_path):
    """Guards against the same, one folder further down."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "mine").write_text("mine")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("step-1", ".step-2.tmp", "step-9"):
        (folder / name).symlink_to(tmp_path / "outside")
    for step in (9, 10, 11):
        save_checkpoint(folder, Checkpoint(step, {"model": {"x": torch.ones(1)}}, {}))
    assert [path.name for path in list_checkpoints(folder)] == ["step-10", "step-11"]
    assert snapshot(tmp_path / "outside") == {tmp_path / "outside" / "mine": b"mine"}


# ---- config.json and the weights


@pytest.mark.parametrize(
    "group, name, value",
    [("frontend", "griffin_lim_iterations", 61), ("backbone", "window", 9), ("backbone", "dropout", 0.2)],
)
def test_a_config_of_other_weights_is_refused(run, group, name, value):
    """Guards against a digit that flips in config.json: weights that still fit, read as something else, give another
    sound."""
    config, frontend = read_config(run), load_frontend(run)
    model, step = read_weights(run, config, frontend.spec)
    save_weights(run, config, model, step, 1.0)
    assert load_run(run).step == step
    values = json.loads((run / "config.json").read_text())
    before, values[group][name] = values[group][name], value
    (run / "config.json").write_text(json.dumps(values))
    with pytest.raises(
        RunError, match=f"model.safetensors: is for {group}.{name}={before}, but config.json has {value}"
    ):
        load_run(run)
    values["training"]["steps"], values[group][name] = 99, before  # what resuming may change
    (run / "config.json").write_text(json.dumps(values))
    assert load_run(run).step == step


def test_a_config_of_another_front_end_is_refused(tmp_path):
    """Guards against a saved front-end that is read at another sample rate, in another pitch."""
    save_frontend(load_frontend("mulaw", sample_rate=8000), tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("8000", "8200"))
    with pytest.raises(
        RunError, match="frontend.safetensors: is for frontend.sample_rate=8000, but config.json has 82"
    ):
        load_frontend(tmp_path)
