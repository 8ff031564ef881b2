"""Training crops: a pure function of (seed, step), fair to every frame, deaf to what is held out."""

import pickle
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from folders import folder_of_noise, noise, write_wav

from audiogen.data import Crops, EncodedCache, FileConditions, FileEntry, Labels, Part, Sequences, scan, split
from audiogen.errors import DataError
from audiogen.frontends import MuLaw
from audiogen.models.conditioning import Position, positions
from audiogen.spec import FrameSpec, TokenSpec


def numbered(*lengths):
    """A cache of which every frame is another code, 0, 1, 2, ... through the files, and a part for each file."""
    entries = [
        FileEntry(f"{i}.wav", f"{i:064x}", 8000, 1, length, 0.5, 0.1, False, 0.0) for i, length in enumerate(lengths)
    ]
    files = [
        SimpleNamespace(sha256=entry.sha256, num_frames=length) for entry, length in zip(entries, lengths, strict=True)
    ]
    offsets = np.cumsum([0, *lengths])
    data = np.arange(offsets[-1], dtype=np.uint32)[:, None]
    spec = TokenSpec(8000, 1, 1, 2**32)
    cache = SimpleNamespace(
        folder=Path("numbered"),
        files=files,
        offsets=offsets,
        data=data,
        spec=spec,
        num_frames=np.array(lengths),
        hashes=lambda: [entry.sha256 for entry in entries],
        sha256=lambda i: entries[i].sha256,
    )
    return cache, [Part(entry) for entry in entries]


def draw(crops, steps):
    """Codes (steps * B, num_frames) and the names of each."""
    batches = [crops.batch(step) for step in range(steps)]
    return np.concatenate([batch.x[:, 0].numpy() for batch, _ in batches]), [
        names for _, files in batches for names in files
    ]


def equal(one, other):
    return torch.equal(one[0].x, other[0].x) and one[1] == other[1]


@pytest.fixture
def corpus(tmp_path):
    folder_of_noise(tmp_path / "sound", [700, 200, 90, 650, 410, 2, 333])
    cache = EncodedCache.build(tmp_path / "sound", MuLaw(MuLaw.Config(sample_rate=8000)), tmp_path / "cache")
    return cache, split(cache.index)


# ---- a pure function


def test_a_batch_depends_on_seed_and_step_alone(corpus):
    """Guards against a generator that is carried from batch to batch."""
    cache, sides = corpus
    crops = Crops(cache, sides.train, 300, 4, seed=5)
    in_order = [crops.batch(step) for step in range(6)]
    for step in (5, 2, 2, 0):
        assert equal(crops.batch(step), in_order[step])
        assert equal(Crops(EncodedCache.open(cache.folder), sides.train, 300, 4, seed=5).batch(step), in_order[step])
    assert not any(equal(in_order[0], batch) for batch in in_order[1:])
    for seed in (4, 6, -5, 2**70):
        assert not equal(Crops(cache, sides.train, 300, 4, seed=seed).batch(0), in_order[0])
    # (seed, step) = (1, 0) and (0, 1) are different draws, as they would not be if the two were added up.
    assert not equal(Crops(cache, sides.train, 300, 4, 1).batch(0), Crops(cache, sides.train, 300, 4, 0).batch(1))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_loader_processes_change_nothing(corpus, num_workers):
    """Guards against batches in the order in which processes finish, and a loader that takes numbers from training's
    draw."""
    cache, sides = corpus
    crops = Crops(cache, sides.train, 300, 4, seed=1)
    torch.manual_seed(0)
    expected_state = torch.get_rng_state()
    batches = list(crops.loader(range(2, 9), num_workers))
    assert torch.equal(torch.get_rng_state(), expected_state)
    assert len(batches) == 7
    assert all(equal(batch, crops.batch(step)) for step, batch in zip(range(2, 9), batches, strict=True))
    endless = crops.loader(count(4), num_workers)
    assert all(equal(next(endless), crops.batch(step)) for step in range(4, 7))


def test_resuming_needs_one_integer(corpus):
    cache, sides = corpus
    crops = Crops(cache, sides.train, 100, 2, seed=1)
    whole = list(crops.loader(range(8)))
    assert all(equal(a, b) for a, b in zip(whole[5:], crops.loader(range(5, 8)), strict=True))
    endless = crops.loader(count(5))
    assert all(equal(a, next(endless)) for a in whole[5:])


def test_pickles_without_the_corpus(tmp_path):
    """Guards against gigabytes sent to each loader process that is not a fork."""
    folder_of_noise(tmp_path / "sound", [50_000, 50_000])
    cache = EncodedCache.build(tmp_path / "sound", MuLaw(MuLaw.Config(sample_rate=8000)), tmp_path / "cache")
    crops = Crops(cache, split(cache.index).train, 300, 4)
    expected = crops.batch(3)
    cache.frontend()
    sent = pickle.dumps(crops)
    assert len(sent) < 10_000
    assert equal(pickle.loads(sent).batch(3), expected)


def test_batches_have_the_shape_and_type_of_what_was_encoded(corpus):
    cache, sides = corpus
    batch, files = Crops(cache, sides.train, 300, 4).batch(0)
    x = batch.x
    assert x.shape == (4, 1, 300) and x.dtype == torch.int64 and x.is_contiguous()
    assert len(files) == 4 and all(isinstance(name, str) for names in files for name in names)
    two_rows = np.arange(1000, dtype=np.float32).reshape(500, 2)
    cache, parts = numbered(500)
    cache.data = two_rows
    x = Crops(cache, parts, 8, 3).batch(0)[0].x
    assert x.shape == (3, 2, 8) and x.dtype == torch.float32
    assert torch.equal(x[:, 1], x[:, 0] + 1) and torch.equal(x[:, 0, 1:], x[:, 0, :-1] + 2)


# ---- which frames


def test_crops_of_long_files_are_drawn_evenly():
    """Guards against files with the same chance whatever their length, and ends that are next to never heard."""
    lengths, num_frames = (100, 250, 650), 60
    cache, parts = numbered(*lengths)
    codes, names = draw(Crops(cache, parts, num_frames, 100), 600)
    assert (np.diff(codes) == 1).all()  # each crop lies in one piece
    starts = codes[:, 0]
    for i, length in enumerate(lengths):
        here = starts[(starts >= cache.offsets[i]) & (starts < cache.offsets[i + 1])] - cache.offsets[i]
        counts = np.bincount(here)
        assert len(counts) == length - num_frames + 1  # the last possible start is drawn, and none beyond
        expected = np.full(len(counts), len(starts) / 1000)  # as often as there are frames in the middle of a crop
        expected[0] *= num_frames // 2 + 1
        expected[-1] *= num_frames // 2
        assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()
    heard = np.bincount(codes.ravel(), minlength=1000) / codes.size * 1000
    assert 0.45 < heard.min() and heard.max() < 2  # of the average
    assert all(
        [f"{np.searchsorted(cache.offsets, start, 'right') - 1}.wav"] == name
        for start, name in zip(starts, names, strict=True)
    )


def test_a_file_as_long_as_a_crop():
    cache, parts = numbered(60, 61)
    codes, _ = draw(Crops(cache, parts, 60, 20), 20)
    assert set(codes[:, 0]) == {0, 60, 61}
    cache, parts = numbered(2, 2, 2)  # so short that one frame too many would show
    codes, _ = draw(Crops(cache, parts, 2, 100), 20)
    assert np.allclose(np.bincount(codes[:, 0])[::2], 2000 / 3, atol=100)


def test_short_files_are_joined_from_their_beginnings():
    """Guards against a pad, a gap, a file that is entered in its middle or left before its end, names that do not
    match."""
    cache, parts = numbered(7, 20, 3, 39, 11)
    codes, names = draw(Crops(cache, parts, 40, 16), 200)
    seen = set()
    for crop, files in zip(codes, names, strict=True):
        expected = np.concatenate(
            [
                cache.data[cache.offsets[i] : cache.offsets[i + 1], 0]
                for i in (int(name.split(".")[0]) for name in files)
            ]
        )
        assert np.array_equal(crop, expected[:40])
        last = cache.files[int(files[-1].split(".")[0])].num_frames
        assert len(expected) - last < 40 <= len(expected)  # no name of a file that is not in it
        seen.add(tuple(files[:2]))
    assert len(seen) == 25  # any file may follow any other


@pytest.mark.parametrize("lengths, least", [((36, 36, 36), 0.5), ((7, 8, 9, 10), 0.75), ((7, 20, 3, 39, 11), 0.25)])
def test_every_frame_of_short_files_has_nearly_the_same_chance(lengths, least):
    """Guards against long clips that are heard more often than short ones. Only what the ends of crops cut off is
    rarer."""
    cache, parts = numbered(*lengths)
    codes, _ = draw(Crops(cache, parts, 40, 50), 400)
    counts = np.bincount(codes.ravel(), minlength=sum(lengths))
    beginnings = counts[cache.offsets[:-1]]  # never cut off
    assert beginnings.min() > 0.95 * beginnings.max()
    assert counts.min() > 0.95 * least * counts.max()


def test_short_and_long_files_share_by_frames():
    """Guards against short files that are forgotten beside long ones, or that take half of the batches."""
    cache, parts = numbered(400, 30, 30, 40)
    codes, _ = draw(Crops(cache, parts, 50, 50), 200)
    joined = (codes[:, 0] >= 400).mean()
    assert joined == pytest.approx(0.2, abs=0.02)
    assert all((crop < 400).all() or (crop >= 400).all() for crop in codes)


def test_nothing_outside_of_the_parts_is_ever_read():
    """Guards against a crop that reaches over the gap into what is held out, also where a part is shorter than a
    crop."""
    cache, (part,) = numbered(1000)
    for stop, num_frames in ((0.85, 64), (0.85, 850), (0.85, 900), (0.02, 64)):
        codes, _ = draw(Crops(cache, [Part(part.file, 0.0, stop)], num_frames, 20), 50)
        assert codes.max() == 1000 * stop - 1  # up to the very end of the part, and no further
        assert codes.min() == 0
    codes, _ = draw(Crops(cache, [Part(part.file, 0.3, 0.6)], 64, 20), 50)
    assert codes.min() >= 300 and codes.max() < 600


def test_held_out_files_are_never_read(corpus):
    cache, sides = corpus
    held_out = {part.file.path for part in sides.held_out}
    for num_frames in (50, 300, 2000):
        _, names = draw(Crops(cache, sides.train, num_frames, 8), 40)
        assert not held_out & {name for files in names for name in files}


def test_one_long_file_from_folder_to_crops(tmp_path):
    """The gap, on the codes themselves: training hears nothing of the last tenth, nor of the second before it."""
    samples = np.concatenate([noise(0, 17_000, 0.05), np.full(1000, 0.5), np.full(2000, -0.5)])
    write_wav(tmp_path / "sound" / "x.wav", samples, 1000)  # 17 s to train on, 1 s gap, 2 s held out
    cache = EncodedCache.build(tmp_path / "sound", MuLaw(MuLaw.Config(sample_rate=1000)), tmp_path / "cache")
    sides = split(cache.index, gap_seconds=1.0)
    crops = Crops(cache, sides.train, 500, 32)
    loud = MuLaw(MuLaw.Config(sample_rate=1000)).encode(torch.tensor([[[0.5, -0.5]]])).flatten()
    for step in range(100):
        x = crops.batch(step)[0].x
        assert not torch.isin(x, loud).any()
    (held_out,) = Sequences(cache, sides.held_out)
    assert held_out.shape == (1, 2000) and (held_out == loud[1]).all()


# ---- sequences


def test_sequences_are_the_codes_of_the_parts(corpus):
    """Guards against a generator that evaluation finds empty the second time."""
    cache, sides = corpus
    place = {file.sha256: i for i, file in enumerate(cache.files)}
    for side in (sides.train, sides.held_out):
        sequences = Sequences(cache, side)
        assert len(sequences) == len(side) and sequences.left_out == []
        assert sequences.names == [part.file.path for part in side]
        for _ in range(2):
            for part, codes, length in zip(side, sequences, sequences.num_frames, strict=True):
                assert torch.equal(codes, cache.codes(place[part.file.sha256])) and codes.shape == (1, length)


def test_parts_under_two_frames_are_left_out_and_told():
    cache, parts = numbered(50, 1, 2)
    stranger = Part(FileEntry("gone.wav", "f" * 64, 8000, 1, 100, 0.5, 0.1, False, 0.0))
    crops = Crops(cache, [*parts, stranger, Part(parts[0].file, 0.5, 0.53)], 10, 4)
    assert crops.sequences.names == ["0.wav", "2.wav"]
    assert crops.sequences.left_out == ["1.wav", "gone.wav", "0.wav"]
    with pytest.raises(DataError, match="none of the 2 parts"):
        Crops(cache, [parts[1], stranger], 10, 4)


@pytest.mark.parametrize("num_frames, batch_size", [(0, 4), (10, 0)])
def test_crops_of_nothing(num_frames, batch_size):
    cache, parts = numbered(50)
    with pytest.raises(ValueError, match="1 or more"):
        Crops(cache, parts, num_frames, batch_size)


def test_a_scan_from_elsewhere_names_the_files(corpus, tmp_path):
    """The cache knows files by content: names in messages are those of the folder as it is now."""
    cache, _ = corpus
    (tmp_path / "sound").rename(tmp_path / "moved")
    (tmp_path / "moved" / "00.wav").rename(tmp_path / "moved" / "zero.wav")
    sequences = Sequences(cache, [Part(file) for file in scan(tmp_path / "moved").files])
    assert "zero.wav" in sequences.names and sequences.left_out == []


def test_after_a_stage_short_files_are_joined_that_sound_alike():
    """Guards against crops in which the voice changes from file to file, from which a stage can't learn to keep it; and
    against one file that follows itself."""
    cache, parts = numbered(*[8] * 60)
    voices = np.repeat(np.arange(60) % 6, 8).astype(np.float32)
    words = np.random.default_rng(0).standard_normal((480, 4), np.float32)
    cache.data = np.concatenate([10 * np.eye(6, dtype=np.float32)[voices.astype(int)], words], axis=1)
    cache.spec = FrameSpec(8000, 1, 10)
    known = SimpleNamespace(follows_stage=True, parts={}, of_pieces=lambda pieces: {}, drop=lambda *given: None)
    shares = {}
    for name, conditions in (("stage", known), ("alone", None)):
        crops = Crops(cache, parts, 32, 16, seed=1, known=conditions)
        files = [[int(path[:-4]) for path in crop] for step in range(8) for crop in crops.batch(step)[1]]
        assert all(len(crop) == 4 for crop in files)
        shares[name] = np.mean([crop[0] % 6 == other % 6 for crop in files for other in crop[1:]])
        again = Crops(cache, parts, 32, 16, seed=1, known=conditions)
        assert [[int(path[:-4]) for path in crop] for step in range(8) for crop in again.batch(step)[1]] == files
    assert shares["stage"] > 0.95 and shares["alone"] < 0.35
    crops = Crops(cache, parts, 32, 16, seed=1, known=known)
    assert all(crop[0] not in crop[1:] for step in range(8) for crop in crops.batch(step)[1])


def test_crops_go_on_after_a_sound_that_dies_away():
    """Guards against a model for which silence is the end, and against cuts from one file to the next where the
    first one stops in the middle of a sound."""
    cache, parts = numbered(*[40] * 6)
    level = np.tile(np.r_[np.ones(36), np.zeros(4)], 6)
    level[3 * 40 :] = 1 + np.tile(np.sin(np.arange(40) / 40 * 4 * np.pi), 3)  # the last three files don't die away
    level += 0.01 * np.random.default_rng(0).standard_normal(240)
    cache.data, cache.spec = level.astype(np.float32)[:, None], FrameSpec(8000, 1, 1)
    crops = Crops(cache, parts, 20, 16, seed=1)
    drawn = [(x[0].numpy(), names) for step in range(20) for x, names in _of_crops(crops.batch(step))]
    joined = [(x, files) for x, files in drawn if len(files) > 1]
    assert {files[0] for _, files in joined} == {"0.wav", "1.wav", "2.wav"}
    assert 0.1 < len(joined) / len(drawn) < 0.4
    for x, files in joined:
        first, second = (int(name[:-4]) for name in files)
        place = next(
            n for n in range(1, 20) if np.array_equal(x[:n], cache.data[40 * first + 40 - n : 40 * first + 40, 0])
        )
        assert np.array_equal(x[place:], cache.data[40 * second : 40 * second + 20 - place, 0])


def test_after_a_stage_a_recording_that_dies_away_is_followed_by_one_that_sounds_alike():
    """Guards against a voice that changes only after long files."""
    cache, parts = numbered(*[40] * 24)
    voices, level = np.repeat(np.arange(24) % 2, 40), np.tile(np.r_[np.ones(36), np.zeros(4)], 24)
    cache.data = (level[:, None] * (1 + 10 * np.eye(2)[voices])).astype(np.float32)
    cache.spec = FrameSpec(8000, 1, 2)
    known = SimpleNamespace(follows_stage=True, parts={}, of_pieces=lambda pieces: {}, drop=lambda *given: None)
    crops = Crops(cache, parts, 20, 16, seed=1, known=known)
    joined = [names for step in range(20) for _, names in _of_crops(crops.batch(step)) if len(names) > 1]
    assert joined and all(len({int(name[:-4]) % 2 for name in names}) == 1 for names in joined)


def _of_crops(batch):
    return zip(batch[0].x, batch[1], strict=True)


# ---- stacks of short frames


def stacked(*lengths, stack=4):
    """Like `numbered`, but each frame stacks short ones of two features: their number, and its negative."""
    cache, parts = numbered(*lengths)
    number = np.arange(stack * cache.offsets[-1], dtype=np.float32).reshape(-1, 1, stack)
    cache.data = np.concatenate([number, -number], axis=1).reshape(len(number), -1)
    cache.spec = FrameSpec(8000, stack, 2 * stack, stack)
    return cache, parts


def test_crops_begin_at_any_short_frame_of_a_long_file():
    """Guards against a model that sees a folder of minutes in the same stacks again and again, and learns them by
    heart: on twenty readers, the variance of its draws was a quarter of that of its errors."""
    cache, parts = stacked(30, 25)
    crops = Crops(cache, parts, 6, 16, seed=1)
    begins = set()
    for step in range(150):
        batch, files = crops.batch(step)
        short = batch.x.unflatten(1, (2, 4)).transpose(2, 3).flatten(2)  # (B, 2, 24)
        assert torch.equal(short[:, 0], -short[:, 1])
        assert torch.equal(short[:, 0] - short[:, 0, :1], torch.arange(24.0).expand(16, -1))
        for (name,), x in zip(files, short[:, 0].tolist(), strict=True):
            begin, end = (0, 120) if name == "0.wav" else (120, 220)
            assert begin <= x[0] and x[-1] < end
        begins |= set(short[:, 0, 0].int().tolist())
    assert begins == {*range(97), *range(120, 197)}


def test_joined_files_begin_at_any_short_frame_of_a_crop():
    """Guards against attacks that come only where a stack begins, and against the lost beginning of a file."""
    cache, parts = stacked(3, 5, 2)
    crops = Crops(cache, parts, 8, 16, seed=1)
    firsts, places, cut = {0, 12, 32}, set(), set()
    for step in range(40):
        for x in crops.batch(step)[0].x.unflatten(1, (2, 4))[:, 0].transpose(1, 2).flatten(1).int().tolist():
            assert x[0] in firsts
            for place, (before, here) in enumerate(zip(x, x[1:], strict=False), 1):
                if here != before + 1 or here in firsts:
                    assert here in firsts
                    places.add(place % 4)
                    cut.add(min(end - before for end in (12, 32, 40) if end > before) - 1)
    assert places == cut == {0, 1, 2, 3}


def test_conditions_are_those_of_the_middle_of_each_frame():
    """Guards against conditions that lag behind the frames of a crop that begins within a stack."""
    cache, parts = stacked(30, 3, 2)
    known = FileConditions({"position": Position.Config()}, Labels({}, {}))
    crops = Crops(cache, parts, 8, 16, seed=1, known=known)
    since = np.concatenate([positions(frames)[0].numpy() for frames in (30, 3, 2)])
    for step in range(20):
        batch, _ = crops.batch(step)
        middle = batch.x.unflatten(1, (2, 4))[:, 0, 2].int().numpy() // 4
        assert batch.conditions is not None
        position = batch.conditions["position"][:, 0].numpy()
        given = ~np.isnan(position).any(axis=1)  # it is dropped in half of the crops
        assert given.any()
        np.testing.assert_array_equal(position[given], since[middle[given]])
