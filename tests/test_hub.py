"""Runs on the hub: what is pushed is what others need and nothing more, and what is pulled is the same run."""

import dataclasses
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from corpus import folder_of_notes, tiny_settings
from hub_server import TOKEN, Repository, hub_server
from typer.testing import CliRunner

import audiogen
from audiogen.audio.stereo import BANDS, StereoImage
from audiogen.cli import app
from audiogen.commands.train import train
from audiogen.errors import ConfigError, HubError, RunError
from audiogen.runs.address import Address, check_name, parse_address
from audiogen.runs.card import BEGIN, END
from audiogen.runs.event_log import read_metrics
from audiogen.runs.folder import read_config, write_report
from audiogen.runs.run import Run, load_run
from audiogen.utils.files import atomic_write_json

PACKAGE = Path(audiogen.__file__).parent.parent
SMALL = ["backbone.dim=8", "backbone.num_layers=1", "backbone.num_heads=2", "training.crop_frames=16"]
SMALL += ["training.sample_seconds=0.1", "training.evaluations=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with labels, whose recordings lie in a folder with a telling name."""
    place = tmp_path_factory.mktemp("home-of-alice")
    settings = [f"frontend.{name}={value}" for name, value in tiny_settings("melvq").items()]
    corpus = folder_of_notes(place / "secret-corpus", [4000] * 6)
    rows = "".join(f"{path.name},{'low' if i % 2 else 'high'}\n" for i, path in enumerate(sorted(corpus.glob("*.wav"))))
    (corpus / "metadata.csv").write_text(f"file,register\n{rows}")
    train(corpus, place / "run", "melvq", "gpt", steps=2, overrides=SMALL + settings)
    return place / "run"


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """A run of two stages."""
    place = tmp_path_factory.mktemp("staged")
    settings = [f"melvq.frontend.{name}={value}" for name, value in tiny_settings("melvq").items()]
    settings += [f"mel.frontend.{name}={value}" for name, value in tiny_settings("mel").items()]
    corpus = folder_of_notes(place / "corpus", [4000] * 6)
    train(corpus, place / "run", backbone="gpt", steps=2, overrides=SMALL + settings, stages=["melvq", "mel"])
    return place / "run"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub, somebody who is logged in, and an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    with hub_server() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def same_sound(one: Run, other: Run) -> bool:
    return torch.equal(one.generate(seconds=0.2, seed=1), other.generate(seconds=0.2, seed=1))


# ---- there and back


def test_what_is_pushed_comes_back_as_the_same_run(folder, hub, caplog):
    """Guards against a pulled run that sounds otherwise, knows no labels, or does not say which commit it is."""
    caplog.set_level(logging.INFO, "audiogen")
    run = load_run(folder)
    pushed = run.push_to_hub("me/notes", license="cc-by-4.0")
    pulled = load_run("hf://me/notes")
    assert same_sound(run, pulled) and pulled.labels == run.labels
    commit = hub.repositories["me/notes"].refs["main"]
    assert pushed == str(pulled.address) == f"hf://me/notes@{commit}"
    assert commit[:12] in caplog.text
    assert same_sound(run, Run.from_pretrained("me/notes")) and same_sound(run, Run.from_pretrained(folder))


def test_a_stereo_run_comes_back_stereo(folder, hub, tmp_path):
    """Guards against an image that stays at home: the pulled run would be mono; and a card of another shape."""
    place = shutil.copytree(folder, tmp_path / "stereo")
    image = StereoImage((0.3,) * BANDS, (0.5,) * BANDS)
    atomic_write_json(place / "config.json", dataclasses.replace(read_config(place), stereo=image).to_dict())
    run = load_run(place)
    run.push_to_hub("me/wide")
    pulled = load_run("hf://me/wide")
    left, right = pulled.generate(seconds=0.2, seed=1)[0]
    assert same_sound(run, pulled) and not torch.equal(left, right)
    assert "(4, 2, N)" in hub.repositories["me/wide"].newest["README.md"].decode()


def test_only_what_others_need_is_pushed(folder, hub):
    """Guards against recordings, names of files and folders, checkpoints or code that end up on the hub."""
    load_run(folder).push_to_hub("me/notes")
    files = hub.repositories["me/notes"].newest
    samples = {name for name in files if name.startswith("samples/")}
    assert samples and all(name.split("/")[1].split("-")[0] in ("generated", "asked") for name in samples)
    needed = {"config.json", "frontend.safetensors", "model.safetensors", "split.json", "conditions.json", "README.md"}
    assert files.keys() - samples == needed | {".gitattributes"}
    for name, data in files.items():
        assert not {word for word in (b"alice", b"secret", b"note-0", str(folder).encode()) if word in data}, name


def test_stages_are_pushed_and_pulled_in_their_folders(staged, hub, tmp_path):
    """Guards against a run of stages of which the hub has only the last one, or only config.json."""
    run = load_run(staged)
    run.push_to_hub("me/staged")
    files = hub.repositories["me/staged"].newest
    assert {"config.json", "README.md", "melvq/model.safetensors", "mel/model.safetensors", "mel/split.json"} <= set(
        files
    )
    pulled = load_run("hf://me/staged")
    assert [stage.name for stage in pulled.stages] == ["melvq", "mel"] and same_sound(run, pulled)
    run.save_pretrained(tmp_path / "copy")
    assert same_sound(run, load_run(tmp_path / "copy"))
    assert "stage melvq" in (tmp_path / "copy" / "README.md").read_text()


def test_a_revision_stays_what_it_was(folder, hub):
    """Guards against a pinned revision that follows the branch."""
    first = load_run(folder).push_to_hub("me/notes", license="mit")
    second = load_run(folder).push_to_hub("me/notes", license="cc0-1.0")
    assert first != second
    for address, licence in ((first, "mit"), (second, "cc0-1.0"), ("hf://me/notes", "cc0-1.0")):
        assert f"license: {licence}\n" in (load_run(address).folder / "README.md").read_text()
    hub.repositories["me/notes"].refs["v1"] = first.partition("@")[2]
    assert str(load_run("hf://me/notes@v1").address) == first


def test_a_cached_run_needs_no_network(folder, hub, monkeypatch):
    """Guards against a run that was loaded yesterday and is out of reach on a train."""
    run = load_run(folder)
    run.push_to_hub("me/notes")
    load_run("hf://me/notes")
    count = len(hub.requests)
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert same_sound(run, load_run("hf://me/notes"))
        assert len(hub.requests) == count
        with pytest.raises(HubError, match="hf://me/others: the hub can't be reached, and the run is not in the cache"):
            load_run("hf://me/others")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    assert same_sound(run, load_run("hf://me/notes"))


def test_a_push_removes_what_is_no_longer_part_of_the_run(folder, hub):
    """Guards against samples of earlier weights beside the new ones, and against deleting what is not ours."""
    repository = hub.repositories["me/notes"] = Repository()
    repository.commit({"samples/generated-99.wav": b"old", "LICENSE": b"mine", "old/model.safetensors": b"old"})
    load_run(folder).push_to_hub("me/notes")
    assert "LICENSE" in repository.newest
    assert not {"samples/generated-99.wav", "old/model.safetensors"} & repository.newest.keys()


# ---- the card


def test_the_card_says_what_the_run_is(folder, tmp_path):
    """Guards against a card that names no data, no licence, no figures beside counted ones, no sounds."""
    run = load_run(folder)
    run.save_pretrained(tmp_path / "out", license="cc-by-4.0")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\n") and "\nlicense: cc-by-4.0\n" in card.split("---")[1]
    final = [event for event in read_metrics(folder) if event["event"] == "final"][-1]
    assert f"| this model | {final['loss']:.3f} |" in card
    for name in ("unigram", "bigram"):
        assert f"{final['baselines'][name]['loss']:.3f}" in card
    held_out = sum(part.seconds for part in run.split().held_out) / 60
    assert f"{len(run.split().train)} files" in card and f"{held_out:,.1f} minutes" in card
    assert "| register | high (" in card and "audiogen.load_run(" in card and "--label register=" in card
    for path in (tmp_path / "out" / "samples").iterdir():
        assert f"(samples/{path.name})" in card


def test_the_card_has_the_distance_of_the_last_evaluation_of_these_weights(folder, tmp_path):
    """Guards against a KAD of other weights, which an evaluation before further training has left."""
    kad = {name: {"value": x, "low": x, "high": x} for name, x in (("generated", 0.123), ("training", 0.045))}
    try:
        for step, there in ((2, True), (1, False)):
            write_report(folder, {"step": step, "generated": {"num": 20, "kad": kad}, "loss": float("nan")})
            load_run(folder).save_pretrained(tmp_path / str(step))
            card = (tmp_path / str(step) / "README.md").read_text()
            assert ("| generated sound | 123 (123 to 123) |" in card) is there
            assert ("KAD x 1000 of 20 clips" in card) is there
    finally:
        (folder / "report.json").unlink()


def test_an_evaluation_on_other_files_is_not_for_the_card(folder, monkeypatch):
    """Guards against a card that calls somebody else's recordings the run's own held-out ones."""
    found = {"loss": 1.0}
    monkeypatch.setattr("audiogen.evaluation.report.evaluate_folder", lambda *given: found)
    for likeness, kept in (({"likeness": {}}, False), ({}, True)):
        found = {"loss": 1.0, **likeness}
        assert CliRunner().invoke(app, ["evaluate", str(folder), str(folder), "--json"]).exit_code == 0
        assert (folder / "report.json").exists() is kept
    (folder / "report.json").unlink()


def test_a_result_that_cannot_be_kept_is_not_lost(tmp_path, caplog):
    """Guards against minutes of evaluation that end with an error, since the run folder is somebody else's."""
    (tmp_path / "report.json").mkdir()
    write_report(tmp_path, {"loss": 1.0})
    assert "report.json: can't be written" in caplog.text


def test_what_somebody_wrote_into_the_card_stays(folder, hub):
    """Guards against a push that overwrites the owner's words, or keeps figures of earlier weights."""
    card = folder / "README.md"
    try:
        run = load_run(folder)
        run.push_to_hub("me/notes", license="mit")
        made = card.read_text()
        before, after = made.partition(BEGIN)[0], made.partition(END)[2]
        card.write_text(f"{before}My own words.\n\n{BEGIN}\nold figures\n{END}{after}\nAnd thanks.\n")
        run.push_to_hub("me/notes")
        pushed = hub.repositories["me/notes"].newest["README.md"].decode()
        assert "My own words." in pushed and "And thanks." in pushed and "license: mit" in pushed
        assert "old figures" not in pushed and "## Training data" in pushed
        load_run("hf://me/notes").push_to_hub("me/copy")  # which has no metrics to make a card from
        assert hub.repositories["me/copy"].newest["README.md"].decode() == pushed
    finally:
        card.unlink(missing_ok=True)


def test_labels_can_write_no_html_into_the_card(folder, tmp_path):
    """Guards against a label that becomes markup on a page of somebody else."""
    from audiogen.runs.card import _plain

    assert _plain("<script>a|b\n*c*") == r"&lt;script\>a\|b \*c\*"


# ---- what is refused


@pytest.mark.parametrize(
    "text, address",
    [
        ("hf://me/drums", Address("me/drums")),
        (Path("hf://me/drums"), Address("me/drums")),
        ("hf://me/drums@v1.0", Address("me/drums", "v1.0")),
        ("hf://me/dr.um-s_2@refs/pr/1", Address("me/dr.um-s_2", "refs/pr/1")),
        *((bad, None) for bad in ("hf://drums", "hf://me/drums@", "hf://me/../x", "hf://me/a/b", "hf://-me/x")),
        *((bad, None) for bad in ("hf://me/x@../../y", "hf://mé/x", "hf://me/x y", "hf://me/a--b")),
    ],
)
def test_addresses(text, address):
    """Guards against an address that leads elsewhere, or is refused only after a download has begun."""
    if address is None:
        with pytest.raises(ConfigError, match="is no address on the hub"):
            parse_address(text)
    else:
        assert parse_address(text) == address


def test_names_have_no_revision():
    """Guards against a push to a revision that would be ignored."""
    assert check_name("me/drums") == "me/drums" == check_name("hf://me/drums")
    for name in ("drums", "me/drums@v1", "runs/drums/x"):
        with pytest.raises(ConfigError, match="write OWNER/NAME"):
            check_name(name)


def test_each_failure_is_one_line_that_says_what_to_do(folder, hub, monkeypatch):
    """Guards against a page of traceback from an HTTP library."""
    run = load_run(folder)
    run.push_to_hub("me/notes")
    hub.repositories["me/empty"] = Repository()
    hub.repositories["me/empty"].commit({"pytorch_model.bin": b"x"})
    for address, said in {
        "hf://me/gone": "hf://me/gone: the hub has no such repository, or it is private; check the name",
        "hf://me/notes@v9": "no such branch, tag or commit; check what follows the @",
        "hf://me/empty": "holds no run of audiogen, since it has no config.json",
    }.items():
        assert_one_line(said, lambda address=address: load_run(address))
    assert_one_line("the hub answers 403; your token may not write there", lambda: run.push_to_hub("others/notes"))
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert_one_line("the hub answers 401; you are not logged in", lambda: run.push_to_hub("me/notes"))
    monkeypatch.delenv("HF_TOKEN")
    assert_one_line("nobody is logged in; type: hf auth login", lambda: run.push_to_hub("me/notes"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert_one_line("the hub can't be reached", lambda: run.push_to_hub("me/notes"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert_one_line("pip install huggingface_hub", lambda: load_run("hf://me/notes"))


def test_a_hub_without_xet_storage_says_what_to_set(folder, hub, monkeypatch):
    """Guards against a server of one's own to which nothing can be pushed, because "the network" is said to be down."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    assert_one_line("no Xet storage; set HF_HUB_DISABLE_XET=1", lambda: load_run(folder).push_to_hub("me/notes"))


def assert_one_line(said, call):
    with pytest.raises(HubError) as caught:
        call()
    assert said in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_only_known_files_are_downloaded(folder, hub):
    """Guards against code, or anything else, of a stranger that ends up on this machine."""
    load_run(folder).push_to_hub("me/notes")
    repository = hub.repositories["me/notes"]
    repository.commit({**repository.newest, "modeling.py": b"boom", "model.bin": b"pickle", "cache/data.bin": b"x"})
    pulled = load_run("hf://me/notes")
    there = {str(path.relative_to(pulled.folder)) for path in pulled.folder.rglob("*") if path.is_file()}
    assert there == {
        "config.json",
        "frontend.safetensors",
        "model.safetensors",
        "split.json",
        "conditions.json",
        "README.md",
    }


def test_a_damaged_run_from_the_hub_is_refused_by_the_loaders(folder, hub):
    """Guards against a way around the checks of run folders."""
    load_run(folder).push_to_hub("me/notes")
    repository = hub.repositories["me/notes"]
    for name, data in (
        ("config.json", b'{"format": 1, "code": "os.system"}'),
        ("model.safetensors", b"\x80\x04pickle"),
    ):
        repository.commit({**repository.newest, name: data})
        with pytest.raises(RunError):
            load_run("hf://me/notes")


def test_a_folder_is_not_written_into_itself(folder):
    """Guards against a run that loses the names of its files, and its card, by saving it where it is."""
    with pytest.raises(RunError, match="is the folder of the run itself"):
        load_run(folder).save_pretrained(folder)


# ---- the commands


def test_the_commands_push_and_generate(folder, hub, tmp_path):
    """Guards against a hub that works from Python only, or with the hub's own settings only (HF_ENDPOINT, HF_HOME)."""
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    env = {**os.environ, **own, "PYTHONPATH": str(PACKAGE)}

    def run(*words):
        command = [sys.executable, "-m", "audiogen", *map(str, words)]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    try:
        pushed = run("push", folder, "me/notes")
        assert pushed.returncode == 0, pushed.stderr
        commit = hub.repositories["me/notes"].refs["main"]
        assert f"hf://me/notes@{commit}: pushed" in pushed.stdout and "licence is unknown" in pushed.stdout
        made = run("generate", f"hf://me/notes@{commit}", "--out", "out", "--num", 1, "--seconds", 0.2, "--seed", 5)
        assert made.returncode == 0, made.stderr
        expected = load_run(folder).generate(seconds=0.2, seed=5)[0]
        assert torch.allclose(audiogen.read_audio(tmp_path / "out" / "sample-5.wav"), expected, atol=2**-15)
        refused = run("push", folder, "notes")
        assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
        gone = run("generate", "hf://me/gone", "--out", "out")
        assert gone.returncode == 1 and gone.stderr.splitlines()[-1].startswith(
            "audiogen: hf://me/gone: the hub has no"
        )
        assert "Traceback" not in gone.stderr
    finally:
        (folder / "README.md").unlink(missing_ok=True)
