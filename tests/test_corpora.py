"""Several folders, or several caches, in one run: what belongs to which, and how often each is heard."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import folder_of_noise, noise, write_wav

from audiogen.commands.conditions import labels_of
from audiogen.commands.tokenize import tokenize
from audiogen.commands.train import train
from audiogen.data import Crops, EncodedCache, corpus_names, files_of, join_caches, scan, split, split_each
from audiogen.errors import CacheError, ConfigError, DataError, RunError
from audiogen.evaluation.report import evaluate_folder
from audiogen.frontends import MuLaw
from audiogen.runs.event_log import read_metrics
from audiogen.runs.folder import read_config, read_split

SMALL = [
    "training.crop_frames=64",
    "training.batch_size=4",
    "training.evaluations=1",
    "training.sample_seconds=0.02",
    "sampling.temperature=1",
]
OF_A_RUN: dict[str, Any] = dict(frontend="mulaw", backbone="bigram", steps=4, device="cpu")


@pytest.fixture
def folders(tmp_path):
    """Ten short files, and thirty longer ones below a folder of their own."""
    folder_of_noise(tmp_path / "sound" / "drums", [300 + number for number in range(10)])
    folder_of_noise(tmp_path / "sound" / "other" / "speech", [2000 + number for number in range(30)], seed=100)
    return [tmp_path / "sound" / "drums", tmp_path / "sound" / "other" / "speech"]


def mulaw(bits=8):
    return MuLaw(MuLaw.Config(sample_rate=8000, bits=bits))


def test_names_are_relative_to_what_contains_all(tmp_path, folders):
    assert corpus_names(folders) == ("drums", "other/speech") and corpus_names(folders[:1]) == ()
    for pair in ([folders[0], folders[0]], [folders[0], folders[0].parent]):
        with pytest.raises(DataError, match="drums: lies in .*or is the same; give each folder once"):
            corpus_names(pair)


def test_several_folders_are_scanned_as_one(folders):
    """Guards against a copy in the second folder that is held out while the first is trained on."""
    write_wav(folders[1] / "copy.wav", noise(3, 303))  # drums/03.wav
    index = scan(folders)
    assert index.folder == folders[0].parent and len(index.files) == 40
    assert all((index.folder / file.path).is_file() for file in index.files)
    assert [(file.path, file.reason) for file in index.rejected] == [
        ("other/speech/copy.wav", "has the same content as drums/03.wav")
    ]
    alone = scan(folders[0])
    assert files_of(index, "drums") == alone
    (folders[0].parent / "empty").mkdir()
    with pytest.raises(DataError, match="empty: holds no sound files"):
        scan([*folders, folders[0].parent / "empty"])


def test_files_of_each_folder_are_held_out(folders):
    """Guards against a small corpus of which no file, or every file, is held out."""
    sides = split_each(scan(folders), ["drums", "other/speech"], 0.1)
    counts = [Counter(part.file.path.split("/")[0] for part in side) for side in (sides.train, sides.held_out)]
    assert counts == [{"drums": 9, "other": 27}, {"drums": 1, "other": 3}]
    for folder, name in zip(folders, ("drums", "other/speech"), strict=True):
        own = {part.file.sha256 for part in split(scan(folder), 0.1).held_out}
        assert own == {part.file.sha256 for part in sides.held_out if part.file.path.startswith(name)}
    assert sides.train == sorted(sides.train, key=lambda part: part.file.sha256)


@pytest.mark.parametrize("share", [0.7, 0.02])
def test_crops_are_drawn_by_weight(tmp_path, folders, share):
    """Guards against weights of files or frames in the place of crops, and crops of two corpora joined in one."""
    index = scan(folders)
    cache = EncodedCache.build(index, mulaw(), tmp_path / "cache", progress=False)
    sides = split_each(index, ["drums", "other/speech"])
    mixture = {"drums": share, "other/speech": 1 - share}
    crops = Crops(cache, sides.train, 400, 8, seed=3, mixture=mixture)
    found, heard = Counter(), Counter()
    for step in range(250):
        batch, files = crops.batch(step)
        again, _ = (
            Crops(cache, sides.train, 400, 8, seed=3, mixture=mixture).batch(step) if step < 3 else (batch, files)
        )
        assert np.array_equal(batch.x, again.x)
        for names in files:
            corpora = {name.split("/")[0] for name in names}
            assert len(corpora) == 1
            found[corpora.pop()] += 1
            heard.update(names)
    expected, deviation = 2000 * share, (2000 * share * (1 - share)) ** 0.5
    assert abs(found["drums"] - expected) < 4 * deviation
    trained = {part.file.path for part in sides.train}
    assert set(heard) == trained if share == 0.7 else set(heard) <= trained
    with pytest.raises(DataError, match="nothing of piano can be trained on"):
        Crops(cache, sides.train, 400, 8, mixture={"drums": 0.5, "piano": 0.5})


def test_a_run_on_several_folders(tmp_path, folders, monkeypatch):
    """The whole way: weights in config.json, held-out losses of each folder, evaluation of one, and resuming."""
    out = tmp_path / "run"
    train(folders, out, **OF_A_RUN, overrides=[*SMALL, "data.weights=[3,1]"])
    saved = json.loads((out / "config.json").read_text())["data"]
    assert saved["weights"] == [3.0, 1.0] and saved["corpora"] == ["drums", "other/speech"]
    assert read_config(out).data.mixture == {"drums": 0.75, "other/speech": 0.25}
    assert {part.file.path for part in read_split(out).held_out} == {
        part.file.path for part in split_each(scan(folders), saved["corpora"]).held_out
    }
    final = next(event for event in read_metrics(out) if event["event"] == "final")
    losses = {name: one["loss"] for name, one in final["corpora"].items()}
    assert losses.keys() == {"drums", "other/speech"} and [one["files"] for one in final["corpora"].values()] == [1, 3]
    assert final["weighted_loss"] == pytest.approx(0.75 * losses["drums"] + 0.25 * losses["other/speech"])
    low, high = sorted(losses.values())
    assert low <= final["loss"] <= high
    with pytest.raises(RunError, match="was started with drums, other/speech; give the same"):
        train(folders[0], out, steps=5, device="cpu", resume=True)
    monkeypatch.setattr(sys.modules["audiogen.data.split"], "MANY", 5)  # as if an older version had begun the run
    assert split_each(scan(folders), saved["corpora"]) != split_each(scan(folders), saved["corpora"], threshold=False)
    run = train(folders[::-1], out, steps=6, device="cpu", resume=True)
    assert run.config.data.mixture == {"drums": 0.75, "other/speech": 0.25}
    folder_of_noise(tmp_path / "unseen", [900, 901], seed=7)
    assert "corpora" not in evaluate_folder(run, tmp_path / "unseen")


def test_each_folder_has_labels_of_its_own(folders):
    """Guards against a metadata.csv that is looked for only in the folder that contains all."""
    (folders[0] / "metadata.csv").write_text("file,kind\n" + "".join(f"{i:02d}.wav,hit\n" for i in range(10)))
    for i in range(30):
        (folders[1] / f"{i:02d}.txt").write_text("a word that is said\n")
    index, names = scan(folders), corpus_names(folders)
    rows = labels_of(index, corpora=names).files
    assert Counter(tuple(row.items()) for row in rows.values()) == {
        (("kind", "hit"),): 10,
        (("text", "a word that is said"),): 30,
    }
    folder_of_noise(folders[0], [400])  # 00.wav
    write_wav(folders[0] / "kick_1.wav", noise(70, 500))
    found = labels_of(scan(folders), "{drum}_{}", names)
    assert [row["drum"] for row in found.files.values() if "drum" in row] == ["kick"]
    with pytest.raises(ConfigError, match="matches none of the files"):
        labels_of(scan(folders), "{drum}-{}", names)


def test_several_caches_are_joined(tmp_path, folders):
    """Guards against files that change their codes or names on the way, copies on both sides, and a cache that is
    joined anew each time."""
    write_wav(folders[1] / "copy.wav", noise(3, 303))
    caches = [EncodedCache.build(folder, mulaw(), tmp_path / folder.name, progress=False) for folder in folders]
    joined = join_caches(caches, ("a", "b"), tmp_path / "joined")
    codes = {file.path: caches[0].codes(i) for i, file in enumerate(caches[0].files)}
    codes = {f"a/{path}": x for path, x in codes.items()}
    codes |= {f"b/{file.path}": caches[1].codes(i) for i, file in enumerate(caches[1].files)}
    assert codes.pop("b/copy.wav") is not None and len(joined) == len(codes) == 40
    assert all(np.array_equal(joined.codes(i), codes[file.path]) for i, file in enumerate(joined.files))
    assert [file.path for file in joined.index.rejected] == ["b/copy.wav"]
    stamp = (tmp_path / "joined" / "index.json").stat().st_mtime_ns
    assert len(join_caches(caches, ("a", "b"), tmp_path / "joined")) == 40
    assert (tmp_path / "joined" / "index.json").stat().st_mtime_ns == stamp
    assert len(join_caches(caches[:1], ("a",), tmp_path / "joined")) == 10
    other = EncodedCache.build(folders[0], mulaw(bits=4), tmp_path / "other", progress=False)
    with pytest.raises(CacheError, match="other: was made by another front-end than .*drums; encode it again"):
        join_caches([caches[0], other], ("a", "b"), tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_run_on_several_caches(tmp_path, folders):
    """The same run as on the folders: the same files on each side, and the same losses."""
    caches = []
    for folder in folders:
        caches.append(tmp_path / "caches" / folder.relative_to(tmp_path / "sound"))
        tokenize(folder, caches[-1], "mulaw")
    options: dict[str, Any] = {**OF_A_RUN, "overrides": [*SMALL, "data.weights=[3,1]"]}
    one = train(folders, tmp_path / "1", **options)
    options.pop("frontend")
    two = train(caches, tmp_path / "2", **options)
    assert one.config == two.config
    losses = [next(e for e in read_metrics(run.folder) if e["event"] == "final")["corpora"] for run in (one, two)]
    assert losses[0] == losses[1]
    train(caches, tmp_path / "2", steps=6, device="cpu", resume=True)


def test_weights_must_fit(tmp_path, folders):
    for setting, wrong in [
        ("data.weights=[1,2,3]", "data.weights: has 3 weights for 2 folders"),
        ("data.weights=[1,0]", "data.weights: each must be above 0"),
        ('data.corpora=["a","b"]', "data.corpora: follows from the folders"),
    ]:
        with pytest.raises(ConfigError, match=wrong):
            train(folders, tmp_path / "run", **OF_A_RUN, overrides=[setting])
    with pytest.raises(ConfigError, match="data.weights: has 2 weights for 1 folders"):
        train(folders[0], tmp_path / "run", **OF_A_RUN, overrides=["data.weights=[1,2]"])
    tokenize(folders[0], tmp_path / "cache", "mulaw")
    with pytest.raises(ConfigError, match="cache: is a cache, but .*speech is a folder of sound files"):
        train([tmp_path / "cache", folders[1]], tmp_path / "run", **OF_A_RUN)
    with pytest.raises(RunError, match="run: lies in .*speech"):
        train(folders, Path(folders[1], "run"), **OF_A_RUN)
    assert not (tmp_path / "run").exists()
