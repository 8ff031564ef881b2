"""Downloads from a server that cuts, forgets and lies."""

import hashlib
import json
import os
import shutil
import threading

import pytest
from local_server import local_server

from audiogen.errors import DownloadError
from audiogen.utils import download
from audiogen.utils.download import fetch

BODY = bytes(range(256)) * 40
HASH = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.0)


def test_a_file_is_fetched_once(tmp_path):
    with local_server(files={"/a": BODY}) as server:
        assert fetch(server.url + "/a", tmp_path / "new" / "a") == HASH
        assert fetch(server.url + "/a", tmp_path / "new" / "a", HASH) == HASH
        assert len(server.requests) == 1
    assert (tmp_path / "new" / "a").read_bytes() == BODY
    assert os.listdir(tmp_path / "new") == ["a"]


def test_a_cut_connection_is_resumed(tmp_path):
    with local_server(files={"/a": BODY}, cuts=[1000, 500]) as server:
        assert fetch(server.url + "/a", tmp_path / "a") == HASH
        assert server.requests == [
            ("/a", None, None, 200),
            ("/a", "bytes=1000-", '"1"', 206),
            ("/a", "bytes=1500-", '"1"', 206),
        ]
    assert os.listdir(tmp_path) == ["a"]


def test_a_later_call_goes_on(tmp_path, monkeypatch):
    with local_server(files={"/a": BODY}, cuts=[1000]) as server, monkeypatch.context() as patch:
        patch.setattr(download, "ATTEMPTS", 1)
        with pytest.raises(DownloadError, match=r"/a: .*cut at 1000 of 10240 bytes.*1000 bytes are kept"):
            fetch(server.url + "/a", tmp_path / "a")
        assert not (tmp_path / "a").exists()
        assert fetch(server.url + "/a", tmp_path / "a", HASH) == HASH
        assert server.requests[-1] == ("/a", "bytes=1000-", '"1"', 206)


def test_without_ranges_it_starts_over(tmp_path):
    """Guards against the whole file appended to the part of it."""
    with local_server(files={"/a": BODY}, cuts=[9000], ranges=False) as server:
        assert fetch(server.url + "/a", tmp_path / "a") == HASH
        assert [status for *_, status in server.requests] == [200, 200]


def test_halves_of_two_versions_are_not_joined(tmp_path, monkeypatch):
    new = BODY[::-1]
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    with local_server(files={"/a": BODY}, cuts=[1000]) as server:
        with pytest.raises(DownloadError):
            fetch(server.url + "/a", tmp_path / "a")
        server.files["/a"], server.etag = new, '"2"'
        fetch(server.url + "/a", tmp_path / "a")
        assert server.requests[-1] == ("/a", "bytes=1000-", '"1"', 200)
    assert (tmp_path / "a").read_bytes() == new


def test_without_a_validator_only_a_hash_allows_to_resume(tmp_path, monkeypatch):
    with local_server(files={"/a": BODY}, etag=None, cuts=[1000]) as server:
        fetch(server.url + "/a", tmp_path / "a")
        assert [asked for _, asked, *_ in server.requests] == [None, None]
        server.cuts = [1000]
        fetch(server.url + "/a", tmp_path / "b", HASH)
        assert [asked for _, asked, *_ in server.requests[2:]] == [None, "bytes=1000-"]
        monkeypatch.setattr(download, "ATTEMPTS", 1)
        server.cuts, server.files["/a"] = [1000], b"x" * 2000  # an older version, of which a part stays behind
        with pytest.raises(DownloadError):
            fetch(server.url + "/a", tmp_path / "c", HASH)
        server.files["/a"] = BODY
        assert fetch(server.url + "/a", tmp_path / "c", HASH) == HASH
        assert [asked for _, asked, *_ in server.requests[5:]] == ["bytes=1000-", None]


def test_another_hash_is_refused_and_nothing_stays(tmp_path):
    with local_server(files={"/a": BODY}) as server:
        with pytest.raises(
            DownloadError,
            match=f"/a: the downloaded file has the SHA-256 {HASH}, not the published 1234abcd, .*; or do b",
        ):
            fetch(server.url + "/a", tmp_path / "a", "1234ABCD", otherwise="or do b")
        assert len(server.requests) == 1
        assert fetch(server.url + "/a", tmp_path / "a", HASH[:8].upper()) == HASH
        (tmp_path / "a").write_bytes(b"not any more")
        assert fetch(server.url + "/a", tmp_path / "a", HASH) == HASH
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("status, requests", [(404, 1), (403, 1), (503, download.ATTEMPTS)])
def test_refusals(status, requests, tmp_path):
    with local_server(status=status) as server:
        with pytest.raises(DownloadError, match=f"/a: .*the server answers {status}"):
            fetch(server.url + "/a", tmp_path / "a")
        assert len(server.requests) == requests
    assert os.listdir(tmp_path) == []


def test_no_server(tmp_path):
    with local_server() as server:
        pass
    with pytest.raises(DownloadError, match="can't be downloaded.*refused.*check the connection"):
        fetch(server.url + "/a", tmp_path / "a")
    with pytest.raises(DownloadError, match="only http and https"):
        fetch("file:///etc/hostname", tmp_path / "a")


def test_a_body_that_never_has_its_stated_length(tmp_path):
    """Guards against a truncated file taken for whole, and endless attempts at it."""
    with local_server(files={"/a": BODY}, ranges=False, cuts=[5000] * 99) as server:
        with pytest.raises(DownloadError, match="cut at 5000 of 10240"):
            fetch(server.url + "/a", tmp_path / "a")
        assert len(server.requests) == download.ATTEMPTS
    assert not (tmp_path / "a").exists()


def test_no_stated_length(tmp_path):
    with local_server(files={"/a": BODY}, chunked=True) as server:
        assert fetch(server.url + "/a", tmp_path / "a") == HASH


@pytest.mark.parametrize("chunked", [False, True])
def test_more_than_was_expected(chunked, tmp_path):
    with local_server(files={"/a": BODY}, chunked=chunked) as server:
        with pytest.raises(DownloadError, match="more than the 10000"):
            fetch(server.url + "/a", tmp_path / "a", max_bytes=10000)
    assert os.listdir(tmp_path) == []


def test_a_range_that_was_not_asked_for(tmp_path):
    with local_server(files={"/a": BODY}, cuts=[1000], wrong_range=True) as server:
        assert fetch(server.url + "/a", tmp_path / "a") == HASH
        assert [status for *_, status in server.requests] == [200, 206, 200]


def test_a_part_that_is_whole_already(tmp_path):
    """As a kill between the last byte and the renaming leaves it."""
    with local_server(files={"/a": BODY}) as server:
        (tmp_path / "a.part").write_bytes(BODY)
        (tmp_path / "a.part.json").write_text(json.dumps({"url": server.url + "/a", "validator": '"1"'}))
        assert fetch(server.url + "/a", tmp_path / "a") == HASH
        assert server.requests == [("/a", f"bytes={len(BODY)}-", '"1"', 416)]
        (tmp_path / "b.part").write_bytes(BODY + b"x")  # longer than the file ever was
        assert fetch(server.url + "/a", tmp_path / "b", HASH) == HASH
        (tmp_path / "c.part").write_bytes(BODY)
        (tmp_path / "c.part.json").write_text(json.dumps({"url": "http://127.0.0.1/other", "validator": '"1"'}))
        assert fetch(server.url + "/a", tmp_path / "c") == HASH
        assert server.requests[-1] == ("/a", None, None, 200)
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]


def test_two_at_once_download_once(tmp_path):
    """Guards against two processes that write into one another's part."""
    with local_server(files={"/a": BODY * 100}) as server:
        threads = [threading.Thread(target=fetch, args=(server.url + "/a", tmp_path / "a")) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.requests) == 1
    assert (tmp_path / "a").read_bytes() == BODY * 100
    assert os.listdir(tmp_path) == ["a"]


def test_no_room(tmp_path, monkeypatch):
    with local_server(files={"/a": BODY}) as server:
        (tmp_path / "file").write_text("")
        with pytest.raises(DownloadError, match=r"file/a: can't be written"):
            fetch(server.url + "/a", tmp_path / "file" / "a")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
        with pytest.raises(DownloadError, match="10240 bytes are needed and 5 are free"):
            fetch(server.url + "/a", tmp_path / "a")
