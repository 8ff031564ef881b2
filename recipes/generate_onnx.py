"""Generate sound from an exported run with onnxruntime and numpy alone.

audiogen export runs/mine exported
python recipes/generate_onnx.py exported new.wav --seconds 4 --seed 0 --condition instrument=2

A condition is the number that exported/export.json describes; what is not named is "not given".
"""

import argparse
import json
import wave
from pathlib import Path

import numpy as np
import onnxruntime


def generate(folder, seconds, conditions, random, temperature=None):
    """Return sound (N,) in [-1, 1], and its sample rate. `random` is a numpy.random.Generator."""
    about = json.loads(Path(folder, "export.json").read_text())
    graphs = {name: Session(folder, graph) for name, graph in about["graphs"].items() if name != "encode"}
    rate, (K, hole), pattern = about["sample_rate"], (about["channels"], about["codebook_size"]), about["pattern"]
    sampling = about["sampling"] | ({} if temperature is None else {"temperature": temperature})
    num_frames = -(-round(seconds * rate) // about["hop_length"])
    x, offsets, stride = (
        np.zeros((K, num_frames), "float32" if hole is None else "int64"),
        pattern["offsets"],
        pattern["stride"],
    )
    previous = np.zeros((1, K, 1), x.dtype)
    for step in range(stride * (num_frames - 1) + max(offsets) + 1):
        inputs = {"step": [step], "previous": previous, "temperature": [sampling["temperature"]]}
        if "conditions" in graphs:  # the vector that they add in the frame that this step begins or continues
            values = condition_values(about, conditions, step // stride, num_frames)
            inputs["added"] = graphs["conditions"](**values)["added"]
        if hole is None:
            inputs["component"] = random.random((1, 1))
            inputs["noise"] = random.standard_normal(graphs["step"].inputs["noise"]["shape"])
            previous = graphs["step"](**inputs)["frame"]
            x[:, step] = previous[0, :, 0]
            continue
        logits, previous = graphs["step"](**inputs)["logits"], np.full((1, K, 1), hole)
        for k, uniform in enumerate(random.random(K)):  # row k of frame t stands at step offsets[k] + stride t
            t, rest = divmod(step - offsets[k], stride)
            if rest == 0 and 0 <= t < num_frames:
                x[k, t] = previous[0, k, 0] = draw(logits[0, k], sampling, uniform)
    return decode(graphs["decode"], x, random)[: round(seconds * rate)].clip(-1, 1), rate


def condition_values(about, given, frame, num_frames):
    """Return the values (1, F, 1) of all conditions in a frame; NaN is "not given"."""
    values = {}
    for name, what in about["graphs"]["conditions"]["inputs"].items():
        value = given.get(name, np.nan)
        if about["conditions"][name]["kind"] == "position" and name not in given:
            value = [frame, num_frames - 1 - frame]  # of a sound that fills the seconds
        values[name] = np.broadcast_to(np.reshape(value, (1, -1, 1)), what["shape"])
    return values


def draw(logits, sampling, uniform):
    """Draw a code: temperature, top-k, top-p and min-p, then the inverse of the cumulative distribution."""
    if sampling["temperature"] == 0:
        return int(logits.argmax())
    p = np.exp((logits - logits.max()).astype("float64") / sampling["temperature"])
    order = np.argsort(-p, kind="stable")
    p[order[sampling["top_k"] or len(p) :]] = 0
    ranked = p[order] / p.sum()
    p[order[np.cumsum(ranked) - ranked >= (sampling["top_p"] or 2)]] = 0
    p[p < (sampling["min_p"] or 0) * p.max()] = 0
    return int(np.searchsorted(p.cumsum(), uniform * p.sum(), side="right"))


def decode(session, x, random):
    """Decode (C, T) to sound (N,), all at once or block by block; the last frame is repeated after the end."""
    frames, ahead = session.about.get("frames", x.shape[1]), session.about.get("ahead", 0)
    pieces = []
    for begin in range(0, x.shape[1], frames):
        window = x[:, np.arange(begin, begin + frames + ahead).clip(max=x.shape[1] - 1)]
        noise = random.random(session.inputs["noise"]["shape"]) if "noise" in session.inputs else None
        pieces.append(session(x=window[None], noise=noise)["wav"][0, 0])
    return np.concatenate(pieces)


class Session:
    """A graph that passes its state on from call to call."""

    def __init__(self, folder, about):
        self.about, self.inputs = about, about["inputs"]
        self.session = onnxruntime.InferenceSession(str(Path(folder, about["file"])))
        self.used = [value.name for value in self.session.get_inputs()]
        self.state = {name: np.zeros(self.inputs[name]["shape"]) for name in about["state"]}

    def __call__(self, **inputs):
        inputs |= self.state
        made = self.session.run(
            self.about["outputs"], {name: np.asarray(inputs[name], self.inputs[name]["dtype"]) for name in self.used}
        )
        made = dict(zip(self.about["outputs"], made, strict=True))
        self.state = {name: made[follows] for name, follows in self.about["state"].items()}
        return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("out")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--condition", action="append", default=[], metavar="NAME=NUMBER")
    given = parser.parse_args()
    asked = {name: float(value) for name, _, value in (word.partition("=") for word in given.condition)}
    sound, rate = generate(given.folder, given.seconds, asked, np.random.default_rng(given.seed), given.temperature)
    with wave.open(given.out, "wb") as file:
        file.setparams((1, 2, rate, len(sound), "NONE", ""))
        file.writeframes((32767 * sound).round().astype("<i2").tobytes())
