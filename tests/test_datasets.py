"""The scripts of datasets/, run by path against a local server with tiny archives."""

import bz2
import hashlib
import io
import json
import os
import runpy
import subprocess
import sys
import tarfile
import wave
from pathlib import Path

import pytest
from archives import tar_of
from local_server import local_server

from audiogen.utils import download
from audiogen.utils.archives import unpack

DATASETS = Path(__file__).parents[1] / "datasets"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.0)


def wav(num_samples=80, sample_rate=8000):
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(sample_rate)
        writer.writeframes(bytes(2 * num_samples))
    return file.getvalue()


TOP = "free-spoken-digit-dataset-26eb9aaf76e81b692f806f9140c2d2777410d7a1"
FSDD = tar_of(
    (f"{TOP}/README.md", b"hello"),
    (f"{TOP}/recordings", {"type": tarfile.DIRTYPE}),
    (f"{TOP}/recordings/0_theo_4.wav", wav(40)),
    (f"{TOP}/recordings/0_theo_5.wav", wav(80)),
    (f"{TOP}/recordings/1_theo_49.wav", wav(120)),
    (f"{TOP}/recordings/tool.wav", {"mode": 0o755}),
)
FSDD_TREE = "d6f6c281439f97cd479441badbc2efbaf251b8bc"
ARCHIVES = {  # script: archive, its name, further arguments, the files that should come of it
    "fsdd": (FSDD, "x.tar.gz", ["--tree", FSDD_TREE], ["0_theo_5.wav", "1_theo_49.wav"]),
    "ljspeech": (
        tar_of(
            ("LJSpeech-1.1/wavs/LJ001-0001.wav", wav()),
            ("LJSpeech-1.1/README", b"readme"),
            ("LJSpeech-1.1/metadata.csv", b"LJ001-0001|Hello|hello"),
            compress=bz2.compress,
        ),
        "LJSpeech-1.1.tar.bz2",
        [],
        ["LJ001-0001.wav", "README", "metadata.csv"],
    ),
    "speech_commands": (
        tar_of(
            ("./yes/004ae714_nohash_0.wav", wav()),
            ("./no/004ae714_nohash_0.wav", wav()),
            ("./_background_noise_/pink_noise.wav", wav()),
            ("./testing_list.txt", b"list"),
        ),
        "speech_commands_v0.02.tar.gz",
        [],
        ["no/004ae714_nohash_0.wav", "testing_list.txt", "yes/004ae714_nohash_0.wav"],
    ),
}


def run_by_path(script, *arguments, monkeypatch):
    """As `python datasets/SCRIPT.py ARGUMENTS` does, in this process; the exit status."""
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as info:
        runpy.run_path(str(DATASETS / f"{script}.py"), run_name="__main__")
    return info.value.code


@pytest.mark.parametrize("script", ARCHIVES)
def test_scripts_from_the_web_to_a_folder_of_wavs(script, tmp_path, monkeypatch, capsys):
    content, name, more, files = ARCHIVES[script]
    digest = hashlib.sha256(content).hexdigest()
    with local_server(files={f"/{name}": content}, cuts=[150]) as server:
        arguments = ["--url", f"{server.url}/{name}", "--sha256", digest, *more]
        command = [sys.executable, DATASETS / f"{script}.py", tmp_path / "new" / "corpus", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
        assert done.returncode == 0, done.stderr
        assert [status for *_, status in server.requests] == [200, 206]
        out = tmp_path / "new" / "corpus"
        found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
        assert found == sorted(["SOURCE.json", *files])
        assert os.listdir(tmp_path / "new") == ["corpus"], "the archive and what else was needed on the way are gone"
        source = json.loads((out / "SOURCE.json").read_text())
        assert source["sha256"] == digest and source["licence"] and source["credit"]

        assert run_by_path(script, out, *arguments, monkeypatch=monkeypatch) == 0
        assert "exists already" in capsys.readouterr().out and len(server.requests) == 2
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "mine.wav").write_bytes(wav())
        assert run_by_path(script, tmp_path / "full", *arguments, monkeypatch=monkeypatch) == 1
        assert os.listdir(tmp_path / "full") == ["mine.wav"]
        arguments[3] = "00" + digest[2:]
        capsys.readouterr()
        (tmp_path / "bad").mkdir()
        assert run_by_path(script, tmp_path / "bad", *arguments, monkeypatch=monkeypatch) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: {server.url}/{name}: the downloaded file has the SHA-256 {digest}")
        assert error.count("\n") == 1
        assert os.listdir(tmp_path / "bad") == []


def test_fsdd_is_checked_by_the_id_of_its_folder_in_git(tmp_path, monkeypatch, capsys):
    """GitHub publishes no hash of its archives. Another content, name or mode of a file gives another id."""
    module = runpy.run_path(str(DATASETS / "fsdd.py"))
    (tmp_path / "x").write_bytes(FSDD)
    members = unpack(tmp_path / "x", tmp_path / "unpacked", module["place"], 10**6, 100)
    assert module["git_tree"](members) == FSDD_TREE  # `git add . && git write-tree --prefix=recordings/`
    assert module["git_tree"]([]) == "4b825dc642cb6eb9a060e54bf8d69288fbee4904"  # git's well-known empty tree
    with local_server(files={"/x.tar.gz": FSDD}) as server:
        assert run_by_path("fsdd", tmp_path / "out", "--url", server.url + "/x.tar.gz", monkeypatch=monkeypatch) == 1
        assert f"{FSDD_TREE}, not d04322e322a9f937f6f4f7c8546693755184df5b" in capsys.readouterr().err
        assert not (tmp_path / "out").exists() and not (tmp_path / "out.part" / "x.tar.gz").exists()
        for part, wavs in (("test", 1), ("all", 3)):
            out = tmp_path / part
            assert (
                run_by_path(
                    "fsdd",
                    out,
                    "--url",
                    server.url + "/x.tar.gz",
                    "--tree",
                    FSDD_TREE,
                    "--part",
                    part,
                    monkeypatch=monkeypatch,
                )
                == 0
            )
            assert len(list(out.glob("*.wav"))) == wavs


def test_checksums_are_the_ones_that_torchaudio_publishes():
    from torchaudio.datasets import ljspeech, speechcommands

    ours = runpy.run_path(str(DATASETS / "ljspeech.py"))["LJSPEECH"]
    assert {"url": ours.url, "checksum": ours.sha256}.items() <= ljspeech._RELEASE_CONFIGS["release1"].items()
    ours = runpy.run_path(str(DATASETS / "speech_commands.py"))["VERSION_2"]
    assert speechcommands._CHECKSUMS[ours.url] == ours.sha256


def test_lesson_texts_are_fetched_and_checked(tmp_path, monkeypatch, capsys):
    """Guards against a text of another version, on which no published loss could be compared."""
    with local_server(files={"/names.txt": b"emma\nolivia", "/tinyshakespeare.txt": b"First Citizen:"}) as server:
        assert run_by_path("lesson_texts", tmp_path / "out", "--mirror", server.url, monkeypatch=monkeypatch) == 1
        assert "names.txt: the downloaded file has the SHA-256" in capsys.readouterr().err
        assert not (tmp_path / "out" / "names.txt").exists()


def test_lesson_texts_are_known_by_the_bytes_that_were_shared(tmp_path, monkeypatch):
    """The same two hashes as in the text folder that developers have; skipped where it is not there."""
    shared = Path(__file__).parents[2] / "shared" / "data" / "text"
    if not shared.is_dir():
        pytest.skip("the lesson texts are not beside the project")
    texts = runpy.run_path(str(DATASETS / "lesson_texts.py"))["TEXTS"]
    for name, (_, sha256) in texts.items():
        assert hashlib.sha256((shared / name).read_bytes()).hexdigest() == sha256
