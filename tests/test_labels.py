"""Labels: found in every place that users keep them, learned crop by crop, and asked for by name."""

import itertools
import json
import math
import shutil

import numpy as np
import pytest
import torch
from corpus import RATE, folder_of_notes, tiny_settings
from folders import folder_of_noise
from tiny import lively
from typer.testing import CliRunner

from audiogen.audio.io import audio_info
from audiogen.audio.limiter import Limiter
from audiogen.cli import app
from audiogen.commands.options import parse_labels, parse_seconds
from audiogen.commands.samples import FileRequest, generate_files
from audiogen.commands.tokenize import tokenize
from audiogen.commands.train import train
from audiogen.data import Crops, EncodedCache, FileConditions, Labels, choose_conditions, find_labels, scan, split
from audiogen.data.labels import compile_pattern, describe_labels, find_labels_of_file, read_labels
from audiogen.errors import ConfigError, DataError
from audiogen.frontends.mulaw import MuLaw
from audiogen.generation.request import Request
from audiogen.models.conditioning import Label, Number, Pitch, Position, positions
from audiogen.runs.run import load_run
from audiogen.utils.pitch import midi_pitch


@pytest.fixture
def folder(tmp_path):
    """00.wav ... 05.wav"""
    return folder_of_noise(tmp_path / "sound", [300 + 10 * i for i in range(6)])


def found(folder, pattern=None):
    """The labels by path."""
    index = scan(folder, progress=False)
    labels = find_labels(index, pattern)
    return {file.path: dict(labels.files.get(file.sha256, {})) for file in index.files}


# ---- where labels come from


def test_a_csv_gives_labels_by_file(folder):
    """Guards against the most frequent question to MusicGen's users, "what format do I need?": values are stripped,
    empty ones are none, a file may be named without its suffix, and rows of other files do not matter."""
    text = "\ufefffile, instrument ,tempo\n00.wav, Snare ,120\n./01.wav,kick,\n02,snare,90\nelsewhere.wav,kick,1\n\n"
    (folder / "metadata.csv").write_text(text, encoding="utf-8")
    labels = found(folder)
    assert labels["00.wav"] == {"instrument": "Snare", "tempo": "120"}
    assert labels["01.wav"] == {"instrument": "kick"} and labels["02.wav"]["tempo"] == "90"
    assert labels["03.wav"] == {}
    (folder / "metadata.csv").rename(folder / "metadata.tsv")
    (folder / "metadata.tsv").write_text("file\tinstrument\n00.wav\tSnare, dry\n")
    assert found(folder)["00.wav"] == {"instrument": "Snare, dry"}


def test_rows_of_no_file_are_named(folder, caplog):
    """Guards against labels that vanish by a slip in a file's name, or because two files have it, and against a remark
    on each file that is left out as a copy, or on those of a folder when only one of them is of interest."""
    (folder / "copy.wav").write_bytes((folder / "00.wav").read_bytes())
    (folder / "more").mkdir()
    (folder / "02.wav").rename(folder / "more" / "03.wav")
    rows = ["file,drum", "00.wav,kick", "copy,kick", "01.wav,snare", "0l.wav,snare", "03.wav,snare", "03,snare"]
    (folder / "metadata.csv").write_text("\n".join(rows))
    assert found(folder)["01.wav"] == {"drum": "snare"}
    (said,) = caplog.messages
    assert said.startswith(str(folder / "metadata.csv")) and said.endswith("their name: 0l.wav, 03")
    caplog.clear()
    find_labels_of_file(folder / "01.wav")
    assert not caplog.messages


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "file_name,drum\n00.wav,kick\n",
            "metadata.csv: row 1: the first column must be called file, not file_name, as in a file whose first lines "
            "are file,instrument and drums/a.wav,snare$",
        ),
        (
            "file,drum,tempo\n00.wav,kick\n",
            "metadata.csv: row 2, column tempo: has 2 values, but the first row has 3 names",
        ),
        ("file,drum\n00.wav,kick\n01.wav,kick,loud\n", "row 3, column number 3: has 3 values"),
        ("file,drum\n00.wav,kick\n00.wav,snare\n", "row 3, column file: '?00.wav'? is listed twice"),
        ("file,drum,drum\n", "row 1, column 3: drum is used twice"),
        ("file,\n", "row 1, column 2: has no name"),
        ('file,drum\n00.wav,"kick\n', "row 2: not valid CSV"),
        ("file,drum\n00.wav,\udcff\n", "row 2: not valid UTF-8"),
        ("", "row 1: the first column"),
    ],
)
def test_what_is_wrong_with_a_csv_is_named_by_row_and_column(folder, text, message):
    """Guards against a traceback, and against labels that are one column off."""
    (folder / "metadata.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message):
        found(folder)


def test_files_beside_the_sounds_give_labels(folder):
    """Guards against sidecars as audiocraft and web datasets have them being ignored, or a broken one in silence."""
    (folder / "00.json").write_text('{"instrument": " snare ", "tempo": 120, "tags": ["a"], "none": null}')
    (folder / "01.txt").write_text("a dry\nsnare\n")
    assert found(folder)["00.wav"] == {"instrument": "snare", "tempo": "120"}
    assert found(folder)["01.wav"] == {"text": "a dry snare"}
    (folder / "02.json").write_text("{")
    with pytest.raises(DataError, match="02.json: not valid JSON"):
        found(folder)


def test_folder_names_are_labels_where_there_are_several(tmp_path):
    """Guards against drums sorted into folders that nobody asks for by name; one folder for all says nothing."""
    for name in ("kick", "snare"):
        folder_of_noise(tmp_path / "drums" / name, [300, 310], seed=len(name))
    assert set(found(tmp_path / "drums").values().__iter__().__next__()) == {"folder"}
    assert {row["folder"] for row in found(tmp_path / "drums").values()} == {"kick", "snare"}
    assert not any(found(tmp_path / "drums" / "kick").values())


def test_a_pattern_reads_labels_out_of_file_names(tmp_path):
    """Guards against regular expressions in the hands of musicians, and names that match too little."""
    folder = folder_of_noise(tmp_path / "x", [300, 310])
    (folder / "00.wav").rename(folder / "7_jackson_3.wav")
    assert found(folder, "{digit}_{speaker}_{}")["7_jackson_3.wav"] == {"digit": "7", "speaker": "jackson"}
    assert found(folder, "{digit}_{speaker}_{take}")["01.wav"] == {}
    with pytest.raises(ConfigError, match="matches none of the files, such as '01'"):
        find_labels(scan(folder, progress=False), "{a}-{b}")
    for bad in ("plain", "{a}_{a}", "{a", "{}"):
        with pytest.raises(ConfigError, match="names in braces"):
            compile_pattern(bad)
    assert compile_pattern("a.{b}").fullmatch("a.c") and not compile_pattern("a.{b}").fullmatch("a-c")


# ---- which conditions they make


def labels_of(sides, **columns):
    """Labels of the files of a split, in its order: a text for each, or None."""
    parts = [*sides.train, *sides.held_out]
    files = {part.file.sha256: {} for part in parts}
    for name, texts in columns.items():
        for part, text in zip(parts, texts, strict=True):
            if text is not None:
                files[part.file.sha256][name] = text
    return Labels(files, "a test")


def test_columns_become_labels_or_numbers_or_nothing(tmp_path):
    """Guards against digits as numbers, captions as thousands of labels, and a value that only held-out files have."""
    sides = split(scan(folder_of_noise(tmp_path / "x", list(range(300, 340))), progress=False))
    n = 40
    digits = [str(i % 3) for i in range(n - 1)] + ["9"]
    columns = {
        "digit": digits,
        "tempo": [str(60 + i / 2) for i in range(n)],
        "name": [f"take {i}" for i in range(n)],
        "same": ["x"] * n,
        "pitch": [["C2", "47", "Fs3", "bb4"][i % 4] for i in range(n)],
        "drum": [["Kick", "kick ", "SNARE", "snare"][i % 4].strip() for i in range(n - 1)] + [None],
    }
    labels = labels_of(sides, **columns)
    chosen = choose_conditions(labels, sides)
    assert chosen["digit"] == Label.Config(("0", "1", "2"))
    assert isinstance(chosen["tempo"], Number.Config) and chosen["tempo"].low == 60
    assert chosen["tempo"].gap == 0.5
    assert [value.casefold() for value in chosen["drum"].values] == ["kick", "snare"]
    assert chosen["position"] == Position.Config()  # the files are short
    assert chosen["pitch"] == Pitch.Config(36, 70)
    assert chosen.keys() == {"digit", "tempo", "pitch", "drum", "position"}
    table = {column.name: column for column in describe_labels(labels, sides)}
    assert table["digit"].one_sided == ["9"] and table["digit"].counts["9"] == 1
    assert table["drum"].missing == 1 and table["name"].reason == "its values occur in fewer than two files on average"
    assert choose_conditions(labels, sides, ["none"]) == {}
    assert choose_conditions(labels, sides, ["digit"]).keys() == {"digit"}
    assert len(choose_conditions(labels, sides, ["name"])["name"].values) == len(sides.train)
    for name, message in {"same": "it has only one value", "digti": "no label 'digti'; found: digit, tempo"}.items():
        with pytest.raises(ConfigError, match=message):
            choose_conditions(labels, sides, [name])


def test_a_pitch_has_a_number_or_a_name():
    """Guards against octaves counted from A, flats read as notes, and frequencies taken for MIDI numbers."""
    names = {"C4": 60, "a4": 69, "B3": 59, "C-1": 0, "F#3": 54, "fs3": 54, "G♭3": 54, "Bb2": 46, "b2": 47, "61.5": 61.5}
    assert {name: midi_pitch(name) for name in names} == names
    assert all(math.isnan(midi_pitch(text)) for text in ("", "H4", "C", "440", "-1", "G#9", "nan", "C44"))
    part = Pitch(Pitch.Config(48, 72), 8)
    assert part.parse("pitch", "Fs3").item() == part.parse("pitch", 54).item() == 54
    with pytest.raises(ConfigError, match="pitch: must be a pitch from 48 to 72"):
        part.parse("pitch", "C2")


def test_labels_are_kept_with_the_content(tmp_path, folder):
    """Guards against labels that are lost with a file's name, and a damaged file of them that is believed."""
    labels = Labels({"ab": {"digit": "7"}}, "metadata.csv", "{a}")
    labels.save(tmp_path)
    assert read_labels(tmp_path) == labels and read_labels(folder) == Labels()
    (tmp_path / "conditions.json").write_text('{"format": 1, "files": {"ab": 3}, "source": "", "pattern": ""}')
    with pytest.raises(DataError, match="conditions.json: is damaged"):
        read_labels(tmp_path)


# ---- crops


@pytest.fixture
def corpus(tmp_path):
    """Files of mu-law, each of one loudness, so that a frame tells which file it is of: as long as its name says."""
    folder = folder_of_noise(tmp_path / "sound", [40, 50, 60, 70, 300, 80])
    cache = EncodedCache.build(folder, MuLaw(MuLaw.Config(sample_rate=8000)), tmp_path / "cache", progress=False)
    sides = split(cache.index)
    labels = Labels({part.file.sha256: {"size": str(part.file.num_samples)} for part in sides.train})
    sizes = tuple(sorted({str(part.file.num_samples) for part in sides.train}))
    configs = {"size": Label.Config(sizes), "position": Position.Config()}
    return cache, sides, FileConditions(configs, labels), sizes


def test_labels_change_where_the_next_file_begins(corpus):
    """Guards against a crop of five words that has one label, or none: compared with the codes of each file."""
    cache, sides, known, sizes = corpus
    crops = Crops(cache, sides.train, 200, 8, seed=3, known=known)
    codes = {str(file.entry.num_samples): cache.codes(i)[0] for i, file in enumerate(cache.files)}
    switches = 0
    for step in range(5):
        batch, _ = crops.batch(step)
        size, position = batch.conditions["size"], batch.conditions["position"]
        assert size.shape == (8, 1, 200) and position.shape == (8, 2, 200)
        for x, place, (since, left) in zip(batch.x[:, 0], size[:, 0], position, strict=True):
            for t in range(200):
                if math.isnan(float(since[t])):
                    continue
                file = codes[sizes[int(place[t])]]
                assert int(since[t] + left[t]) == len(file) - 1
                assert x[t] == file[int(since[t])]
            switches += int((place[1:] != place[:-1]).sum())
    assert switches > 20


def test_dropout_is_drawn_for_each_item_from_seed_and_step(corpus):
    """Guards against audiocraft's dropout, drawn once for a whole batch; against one that resuming changes, and one
    that moves the crops."""
    cache, sides, known, _ = corpus
    crops = Crops(cache, sides.train, 50, 16, seed=3, known=known, dropout=0.25)
    whole, plain = Crops(cache, sides.train, 50, 16, seed=3, known=known), Crops(cache, sides.train, 50, 16, seed=3)
    gone, both = [], []
    for step in range(60):
        batch = crops.batch(step)[0]
        assert torch.equal(batch.x, plain.batch(step)[0].x)
        again = Crops(cache, sides.train, 50, 16, seed=3, known=known, dropout=0.25).batch(step)[0]
        lost = {name: values.isnan().all(dim=2).all(dim=1) for name, values in batch.conditions.items()}
        for name, values in batch.conditions.items():
            assert torch.equal(values.isnan(), again.conditions[name].isnan())
            kept = ~lost[name]
            assert torch.equal(values[kept], whole.batch(step)[0].conditions[name][kept])  # a crop loses all or nothing
        gone.append(lost["size"])
        both.append(lost["size"] & lost["position"])
    share = torch.stack(gone).float()
    assert abs(float(share.mean()) - (1 - 0.75**2)) < 0.05
    assert 0 < float(share.mean(dim=1).min()) or float(share.std(dim=1).mean()) > 0.3  # items differ within a batch
    assert float(torch.stack(both).float().mean()) > 0.25 + 0.1  # together, and each by itself


# ---- from the command to the sound


OVERRIDES = ["backbone.dim=8", "training.crop_frames=16", "training.sample_seconds=0.05", "training.evaluations=2"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of two instruments at two notes."""
    place = tmp_path_factory.mktemp("labels")
    folder = folder_of_notes(place / "corpus", [1200] * 12)
    rows = [f"note-{i:02d}.wav,{['Kick', 'snare'][i % 2]},{i % 3}" for i in range(12)]
    (folder / "metadata.csv").write_text("\n".join(["file,drum,note", *rows]))
    settings = [f"frontend.{name}={value}" for name, value in tiny_settings("mulaw").items()]
    train(folder, place / "run", "mulaw", "bigram", steps=4, overrides=[*OVERRIDES, *settings])
    return place


def test_training_finds_labels_and_keeps_them(made):
    """Guards against a run folder that does not know what it can be asked for."""
    config = json.loads((made / "run" / "config.json").read_text())
    assert config["conditions"]["drum"] == {"kind": "label", "values": ["Kick", "snare"]}
    assert list(config["conditions"]) == ["drum", "note", "position"]
    run = load_run(made / "run")
    learned = [parameter for name, parameter in run.model.conditioner.named_parameters()]
    assert all(bool(parameter.abs().sum() > 0) for parameter in learned)


def test_what_is_asked_for_is_what_is_made(made, tmp_path):
    """Guards against a label that is ignored, and one that is drawn anew although it was asked for."""
    run = load_run(made / "run")
    lively(run.model)  # a few steps teach little
    one, other = (run.generate(0.05, seed=1, conditions={"drum": drum, "note": "1"}) for drum in ("kick", "SNARE"))
    assert not torch.equal(one, other)
    assert torch.equal(one, run.generate(0.05, seed=1, conditions={" Drum": "Kick ", "note": 1}))
    assert not torch.equal(one, run.generate(0.05, seed=1, conditions={"drum": "kick", "note": "1"}, guidance=9.0))
    both = run.generate(0.05, num=2, seed=1, conditions={"drum": ["kick", "snare"], "note": "1"})
    assert torch.equal(both[:1], one)
    nothing = run.request(seeds=[1], conditions={"drum": None, "note": None})
    assert nothing.conditions == {} and not nothing.guided
    for asked, message in {
        ("drum", "hihat"): "drum: there is no 'hihat'; choose one of Kick, snare",
        ("dru", "kick"): "dru: the run has no such condition; it has drum, note, position",
        ("drum", ("kick",) * 3): "drum: one value for each of 2 items",
    }.items():
        with pytest.raises(ConfigError, match=message):
            run.generate(0.05, num=2, conditions=dict([asked]))


def test_labels_change_while_a_stream_plays(made):
    """Guards against a knob that is not heard, or that is read for the whole stream at its beginning."""
    run = load_run(made / "run")
    lively(run.model)
    kick, snare = ({"drum": drum, "note": "1"} for drum in ("kick", "snare"))
    whole = run.generate(0.2, seed=1, conditions=kick)
    chunks = list(run.stream(0.2, seed=1, conditions=itertools.repeat(kick)))
    assert torch.equal(torch.cat(chunks, dim=2), whole)
    knob = dict(kick)
    chunks, heard = run.stream(0.2, seed=1, conditions=iter(lambda: dict(knob), None)), []
    for chunk in chunks:
        heard.append(chunk)
        knob = dict(snare)
    heard = torch.cat(heard, dim=2)
    # The first chunk, and one frame that was begun; before that, the limiter turns down what a later peak needs.
    begins = int(0.05 * run.sample_rate) + 1 - Limiter(run.sample_rate).delay
    assert torch.equal(heard[..., :begins], whole[..., :begins]) and not torch.equal(heard, whole)
    assert torch.equal(torch.cat(list(run.stream(0.2, seed=1, conditions=iter([kick]))), dim=2), whole)
    with pytest.raises(ConfigError, match="drum: there is no 'hihat'"):
        list(run.stream(0.2, conditions=iter([kick, {"drum": "hihat"}])))


def test_labels_that_nobody_asks_for_come_in_the_folders_proportions(made, monkeypatch):
    """Guards against labels drawn one by one, whose pairs no file has: "Kick" has the notes 0, 1 and 2 by turns, as
    its training files do, and a seed always has the same."""
    run = load_run(made / "run")
    asked = run.ask({"drum": "kick"}, range(200))
    pairs = {(words["drum"], words["note"]) for words in asked.words}
    rows = read_labels(run.folder).files
    there = {(rows[p.file.sha256]["drum"], rows[p.file.sha256]["note"]) for p in run.split().train}
    assert pairs == {pair for pair in there if pair[0] == "Kick"}
    assert run.ask({"drum": "kick"}, [7]).words == asked.words[7:8]
    for module in ("runs.folder", "data.labels"):
        monkeypatch.setattr(f"audiogen.{module}.read_format", lambda *_: pytest.fail("a file is read for each batch"))
    free = [words["drum"] for words in run.ask(None, range(400)).words]
    share = np.mean([rows[p.file.sha256]["drum"] == "Kick" for p in run.split().train])
    assert abs(free.count("Kick") / 400 - share) < 0.1


def test_a_cache_keeps_the_labels_of_its_folder(made, tmp_path):
    """Guards against labels that are lost between tokenize and train."""
    settings = [f"frontend.{name}={value}" for name, value in tiny_settings("mulaw").items()]
    tokenize(made / "corpus", tmp_path / "cache", "mulaw", overrides=settings)
    run = train(tmp_path / "cache", tmp_path / "run", None, "bigram", steps=2, overrides=OVERRIDES, condition=["drum"])
    assert list(run.config.conditions) == ["drum"]
    with pytest.raises(ConfigError, match="--condition: .* was started with drum"):
        train(tmp_path / "cache", tmp_path / "run", resume=True, condition=["note"])
    train(tmp_path / "cache", tmp_path / "run", steps=4, resume=True)


def test_without_conditions_a_run_is_as_before(made, tmp_path):
    """Guards against a config.json that says something of conditions where there are none."""
    settings = [f"frontend.{name}={value}" for name, value in tiny_settings("mulaw").items()]
    arguments = dict(steps=2, overrides=[*OVERRIDES, *settings])
    run = train(made / "corpus", tmp_path / "run", "mulaw", "bigram", condition=["none"], **arguments)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert "conditions" not in config and "guidance" not in config
    assert not (tmp_path / "run" / "conditions.json").exists() and run.model.conditioner is None
    with pytest.raises(ConfigError, match="drum: this run was trained without conditions"):
        run.generate(0.05, conditions={"drum": "kick"})
    with pytest.raises(ConfigError, match="guidance: this run was trained without conditions"):
        run.generate(0.05, guidance=2.0)


def test_labels_are_typed_as_name_and_value():
    """Guards against an `=` in a value that is lost."""
    assert parse_labels(["digit=7", " speaker = a=b ", "take="]) == {"digit": "7", "speaker": "a=b", "take": None}
    for bad in (["digit"], ["=7"], ["a=1", "a=2"]):
        with pytest.raises(ConfigError, match="--label"):
            parse_labels(bad)
    assert Request(seeds=[1]).conditions is None


def test_a_run_of_short_files_generates_complete_sounds_unless_seconds_are_given(made, tmp_path):
    """Guards against four seconds of hits in a row where a folder of hits was learned."""
    rate = load_run(made / "run").sample_rate
    for asked, seconds in ({}, 1200 / rate), ({"seconds": "0.2"}, 0.2), ({"stream": ""}, 4.0):
        words = [f"--{name}={value}" if value else f"--{name}" for name, value in asked.items()]
        done = CliRunner().invoke(
            app, ["generate", str(made / "run"), "--out", str(tmp_path), "--num=1", "--seed=1", *words]
        )
        assert done.exit_code == 0, done.output
        assert audio_info(tmp_path / "sample-1.wav").num_samples == round(seconds * rate)


def test_position_is_learned_without_labels(tmp_path):
    """Guards against one-shots that end only where there are labels."""
    for seconds, found in ((0.3, ["position"]), (9.0, [])):
        folder = folder_of_notes(tmp_path / str(seconds), [round(seconds * RATE)] * 12)
        assert list(choose_conditions(Labels(), split(scan(folder)))) == found


@pytest.mark.parametrize("seconds", [0.05, None])
def test_the_best_of_several_draws_can_be_made_again(made, tmp_path, seconds):
    """Guards against --best-of that is ignored, and a seed in the name that gives other labels when it is typed."""
    run = load_run(made / "run")
    lively(run.model)
    best = list(generate_files(run, tmp_path / "best", FileRequest(seconds, best_of=4), 4, seed=0))
    assert [seed for _, seed, _ in best] == [0, 4, 8, 12]
    for path, seed, said in best:
        about = json.loads(path.with_suffix(".json").read_text())
        assert (about["seed"], about["best_of"]) == (seed, 4)
        ((again, _, words),) = generate_files(run, tmp_path / "again", FileRequest(seconds, best_of=4), 1, seed=seed)
        assert words == said and again.read_bytes() == path.read_bytes()
    first = run.generate(0.05, seeds=[0, 4, 8, 12])
    assert not torch.equal(run.generate(0.05, num=4, seed=0, best_of=4), first)


def test_a_sound_of_its_own_length_ends_where_it_is_asked_to(made, tmp_path):
    """Guards against a one-shot that is followed by the next file, and items cut at the length of another."""
    run = load_run(made / "run")
    request, lengths = run.request_with_end([1, 2, 3], conditions={"drum": "kick"})
    assert lengths == [1200] * 3  # as the training files
    assert torch.equal(request.conditions["position"], positions(1200).expand(3, -1, -1))
    written = list(generate_files(run, tmp_path, FileRequest(None, asked={"drum": "kick"}), 3, seed=1))
    assert [audio_info(path).num_samples for path, *_ in written] == lengths
    assert all(said["drum"] == "Kick" for *_, said in written)
    asked = run.ask({"position": [5, 3]}, [1, 2]).conditions["position"]
    assert asked.shape == (2, 2, 5) and asked[1, 1].tolist()[:3] == [2, 1, 0] and asked[1, :, 3:].isnan().all()
    with pytest.raises(ConfigError, match="seconds: after a prompt"):
        list(generate_files(run, tmp_path, FileRequest(None, prompt=made / "corpus" / "note-00.wav"), 1))
    assert parse_seconds("0.5") == 0.5 and parse_seconds("Auto") is None
    with pytest.raises(ConfigError, match="--seconds: must be a number, or auto"):
        parse_seconds("long")


def test_seconds_are_filled_with_complete_sounds(made):
    """Guards against silence without end after the first of several hits, and sounds of other labels among them."""
    run = load_run(made / "run")
    length = positions(1200)  # all training files are equally long
    seconds = 3000 / run.sample_rate
    request = run.request(seeds=[1, 2], conditions={"drum": "kick"}, seconds=seconds)
    assert torch.equal(request.conditions["position"], torch.cat([length] * 3, dim=1).expand(2, -1, -1))
    assert torch.equal(
        run.generate(seconds, seeds=[1], conditions={"drum": "kick"}),
        torch.cat(list(run.stream(seconds, seeds=[1], conditions={"drum": "kick"})), dim=2),
    )
    prompt = torch.zeros(1, 100)
    for open_ended in run.request(seeds=[1]), run.request(seeds=[1], prompt=prompt, seconds=seconds):
        assert "position" not in open_ended.conditions
    asked = run.request(seeds=[1], conditions={"position": 5}, seconds=seconds)
    assert torch.equal(asked.conditions["position"], positions(5)[None])
    rows = [run.labels.files[part.file.sha256] for part in run.split().train]
    asked = run.ask({"drum": "kick"}, range(20))
    for words, durations in zip(asked.words, asked.durations, strict=True):  # the first is that of the file drawn
        assert len(durations) == 1 + rows.count(words)


# ---- like a recording


def test_the_labels_of_a_file_are_found_where_those_of_its_folder_are(tmp_path):
    """Guards against a recording of another folder whose label is not found, or is that of another file."""
    folder = folder_of_noise(tmp_path / "sound" / "kick", [300, 310])
    assert find_labels_of_file(folder / "00.wav") == {"folder": "kick"}
    (tmp_path / "sound" / "metadata.csv").write_text("file,drum\nkick/00.wav,snare\n01.wav,hat\n")
    assert find_labels_of_file(folder / "00.wav") == {"drum": "snare"}
    assert find_labels_of_file(folder / "01.wav") == {"drum": "hat"}
    (folder / "00.txt").write_text("a dry snare")
    assert find_labels_of_file(folder / "00.wav") == {"text": "a dry snare"}
    assert find_labels_of_file(folder / "00.wav", "{take}") == {"text": "a dry snare", "take": "00"}
    assert find_labels_of_file(folder / "00.wav", "{a}-{b}") == {"text": "a dry snare"}


def test_variations_of_a_recording_have_its_conditions(made, tmp_path, caplog, monkeypatch):
    """Guards against labels of a random training file where those of the recording are wanted, a length that is not
    its own, and a recording that has no label."""
    run = load_run(made / "run")
    part = run.split().train[0]
    known = run.labels.files[part.file.sha256]
    (tmp_path / "x").mkdir()
    copy = shutil.copy(made / "corpus" / part.file.path, tmp_path / "x" / "renamed.wav")
    assert run.conditions_of(copy) == {**known, "position": 1200}
    stranger = folder_of_noise(tmp_path / "new", [700], seed=5) / "00.wav"
    assert run.conditions_of(stranger) == {"drum": None, "note": None, "position": 700}
    (tmp_path / "new" / "metadata.csv").write_text("file,drum,note\n00.wav,SNARE,9\n")
    assert run.conditions_of(stranger) == {"drum": "SNARE", "note": None, "position": 700}

    command = ["generate", str(made / "run"), "--out", str(tmp_path / "out"), "--num", "2", "--like", str(stranger)]
    caplog.set_level("INFO")
    found = CliRunner().invoke(app, [*command, "--label", "drum=kick"])
    assert found.exit_code == 0 and found.output.count("drum Kick") == 2, found.output
    assert "sounds like note" in caplog.text  # of a classifier, since 9 is no note that the run knows
    assert {audio_info(path).num_samples for path in (tmp_path / "out").glob("*.wav")} == {700}
    monkeypatch.setattr("audiogen.commands.samples.read_source", lambda folder: folder / "gone")
    found = CliRunner().invoke(app, [*command, "--seconds", "0.01", "--out", str(tmp_path / "short")])
    assert found.exit_code == 0 and "drum snare" in found.output and "note" not in found.output
    assert {audio_info(path).num_samples for path in (tmp_path / "short").glob("*.wav")} == {80}
