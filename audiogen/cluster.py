"""Train on a Ray cluster, whose machines share a disk."""

import importlib
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import errors
from .commands.train import train as train_here
from .data.ray_fleet import import_ray
from .errors import AudiogenError, ConfigError, RankError, ReportedElsewhere
from .runs.run import Run, load_run
from .runs.training_config import DistributedConfig
from .utils.files import check_folder_is_there, check_is_no_file

#: Folder in the run folder, while it is trained, for what Ray writes.
RAY_FOLDER = ".ray"
#: Seconds in which another process reports an error.
REPORT_SECONDS = 10.0


def train(
    folder: str | Path | Sequence[str | Path],
    out: str | Path,
    num_workers: int,
    use_gpu: bool = False,
    max_failures: int = 3,
    **options: Any,
) -> Run:
    """Train a model by processes of a Ray cluster, as torchrun would on one machine.

    If a process or a machine is lost, Ray starts all processes again, wherever there is room, and they continue from
    the last checkpoint. A run in `out` is continued. Ray uses the cluster to which this program is connected
    (`ray.init`); otherwise that of this machine, or a new one on it.

    Args:
        folder: as in `audiogen.train`; all machines must see it under the same path.
        out: the run folder, on a disk that all machines share.
        num_workers: number of processes.
        use_gpu: whether each gets a GPU of its own.
        max_failures: how often they are started again; -1 for any number of times.
        **options: other arguments of `audiogen.train`, such as steps, minutes, frontend, backbone and overrides.

    Returns:
        The run with its best weights, on the CPU.

    Raises:
        ConfigError: Ray is not installed, or as in `audiogen.train`.
        AudiogenError: processes were lost more often, or as in `audiogen.train`.

    Example:
        >>> import ray  # doctest: +SKIP
        >>> ray.init("auto")  # doctest: +SKIP
        >>> run = audiogen.cluster.train("cache", "/shared/runs/big", num_workers=16, use_gpu=True)  # doctest: +SKIP
    """
    import_ray()
    # Ray gives up after a minute, in which torch has not been loaded from a slow disk, and begins again.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
    for name in ("device", "resume", "stages"):
        if name in options:
            raise ConfigError(f"{name}: is not for several processes, or follows from the others; leave it out")
    ray_train, ray_torch = (importlib.import_module(name) for name in ("ray.train", "ray.train.torch"))
    out = Path(out).absolute()
    check_is_no_file(out)
    folders = [folder] if isinstance(folder, str | Path) else folder
    for one in folders:  # Ray takes minutes to begin
        check_folder_is_there(one)
    folders = [Path(one).absolute() for one in folders]
    frontend = options.get("frontend")
    if frontend is not None and Path(frontend).is_dir():  # processes work in folders of their own
        options["frontend"] = str(Path(frontend).absolute())
    given = {"folder": folders, "out": out, "device": "cuda" if use_gpu else "cpu", "resume": True, **options}
    storage = out / RAY_FOLDER
    made = [parent for parent in (out, *out.parents) if not parent.exists()]
    storage.mkdir(parents=True, exist_ok=True)
    failed = storage / "failed.json"
    failed.unlink(missing_ok=True)
    trainer = ray_torch.TorchTrainer(
        _train,
        train_loop_config={"given": given, "failed": failed},
        torch_config=ray_torch.TorchConfig(
            backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo", timeout_s=int(DistributedConfig().timeout)
        ),
        scaling_config=ray_train.ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
        run_config=ray_train.RunConfig(
            name="train", storage_path=str(storage), failure_config=ray_train.FailureConfig(max_failures=max_failures)
        ),
    )
    try:
        trainer.fit()
        if failed.exists():
            found = json.loads(failed.read_text())
            raise getattr(errors, found["kind"])(found["text"])
    except AudiogenError:
        raise
    except Exception as error:
        what = " ".join(str(error).split())[:300]
        raise AudiogenError(
            f"{out}: Ray could not finish the training ({what}); what was saved stays, and the same call continues"
        ) from error
    finally:
        shutil.rmtree(storage, ignore_errors=True)
        with suppress(OSError):  # not empty: a run was begun
            for parent in made:
                parent.rmdir()
    return load_run(out)


def _train(config: dict[str, Any]) -> None:
    """Train in a process that Ray has started. Lost processes are Ray's to replace; other errors would come again."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("audiogen").setLevel(logging.INFO)
    try:
        train_here(**config["given"])
    except RankError:
        raise
    except ReportedElsewhere:
        end = time.monotonic() + REPORT_SECONDS
        while not config["failed"].exists():
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
    except AudiogenError as error:
        kind = type(error).__name__
        found = {"kind": kind if hasattr(errors, kind) else "AudiogenError", "text": str(error)}
        config["failed"].write_text(json.dumps(found))
