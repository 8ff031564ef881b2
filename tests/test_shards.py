"""A folder is encoded in shards, by one process or several, and whatever happens to them, the cache is the same."""

import hashlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from corpus import tiny_frontend
from folders import folder_of_noise, noise, write_wav

from audiogen.audio.io import read_audio
from audiogen.cli import app
from audiogen.commands.tokenize import tokenize
from audiogen.data import EncodedCache, fleet, scan, shards
from audiogen.data.fleet import Schedule
from audiogen.data.index import FileEntry
from audiogen.data.shards import Job, encode_shard, plan_batches, plan_shards, read_shard
from audiogen.errors import AudiogenError, CacheError, ConfigError
from audiogen.frontends import FRONTENDS, MuLaw

NUM_FILES = 24
ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path):
    """Files of 0.1 s."""
    return folder_of_noise(tmp_path / "sound", [800 + number for number in range(NUM_FILES)])


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Three files in each shard."""
    monkeypatch.setattr(shards, "SHORTEST", 0.25)


class Slow(MuLaw):
    """Takes a while for each file, which leaves time to be killed."""

    def encode_stream(self, chunks, block_frames=None):
        time.sleep(0.1)
        return super().encode_stream(chunks, block_frames)


#: The first sample of a file that a front-end below does not survive.
TRAP = 0.75


class Fragile(MuLaw):
    """Ends its process at one file, and raises an error at another."""

    def encode_block(self, wav, state, last):
        first = float(wav.flatten()[0])
        if first == TRAP:
            os.kill(os.getpid(), signal.SIGKILL)
        if first == -TRAP:
            raise RuntimeError("no kernel\nfor this shape")
        return super().encode_block(wav, state, last)


Slow.__name__ = Fragile.__name__ = "MuLaw"  # which is part of their fingerprints


def mulaw(part=MuLaw, bits=8):
    return part(part.Config(sample_rate=8000, bits=bits))


def contents(cache: Path) -> dict[str, str]:
    """The SHA-256 of every file of a cache."""
    return {
        path.relative_to(cache).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in cache.rglob("*")
        if path.is_file()
    }


def job(folder, out, frontend=None):
    return Job(folder, out, frontend or mulaw())


def test_the_plan_follows_from_the_contents(folder):
    """Guards against a shard that is taken for done although a file or the front-end has changed, and a file in two."""
    index = scan(folder)
    plan = plan_shards(index, mulaw())
    assert [file for shard in plan for file in shard.files] == index.files
    assert len(plan) == 8 and plan == plan_shards(scan(folder), mulaw())
    assert plan[-1].name.startswith("000007-") and len({shard.name for shard in plan}) == len(plan)
    assert not {shard.name for shard in plan} & {shard.name for shard in plan_shards(index, mulaw(bits=7))}
    assert not {s.name for s in plan} & {s.name for s in plan_shards(index, mulaw().double())}  # rounds otherwise
    write_wav(folder / "04.wav", noise(99, 804))
    changed = plan_shards(scan(folder), mulaw())
    assert [one.name == other.name for one, other in zip(plan, changed, strict=True)] == [True, False] + [True] * 6


def test_a_long_folder_has_long_shards(monkeypatch, folder):
    """Guards against a million shards, whose writing takes longer than the work."""
    monkeypatch.setattr(shards, "SHORTEST", 0.01)
    monkeypatch.setattr(shards, "NUM_SHARDS", 4)
    assert len(plan_shards(scan(folder), mulaw())) == 4
    monkeypatch.setattr(shards, "LONGEST", 0.15)
    assert len(plan_shards(scan(folder), mulaw())) == NUM_FILES / 2


def test_an_interrupted_build_is_continued(tmp_path, folder, monkeypatch):
    """Guards against a night of encoding that is lost, and against shards of another front-end that are taken over."""
    expected = contents(EncodedCache.build(folder, mulaw(), tmp_path / "whole").folder)
    done = []

    def interrupted(job, shard, *rest, **named):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(shard.name)
        return encode_shard(job, shard, *rest, **named)

    out = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(fleet, "encode_shard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            EncodedCache.build(folder, mulaw(bits=5), out)
        first = done.copy()
        done.clear()
        with pytest.raises(KeyboardInterrupt):
            EncodedCache.build(folder, mulaw(), out)
    with pytest.raises(CacheError):
        EncodedCache.open(out)
    assert len(list((out / ".shards").glob("*.json"))) == 10 and not set(first) & set(done)
    again = []

    def counted(job, shard, *rest, **named):
        again.append(shard.name)
        return encode_shard(job, shard, *rest, **named)

    monkeypatch.setattr(fleet, "encode_shard", counted)
    EncodedCache.build(folder, mulaw(), out)
    assert len(again) == 3 and not set(again) & set(done)
    assert contents(out) == expected  # and nothing is left of the shards


@pytest.mark.parametrize("place", [".bin", ".json"])
def test_a_damaged_shard_is_done_again(tmp_path, folder, place):
    """Guards against frames that changed on the disk between two commands, under a checksum made afterwards."""
    expected = contents(EncodedCache.build(folder, mulaw(), tmp_path / "whole").folder)
    out, index = tmp_path / "cache", scan(folder)
    plan = plan_shards(index, mulaw())
    (out / ".shards").mkdir(parents=True)
    for shard in plan:
        encode_shard(job(folder, out / ".shards"), shard)
    path = out / ".shards" / f"{plan[3].name}{place}"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0x40
    path.write_bytes(damaged if place == ".bin" else damaged[:20])
    if place == ".bin":
        with pytest.raises(AudiogenError, match="000003-.*has changed since it was written.*same command"):
            EncodedCache.build(index, mulaw(), out)
    EncodedCache.build(index, mulaw(), out)
    assert contents(out) == expected


def test_foreign_files_are_never_removed(tmp_path, folder):
    """Guards against a user's folder that happens to bear the name."""
    out = tmp_path / "cache"
    (out / ".shards").mkdir(parents=True)
    (out / ".shards" / "000000-mine.bin").write_bytes(b"mine")
    EncodedCache.build(folder, mulaw(), out)
    assert [path.name for path in (out / ".shards").iterdir()] == ["000000-mine.bin"]


def test_a_file_that_fails_is_left_out(tmp_path, folder):
    """Guards against a bug met by one file in a million that ends the command, and half of its frames left in place."""
    samples = noise(7, 900)
    samples[0] = -TRAP
    write_wav(folder / "05.wav", samples)
    cache = EncodedCache.build(folder, mulaw(Fragile), tmp_path / "cache")
    assert [(file.path, file.reason) for file in cache.index.rejected] == [
        ("05.wav", "can't be encoded (RuntimeError: no kernel for this shape)")
    ]
    assert len(EncodedCache.open(tmp_path / "cache")) == NUM_FILES - 1


def test_what_is_no_fault_of_the_file_ends_the_command(tmp_path, folder):
    """Guards against files that are left out one after another because the memory or the disk is full."""

    class Hungry(MuLaw):
        def encode_block(self, wav, state, last):
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    class Full(MuLaw):
        def encode_block(self, wav, state, last):
            raise OSError(28, "No space left on device")

    with pytest.raises(AudiogenError, match="00.wav: not enough memory.*2 GiB.*fewer workers"):
        EncodedCache.build(folder, mulaw(Hungry), tmp_path / "cache")
    with pytest.raises(AudiogenError, match="the disk is full"):
        EncodedCache.build(folder, mulaw(Full), tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_single_thread_computes(tmp_path, folder):
    """Guards against codes that depend on the number of cores; the caller's setting is as before."""
    seen = []

    class Watched(MuLaw):
        def encode_block(self, wav, state, last):
            seen.append(torch.get_num_threads())
            return super().encode_block(wav, state, last)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        EncodedCache.build(folder, mulaw(Watched), tmp_path / "cache")
        assert torch.get_num_threads() == 2 and set(seen) == {1}
    finally:
        torch.set_num_threads(before)


# ---- the schedule


def planned(tmp_path, num_shards=3) -> tuple[Schedule, list]:
    index = scan(folder_of_noise(tmp_path / "few", [800, 801, 802] * num_shards, seed=50))
    plan = plan_shards(index, mulaw())
    return Schedule(job(index.folder, tmp_path / "none"), plan), plan


def finished(shard):
    return shards.EncodedShard(shard, "", [], [])


def test_the_schedule_does_each_shard_once(tmp_path):
    schedule, plan = planned(tmp_path)
    taken = [schedule.next() for _ in range(4)]
    assert taken == [*plan, None] and schedule.num_left == 3
    for shard in reversed(plan):
        schedule.finish(finished(shard))
    assert [done.shard for done in schedule.results()] == plan and schedule.num_files == 9


def test_the_schedule_repeats_what_was_lost_first(tmp_path):
    """Guards against a shard that nobody does after its process was killed."""
    schedule, plan = planned(tmp_path)
    assert schedule.next() == plan[0]
    schedule.fail(plan[0], 1, "SIGKILL")
    assert [schedule.next() for _ in range(4)] == [*plan, None]


def test_the_schedule_leaves_a_file_out_after_three_deaths(tmp_path):
    """Guards against a good file that is left out because the system killed the process once."""
    schedule, plan = planned(tmp_path)
    for deaths in range(3):
        assert schedule.next() == plan[0] and schedule.skip == {}, deaths
        schedule.fail(plan[0], 1, "SIGSEGV")
    assert schedule.skip == {plan[0].name: {1: "ends the process that encodes it (SIGSEGV)"}}


def test_the_schedule_gives_up_in_the_end(tmp_path):
    """Guards against processes that are started for ever, where the memory never suffices."""
    schedule, plan = planned(tmp_path)
    with pytest.raises(AudiogenError, match="has ended 13 times .SIGKILL..*so many workers.*what is done stays"):
        for _ in range(100):
            assert schedule.next() == plan[0]
            schedule.fail(plan[0], None, "SIGKILL")


def test_a_straggler_is_done_twice_and_the_first_result_counts(tmp_path, monkeypatch):
    """Guards against a job that waits for a process that hangs, and against ever more copies of a slow shard."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    schedule, plan = planned(tmp_path)
    for _ in plan:
        schedule.next()
    now[0] = 10.0
    schedule.finish(finished(plan[0]))
    schedule.finish(finished(plan[2]))
    now[0] = 19.0
    assert schedule.next() is None  # not even twice as long as the others
    now[0] = 21.0
    assert schedule.next() == plan[1] and schedule.next() is None
    schedule.fail(plan[1], 0, "SIGKILL")  # one of the two; the other goes on
    assert schedule.num_left == 1 and not schedule.waiting
    schedule.finish(finished(plan[1]))
    schedule.fail(plan[1], 0, "SIGKILL")
    assert schedule.num_left == 0 and not schedule.waiting


# ---- processes


def kill_one(out: Path, rng: random.Random, killed: list[int]) -> None:
    """Kill a process at a random moment after the first shard."""
    while not list(out.glob(".shards/*.json")):
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.5))
    number = rng.choice([process.pid for process in multiprocessing.active_children() if process.pid])
    os.kill(number, signal.SIGKILL)
    killed.append(number)


@pytest.mark.slow
def test_any_number_of_processes_makes_the_same_cache(tmp_path, folder):
    """Guards against files lost, doubled or out of order, with 1, 2 and 3 processes, of which one is killed at work."""
    expected = contents(EncodedCache.build(folder, mulaw(), tmp_path / "1").folder)
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    for workers in (2, 3):
        killed, out = [], tmp_path / str(workers)
        killer = threading.Thread(target=kill_one, args=(out, rng, killed))
        killer.start()
        EncodedCache.build(folder, mulaw(Slow), out, workers=workers)
        killer.join()
        assert killed
        assert contents(out) == expected, seed  # and nothing is left of the shards


@pytest.mark.slow
def test_a_command_that_is_killed_is_continued(tmp_path, folder):
    """Guards against processes that go on without the one that began them, and shards that are lost with it."""
    expected = contents(EncodedCache.build(folder, mulaw(), tmp_path / "whole").folder)
    out = tmp_path / "cache"
    code = (
        "from test_shards import EncodedCache, Slow, mulaw, shards\n"
        "shards.SHORTEST = 0.25\n"
        f"EncodedCache.build({str(folder)!r}, mulaw(Slow), {str(out)!r}, workers=2)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True)
    while len(list(out.glob(".shards/*.json"))) < 2:
        assert command.poll() is None
        time.sleep(0.01)
    command.kill()
    command.wait()
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            os.killpg(command.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("its processes go on")
    done = {path.name: path.stat().st_mtime_ns for path in out.glob(".shards/*.json")}
    assert 2 <= len(done) < 8
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("audiogen.data.cache.remove_shards", lambda folder: None)
        EncodedCache.build(folder, mulaw(), out)
    assert {path.name: path.stat().st_mtime_ns for path in out.glob(".shards/*.json")}.items() > done.items()
    shards.remove_shards(out)
    assert contents(out) == expected


@pytest.mark.slow
def test_a_file_that_kills_is_left_out(tmp_path, folder, monkeypatch):
    """Guards against a decoder's crash on one file that ends a job of days, or takes the rest of its shard along."""
    monkeypatch.setattr(fleet, "MOST_DEATHS", 2)
    samples = noise(7, 900)
    samples[0] = TRAP
    write_wav(folder / "07.wav", samples)
    cache = EncodedCache.build(folder, mulaw(Fragile), tmp_path / "cache", workers=2)
    assert [(file.path, file.reason) for file in cache.index.rejected] == [
        ("07.wav", "ends the process that encodes it (SIGKILL)")
    ]
    assert [file.path for file in cache.files] == [f"{i:02d}.wav" for i in range(NUM_FILES) if i != 7]


def test_processes_that_can_not_start_are_done_without(tmp_path, folder):
    """Guards against a front-end of a notebook, which no other process can load."""

    class Local(MuLaw):
        pass

    cache = EncodedCache.build(folder, mulaw(Local), tmp_path / "cache", workers=2)
    assert len(cache) == NUM_FILES


@pytest.mark.slow
def test_a_script_is_not_run_again(tmp_path, folder):
    """Guards against the script of a user, without a guard, that each process runs from the beginning."""
    script = tmp_path / "script.py"
    script.write_text(
        "import audiogen\n"
        "from audiogen.data import EncodedCache, shards\n"
        "print('begins')\n"
        "shards.SHORTEST = 0.25\n"
        f"cache = EncodedCache.build({str(folder)!r}, audiogen.load_frontend('mulaw'), 'cache', workers=2)\n"
        "print(len(cache))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["begins", str(NUM_FILES)]


def test_a_shard_that_is_done_is_not_done_again(tmp_path, folder):
    """Guards against a straggler's twin that writes over a result."""
    out = tmp_path / "shards"
    plan = plan_shards(scan(folder), mulaw())
    assert read_shard(out, plan[0]) is None
    first = encode_shard(job(folder, out), plan[0])
    assert read_shard(out, plan[0]) == first
    again = encode_shard(job(folder, out), plan[0], begin=lambda place: pytest.fail("it is done"))
    assert again == first


@pytest.mark.parametrize(
    "words, address",
    [
        ("f o", None),
        ("f o --ray", "auto"),
        ("f o --ray --device cpu", "auto"),
        ("--ray f o", "auto"),
        ("f o --ray head-1:6379", "head-1:6379"),
        ("--ray ray://10.0.0.1:10001 f o", "ray://10.0.0.1:10001"),
        ("f o --ray=auto", "auto"),
    ],
)
def test_ray_may_stand_without_an_address(words, address):
    """Guards against a folder that is taken for the address of a cluster."""
    group: Any = typer.main.get_command(app)
    assert group.commands["tokenize"].make_context("tokenize", words.split()).params["ray"] == address


def test_ray_and_workers_exclude_each_other(folder, tmp_path):
    with pytest.raises(ConfigError, match="--ray, --workers: .*give only one"):
        typer.main.get_command(app)(["tokenize", str(folder), str(tmp_path / "o"), "--ray", "--workers", "2"])


def test_ray_is_an_extra(folder, tmp_path, monkeypatch):
    """Guards against a folder that is scanned for an hour before a package is missed."""
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("audiogen.commands.tokenize.open_source", lambda *a, **k: pytest.fail("it is scanned"))
    with pytest.raises(ConfigError, match="--ray: needs the package ray: pip install"):
        tokenize(folder, tmp_path / "cache", "mulaw", ray="auto")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_is_one_line_and_nothing_is_lost(tmp_path, folder):
    """Guards against a traceback of another process, and shards that were done and are done again."""
    expected, small = contents(EncodedCache.build(folder, mulaw(), tmp_path / "whole").folder), tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        with pytest.raises(AudiogenError, match=r"can't be written \(the disk is full, \d+ bytes written\)") as error:
            EncodedCache.build(folder, mulaw(), small / "cache", workers=2)
        assert "\n" not in str(error.value)
        done = {path.name: path.stat().st_mtime_ns for path in small.glob("cache/.shards/*.json")}
        assert done
        subprocess.run(["mount", "-o", "remount,size=1m", small], check=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("audiogen.data.cache.remove_shards", lambda folder: None)
            EncodedCache.build(folder, mulaw(), small / "cache")
        after = {path.name: path.stat().st_mtime_ns for path in small.glob("cache/.shards/*.json")}
        assert after.items() > done.items()
        shards.remove_shards(small / "cache")
        assert contents(small / "cache") == expected
    finally:
        subprocess.run(["umount", small], check=True)


# ---- batches on a GPU


@pytest.fixture
def batches(monkeypatch):
    """Files are encoded together here too; the batches that were."""
    seen = []
    encode = shards._encode

    def watched(job, shard, places, outs, begin):
        seen.append(list(places))
        return encode(job, shard, places, outs, begin)

    monkeypatch.setattr(shards, "_together", lambda device: True)
    monkeypatch.setattr(shards, "_encode", watched)
    return seen


def entries(lengths):
    return [FileEntry(f"{i}.wav", "", 8000, 1, length, 0.5, 0.1, False, 0.0) for i, length in enumerate(lengths)]


def test_files_of_similar_length_share_a_batch(monkeypatch):
    """Guards against batches that are mostly padding, of more files or longer ones than fit, and a file in two."""
    monkeypatch.setattr(shards, "MOST_TOGETHER", 3)
    monkeypatch.setattr(shards, "LONGEST_TOGETHER", 1.0)
    lengths = [1000, 4000, 1250, 4000, 4100, 1251, 9000, 4050, 1100]
    assert plan_batches(entries(lengths), mulaw()) == [[0, 8, 2], [1, 3, 7]]
    strict = mulaw()
    strict.ends_in_zeros = False
    assert plan_batches(entries(lengths), strict) == [[1, 3]]


@pytest.mark.parametrize("kind", [kind for kind in FRONTENDS if kind != "bpe"])
def test_a_batch_gives_each_file_what_it_gets_alone(tmp_path, kind, batches, monkeypatch):
    """Guards against codes of the padding, of a neighbour, or of another end. In float64, where no two codewords are
    equally near up to rounding; files are read in pieces, of which the shorter ones have fewer."""
    frontend = deepcopy(tiny_frontend(kind)).double()
    rate, hop = frontend.spec.sample_rate, max(64, frontend.spec.hop_length)
    lengths = [20 * hop + 1, 24 * hop, 20 * hop + 1, 22 * hop + 5, 24 * hop, 70 * hop]
    folder = folder_of_noise(tmp_path / "sound", lengths, rate)
    monkeypatch.setattr(shards, "SHORTEST", 1000.0)
    monkeypatch.setattr(shards, "READ_SECONDS", 9.5 * hop / rate)
    cache = EncodedCache.build(folder, frontend, tmp_path / "cache")
    assert batches[:-1] == ([[0, 2, 3, 1, 4]] if frontend.ends_in_zeros else [[0, 2], [1, 4], [3]])
    assert batches[-1] == [5]
    for i, length in enumerate(lengths):
        expected = frontend.encode(read_audio(folder / f"{i:02d}.wav", rate)[None].double())[0]
        torch.testing.assert_close(cache.codes(i).double(), expected.double(), rtol=0, atol=1e-6)
        assert cache.files[i].num_samples == length


@pytest.mark.parametrize("together", [True, False])
def test_a_file_that_has_changed_since_the_scan_is_left_out(tmp_path, batches, monkeypatch, together):
    """Guards against codes under the hash of another sound, and neighbours that are lost with a file or shifted."""
    monkeypatch.setattr(shards, "_together", lambda device: together)
    folder = folder_of_noise(tmp_path / "sound", [900 + i for i in range(6)])
    index = scan(folder)
    write_wav(folder / "02.wav", noise(99, 902))
    (folder / "04.wav").unlink()
    cache = EncodedCache.build(index, mulaw(), tmp_path / "cache")
    assert [len(batch) for batch in batches] == ([3, 3] if together else [1] * 6)
    assert {file.path: file.reason for file in cache.index.rejected} == {
        "02.wav": "has changed since the folder was scanned",
        "04.wav": "can't be read (No such file or directory)",
    }
    for i, file in enumerate(cache.files):
        assert torch.equal(cache.codes(i), mulaw().encode(read_audio(folder / file.path, 8000)[None])[0])


def test_the_first_result_counts(tmp_path, folder):
    """Guards against frames under the checksum of another process, whose GPU has rounded in another way."""
    out, plan = tmp_path / "shards", plan_shards(scan(folder), mulaw())

    class Other(MuLaw):
        def encode_block(self, wav, state, last):
            return 0 * super().encode_block(wav, state, last)[0], None

    first = []

    def overtaken(place):
        if not first:
            first.append(encode_shard(job(folder, out), plan[0]))

    second = encode_shard(job(folder, out, mulaw(Other)), plan[0], begin=overtaken)
    assert second == first[0] == read_shard(out, plan[0])
    assert hashlib.sha256((out / f"{plan[0].name}.bin").read_bytes()).hexdigest() == second.sha256
    assert len(list(out.iterdir())) == 2
