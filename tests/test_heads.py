"""Heads and embeddings against torch.distributions, slow loops and moments."""

import math
from unittest.mock import patch

import numpy as np
import pytest
import torch
from tiny import FRAMES, TOKENS, lively, random_input
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal
from torch.nn import functional as F

from audiogen.models.embeddings import CodeEmbedding, FrameEmbedding
from audiogen.models.flow_matching import FlowMatchingHead
from audiogen.models.heads import CategoricalHead, MixtureDensityHead
from audiogen.models.sampling import Sampling, uniforms
from audiogen.spec import FrameSpec

DIM = 10


def hidden(*shape):
    return torch.randn(*shape, DIM, dtype=torch.float64)


def with_previous(*shape, features=FRAMES.num_features):
    """What a density head takes: a hidden and the frame before."""
    return torch.randn(*shape, DIM + features, dtype=torch.float64)


def test_categorical_nll_equals_loops_of_cross_entropy(device):
    """Guards against rows and codes that swap places in the one product, and holes that are scored."""
    head = lively(CategoricalHead(TOKENS, DIM)).double().to(device)
    h, target = hidden(2, 6).to(device), random_input(TOKENS, 2, 6, device)
    target[1, 2, 3:] = TOKENS.codebook_size
    nll = head.nll(h, target)
    assert nll.shape == (2, 3, 6)
    for row in range(3):
        weights = slice(row * TOKENS.codebook_size, (row + 1) * TOKENS.codebook_size)
        for item in range(2):
            for step in range(6):
                logits = head.linear.weight[weights] @ h[item, step] + head.linear.bias[weights]
                code = target[item, row, step]
                hole = code == TOKENS.codebook_size
                expected = torch.zeros_like(logits[0]) if hole else F.cross_entropy(logits[None], code[None])
                torch.testing.assert_close(nll[item, row, step], expected, rtol=0, atol=1e-12)


def test_categorical_head_draws_each_row_with_its_own_number(device):
    """Guards against one uniform number shared by all rows, and rows drawn from each other's odds."""
    head = lively(CategoricalHead(TOKENS, DIM)).double().to(device)
    h = hidden(1).to(device)
    numbers = uniforms([5], 0, 20_000, head.num_uniforms)[0].to(device)
    drawn = head.sample(h.expand(20_000, -1), Sampling(), numbers)
    assert drawn.shape == (20_000, 3)
    odds = head.logits(h)[0].softmax(dim=-1).detach()
    for row in range(3):
        share = torch.bincount(drawn[:, row], minlength=TOKENS.codebook_size).double() / 20_000
        assert (share - odds[row]).abs().max() < 0.015
    together = ((drawn[:, 0] == odds[0].argmax()) & (drawn[:, 1] == odds[1].argmax())).double().mean()
    assert float(together) == pytest.approx(float(odds[0].max() * odds[1].max()), abs=0.015)


def test_half_precision_logits_are_scored_and_drawn_in_float32():
    """Guards against a softmax over many codes in eight bits of precision."""
    head = CategoricalHead(TOKENS, DIM).bfloat16()
    h = hidden(2, 4).bfloat16()
    assert head.logits(h).dtype == torch.float32
    assert head.nll(h, random_input(TOKENS, 2, 4)).dtype == torch.float32


def mixture(head, h):
    """The same density made from the head's weights by torch.distributions, component by component."""
    M, features = head.NUM_COMPONENTS, head.num_features
    h, previous = h[..., :DIM], h[..., None, DIM:]
    y = h @ head.linear.weight.T + head.linear.bias
    rest = y[..., M:].reshape(*y.shape[:-1], M, 2 * features)
    means, raw = rest[..., :features], rest[..., features:]
    # Written apart from the head: a deviation of MIN_SCALE (1 + e^(raw) / MIN_SCALE), since
    # log d = f + ln(1 + e^(raw - f)) with f = ln MIN_SCALE.
    deviations = head.MIN_SCALE + raw.exp()
    unmixed = torch.eye(features, dtype=h.dtype, device=h.device)
    for row in range(features):
        for column in range(row):
            unmixed[row, column] = head.below[row, column]
    mixed = torch.linalg.inv(unmixed) @ torch.diag_embed(deviations)
    factors = head.factors(h[..., :DIM]).unflatten(-1, (features, 1, -1)).movedim(-2, -3)  # (..., 1, F, R)
    inner = torch.eye(features, dtype=h.dtype, device=h.device) + factors @ factors.mT
    covariance = mixed @ inner @ mixed.mT
    density = MultivariateNormal(means + head.keep * previous, covariance, validate_args=False)
    return MixtureSameFamily(Categorical(logits=y[..., :M]), density)


def test_density_nll_equals_torch_distributions(device):
    """Guards against a missing 2 pi, a deviation taken for a variance, features and components that swap places, and
    holes that are scored."""
    head = lively(MixtureDensityHead(FRAMES, DIM)).double().to(device)
    h, target = with_previous(3, 5).to(device), random_input(FRAMES, 3, 5, device)
    expected = -mixture(head, h).log_prob(target.transpose(1, 2))
    torch.testing.assert_close(head.nll(h, target), expected[:, None], rtol=1e-10, atol=1e-10)

    target[0, 2, 1] = math.nan  # one such value makes the frame a hole
    target[2, :, 3:] = math.nan
    holes = torch.zeros(3, 5, dtype=torch.bool)
    holes[0, 1] = holes[2, 3] = holes[2, 4] = True
    nll = head.nll(h, target)[:, 0]
    assert not nll[holes].any()
    torch.testing.assert_close(nll[~holes], expected[~holes], rtol=1e-10, atol=1e-10)


def test_the_leading_bands_of_a_density_have_their_marginal_distribution():
    """Guards against weights that are cut along the wrong axis: a model of fewer bands must give the density that
    integrating out the others gives."""
    spec, fewer = FrameSpec(8000, 80, num_features=5), FrameSpec(8000, 80, num_features=3)
    head, cut = lively(MixtureDensityHead(spec, DIM)).double(), MixtureDensityHead(fewer, DIM).double()
    cut.load_state_dict(head.leading_bands(head.state_dict(), 3))
    h, target = with_previous(2, 4, features=5), random_input(spec, 2, 4)
    joint = mixture(head, h)
    normal = joint.component_distribution
    marginal = MixtureSameFamily(
        joint.mixture_distribution,
        MultivariateNormal(normal.loc[..., :3], normal.covariance_matrix[..., :3, :3], validate_args=False),
    )
    expected = -marginal.log_prob(target.transpose(1, 2)[..., :3])
    nll = cut.nll(h[..., : DIM + 3], target[:, :3])
    torch.testing.assert_close(nll, expected[:, None], rtol=1e-10, atol=1e-10)

    embed, narrow = FrameEmbedding(spec, DIM).double(), FrameEmbedding(fewer, DIM).double()
    narrow.load_state_dict(embed.leading_bands(embed.state_dict(), 3))
    silenced = torch.cat([target[:, :3], torch.zeros(2, 2, 4, dtype=target.dtype)], dim=1)
    torch.testing.assert_close(narrow(target[:, :3]), embed(silenced))


def test_holes_give_no_gradient_and_no_nan():
    """Guards against the NaN of a hole that comes back through the backward pass of a masked loss."""
    head, embed = MixtureDensityHead(FRAMES, DIM).double(), FrameEmbedding(FRAMES, DIM).double()
    target = random_input(FRAMES, 2, 4)
    target[1, :, 2:] = math.nan
    h = head.attach(embed(target), target)
    head.nll(h, target).sum().backward()
    for weight in (*head.parameters(), *embed.parameters()):
        assert weight.grad is None or weight.grad.isfinite().all()
    (gradient,) = torch.autograd.grad(head.nll(h, target).sum(), h)
    assert gradient.isfinite().all()
    assert not gradient[1, 2:].any()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_density_draws_have_the_moments_of_the_mixture(device, temperature):
    """Guards against features that share their noise, a component drawn with a number used for its values, and a
    temperature that does not reach the deviations."""
    spec = FrameSpec(8000, 80, num_features=2)
    head = lively(MixtureDensityHead(spec, DIM)).double().to(device)
    h, count = 0.1 * with_previous(1, features=2).to(device), 60_000  # small: the density lies within its LIMIT
    numbers = uniforms([1], 0, count, head.num_uniforms)[0].to(device)
    drawn = head.sample(h.expand(count, -1), Sampling(temperature=temperature), numbers)

    density = mixture(head, h)
    weights = density.mixture_distribution.probs[0] ** (1 / temperature)
    weights = weights / weights.sum()
    means = density.component_distribution.loc[0]
    covariances = density.component_distribution.covariance_matrix[0] * temperature**2
    mean = weights @ means
    squares = sum(w * (torch.outer(m, m) + c) for w, m, c in zip(weights, means, covariances, strict=True))
    covariance = squares - torch.outer(mean, mean)
    spread = float(covariance.detach().diag().sqrt().max())
    torch.testing.assert_close(drawn.mean(dim=0), mean, rtol=0, atol=0.02 * spread)
    torch.testing.assert_close(drawn.T.cov(), covariance, rtol=0, atol=0.04 * spread**2)


def test_density_at_temperature_zero_is_the_mean_of_the_weightiest_component():
    """Guards against zero times infinity: a deviation too large for a number must not make the mean NaN."""
    head = MixtureDensityHead(FRAMES, DIM).double()
    with torch.no_grad():
        head.linear.bias[2] = 5.0
        head.linear.bias[head.NUM_COMPONENTS :].view(head.NUM_COMPONENTS, 2, -1)[2, 1] = 1000.0
        h = torch.zeros(3, DIM + FRAMES.num_features, dtype=torch.float64)
        drawn = head.sample(h, Sampling(temperature=0), torch.rand(3, head.num_uniforms, dtype=torch.float64))
        mean = head.linear.bias[head.NUM_COMPONENTS :].view(head.NUM_COMPONENTS, 2, -1)[2, 0]
    torch.testing.assert_close(drawn, mean.expand(3, -1))


def test_an_untrained_density_goes_on_from_the_frame_before():
    """Guards against the frame before left out, or taken one step late: a short training would spend its time on
    learning that neighbours are alike."""
    head = MixtureDensityHead(FRAMES, DIM).double()
    frames = random_input(FRAMES, 2, 6)
    h = head.attach(torch.zeros(2, 6, DIM, dtype=torch.float64), frames)
    _, means, _ = head.parameters_of(h)
    expected = 0.9 * frames.transpose(1, 2)[:, :, None].expand_as(means)
    torch.testing.assert_close(means, expected + head.linear.bias[8:].view(8, 2, -1)[:, 0], rtol=0, atol=1e-6)


def test_deviations_have_a_floor():
    """Guards against a density that earns without bound on a band of digital silence."""
    head = MixtureDensityHead(FRAMES, DIM).double()
    with torch.no_grad():
        head.linear.bias[head.NUM_COMPONENTS :].view(head.NUM_COMPONENTS, 2, -1)[:, 1] = -1e4
    _, _, log_scales = head.parameters_of(torch.zeros(1, DIM + FRAMES.num_features, dtype=torch.float64))
    assert float(log_scales.detach().exp().min()) == pytest.approx(head.MIN_SCALE)


# ---- flow matching


@pytest.fixture
def flow():
    with patch.multiple(FlowMatchingHead, WIDTH=16, WAVES=3, BLOCKS=2):
        yield lambda spec: FlowMatchingHead(spec, DIM).double()


def test_an_untrained_flow_has_the_nats_of_a_standard_normal(flow):
    """The bound is a likelihood in nats: of a head that knows only that values have variance 1, it is the entropy of
    such values. Guards against a term or a weight left out, with which figures of two heads could not be compared."""
    spec = FrameSpec(8000, 80, num_features=50)
    head, target = flow(spec), torch.randn(4, 50, 500, dtype=torch.float64)
    h = torch.zeros(4, 500, DIM + 50, dtype=torch.float64)
    expected = 50 * (0.5 + 0.5 * math.log(2 * math.pi))
    assert float(head.nll(h, target).mean().detach()) == pytest.approx(expected, rel=0.02)
    assert float(head.loss(h, target).mean().detach()) == pytest.approx(expected, rel=0.05)  # at random levels
    normal = 0.5 * (target.square() + math.log(2 * math.pi)).sum(dim=1, keepdim=True)
    torch.testing.assert_close(head.exact_nll(h, target), normal, rtol=0, atol=0.2)


def test_the_bound_lies_above_the_nll_of_a_distribution_that_is_known(flow):
    """Of frames that are all 3 times a fixed vector plus noise of 0.5, the best velocity is known in closed form. With
    it the bound is near the entropy, and with any other it is higher."""
    spec = FrameSpec(8000, 80, num_features=40)
    head = flow(spec)
    center = 3 * torch.randn(40, dtype=torch.float64)
    target = (center[:, None] + 0.5 * torch.randn(2, 40, 400, dtype=torch.float64)).expand(2, -1, -1)
    h = torch.zeros(2, 400, DIM + 40, dtype=torch.float64)
    entropy = 40 * (0.5 + 0.5 * math.log(2 * math.pi) + math.log(0.5))

    def best(x, previous, conditioned):
        t = conditioned[1].clamp_max(1 - 1e-6)
        gain = 0.25 * t / (0.25 * t.square() + (1 - t).square())
        frame = center + gain * (x - t * center)  # the expectation given x
        return (frame - x) / (1 - t)

    untrained = float(head.nll(h, target).mean())
    head._conditioned, head._move = lambda t, h: ([], t), best
    assert entropy < float(head.nll(h, target).mean()) + 1 < entropy + 0.1 * 40 < untrained
    normal = 0.5 * (2 * (target - center[:, None])).square() + 0.5 * math.log(2 * math.pi) + math.log(0.5)
    torch.testing.assert_close(head.exact_nll(h, target), normal.sum(1, keepdim=True), rtol=0, atol=0.5)

    numbers = uniforms([1], 0, 4000, 40)[0]
    drawn = head.sample(h[0, :1].expand(4000, -1), Sampling(), numbers)
    inside = center.abs() < head.LIMIT - 2
    torch.testing.assert_close(drawn.mean(0)[inside], center[inside], rtol=0, atol=0.05)
    torch.testing.assert_close(drawn.std(0)[inside], torch.full_like(center[inside], 0.5), rtol=0, atol=0.1)


def smooth(head):
    """Draw weights that matter, with a velocity that changes slowly along the way, as that of a trained head does."""
    lively(head)
    with torch.no_grad():
        head.frequencies.mul_(1e-3)
        for linear in (head.out, head.gain):
            linear.weight.mul_(0.3)
    return head


def test_the_likelihood_of_a_flow_is_a_density(flow):
    """Its integral over all values is 1, and it is what the Jacobian of the whole way from a frame to its noise gives.
    Guards against a divergence of the wrong sign, and one that is taken where the way does not pass."""
    head = smooth(flow(FrameSpec(8000, 80, num_features=1)))
    grid = torch.linspace(-20, 20, 8001, dtype=torch.float64)
    h = torch.randn(1, 1, DIM + 1, dtype=torch.float64).expand(1, len(grid), -1)
    density = (-head.exact_nll(h, grid[None, None])).exp()[0, 0]
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1, abs=0.01)

    head = smooth(flow(FRAMES))
    x, h = torch.randn(200, FRAMES.num_features).double(), torch.randn(200, DIM + FRAMES.num_features).double()

    def noise_of(x, h, steps=60):
        for step in range(steps):
            t = 1 - (step + torch.tensor([0.0, 0.5], dtype=torch.float64)) / steps
            middle = x - head.velocity(x, t[:1], h) / (2 * steps)
            x = x - head.velocity(middle, t[1:], h) / steps
        return x

    jacobian = torch.func.vmap(torch.func.jacrev(noise_of))(x, h)  # (N, F, F)
    normal = 0.5 * (noise_of(x, h).square() + math.log(2 * math.pi)).sum(dim=1)
    gathered = torch.linalg.slogdet(jacobian).logabsdet
    found = normal - head.exact_nll(h[None], x.T[None])[0, 0]  # with estimates, whose mean is right
    assert float((found - gathered).mean()) == pytest.approx(0, abs=0.2)
    assert float(torch.corrcoef(torch.stack([found, gathered]))[0, 1]) > 0.7


def test_the_likelihood_of_a_flow_does_not_depend_on_the_batch(flow):
    """Guards against random signs that are drawn for a batch: the same file would have other nats beside others."""
    head = lively(flow(FRAMES))
    h, x = with_previous(3, 5), random_input(FRAMES, 3, 5)
    x[0, :, 3:] = math.nan
    alone = torch.cat([head.exact_nll(h[i : i + 1], x[i : i + 1]) for i in range(3)])
    together = head.exact_nll(h, x)
    torch.testing.assert_close(together, alone)
    assert not together[0, 0, 3:].any() and together[1:].all()
    with torch.inference_mode():
        torch.testing.assert_close(head.exact_nll(h + 0, x + 0), together)


def test_the_leading_bands_of_a_flow_are_those_of_a_network_that_sees_zeros_above(flow):
    """Guards against weights that are cut along the wrong axis: a base is trained with and without its upper bands."""
    spec, fewer = FrameSpec(8000, 80, num_features=5), FrameSpec(8000, 80, num_features=3)
    head, cut = lively(flow(spec)), flow(fewer)
    cut.load_state_dict(head.leading_bands(head.state_dict(), 3))
    h, x, t = with_previous(2, 4, features=5), torch.randn(2, 4, 5, dtype=torch.float64), torch.rand(2, 4, 1).double()
    h[..., DIM + 3 :] = x[..., 3:] = 0
    expected = head.velocity(x, t, h)[..., :3]
    torch.testing.assert_close(cut.velocity(x[..., :3], t, h[..., : DIM + 3]), expected)


def test_guidance_of_a_flow_is_that_of_its_velocities(flow):
    """Guards against guidance of the hidden, through which the velocity is not linear: scale 1 is the given, 0 the
    null, and 3 follows three times their difference at each step."""
    head = lively(flow(FRAMES))
    given, null = (torch.randn(6, DIM + FRAMES.num_features, dtype=torch.float64) for _ in range(2))
    numbers = torch.rand(6, head.num_uniforms, dtype=torch.float64)

    def drawn(h):
        return head.sample(h, Sampling(), numbers)

    torch.testing.assert_close(drawn(head.combine(given, null, 1.0)), drawn(given))
    torch.testing.assert_close(drawn(head.combine(given, null, 0.0)), drawn(null))

    def velocity(x, t):
        t = torch.full((6, 1), t, dtype=torch.float64)
        with_, without = head.velocity(x, t, given), head.velocity(x, t, null)
        return without + 3 * (with_ - without)

    x, size = torch.special.ndtri(numbers), head.CLEAN_FROM / head.STEPS
    for step in range(head.STEPS):
        middle = x + velocity(x, step * size) * size / 2
        x = x + velocity(middle, (step + 0.5) * size) * size
    x = x + (1 - head.CLEAN_FROM) * velocity(x, head.CLEAN_FROM)
    torch.testing.assert_close(drawn(head.combine(given, null, 3.0)), x.clamp(*head.range))


def test_a_flow_learns_what_no_gaussian_can():
    """Two values that are equal, or at times opposite, and never in between: trained for seconds, so are its draws.
    Guards against a loss whose gradient is not that of the velocity."""
    torch.manual_seed(0)
    with patch.multiple(FlowMatchingHead, WIDTH=64, WAVES=8, BLOCKS=2):
        head = FlowMatchingHead(FrameSpec(8000, 80, num_features=2), DIM).double()
    optimizer = torch.optim.Adam(head.parameters(), 5e-3)
    for _ in range(500):
        one = torch.sign(torch.randn(256, 1, 1, dtype=torch.float64))
        other = one * (1 - 2 * (torch.rand(256, 1, 1) < 0.25).double())
        target = torch.cat([one, other], 1) + 0.1 * torch.randn(256, 2, 1)
        h = torch.zeros(256, 1, DIM + 2, dtype=torch.float64)
        optimizer.zero_grad()
        head.loss(h, target).mean().backward()
        optimizer.step()
    drawn = head.sample(torch.zeros(2000, DIM + 2).double(), Sampling(), uniforms([1], 0, 2000, 2)[0])
    assert float(((drawn.abs() - 1).abs() < 0.5).double().mean()) > 0.85
    corners = (drawn.sign() @ torch.tensor([2.0, 1.0]).double()).unique(return_counts=True)[1]
    assert len(corners) == 4 and int(corners.min()) > 100
    assert float(head.nll(h, target).mean()) < 1.5  # a Gaussian has 2.84, the truth at most 1.26 - 1.77 = -0.5


def test_a_hole_of_a_flow_is_not_scored_and_a_draw_that_is_not_finite_is_a_hole(flow):
    """Guards against NaN that reaches a gradient, and a clamp that makes a number of it."""
    head, target = lively(flow(FRAMES)), random_input(FRAMES, 2, 4)
    target[1, :, 2:] = math.nan
    h = with_previous(2, 4).requires_grad_()
    for nats in (head.nll(h, target), head.loss(h, target)):
        assert not nats[1, 0, 2:].any() and nats.isfinite().all()
        (gradient,) = torch.autograd.grad(nats.sum(), h)
        assert gradient.isfinite().all() and not gradient[1, 2:].any()
    spoiled = h[:, 0].detach().clone()
    spoiled[1, 0] = math.nan
    drawn = head.sample(spoiled, Sampling(), torch.rand(2, head.num_uniforms, dtype=torch.float64))
    assert drawn[0].isfinite().all() and drawn[1].isnan().all()


def test_codes_embed_as_the_sum_of_a_vector_a_row(device):
    """Guards against rows that read each other's vectors, and a hole that reads a code's."""
    embed = CodeEmbedding(TOKENS, DIM).to(device)
    V, x = TOKENS.codebook_size, random_input(TOKENS, 2, 5, device)
    x[0, 1, 2] = x[1, 0, 0] = V
    tables = embed.table.weight.view(TOKENS.num_codebooks, V + 1, DIM)
    for item in range(2):
        for step in range(5):
            expected = sum(tables[row, x[item, row, step]] for row in range(TOKENS.num_codebooks))
            torch.testing.assert_close(embed(x)[item, step], expected)
    assert embed.is_hole(x).nonzero().tolist() == [[0, 1, 2], [1, 0, 0]]


def test_frames_embed_linearly_and_holes_as_zero(device):
    """Guards against NaN that reaches the backbone: one hole would then spoil the whole item."""
    embed = FrameEmbedding(FRAMES, DIM).double().to(device)
    x = random_input(FRAMES, 2, 5, device)
    x[1, :, 3] = math.nan
    y = embed(x)
    expected = F.linear(x[0].T, embed.linear.weight, embed.linear.bias)
    torch.testing.assert_close(y[0], expected)
    torch.testing.assert_close(y[1, 3], embed.linear.bias)
    assert embed.is_hole(x).nonzero().tolist() == [[1, 0, 3]]


def test_nothing_is_drawn_beyond_the_training_frames():
    """A draw louder than any recording, which the model has never seen and continues with noise."""
    head = lively(MixtureDensityHead(FRAMES, DIM)).double()
    sequences = [torch.rand(4, 9) - 0.5, torch.rand(4, 5) - 0.2]
    sequences[0][2, 3] = torch.nan
    before = dict(head.named_parameters())
    head.fit(iter(sequences))
    both = torch.cat(sequences, dim=1).numpy()
    assert head.range[0].tolist() == pytest.approx(np.nanmin(both, axis=1))
    assert head.range[1].tolist() == pytest.approx(np.nanmax(both, axis=1))
    assert all(x is before[name] for name, x in head.named_parameters())
    drawn = head.sample(with_previous(500), Sampling(3.0), uniforms(range(500), 0, 1, head.num_uniforms)[:, 0])
    assert (drawn >= head.range[0]).all() and (drawn <= head.range[1]).all()
    assert (drawn == head.range[0]).any() and (drawn == head.range[1]).any()
    leading = head.leading_bands(head.state_dict(), 2)
    assert torch.equal(leading["range"], head.range[:, :2])
