"""The compiled parts of the engines, each beside what it stands for."""

import importlib
import pkgutil

import numpy as np
import pytest
import torch
from tiny import TOKENS, lively, tiny_backbone
from torch import nn

from audiogen.generation.engines import ENGINES, PRECISIONS, cpu
from audiogen.generation.request import Request
from audiogen.models.backbones.wavenet import WaveNet
from audiogen.models.patterns import PATTERNS
from audiogen.models.sampling import Sampling, draw
from audiogen.models.sequence_model import SequenceModel
from audiogen.spec import TokenSpec
from audiogen.testing import true_logits


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(0.0),
        Sampling(0.01),
        Sampling(3.0),
        Sampling(top_k=1),
        Sampling(top_k=4),
        Sampling(top_k=100),
        Sampling(top_p=0.5),
        Sampling(top_p=1e-9),
        Sampling(top_p=1.0),
        Sampling(min_p=0.2),
        Sampling(min_p=1.0),
        Sampling(min_p=0.0),
        Sampling(0.8, 6, 0.7, 0.1),
    ],
    ids=str,
)
def test_the_compiled_draw_is_the_draw(sampling):
    """Guards against a filter that breaks ties another way, or sums in another order: equal for each of 2,000 draws,
    among them logits that are equal to each other."""
    from audiogen.generation.engines.cpu import sampling as draws

    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2000, 9)).astype(np.float32) * 2
    logits[::3] = logits[::3].round()  # ties
    numbers = rng.random(2000)
    p = np.empty(9)
    got = [draws.draw(row, draws.filters(sampling, 9), u, p) for row, u in zip(logits, numbers, strict=True)]
    assert got == draw(torch.from_numpy(logits), sampling, torch.from_numpy(numbers)).tolist()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("batch_size, rows, columns", [(1, 1, 1), (1, 8, 16), (3, 13, 5), (4, 24, 33), (7, 70, 200)])
def test_products_are_those_of_the_rounded_weights(precision, batch_size, rows, columns):
    """Guards against rows that change places in their word, in either of the two ways through. bf16 is rounded as torch
    does; int8 to the nearest of 255 steps of each column."""
    from numba import njit

    from audiogen.generation.engines.cpu.matvec_columnwise import pack, padded, product

    @njit
    def call(x, weight, scales, y, work):
        product(x, weight, scales, y, work)

    rng = np.random.default_rng(rows)
    weight = rng.standard_normal((rows, columns)).astype(np.float32)
    x = np.zeros((batch_size, padded(rows)), np.float32)
    x[:, :rows] = rng.standard_normal((batch_size, rows))
    rounded = torch.from_numpy(weight).bfloat16().double().numpy() if precision == "bf16" else weight.astype(np.float64)
    if precision == "int8":
        scale = np.abs(rounded).max(axis=0) / 127
        rounded = np.rint(rounded / scale) * scale
    y = rng.standard_normal((batch_size, columns)).astype(np.float32)
    expected = y + x[:, :rows].astype(np.float64) @ rounded
    call(x, *pack(weight, precision), y, np.empty(columns, np.float32))
    assert np.abs(y - expected).max() < 2e-5 * np.sqrt(rows)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_linear_layers_are_those_of_the_rounded_weights(precision):
    """Guards against a row or an item of a block that gets another's sum, elements beyond the last full register that
    are lost, and, with int8, an item that is rounded differently beside others."""
    from numba import njit

    from audiogen.generation.engines.cpu.matvec_rowwise import pack, product

    @njit
    def call(x, rows, layer, y, rounded):
        product(x, rows, layer, y, rounded)

    for inputs, outputs in ((5, 3), (64, 8), (70, 9)):
        layer, x = nn.Linear(inputs, outputs), torch.randn(13, inputs)
        rows, alone = pack([nn.Linear(inputs, outputs), layer], precision), []
        for batch_size in range(1, 14):  # blocks of eight, four, two and one
            y = np.empty((batch_size, outputs), np.float32)
            call(x[:batch_size].numpy(), rows, 1, y, np.empty((batch_size, inputs), np.int16))
            error = np.abs(y - layer(x[:batch_size]).detach().numpy()).max()
            assert error < (1e-5 if precision == "fp32" else 0.05)
            alone.append(y[0])
        if precision == "int8":
            assert all(np.array_equal(y, alone[0]) for y in alone)


def test_compiled_functions_have_names_of_their_own():
    """Guards against memory that is written beyond its end: numba links code from its cache, which other processes
    compiled, by name and types, so that a function made for eight items ran in place of one for four."""
    from numba.core.dispatcher import Dispatcher

    found = set()
    for name in (module.name for module in pkgutil.iter_modules(cpu.__path__, f"{cpu.__name__}.")):
        found |= {value for value in vars(importlib.import_module(name)).values() if isinstance(value, Dispatcher)}
    names = [f"{function.py_func.__module__}.{function.py_func.__qualname__}" for function in found]
    assert len(names) > 20 and len(set(names)) == len(names)


@pytest.mark.parametrize("features", [None, {"avx2"}, set()], ids=["own", "avx2", "none"])
def test_dot_products_of_other_processors(monkeypatch, features):
    """Guards against code that is right only with the instructions of the processor that it was written on."""
    from numba import njit

    from audiogen.generation.engines.cpu import simd

    if features is not None:
        import llvmlite.binding

        if not all(llvmlite.binding.get_host_cpu_features().get(name) for name in features):
            pytest.skip("this processor has other instructions")
        monkeypatch.setattr(simd, "_features", lambda context: features)
    multiply = simd.dots(2, 4)

    @njit
    def call(weights, values):
        return multiply(weights, 1, values, 1)

    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 128, (3, 70), dtype=np.int8)
    values = rng.integers(-3000, 3000, (5, 70), dtype=np.int16)
    expected = weights[1:].astype(int) @ values[1:].astype(int).T  # (2, 4)
    assert np.array_equal(np.reshape(call(weights, values), (2, 4)), expected)


def test_the_gate_is_tanh_times_sigmoid():
    """Guards against a series cut too short, and what overflows far from zero."""
    from audiogen.generation.engines.cpu.wavenet_kernel import gate

    filtered = np.concatenate([np.linspace(-12, 12, 4001), [-1e4, 1e4, 0]]).astype(np.float32)
    for opened in (-1e4, -50, -3, 0, 0.7, 9, 1e4):
        y = np.empty_like(filtered)
        gate(filtered, np.full_like(filtered, opened), y)
        expected = np.tanh(filtered.astype(np.float64)) * torch.tensor(opened, dtype=torch.float64).sigmoid().item()
        assert np.abs(y - expected).max() < 1e-6


@pytest.mark.parametrize("precision", PRECISIONS)
def test_wavenet_at_its_own_sizes(precision):
    """Guards against an engine that is right for the small sizes of tests alone: two cycles of ten dilations, 256
    codes."""
    spec = TokenSpec(16000, 1, 1, 256)
    model = lively(SequenceModel(spec, WaveNet(WaveNet.Config()), PATTERNS["parallel"](1))).eval()
    seq = torch.randint(256, (1, 1, 2300))
    got = ENGINES["wavenet"](model, Request(precision=precision)).logits(seq)
    expected = true_logits(model, seq)
    error = float((got - expected).abs().max() / expected.abs().max())
    assert error <= {"fp32": 1e-5, "bf16": 0.02, "int8": 0.1}[precision]


def test_the_smallest_wavenet():
    """Guards against shapes that only work from two layers or units up."""
    model = SequenceModel(TOKENS, tiny_backbone("wavenet", dim=1, residual_dim=1, num_layers=1), PATTERNS["delay"](3))
    seq = torch.randint(7, (2, 3, 50))
    torch.testing.assert_close(
        ENGINES["wavenet"](model.eval(), Request(batch_size=2)).logits(seq), true_logits(model, seq).float()
    )
