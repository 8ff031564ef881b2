"""Report on installed packages and devices."""

import importlib
import os
import platform
import shutil

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import __version__
from ..errors import AudiogenError
from ..utils.devices import usable_cores
from ..utils.installation import TORCH_PAIR, load_torchaudio, package_version

PACKAGES = (
    "torch",
    "torchaudio",
    "numpy",
    "soundfile",
    "av",
    "soxr",
    "librosa",
    "numba",
    "safetensors",
    "filelock",
    "typer",
    "rich",
    "tqdm",
    "matplotlib",
    "pillow",
)
OPTIONAL = ("tensorboard", "wandb", "pesq", "pystoi")


def check_setup(console: Console) -> None:
    """Print versions and devices, and a warning for everything that will not work."""
    table = _table("installed")
    table.add_row("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    table.add_row("audiogen", __version__)
    versions = {name: package_version(name) for name in (*PACKAGES, *OPTIONAL)}
    versions["torch"] = torch.__version__  # includes the build, which package metadata may omit
    for name, found in versions.items():
        table.add_row(name, found or ("not installed (optional)" if name in OPTIONAL else Text("not installed", "red")))
    table.add_row("libsndfile", _libsndfile())
    console.print(table, soft_wrap=False)
    for warning in setup_warnings(versions):
        console.print(Text.assemble(("warning:", "yellow"), f" {warning}"))

    # Imported after the warnings, since they may import what is missing.
    from ..commands.defaults import resolve_precision
    from ..utils.devices import choose_device

    device, cpu = choose_device("auto"), torch.device("cpu")
    table = _table("devices")
    table.add_row("CPU cores", f"{usable_cores()} usable of {os.cpu_count()}")
    table.add_row("torch threads", str(torch.get_num_threads()))
    in_hardware = resolve_precision("auto", cpu) == "bf16"
    table.add_row("bfloat16 on the CPU", "in hardware" if in_hardware else "not in hardware")
    for row in _gpus():
        table.add_row(*row)
    table.add_row("--device auto", f"{device.type}, training in {resolve_precision('auto', device)}")
    console.print(table, soft_wrap=False)


def setup_warnings(versions: dict[str, str | None]) -> list[str]:
    """Return one sentence for each package that is missing or does not fit.

    Args:
        versions: version of each package by name; None if it is not installed.
    """
    warnings = [
        f"{name} is not installed; type: pip install {name}"
        for name in PACKAGES
        if name not in TORCH_PAIR and not versions.get(name)
    ]
    try:
        load_torchaudio()
    except AudiogenError as error:
        warnings.append(f"{error} (needed to train codecs and vocoders, and to resample on a GPU)")
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


def _libsndfile() -> str | Text:
    try:
        return importlib.import_module("soundfile").__libsndfile_version__
    except (ImportError, OSError) as error:
        return Text.assemble(("can't be loaded", "red"), f" ({error})")


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table
