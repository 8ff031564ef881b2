"""Encoding on a Ray cluster gives the cache of one process, whatever happens to the machines."""

import os
import random
import socket
import threading
import time
from pathlib import Path

import pytest
from folders import folder_of_noise, noise, write_wav
from test_shards import NUM_FILES, TRAP, Fragile, Slow, contents, mulaw

from audiogen.commands.tokenize import tokenize
from audiogen.data import EncodedCache, ray_fleet, shards
from audiogen.errors import AudiogenError, ConfigError

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    """A cluster with a head that encodes nothing, and no other machine yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # by default its processes give way to all others
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        found = cluster_utils.Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False},
        )
        ray.init(found.address, log_to_driver=False, logging_level="ERROR")
        yield found
        ray.shutdown()
        found.shutdown()


@pytest.fixture
def machines(cluster):
    """Two machines of one CPU each."""
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20) for _ in range(2)]
    yield nodes
    for node in nodes:
        if node in cluster.list_all_nodes():
            cluster.remove_node(node, allow_graceful=False)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Files of 0.1 s, of which each shard has three."""
    monkeypatch.setattr(shards, "SHORTEST", 0.25)
    return folder_of_noise(tmp_path / "sound", [800 + number for number in range(NUM_FILES)])


def test_a_machine_that_is_lost_changes_nothing(tmp_path, folder, cluster, machines):
    """Guards against files lost or doubled when a machine is switched off in the middle of a job."""
    expected = contents(EncodedCache.build(folder, mulaw(), tmp_path / "1").folder)
    out, lost, seed = tmp_path / "cache", [], random.randrange(2**32)
    rng = random.Random(seed)

    def switch_off() -> None:
        while len(list(out.glob(".shards/*.json"))) < 2:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        cluster.remove_node(machines[rng.randrange(2)], allow_graceful=False)
        lost.append(len(list(out.glob(".shards/*.json"))))

    killer = threading.Thread(target=switch_off)
    killer.start()
    EncodedCache.build(folder, mulaw(Slow), out, ray="auto")
    killer.join()
    assert lost[0] < 8, "the job was over"
    assert contents(out) == expected, seed  # and nothing is left of the shards


def test_a_file_that_kills_is_left_out(tmp_path, folder, machines, monkeypatch):
    """Guards against a crash on one file that ends the job, or takes the rest of its shard along."""
    monkeypatch.setattr("audiogen.data.fleet.MOST_DEATHS", 2)
    samples = noise(7, 900)
    samples[0] = TRAP
    write_wav(folder / "07.wav", samples)
    cache = EncodedCache.build(folder, mulaw(Fragile), tmp_path / "cache", ray="auto")
    assert [file.path for file in cache.index.rejected] == ["07.wav"]
    assert cache.index.rejected[0].reason.startswith("ends the process that encodes it")
    assert len(cache) == NUM_FILES - 1


def test_a_folder_that_a_machine_does_not_see(tmp_path, folder, machines):
    """Guards against files that are left out one after another, where one machine has no such disk."""
    index = shards.Index(tmp_path / "elsewhere", [], [])
    with pytest.raises(AudiogenError, match="elsewhere: is not to be seen on .*disk that all machines share"):
        planned = shards.plan_shards(EncodedCache.build(folder, mulaw(), tmp_path / "1").index, mulaw())
        ray_fleet.encode_shards_on_ray(shards.Job(index.folder, tmp_path / "2", mulaw()), planned, "auto", False)


def test_no_cluster_is_there(tmp_path, folder, monkeypatch):
    """Guards against a traceback of another library for a mistyped address, after minutes of waiting."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(ConfigError, match=f"no cluster at '{address}' .*; give the address .*RAY_AUTH_MODE=token"):
        tokenize(folder, tmp_path / "cache", "mulaw", ray=address)
    monkeypatch.setattr(ray_fleet.socket, "create_connection", lambda *_: socket.socket())
    monkeypatch.setattr(ray, "init", lambda *args, **kwargs: (_ for _ in ()).throw(ConnectionError("refused\nby all")))
    with pytest.raises(ConfigError, match="no cluster at 'head:6379' .refused by all.; give the address"):
        EncodedCache.build(folder, mulaw(), tmp_path / "cache", ray="head:6379")
