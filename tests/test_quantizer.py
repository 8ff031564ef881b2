"""The residual vector quantizer against slow loops, and the numbers that training it moves."""

import itertools

import pytest
import torch

from audiogen.distributed import World
from audiogen.frontends.neural import kmeans as kmeans_module
from audiogen.frontends.neural import quantizer as quantizer_module
from audiogen.frontends.neural.kmeans import kmeans, nearest
from audiogen.frontends.neural.quantizer import CodebookLearner, ResidualVQ
from audiogen.frontends.neural.reservoir import Reservoir


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def filled(num_codebooks=3, codebook_size=5, dim=4):
    quantizer = ResidualVQ(num_codebooks, codebook_size, dim).double()
    quantizer.codebooks.copy_(torch.randn(quantizer.codebooks.shape, generator=generator(1), dtype=torch.float64))
    return quantizer


def clusters(num_clusters=6, per_cluster=50, dim=3):
    """Points around far-off centres: (M, D), their centres (V, D)."""
    centres = 10 * torch.randn(num_clusters, dim, generator=generator(2), dtype=torch.float64)
    noise = torch.randn(num_clusters, per_cluster, dim, generator=generator(3), dtype=torch.float64)
    return (centres[:, None] + 0.1 * noise).flatten(0, 1), centres


def test_nearest_equals_a_slow_loop(monkeypatch):
    """Guards against a distance without its square of the codeword, and blocks put together in another order."""
    points, codebook = torch.randn(41, 3).double(), torch.randn(7, 3).double() * torch.arange(1, 8)[:, None]
    monkeypatch.setattr(kmeans_module, "BLOCK_POINTS", 10)
    expected = [min(range(7), key=lambda code: float((point - codebook[code]).norm())) for point in points]
    assert nearest(points, codebook).tolist() == expected
    assert nearest(torch.zeros(2, 3), torch.ones(4, 3)).tolist() == [0, 0], "the first of equals"


def test_each_codebook_codes_what_the_ones_before_it_left():
    """Guards against residuals of the input instead of the residual, and codes in (B, T, K)."""
    quantizer, x = filled(), torch.randn(2, 4, 6).double()
    codes = quantizer.encode(x)
    assert codes.shape == (2, 3, 6) and codes.is_contiguous()
    for item, frame in itertools.product(range(2), range(6)):
        rest = x[item, :, frame]
        for row in range(3):
            distances = (quantizer.codebooks[row] - rest).norm(dim=1)
            assert codes[item, row, frame] == distances.argmin()
            rest = rest - quantizer.codebooks[row, codes[item, row, frame]]
            decoded = quantizer.decode(codes[:, : row + 1])
            assert decoded.shape == (2, 4, 6)
            torch.testing.assert_close(x[item, :, frame] - decoded[item, :, frame], rest)


def test_kmeans_finds_planted_clusters():
    """Guards against a start that puts two centres into one cluster, which Lloyd's rounds do not mend."""
    points, centres = clusters()
    for seed in range(5):
        found = kmeans(points, 6, generator(seed))
        distances = torch.cdist(found, centres).min(0).values
        assert float(distances.max()) < 0.1


def test_kmeans_gives_means_of_what_is_nearest():
    """Guards against rounds that stop before they have settled, and sums divided by another count."""
    points = torch.randn(400, 2, generator=generator(4), dtype=torch.float64)
    centres = kmeans(points, 8, generator(), iterations=500)
    codes = nearest(points, centres)
    means = torch.stack([points[codes == code].mean(0) for code in range(8)])
    assert float((centres - means).norm(dim=1).max()) < 0.05
    error = (points - centres[codes]).square().sum(1).mean()
    worse = [
        (points - other[nearest(points, other)]).square().sum(1).mean()
        for other in (points[torch.randperm(400, generator=generator(seed))[:8]] for seed in range(20))
    ]
    assert error < 0.8 * min(worse), "better than the best of 20 random starts"


def test_kmeans_moves_empty_clusters(monkeypatch):
    """Guards against centres that no point is near, codes that nothing uses."""
    points, _ = clusters()
    start = torch.full((6, 3), 1e3, dtype=torch.float64)
    start[0] = points.mean(0)
    monkeypatch.setattr(kmeans_module, "_spread_start", lambda *_: start.clone())
    codes = nearest(points, kmeans(points, 6, generator()))
    assert codes.unique().numel() == 6


def test_kmeans_takes_as_many_points_as_clusters_but_no_fewer():
    points = torch.randn(9, 2, generator=generator(), dtype=torch.float64)
    assert nearest(points, kmeans(points.repeat(3, 1), 9, generator())).unique().numel() == 9
    with pytest.raises(ValueError, match="only 9 distinct points for 10 clusters"):
        kmeans(points.repeat(3, 1), 10, generator())


def test_kmeans_repeats_itself():
    points = torch.randn(500, 3, generator=generator())
    assert torch.equal(kmeans(points, 9, generator(1)), kmeans(points, 9, generator(1)))
    assert not torch.equal(kmeans(points, 9, generator(1)), kmeans(points, 9, generator(2)))


def test_fit_lowers_the_error_with_each_codebook():
    points = torch.randn(2000, 3, generator=generator())
    quantizer = ResidualVQ(4, 16, 3)
    quantizer.fit(points, generator())
    codes = quantizer.encode(points.T[None])
    errors = [float((quantizer.decode(codes[:, :rows]) - points.T).square().mean()) for rows in range(1, 5)]
    assert all(after < 0.5 * before for before, after in itertools.pairwise([1.0, *errors]))


def test_fit_of_too_few_points():
    """Jitter makes a codebook of points that are all alike, as the outputs of an untrained encoder may be."""
    points = torch.ones(8, 3)
    quantizer = ResidualVQ(3, 8, 3)
    with pytest.raises(ValueError, match="distinct"):
        quantizer.fit(points, generator())
    quantizer.fit(points, generator(), jitter=1e-3)
    assert quantizer.codebooks[0].unique(dim=0).shape == (8, 3)


def quantize(learner, x, depths, draws=None):
    """Quantizes a batch and trains the codebooks by one step."""
    found = learner.quantize(x, torch.tensor(depths), draws or generator())
    learner.update()
    return found


def test_straight_through_gives_the_encoder_the_decoders_gradient():
    """Guards against a gradient that is stopped, doubled, or goes to the codewords."""
    quantizer = filled()
    x = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    expected = quantizer.decode(quantizer.encode(x))
    quantized, commitment_loss = quantize(CodebookLearner(quantizer), x, [3, 3])
    torch.testing.assert_close(quantized, expected)
    weight = torch.randn(2, 4, 6).double()
    (quantized * weight).sum().backward()
    torch.testing.assert_close(x.grad, weight)
    assert commitment_loss.requires_grad


def test_commitment_loss_equals_its_definition():
    """Mean squared distance of what each codebook was given to what it chose, summed over the codebooks."""
    quantizer, x = filled(), torch.randn(2, 4, 6).double()
    codes, expected = quantizer.encode(x), 0
    for row in range(3):
        expected += (x - quantizer.decode(codes[:, : row + 1])).square().mean()
    torch.testing.assert_close(quantize(CodebookLearner(quantizer), x, [3, 3])[1], expected)


def test_an_item_is_made_of_its_first_codebooks_only():
    """Guards against quantizer dropout that drops the first codebooks, or the same number for each item."""
    quantizer, x = filled(), torch.randn(3, 4, 6).double()
    codes = quantizer.encode(x)
    quantized, _ = quantize(CodebookLearner(quantizer), x, [1, 2, 1])
    expected = filled()
    for item, rows in enumerate((1, 2, 1)):
        torch.testing.assert_close(quantized[item], expected.decode(codes[:, :rows])[item])


def test_codewords_follow_the_moving_average_of_what_chose_them(monkeypatch):
    """The oracle is the definition, one codeword at a time."""
    monkeypatch.setattr(quantizer_module, "REVIVE_BELOW", 0.1)  # none dies
    quantizer = filled(num_codebooks=1)
    learner = CodebookLearner(quantizer, decay=0.9)
    counts, sums = torch.ones(5).double(), quantizer.codebooks[0].clone()
    for step in range(3):
        x = torch.randn(1, 4, 60, generator=generator(step), dtype=torch.float64)
        codes = quantizer.encode(x)[0, 0]
        quantize(learner, x, [1])
        for code in range(5):
            chosen = x[0].T[codes == code]
            counts[code] = 0.9 * counts[code] + 0.1 * len(chosen)
            sums[code] = 0.9 * sums[code] + 0.1 * chosen.sum(0)
        torch.testing.assert_close(quantizer.codebooks[0], sums / counts[:, None])
    share = counts / counts.sum()
    torch.testing.assert_close(learner.perplexity(), torch.exp(-(share * share.log()).sum())[None])
    torch.testing.assert_close(learner.usage(), (counts >= 0.1 * counts.mean()).float().mean()[None])


@pytest.mark.parametrize("lookup_dim", [None, 3])
def test_codewords_that_nothing_chooses_are_put_to_use(lookup_dim):
    """Guards against a codebook of which a few codes are all that is ever used."""
    points, _ = clusters(num_clusters=8)
    x = points.T[None]  # (1, D, M)
    quantizer = ResidualVQ(1, 8, 3, lookup_dim).double()
    quantizer.codebooks.fill_(1e3)
    quantizer.codebooks[0, 0] = 0
    learner = CodebookLearner(quantizer, decay=0.9)
    draws = generator()
    for _ in range(200):
        quantize(learner, x, [1], draws)
    codes = quantizer.encode(x)
    assert codes.unique().numel() >= 7
    if lookup_dim is None:
        assert float((quantizer.decode(codes) - x).square().mean()) < 0.3 * float(x.var())


@torch.no_grad()
def test_a_factorised_lookup_equals_a_slow_loop():
    """Guards against a distance in the place of an angle, projections of another codebook, and residuals in the small
    space."""
    torch.manual_seed(0)
    quantizer, x = ResidualVQ(3, 7, 6, lookup_dim=2).double(), torch.randn(2, 6, 5).double()
    points = torch.randn(200, 6, generator=generator(), dtype=torch.float64)
    quantizer.fit(points, generator())
    torch.testing.assert_close(quantizer.codebooks.norm(dim=2), torch.ones(3, 7).double())
    codes = quantizer.encode(x)
    for item, frame in itertools.product(range(2), range(5)):
        left = x[item, :, frame]
        for row in range(3):
            seen = quantizer.inward[row] @ left
            cosines = [float(seen @ word / seen.norm() / word.norm()) for word in quantizer.codebooks[row]]
            assert int(codes[item, row, frame]) == max(range(7), key=cosines.__getitem__)
            left = left - quantizer.outward[row] @ quantizer.codebooks[row, codes[item, row, frame]]
        torch.testing.assert_close(quantizer.decode(codes)[item, :, frame], x[item, :, frame] - left)


def test_factorised_codebooks_teach_their_projections_and_the_encoder():
    """Guards against a lookup that cuts the encoder off, and projections that stay as they were drawn."""
    torch.manual_seed(0)
    quantizer = ResidualVQ(2, 5, 6, lookup_dim=3).double()
    quantizer.fit(torch.randn(100, 6).double(), generator())
    x = torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True)
    expected = quantizer.decode(quantizer.encode(x))
    quantized, commitment_loss = quantize(CodebookLearner(quantizer), x, [2, 2])
    torch.testing.assert_close(quantized, expected)
    (quantized.sum() + commitment_loss).backward()
    for tensor in (x, quantizer.inward, quantizer.outward):
        assert bool((tensor.grad.flatten(1).abs().sum(1) > 0).all())


def learn_together(rank, folder):
    """One of two processes, each with frames of its own; writes what its codebooks have become."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    quantizer = ResidualVQ(2, 4, 3)
    learner = CodebookLearner(quantizer, decay=0.5, world=World(rank, 2))
    learner.start(torch.randn(50, 3, generator=generator(rank)), generator(rank))
    for step in range(5):
        x = torch.randn(2, 3, 20, generator=generator(10 * step + rank)) * 9**step  # most codewords die
        quantize(learner, x, [2, 1], generator(step + 100 * rank))
    torch.save(learner.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_all_processes_have_the_same_codebooks(tmp_path):
    """Guards against codebooks that drift apart at their start, their averages or their revival, so that ranks speak
    different languages."""
    torch.multiprocessing.spawn(learn_together, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert float(first["counts"].sum()) > 2 * 40, "both processes' frames count"


def test_the_reservoir_is_fair_and_in_order():
    """Guards against a sample that favours the first files, or the long ones."""
    taken = torch.zeros(100)
    for seed in range(2000):
        reservoir = Reservoir(10, generator(seed))
        for start, stop in ((0, 1), (1, 30), (30, 31), (31, 95), (95, 100)):
            reservoir.add(torch.arange(start, stop).float()[:, None])
        rows = reservoir.rows()[:, 0]
        assert len(rows) == 10 and bool((rows.diff() > 0).all())
        taken[rows.long()] += 1
    assert float(taken.sum()) == 20_000
    assert float((taken - 200).abs().max()) < 5 * (200 * 0.9) ** 0.5  # five standard deviations of a fair draw


def test_the_reservoir_keeps_all_while_it_can():
    reservoir = Reservoir(50, generator())
    for start in range(0, 50, 5):
        reservoir.add(torch.arange(start, start + 5)[:, None])
    assert reservoir.rows()[:, 0].tolist() == list(range(50))
