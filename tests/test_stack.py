"""The layers of lesson 4 beside torch's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from audiogen.course.fixed_context import examples
from audiogen.course.stack import BatchNorm, Embedding, Linear, Tanh, run, stack_of
from audiogen.models.backbones import MLP
from audiogen.models.batch import Batch
from audiogen.models.patterns import Parallel
from audiogen.models.sequence_model import SequenceModel
from audiogen.spec import TokenSpec


def gradients(y, x):
    return torch.autograd.grad((y * x.detach().cos()).sum(), x)[0]


def test_batch_norm_is_torch_s():
    """Guards against the wrong N in either variance, running averages of the wrong pace, and a gradient that misses the
    way through mean and variance."""
    torch.manual_seed(0)
    gain, shift = torch.rand(5, dtype=torch.float64) + 0.5, torch.randn(5, dtype=torch.float64)
    ours, theirs = BatchNorm(gain.clone(), shift.clone()), nn.BatchNorm1d(5, dtype=torch.float64)
    theirs.weight.data, theirs.bias.data = gain, shift
    for _ in range(3):
        x = (3 * torch.randn(8, 5, dtype=torch.float64) + 1).requires_grad_()
        y, expected = ours(x), theirs(x)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(gradients(y, x), gradients(expected, x), rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.mean, theirs.running_mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.variance, theirs.running_var, rtol=0, atol=1e-12)
    torch.testing.assert_close(run([ours], False, x), theirs.eval()(x), rtol=0, atol=1e-12)
    assert ours.out is not x and not ours.training


def test_evaluation_looks_at_one_example_at_a_time():
    """Guards against running averages that evaluation moves, and answers that depend on the rest of the batch."""
    norm, x = BatchNorm(torch.ones(4), torch.zeros(4)), torch.randn(6, 4)
    norm(x)
    mean = norm.mean.clone()
    alone = torch.cat([run([norm], False, row[None]) for row in x])
    torch.testing.assert_close(run([norm], False, x), alone)
    assert torch.equal(norm.mean, mean)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(run([norm], True, x), alone)


def test_the_other_layers_are_torch_s():
    """Guards against rows in another order, and a last row that learns."""
    torch.manual_seed(0)
    table, weight, bias = torch.randn(5, 3), torch.randn(6, 4), torch.randn(4)
    x = torch.tensor([[0, 4], [2, 1]])
    layers = [Embedding(table), Linear(weight, bias), Tanh()]
    y = run(layers, True, x)
    torch.testing.assert_close(y, torch.tanh(F.linear(table[x].flatten(1), weight.T, bias)))
    assert layers[1].out.shape == (2, 4) and layers[2].out is y
    y.sum().backward()
    assert table.grad[4].abs().sum() == 0 and table.grad[0].abs().sum() > 0


def test_the_library_s_model_as_a_stack():
    """Guards against taps in another order, another start, and running averages that were left behind."""
    torch.manual_seed(0)
    config = MLP.Config(dim=4, context=3, hidden_dim=6, num_layers=2, batch_norm=True)
    model = SequenceModel(TokenSpec(8000, 1, 1, 5), MLP(config), Parallel(1)).double()
    x = torch.randint(5, (4, 1, 7))
    model.nll(Batch(x))  # moves the running averages
    stack, (contexts, following) = stack_of(model), examples(x, 3, 5)
    for training in (False, True):
        nats = F.cross_entropy(run(stack, training, contexts), following, reduction="sum")
        torch.testing.assert_close(nats, model.train(training).nll(Batch(x))[0], rtol=1e-12, atol=0)
