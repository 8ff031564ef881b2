"""The scalar engine beside torch's autograd."""

import doctest
import gc
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiogen.course import engine, nn
from audiogen.course.engine import Value, read_back, weighted_sum
from audiogen.course.nn import MLP, Layer, Neuron

#: What a `Value` and a float64 tensor both compute, kept where it is defined, and off the edge of relu, where rounding
#: would decide the slope.
OPERATIONS = {
    "a + b": lambda a, b: a + b,
    "a - b": lambda a, b: a - b,
    "a * b": lambda a, b: a * b,
    "a / b": lambda a, b: a / (b * b + 0.5),
    "2 + a": lambda a, b: 2 + a,
    "2 - a": lambda a, b: 2 - a,
    "2 * a": lambda a, b: 2 * a,
    "2 / a": lambda a, b: 2 / (a * a + 0.5),
    "a - 2": lambda a, b: a - 2,
    "a / 2": lambda a, b: a / 2,
    "a ** 0": lambda a, b: a**0,
    "a ** 3": lambda a, b: a**3,
    "a ** -2": lambda a, b: (a * a + 0.5) ** -2,
    "a ** 0.7": lambda a, b: (a * a + 0.5) ** 0.7,
    "a ** b": lambda a, b: (a * a + 0.5) ** b,
    "2 ** a": lambda a, b: 2**a,
    "-a": lambda a, b: -a,
    "exp": lambda a, b: a.exp(),
    "log": lambda a, b: (a * a + 0.5).log(),
    "tanh": lambda a, b: a.tanh(),
    "relu": lambda a, b: (a - 0.1234567).relu(),
    "a * a + a": lambda a, b: a * a + a,
}
numbers = st.floats(-2, 2).filter(lambda x: x == 0 or abs(x) > 1e-3)
steps = st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 999), st.integers(0, 999))


def compute(inputs, program, squash=None):
    """Runs (operation, a, b) one after another, each on two of the numbers that are there by then -> the sum of all.

    `squash` says for each step whether its result goes through tanh. None decides it by size, so that numbers stay
    small, and the decisions are returned for the other side.
    """
    there, decisions = list(inputs), []
    for number, (name, a, b) in enumerate(program):
        result = OPERATIONS[name](there[a % len(there)], there[b % len(there)])
        decisions.append(abs(result.data) > 2 if squash is None else squash[number])
        there.append(result.tanh() if decisions[-1] else result)
    return sum(there), decisions


def tensors(data):
    return [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in data]


def close(expected):
    return pytest.approx(expected, rel=1e-12, abs=1e-12)


@given(st.lists(numbers, min_size=1, max_size=4), st.lists(steps, min_size=1, max_size=20))
@settings(max_examples=200, deadline=None)
def test_gradients_equal_those_of_torch_on_random_graphs(data, program):
    """Guards against a wrong slope in any operation, reflected ones included, and a child that is not counted."""
    ours, theirs = [Value(x) for x in data], tensors(data)
    result, squash = compute(ours, program)
    expected, _ = compute(theirs, program, squash)
    result.backward()
    expected.backward()
    assert result.data == close(expected.item())
    assert [x.grad for x in ours] == close([x.grad.item() for x in theirs])


def test_a_value_that_is_used_again_and_again_gathers_all_it_is_owed():
    """Guards against `grad =` for `grad +=`, and a walk that takes each path by itself: here there are 2 to the 60."""
    x = y = Value(3.0)
    for _ in range(60):
        y = y + y
    y.backward()
    assert x.grad == 2.0**60


def test_deep_chains_equal_torch():
    """Guards against recursion: over the graph, or in freeing it."""
    ours, theirs = [Value(0.3), Value(0.9), Value(-0.2)], tensors([0.3, 0.9, -0.2])
    results = []
    for x, w, b in (ours, theirs):
        for _ in range(10_000):
            x = (x * w + b).tanh()
        results.append(x)
    for result in results:
        result.backward()
    assert len(read_back(results[0])) == 30_003
    assert results[0].data == close(results[1].item())
    assert [x.grad for x in ours] == close([x.grad.item() for x in theirs])
    x = y = Value(1.0)
    for _ in range(100_000):
        y = y + 1e-6
    y.backward()
    assert x.grad == 1.0
    del x, y


def test_going_back_twice_adds_in_the_inputs_alone():
    """Guards against gradients that are left over in the middle of the graph and handed on a second time."""
    ours, theirs = [Value(1.5), Value(-0.5)], tensors([1.5, -0.5])
    for a, b in (ours, theirs):
        shared = (a * b).tanh()
        first, second = (shared * a).exp(), shared - b
        kinds = {} if isinstance(a, Value) else {"retain_graph": True}
        first.backward(**kinds)
        first.backward(**kinds)
        second.backward(**kinds)
    assert [x.grad for x in ours] == close([x.grad.item() for x in theirs])
    x = Value(2.0)
    x.backward()
    assert x.grad == 1.0 and (x * 1).grad == 0.0


def test_the_slope_is_that_of_the_numbers_that_were_computed_with():
    """Guards against slopes that are looked up on the way back, after a step has changed the weights."""
    w, x = Value(2.0), Value(5.0)
    loss = w * x
    w.data = 100.0
    loss.backward()
    assert (w.grad, x.grad) == (5.0, 2.0)


def test_slopes_at_the_edges():
    """Guards against 0 * inf = NaN in x ** 0 and in the branch that relu has closed; and a NaN that relu turns into
    0."""
    for function, at, slope in (
        (lambda x: x.relu(), 0.0, 0.0),
        (lambda x: x**0, 0.0, 0.0),
        (lambda x: x**1, 0.0, 1.0),
        (lambda x: x**2, -3.0, -6.0),
        (lambda x: (x * 1e200 * 1e200 * -1).relu() + x, 1.0, 1.0),
        (lambda x: (-x).exp(), 1000.0, 0.0),
        (lambda x: x.tanh(), 1000.0, 0.0),
    ):
        x = Value(at)
        function(x).backward()
        assert x.grad == slope
    assert math.isnan(Value(math.nan).relu().data)


@pytest.mark.parametrize(
    "compute, error, words",
    [
        (lambda: Value(0.0).log(), ValueError, "log of 0.0"),
        (lambda: Value(-1.5).log(), ValueError, "log of -1.5"),
        (lambda: Value(1.0) / 0, ZeroDivisionError, "zero"),
        (lambda: 1 / Value(0.0), ZeroDivisionError, "zero"),
        (lambda: Value(0.0) ** -1, ZeroDivisionError, r"0.0 \*\* -1"),
        (lambda: Value(0.0) ** 0.5, ZeroDivisionError, "slope"),
        (lambda: Value(-8.0) ** (1 / 3), ValueError, "-8.0"),
        (lambda: Value(-2.0) ** Value(2.0), ValueError, "constant integer"),
        (lambda: (-2) ** Value(2.0), ValueError, "constant integer"),
        (lambda: Value(1000.0).exp(), OverflowError, "exp of 1000.0"),
        (lambda: Value(10.0) ** 400, OverflowError, "too large"),
        (lambda: (Value(1e200) * 1e200).backward(), FloatingPointError, "inf"),
        (lambda: Value(math.nan).backward(), FloatingPointError, "nan"),
        (lambda: weighted_sum([Value(1.0)] * 3, [1.0, 2.0], Value(0.0)), ValueError, "2 inputs for 3 weights"),
        (lambda: Neuron(3)([1.0, 2.0]), ValueError, "2 inputs for 3 weights"),
        (lambda: Value("loud"), ValueError, "loud"),
        (lambda: Value(1.0) + 1j, TypeError, "complex"),
    ],
)
def test_what_can_not_be_computed_is_said_at_once(compute, error, words):
    """Guards against NaN that surfaces a thousand steps later; a complex number; inputs that are cut to the shorter
    side."""
    with pytest.raises(error, match=words):
        compute()


def test_numbers_of_numpy_work_on_either_side():
    """Guards against a feature out of an array that takes the operation over, or hides an overflow behind a warning."""
    x = Value(3.0)
    y = np.float64(2) * x + np.float32(1) - x / np.float64(2) + np.int64(2) ** x
    y.backward()
    assert isinstance(y, Value) and (y.data, x.grad) == (13.5, 1.5 + 8 * math.log(2))
    with pytest.raises(OverflowError):
        Value(10.0) ** np.float64(400)


def test_a_weighted_sum_is_the_chain_that_it_stands_for():
    """Guards against weights and inputs that are given each other's slope; one value as two weights, or weight and
    input."""

    def gradients(total):
        a, b, c, bias = inputs = [Value(0.3), Value(-1.2), Value(2.0), Value(0.7)]
        result = total([a, b, a], [c, a, 0.5], bias).tanh()
        result.backward()
        return [result.data, *(x.grad for x in inputs)]

    def chain(weights, inputs, bias):
        return sum((w * x for w, x in zip(weights, inputs, strict=True)), bias)

    assert gradients(weighted_sum) == close(gradients(chain))


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_values_of_earlier_steps_are_freed(no_collector):
    """Guards against a tape that grows without end, and reference cycles, which wait for the garbage collector."""
    model = MLP(2, [4, 4, 1], rng=random.Random(0))
    held = []
    for _ in range(4):
        loss = sum((model([0.1 * i, -0.2]) - 1) ** 2 for i in range(10))
        model.zero_grad()
        loss.backward()
        model([1.0, 1.0])  # an evaluation, never gone back from
        loss = None
        held.append(sum(type(thing) is Value for thing in gc.get_objects()))
    assert held == [len(model.parameters())] * 4


def test_an_mlp_learns_step_by_step_what_torch_learns():
    """Guards against a layer without its bias, a last layer that is not linear, gradients that are not cleared."""
    rng = random.Random(0)
    model = MLP(3, [5, 1, 4, 2], Value.tanh, rng)
    layers = [
        torch.tensor(
            [[*(w.data for w in n.w), n.b.data] for n in layer.neurons], dtype=torch.float64, requires_grad=True
        )
        for layer in model.layers
    ]  # (nout, nin + 1) each
    for _ in range(5):
        x = [[rng.gauss(0, 1) for _ in range(3)] for _ in range(4)]
        loss = sum(y * y for point in x for y in model(point))
        model.zero_grad()
        loss.backward()
        h = torch.tensor(x, dtype=torch.float64)
        for i, layer in enumerate(layers):
            h = (h.tanh() if i else h) @ layer[:, :-1].T + layer[:, -1]
        expected = (h * h).sum()
        gradients = torch.autograd.grad(expected, layers)
        assert loss.data == close(expected.item())
        assert [p.grad for p in model.parameters()] == close(torch.cat([g.flatten() for g in gradients]).tolist())
        for parameter in model.parameters():
            parameter.data -= 0.05 * parameter.grad
        with torch.no_grad():
            for layer, gradient in zip(layers, gradients, strict=True):
                layer -= 0.05 * gradient


def test_who_comes_from_micrograd_finds_everything():
    """Guards against a name, a default or a shape of result that the course relies on."""
    random.seed(3)
    n = Neuron(2)
    random.seed(3)
    assert [w.data for w in n.w] == [random.uniform(-1, 1) for _ in range(2)] and n.b.data == 0
    assert n.parameters() == [*n.w, n.b]
    assert n([-1e3 * w.data for w in n.w]).data == 0 and Neuron(1, nonlin=False)([Value(1.0)]).op != "relu"
    assert isinstance(Layer(2, 1)([1.0, 2.0]), Value) and len(Layer(2, 3)([1.0, 2.0])) == 3
    model = MLP(2, [16, 16, 1])
    assert len(model.parameters()) == 337
    model([1.0, Value(-2.0)]).backward()
    assert any(p.grad for p in model.parameters())
    model.zero_grad()
    assert not any(p.grad for p in model.parameters())
    assert repr(Value(2.0)) == "Value(data=2.0, grad=0.0)" and "Neuron(16)" in repr(model)


@pytest.mark.parametrize("module", [engine, nn])
def test_the_examples_in_the_documentation_run(module):
    """Guards against an example that was right once."""
    assert doctest.testmod(module).failed == 0 < doctest.testmod(module).attempted
