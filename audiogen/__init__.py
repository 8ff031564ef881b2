"""audiogen: from a folder of WAVs to a generative model that you can listen to.

frontend = audiogen.load_frontend("mulaw", sample_rate=16000)
codes = frontend.encode(wav)                        # (B, 1, N) -> (B, K, T)
run = audiogen.load_run("runs/x")
wavs = run.generate(seconds=4, num=4, seed=0)       # (4, C, N)
"""

import os

from .utils.lazy import lazy_names

__version__ = "0.1.0"

# Read when torch is loaded. By default its threads spin while waiting for each other; if another program is busy, a
# training step on two threads then takes three to six times as long. Passive waiting costs almost nothing.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The module of each public name, which is imported when the name is first used: `import audiogen` is fast.
_HOMES = {
    "AudiogenError": "errors",
    "AudioReadError": "errors",
    "AudioFile": "audio.io",
    "audio_info": "audio.decoder",
    "read_audio": "audio.io",
    "read_blocks": "audio.io",
    "resample": "audio.io",
    "write_audio": "audio.io",
    "FrameSpec": "spec",
    "TokenSpec": "spec",
    "FRONTENDS": "frontends",
    "load_frontend": "frontends",
    "save_frontend": "frontends",
    "BACKBONES": "models.backbones",
    "PATTERNS": "models.patterns",
    "Sampling": "models.sampling",
    "SequenceModel": "models.sequence_model",
    "Batch": "models.batch",
    "EncodedCache": "data",
    "collate": "utils.padding",
    "encode_folder": "data",
    "scan": "data",
    "load_run": "runs.run",
    "Run": "runs.run",
    "export_run": "runs.export",
    "train": "commands.train",
    "Callback": "runs.callbacks",
    "tokenize": "commands.tokenize",
    "evaluate_folder": "evaluation.report",
    "write_page": "listen",
}

__all__ = ["__version__", *_HOMES]

__getattr__ = lazy_names(globals(), _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
