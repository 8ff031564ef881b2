"""Draws against slow loops in float64, and uniform numbers against the published answers of Philox."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from audiogen.errors import ConfigError
from audiogen.models import sampling as sampling_module
from audiogen.models.sampling import Sampling, draw, fresh_seeds, philox, probabilities, uniforms

# --- uniform numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "counter, key, expected",
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers(counter, key, expected):
    """The vectors of philox4x32 10 in kat_vectors of Random123. Guards against a generator that only looks random."""
    words = philox(*([np.uint64(int(word, 16)) for word in text.split()] for text in (counter, key)))
    assert [f"{int(word):08x}" for word in words] == expected.split()


def slow_philox(counter, key):
    """Salmon et al. 2011, section 3.3, with Python's own integers."""
    (a, b, c, d), (low, high) = counter, key
    for _ in range(10):
        x, y = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (y >> 32) ^ b ^ low, y % 2**32, (x >> 32) ^ d ^ high, x % 2**32
        low, high = (low + 0x9E3779B9) % 2**32, (high + 0xBB67AE85) % 2**32
    return a, b, c, d


@given(seed=st.integers(0, 2**64 - 1), step=st.integers(0, 2**50), count=st.integers(1, 9))
def test_a_uniform_number_is_a_pure_function_of_seed_and_step(seed, step, count):
    """Guards against numbers that change with the block they are made in, the other items, or how many are asked for:
    what this test says must stay true for ever, or old seeds no longer give their sounds."""
    expected = []
    for pair in range((count + 1) // 2):
        words = slow_philox((pair, step % 2**32, step >> 32, 0), (seed % 2**32, seed >> 32))
        for first, second in (words[:2], words[2:]):
            expected.append(((first >> 5) * 2**26 + (second >> 6)) / 2**53)
    got = uniforms([seed], step, step + 1, count)
    assert got.dtype == torch.float64
    assert got[0, 0].tolist() == pytest.approx(expected[:count], rel=0, abs=2**-50)

    block = uniforms([11, seed, 12], max(0, step - 3), step + 5, count + 2)
    assert torch.equal(block[1, min(step, 3), :count], got[0, 0])


@pytest.mark.parametrize("word", [0, 0xFFFFFFFF])
def test_uniform_numbers_never_reach_zero_or_one(monkeypatch, word):
    """Guards against the draw of a code that was filtered out, and a frame of infinities: rounding must not reach an
    end."""
    monkeypatch.setattr(sampling_module, "philox", lambda counter, key: [np.full((1, 1, 1), word, np.uint64)] * 4)
    extreme = float(uniforms([0], 0, 1, 1))
    assert 0 < extreme < 1
    assert extreme < 1e-15 or extreme > 1 - 1e-15
    assert torch.special.ndtri(torch.tensor(extreme, dtype=torch.float64)).isfinite()


def test_uniform_numbers_are_uniform_and_unrelated():
    """Guards against words used twice: by the two numbers of a pair, by neighbouring steps or by neighbouring seeds."""
    numbers = uniforms(range(40), 0, 250, 4).numpy()  # (seeds, steps, numbers)
    assert stats.kstest(numbers.flatten(), "uniform").pvalue > 1e-3
    assert len(np.unique(numbers)) == numbers.size
    for other in (np.roll(numbers, 1, axis=0), np.roll(numbers, 1, axis=1), np.roll(numbers, 1, axis=2)):
        assert abs(np.corrcoef(numbers.flatten(), other.flatten())[0, 1]) < 4 / math.sqrt(numbers.size)


def test_seeds_out_of_range_are_refused():
    """Guards against the traceback of an integer that does not fit into 64 bits."""
    for seed in (-1, 2**64):
        with pytest.raises(ConfigError, match=f"seed.*{seed}"):
            uniforms([seed], 0, 1, 1)


def test_fresh_seeds_are_fresh_and_can_be_typed():
    """Guards against the same "random" seeds on every start."""
    seeds = fresh_seeds(50)
    assert len(set(seeds)) == 50
    assert all(0 <= seed < 2**31 for seed in seeds)


# --- filters and draws ---------------------------------------------------------------------------------------------


def slow_probabilities(logits, sampling):
    """The filters one code at a time, for one row of logits."""
    top = max(logits)
    weights = [math.exp((x - top) / sampling.temperature) for x in logits]
    p = [weight / math.fsum(weights) for weight in weights]

    def keep(kept):
        total = math.fsum(p[i] for i in kept)
        return [p[i] / total if i in kept else 0.0 for i in range(len(p))]

    ranked = sorted(range(len(p)), key=lambda i: (-p[i], i))
    if sampling.top_k is not None:
        p = keep(set(ranked[: sampling.top_k]))
    if sampling.top_p is not None:
        kept, held = set(), 0.0
        for i in ranked:
            if held >= sampling.top_p:
                break
            kept.add(i)
            held += p[i]
        p = keep(kept)
    if sampling.min_p is not None:
        p = keep({i for i in range(len(p)) if p[i] >= sampling.min_p * max(p)})
    return p


samplings = st.builds(
    Sampling,
    temperature=st.floats(0.05, 5),
    top_k=st.none() | st.integers(1, 25),
    top_p=st.none() | st.floats(0.01, 1),
    min_p=st.none() | st.floats(0, 1),
)


@given(seed=st.integers(0, 10**6), size=st.integers(1, 20), spread=st.floats(0.1, 30), sampling=samplings)
def test_filters_equal_slow_loops(seed, size, spread, sampling):
    """Guards against filters in another order, a nucleus that forgets the code which crosses its edge, and
    probabilities that are filtered but no longer sum to one."""
    logits = torch.randn(3, 2, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread
    p = probabilities(logits, sampling)
    assert p.dtype == torch.float64
    torch.testing.assert_close(p.sum(dim=-1), torch.ones(3, 2, dtype=torch.float64))
    for got, row in zip(p.flatten(0, 1).tolist(), logits.flatten(0, 1).tolist(), strict=True):
        assert got == pytest.approx(slow_probabilities(row, sampling), abs=1e-12)


@given(seed=st.integers(0, 10**6), size=st.integers(1, 20), sampling=samplings)
def test_draws_equal_a_slow_inverse(device, seed, size, sampling):
    """Guards against a draw off by one code, one in float32, and one that lands on a code that was filtered out."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(40, size, generator=generator) * 3
    numbers = torch.rand(40, generator=generator, dtype=torch.float64)
    got = draw(logits.to(device), sampling, numbers.to(device))
    assert got.dtype == torch.int64
    for code, row, number in zip(got.tolist(), logits.double().tolist(), numbers.tolist(), strict=True):
        p = slow_probabilities(row, sampling)
        below, upto = math.fsum(p[:code]), math.fsum(p[: code + 1])
        assert p[code] > 0
        assert below - 1e-12 <= number <= upto + 1e-12


def test_edges_fall_where_the_documentation_says():
    """Guards against a nucleus that takes one code more than it needs, and a number on the edge that draws the code
    below it. (Powers of two, so that nothing is rounded.)"""
    even = torch.zeros(4, 4)
    assert probabilities(even[0], Sampling(top_p=0.25)).tolist() == [1, 0, 0, 0]
    assert probabilities(even[0], Sampling(top_p=0.5)).tolist() == [0.5, 0.5, 0, 0]
    numbers = torch.tensor([0.25, 0.5, 0.75, 0.75 - 2.0**-53], dtype=torch.float64)
    assert draw(even, Sampling(), numbers).tolist() == [1, 2, 3, 2]


@pytest.mark.parametrize("number", [2.0**-54, 1 - 2.0**-53])
@pytest.mark.parametrize("size", [2, 3, 10, 1024])
def test_the_ends_of_the_line_never_land_on_a_filtered_code(device, number, size):
    """Guards against the gap that rounding leaves above the last probability, and the zeros below the first."""
    logits = torch.randn(200, size).to(device)
    numbers = torch.full((200,), number, dtype=torch.float64, device=device)
    for sampling in (Sampling(top_k=1), Sampling(top_p=0.5), Sampling(min_p=0.9), Sampling(top_k=max(1, size // 2))):
        drawn = draw(logits, sampling, numbers)
        assert (probabilities(logits, sampling).gather(1, drawn[:, None]) > 0).all()


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(temperature=0.7, top_k=12), Sampling(top_p=0.8), Sampling(temperature=1.5, min_p=0.2)],
    ids=repr,
)
def test_frequencies_are_the_probabilities(sampling):
    """Guards against a bias: chi-square over 40,000 draws with the library's own uniform numbers."""
    logits = torch.linspace(-1.5, 1.5, 20)[torch.randperm(20)]
    drawn = draw(logits.expand(40_000, -1), sampling, uniforms([3], 0, 40_000, 1)[0, :, 0])
    p = torch.tensor(slow_probabilities(logits.double().tolist(), sampling))
    counts = torch.bincount(drawn, minlength=20)
    assert not counts[p == 0].any()
    kept = p > 0
    expected = p[kept].double() / p[kept].double().sum() * 40_000
    assert stats.chisquare(counts[kept].numpy(), expected.numpy()).pvalue > 1e-3


def test_temperature_zero_takes_the_most_probable_code():
    """Guards against a division by zero, and a uniform number that still matters."""
    logits = torch.randn(50, 3, 9)
    for number in (0.001, 0.999):
        drawn = draw(logits, Sampling(temperature=0), torch.full((50, 3), number, dtype=torch.float64))
        assert torch.equal(drawn, logits.argmax(dim=-1))
    top_one = draw(logits, Sampling(top_k=1), torch.rand(50, 3, dtype=torch.float64))
    assert torch.equal(top_one, logits.argmax(dim=-1))


def test_a_temperature_near_zero_is_still_a_number():
    """Guards against logits divided into infinities, whose softmax is NaN and whose draw is then silently code 0."""
    logits = torch.tensor([-1.0, 2.0, 1.0])
    for temperature in (1e-3, 1e-30):
        assert probabilities(logits, Sampling(temperature=temperature)).tolist() == [0, 1, 0]


def test_ties_are_broken_by_the_lower_code(device):
    """Guards against more than k codes let through by a tie at the edge, and engines that break ties another way."""
    logits = torch.zeros(6, device=device)
    assert probabilities(logits, Sampling(top_k=2)).tolist() == [0.5, 0.5, 0, 0, 0, 0]
    assert probabilities(logits, Sampling(top_p=0.4)).tolist() == pytest.approx([1 / 3] * 3 + [0] * 3)
    assert probabilities(logits, Sampling(min_p=1.0)).tolist() == pytest.approx([1 / 6] * 6)
    assert int(draw(logits, Sampling(temperature=0), torch.tensor(0.9))) == 0


def test_filters_that_keep_everything_change_nothing():
    """Guards against a top-k above the codebook's size that fails, and filters at their ends that cut."""
    logits = torch.randn(4, 10)
    expected = probabilities(logits, Sampling())
    for sampling in (Sampling(top_k=10), Sampling(top_k=99), Sampling(top_p=1.0), Sampling(min_p=0.0)):
        torch.testing.assert_close(probabilities(logits, sampling), expected)


@pytest.mark.parametrize(
    "name, value",
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", 0),
        ("top_k", -3),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", math.nan),
    ],
)
def test_settings_out_of_range_are_refused(name, value):
    """Guards against a setting that leaves no code to draw, or every one."""
    with pytest.raises(ConfigError, match=f"{name}: .*{value}"):
        Sampling(**{name: value})
