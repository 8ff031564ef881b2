"""A scalar autograd engine: numbers that remember how they were made, and so how a result depends on each of them.

    >>> a, b = Value(2.0), Value(-3.0)
    >>> c = a * b + a ** 2
    >>> c.backward()
    >>> c.data, a.grad, b.grad
    (-2.0, 1.0, 2.0)

A `Value` is one number of a computation. Made by an operation, it keeps the values that went in (`parents`) and, for
each of them, the local derivative (`slopes`): how much it moves per unit that this parent moves alone. For a product
that is the other factor, for a sum it is 1. Slopes are plain numbers, known as soon as the operation is carried out.

The chain rule does the rest: what the result owes to a parent is what it owes to the child times the slope, summed
over all children. `backward` carries that sum from the result down to the inputs, so one walk gives the derivative by
every input at once: reverse mode (Linnainmaa 1970; Griewank and Walther 2008, Evaluating Derivatives, chapter 3).

The order of the walk needs no search. Values are numbered as they are made, as if each were written on a tape, and
whoever goes into an operation was there before. So the tape read backwards meets every child before its parents. Only
the values that the result was made of are read; no list holds the others, so those of an earlier step are freed with
its result.

The names are those of micrograd (Karpathy 2020), whose course this follows.
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
    """One number of a computation, with the derivative of a result by it.

    Operations with plain numbers on either side work as well. Impossible ones raise what Python's own floats raise:
    ValueError (log of 0), ZeroDivisionError, OverflowError (exp, **); a sum or product that is too large is inf, and
    `backward` refuses to start from it.

    Attributes:
        data: the number, a float; that of an input may be changed between computations.
        grad: the derivative of the result by it; `backward` adds to it in inputs, and sets it in all others.
        parents: the values it was computed from; none in an input.
        slopes: its derivative by each of them, at the data that they had.
        op: the operation, as a graph shows it.
        label: a name, for graphs.
        place: on the tape: larger than that of every parent.
    """

    __slots__ = ("data", "grad", "parents", "slopes", "op", "label", "place")  # no dict for each

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
        """A plain number as exponent is a constant; a Value is differentiated by, and needs a base above 0."""
        x, p = self.data, exponent.data if isinstance(exponent, Value) else float(exponent)
        if x < 0 and p % 1 or x <= 0 and isinstance(exponent, Value):
            raise ValueError(f"{x} ** {p}: only whole constants may be the exponent of a base that is not above 0")
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
        try:
            power = math.exp(self.data)
        except OverflowError:
            raise OverflowError(f"exp of {self.data} is too large for a float: keep it below 709") from None
        return Value(power, (self,), (power,), "exp")

    def log(self) -> "Value":
        """The natural logarithm."""
        if self.data <= 0:
            raise ValueError(f"log of {self.data}: there is one of numbers above 0 only")
        return Value(math.log(self.data), (self,), (1.0 / self.data,), "log")

    def tanh(self) -> "Value":
        t = math.tanh(self.data)
        return Value(t, (self,), (1.0 - t * t,), "tanh")

    def relu(self) -> "Value":
        """The number itself, but 0 where it is negative; its slope at 0 is taken as 0."""
        off = self.data <= 0
        return Value(0.0 if off else self.data, (self,), (0.0 if off else 1.0,), "relu")

    def backward(self) -> None:
        """Differentiates this number by all that it was made of: sets their `grad`, and adds to that of the inputs.

        Adding lets the gradients of several results gather, as over a batch; `zero_grad` of a model starts anew.

        Raises:
            FloatingPointError: the number is infinite or NaN, and so has no derivative.
        """
        if not math.isfinite(self.data):
            raise FloatingPointError(f"{self.data} can't be differentiated: something became too large on the way here")
        tape = read_back(self)
        for value in tape:
            if value.parents:
                value.grad = 0.0
        self.grad += 1.0  # the derivative of a number by itself
        for value in tape:
            if grad := value.grad:  # a gradient of 0 has nothing to hand on
                for parent, slope in zip(value.parents, value.slopes, strict=True):
                    parent.grad += slope * grad

    def __repr__(self) -> str:
        return f"Value(data={self.data}, grad={self.grad})"


def read_back(result: Value) -> list[Value]:
    """All values that one was made of, itself included: the last made first, so every child before its parents."""
    reached, to_visit = {result}, [result]
    while to_visit:
        for parent in to_visit.pop().parents:
            if parent not in reached:
                reached.add(parent)
                to_visit.append(parent)
    return sorted(reached, key=_place_on_tape, reverse=True)


def as_value(number: Number) -> Value:
    """The Value itself, or a new input of that number."""
    return number if isinstance(number, Value) else Value(number)


def weighted_sum(weights: Sequence[Value], inputs: Sequence[Number], bias: Value) -> Value:
    """w1 x1 + w2 x2 + ... + bias as one Value: what a neuron computes.

    The same by `*` and `+` is a chain of 2n values. But the derivative by each weight is just its input, and by each
    input its weight, so all slopes of the whole sum are there already, and one value can stand for the chain: an MLP
    needs a tenth of the values, and a fraction of the time.

    Raises:
        ValueError: not as many inputs as weights.
    """
    inputs = [x if isinstance(x, Value) else Value(x) for x in inputs]
    if len(inputs) != len(weights):
        raise ValueError(f"{len(inputs)} inputs for {len(weights)} weights: give one each")
    w, x = [weight.data for weight in weights], [value.data for value in inputs]
    return Value(sum(map(mul, w, x), bias.data), (*weights, *inputs, bias), (*x, *w, 1.0), "w·x + b")
