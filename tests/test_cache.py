"""The encoded cache: it holds what the front-end makes of each file, and refuses whatever does not match."""

import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from corpus import tiny_frontend
from folders import folder_of_noise, noise, write_wav

from audiogen.audio.io import read_audio, read_blocks, write_audio
from audiogen.commands.tokenize import tokenize
from audiogen.data import EncodedCache, is_cache, scan, split, training_wavs
from audiogen.data.cache import FRONTEND_FILES, holds_cache
from audiogen.data.cache_index import _checksum as checksum
from audiogen.errors import AudiogenError, AudioReadError, CacheError, DataError, NotFittedError, RunError
from audiogen.frontends import FRONTENDS as REGISTERED
from audiogen.frontends import Mel, MelVQ, MuLaw, save_frontend
from audiogen.utils import files
from audiogen.utils.padding import collate

LENGTHS = [1500, 801, 4000]


@pytest.fixture
def folder(tmp_path):
    return folder_of_noise(tmp_path / "sound", LENGTHS, sample_rate=8000)


def mulaw(sample_rate=8000, bits=8):
    return MuLaw(MuLaw.Config(sample_rate=sample_rate, bits=bits))


def fitted(frontend, folder):
    frontend.fit(training_wavs(index := scan(folder), split(index).train, frontend.spec.sample_rate))
    return frontend.eval()


FRONTENDS = {
    "mulaw": lambda folder: mulaw(),
    "mulaw of 12 bits": lambda folder: mulaw(bits=12),
    "mulaw at another rate": lambda folder: mulaw(sample_rate=6000),
    "mel": lambda folder: fitted(
        Mel(Mel.Config(sample_rate=8000, num_features=8, hop_length=64, griffin_lim_iterations=2)), folder
    ),
    "melvq": lambda folder: fitted(
        MelVQ(
            MelVQ.Config(
                sample_rate=8000,
                num_features=8,
                hop_length=64,
                num_codebooks=2,
                codebook_size=16,
                griffin_lim_iterations=2,
            )
        ),
        folder,
    ),
}


@pytest.mark.parametrize("name", ["mulaw", "mel"])
def test_a_data_loader_pads_it(tmp_path, folder, name):
    """Guards against padding that a mask does not know, and items that are cut to the shortest."""
    cache = EncodedCache.build(folder, FRONTENDS[name](folder), tmp_path / "cache")
    for workers in (0, 1):
        loader = torch.utils.data.DataLoader(cache, len(LENGTHS), collate_fn=collate, num_workers=workers)
        ((x, lengths, mask),) = loader
        assert x.shape == (len(LENGTHS), cache.spec.num_channels, int(lengths.max())) == (*x.shape[:2], mask.shape[1])
        for i, length in enumerate(lengths.tolist()):
            assert torch.equal(x[i, :, :length], cache.codes(i)) and length == cache.files[i].num_frames
            assert not x[i, :, length:].any() and mask[i].tolist() == [True] * length + [False] * (
                len(mask[i]) - length
            )
    assert torch.equal(cache[-1], cache.codes(len(cache) - 1)) and len(list(cache)) == len(LENGTHS)


@pytest.mark.parametrize("name", FRONTENDS)
def test_holds_what_the_front_end_makes(tmp_path, folder, name):
    """Guards against codes that wrap in a type too small, rows and frames swapped, one file's frames taken for
    another's."""
    frontend = FRONTENDS[name](folder)
    built = EncodedCache.build(folder, frontend, tmp_path / "cache")
    opened = EncodedCache.open(tmp_path / "cache", frontend, scan(folder))
    rate = frontend.spec.sample_rate
    for cache in (built, opened, pickle.loads(pickle.dumps(built))):
        assert len(cache) == 3 and cache.spec == frontend.spec
        assert [file.path for file in cache.files] == ["00.wav", "01.wav", "02.wav"]
        for i, file in enumerate(cache.files):
            wav = read_audio(folder / file.path, rate)
            expected = frontend.encode(wav[None])[0]
            found = cache.codes(i)
            assert found.dtype == expected.dtype and torch.equal(found, expected)
            assert torch.equal(cache.codes(i, 3, 7), expected[:, 3:7])
            assert (file.num_samples, file.num_frames) == (wav.shape[1], expected.shape[1])
            decoded = cache.decode(i)
            assert torch.equal(decoded, frontend.decode(expected[None])[0, :, : wav.shape[1]])
    sizes = {
        "mulaw": 6301,
        "mulaw of 12 bits": 2 * 6301,
        "mulaw at another rate": 4726,
        "mel": 4 * 8 * 100,
        "melvq": 2 * 100,
    }
    assert (tmp_path / "cache" / "data.bin").stat().st_size == sizes[name]


@pytest.mark.parametrize("kind", REGISTERED)
def test_long_files_go_through_in_blocks(tmp_path, kind, monkeypatch):
    """Guards against a seam between blocks, and a whole long file in memory at once. Every registered front-end."""
    frontend = deepcopy(tiny_frontend(kind))
    working = frontend.base or frontend
    monkeypatch.setattr(type(working), "block_frames", 100)
    rate, hop, longest = working.spec.sample_rate, working.spec.hop_length, 0
    write_wav(tmp_path / "sound" / "long.wav", noise(0, round(350 * hop * 1.25)), rate * 5 // 4)
    whole = frontend.encode(read_audio(tmp_path / "sound" / "long.wav", rate)[None])[0]
    encode_block = working.encode_block

    def watched(wav, state, last):
        nonlocal longest
        longest = max(longest, wav.shape[-1])
        return encode_block(wav, state, last)

    working.encode_block = watched
    cache = EncodedCache.build(tmp_path / "sound", frontend, tmp_path / "cache")
    assert 0 < longest <= 100 * hop
    assert torch.equal(cache.codes(0), whole)


def test_the_split_of_a_cache_is_that_of_its_folder(tmp_path, folder):
    cache = EncodedCache.build(folder, mulaw(), tmp_path / "cache")
    assert split(EncodedCache.open(tmp_path / "cache").index) == split(scan(folder)) == split(cache.index)


def test_the_same_folder_makes_the_same_bytes(tmp_path, folder):
    for name in "ab":
        EncodedCache.build(folder, mulaw(), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_writes_wavs(tmp_path):
    write_wav(tmp_path / "sound" / "a" / "x.WAV", noise(0, 900))
    write_wav(tmp_path / "sound" / "x.wav", noise(1, 1000))
    write_audio(tmp_path / "sound" / "x.flac", torch.from_numpy(noise(2, 1100)), 8000)
    cache = EncodedCache.build(tmp_path / "sound", mulaw(), tmp_path / "cache")
    written = cache.write_wavs(tmp_path / "out")
    assert [path.relative_to(tmp_path / "out").as_posix() for path in written] == ["a/x.WAV", "x.flac.wav", "x.wav"]
    for i, path in enumerate(written):
        wav = read_audio(path)
        assert wav.shape == (1, [900, 1100, 1000][i])
        assert torch.allclose(wav, cache.decode(i), atol=2**-15)


# ---- refused when it does not match


def test_another_front_end_is_refused(tmp_path, folder):
    """Guards against a key that leaves out the settings, or the weights."""
    EncodedCache.build(folder, mulaw(), tmp_path / "cache")
    EncodedCache.open(tmp_path / "cache", mulaw())
    with pytest.raises(CacheError, match="another front-end"):
        EncodedCache.open(tmp_path / "cache", mulaw(bits=7))
    one, other = FRONTENDS["mel"](folder), FRONTENDS["mel"](folder)
    other.mean += 1e-3
    EncodedCache.build(folder, one, tmp_path / "mel")
    with pytest.raises(CacheError, match="another front-end"):
        EncodedCache.open(tmp_path / "mel", other)


def test_other_files_are_refused_but_other_names_are_not(tmp_path, folder):
    """Guards against a key of names and sizes, which an edited file keeps."""
    write_wav(folder / "short.wav", noise(7, 1))  # left out by the cache, and asked for by nobody
    EncodedCache.build(folder, mulaw(), tmp_path / "cache")
    os.rename(folder / "00.wav", folder / "zz.wav")
    EncodedCache.open(tmp_path / "cache", index=scan(folder))
    samples = bytearray((folder / "zz.wav").read_bytes())
    samples[-1] ^= 1
    (folder / "zz.wav").write_bytes(samples)
    with pytest.raises(CacheError, match="other files"):
        EncodedCache.open(tmp_path / "cache", index=scan(folder))
    os.remove(folder / "zz.wav")
    with pytest.raises(CacheError, match="other files"):
        EncodedCache.open(tmp_path / "cache", index=scan(folder))


def test_open_or_build_builds_only_what_does_not_match(tmp_path, folder):
    def build(frontend):
        cache = EncodedCache.open_or_build(scan(folder), frontend, tmp_path / "cache")
        return cache, (tmp_path / "cache" / "index.json").stat().st_mtime_ns

    _, first = build(mulaw())
    _, again = build(mulaw())
    assert again == first
    cache, changed = build(mulaw(bits=6))
    assert changed != first and cache.spec.codebook_size == 64
    write_wav(folder / "new.wav", noise(20, 500))
    cache, _ = build(mulaw(bits=6))
    assert len(cache) == 4
    (tmp_path / "cache" / "data.bin").write_bytes(b"damaged")
    cache, _ = build(mulaw(bits=6))
    assert len(EncodedCache.open(tmp_path / "cache")) == 4


@pytest.mark.parametrize("name", ["data.bin", "index.json", "frontend.safetensors", "config.json"])
def test_damage_is_refused(tmp_path, folder, name):
    """Guards against a byte that nobody sums up. Each is flipped once (of long files, some), and each file cut and
    removed."""
    EncodedCache.build(folder, FRONTENDS["mel"](folder), tmp_path / "cache")
    path = tmp_path / "cache" / name
    whole = path.read_bytes()
    step = max(1, len(whole) // 40)
    for place in [*range(0, len(whole), step), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        try:
            values = json.loads(damaged) if name.endswith(".json") else None
        except ValueError:
            values = None
        if values is None or values != json.loads(whole):  # a blank may become another blank
            with pytest.raises(CacheError):
                EncodedCache.open(tmp_path / "cache")
    for damaged in (whole[:-2], whole[: len(whole) // 2], b"", whole + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(CacheError):
            EncodedCache.open(tmp_path / "cache")
    path.unlink()
    with pytest.raises(CacheError):
        EncodedCache.open(tmp_path / "cache")
    path.write_bytes(whole)
    EncodedCache.open(tmp_path / "cache")


def test_a_front_end_put_in_its_place_is_refused(tmp_path, folder):
    """Guards against codes that another front-end, whole and sound in itself, would decode to noise."""
    for name, bits in (("a", 8), ("b", 7)):
        EncodedCache.build(folder, mulaw(bits=bits), tmp_path / name)
    for name in ("config.json", "frontend.safetensors"):
        shutil.copy(tmp_path / "b" / name, tmp_path / "a" / name)
    with pytest.raises(CacheError, match="do not belong to the front-end"):
        EncodedCache.open(tmp_path / "a")


def test_a_newer_format_is_refused(tmp_path, folder):
    EncodedCache.build(folder, mulaw(), tmp_path / "cache")
    path = tmp_path / "cache" / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 3}))
    with pytest.raises(CacheError, match="format 3.*upgrade audiogen"):
        EncodedCache.open(tmp_path / "cache")


@pytest.mark.parametrize("name", ["../out.wav", "/out.wav", "a/../../out.wav", "a/..", "", 7])
def test_a_cache_of_a_stranger_can_not_write_elsewhere(tmp_path, folder, name):
    EncodedCache.build(folder, mulaw(), tmp_path / "cache")
    path = tmp_path / "cache" / "index.json"
    values = json.loads(path.read_text())
    version, _ = values.pop("format"), values.pop("checksum")
    values["files"][0]["entry"]["path"] = name
    path.write_text(json.dumps({"format": version, **values, "checksum": checksum(values)}))
    with pytest.raises(CacheError, match="leads out of the folder|is inconsistent"):
        EncodedCache.open(tmp_path / "cache")
    values["files"][0]["entry"]["path"] = "harmless.wav"  # the checksum itself was not what refused it
    path.write_text(json.dumps({"format": version, **values, "checksum": checksum(values)}))
    EncodedCache.open(tmp_path / "cache")


# ---- building where something goes wrong


class Interrupting(MuLaw):
    """Ctrl-C at the third file."""

    encoded = 0

    def encode_stream(self, chunks, block_frames=None):
        self.encoded += 1
        if self.encoded == 3:
            raise KeyboardInterrupt
        return super().encode_stream(chunks, block_frames)


def test_an_interrupted_build_leaves_what_was_there(tmp_path, folder):
    """Guards against an old cache that is lost before the new one is whole, and half a cache that passes for one."""
    out = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        EncodedCache.build(folder, Interrupting(MuLaw.Config(sample_rate=8000)), out)
    assert not is_cache(out) and list(out.iterdir()) == []
    EncodedCache.build(folder, mulaw(), out)
    with pytest.raises(KeyboardInterrupt):
        EncodedCache.build(folder, Interrupting(MuLaw.Config(sample_rate=6000)), out)
    EncodedCache.open(out, mulaw(), scan(folder))


def test_an_interruption_while_the_new_cache_takes_its_place(tmp_path, folder, monkeypatch):
    """Guards against new codes beside an old index.json."""
    out = tmp_path / "cache"
    EncodedCache.build(folder, mulaw(), out)

    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("audiogen.data.cache.save_frontend", interrupt)
        EncodedCache.build(folder, mulaw(bits=7), out)
    with pytest.raises(CacheError, match="half-written"):
        EncodedCache.open(out)
    EncodedCache.build(folder, mulaw(bits=7), out)
    EncodedCache.open(out, mulaw(bits=7), scan(folder))


@pytest.mark.parametrize("missing", ["index.json", "config.json", "frontend.safetensors"])
def test_a_build_that_was_killed_starts_over(tmp_path, folder, missing):
    """Guards against temporary files that pile up, and a new front-end beside old codes."""
    out = tmp_path / "cache"
    EncodedCache.build(folder, mulaw(bits=5), out)
    (out / "index.json").unlink()  # it goes first and comes last
    if missing != "index.json":
        (out / missing).unlink()
    (out / ".data-0123456789abcdef.tmp.bin").write_bytes(b"half of it")
    with pytest.raises(CacheError, match="half-written"):
        EncodedCache.open(out)
    EncodedCache.build(folder, mulaw(), out)
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "data.bin",
        "frontend.safetensors",
        "index.json",
    ]
    EncodedCache.open(out, mulaw(), scan(folder))


class Killed(BaseException):
    """Stands for SIGKILL, after which nothing is cleaned up."""


@pytest.mark.parametrize("renames", range(4))
@pytest.mark.parametrize("after", [False, True])
def test_tokenize_killed_at_any_point_starts_over(tmp_path, folder, monkeypatch, renames, after):
    """Guards against a folder that tokenize refuses as a cache and train as half of one: killed before its last file
    came."""
    out, replace, done = tmp_path / "cache", os.replace, []

    def killing(source, target):
        if Path(target).parent != out:
            return replace(source, target)
        if len(done) == renames and not after:
            raise Killed
        replace(source, target)
        done.append(target)
        if len(done) == renames + 1:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", killing)
        patch.setattr(files, "remove", lambda path: None)
        tokenize(folder, out, "mulaw")
    if holds_cache(out):  # it was killed after the last file
        assert (renames, after) == (3, True) and len(EncodedCache.open(out)) == 3
        with pytest.raises(CacheError, match="holds a cache already"):
            tokenize(folder, out, "mulaw")
        return
    with pytest.raises(CacheError):
        EncodedCache.open(out)
    tokenize(folder, out, "mulaw", overrides=["frontend.bits=4"])
    assert len(EncodedCache.open(out)) == 3
    assert sorted(path.name for path in out.iterdir()) == sorted([*FRONTEND_FILES, "data.bin", "index.json"])


def test_two_do_not_tokenize_into_one_folder(tmp_path, folder):
    """Guards against a cache that is replaced in silence by the later of two."""
    with files.alone_in(tmp_path / "cache"), pytest.raises(RunError, match="cache: another process is writing to it"):
        tokenize(folder, tmp_path / "cache", "mulaw")
    tokenize(folder, tmp_path / "cache", "mulaw")
    with pytest.raises(CacheError, match="holds a cache already"):
        tokenize(folder, tmp_path / "cache", "mulaw", overrides=["frontend.bits=4"])


def test_what_is_no_cache_is_never_overwritten(tmp_path, folder):
    """Guards against the user's run, or a front-end that took a night to fit, gone by a slip in the command."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.safetensors").write_bytes(b"weights")
    save_frontend(mulaw(bits=4), tmp_path / "fitted")
    (tmp_path / "file").touch()
    for name in ("run", "fitted", "file", "sound"):
        with pytest.raises(CacheError, match=name):
            EncodedCache.build(folder, mulaw(), tmp_path / name)
        assert not is_cache(tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert is_cache(EncodedCache.build(folder, mulaw(), tmp_path / "empty").folder)


def test_files_that_went_bad_are_left_out(tmp_path, folder, monkeypatch):
    """Guards against half a file's codes that stay in the cache when its second block can't be read."""
    for number in (10, 20, 30, 40):
        write_wav(folder / f"{number}.wav", noise(number, 90_000))
    index = scan(folder)
    write_wav(folder / "00.wav", noise(50, 1500))
    os.remove(folder / "10.wav")

    def breaks_off(path, sample_rate):
        for block in read_blocks(path, sample_rate):
            yield block
            if path.name in ("20.wav", "40.wav"):
                raise AudioReadError(f"{path}: is damaged")

    monkeypatch.setattr("audiogen.data.shards.read_blocks", breaks_off)
    cache = EncodedCache.build(index, mulaw(), tmp_path / "cache")
    assert [file.path for file in cache.files] == ["01.wav", "02.wav", "30.wav"]
    reasons = {file.path: file.reason for file in cache.index.rejected}
    assert sorted(reasons) == ["00.wav", "10.wav", "20.wav", "40.wav"]
    assert "changed" in reasons["00.wav"] and "can't be read" in reasons["10.wav"]
    assert reasons["20.wav"] == "is damaged"
    opened = EncodedCache.open(tmp_path / "cache")
    assert opened.index == cache.index
    for i, file in enumerate(opened.files):
        assert torch.equal(opened.codes(i), mulaw().encode(read_audio(folder / file.path)[None])[0])


def test_nothing_to_encode(tmp_path):
    folder_of_noise(tmp_path / "sound", [100, 150])
    frontend = FRONTENDS["mel"](folder_of_noise(tmp_path / "other", [4000, 5000]))
    frontend = Mel(replace(frontend.config, hop_length=256))
    frontend.is_fitted.fill_(1)
    with pytest.raises(DataError, match="none of its 2 sound files.*two frames"):
        EncodedCache.build(tmp_path / "sound", frontend, tmp_path / "cache")
    index = scan(tmp_path / "sound")
    shutil.rmtree(tmp_path / "sound")
    with pytest.raises(DataError, match="can't be read"):
        EncodedCache.build(index, mulaw(), tmp_path / "cache")
    assert not is_cache(tmp_path / "cache")


def test_a_front_end_that_is_not_fitted(tmp_path, folder):
    with pytest.raises(NotFittedError):
        EncodedCache.build(folder, Mel(Mel.Config(sample_rate=8000)), tmp_path / "cache")


def test_a_full_disk_names_the_file(tmp_path, folder):
    """Guards against a bare OSError, and the half-written file left behind."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)  # stands for the disk's end
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(AudiogenError, match=r"\.bin.*4096 bytes"):
            EncodedCache.build(folder, mulaw(), tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_without_a_cache(tmp_path, folder):
    (folder / "index.json").write_text("{}")  # some corpora have one
    assert not is_cache(folder)
    with pytest.raises(CacheError):
        EncodedCache.open(folder)
    with pytest.raises(CacheError, match="holds no encoded cache"):
        EncodedCache.open(tmp_path / "missing")


def test_names_that_other_systems_could_not_hold(tmp_path):
    write_wav(tmp_path / "sound" / "take 12:30 \\ ü ..wav", noise(0, 100))
    cache = EncodedCache.build(tmp_path / "sound", mulaw(), tmp_path / "cache")
    assert EncodedCache.open(tmp_path / "cache").files == cache.files


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_folder(tmp_path):
    """Guards against anything that is kept of each file. The rate is low, and the limit with it: 20 hours are 69 MiB of
    codes.

    tests/bench/memory_of_a_folder.py alone measures it at 8 kHz, against 200 MiB.
    """
    script = os.path.join(os.path.dirname(__file__), "bench", "memory_of_a_folder.py")
    command = [
        sys.executable,
        script,
        "--hours",
        "1",
        "20",
        "--sample-rate",
        "1000",
        "--file-seconds",
        "300",
        "--limit",
        "40",
        "--place",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "grows by" in done.stdout


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_encodes_and_decodes_on_the_front_ends_device(tmp_path, folder):
    on_cpu = FRONTENDS["mel"](folder)
    expected = EncodedCache.build(folder, on_cpu, tmp_path / "cpu")
    cache = EncodedCache.build(folder, on_cpu.to("cuda"), tmp_path / "cuda")
    cache.frontend().to("cuda")
    for i in range(len(cache)):
        assert torch.allclose(cache.codes(i), expected.codes(i), atol=1e-3)
        assert cache.decode(i).device.type == "cpu"
