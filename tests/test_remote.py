"""Folders in an object store are encoded to the bytes of a folder on disk."""

import importlib
import pickle
import tempfile
import threading
from pathlib import Path

import fsspec
import pytest
from folders import noise, write_wav
from test_shards import contents

from audiogen import cli
from audiogen.commands.tokenize import tokenize
from audiogen.data import scan
from audiogen.data.journal import Journal
from audiogen.errors import AudiogenError, ConfigError, DataError
from audiogen.utils.remote import RemotePath, as_folder, is_remote

BUCKET = "memory://bucket/sounds"


@pytest.fixture
def folder(tmp_path):
    """Sounds, of which one is no sound, labels, and a hidden file."""
    for number in range(5):
        write_wav(tmp_path / "sounds" / "abc"[number % 3] / f"{number}.wav", noise(number, 2000 + 100 * number))
    (tmp_path / "sounds" / "broken.wav").write_bytes(b"RIFFnothing")
    (tmp_path / "sounds" / ".hidden.wav").write_bytes(b"")
    (tmp_path / "sounds" / "notes.txt").write_text("none")
    table = "file,pitch\n" + "".join(f"{number},{number % 2}\n" for number in range(5))
    (tmp_path / "sounds" / "metadata.csv").write_text(table)
    return tmp_path / "sounds"


def upload(folder, url):
    system, place = fsspec.core.url_to_fs(url)
    for path in folder.rglob("*"):
        if path.is_file():
            with system.open(f"{place}/{path.relative_to(folder).as_posix()}", "wb") as file:
                file.write(path.read_bytes())
    return system, place


@pytest.fixture
def bucket(folder):
    system, _ = upload(folder, BUCKET)
    yield system
    system.rm("/bucket", recursive=True)


def test_a_cache_of_a_store_is_that_of_a_folder(folder, bucket, tmp_path, monkeypatch):
    """The whole way, a front-end that is fitted and labels included. Guards against files that are read from another
    place in one of the passes, hidden ones, and copies that stay on this machine."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))  # other tests use the usual one
    caches = [
        tokenize(place, tmp_path / name, "melvq", overrides=SMALL, workers=1)
        for place, name in ((folder, "local"), (BUCKET, "remote"))
    ]
    assert contents(caches[0].folder) == contents(caches[1].folder)
    assert [file.path for file in caches[1].index.rejected] == ["broken.wav"]
    labels = [(cache.folder / "conditions.json").read_bytes() for cache in caches]
    assert b"pitch" in labels[0] and labels[0] == labels[1]
    assert not list((tmp_path / "temporary").glob("audiogen-*"))


SMALL = ["frontend.num_codebooks=2", "frontend.codebook_size=8", "frontend.num_features=20"]


def test_the_command_takes_a_url(folder, bucket, tmp_path, monkeypatch, capsys):
    """Guards against a URL that is taken for a path, whose slashes are then merged."""
    monkeypatch.setattr("sys.argv", ["audiogen", "tokenize", BUCKET, str(tmp_path / "out"), "--frontend", "mulaw"])
    with pytest.raises(SystemExit) as end:
        cli.app()
    assert end.value.code == 0 and "files encoded: 5" in capsys.readouterr().out


def test_what_is_known_of_a_file_holds_as_long_as_it_is_the_same(folder, bucket, tmp_path):
    """Guards against a scan that continues with what it knew of a file that has been replaced since."""
    journal = tmp_path / "journal"
    Journal(journal).add(as_folder(BUCKET), {"a/0.wav": 1, "b/1.wav": 2})
    write_wav(folder / "a" / "0.wav", noise(9, 900))
    upload(folder / "a", f"{BUCKET}/a")
    kept = Journal(journal)
    assert kept.get(as_folder(BUCKET), "a/0.wav") is None and kept.get(as_folder(BUCKET), "b/1.wav") == 2


def test_a_store_that_does_not_answer_ends_the_command(folder, bucket, monkeypatch):
    """Guards against files that are left out of a corpus because a network was down for a moment."""

    def failing(*args, **kwargs):
        raise TimeoutError("no answer")

    monkeypatch.setattr(type(bucket), "get_file", failing)
    with pytest.raises(DataError, match=r"memory://bucket/sounds/.*wav: can't be read \(TimeoutError: no answer\)"):
        scan(BUCKET, progress=False)


@pytest.mark.parametrize(
    "work, kind, said",
    [
        (lambda out: tokenize("nosuch://bucket/x", out), ConfigError, "nosuch://bucket/x: no address of a store"),
        (lambda out: tokenize("memory://nothing/here", out), DataError, "memory://nothing/here: "),
        (lambda out: tokenize("sounds", "s3://bucket/cache"), ConfigError, "s3://bucket/cache: is a URL; caches are"),
    ],
)
def test_what_is_no_folder_of_sounds_is_refused_in_one_line(work, kind, said, tmp_path):
    """Guards against a traceback of a library of which the user has not heard."""
    with pytest.raises(AudiogenError, match=said) as error:
        work(tmp_path / "out")
    assert type(error.value) is kind and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_package_that_is_missing_is_named(monkeypatch):
    """Guards against a store that is said not to exist where a package is missing."""

    def missing(name, *args):
        raise ImportError("Install s3fs to access S3", name=None)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"s3://bucket: needs another package \(Install s3fs to access S3\); pip"):
        RemotePath("s3://bucket").is_dir()


@pytest.mark.parametrize("verb", [["train", "s3://bucket/x", "--out", "run"], ["doctor", "s3://bucket/x"]])
def test_other_commands_say_which_one_reads_urls(verb, tmp_path, monkeypatch):
    """Guards against "there is no such folder", of one that there is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["audiogen", *verb])
    with pytest.raises(AudiogenError, match="s3://bucket/x: is a URL, which only tokenize reads"):
        cli.app(standalone_mode=False)


def test_paths_are_told_from_urls():
    """Guards against a drive of Windows, or a folder with a colon, in the place of a store."""
    for path in ("sounds", "/a/b", r"C:\sounds", "C:/sounds", "take 1: drums/x", "file:///a/b"):
        assert not is_remote(as_folder(path)), path
    assert as_folder("file:///a/b") == Path("/a/b")
    for url in ("s3://bucket/a", "s3:/bucket/a", Path("s3://bucket/a"), "s3://bucket/a/", RemotePath("s3://bucket/a")):
        assert str(as_folder(url)) == "s3://bucket/a", url
    assert pickle.loads(pickle.dumps(RemotePath("s3://bucket/a"))) == RemotePath("s3://bucket/a")


@pytest.fixture
def s3(monkeypatch):
    """An S3 of its own on this machine."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    serving = importlib.import_module("werkzeug.serving")
    server = serving.make_server("127.0.0.1", 0, moto.DomainDispatcherApplication(moto.create_backend_app), True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
    }.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").mkdir("sounds")
    yield "s3://sounds/all"
    server.shutdown()
    thread.join()


def test_a_cache_of_s3_is_that_of_a_folder(folder, s3, tmp_path):
    """With two processes, each of which fetches its own files."""
    upload(folder, s3)
    expected = tokenize(folder, tmp_path / "local", "mulaw", workers=1)
    found = tokenize(s3, tmp_path / "remote", "mulaw", workers=2)
    assert contents(found.folder) == contents(expected.folder)
