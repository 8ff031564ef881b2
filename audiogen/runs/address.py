"""Addresses of runs on the Hugging Face hub: hf://OWNER/NAME or hf://OWNER/NAME@REVISION."""

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError

#: Owner and name, as the hub allows them: letters, digits, - and _ and ., at most 96 characters.
PART = r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9_])?"
ADDRESS = re.compile(rf"hf:/+({PART}/{PART})(?:@([\w./-]{{1,200}}))?", re.ASCII)


@dataclass(frozen=True)
class Address:
    """The address of a run on the hub.

    Attributes:
        name: "OWNER/NAME".
        revision: a branch, a tag or a commit; None for the newest version.
    """

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.name}" + (f"@{self.revision}" if self.revision else "")


def is_address(run: str | Path) -> bool:
    """Return whether this is an address on the hub, not a folder."""
    return _text(run).startswith("hf:/")


def _text(run: str | Path) -> str:
    return run.as_posix() if isinstance(run, Path) else run  # Path makes one slash of two


def parse_address(text: str | Path) -> Address:
    """Parse an address.

    Raises:
        ConfigError: it is malformed.

    Example:
        >>> parse_address("hf://me/drums@v1")
        Address(name='me/drums', revision='v1')
    """
    found = ADDRESS.fullmatch(_text(text))
    if not found or ".." in _text(text) or "--" in found[1]:
        raise ConfigError(f"{text}: is no address on the hub; write hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    return Address(found[1], found[2])


def check_name(name: str) -> str:
    """Return the "OWNER/NAME" of a repository on the hub.

    Raises:
        ConfigError: it is malformed.
    """
    try:
        address = parse_address(name if is_address(name) else f"hf://{name}")
    except ConfigError:
        address = Address("", "wrong")
    if address.revision is not None:
        raise ConfigError(f"{name}: is no name on the hub; write OWNER/NAME, such as me/drums")
    return address.name
