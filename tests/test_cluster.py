"""Training by Ray Train ends with the bytes of one process, and what is wrong is said once."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from corpus import folder_of_notes, tiny_settings

import audiogen
from audiogen import cluster as on_ray
from audiogen.errors import AudiogenError, ConfigError
from audiogen.training.checkpoint import list_checkpoints

ray = pytest.importorskip("ray")
pytest.importorskip("ray.train")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks into /proc")]

OVERRIDES = [
    "backbone.dim=8",
    "backbone.num_layers=1",
    "backbone.num_heads=2",
    "backbone.dropout=0.3",
    "training.crop_frames=16",
    "training.batch_size=2",
    "training.accumulation=2",
    "training.average=0.7",
    "training.evaluations=40",
    "training.sample_seconds=0.02",
    "sampling.temperature=1",
    *(f"frontend.{name}={value}" for name, value in tiny_settings("melvq").items()),
]
OPTIONS = {"frontend": "melvq", "backbone": "gpt", "steps": 40, "overrides": OVERRIDES}


@pytest.fixture(scope="module")
def cluster():
    """Two machines, one process each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        small = {"object_store_memory": 80 * 2**20}
        found = cluster_utils.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **small}
        )
        found.add_node(num_cpus=1, **small)
        ray.init(found.address, log_to_driver=False, logging_level="ERROR")
        yield found
        ray.shutdown()
        found.shutdown()


def workers():
    """The processes in which Ray trains."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"RayTrainWorker" in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # has ended
            continue
    return found


def kill_one(out, killed):
    """Kills a process once there is something to continue from."""
    end = time.monotonic() + 300
    while not list_checkpoints(out / "checkpoints") and time.monotonic() < end:
        time.sleep(0.01)
    for pid in workers()[:1]:
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)


def test_processes_of_a_cluster_end_with_the_bytes_of_one(cluster, tmp_path):
    """Guards against paths that a process looks for in its own folder, and a process that is lost with the run."""
    corpus, killed = folder_of_notes(tmp_path / "corpus", [3000] * 5 + [700] * 3), []
    audiogen.train(corpus, tmp_path / "one", device="cpu", **OPTIONS)
    out = tmp_path / "two"
    thread = threading.Thread(target=kill_one, args=(out, killed))
    thread.start()
    run = on_ray.train(corpus, out, num_workers=2, **OPTIONS)
    thread.join()
    assert killed and run.step == audiogen.load_run(tmp_path / "one").step
    for name in ("model.safetensors", "split.json", "config.json"):
        assert (out / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    newest = [list_checkpoints(tmp_path / name / "checkpoints")[-1] for name in ("one", "two")]
    assert newest[0].name == newest[1].name == "step-40"
    for name in ("model.safetensors", "average.safetensors", "optimizer.safetensors"):
        assert (newest[0] / name).read_bytes() == (newest[1] / name).read_bytes(), name
    assert not (out / on_ray.RAY_FOLDER).exists()


@pytest.mark.parametrize(
    "change, kind, said",
    [
        ({"overrides": [*OVERRIDES, "training.accumulation=3"]}, ConfigError, "can't be shared out among 2 processes"),
        ({"device": "cpu"}, ConfigError, "device: is not for several processes"),
    ],
)
def test_what_is_wrong_is_said_as_it_is_without_a_cluster(cluster, tmp_path, change, kind, said):
    """Guards against an error of Ray's, with a traceback, and processes that are started again to fail again."""
    corpus = folder_of_notes(tmp_path / "corpus", [3000] * 5)  # and nothing is left of the run
    with pytest.raises(AudiogenError, match=said) as error:
        on_ray.train(corpus, tmp_path / "run", num_workers=2, **{**OPTIONS, **change})
    assert type(error.value) is kind
    assert not (tmp_path / "run").exists()


def test_folders_that_are_none(tmp_path):
    """Guards against a traceback, a cluster that is started for nothing, and a URL that is taken for a path."""
    (tmp_path / "file").write_text("mine")
    for folder, out, said in (
        (tmp_path, tmp_path / "file", "file: is a file"),
        (tmp_path / "gone", tmp_path / "run", "gone: there is no such folder"),
        (["s3://bucket/sounds"], tmp_path / "run", "s3://bucket/sounds: is a URL, which only tokenize reads"),
    ):
        with pytest.raises(AudiogenError, match=said):
            on_ray.train(folder, out, num_workers=2)
        assert not (tmp_path / "run").exists()
