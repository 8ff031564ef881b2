"""A scalar autograd engine: numbers that record how they were computed, and can be differentiated.

    >>> a, b = Value(2.0), Value(-3.0)
    >>> c = a * b + a ** 2
    >>> c.backward()
    >>> c.data, a.grad, b.grad
    (-2.0, 1.0, 2.0)

A `Value` is one number of a computation. It keeps the operands it was computed from (`parents`) and, for each of them,
the local derivative (`slopes`): how much it changes per unit of change in that parent alone. For a product this is the
other factor, for a sum it is 1. Slopes are plain numbers, known as soon as the operation is carried out.

The rest is the chain rule: the derivative of the result by a parent is the derivative by its child times the slope,
summed over all children. `backward` propagates these sums from the result to the inputs, so a single pass gives the
derivative by every input: reverse mode (Linnainmaa 1970; Griewank and Walther 2008, Evaluating Derivatives, chapter 3).

The order of this pass needs no graph search. Values are numbered in the order of creation, like positions on a tape,
and operands are always created before the result. So in reverse order, every child comes before its parents. Only the
values that the result depends on are visited; no list refers to the others, so the values of an earlier training step
are freed with its result.

Names follow micrograd (Karpathy 2020).
"""

import math
from collections.abc import Sequence
from itertools import count
from operator import attrgetter, mul
from typing import Union

Number = Union["Value", float]

_tape = count()
_place_on_tape = attrgetter("place")


class Value:
    """One number of a computation, and the derivative of a result by it.

    Operands may also be plain numbers. Impossible operations raise the errors of Python's floats: ValueError (log of
    0), ZeroDivisionError, OverflowError (exp, **). A sum or product that is too large is inf, which `backward` refuses.

    Attributes:
        data: the number, a float; may be changed in inputs between computations.
        grad: the derivative of the result by it; `backward` adds to it in inputs, and sets it in all others.
        parents: the values it was computed from; empty for inputs.
        slopes: its derivative by each parent, at the time of the operation.
        op: the operation, as shown in graphs.
        label: a name for graphs.
        place: its number in the order of creation, larger than that of every parent.
    """

    __slots__ = ("data", "grad", "parents", "slopes", "op", "label", "place")  # saves a dict per value

    def __init__(
        self, data: float, parents: Sequence["Value"] = (), slopes: Sequence[float] = (), op: str = "", label: str = ""
    ):
        self.data = float(data)
        self.grad = 0.0
        self.parents = parents
        self.slopes = slopes
        self.op = op
        self.label = label
        self.place = next(_tape)

    def __add__(self, other: Number) -> "Value":
        other = as_value(other)
        return Value(self.data + other.data, (self, other), (1.0, 1.0), "+")

    def __sub__(self, other: Number) -> "Value":
        other = as_value(other)
        return Value(self.data - other.data, (self, other), (1.0, -1.0), "-")

    def __mul__(self, other: Number) -> "Value":
        other = as_value(other)
        return Value(self.data * other.data, (self, other), (other.data, self.data), "*")

    def __truediv__(self, other: Number) -> "Value":
        other = as_value(other)
        ratio = self.data / other.data
        return Value(ratio, (self, other), (1.0 / other.data, -ratio / other.data), "/")

    def __neg__(self) -> "Value":
        return Value(-self.data, (self,), (-1.0,), "neg")

    def __pow__(self, exponent: Number) -> "Value":
        """Raise to a power. A plain number as exponent is a constant; a Value as exponent needs a base above 0."""
        x, p = self.data, exponent.data if isinstance(exponent, Value) else float(exponent)
        if x < 0 and p % 1 or x <= 0 and isinstance(exponent, Value):
            raise ValueError(f"{x} ** {p}: a base that is not above 0 needs a constant integer as exponent")
        try:
            power, slope = x**p, p * x ** (p - 1) if p else 0.0
        except OverflowError:
            raise OverflowError(f"{x} ** {p}, or its slope, is too large for a float") from None
        except ZeroDivisionError:
            raise ZeroDivisionError(f"{x} ** {p}: infinite, or its slope is") from None
        if isinstance(exponent, Value):
            return Value(power, (self, exponent), (slope, power * math.log(x)), "**")
        return Value(power, (self,), (slope,), f"**{p:g}")

    def __radd__(self, other: float) -> "Value":
        return Value(other) + self

    def __rsub__(self, other: float) -> "Value":
        return Value(other) - self

    def __rmul__(self, other: float) -> "Value":
        return Value(other) * self

    def __rtruediv__(self, other: float) -> "Value":
        return Value(other) / self

    def __rpow__(self, other: float) -> "Value":
        return Value(other) ** self

    def exp(self) -> "Value":
        """Compute e to the power of this number."""
        try:
            power = math.exp(self.data)
        except OverflowError:
            raise OverflowError(f"exp of {self.data} is too large for a float: keep it below 709") from None
        return Value(power, (self,), (power,), "exp")

    def log(self) -> "Value":
        """Compute the natural logarithm."""
        if self.data <= 0:
            raise ValueError(f"log of {self.data}: only numbers above 0 have a logarithm")
        return Value(math.log(self.data), (self,), (1.0 / self.data,), "log")

    def tanh(self) -> "Value":
        """Compute the hyperbolic tangent."""
        t = math.tanh(self.data)
        return Value(t, (self,), (1.0 - t * t,), "tanh")

    def relu(self) -> "Value":
        """Compute max(0, this number); the slope at 0 is taken as 0."""
        off = self.data <= 0
        return Value(0.0 if off else self.data, (self,), (0.0 if off else 1.0,), "relu")

    def backward(self) -> None:
        """Differentiate this number by every value it depends on: sets their `grad`, and adds to that of inputs.

        Adding accumulates the gradients of several results, as over a batch; `zero_grad` of a model resets them.

        Raises:
            FloatingPointError: the number is infinite or NaN, and so has no derivative.
        """
        if not math.isfinite(self.data):
            raise FloatingPointError(f"{self.data} can't be differentiated: an intermediate value became too large")
        tape = read_back(self)
        for value in tape:
            if value.parents:
                value.grad = 0.0
        self.grad += 1.0  # the derivative of a number by itself
        for value in tape:
            if grad := value.grad:  # a gradient of 0 contributes nothing
                for parent, slope in zip(value.parents, value.slopes, strict=True):
                    parent.grad += slope * grad

    def __repr__(self) -> str:
        return f"Value(data={self.data}, grad={self.grad})"


def read_back(result: Value) -> list[Value]:
    """Return a result and all values it depends on, the newest first, so that every child precedes its parents."""
    reached, to_visit = {result}, [result]
    while to_visit:
        for parent in to_visit.pop().parents:
            if parent not in reached:
                reached.add(parent)
                to_visit.append(parent)
    return sorted(reached, key=_place_on_tape, reverse=True)


def as_value(number: Number) -> Value:
    """Return a Value unchanged, or a new input for a plain number."""
    return number if isinstance(number, Value) else Value(number)


def weighted_sum(weights: Sequence[Value], inputs: Sequence[Number], bias: Value) -> Value:
    """Compute w1 x1 + w2 x2 + ... + bias, the sum of a neuron, as a single Value.

    With `*` and `+` it would be a chain of 2n values. But the derivative by each weight is its input, and by each input
    its weight, so the slopes of the whole sum are known, and one Value can replace the chain. An MLP then needs a tenth
    of the values, and a fraction of the time.

    Raises:
        ValueError: the numbers of inputs and weights differ.
    """
    inputs = [x if isinstance(x, Value) else Value(x) for x in inputs]
    if len(inputs) != len(weights):
        raise ValueError(f"{len(inputs)} inputs for {len(weights)} weights: give one each")
    w, x = [weight.data for weight in weights], [value.data for value in inputs]
    return Value(sum(map(mul, w, x), bias.data), (*weights, *inputs, bias), (*x, *w, 1.0), "w·x + b")
