"""The k-means of lesson 2 beside its definition."""

import torch

from audiogen.course.kmeans import nearest_to, typical_frames


def test_each_typical_frame_is_the_mean_of_those_nearest_to_it():
    """Guards against a mean over the wrong frames: after enough rounds nothing moves any more, and what is found is
    near."""
    generator = torch.Generator().manual_seed(1)
    heaps = 10 * torch.eye(4)
    frames = (heaps[:, None] + torch.randn(4, 50, 4, generator=generator)).flatten(0, 1)  # (200, 4)
    typical = typical_frames(frames, 6, rounds=50)
    nearest = nearest_to(typical, frames)
    for code in range(6):
        torch.testing.assert_close(typical[code], frames[nearest == code].mean(dim=0))
    slow = [min(range(6), key=lambda code: float((frame - typical[code]).square().sum())) for frame in frames]
    assert nearest.tolist() == slow
    before = typical_frames(frames, 6, rounds=0)
    assert all(any(torch.equal(row, frame) for frame in frames) for row in before)  # some of the frames
    assert _distance(frames, typical) < _distance(frames, before)


def test_a_typical_frame_that_is_nearest_to_none_stays():
    """Guards against a mean of nothing, which is NaN: of frames that are all alike, all but one have none."""
    assert torch.equal(typical_frames(torch.ones(5, 3), 3), torch.ones(3, 3))


def _distance(frames: torch.Tensor, typical: torch.Tensor) -> float:
    return float((frames - typical[nearest_to(typical, frames)]).square().mean())
