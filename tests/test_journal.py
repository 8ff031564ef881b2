"""A scan of a large folder that was killed continues, and finds what a whole one finds."""

import os
import threading

import pytest
from folders import folder_of_noise, noise, write_wav

from audiogen.data import index as index_of
from audiogen.data import scan
from audiogen.data.journal import Journal

NUM_FILES = 23


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(index_of, "GROUP", 5)
    made = folder_of_noise(tmp_path / "sound", [400 + number for number in range(NUM_FILES)])
    (made / "03.wav").write_bytes(b"RIFF")
    write_wav(made / "07.wav", noise(2, 402))  # a copy of 02.wav
    (made / "08.wav").rename(made / "\tété \n.wav")
    return made


@pytest.fixture
def examined(monkeypatch):
    """The names of files that are read."""
    names, examine, lock = [], index_of._examine, threading.Lock()

    def counted(folder, path, strict):
        with lock:
            names.append(path)
        return examine(folder, path, strict)

    monkeypatch.setattr(index_of, "_examine", counted)
    return names


def interrupt(folder, journal, monkeypatch, after):
    """Begin a scan that is interrupted at the file of this number."""
    examine, count = index_of._examine, iter(range(10**6))

    def interrupted(folder, path, strict):
        if next(count) >= after:
            raise KeyboardInterrupt
        return examine(folder, path, strict)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(index_of, "_examine", interrupted)
        scan(folder, progress=False, journal=journal)


def test_a_scan_that_was_interrupted_continues(tmp_path, folder, examined, monkeypatch):
    """Guards against hours of reading that are lost, and copies that are not found among files read before."""
    journal, whole = tmp_path / "journal", scan(folder, progress=False)
    interrupt(folder, journal, monkeypatch, 12)
    examined.clear()
    assert scan(folder, progress=False, journal=journal) == whole
    # 03.wav could not be read, which may have been bad luck.
    assert len(examined) == NUM_FILES - 9 and "03.wav" in examined
    examined.clear()
    assert scan(folder, progress=False, journal=journal) == whole and examined == ["03.wav"]
    assert scan(folder, progress=False) == whole
    assert {file.reason for file in whole.rejected} >= {"has the same content as 02.wav"}


def test_a_file_that_has_changed_is_read_again(tmp_path, folder, examined):
    journal = tmp_path / "journal"
    scan(folder, progress=False, journal=journal)
    write_wav(folder / "05.wav", noise(99, 405))
    os.utime(folder / "06.wav", ns=(1, 1))
    examined.clear()
    found = scan(folder, progress=False, journal=journal)
    assert sorted(examined) == ["03.wav", "05.wav", "06.wav"] and found == scan(folder, progress=False)


def test_a_journal_that_was_cut_off(tmp_path, folder, examined):
    """Guards against half a line that hides the next one, or ends the scan."""
    journal = tmp_path / "journal"
    whole = scan(folder, progress=False, journal=journal)
    data = journal.read_bytes()
    for end in (len(data) - 30, len(data) // 2, 10, 0):
        journal.write_bytes(data[:end])
        assert scan(folder, progress=False, journal=journal) == whole
        examined.clear()
        assert scan(folder, progress=False, journal=journal) == whole and examined == ["03.wav"], end
    journal.write_bytes(data.replace(b'"sketch"', b'"other"'))
    assert scan(folder, progress=False, journal=journal) == whole


def test_another_version_begins_anew(tmp_path, folder, examined, monkeypatch):
    journal = tmp_path / "journal"
    whole = scan(folder, progress=False, journal=journal)
    journal.write_bytes(b'{"format": 1, "version": "0"}' + journal.read_bytes()[30:])
    examined.clear()
    assert scan(folder, progress=False, journal=journal) == whole and len(examined) == NUM_FILES
    assert Journal(journal).get(folder, "00.wav") is not None


def test_a_small_folder_leaves_no_journal(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(index_of, "GROUP", NUM_FILES)
    scan(folder, progress=False, journal=tmp_path / "journal")
    assert not (tmp_path / "journal").exists()
