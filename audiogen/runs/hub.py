"""Runs on the Hugging Face hub: download one by its address, or push one with its model card.

    hf://OWNER/NAME            the newest version
    hf://OWNER/NAME@REVISION   a branch, a tag or a commit

Only files of known names are transferred, no code. The package `huggingface_hub` caches what it downloads, so a run
that was loaded once also loads without a network.
"""

import importlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

from ..errors import HubError, RunError
from .address import Address, check_name
from .folder import read_stages
from .published import CARD_FILE, HUB_FILES, RUN_FILES, write_published

log = logging.getLogger("audiogen")


def fetch_run(address: Address) -> tuple[Path, Address]:
    """Download a run, or find it in the cache of `huggingface_hub` if there is no network.

    Returns:
        Its folder in the cache, and the address with the commit in place of a branch or a tag.

    Raises:
        HubError: huggingface_hub is not installed, the hub has no such run, or it can't be reached and the run is not
            in the cache.
    """
    hub = _load()
    with _in_one_line(str(address)):
        folder = Path(hub.snapshot_download(address.name, revision=address.revision, allow_patterns=list(HUB_FILES)))
        pinned = Address(address.name, folder.name)
        if not (folder / "config.json").exists():
            raise HubError(f"{address}: holds no run of audiogen, since it has no config.json; check the address")
        if stages := read_stages(folder):
            inside = [f"{stage}/{name}" for stage in stages for name in RUN_FILES]
            hub.snapshot_download(address.name, revision=pinned.revision, allow_patterns=inside)
    log.info("%s: its commit is %s; hf://%s@%s stays the same", address, folder.name, address.name, folder.name[:12])
    return folder, pinned


def push_run(folder: Path, name: str, license: str | None = None, private: bool = False) -> Address:
    """Push a run to the hub, with its model card and a few samples; create the repository if there is none.

    What was pushed before and does not belong to the run any more is removed, in the same commit. For what is pushed,
    see `write_published`. The card is also written to README.md of a folder that was trained here, so that you can edit
    it and push again.

    Args:
        folder: the run folder.
        name: "OWNER/NAME".
        license: identifier of a licence for the card, such as "cc-by-4.0"; None for that of the card in the folder, or
            "unknown".
        private: whether a new repository is private.

    Returns:
        The address of the commit.

    Raises:
        HubError: huggingface_hub is not installed, nobody is logged in, or the hub refuses or can't be reached.
        RunError: the folder is incomplete or damaged.
        ConfigError: the name is malformed.
    """
    name, hub = check_name(name), _load()
    with tempfile.TemporaryDirectory(prefix="audiogen-", ignore_cleanup_errors=True) as temporary:
        write_published(folder, Path(temporary), license, name)
        with _in_one_line(f"hf://{name}"):
            if hub.get_token() is None:
                raise HubError("the hub: nobody is logged in; type: hf auth login (or set HF_TOKEN)")
            api = hub.HfApi(library_name="audiogen")
            api.create_repo(name, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=name,
                folder_path=temporary,
                commit_message="Push a run of audiogen",
                delete_patterns=[*RUN_FILES, *(f"*/{file}" for file in RUN_FILES), "samples/*"],
            )
        if (folder / "metrics.jsonl").exists():  # trained here, so it is not one that lies in the cache
            with suppress(OSError):
                shutil.copyfile(Path(temporary, CARD_FILE), folder / CARD_FILE)
    return Address(name, commit.oid)


def _load() -> ModuleType:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise HubError(
            f"the hub: needs huggingface_hub ({error.name} can't be imported); pip install huggingface_hub"
        ) from error


@contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into a HubError that says what to do."""
    errors = importlib.import_module("huggingface_hub.errors")
    try:
        yield
    except (HubError, RunError):
        raise
    except errors.GatedRepoError as error:
        raise HubError(f"{what}: its owner grants access on request; ask on its page, then: hf auth login") from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"{what}: the hub has no such repository, or it is private; check the name, or log in: hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{what}: the repository has no such branch, tag or commit; check what follows the @") from error
    except errors.LocalEntryNotFoundError as error:
        raise HubError(
            f"{what}: the hub can't be reached, and the run is not in the cache; check the network"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        remedy = {
            401: "you are not logged in, or the token is not valid; type: hf auth login",
            403: "your token may not write there; check the owner's name, or make a token that may write",
        }.get(status, "try again later")
        raise HubError(f"{what}: the hub answers {status}; {remedy}") from error
    except errors.HFValidationError as error:
        raise HubError(f"{what}: {' '.join(str(error).split())[:200]}; check the name") from error
    except Exception as error:  # of the HTTP client, whose package depends on the version of huggingface_hub
        network = type(error).__module__.partition(".")[0].startswith(("httpx", "httpcore", "requests"))
        if not network and not isinstance(error, OSError | errors.OfflineModeIsEnabled):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if "xet" in reason and "404" in reason:  # huggingface_hub uploads by way of Xet where its package is installed
            raise HubError(f"{what}: this hub has no Xet storage; set HF_HUB_DISABLE_XET=1") from error
        raise HubError(f"{what}: the hub can't be reached ({reason}); check the network") from error
