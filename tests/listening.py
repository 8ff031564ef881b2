"""Made-up run folders, and pages read back as a browser would read them."""

import base64
import io
import json
import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from audiogen.listen.spectrograms import SHADES

RATE = 8000


def tone(seconds: float, hertz: float = 440, level: float = 0.5, rate: int = RATE) -> np.ndarray:
    return level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def put(run: Path, name: str, wav: np.ndarray | None = None, rate: int = RATE, **notes) -> Path:
    """A sample of a run; without notes, no .json."""
    path = run / "samples" / f"{name}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(0.5) if wav is None else wav, rate, "PCM_16")
    if notes:
        empty = dict.fromkeys(
            ["source", "seed", "sampling", "precision", "prompt", "prompt_seconds", "step", "checkpoint"]
        )
        path.with_suffix(".json").write_text(json.dumps(empty | notes))
    return path


def make_run(run: Path, frontend: str = "mulaw", rate: int = RATE, metrics: bool = True, samples: bool = True) -> Path:
    run.mkdir(parents=True)
    (run / "config.json").write_text(
        json.dumps(
            {
                "format": 1,
                "frontend": {"kind": frontend, "sample_rate": rate},
                "backbone": {"kind": "gpt", "dim": 96},
                "pattern": {"kind": "parallel"},
                "data": {"held_out": 0.1},
                "training": {"minutes": 3.0},
            }
        )
    )
    if metrics:
        events = [{"event": "baselines", "uniform": 8.0, "unigram": 6.5, "bigram": 5.25, "unit": "bits"}]
        for step in range(0, 110, 10):
            loss = 4 + 4 * math.exp(-step / 30)
            events.append(
                {
                    "event": "train",
                    "step": step,
                    "seconds": float(step),
                    "loss": loss,
                    "learning_rate": 1e-3,
                    "grad_norm": 1.0,
                }
            )
            if step in (50, 100):
                events.append(
                    {
                        "event": "held_out",
                        "step": step,
                        "seconds": float(step),
                        "loss": loss + 0.1,
                        "best": True,
                        "bits_per_second": (loss + 0.1) * rate,
                        "bits_per_sample": loss + 0.1,
                    }
                )
        (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    if samples:
        for i in range(2):
            for kind in ("original", "round-trip"):
                put(run, f"{kind}-{i}", tone(0.5, 300 + 100 * i, rate=rate), rate, kind=kind, source=f"a{i}.wav")
        put(
            run,
            "step-100-0",
            tone(1.25, rate=rate),
            rate,
            kind="generated",
            step=100,
            seed=7,
            sampling={"temperature": 0.9, "top_k": 50, "top_p": None, "min_p": None},
        )
        put(
            run,
            "step-100-1",
            tone(1.0, rate=rate),
            rate,
            kind="generated",
            step=100,
            seed=8,
            prompt="/x/a0.wav",
            prompt_seconds=0.25,
        )
        put(run, "step-50-0", tone(0.75, rate=rate), rate, kind="generated", step=50, seed=7)
    return run


class Page(HTMLParser):
    """What a browser would find: elements with attributes, text by section, and well-formed nesting."""

    VOID = {"meta", "link", "img", "br", "path", "wbr", "input"}

    def __init__(self, path: Path):
        super().__init__()
        self.elements, self.texts, self.open, self.section = [], {}, [], ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag == "section":
            self.section = attributes["id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "section":
            self.section = ""

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.setdefault(self.section, []).append(data)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, *sections: str) -> str:
        return " ".join(" ".join(self.texts.get(s, [])) for s in sections or self.texts)

    def sounds(self) -> list[bytes]:
        return [base64.b64decode(a["src"].removeprefix("data:audio/wav;base64,")) for a in self.all("audio")]

    def pictures(self) -> list[np.ndarray]:
        """The spectrograms as numbers from 0 (darkest) up, low frequencies first."""
        images = [
            Image.open(io.BytesIO(base64.b64decode(a["src"].removeprefix("data:image/png;base64,"))))
            for a in self.all("img")
        ]
        assert all(image.getpalette()[: 3 * len(SHADES)] == SHADES.flatten().tolist() for image in images)
        return [np.array(image)[::-1].astype(int) for image in images]
