"""Scanning a folder: what is kept, what is left out and why."""

import hashlib
import os
import shutil

import numpy as np
import pytest
import soundfile
from folders import folder_of_noise, noise, write_wav

from audiogen.data import long_enough, main_sample_rate, scan, split
from audiogen.data.duplicates import find_copies
from audiogen.errors import AudioReadError, DataError
from audiogen.spec import FrameSpec, TokenSpec


def reasons(index):
    return {file.path: file.reason for file in index.rejected}


def test_finds_what_is_there(tmp_path):
    """Guards against unsorted listings, folders that are not searched, suffixes in capitals that are missed, and `._`
    files taken for sound."""
    names = ["b/x.wav", "a.WAV", "b/c/deep.wav", "B.wav", ".hidden.wav", "._a.WAV", ".git/y.wav", "b/.c/z.wav"]
    for seed, name in enumerate(names):
        write_wav(tmp_path / name, noise(seed, 400))
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "b" / "cover.jpg").write_bytes(b"\xff\xd8")

    index = scan(tmp_path)

    assert [file.path for file in index.files] == ["B.wav", "a.WAV", "b/c/deep.wav", "b/x.wav"]
    assert index.rejected == []
    assert index.ignored == 2
    assert index.folder == tmp_path


def test_entry_says_what_is_in_the_file(tmp_path):
    """Guards against figures from only one block or one channel, or at another rate. Oracle: numpy and hashlib."""
    stereo = np.stack([noise(0, 300_000), noise(1, 300_000)], axis=1)
    stereo[-5] = 0.9  # the peak lies in the last of several blocks
    samples = write_wav(tmp_path / "stereo.wav", stereo, sample_rate=11025).mean(axis=1)

    (file,) = scan(tmp_path).files

    assert (file.sample_rate, file.num_channels, file.num_samples) == (11025, 2, 300_000)
    assert file.duration == pytest.approx(300_000 / 11025)
    assert file.sha256 == hashlib.sha256((tmp_path / "stereo.wav").read_bytes()).hexdigest()
    assert file.peak == pytest.approx(0.9, abs=1e-4)
    assert file.rms == pytest.approx(float(np.sqrt(np.mean(samples.astype(np.float64) ** 2))), rel=1e-6)
    assert file.clipped == 0
    assert not file.silent


def test_each_file_left_out_has_its_reason(tmp_path):
    """Guards against a bad file that is kept, left out for the wrong reason, or waited for without end."""
    good = tmp_path / "good.wav"
    write_wav(good, noise(0, 4000))
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("this is no sound " * 20)
    (tmp_path / "cut.wav").write_bytes(good.read_bytes()[:3000])
    (tmp_path / "header.wav").write_bytes(good.read_bytes()[:44])
    write_wav(tmp_path / "zeros.wav", np.zeros(4000))
    write_wav(tmp_path / "constant.wav", np.full(4000, 0.25))
    shutil.copy(good, tmp_path / "later.wav")
    os.symlink(tmp_path / "gone", tmp_path / "dangling.wav")
    os.mkfifo(tmp_path / "pipe.wav")  # opening it would wait for ever

    index = scan(tmp_path)

    assert [file.path for file in index.files] == ["good.wav"]
    expected = {
        "empty.wav": "empty",
        "text.wav": "is not a sound file of a supported kind",
        "cut.wav": "truncated",
        "header.wav": "truncated",
        "zeros.wav": "silent",
        "constant.wav": "silent",
        "later.wav": "same content as good.wav",
        "dangling.wav": "can't be opened",
        "pipe.wav": "not a file",
    }
    found = reasons(index)
    assert sorted(found) == sorted(expected) == [file.path for file in index.rejected]
    for path, words in expected.items():
        assert words in found[path]
        assert str(tmp_path / path) not in found[path]  # the path stands beside the reason already


def test_faint_and_clipped_files_are_kept_and_marked(tmp_path):
    """Guards against a mark that no file gets, and one that every file gets."""
    write_wav(tmp_path / "faint.wav", noise(0, 8000, loudness=1e-4))
    write_wav(tmp_path / "quiet.wav", noise(1, 8000, loudness=1e-2))
    loud = noise(2, 8000)
    loud[:2000] = 1.0
    write_wav(tmp_path / "loud.wav", loud)
    files = {file.path: file for file in scan(tmp_path).files}
    assert {path: file.silent for path, file in files.items()} == {
        "faint.wav": True,
        "quiet.wav": False,
        "loud.wav": False,
    }
    assert files["loud.wav"].clipped == pytest.approx(0.25, abs=0.001)
    assert files["quiet.wav"].clipped == 0


def test_a_constant_does_not_hide_that_a_file_is_faint(tmp_path):
    """Guards against a DC offset that makes a silent file count as sound."""
    write_wav(tmp_path / "offset.wav", 0.5 + noise(0, 8000, loudness=1e-4))
    assert scan(tmp_path).files[0].silent


def test_strict_raises_at_the_first_bad_file_by_path(tmp_path):
    """Guards against an error for whichever file is examined first, and a dangling link that --strict accepts."""
    write_wav(tmp_path / "a.wav", noise(0, 400))
    (tmp_path / "b.wav").write_text("no sound")
    (tmp_path / "c.wav").touch()
    with pytest.raises(AudioReadError, match="b.wav"):
        scan(tmp_path, strict=True)
    os.remove(tmp_path / "b.wav")
    os.remove(tmp_path / "c.wav")
    os.symlink(tmp_path / "gone", tmp_path / "dangling.wav")
    with pytest.raises(AudioReadError, match="dangling.wav"):
        scan(tmp_path, strict=True)


def test_folders_that_can_not_be_entered_are_told(tmp_path, monkeypatch):
    """Guards against half a corpus that is skipped without a message."""
    for name in ("a.wav", "closed/b.wav", "open/c.wav"):
        write_wav(tmp_path / name, noise(len(name), 400))
    listing, closed = os.scandir, tmp_path / "closed"

    def denied(path):
        if os.fspath(path) == os.fspath(closed):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", denied)
    index = scan(tmp_path)
    assert [file.path for file in index.files] == ["a.wav", "open/c.wav"]
    assert reasons(index) == {"closed": "is a folder that can't be read (Permission denied)"}
    with pytest.raises(AudioReadError, match="closed.*Permission denied.*permissions"):
        scan(tmp_path, strict=True)
    closed = tmp_path
    with pytest.raises(DataError, match="can't be read.*permissions"):
        scan(tmp_path)


def test_strict_minds_neither_silence_nor_duplicates(tmp_path):
    """Guards against a --strict that refuses folders with silent files or copies."""
    write_wav(tmp_path / "a.wav", noise(0, 400))
    write_wav(tmp_path / "b.wav", np.zeros(400))
    shutil.copy(tmp_path / "a.wav", tmp_path / "c.wav")
    assert len(scan(tmp_path, strict=True).rejected) == 2


def test_linked_folders_are_entered_once(tmp_path):
    """Guards against an endless walk through a link to the parent folder, and links that are not followed at all."""
    folder_of_noise(tmp_path / "elsewhere", [400, 500])
    write_wav(tmp_path / "corpus" / "x.wav", noise(9, 400))
    os.symlink(tmp_path / "elsewhere", tmp_path / "corpus" / "link")
    os.symlink(tmp_path / "corpus", tmp_path / "corpus" / "loop")
    os.symlink(tmp_path / "elsewhere", tmp_path / "corpus" / "link2")
    index = scan(tmp_path / "corpus")
    assert [file.path for file in index.files] == ["link/00.wav", "link/01.wav", "x.wav"]
    assert index.rejected == []


def test_the_order_of_the_disk_changes_nothing(tmp_path, monkeypatch):
    """Guards against results that depend on the order of directory entries, also for copies and links to one folder."""
    folder_of_noise(tmp_path / "a", list(range(300, 340)))
    shutil.copy(tmp_path / "a" / "07.wav", tmp_path / "a" / "00_copy.wav")
    (tmp_path / "a" / "20.wav").write_text("no sound")
    write_wav(tmp_path / "b" / "b.wav", noise(99, 400))
    for name in ("x", "y"):
        os.symlink(tmp_path / "b", tmp_path / "a" / name)
    walk = os.walk

    def in_order(reverse):
        def listed(*args, **more):
            for root, folders, names in walk(*args, **more):
                folders.sort(reverse=reverse)
                names.sort(reverse=reverse)
                yield root, folders, names

        return listed

    monkeypatch.setattr(os, "walk", in_order(reverse=False))
    first = scan(tmp_path / "a")
    monkeypatch.setattr(os, "walk", in_order(reverse=True))
    assert scan(tmp_path / "a") == first
    assert reasons(first)["07.wav"] == "has the same content as 00_copy.wav"
    assert first.files[-1].path == "x/b.wav"


def test_more_files_than_are_examined_at_once(tmp_path):
    """Guards against a file lost between two batches of files."""
    sound = noise(0, 20)
    for number in range(1003):
        write_wav(tmp_path / f"{number:04d}.wav", sound * (1 + number / 2000))
    index = scan(tmp_path)
    paths = [file.path for file in index.files] + [file.path for file in index.rejected]
    assert sorted(paths) == [f"{number:04d}.wav" for number in range(1003)]
    assert [file.path for file in index.files] == sorted(file.path for file in index.files)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda folder: folder / "missing", "no such folder"),
        (lambda folder: folder / "x.wav", "is a file"),
        (lambda folder: folder / "pictures", "holds no sound files.*of other kinds"),
    ],
)
def test_folders_that_are_none(tmp_path, make, words):
    """Guards against a traceback for a folder that is missing, is a file, or contains no sound."""
    write_wav(tmp_path / "x.wav", noise(0, 100))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").touch()
    with pytest.raises(DataError, match=words):
        scan(make(tmp_path))


def test_nothing_that_can_be_used_is_told_with_reasons(tmp_path):
    """Guards against an error that does not say why none of the files can be used."""
    for number in range(5):
        write_wav(tmp_path / f"{number}.wav", np.zeros(400 + number))
    index = scan(tmp_path)  # does not raise: doctor lists each of them
    assert index.files == [] and len(index.rejected) == 5
    for ask in (index.require_files, lambda: main_sample_rate(index)):
        with pytest.raises(DataError, match="none of its 5 sound files.*0.wav: silent.*and 2 more"):
            ask()


def test_under_two_frames_is_left_out(tmp_path):
    """Guards against an off-by-one at exactly one frame, also after resampling (N' = floor(N rate' / rate + 1/2))."""
    folder_of_noise(tmp_path, [160, 161, 320, 321, 322])
    index = scan(tmp_path)
    kept = long_enough(index, FrameSpec(8000, 160, 80))
    assert [file.num_samples for file in kept.files] == [161, 320, 321, 322]
    assert list(reasons(kept)) == ["00.wav"]
    assert "0.02 s is at most one frame of the front-end (0.02 s)" in reasons(kept)["00.wav"]
    halved = long_enough(index, FrameSpec(4000, 160, 80))  # 80, 81, 160, 161, 161 samples
    assert [file.num_samples for file in halved.files] == [321, 322]
    assert long_enough(index, TokenSpec(8000, 1, 1, 256)) is index
    assert long_enough(index, TokenSpec(8000, None, 1, 256)) is index


def test_main_sample_rate_goes_by_seconds(tmp_path):
    """Guards against the rate of most files, or of most samples, instead of most seconds."""
    write_wav(tmp_path / "long.wav", noise(0, 8000), 4000)  # 2 s
    for number in range(3):
        write_wav(tmp_path / f"{number}.wav", noise(number + 1, 8000), 16000)  # 1.5 s in all
    assert main_sample_rate(scan(tmp_path)) == 4000


def copies_of(folder, name, samples, rate=8000):
    """Write the same recording in other containers and bit depths, scaled as libsndfile does, by 2 ** (n - 1) - 1."""
    for suffix, subtype in ((".wav", "PCM_16"), (".flac", "PCM_16"), (".24.wav", "PCM_24"), (".aiff", "FLOAT")):
        soundfile.write(folder / f"{name}{suffix}", samples, rate, subtype=subtype)


def test_copies_are_found_by_their_samples(tmp_path):
    """Guards against copies in another container, bit depth or with other tags on both sides of a split, so that
    held-out sound is known from training."""
    for number in range(10):
        copies_of(tmp_path, str(number), noise(number, 4000))
    tagged = b"ID3\4\0\0\0\0\1\0" + bytes(128) + (tmp_path / "3.flac").read_bytes()
    (tmp_path / "tagged.flac").write_bytes(tagged)
    write_wav(tmp_path / "stereo.wav", np.stack([noise(4, 4000)] * 2, axis=1))  # the same, once mixed
    index = scan(tmp_path)
    assert [file.path for file in index.files] == [f"{number}.24.wav" for number in range(10)]
    found = reasons(index)
    assert len(found) == 32 and found["7.flac"] == "has the same content as 7.24.wav"
    assert found["stereo.wav"] == "has the same content as 4.24.wav"
    sides = split(index, 0.3)
    assert len(sides.train) + len(sides.held_out) == 10


def test_the_digest_of_samples_is_that_of_other_containers(tmp_path):
    """Guards against a run that is evaluated on FLACs of the WAVs that it was trained on."""
    steps = np.random.default_rng(0).integers(-(2**15), 2**15, 4000).astype(np.int16)
    digests = set()
    for name, subtype in (("a.wav", "PCM_16"), ("b.flac", "PCM_16"), ("c.wav", "PCM_24"), ("d.caf", "PCM_32")):
        (tmp_path / name[0]).mkdir()
        soundfile.write(tmp_path / name[0] / name, steps, 8000, subtype=subtype)
        (file,) = scan(tmp_path / name[0]).files
        digests.add(file.sound)
        assert file.sound in file.digests and file.sha256 in file.digests
    assert len(digests) == 1


def test_what_is_alike_is_no_copy(tmp_path):
    """Guards against leaving out recordings that share a beat, a constant or most of their samples but are not the
    same."""
    base = noise(0, 8000)
    write_wav(tmp_path / "a.wav", base)
    write_wav(tmp_path / "b.wav", np.concatenate([base[:7000], noise(1, 1000)]))
    write_wav(tmp_path / "c.wav", -base)
    write_wav(tmp_path / "d.wav", base * 0.9)
    write_wav(tmp_path / "e.wav", base[::-1])
    write_wav(tmp_path / "f.wav", 0.5 + noise(2, 8000, loudness=1e-3))
    write_wav(tmp_path / "g.wav", 0.5 + noise(3, 8000, loudness=1e-3))
    write_wav(tmp_path / "h.wav", base, sample_rate=16_000)
    write_wav(tmp_path / "i.wav", base[:7999])
    assert scan(tmp_path).rejected == []


def test_many_clips_of_one_length(tmp_path):
    """Guards against comparing all pairs of files, and copies of copies that do not name the first one."""
    rng = np.random.default_rng(0)
    sketches = rng.normal(size=(20_000, 32)).astype(np.float32) * rng.uniform(0.1, 10, (20_000, 1)).astype(np.float32)
    sketches[[500, 19_000, 700]] = sketches[100] * 1.001
    sketches[300] = sketches[200]
    assert find_copies(sketches, [(1, 1)] * 20_000) == {500: 100, 700: 100, 19_000: 100, 300: 200}
    assert find_copies(sketches[:1000], list(range(1000))) == {} == find_copies([], [])
