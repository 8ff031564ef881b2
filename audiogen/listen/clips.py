"""Show clips on a page, each with a player, a waveform and a mel spectrogram, all on the same scales."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import numpy as np
import torch

from ..audio.dsp import hz_to_mel
from ..audio.io import audio_info, read_audio
from ..errors import AudioReadError
from .charts import SVG, frame, nice_ticks, tidy
from .html import Html, grid, heading, player, png_uri, slider, text
from .spectrograms import COLUMNS, DECIBELS, SHADES, mel_image, mel_power, outline

#: Share of the common time axis below which a clip is drawn on another one.
SHORT = 0.25


@dataclass(frozen=True)
class Clip:
    """A WAV file and its captions.

    Attributes:
        path: the file, which is embedded unchanged.
        title: its name, also for screen readers.
        kind: a word or two above the title.
        notes: lines below the title.
        prompt_seconds: length of the prompt at its beginning.
        warning: a line below the notes that stands out.
    """

    path: Path
    title: str
    kind: str = ""
    notes: Sequence[str] = ()
    prompt_seconds: float = 0.0
    warning: str = ""


@dataclass(frozen=True)
class Sound:
    """The part of a clip that is drawn, at most as long as the time axis.

    Attributes:
        seconds: duration of the whole file.
        sample_rate: Hz.
        wav: (1, N) at `sample_rate`.
        power: (mels, columns).
    """

    seconds: float
    sample_rate: int
    wav: torch.Tensor
    power: torch.Tensor


@dataclass(frozen=True)
class Scale:
    """Axes shared by all pictures of a page.

    Attributes:
        span: length of the time axis in seconds.
        top: Hz at the top of the spectrograms.
        peak: amplitude at the top of the waveforms.
        loudest: power shown as 0 dB.
    """

    span: float
    top: float
    peak: float
    loudest: float


def clip_cards(clips: Sequence[Clip]) -> list[Html]:
    """Make a card for each clip, in order, all with the same scales of frequency and loudness.

    The common scales make a quiet clip look quiet. The time axis is common too, but for clips that would be slivers on
    it: these share another one. The card of an unreadable file states why it can't be read.
    """
    wavs: dict[int, tuple[torch.Tensor, int]] = {}
    trouble: dict[int, str] = {}
    for index, clip in enumerate(clips):
        try:
            wavs[index] = read_audio(clip.path), audio_info(clip.path).sample_rate
        except AudioReadError as error:
            trouble[index] = str(error)
    spans = dict(zip(wavs, time_spans([wav.shape[-1] / rate for wav, rate in wavs.values()]), strict=True))
    top = max((rate for _, rate in wavs.values()), default=0) / 2
    sounds = {index: _sound(wav, rate, spans[index], top) for index, (wav, rate) in wavs.items()}
    scale = Scale(
        max(spans.values(), default=1.0),
        top,
        _round_up(max((float(s.wav.abs().max()) for s in sounds.values()), default=0.0)),
        max((float(s.power.max()) for s in sounds.values()), default=0.0) or 1.0,
    )
    return [
        _card(clip, sounds[index], replace(scale, span=spans[index]), scale.span)
        if index in sounds
        else _trouble_card(clip, trouble[index])
        for index, clip in enumerate(clips)
    ]


def clip_slider(label: str, stops: Mapping[str, Sequence[Clip]], start: int = 0) -> Html:
    """Make a slider over groups of clips, all with the same scales; see `slider`.

    Args:
        label: what the slider changes.
        stops: name of each position -> its clips.
        start: number of the position at first.
    """
    cards = iter(clip_cards([clip for clips in stops.values() for clip in clips]))
    return slider(label, {name: grid([next(cards) for _ in clips]) for name, clips in stops.items()}, start)


def time_spans(seconds: Sequence[float]) -> list[float]:
    """Return the length of the time axis of clips in seconds.

    The common one is the longest duration, but at most the larger of 10 s and three times the median, so that one very
    long file does not squeeze all others. Clips of less than SHORT of it share one that ends with the longest of them.
    """
    if not seconds:
        return []
    common = min(max(seconds), max(10.0, 3 * statistics.median(seconds)))
    short = max((length for length in seconds if length < SHORT * common), default=common)
    return [short if length < SHORT * common else common for length in seconds]


def legend() -> Html:
    """Explain how to read the pictures, with a colour scale."""
    said = text(
        "All pictures share the same axes, so a quiet clip looks quiet; only short clips have another time axis. Above "
        "is the waveform: amplitude over time, where 1 is full scale. Below is the mel spectrogram: low frequencies at "
        "the bottom, high ones at the top, loud parts bright. Tap a picture to play from there.",
        style="note",
    )
    stops = ",".join(f"rgb({r} {g} {b})" for r, g, b in SHADES[:: len(SHADES) // 8])
    return (
        f'{said}<p class="ramp" role="img" aria-label="Colours: dark is {-DECIBELS:.0f} dB, bright is 0 dB">'
        f'<span>−{DECIBELS:.0f} dB</span><i style="background:linear-gradient(90deg,{stops})"></i>'
        "<span>0 dB: the loudest on this page</span></p>"
    )


def _sound(wav: torch.Tensor, sample_rate: int, span: float, top: float) -> Sound:
    shown = wav[:, : math.ceil(span * sample_rate)]
    columns = max(1, round(COLUMNS * shown.shape[-1] / (span * sample_rate)))
    return Sound(wav.shape[-1] / sample_rate, sample_rate, shown, mel_power(shown, sample_rate, columns, top))


def _round_up(peak: float) -> float:
    return next((p for p in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7) if peak <= p), max(1.0, peak))


def _card(clip: Clip, sound: Sound, scale: Scale, common: float) -> Html:
    notes = list(clip.notes)
    if scale.span < common:
        notes.append(f"A short clip: its time axis ends at {tidy(round(scale.span, 2))} seconds.")
    if sound.seconds > scale.span + 0.01:
        notes.append(f"{sound.seconds:.1f} seconds; the pictures show the first {scale.span:.1f}.")
    x_ticks = [(at / scale.span, tidy(at)) for at in nice_ticks(0, scale.span)]
    wave = (_wave(clip, sound, scale), [(0.5, "0"), (0.9, f"{scale.peak:g}"), (0.1, f"−{scale.peak:g}")], "")
    y_ticks = [(hz_to_mel(hertz) / hz_to_mel(scale.top), tidy(hertz)) for hertz in hertz_ticks(scale.top)]
    mel = (_mel(clip, sound, scale), y_ticks, "Hz")
    return (
        f'<article class="card clip" data-span="{scale.span:.4f}">{_titles(clip, notes)}'
        f"{player(clip.path.read_bytes(), ' '.join(filter(None, [clip.kind, clip.title])))}"
        f"{frame([wave, mel], x_ticks, 'seconds')}</article>"
    )


def _trouble_card(clip: Clip, reason: str) -> Html:
    return f'<article class="card clip">{_titles(clip, clip.notes)}<p class="trouble">{escape(reason)}</p></article>'


def _titles(clip: Clip, notes: Sequence[str]) -> Html:
    kind = f'<p class="kind">{escape(clip.kind)}</p>' if clip.kind else ""
    warning = f'<p class="trouble">{escape(clip.warning)}</p>' if clip.warning else ""
    return kind + heading(clip.title, 3) + text(*notes, style="note") + warning


def _wave(clip: Clip, sound: Sound, scale: Scale) -> Html:
    low, high = outline(sound.wav, sound.power.shape[1])
    width = 1000 * sound.wav.shape[-1] / sound.sample_rate / scale.span
    x = np.linspace(0, width, len(low)).round().astype(int)
    y = [(500 - 400 * side / scale.peak).round().astype(int) for side in (high, low)]
    points = [f"{a} {b}" for a, b in zip([*x, *x[::-1]], [*y[0], *y[1][::-1]], strict=True)]
    alt = (
        f"Waveform of {clip.title}: {sound.seconds:.2f} seconds, largest amplitude "
        f"{float(sound.wav.abs().max()):.2f} of full scale."
    )
    return (
        f'<div class="area wave"><svg {SVG} role="img" aria-label="{escape(alt)}">'
        f'<path class="grid" d="M0 500H1000"/><path class="sound" d="M{"L".join(points)}Z"/></svg>'
        f"{_prompt(clip, scale, 'prompt')}</div>"
    )


def _mel(clip: Clip, sound: Sound, scale: Scale) -> Html:
    width = 100 * sound.wav.shape[-1] / sound.sample_rate / scale.span
    alt = (
        f"Mel spectrogram of {clip.title} in decibels: {sound.wav.shape[-1] / sound.sample_rate:.2f} seconds from "
        f"left to right, 0 to {scale.top:g} Hz from bottom to top."
    )
    return (
        f'<div class="area mel"><img src="{png_uri(mel_image(sound.power, scale.loudest))}" alt="{escape(alt)}" '
        f'style="width:{width:.2f}%">{_prompt(clip, scale)}</div>'
    )


def _prompt(clip: Clip, scale: Scale, name: str = "") -> Html:
    if not clip.prompt_seconds:
        return ""
    width = min(100.0, 100 * clip.prompt_seconds / scale.span)
    return f'<span class="prompt" style="width:{width:.2f}%">{f"<b>{name}</b>" if name else ""}</span>'


def hertz_ticks(top: float) -> list[float]:
    """Return round frequencies at least a tenth of the axis apart, from the top down."""
    ticks: list[float] = []
    for hertz in (16000, 8000, 4000, 2000, 1000, 500, 200):
        place = hz_to_mel(hertz) / hz_to_mel(top)
        if place <= 0.9 and (not ticks or hz_to_mel(ticks[-1]) / hz_to_mel(top) - place >= 0.1):
            ticks.append(hertz)
    return ticks
