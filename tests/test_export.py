"""Exported graphs equal what they were made of: in PyTorch, as ONNX, as programs of torch.export, and in a browser."""

import copy
import dataclasses
import functools
import http.server
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from chromium import PROGRAM, Chromium
from corpus import RATE, SOUNDING, folder_of_notes, note, tiny_frontend, tiny_settings
from tiny import BACKBONE_CASES, FLOW_FRAMES, FRAMES, SPEC_CASES, random_conditions, random_input, tiny_model
from typer.testing import CliRunner

from audiogen.audio.stereo import BANDS, StereoImage, StereoLimiter
from audiogen.cli import app
from audiogen.commands.export import export_files
from audiogen.commands.train import train
from audiogen.errors import ConfigError, ExportError
from audiogen.frontends import load_frontend
from audiogen.frontends.fourier import RealFourier
from audiogen.frontends.graphs import GriffinLimBlock, decoding_graph, encoding_graph
from audiogen.generation.generate import generate
from audiogen.models.conditioning import Text
from audiogen.models.graphs import conditions_graph, step_graph
from audiogen.models.sampling import Sampling, draw, uniforms
from audiogen.runs import export
from audiogen.runs.config import RunConfig
from audiogen.runs.export import export_run
from audiogen.runs.export_checks import following, material, start
from audiogen.runs.run import Run
from audiogen.runs.start import base_frontend
from audiogen.runs.training_config import DataConfig, TrainingConfig

RECIPE = Path(__file__).parents[1] / "recipes" / "generate_onnx.py"
#: Front-ends that are more than a function of tensors.
REFUSED = {"encodec", "bpe", "semantic"}
EXPORTED = [*(pytest.param(kind, False, id=kind) for kind in SOUNDING if kind not in REFUSED)]
EXPORTED += [pytest.param(kind, True, id=f"{kind}-vocoder") for kind in ("mel", "melvq")]


def sound(frontend, num_frames):
    """Notes one after another (1, 1, N) of whole frames."""
    hop_length, rate = frontend.spec.hop_length, frontend.spec.sample_rate
    wav = np.concatenate([note(seed, rate // 4, rate) for seed in range(8)])[: num_frames * hop_length]
    return torch.from_numpy(wav).float()[None, None]


# ---- the graphs, in PyTorch


@pytest.mark.parametrize("length", [1, 2, 3, 4, 6, 10, 12, 16, 94, 96, 256, 663, 940, 1323, 1764, 2048])
def test_the_real_fourier_transform_equals_torch_s(length):
    """Guards against bins in another order, conjugates that are none, and odd lengths, as of a codec at 44.1 kHz."""
    fourier = RealFourier(length)
    x, half = torch.randn(3, length), length // 2 + 1
    wanted = torch.fft.rfft(x.double())
    re, im = fourier(x)
    scale = length**0.5
    assert re.shape == im.shape == (3, half)
    assert torch.allclose(re.double(), wanted.real, atol=2e-6 * scale)
    assert torch.allclose(im.double(), wanted.imag, atol=2e-6 * scale)
    bins = torch.randn(3, half, dtype=torch.complex128)
    back = fourier.inverse(bins.real.float(), bins.imag.float())
    assert torch.allclose(back.double(), torch.fft.irfft(bins, n=length), atol=1e-6)


@pytest.mark.parametrize("kind, vocoder", EXPORTED)
def test_front_ends_as_graphs_equal_front_ends(kind, vocoder):
    """Guards against an edge, a level or a scale that the graph forgets, and blocks of Griffin-Lim that don't continue
    the one before."""
    frontend = tiny_frontend(kind, vocoder)
    with torch.no_grad():
        wav = sound(frontend, 100)
        x, encoded = frontend.encode(wav), encoding_graph(frontend).call(wav=wav)["x"]
        assert encoded.dtype == x.dtype and encoded.shape == x.shape
        assert torch.equal(encoded, x) if frontend.spec.discrete else torch.allclose(encoded, x, atol=1e-4)
        graph, wanted = decoding_graph(frontend), torch.cat(list(frontend.unlimited([x])), dim=2)
        made = decoded_by_blocks(graph, x) if graph.state else graph.call(x=x)["wav"]
        assert torch.allclose(made, wanted[:, :, : made.shape[2]], atol=1e-5)


def decoded_by_blocks(graph, x):
    """The sound of two blocks of Griffin-Lim."""
    block, state, pieces = graph.module, start(graph), []
    assert isinstance(block, GriffinLimBlock)
    for number in range(2):
        window = x[:, :, number * block.frames :][:, :, : block.frames + block.ahead]
        made = graph.call(x=window, **block.noise(number), **state)
        state = following(graph, made)
        pieces.append(made["wav"])
    made = torch.cat(pieces, dim=2)
    assert made.abs().max() > 0.01
    return made


def test_griffin_lim_from_the_network_as_a_graph():
    """Guards against phases that advance otherwise than in PyTorch, and a network that lacks the frames before its
    block. After more iterations rounding errors would be larger than either."""
    frontend = base_frontend(16000, griffin_lim_iterations=2)
    with torch.no_grad():
        x = frontend.encode(sound(frontend, 30))
        wanted = torch.cat(list(frontend.unlimited([x])), dim=2)
        made = decoded_by_blocks(decoding_graph(frontend), x)
    assert torch.allclose(made, wanted[:, :, : made.shape[2]], atol=1e-4)


def test_a_pure_tone_is_encoded_as_exactly_as_noise():
    """Guards against rounding errors beside a loud bin that count as sound."""
    frontend = tiny_frontend("mel")
    wav = 0.9 * torch.sin(2 * torch.pi * 1000 / RATE * torch.arange(64 * frontend.spec.hop_length))[None, None]
    with torch.no_grad():
        wanted = copy.deepcopy(frontend).double().encode(wav.double())
        assert torch.allclose(encoding_graph(frontend).call(wav=wav)["x"].double(), wanted, atol=1e-5)


@pytest.mark.parametrize("kind", sorted(REFUSED))
@pytest.mark.parametrize("graph_of", [encoding_graph, decoding_graph])
def test_front_ends_that_are_no_functions_are_refused_in_a_line(kind, graph_of):
    """Guards against a traceback from torch's exporter."""
    with pytest.raises(ExportError, match="^export: the front-end .* can be exported$"):
        graph_of(tiny_frontend(kind))


@pytest.mark.parametrize("spec, pattern", SPEC_CASES)
@pytest.mark.parametrize("kind, changes", BACKBONE_CASES)
@pytest.mark.parametrize("conditions", [False, True], ids=["plain", "conditions"])
@torch.no_grad()
def test_a_step_as_a_graph_equals_the_model(kind, changes, spec, pattern, conditions):
    """Guards against a state that does not begin with zeros, a first step that is not `bos`, holes of a pattern, what
    conditions add, and another draw from the same numbers."""
    model = tiny_model(spec, kind, pattern, conditions, **changes).float()
    graph, adding = step_graph(model), conditions_graph(model)
    x = random_input(spec, 1, 12)
    seq = model.pattern.apply(x if spec.discrete else x.float(), model.hole)
    S, head = seq.shape[2], model.head
    numbers = uniforms([3], 0, S, head.num_uniforms)
    numbers[:, 0] = head.at_start(numbers[:, 0])
    values = random_conditions(1, S) if conditions else {}
    values = {name: value.float() for name, value in values.items()}
    added = None
    if conditions:
        values["label"][:, :, 4:6] = torch.nan
        added = torch.cat(
            [adding.call(**{n: v[:, :, s : s + 1] for n, v in values.items()})["added"] for s in range(S)], 1
        )
    hidden, _ = model._hidden(seq, None, added, None)  # the whole at once
    state = start(graph)
    for step in range(S):
        given = {"step": torch.tensor([step]), "previous": seq[:, :, step - 1 : step] if step else 0 * seq[:, :, :1]}
        if conditions:
            given["added"] = added[:, step : step + 1]
        if "noise" in graph.inputs:
            normal = torch.special.ndtri(numbers[:, step]).float()
            given |= {"noise": normal[:, -graph.inputs["noise"].shape[1] :], "temperature": torch.full((1,), 0.8)}
        if "component" in graph.inputs:
            given["component"] = numbers[:, step, :1].float()
        made = graph.call(**given, **state)
        state = following(graph, made)
        if spec.discrete:
            assert torch.allclose(made["logits"], head.logits(hidden[:, step]), atol=1e-4)
        else:
            drawn = head.sample(hidden[:, step], Sampling(temperature=0.8), numbers[:, step])
            assert torch.allclose(made["frame"][:, :, 0], drawn, atol=1e-4)


@torch.no_grad()
def test_conditions_as_a_graph_equal_the_model_s():
    """Guards against values in another order, a factor that is left out, and padding of a text that counts."""
    model = tiny_model(FLOW_FRAMES, "gpt", "parallel", conditions=True).float()
    values = {name: value[:, :, :1].float() for name, value in random_conditions(1, 1).items()}
    for left_out in (None, *values):
        given = {n: torch.full_like(v, torch.nan) if n == left_out else v for n, v in values.items()}
        made = conditions_graph(model).call(**given)["added"]
        assert torch.allclose(made, model.added({n: v for n, v in values.items() if n != left_out}, 0, 1), atol=1e-6)


def test_texts_that_are_no_vectors_are_refused():
    """Guards against a graph that leaves the text out."""
    model = tiny_model(FRAMES, "gpt", "parallel", conditions=True)
    text = next(part for part in model.conditioner.parts.values() if isinstance(part, Text))
    text.serve(model.backbone.config.num_layers)
    with pytest.raises(ExportError, match="^export: with backbone.cross_attention, text"):
        conditions_graph(model)


# ---- files


def small_run(folder, kind="mel", backbone="gpt", pattern="parallel", conditions=True, vocoder=False):
    """A run that was never trained, with lively weights; nothing of it is in the folder."""
    frontend = tiny_frontend(kind, vocoder)
    spec = FLOW_FRAMES if kind == "mel" else frontend.spec  # the spec by which tiny_model chooses the head
    with pytest.MonkeyPatch.context() as patch:
        if kind == "mel":
            patch.setattr("tiny.FLOW_FRAMES", spec := frontend.spec)
        model = tiny_model(spec, backbone, pattern, conditions).float()
    parts = model.conditioner.parts if conditions else {}
    config = RunConfig(
        frontend.config,
        model.backbone.config,
        pattern,
        DataConfig(),
        TrainingConfig(),
        conditions={name: part.config for name, part in parts.items()},
        head="flow" if kind == "mel" else "density",
    )
    return Run(folder, config, frontend, model.eval(), 0)


CASES = [
    pytest.param("mel", "gpt", "parallel", True, False, id="mel-gpt-conditions"),
    pytest.param("melvq", "wavenet", "delay", False, True, id="melvq-vocoder-wavenet-delay"),
    pytest.param("codec", "mlp", "flatten", True, False, id="codec-mlp-flatten-conditions"),
    pytest.param("mulaw", "gru", "parallel", False, False, id="mulaw-gru"),
    pytest.param("pcm", "bigram", "parallel", False, False, id="pcm-bigram"),
]


@pytest.mark.parametrize("kind, backbone, pattern, conditions, vocoder", CASES)
def test_programs_of_torch_export_equal_the_run(tmp_path, kind, backbone, pattern, conditions, vocoder):
    """Guards against a graph that torch can't export, or that is another function when it is read back."""
    run = small_run(tmp_path / "run", kind, backbone, pattern, conditions, vocoder)
    made = export_run(run, tmp_path / "out", "torch")
    names = {"encode", "decode", "step", *(["conditions"] if conditions else [])}
    assert {graph.name for graph in made} == names
    assert all(graph.path.stat().st_size == graph.num_bytes for graph in made)
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert about["sample_rate"] == run.sample_rate and set(about["graphs"]) == names
    program = torch.export.load(tmp_path / "out" / "decode.pt2").module()
    if kind in ("mulaw", "pcm"):
        codes = torch.arange(16)[None, None]
        assert torch.allclose(program(codes)[0], run.frontend.decode(codes))


@pytest.mark.parametrize("kind, backbone, pattern, conditions, vocoder", CASES)
def test_onnx_generates_what_the_run_generates(tmp_path, kind, backbone, pattern, conditions, vocoder):
    """The recipe with onnxruntime and numpy alone, given the same random numbers. Guards against graphs, a description
    or a recipe of which one misunderstands the other."""
    pytest.importorskip("onnxscript"), pytest.importorskip("onnxruntime")
    run, frames, seed = small_run(tmp_path / "run", kind, backbone, pattern, conditions, vocoder), 40, 11
    made = export_run(run, tmp_path / "out")
    assert max(graph.compared.difference for graph in made) <= 1e-4
    recipe, hop_length = SimpleNamespace(**runpy.run_path(str(RECIPE))), run.frontend.spec.hop_length
    seconds = frames * hop_length / run.sample_rate
    wav, rate = recipe.generate(tmp_path / "out", seconds, {"number": 90.0}, Replay(run, seed))
    asked = {**dict.fromkeys(run.config.conditions), "number": 90.0, "position": frames} if conditions else None
    x = generate(run.model, frames, run.request(seed=seed, conditions=asked)).x
    with torch.no_grad():
        wanted = torch.cat(list(run.frontend.unlimited([x])), dim=2)[0, 0].clamp(-1, 1).numpy()
    assert rate == run.sample_rate and wav.shape == wanted.shape and np.abs(wanted).max() > 1e-3
    block = json.loads((tmp_path / "out" / "export.json").read_text())["graphs"]["decode"].get("frames", frames)
    sure = block * hop_length  # the last block of Griffin-Lim differs: nothing follows it, or the last frame again
    assert np.abs(wav - wanted)[:sure].max() < 1e-3


class Replay:
    """Gives the random numbers of audiogen's steps in the order in which the recipe asks for them."""

    def __init__(self, run, seed):
        self.run, self.seed, self.step, self.block = run, seed, 0, 0

    def numbers(self):
        numbers = uniforms([self.seed], self.step, self.step + 1, self.run.model.head.num_uniforms)[0]
        return self.run.model.head.at_start(numbers) if self.step == 0 else numbers

    def random(self, shape):
        if np.prod(shape) > 1000:  # the phases of a block
            self.block += 1
            return decoding_graph(self.run.frontend).module.noise(self.block - 1)["noise"].numpy()
        if shape == (1, 1):
            return self.numbers()[:, :1].numpy()
        self.step += 1
        return uniforms([self.seed], self.step - 1, self.step, shape)[0, 0].numpy()

    def standard_normal(self, shape):
        numbers = torch.special.ndtri(self.numbers())[:, -shape[1] :].numpy()
        self.step += 1
        return numbers


def test_held_out_frames_are_there_after_a_setting_of_decoding_was_changed(tmp_path, caplog):
    """Guards against `--set frontend.griffin_lim_iterations=8`, as docs/export.md has it, losing the held-out files."""
    corpus = folder_of_notes(tmp_path / "corpus", [RATE // 2] * 4)
    quick = [f"frontend.{name}={value}" for name, value in tiny_settings("mel").items()]
    quick += ["training.crop_frames=16", "training.sample_seconds=0.1", "training.evaluations=1"]
    quick += ["sampling.temperature=1.0", "backbone.hidden_dim=8", "backbone.context=4"]
    run = train(corpus, tmp_path / "run", frontend="mel", backbone="mlp", steps=1, overrides=quick)
    caplog.clear()
    changed = dataclasses.replace(run, frontend=load_frontend(run.folder, griffin_lim_iterations=3))
    assert torch.equal(material(changed), material(run)) and not caplog.records


def test_a_graph_that_differs_is_refused(tmp_path, monkeypatch):
    """Guards against checks that pass whatever they are given."""
    run = small_run(tmp_path / "run", "mulaw", "gru", conditions=False)

    def graph_of_another(model):
        other = copy.deepcopy(model)
        other.bos += 0.1
        return step_graph(other)

    monkeypatch.setattr(export, "step_graph", graph_of_another)
    with pytest.raises(ExportError, match="step.pt2: differs from PyTorch by .* more than 0.0001"):
        export_run(run, tmp_path / "out", "torch")
    assert not (tmp_path / "out" / "export.json").exists()


def test_of_a_stereo_run_the_middle_is_exported(tmp_path):
    """Guards against graphs of another shape than export.json says, and a stereo sound that is silently missing."""
    run = small_run(tmp_path / "run", "pcm", "bigram", conditions=False)
    image = StereoImage((0.3,) * BANDS, (0.5,) * BANDS)
    wide = dataclasses.replace(run, config=dataclasses.replace(run.config, stereo=image))
    said = list(export_files(wide, tmp_path / "wide", "torch", "fp32", {}))
    assert said[-1] == f"{tmp_path / 'wide'}: makes mono sound; the stereo image of the run can't be exported"
    assert not [line for line in export_files(run, tmp_path / "mono", "torch", "fp32", {}) if "stereo image" in line]
    assert (tmp_path / "wide" / "export.json").read_bytes() == (tmp_path / "mono" / "export.json").read_bytes()
    codes = wide.frontend.encode(sound(run.frontend, 400))
    wav = torch.export.load(tmp_path / "wide" / "decode.pt2").module()(codes)[0]
    spread = StereoLimiter(image, run.sample_rate)
    both = wide.frontend.decode(codes, spread)[0]
    assert wav.shape == (1, 1, 400) and both.shape == (2, 400)
    assert torch.allclose(wav[0, 0], both.mean(dim=0), atol=1e-5)


def test_half_precision_stores_half_the_bytes(tmp_path):
    """Guards against weights that are rounded but stored in full, and a front-end or a run that is rounded, too."""
    pytest.importorskip("onnxscript"), pytest.importorskip("onnxruntime")
    run = small_run(tmp_path / "run", "pcm", "bigram", conditions=False)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    sizes = {}
    for precision in ("fp32", "fp16"):
        made = export_run(run, tmp_path / precision, precision=precision)
        sizes[precision] = {graph.name: graph.num_bytes for graph in made}
    weights = 2 * 256 * 8 * 4
    assert sizes["fp32"]["step"] - sizes["fp16"]["step"] > 0.4 * weights
    assert sizes["fp32"]["decode"] == sizes["fp16"]["decode"]
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())


@pytest.mark.parametrize(
    "options, words", [(["--format", "onyx"], "--format: 'onyx' is unknown"), (["--precision", "int4"], "--precision:")]
)
def test_options_are_checked_first(tmp_path, options, words):
    """Guards against minutes of work before a misspelt option is refused."""
    (tmp_path / "run").mkdir()
    result = CliRunner().invoke(app, ["export", str(tmp_path / "run"), str(tmp_path / "out"), *options])
    assert isinstance(result.exception, ConfigError) and words in str(result.exception)


def test_stages_are_refused_by_their_folders(tmp_path):
    """Guards against an export of the last stage alone, which generates without the stage before."""
    run = small_run(tmp_path / "run" / "mulaw", "mulaw", "gru", conditions=False)
    run.before = small_run(tmp_path / "run" / "pcm", "pcm", "gru", conditions=False)
    with pytest.raises(ExportError, match="has stages; export each by itself: audiogen export .*mulaw OUT/mulaw$"):
        export_run(run, tmp_path / "out", "torch")


def test_missing_packages_are_named(tmp_path, monkeypatch):
    """Guards against a traceback where the extra is not installed."""
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match="pip install onnx onnxruntime onnxscript"):
        export_run(small_run(tmp_path / "run", "pcm", "bigram", conditions=False), tmp_path / "out")


# ---- draws outside of audiogen

SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.7, top_k=3),
    Sampling(temperature=1.3, top_p=0.6),
    Sampling(min_p=0.2),
    Sampling(0.9, 6, 0.9, 0.05),
    Sampling(temperature=0.0),
]


def logits_and_uniforms(count=200):
    return 2 * torch.randn(count, 9), torch.rand(count, dtype=torch.float64)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_the_recipe_draws_as_audiogen_does(sampling):
    """Guards against filters in another order, or on another side of their edge."""
    pytest.importorskip("onnxruntime")
    recipe, (logits, numbers) = runpy.run_path(str(RECIPE)), logits_and_uniforms()
    made = [
        recipe["draw"](x.numpy(), dataclasses.asdict(sampling), float(u)) for x, u in zip(logits, numbers, strict=True)
    ]
    assert made == draw(logits, sampling, numbers).tolist()


NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="no node on PATH")
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_the_page_draws_as_audiogen_does(tmp_path, sampling):
    """As above; and guards against random numbers of the page that are not normal."""
    source = (export.PLAYER / "model.js").read_text(encoding="utf-8")
    (tmp_path / "model.mjs").write_text(re.sub(r"^(import|ort)\b.*$", "", source, flags=re.M), encoding="utf-8")
    logits, numbers = logits_and_uniforms()
    (tmp_path / "given.json").write_text(json.dumps([logits.tolist(), numbers.tolist(), dataclasses.asdict(sampling)]))
    (tmp_path / "test.mjs").write_text("""
        import { readFileSync } from "node:fs";
        import { draw, normals, uniforms } from "./model.mjs";
        const [logits, numbers, sampling] = JSON.parse(readFileSync("given.json"));
        const codes = numbers.map((number, i) => draw(Float32Array.from(logits[i]), sampling, number));
        console.log(JSON.stringify([codes, Array.from(normals(uniforms(1), 20001))]));""")
    made = subprocess.run([NODE, "test.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    codes, normal = json.loads(made)
    assert codes == draw(logits, sampling, numbers).tolist()
    assert len(normal) == 20001 and abs(np.mean(normal)) < 0.03 and abs(np.std(normal) - 1) < 0.02
    assert abs(np.mean(np.abs(normal) > 1.96) - 0.05) < 0.006


# ---- the page

#: A script that waits until something is there.
WAIT = "new Promise((done) => { const look = () => (%s ? done(true) : setTimeout(look, 50)); look(); })"
#: A script that generates half a second.
SOUND = """(async () => {
    const { generate, load } = await import("./model.js"), pieces = [];
    for await (const { wav } of generate(await load(), { seconds: 0.5, seed: 5, temperature: 0.9 }))
        if (wav) pieces.push(...wav);
    return pieces;
})()"""

#: The folder dist/ of the npm package onnxruntime-web.
ORT = Path(os.environ.get("ONNXRUNTIME_WEB", "nowhere"))
ORT_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


@pytest.mark.skipif(PROGRAM is None, reason="no chromium or google-chrome on PATH")
@pytest.mark.skipif(not ORT.is_dir(), reason="ONNXRUNTIME_WEB does not name the folder dist/ of onnxruntime-web")
@pytest.mark.parametrize("kind, backbone, pattern, conditions, vocoder", CASES[:3])
def test_the_page_plays_a_run(tmp_path, kind, backbone, pattern, conditions, vocoder):
    """Guards against a page that does not understand export.json, asks another server for something, or draws other
    numbers for the same seed."""
    pytest.importorskip("onnxscript"), pytest.importorskip("onnxruntime")
    run = small_run(tmp_path / "run", kind, backbone, pattern, conditions, vocoder)
    export_run(run, tmp_path / "out", "web")
    assert not (tmp_path / "out" / "encode.onnx").exists()
    (tmp_path / "out" / "ort").mkdir()
    for name in ORT_FILES:
        shutil.copy(ORT / name, tmp_path / "out" / "ort")
    with served(tmp_path / "out") as address, Chromium(tmp_path / "profile") as browser:
        for width in (390, 1280):
            browser.open(SimpleNamespace(resolve=lambda: SimpleNamespace(as_uri=lambda: address)), width=width)
            browser.run(WAIT % "document.querySelector('button')")
            assert not browser.run(f"document.documentElement.scrollWidth > {width}")
        first, second = browser.run(SOUND), browser.run(SOUND)
        assert len(first) == round(0.5 * run.sample_rate) and first == second
        assert 1e-3 < max(map(abs, first)) <= 1
        browser.run("document.getElementById('input-seconds').value = 0.5; document.querySelector('button').click()")
        browser.run(WAIT % "document.querySelector('audio')?.readyState")
        assert abs(browser.run("document.querySelector('audio').duration") - 0.5) < 1e-3
        assert browser.errors == []
        assert all(url.startswith((address.rpartition("/")[0], "blob:")) for url in browser.requests)


@functools.cache
def _quiet_handler(folder):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=folder)

        def log_message(self, *args):
            pass

    return Handler


class served:
    """A web server of a folder's files on this machine, as `python -m http.server` is."""

    def __init__(self, folder):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _quiet_handler(str(folder)))

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}/index.html"

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
