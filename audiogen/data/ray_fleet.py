"""Encode the shards of a folder on a Ray cluster: `audiogen tokenize FOLDER OUT --ray`."""

import importlib
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tqdm import tqdm

from .. import __version__
from ..errors import AudiogenError, ConfigError
from .fleet import MOST_DEATHS, Schedule
from .shards import EncodedShard, Job, Shard, encode_shard

#: Seconds to wait for news before looking for more machines and for stragglers.
PATIENCE = 1.0
#: Seconds in which the head of a cluster answers.
ANSWER_SECONDS = 20.0


def encode_shards_on_ray(job: Job, shards: Sequence[Shard], address: str, progress: bool = True) -> list[EncodedShard]:
    """Encode shards by actors: one per CPU of the cluster, or one per GPU for a front-end on a GPU.

    All machines must see the folder of the sound files and that of the shards under the same paths. Machines may join
    and leave at any time. The result is that of `encode_shards`.

    Args:
        job: what to encode with.
        shards: from `plan_shards`; those that are done are left as they are.
        address: of the cluster, "HOST:PORT"; "auto" for the one that runs on this machine, or else a new one here.
        progress: show a progress bar on a terminal.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
        AudiogenError: a machine can't encode, the disk is full, or actors end again and again.
    """
    ray, schedule = import_ray(), Schedule(job, shards)
    own = not ray.is_initialized()
    if own:
        _connect(ray, address)
    try:
        total = sum(len(shard.files) for shard in shards)
        with tqdm(total=total, unit="file", desc="encoding", disable=None if progress else True) as bar:
            _Fleet(ray, job, schedule).run(lambda: bar.update(schedule.num_files - bar.n))
    finally:
        if own:
            ray.shutdown()
    return schedule.results()


def import_ray() -> ModuleType:
    """Import Ray, which is an extra.

    Raises:
        ConfigError: it is not installed.
    """
    # Set before Ray is loaded: it would report its use.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise ConfigError("--ray: needs the package ray: pip install 'ray[train]>=2.60,<3'") from None


def check_cluster(address: str) -> None:
    """Check that something answers at the address of a cluster, for which Ray itself waits for minutes.

    Raises:
        ConfigError: Ray is not installed, or nothing answers.
    """
    import_ray()
    place = re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d+)", address)
    try:
        if place is not None:
            socket.create_connection((place[1], int(place[2])), ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> ConfigError:
    what = " ".join(str(error).split())[:200]
    return ConfigError(
        f"--ray: there is no cluster at {address!r} ({what}); give the address that ray start --head printed; if it "
        "said that token authentication is enabled, set RAY_AUTH_MODE=token"
    )


def _connect(ray: Any, address: str) -> None:
    check_cluster(address)
    try:
        ray.init(None if address == "auto" else address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, error) from error


class Encoder:
    """The actor: a process somewhere in the cluster that encodes shards."""

    def __init__(self, job: Job, device: str):
        torch.set_num_threads(1)
        self.job = replace(job, frontend=job.frontend.to(device))

    def check(self) -> str:
        """Say what keeps this process from encoding; usually nothing."""
        for folder in (self.job.folder, self.job.out):
            if not folder.is_dir():
                return (
                    f"{folder}: is not to be seen on {socket.gethostname()}; choose folders on a disk that all "
                    "machines share"
                )
        return ""

    def encode(self, shard: Shard, skip: dict[int, str] | None, trace: Path) -> EncodedShard | AudiogenError:
        """Encode a shard. The place of the file that is being encoded is kept in the file `trace`."""
        handle = os.open(trace, os.O_CREAT | os.O_WRONLY, 0o666)
        try:
            return encode_shard(self.job, shard, skip, lambda place: _write(handle, place))
        except AudiogenError as error:
            return error
        finally:  # not if the process is killed
            os.close(handle)
            trace.unlink(missing_ok=True)


def _write(handle: int, place: int) -> None:
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, place.to_bytes(8, "little"))


def _read(trace: Path) -> int | None:
    try:
        data = trace.read_bytes()
        trace.unlink()
    except OSError:
        return None
    return int.from_bytes(data, "little") if len(data) == 8 else None


@dataclass
class _Member:
    actor: Any
    call: Any = None  # what it is doing, as Ray's reference
    shard: Shard | None = None
    trace: Path = Path()
    ready: bool = False


class _Fleet:
    def __init__(self, ray: Any, job: Job, schedule: Schedule):
        on_gpu = job.frontend.device.type == "cuda"
        self.ray, self.schedule, self.out = ray, schedule, job.out.absolute()
        self.resource = "GPU" if on_gpu else "CPU"
        self.device = str(torch.device("cuda:0") if on_gpu else job.frontend.device)  # Ray shows each actor its GPU
        self.job = ray.put(
            replace(job, folder=job.folder.absolute(), out=self.out, frontend=deepcopy(job.frontend).cpu())
        )
        self.actor = ray.remote(num_cpus=1, num_gpus=int(on_gpu), scheduling_strategy="SPREAD")(Encoder)
        self.members: list[_Member] = []
        self.failures = 0

    def run(self, show: Callable[[], object]) -> None:
        """Encode all shards."""
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            while self.schedule.num_left:
                self._recruit()
                for member in self.members:
                    if member.ready and member.call is None and (shard := self.schedule.next()) is not None:
                        self._assign(member, shard)
                busy = {member.call: member for member in self.members if member.call is not None}
                if busy:
                    done, _ = self.ray.wait(list(busy), num_returns=1, timeout=PATIENCE)
                else:
                    done = time.sleep(PATIENCE) or []
                for call in done:
                    self._receive(busy[call])
                show()
        finally:
            for member in self.members:
                self.ray.kill(member.actor)

    def _recruit(self) -> None:
        """Start an actor for each CPU or GPU that has none; those of machines that were lost are gone."""
        places = int(self.ray.cluster_resources().get(self.resource, 0))
        if places == 0 and not self.members:
            raise ConfigError(f"--ray: the cluster has no {self.resource}; add a machine, or choose another --device")
        for _ in range(len(self.members), min(places, self.schedule.num_left)):
            actor = self.actor.remote(self.job, self.device)
            self.members.append(_Member(actor, actor.check.remote()))

    def _assign(self, member: _Member, shard: Shard) -> None:
        # Named like a temporary file, so that whoever encodes into this folder next removes it.
        member.shard, member.trace = shard, self.out / f".{shard.name}-{secrets.token_hex(8)}.tmp.place"
        member.call = member.actor.encode.remote(shard, self.schedule.skip.get(shard.name), member.trace)

    def _receive(self, member: _Member) -> None:
        call, shard, member.call, member.shard = member.call, member.shard, None, None
        try:
            result = self.ray.get(call)
        except self.ray.exceptions.RayError as error:  # lost with its machine, killed, or an error of the device
            self.members.remove(member)
            self.ray.kill(member.actor)
            if shard is not None:
                self.schedule.fail(shard, _read(member.trace), type(error).__name__)
                return
            self.failures += 1
            if self.failures > MOST_DEATHS:
                what = " ".join(str(error).split())[-300:]
                raise AudiogenError(
                    f"--ray: processes of the cluster can't begin ({what}); install audiogen {__version__} on each "
                    "machine"
                ) from error
            return
        if isinstance(result, AudiogenError):
            raise result
        if isinstance(result, EncodedShard):
            self.schedule.finish(result)
        elif result:
            raise AudiogenError(result)
        else:
            member.ready, self.failures = True, 0
