"""Compare generated sound with held-out recordings: distance, brightness, level, pulse, copies of training sound."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..runs.run import Run
from .distribution import frechet, kad, log_mel_levels, log_mel_statistics, noise_of_spectrum

#: Maximum seconds of recordings to compare with.
MOST_SECONDS = 120.0
#: Frames per second and bands of the features that detect copies; maximum seconds of training sound to search.
COPY_RATE, COPY_BANDS, COPY_SECONDS = 25, 32, 1800.0
REPLICATES = 200
#: Seconds of a window in which a pulse is sought; between which a period may lie.
PULSE_SECONDS, PERIODS = 4.0, (0.2, 1.5)
#: Below this level (dB relative to a full-scale sine) a tenth of a second is silent.
SILENCE = -60.0


@torch.inference_mode()
def judge_generated(
    run: Run, made: Sequence[Tensor], recordings: Sequence[Tensor], training: Iterable[Tensor] | None
) -> dict[str, Any]:
    """Compare sounds that a run has generated with recordings that it was not trained on.

    Args:
        run: a trained run.
        made: generated wavs (1, N).
        recordings: held-out wavs (1, N) at the run's sample rate.
        training: sequences (C, T) that the run was trained on; None if they no longer exist.

    Returns:
        JSON values: `num`, number of sounds; `sampling`; `kad` {name: {"value", "low", "high", "n"}} and `frechet`
        {name: value} of the generated sound, of the round trip of training sound (the floor), and of noise with the
        recordings' spectrum and recordings played backwards (the ceilings; the distance of the latter is low, since
        means and deviations over a second hardly depend on the direction of time); `centroid`, `silence`, `level`,
        `change` and `pulse` {"generated", "recordings"}, None for shorter sounds in the last two; `copies`, see
        `copies_among`. All but `num` are None if there are less than two seconds of recordings.
    """
    rate = run.sample_rate
    recordings = _most(recordings, MOST_SECONDS * rate)
    if sum(wav.shape[1] for wav in recordings) < 2 * rate:
        return {
            "num": len(made),
            "kad": None,
            "frechet": None,
            "centroid": None,
            "silence": None,
            "level": None,
            "change": None,
            "pulse": None,
            "copies": None,
        }
    sets = {"generated": list(made)}
    kept = None if training is None else _most(training, COPY_SECONDS * (run.frontend.spec.frame_rate or rate))
    if kept is not None:
        sets["training"] = _decoded(run, _most(kept, MOST_SECONDS / 2 * (run.frontend.spec.frame_rate or rate)))
    sets |= {"noise": noise_of_spectrum(recordings), "backwards": [wav.flip(1) for wav in recordings]}
    reference = log_mel_statistics(recordings, rate)
    embedded = {name: log_mel_statistics(wavs, rate) for name, wavs in sets.items()}
    changes = {"generated": change(embedded["generated"]), "recordings": change(reference)}
    embedded = {name: x for name, x in embedded.items() if len(x) >= 2}
    return {
        "num": len(made),
        "sampling": asdict(run.sampling),
        "kad": {name: asdict(kad(reference, x)) for name, x in embedded.items()},
        "frechet": {name: frechet(reference, x) for name, x in embedded.items()},
        "centroid": {"generated": centroid(made, rate), "recordings": centroid(recordings, rate)},
        "silence": {"generated": silence(made, rate), "recordings": silence(recordings, rate)},
        "level": {"generated": level(made), "recordings": level(recordings)},
        "change": changes,
        "pulse": {"generated": pulse(made, rate), "recordings": pulse(recordings, rate)},
        "copies": None if kept is None else _copies(run, made, recordings, kept),
    }


def copies_among(made: Tensor, held_out: Tensor, training: Tensor) -> dict[str, float] | None:
    """Find the nearest training second to each generated second, and to each held-out second.

    Held-out seconds show how near a new recording of the same source comes; copies come nearer.

    Args:
        made: features of generated seconds (N, D).
        held_out: features of held-out seconds (M, D).
        training: features of training seconds, at all shifts (L, D).

    Returns:
        `generated` and `held_out`, the median distances (mean absolute differences); `nearer`, the share of generated
        seconds that are nearer than 95 % of the held-out ones (0.05 is expected by chance); `low`, the lower end of its
        95 % interval; `n`, the number of generated seconds. None if a set is empty.
    """
    if not (len(made) and len(held_out) and len(training)):
        return None
    generated, others = (_nearest(x, training) for x in (made, held_out))
    nearer = float((generated < others.quantile(0.05)).double().mean())
    # Bootstrap both sets: with few held-out seconds, the limit of the nearest 5 % is uncertain too.
    generator, shares = torch.Generator().manual_seed(0), []
    for _ in range(REPLICATES):
        one, two = (x[torch.randint(len(x), (len(x),), generator=generator)] for x in (generated, others))
        shares.append(float((one < two.quantile(0.05)).double().mean()))
    low = float(torch.tensor(shares).quantile(0.025))
    medians = {"generated": float(generated.median()), "held_out": float(others.median())}
    return {**medians, "nearer": nearer, "low": low, "n": len(generated)}


def centroid(wavs: Iterable[Tensor], sample_rate: int) -> tuple[float, float, float]:
    """Return the 10th, 50th and 90th percentile of the spectral centroid in Hz over windows that are not silent.

    Args:
        wavs: (1, N) each.
        sample_rate: Hz.
    """
    windows = _windows(wavs, sample_rate)  # (N, n)
    spectrum = torch.fft.rfft(windows * torch.hann_window(windows.shape[1])).abs().square()
    hertz = torch.linspace(0, sample_rate / 2, spectrum.shape[1])
    power = spectrum.sum(dim=1)
    heard = _levels(windows) > SILENCE
    if not heard.any():
        return (0.0, 0.0, 0.0)
    centres = (spectrum @ hertz)[heard] / power[heard]
    low, middle, high = torch.quantile(centres, torch.tensor([0.1, 0.5, 0.9])).tolist()
    return (low, middle, high)


def silence(wavs: Iterable[Tensor], sample_rate: int) -> float:
    """Return the share of windows of 0.1 s of wavs (1, N) whose level is below SILENCE."""
    return float((_levels(_windows(wavs, sample_rate)) <= SILENCE).double().mean())


def level(wavs: Iterable[Tensor]) -> float:
    """Return the level of wavs (1, N) in dB relative to a full-scale sine, by their mean power."""
    return float(_levels(torch.cat(list(wavs), dim=1)))


def change(statistics: Tensor) -> float | None:
    """Return by how many dB the level of a mel band deviates from its mean within a second, on average.

    A model that is too sure of what comes next makes sound that changes too little.

    Args:
        statistics: result of `log_mel_statistics`, (N, 2 bands). None is returned if there are no windows.
    """
    return float(statistics.chunk(2, dim=1)[1].mean()) if len(statistics) else None


def pulse(wavs: Iterable[Tensor], sample_rate: int) -> tuple[float, float, float] | None:
    """Measure how regularly onsets follow each other, which statistics of single seconds don't tell.

    It is the highest autocorrelation of the onset strength over windows of PULSE_SECONDS, at a lag within PERIODS: near
    1 for a steady beat, near 0 for onsets at any time.

    Args:
        wavs: (1, N) each.
        sample_rate: Hz.

    Returns:
        The 10th, 50th and 90th percentile over windows that have onsets; None if there are none.

    Source: Lartillot et al. 2008, Multi-Feature Modeling of Pulse Clarity, section 3.
    """
    import librosa

    length, hop, found = round(PULSE_SECONDS * sample_rate), round(sample_rate / 100), []
    first, last = (round(100 * seconds) for seconds in PERIODS)
    for window in (piece for wav in wavs for piece in wav[0].split(length) if len(piece) == length):
        onsets = librosa.onset.onset_strength(y=window.cpu().numpy(), sr=sample_rate, hop_length=hop)
        onsets = onsets - onsets.mean()
        similar = librosa.autocorrelate(onsets)
        if similar[0] > 0:
            unbiased = similar[first:last] / (len(onsets) - np.arange(first, last)) * len(onsets)
            found.append(float(unbiased.max() / similar[0]))
    if not found:
        return None
    low, middle, high = np.quantile(found, [0.1, 0.5, 0.9]).tolist()
    return (low, middle, high)


def _copies(run: Run, made: Sequence[Tensor], recordings: Sequence[Tensor], training: Sequence[Tensor]):
    sets = [[run.frontend.encode(wav[None].to(run.frontend.device))[0] for wav in wavs] for wavs in (made, recordings)]
    generated, held_out = (_seconds(_bands(run, sequences), COPY_RATE) for sequences in sets)
    return copies_among(generated, held_out, _seconds(_bands(run, training), 1))


def _bands(run: Run, sequences: Iterable[Tensor]) -> Iterator[Tensor]:
    """Compute coarse log-mel bands, COPY_RATE times per second: (C, T) each -> (COPY_BANDS, t) each.

    The frames of mel front-ends are used as they are, in standard deviations, without decoding.
    """
    front = run.frontend
    for x in sequences:
        found = front.frames_of(x[None].to(front.device))
        if found is not None:
            frames = found[0].cpu()  # (F, T); a frame of the model may be several of them
            rate = front.spec.frame_rate * frames.shape[1] / x.shape[1]
        else:
            frames = log_mel_levels(_decoded(run, [x])[0], front.spec.sample_rate)[0] / 10
            rate = 4 * front.spec.sample_rate / 2 ** round(math.log2(0.046 * front.spec.sample_rate))
        length = max(1, round(frames.shape[1] * COPY_RATE / rate))
        yield F.adaptive_avg_pool2d(frames[None], (COPY_BANDS, length))[0]


def _seconds(bands: Iterable[Tensor], step: int) -> Tensor:
    """Cut bands (COPY_BANDS, t) into windows of a second, `step` apart: (N, COPY_BANDS * COPY_RATE).

    The last frame of a shorter sound is repeated, so that one-shots are compared, too.
    """
    whole = (F.pad(x, (0, max(0, COPY_RATE - x.shape[1])), mode="replicate") for x in bands)
    windows = [x.unfold(1, COPY_RATE, step).transpose(0, 1).flatten(1) for x in whole]
    return torch.cat(windows) if windows else torch.zeros(0, COPY_BANDS * COPY_RATE)


def _nearest(x: Tensor, known: Tensor) -> Tensor:
    """Mean absolute difference from each row of (N, D) to the nearest of (L, D): (N,)."""
    return torch.cat([torch.cdist(part, known, p=1).amin(dim=1) for part in x.split(64)]) / x.shape[1]


def _windows(wavs: Iterable[Tensor], sample_rate: int) -> Tensor:
    """Join wavs (1, N) and cut them into windows of 0.1 s: (M, n); the rest is dropped unless it is all there is."""
    wav, length = torch.cat([wav.flatten() for wav in wavs]), max(1, round(0.1 * sample_rate))
    return F.pad(wav, (0, max(0, length - len(wav))))[: max(1, len(wav) // length) * length].view(-1, length)


def _levels(windows: Tensor) -> Tensor:
    """Level of windows (N, n) in dB relative to a full-scale sine: (N,)."""
    return 10 * (2 * windows.square().mean(dim=1) + 1e-12).log10()


def _most(sequences: Iterable[Tensor], length: float) -> list[Tensor]:
    """Take sequences (C, n) up to a total length."""
    taken: list[Tensor] = []
    for x in sequences:
        if length < 1:
            break
        taken.append(x[:, : math.ceil(length)])
        length -= x.shape[1]
    return taken


def _decoded(run: Run, sequences: Iterable[Tensor]) -> list[Tensor]:
    return [run.frontend.decode(x[None].to(run.frontend.device))[0].cpu() for x in sequences]
