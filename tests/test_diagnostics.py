"""Diagnostics: figures that can be worked out by hand, training that does not notice, and faults that were planted."""

import json
import math
from functools import partial

import pytest
import torch
from corpus import folder_of_notes, tiny_settings
from listening import Page, make_run
from loops import Walks, events, settings, trainer, weights
from safetensors.torch import load_file
from tiny import BACKBONE_CASES, SPEC_CASES, random_input, tiny_model
from torch import nn
from torch.nn import functional as F

from audiogen.commands.train import train
from audiogen.errors import TrainingError
from audiogen.listen import write_page
from audiogen.models.backbones import BACKBONES
from audiogen.models.batch import Batch
from audiogen.models.layers import CausalAttention
from audiogen.runs.event_log import Metrics, read_metrics
from audiogen.training import trainer as loop
from audiogen.training.diagnosis import findings, share
from audiogen.training.diagnostics import SATURATED, observe

#: Small backbones, and rates that suit them; others take their defaults and RATE.
RATES, RATE = {"bigram": 1e-2}, 2e-3
SIZES = {
    "mlp": {"dim": 16, "context": 4, "hidden_dim": 64},
    "wavenet": {"dim": 32, "residual_dim": 16, "num_layers": 4, "dilation_cycle": 4},
}


# ---- figures by hand


class Through(nn.Module):
    """x -> function(linear(x)), the linear layer being the identity with a bias."""

    def __init__(self, function, bias=(0.0, 0.0, 0.0)):
        super().__init__()
        self.function, self.linear = function, nn.Linear(3, 3).double()
        self.linear.weight.data = torch.eye(3).double()
        self.linear.bias.data = torch.tensor(bias).double()

    def forward(self, x):
        return self.function(self.linear(x))


#: tanh is beyond 0.97 from 2.0923 on.
X = torch.tensor([[0.5, 3.0, -9.0], [-2.0, -3.0, 2.2], [1.0, 0.1, 9.0], [0.0, 2.0, -2.5]]).double()


@pytest.mark.parametrize("tanh", [torch.tanh, torch.Tensor.tanh, F.tanh, nn.Tanh(), lambda x: x.clone().tanh_()])
def test_saturation_of_a_tanh_however_it_is_called(tanh):
    """Guards against a call that is not seen, one that is seen twice, and saturation on one side alone."""
    model = Through(tanh)
    with observe(model) as seen:
        model(X).sum().backward()
    assert list(seen.layers) == ["linear", "linear tanh"]
    layer = seen.layers["linear tanh"]
    assert layer.saturated == 6 / 12 and (layer.units, layer.dead) == (3, 1)  # the last column is all beyond
    y = [math.tanh(x) for row in X.tolist() for x in row]
    mean = sum(y) / 12
    assert layer.mean == pytest.approx(mean, abs=1e-12)
    assert layer.std == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in y) / 12), abs=1e-12)
    assert layer.grad_std == 0  # of a sum: one for all
    slopes = [1 - v * v for v in y]
    mean = sum(slopes) / 12
    assert seen.layers["linear"].grad_std == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in slopes) / 12))
    assert seen.layers["linear"].saturated is None and seen.layers["linear"].units is None


def test_saturation_of_a_sigmoid_is_that_of_the_tanh_it_is():
    """sigmoid(2x) = (1 + tanh(x)) / 2. Guards against a sigmoid judged as if it began at -1: no closed gate would be
    found."""
    for function, scale in ((torch.tanh, 1), (torch.sigmoid, 2)):
        model = Through(function)
        with observe(model) as seen:
            model(scale * X)
        layer = list(seen.layers.values())[1]
        assert (layer.saturated, layer.dead) == (0.5, 1)


@pytest.mark.parametrize(
    "function",
    [F.relu, torch.Tensor.relu, nn.ReLU(), nn.GELU(approximate="tanh"), F.gelu, F.silu, lambda x: x.clone().relu_()],
)
def test_a_dead_unit_is_found_and_one_that_wakes_once_is_not(function):
    """Guards against units called dead for being off now and then, and a second batch that overrules the first."""
    model = Through(function, bias=(0.0, -100.0, -4.0))
    with observe(model) as seen:
        model(torch.zeros(2, 5, 3).double())  # (B, S, D): all off, but nothing is awake at 0 either
        model(torch.tensor([1.0, 99.0, 5.0]).double().expand(2, 5, 3))
        model(-torch.ones(2, 5, 3).double())
    (layer,) = [layer for name, layer in seen.layers.items() if " " in name]
    assert (layer.units, layer.dead, layer.saturated) == (3, 1, None)


def test_update_and_gradient_of_a_matrix():
    """Guards against a ratio that is inverted, of norms, in natural logarithms, or of a gradient that was clipped
    already."""
    model = nn.Linear(2, 2).double()
    model.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double()  # deviation: sqrt(1.25)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with observe(model) as seen:
        (model(torch.tensor([[1.0, 3.0]]).double()) * torch.tensor([1.0, 2.0])).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        for parameter in model.parameters():  # as if it had not been clipped
            parameter.grad = torch.tensor([[1.0, 3.0], [2.0, 6.0]]).double() if parameter.ndim == 2 else None
        optimizer.step()
    (matrix,) = seen.weights.values()
    gradient_std = math.sqrt((4 + 0 + 1 + 9) / 4)  # of 1, 3, 2, 6, whose mean is 3
    assert matrix.grad_std == pytest.approx(gradient_std)
    assert matrix.std == pytest.approx(math.sqrt(1.25))
    assert matrix.update == pytest.approx(math.log10(0.1 * gradient_std / math.sqrt(1.25)))


def test_a_matrix_that_does_not_move_has_no_ratio_and_no_infinity():
    """Guards against -inf in the metrics, which is no JSON, and a division by the nothing that a matrix begins with."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].weight.data.zero_()
    with observe(model) as seen:
        model(torch.ones(1, 2)).sum().backward()
        model[0].weight.data += torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert seen.weights["0.weight"].update is None and seen.weights["1.weight"].update is None
    assert "update" not in seen.event()["weights"]["1.weight"] and json.dumps(seen.event(), allow_nan=False)


@pytest.mark.parametrize("kind, changes", [case for case in BACKBONE_CASES])
def test_every_backbone_equals_what_autograd_keeps(kind, changes):
    """Gradients at the outputs of every module, and of every matrix, in the parts of a batch and in the whole of it:
    buries a hook that hears the first part alone, or the sum of the parts."""
    spec, pattern = SPEC_CASES[1].values
    torch.manual_seed(0)
    model = tiny_model(spec, kind, pattern, **changes)
    x, kept = random_input(spec, 4, 12), {}

    def keep(name, module, inputs, y):
        y.retain_grad()
        kept[name] = y

    handles = [
        module.register_forward_hook(partial(keep, name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding | nn.LayerNorm | nn.BatchNorm1d)
    ]
    (model.nll(Batch(x))[0] / model.num_entries(Batch(x))).backward()
    for handle in handles:
        handle.remove()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with observe(model) as seen:
        for part in x.chunk(2):
            (model.nll(Batch(part))[0] / model.num_entries(Batch(x))).backward()
    assert set(kept) == {name for name in seen.layers if " " not in name}
    for name, y in kept.items():
        for found, expected in ((seen.layers[name].std, y.detach()), (seen.layers[name].grad_std, y.grad)):
            assert found == pytest.approx(float(expected.std(correction=0)), rel=1e-9), name
    layers = [name.rpartition(".")[0] for name in seen.weights]  # a module that returns a tuple is not among the layers
    layers = [name for name in layers if name in seen.layers]
    assert layers == sorted(layers, key=list(seen.layers).index)
    for name, matrix in seen.weights.items():
        assert matrix.grad_std == pytest.approx(float(gradients[name].std(correction=0)), rel=1e-9), name


def test_the_functions_of_each_backbone_are_seen_and_named():
    """Guards against a backbone whose activation functions nobody looks at, because they are plain calls and no
    modules."""
    functions = {}
    for kind, changes in (
        ("bigram", {}),
        ("mlp", {"num_layers": 2}),
        ("mlp", {"num_layers": 1, "batch_norm": True}),
        ("wavenet", {"num_layers": 2}),
        ("gpt", {"num_layers": 1}),
    ):
        model = tiny_model(SPEC_CASES[0].values[0], kind, "parallel", **changes)
        with observe(model) as seen:
            model.nll(Batch(random_input(model.spec, 2, 12)))
        functions[kind, *changes] = [name.removeprefix("backbone.") for name in seen.layers if " " in name]
    assert list(functions.values()) == [
        [],
        ["first.linear tanh", "hidden.0 tanh"],
        ["norms.0 tanh"],
        [
            "gates.0.linear tanh",
            "gates.0.linear sigmoid",
            "gates.1.linear tanh",
            "gates.1.linear sigmoid",
            "skip relu",
            "last relu",
        ],
        ["blocks.0.attention.qkv attention", "blocks.0.up gelu"],
    ]


@pytest.mark.parametrize("steps", [6, 17], ids=["one window", "several windows"])
def test_attention_is_sharp_where_one_key_takes_over(steps):
    """Against the layer's own weights. Guards against queries that see one key only, which are always sharp, and masks
    that are not applied."""
    torch.manual_seed(0)
    attention = CausalAttention(8, num_heads=2, window=6).double()
    attention.qkv.weight.data *= 8
    x = torch.randn(3, steps, 8).double()
    with observe(attention) as seen:
        attention(x)
    largest = attention.weights(x)[0].amax(dim=-1)[:, 1:]  # (H, S - 1): the first step sees itself alone
    assert 0.1 < float((largest > SATURATED).double().mean()) < 0.9
    assert seen.layers["qkv attention"].saturated == pytest.approx(float((largest > SATURATED).double().mean()))


def test_attention_with_other_masks_and_shared_keys():
    """Guards against a mask of numbers that is taken for one of yes and no, and keys that are shared by heads."""
    q, k = torch.randn(2, 4, 3, 5), torch.zeros(2, 2, 3, 5)
    mask = torch.tensor([[0.0, -math.inf, -math.inf], [0.0, 9.0, -math.inf], [0.0, 0.0, 0.0]])
    model = nn.Identity()
    with observe(model) as seen:
        F.scaled_dot_product_attention(q, k, k, attn_mask=mask, enable_gqa=True)
    assert seen.layers[" attention"].saturated == 0.5  # of the second and third query, the second


def test_nothing_is_left_behind():
    """Guards against hooks that outlive the step: every later one would be slowed down, and remembered."""
    model = Walks().model("gpt")
    for error in (None, RuntimeError("stop")):
        try:
            with observe(model):
                model.nll(Walks().batch(0)[0])
                if error:
                    raise error
        except RuntimeError as found:
            assert found is error
        assert not any(module._forward_hooks for module in model.modules())
        assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
        assert torch.overrides._get_current_function_mode() is None


# ---- training does not notice


@pytest.mark.parametrize(
    "kind, changes",
    [*((kind, {}) for kind in BACKBONES), ("mlp", {"batch_norm": True, "num_layers": 2}), ("gpt", {"dropout": 0.3})],
)
def test_the_weights_are_the_same_to_the_bit(tmp_path, monkeypatch, kind, changes):
    """Guards against an observation that draws from dropout's generator, moves BatchNorm's averages, or leaves
    gradients."""
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    found = []
    for diagnostics in (False, True):
        torch.manual_seed(0)
        walks, folder = Walks(), tmp_path / str(diagnostics)
        it = trainer(
            folder,
            settings(steps=6, accumulation=2, average=0.9, learning_rate=0.01),
            walks,
            walks.model(kind, **{**SIZES.get(kind, {}), **changes}),
            diagnostics=diagnostics,
        )
        it.run(Metrics(folder))
        found.append({**weights(it.model), **{f"average {name}": x for name, x in weights(it.weights).items()}})
        assert [event["step"] for event in events(folder, "diagnostics")] == (list(range(1, 7)) if diagnostics else [])
    for name, x in found[0].items():
        assert torch.equal(x, found[1][name]), name


def test_few_steps_are_observed_and_early_ones_more_often(tmp_path):
    """Guards against a cost at every step, and a file that grows without bound; and cadence that a resume would
    shift."""
    it = trainer(tmp_path, settings(), diagnostics=True)
    assert [step for step in range(1, 1001) if it._observed(step)] == [1, *range(10, 100, 10), *range(100, 1001, 100)]
    assert not any(trainer(tmp_path, settings())._observed(step) for step in range(1, 200))


def test_a_loss_that_is_no_number_still_says_so(tmp_path):
    """Guards against the error that matters under one of the observer's."""
    it = trainer(tmp_path, settings(learning_rate=1.0), diagnostics=True)
    with torch.no_grad():
        it.model.head.linear.weight[0, 0] = math.nan
    with pytest.raises(TrainingError, match="the loss is not a number"):
        it.run(Metrics(tmp_path))


def test_a_run_with_and_without_and_resumed_with(tmp_path):
    """The whole way. Guards against a flag that a resume refuses, one that is remembered as a setting, and a page that
    shows nothing of it."""
    corpus = folder_of_notes(tmp_path / "corpus", [900] * 4)
    overrides = [
        *(f"frontend.{name}={value}" for name, value in tiny_settings("mulaw").items()),
        "backbone.dim=4",
        "backbone.context=2",
        "backbone.hidden_dim=8",
        "training.crop_frames=16",
        "training.evaluations=2",
        "training.sample_seconds=0.02",
    ]

    def run(name, steps, **more):
        train(corpus, tmp_path / name, "mulaw", "mlp", steps=steps, overrides=overrides, **more)
        return tmp_path / name

    plain, observed = run("plain", 12), run("observed", 12, diagnostics=True)
    later = run("later", 4)
    train(corpus, later, steps=12, resume=True, diagnostics=True)
    kept = [load_file(folder / "model.safetensors") for folder in (plain, observed, later)]
    for name, x in kept[0].items():
        assert torch.equal(x, kept[1][name]), name
    steps = [
        [event["step"] for event in read_metrics(folder) if event["event"] == "diagnostics"]
        for folder in (plain, observed, later)
    ]
    assert steps == [[], [1, 10], [10]]
    assert (plain / "config.json").read_text() == (observed / "config.json").read_text()
    assert "Inside the network" not in Page(plain / "index.html").text()
    page = Page(observed / "index.html")
    assert "backbone.first.linear tanh" in page.texts["inside-the-network"]
    assert "Layers at step 10" in page.text("inside-the-network")


# ---- faults that were planted


def seen_in_training(tmp_path, monkeypatch, kind, factor=1.0, size=1.0, harm=lambda model: None):
    monkeypatch.setattr(loop, "LOG_EVERY", 4)
    walks = Walks(size=32, batch_size=8)
    torch.manual_seed(0)
    model = walks.model(kind, **SIZES.get(kind, {}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(size)
        harm(model)
    config = settings(steps=40, warmup=0.25, learning_rate=factor * RATES.get(kind, RATE))
    trainer(tmp_path, config, walks, model, diagnostics=True).run(Metrics(tmp_path))
    return findings(events(tmp_path, "diagnostics"))


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_healthy_run_has_no_findings(tmp_path, monkeypatch, kind):
    """Guards against a diagnosis that finds everybody ill."""
    assert seen_in_training(tmp_path, monkeypatch, kind) == []


@pytest.mark.parametrize("kind", BACKBONES)
def test_weights_ten_times_too_large_are_found_before_the_first_step(tmp_path, monkeypatch, kind):
    """Guards against a look at the end alone, when training may have mended what it was slowed down by."""
    found = seen_in_training(tmp_path, monkeypatch, kind, size=10)
    assert found and found[0].fault == "initialisation", found
    assert "head.linear" in found[0].text or "saturated" in found[0].text


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_rate_100_times_too_high_is_found(tmp_path, monkeypatch, kind):
    """Guards against a verdict by the loss alone, which may fall all the same."""
    assert "learning rate" in [finding.fault for finding in seen_in_training(tmp_path, monkeypatch, kind, factor=100)]


def test_a_rate_far_too_low_is_found(tmp_path, monkeypatch):
    found = seen_in_training(tmp_path, monkeypatch, "wavenet", factor=0.01)
    assert [finding.fault for finding in found] == ["learning rate"] and "higher" in found[0].text


def test_dead_units_are_found_by_name(tmp_path, monkeypatch):
    """Guards against dead units of one layer that are averaged away by the healthy ones of the others."""

    def kill(model):
        model.backbone.skip.bias.fill_(-50)

    found = seen_in_training(tmp_path, monkeypatch, "wavenet", harm=kill)
    assert [finding.fault for finding in found] == ["dead units"]
    assert found[0].text.startswith("100% of the units of backbone.skip relu are dead")


def test_an_initialisation_is_judged_at_the_first_step_only():
    """Guards against a run that was resumed with --diagnostics and is told that it was begun badly."""
    event = {"layers": {"a tanh": {"saturated": 0.9, "units": 2, "dead": 0}}, "weights": {}}
    assert [finding.fault for finding in findings([{"step": 1, **event}])] == ["initialisation", "saturation"]
    assert [finding.fault for finding in findings([{"step": 100, **event}])] == ["saturation"]
    assert findings([]) == []


def test_shares_are_readable():
    assert [share(x) for x in (-1.3, -3.1, 0.84, -2)] == ["5 %", "0.079 %", "690 %", "1 %"]


# ---- the page


def test_the_page_shows_what_there_is_and_survives_the_rest(tmp_path):
    """Guards against a page that a damaged line, or a run without functions, costs."""
    run = make_run(tmp_path / "run")
    layer = {"mean": 0.0, "std": 1.5, "grad_std": 1e-5, "saturated": 0.85, "units": 4, "dead": 1}
    good = {
        "event": "diagnostics",
        "step": 40,
        "layers": {"<b> tanh": layer, "head": {"mean": 0.0, "std": 0.1}},
        "weights": {"head.weight": {"std": 0.1, "grad_std": 1e-6, "update": -2.5}},
    }
    bad = [
        {"event": "diagnostics"},
        {**good, "step": "x"},
        {**good, "layers": [1]},
        {
            **good,
            "step": 20,
            "layers": {"<b> tanh": 3, "c tanh": {"saturated": "x", "dead": 2}},
            "weights": {"head.weight": {"update": None}, "odd": {}},
        },
    ]
    with open(run / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(event) + "\n" for event in [*bad, good])
    page = Page(write_page([run, make_run(tmp_path / "other")], tmp_path / "page.html"))
    said = page.text("inside-the-network")
    assert "85% of <b> tanh is saturated" in said and "1 of 4" in said and "-2.5" in said
    assert "No problem found" not in said and said.count("None yet.") == 1
