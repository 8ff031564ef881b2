"""What is installed and what it runs on."""

import importlib
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import __version__
from ..errors import AudiogenError

PACKAGES = (
    "torch",
    "torchaudio",
    "numpy",
    "soundfile",
    "soxr",
    "librosa",
    "numba",
    "safetensors",
    "typer",
    "rich",
    "tqdm",
    "matplotlib",
)
OPTIONAL = ("tensorboard", "pesq", "pystoi")
MEND = "install the pair anew: pip install --force-reinstall torch==2.11.0 torchaudio==2.11.0"


def check_setup(console: Console) -> None:
    """Prints versions and devices, and a warning for each thing that will not work.

    Raises:
        AudiogenError: torchaudio can't be loaded, without which nothing else can.
    """
    table = _table("installed")
    table.add_row("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    table.add_row("audiogen", __version__)
    versions = {name: _version(name) for name in (*PACKAGES, *OPTIONAL)}
    versions["torch"] = torch.__version__  # with the build, which the package's own version may leave out
    for name, found in versions.items():
        table.add_row(name, found or ("not installed (optional)" if name in OPTIONAL else Text("not installed", "red")))
    table.add_row("libsndfile", _libsndfile())
    console.print(table, soft_wrap=False)
    for warning in setup_warnings(versions):
        console.print(Text.assemble(("warning:", "yellow"), f" {warning}"))
    try:
        importlib.import_module("torchaudio")
    except (ImportError, OSError, RuntimeError) as error:
        raise AudiogenError(f"torchaudio can't be loaded ({' '.join(str(error).split())[:200]}); {MEND}") from error

    # Only now: these load torchaudio.
    from ..commands.defaults import resolve_precision
    from ..utils.devices import choose_device

    device, cpu = choose_device("auto"), torch.device("cpu")
    table = _table("devices")
    table.add_row("CPU cores", f"{_usable_cores()} usable of {os.cpu_count()}")
    table.add_row("torch threads", str(torch.get_num_threads()))
    in_hardware = resolve_precision("auto", cpu) == "bf16"
    table.add_row("bfloat16 on the CPU", "in hardware" if in_hardware else "not in hardware")
    for row in _gpus():
        table.add_row(*row)
    table.add_row("--device auto", f"{device.type}, training in {resolve_precision('auto', device)}")
    console.print(table, soft_wrap=False)


def setup_warnings(versions: dict[str, str | None]) -> list[str]:
    """What is missing or does not fit, a sentence each.

    Args:
        versions: by name of the package, None where it is not installed.
    """
    warnings = [
        f"{name} is not installed; install audiogen anew: pip install -e ."
        for name in PACKAGES
        if not versions.get(name)
    ]
    pair = [versions.get(name) for name in ("torch", "torchaudio")]
    if all(pair) and _release(pair[0]) != _release(pair[1]):
        warnings.append(f"torch {pair[0]} and torchaudio {pair[1]} are not a pair; {MEND}")
    elif all(pair) and len({_build(x) for x in pair if _build(x)}) > 1:
        warnings.append(f"torch {pair[0]} and torchaudio {pair[1]} were built for different devices; {MEND}")
    if shutil.which("nvidia-smi") and not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        warnings.append(
            f"an NVIDIA driver is installed, but this torch ({built}) can't use it; update the driver, or "
            "install a torch built for it"
        )
    return warnings


def _gpus() -> list[tuple[str, str]]:
    if not torch.cuda.is_available():
        return [("CUDA", "no GPU that torch can use")]
    rows = []
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        bf16 = "bfloat16" if properties.major >= 8 else "no bfloat16"
        rows.append(
            (
                f"cuda:{i}",
                f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}, CUDA {torch.version.cuda}",
            )
        )
    return rows


def _usable_cores() -> int:
    # A container or a scheduler may leave fewer than there are; not every system can tell.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _libsndfile() -> str | Text:
    try:
        return importlib.import_module("soundfile").__libsndfile_version__
    except (ImportError, OSError) as error:
        return Text.assemble(("can't be loaded", "red"), f" ({error})")


def _release(text: str) -> list[str]:
    return text.split("+")[0].split(".")[:2]


def _build(text: str) -> str:
    """ "2.11.0+cu130" -> "cu130"; empty where the version does not say."""
    return text.partition("+")[2]


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table
