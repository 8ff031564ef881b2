"""Generate the sounds that a run is judged by."""

from collections.abc import Mapping

from torch import Tensor

from ..audio.io import mono
from ..models.sampling import Sampling
from ..runs.run import Run

#: Maximum seconds of a sound; sounds generated in parallel.
CLIP_SECONDS, BATCH = 4.0, 10

#: A sound (1, N) with its labels by name.
Labelled = tuple[Tensor, Mapping[str, str]]


def generate_sounds(
    run: Run, num: int, seed: int = 0, sampling: Sampling | None = None, guidance: float | None = None, best_of: int = 1
) -> list[Labelled]:
    """Generate sounds as a run does by default, each with the labels that it was asked for.

    Labels, if the run has any, are in the proportions of the training files. Sounds are complete ones if the run has
    learned where files end, otherwise clips of CLIP_SECONDS.

    Args:
        run: a run.
        num: number of sounds.
        seed: seed of the first one; sound i uses seed + i * best_of.
        sampling: temperature and filters; None for the run's own.
        guidance: how strongly to follow the labels; None for the run's own.
        best_of: draw each sound so many times, and keep the one that says most clearly what is asked for.
    """
    firsts, most = range(seed, seed + num * best_of, best_of), round(CLIP_SECONDS * run.sample_rate)
    asked = run.ask(None, firsts)
    order = list(range(num))
    if asked and run.knows_ends:  # a batch takes as long as its longest sound
        order.sort(key=lambda i: asked.durations[i][0])
    made: dict[int, Tensor] = {}
    for first in range(0, num, BATCH):
        places = order[first : first + BATCH]
        seeds = [firsts[i] for i in places]
        if run.knows_ends:
            request, lengths = run.request_with_end(seeds, sampling, guidance=guidance, best_of=best_of)
        else:
            request = run.request(seeds=seeds, sampling=sampling, guidance=guidance, best_of=best_of)
            lengths = [most] * len(seeds)
        x = mono(run.generate_request(min(most, max(lengths)) / run.sample_rate, request).x).cpu()
        made |= {i: wav[:, :length] for i, wav, length in zip(places, x, lengths, strict=True)}
    return [(made[i], asked.words[i] if asked else {}) for i in range(num)]
