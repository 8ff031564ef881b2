"""Run a notebook, and keep its output in little space."""

import base64
import importlib
import io
import re
import tempfile
from pathlib import Path

from PIL import Image

from ..audio.io import audio_info, read_audio, write_audio
from ..errors import AudiogenError
from ..listen.html import Html
from ..utils.files import atomic_write_text


def execute_notebook(path: str | Path) -> Path:
    """Run a notebook where it lies, and store its output in it, with pictures and sounds in less space.

    Needs nbclient, nbformat and ipykernel.

    Raises:
        AudiogenError: a package is missing, or a cell failed.
    """
    try:
        client, form = (importlib.import_module(name) for name in ("nbclient", "nbformat"))
    except ImportError as error:
        raise AudiogenError("running notebooks needs: pip install nbclient nbformat ipykernel") from error
    notebook = form.read(str(path), as_version=4)
    folder = {"metadata": {"path": str(Path(path).parent)}}
    try:
        client.NotebookClient(notebook, timeout=None, kernel_name="python3", resources=folder).execute()
    except client.exceptions.CellExecutionError as error:
        raise AudiogenError(f"{path}: a cell failed: {error}") from error
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
        if "outputs" in cell:  # without warnings, which name paths of this machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            if "text/html" in output.get("data", {}):
                output["data"] = {"text/html": compact(output["data"]["text/html"])}
    atomic_write_text(path, form.writes(notebook) + "\n")
    return Path(path)


def compact(html: Html) -> Html:
    """Store the PNG pictures of HTML as WebP, and its mono WAV sounds as FLAC, which loses nothing."""

    def picture(found: re.Match) -> str:
        buffer, image = io.BytesIO(), Image.open(io.BytesIO(base64.b64decode(found[1])))
        few = image.mode == "P"  # a spectrogram, which WebP keeps exactly
        image.convert("RGB").save(buffer, "WEBP", lossless=few, quality=100 if few else 80, method=6)
        return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"

    def sound(found: re.Match) -> str:
        with tempfile.TemporaryDirectory() as folder:
            wav, flac = Path(folder, "a.wav"), Path(folder, "a.flac")
            wav.write_bytes(base64.b64decode(found[1]))
            if audio_info(wav).num_channels > 1:
                return found[0]
            write_audio(flac, read_audio(wav), audio_info(wav).sample_rate)
            return f"data:audio/flac;base64,{base64.b64encode(flac.read_bytes()).decode()}"

    html = re.sub("data:image/png;base64,([A-Za-z0-9+/=]+)", picture, html)
    return re.sub("data:audio/wav;base64,([A-Za-z0-9+/=]+)", sound, html)
