"""A cache of many files (format 2): the same files, splits and crops as in format 1, without reading them all."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from folders import folder_of_noise

from audiogen.data import Crops, EncodedCache, FileEntry, Index, Part, Sequences, cache_index, scan, split
from audiogen.data.cache_index import CachedFiles, VerifiedData
from audiogen.data.columns import Parts
from audiogen.data.joined import join_caches
from audiogen.errors import CacheError
from audiogen.frontends import MuLaw

NUM_FILES = 24


def mulaw(bits=8):
    return MuLaw(MuLaw.Config(sample_rate=8000, bits=bits))


@pytest.fixture
def both(tmp_path, monkeypatch):
    """One folder in both formats: the plain cache, and the one with columns, of blocks of 1,000 frames."""
    folder = folder_of_noise(tmp_path / "sound", [300 + 10 * number for number in range(NUM_FILES)])
    (folder / "02.wav").rename(folder / "été \udce9.wav")
    index = scan(folder)
    noted = [replace(file, note="odd: ü", silent=True) if i == 3 else file for i, file in enumerate(index.files)]
    index = replace(index, files=[replace(file, sound="") if i == 5 else file for i, file in enumerate(noted)])
    plain = EncodedCache.build(index, mulaw(), tmp_path / "plain", progress=False)
    monkeypatch.setattr(cache_index, "MANY_FILES", 20)
    monkeypatch.setattr(cache_index, "BLOCK_BYTES", 1000)
    built = EncodedCache.build(index, mulaw(), tmp_path / "columns", progress=False)
    return plain, built, EncodedCache.open(tmp_path / "columns")


def test_some_of_the_sequences_are_a_choice_by_content(both, monkeypatch):
    """Guards against the first files by name, of one speaker or kit, and against one long file that takes the place of
    all others; a limited choice must still be located in its files."""
    monkeypatch.setattr("audiogen.data.sequences.LEAST_FRAMES", 320)
    for cache in both:
        every = Sequences(cache, [Part(file) for file in cache.index.files])
        assert every.limited(10**6) is every
        some = every.limited(1600)
        assert 1600 <= some.num_frames.sum() < 1600 + 320 and (some.num_frames <= 320).all()
        hashes = [some.piece(i).sha256 for i in range(len(some))]
        assert sorted(hashes) == sorted(cache.hashes())[: len(some)]
        for i, name in enumerate(some.names):
            whole = every[list(every.names).index(name)]
            assert torch.equal(some[i], whole[:, : some.num_frames[i]]) and some.piece(i).first == 0


def test_both_formats_hold_the_same(both):
    """Guards against a field that a row has no room for, or that another row gets."""
    plain, built, opened = both
    assert isinstance(opened.files, CachedFiles) and not isinstance(plain.files, CachedFiles)
    assert plain.files == list(opened.files) and opened.files == plain.files and built.files == opened.files
    assert opened.files != plain.files[:-1] and opened.files[-2:] == plain.files[-2:]
    assert opened.index == replace(plain.index, folder=opened.folder)
    assert opened.hashes() == plain.hashes() == [opened.sha256(i) for i in range(NUM_FILES)]
    assert opened.index.seconds == pytest.approx(plain.index.seconds)
    assert (opened.offsets == plain.offsets).all() and (opened.num_frames == plain.num_frames).all()
    again = pickle.loads(pickle.dumps(opened))
    assert again.files == plain.files
    for i in range(NUM_FILES):
        assert torch.equal(opened.codes(i), plain.codes(i)) and torch.equal(
            again.codes(i, 7, 20), plain.codes(i, 7, 20)
        )
    values = json.loads((opened.folder / "index.json").read_text())
    assert values["format"] == 2 and "files" not in values and len(values["blocks"]) == -(-len(plain.data) // 1000)
    assert EncodedCache.open(opened.folder, mulaw(), scan(plain.folder.parent / "sound"))


def test_splits_and_crops_are_the_same(both):
    """Guards against a side of another order, and a part that is found in another place."""
    plain, _, opened = both
    sides, lazy = split(plain.index), split(opened.index)
    assert isinstance(lazy.train, Parts) and list(lazy.train) == sides.train and list(lazy.held_out) == sides.held_out
    assert lazy.summary == sides.summary
    expected = Crops(plain, sides.train, 350, 4, seed=2)
    for parts in (lazy.train, sides.train):  # at once, or one by one
        crops = Crops(opened, parts, 350, 4, seed=2)
        for step in range(5):
            (batch, names), (wanted, wanted_names) = crops.batch(step), expected.batch(step)
            assert torch.equal(batch.x, wanted.x) and names == wanted_names
    held_out, wanted = Sequences(opened, lazy.held_out), Sequences(plain, sides.held_out)
    assert list(held_out.names) == wanted.names and list(held_out.left_out) == wanted.left_out == []
    assert all(torch.equal(x, y) for x, y in zip(held_out, wanted, strict=True))
    assert [held_out.piece(i) for i in range(2)] == [wanted.piece(i) for i in range(2)]


def test_damage_is_found_when_it_is_read(both):
    """Guards against codes that have changed on the disk and that nobody sums up, and reading all to find that out."""
    plain, _, opened = both
    path = opened.folder / "data.bin"
    data = bytearray(path.read_bytes())
    place = int(opened.offsets[12]) + 5
    data[place] ^= 0x10
    path.write_bytes(data)
    cache = EncodedCache.open(opened.folder)
    assert isinstance(cache.data, VerifiedData)
    hurt = place // 1000
    for i in range(NUM_FILES):
        touched = range(int(cache.offsets[i]) // 1000, (int(cache.offsets[i + 1]) - 1) // 1000 + 1)
        if hurt in touched:
            with pytest.raises(CacheError, match="columns: is damaged .data.bin does not match its checksums"):
                cache.codes(i)
        else:
            assert torch.equal(cache.codes(i), plain.codes(i))
    with pytest.raises(CacheError, match="checksums"):
        _ = cache.data[np.array([0, place])]
    path.write_bytes(data[:-1])
    with pytest.raises(CacheError, match="data.bin has .* bytes instead of"):
        EncodedCache.open(opened.folder)


@pytest.mark.parametrize("name", ["files.bin", "files.txt", "index.json"])
def test_damaged_columns_are_refused(both, name):
    folder = both[2].folder
    path = folder / name
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 20)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        if name != "index.json" or damaged.translate(None, b" \n") != whole.translate(None, b" \n"):
            with pytest.raises(CacheError):
                EncodedCache.open(folder)
    path.unlink()
    with pytest.raises(CacheError, match=name if name != "index.json" else "half-written"):
        EncodedCache.open(folder)


def test_a_path_leads_nowhere_else(both, tmp_path):
    """Guards against a cache of a stranger that writes above the folder that it is decoded into."""
    rows, texts = cache_index._pack([replace(f, entry=replace(f.entry, path=f"../{f.path}")) for f in both[0].files])
    record = replace(both[2].record, files=both[0].files)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_index, "_pack", lambda files: (rows, texts))
        record.write(both[2].folder)
    cache = EncodedCache.open(both[2].folder)
    with pytest.raises(CacheError, match="leads out of the folder"):
        cache.write_wavs(tmp_path / "out", progress=False)


def test_a_smaller_cache_takes_its_place(both, tmp_path, monkeypatch):
    """Guards against columns of an older cache beside an index.json that has none."""
    folder = both[2].folder
    monkeypatch.setattr(cache_index, "MANY_FILES", 1000)
    EncodedCache.build(tmp_path / "sound", mulaw(bits=7), folder, progress=False)
    assert not (folder / "files.bin").exists() and len(EncodedCache.open(folder)) == NUM_FILES


def test_caches_of_both_formats_are_joined(both, tmp_path):
    other = EncodedCache.build(
        folder_of_noise(tmp_path / "other", [500] * 3, seed=70), mulaw(), tmp_path / "small", progress=False
    )
    joined = join_caches([both[2], other], ("a", "b"), tmp_path / "joined")
    assert len(joined) == NUM_FILES + 3 and isinstance(joined.files, CachedFiles)
    assert torch.equal(joined.codes(2), both[0].codes(2)) and torch.equal(joined.codes(NUM_FILES), other.codes(0))
    assert join_caches([both[2], other], ("a", "b"), tmp_path / "joined").files == joined.files


# ---- the split of many files


def entries(count: int, seed: int = 0) -> list[FileEntry]:
    rng = np.random.default_rng(seed)
    return [FileEntry(f"{i}.wav", rng.bytes(32).hex(), 8000, 1, 8000, 0.5, 0.1, False, 0.0) for i in range(count)]


def test_from_a_thousand_files_on_the_hash_alone_decides(tmp_path):
    """Guards against a file that changes sides when others are added, and a side without files."""
    files = entries(3000)

    def held_out(files, fraction=0.1, **options):
        sides = split(Index(tmp_path, files, []), fraction, **options)
        assert len(sides.train) + len(sides.held_out) == len(files)
        assert not {part.file.path for part in sides.train} & {part.file.path for part in sides.held_out}
        return [part.file for part in sides.held_out]

    limit = 0.1 * 16**64
    expected = sorted((file for file in files if int(file.sha256, 16) < limit), key=lambda file: file.sha256)
    assert held_out(files) == expected and 240 < len(expected) < 360
    some = {file.path for file in files[:1500]}
    assert [file for file in expected if file.path in some] == held_out(files[:1500])
    assert len(held_out(files[:999])) == 100 and len(held_out(files, threshold=False)) == 300
    assert len(held_out(files, 1e-9)) == 1  # below the threshold there is none


def test_parts_of_one_file_are_found(tmp_path, both):
    """Guards against a half that is taken for the whole where parts are found one by one."""
    plain, _, opened = both
    parts = [Part(plain.files[4].entry, 0.0, 0.5), Part(plain.files[9].entry, 0.5, 1.0)]
    assert Sequences(opened, parts).num_frames.tolist() == Sequences(plain, parts).num_frames.tolist() == [175, 200]
