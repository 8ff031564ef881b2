"""Write what others need of a run into a folder: no recordings, no names of files, no caches, no checkpoints."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..frontends import CONFIG_FILE
from ..utils.files import atomic_write_json, atomic_write_text, check_holds_config
from ..utils.json_files import LISTS, SETTINGS, read_json
from .card import SAMPLES, CardSample, write_card
from .folder import read_stages

CARD_FILE = "README.md"
#: The files of a run, or of one of its stages, that others need. The first three are needed to generate.
RUN_FILES = (CONFIG_FILE, "frontend.safetensors", "model.safetensors", "split.json", "conditions.json")
HUB_FILES = (*RUN_FILES, CARD_FILE)
NEEDED = 3
#: Maximum number of samples of each kind.
MOST_SAMPLES = 4


def write_published(folder: Path, out: Path, license: str | None = None, name: str | None = None) -> None:
    """Copy a run, with a model card and a few generated samples, into a folder that may be given to others.

    split.json keeps the content hashes of the recordings, by which labels are found, but not their names. The card is
    README.md of the run folder with its generated part renewed.

    Args:
        folder: the run folder.
        out: the folder to write to, which may hold a run of the same kind already.
        license: identifier of a licence for the card; None for that of an earlier card, or "unknown".
        name: "OWNER/NAME" on the hub, for the card; None if it is not meant for the hub.

    Raises:
        RunError: the folder is incomplete or damaged, or both folders are the same.
    """
    check_holds_config(folder)
    if out.resolve() == folder.resolve():
        raise RunError(f"{out}: is the folder of the run itself; choose another one")
    stages = read_stages(folder)
    places = [folder / stage for stage in stages] or [folder]
    for place in places:
        for file in RUN_FILES[:NEEDED]:
            if not (place / file).is_file():
                raise RunError(f"{place / file}: is not there, so the run can't be given away; continue its training")
    out.mkdir(parents=True, exist_ok=True)
    if stages:
        shutil.copyfile(folder / CONFIG_FILE, out / CONFIG_FILE)
    for place in places:
        to = out / place.name if stages else out
        to.mkdir(exist_ok=True)
        for file in RUN_FILES:
            if file == "split.json":
                if (place / file).exists():
                    atomic_write_json(to / file, _without_names(place / file))
            elif (place / file).is_file():
                shutil.copyfile(place / file, to / file)
    samples = find_samples(places[-1])
    if samples:
        (out / SAMPLES).mkdir(exist_ok=True)
    for sample in samples:
        shutil.copyfile(sample.path, out / SAMPLES / sample.path.name)
    card = write_card(folder, places, samples, license, name)
    atomic_write_text(out / CARD_FILE, card)


def find_samples(folder: Path) -> list[CardSample]:
    """Return a few generated sounds of a run, none of which contains a recording: not those after a prompt."""
    found: dict[str, list[CardSample]] = {"generated": [], "asked": []}
    for path in sorted((folder / SAMPLES).glob("*.wav")):
        try:
            notes = read_json(path.with_suffix(".json"), RunError, "remove it", SETTINGS)
        except (FileNotFoundError, RunError):
            continue
        if isinstance(notes, dict) and notes.get("kind") in found and notes.get("prompt") is None:
            asked = notes.get("conditions")
            words = {str(k): str(v) for k, v in asked.items()} if isinstance(asked, dict) else {}
            found[notes["kind"]].append(CardSample(path, notes.get("seed"), words))
    found["asked"].sort(key=lambda sample: str(sample.seed))  # one of each value rather than several of the first
    return [sample for kind in found.values() for sample in kind[:MOST_SAMPLES]]


def _without_names(path: Path) -> dict[str, Any]:
    """Return the contents of split.json with hashes in place of the names of files and of the cache."""
    values = read_json(path, RunError, "restore it from a backup", LISTS)
    try:
        for side in ("train", "held_out"):
            for part in values[side]:
                suffix = re.search(r"\.\w{1,5}$", part["file"]["path"])
                part["file"] |= {"path": part["file"]["sha256"][:16] + (suffix[0] if suffix else ""), "note": ""}
    except (LookupError, TypeError) as error:
        raise RunError(f"{path}: is damaged ({json.dumps(str(error))}); restore it from a backup") from error
    return {**values, "cache": "cache"}
