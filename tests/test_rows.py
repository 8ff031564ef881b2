"""Row-wise matrix products equal those of the rounded weights, in every block of rows and items."""

import numpy as np
import pytest
import torch
from torch import nn


@pytest.fixture(scope="module")
def call():
    from numba import njit

    from audiogen.generation.engines.cpu.matvec_rowwise import product

    @njit
    def call(x, packed, layer, y, rounded):
        product(x, packed, layer, y, rounded)

    return call


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize(
    "batch_size, rows, columns", [(1, 1, 1), (1, 7, 40), (3, 8, 13), (4, 4, 64), (5, 23, 200), (9, 6, 130)]
)
def test_products_are_those_of_the_rounded_weights(call, precision, batch_size, rows, columns):
    """Guards against rows or items that are skipped if their number is no multiple of four, and the scale of another
    row or layer. bf16 is rounded as torch does, int8 to the nearest of 255 steps of each row."""
    from audiogen.generation.engines.cpu.matvec_rowwise import pack

    torch.manual_seed(rows)
    layers = [nn.Linear(columns, rows) for _ in range(2)]
    packed = pack(layers, precision)
    x = torch.randn(batch_size, columns)
    for i, layer in enumerate(layers):
        weight, bias = layer.weight.detach(), layer.bias.detach().double()
        if precision == "bf16":
            weight = weight.bfloat16()
        elif precision == "int8":
            step = weight.abs().amax(dim=1, keepdim=True) / 127
            weight = (weight / step).round() * step
        expected = x.double() @ weight.double().T + bias
        y = np.full((batch_size, rows), np.nan, np.float32)
        call(x.numpy(), packed, i, y, np.empty((batch_size, columns + 3), np.int16))
        # A weight halfway between two steps may go either way.
        tolerance = 2e-5 if precision != "int8" else 0.01
        assert np.abs(y - expected.numpy()).max() < tolerance


def test_int8_sums_do_not_overflow(call):
    """Guards against a 32-bit sum that overflows if all weights and inputs have their largest value."""
    from audiogen.generation.engines.cpu.matvec_rowwise import pack

    layer = nn.Linear(6144, 2)
    with torch.no_grad():
        layer.weight.fill_(-1.0)
        layer.bias.zero_()
    y = np.empty((1, 2), np.float32)
    call(np.full((1, 6144), 3, np.float32), pack([layer], "int8"), 0, y, np.empty((1, 6144), np.int16))
    np.testing.assert_allclose(y, -3.0 * 6144, rtol=1e-3)
