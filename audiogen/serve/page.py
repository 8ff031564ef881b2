"""The page: controls of what the run has learned, players that start before a sound is complete, and a history."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes import Default

from ..errors import AudiogenError
from .service import Asked, Service, Sound

#: Choices of a label besides its values: like a random file of the training, and "not given".
USUAL, NOT_GIVEN = "as in the recordings", "not given"
#: Maximum number of sounds in the history of a visitor.
MOST_HISTORY = 50
CSS = """
.gradio-container {max-width: 1100px !important; margin: auto}
.sound {display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 0.2rem 0.8rem; align-items: center;
  padding: 0.6rem 0; border-bottom: 1px solid var(--border-color-primary)}
.sound audio {width: 100%; min-width: 0; height: 40px; grid-column: 1 / 3}
.sound span {overflow-wrap: anywhere; font-size: 0.9rem}
.sound a {font-size: 0.9rem; text-decoration: underline}
"""
FILE_LABELS = {
    "prompt": "Continue this recording",
    "meaning": "Say this, in the voice of the recording above",
    "melody": "Follow this melody",
    "loudness": "Follow this loudness",
    "timbre": "Sound like this recording",
    "like": "Vary this recording",
}


def make_page(service: Service) -> gr.Blocks:
    """Return the page."""
    about = service.describe()
    limits, title = service.limits, f"audiogen: {about['name']}"
    font = ["system-ui", "sans-serif"]  # others would be fetched from the web
    theme = Default(font=font, font_mono=["ui-monospace", "monospace"])
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(60, 600)) as page:
        page.theme = theme
        history = gr.State([])
        gr.Markdown(f"# {_plain(about['name'])}")
        with gr.Row():
            with gr.Column(min_width=320):
                controls = _label_controls(about["labels"])
                with gr.Row():
                    complete = about["complete_sounds"]
                    seconds = gr.Slider(
                        0 if complete else 0.5,
                        limits.seconds,
                        value=0 if complete else min(4.0, limits.seconds),
                        step=0.5,
                        label="Seconds",
                        info="0 for a complete sound" if complete else None,
                        min_width=140,
                    )
                    num = gr.Slider(1, limits.num, value=1, step=1, label="Sounds", min_width=140)
                with gr.Row():
                    seed = gr.Textbox(label="Seed", info="empty for a new one", max_length=16, min_width=140)
                    own = about["sampling"]["temperature"]
                    temperature = gr.Slider(
                        0, 2, value=own, step=0.05, label="Temperature", info=f"the run's own is {own:g}", min_width=140
                    )
                guidance = gr.Slider(
                    0,
                    10,
                    value=about["guidance"] if about["guidance"] is not None else 1,
                    step=0.5,
                    label="Guidance",
                    info="1 is as learned; more follows what is asked for more strongly",
                    visible=about["guidance"] is not None,
                )
                best_of = gr.Slider(
                    1,
                    max(2, about["best_of"]),
                    value=1,
                    step=1,
                    label="Best of",
                    info="draws of each sound, of which the clearest is kept; it then plays when all are drawn",
                    visible=about["best_of"] > 1,
                )
                whole = {"value": 0, "label": "Seconds of its end", "info": "0 for all"}
                prompt_seconds = gr.Slider(0, limits.upload_seconds, step=0.5, render=False, **whole)
                only_new = gr.Checkbox(label="Leave it out of the new sound", render=False)
                files = {}
                for name in about["files"]:
                    with gr.Accordion(FILE_LABELS[name], open=False):
                        files[name] = gr.Audio(
                            sources=["upload", "microphone"],
                            type="filepath",
                            label=f"{FILE_LABELS[name]} (up to {limits.upload_seconds:g} s)",
                            buttons=[],
                        )
                        if name == "prompt":
                            prompt_seconds.render()
                            only_new.render()
                generate = gr.Button("Generate", variant="primary")
            with gr.Column(min_width=320):
                players = gr.HTML("<p>Sounds play while they are generated.</p>", label="Sounds")
                with gr.Accordion("Like this, otherwise", open=False):
                    earlier = gr.Dropdown([], label="Take the settings and the seed of", interactive=True)
                    gr.Markdown("Then change a label, or the guidance, and generate again.")
                    take = gr.Button("Take them")
        settings = [seconds, num, seed, temperature, guidance, best_of, prompt_seconds, only_new]
        labels, uploads = list(controls), list(files)

        def on_generate(ids: list[str], *values: Any) -> tuple[list[str], str, Any]:
            given = dict(zip(labels, values, strict=False))
            rest = values[len(labels) :]
            length, count, seed_text, heat, scale, draws, end, without, *paths = rest
            found = {n: Path(path) for n, path in zip(uploads, paths, strict=True) if path}
            continued = "prompt" in found
            asked = Asked(
                seconds=float(length) or None,
                num=int(count),
                seed=_seed(seed_text),
                labels={n: None if v == NOT_GIVEN else str(v) for n, v in given.items() if v not in (USUAL, None, "")},
                guidance=float(scale) if about["guidance"] is not None else None,
                temperature=float(heat),
                best_of=int(draws),
                prompt_seconds=(float(end) or None) if continued else None,
                only_new=bool(without) and continued,
            )
            try:
                sounds = service.submit(asked, found)
            except AudiogenError as error:
                raise gr.Error(_plain(str(error)), duration=None, print_exception=False) from None
            ids = [*(sound.id for sound in reversed(sounds)), *ids][:MOST_HISTORY]
            return ids, _players(service, ids, len(sounds)), gr.Dropdown(choices=_choices(service, ids))

        def on_take(id: str | None) -> list[Any]:
            sound = service.find(id or "")
            if sound is None:
                raise gr.Error("choose one of your sounds first", print_exception=False)
            asked = sound.asked
            found = [_control_value(about["labels"][name], sound.words.get(name)) for name in labels]
            heat = own if asked.temperature is None else asked.temperature
            kept = [asked.guidance or 0, asked.best_of, asked.prompt_seconds or 0, asked.only_new]
            return [*found, asked.seconds, 1, str(asked.seed), heat, *kept]

        generate.click(
            on_generate,
            [history, *controls.values(), *settings, *files.values()],
            [history, players, earlier],
            api_visibility="private",
        )
        take.click(on_take, [earlier], [*controls.values(), *settings], api_visibility="private")
    page.queue(max_size=32, default_concurrency_limit=2)
    return page


def _label_controls(labels: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    controls: dict[str, Any] = {}
    for name, part in labels.items():
        if part["kind"] == "label":
            choices = [USUAL, *part["values"], NOT_GIVEN]
            controls[name] = gr.Dropdown(choices, value=USUAL, label=name)
        elif part["kind"] == "number":
            placeholder = f"{part['low']:g} to {part['high']:g}; empty: {USUAL}"
            controls[name] = gr.Textbox(label=name, placeholder=placeholder, max_length=32)
        else:
            controls[name] = gr.Textbox(label=name, placeholder=f"empty: {USUAL}", lines=2, max_length=2000)
    return controls


def _control_value(part: Mapping[str, Any], word: str | None) -> str:
    return (NOT_GIVEN if part["kind"] == "label" else "") if word is None else word


def _seed(text: str | None) -> int | None:
    text = (text or "").strip()
    if text and not text.isascii() or text and not text.isdigit():
        raise gr.Error("the seed must be a whole number, or empty for a new one", print_exception=False)
    return int(text) if text else None


def _choices(service: Service, ids: Sequence[str]) -> list[tuple[str, str]]:
    return [(_said(sound), sound.id) for sound in map(service.find, ids) if sound is not None]


def _said(sound: Sound) -> str:
    words = [f"{name} {value}" for name, value in sound.words.items()] + [f"with a {name}" for name in sound.files]
    return ", ".join([*words, f"seed {sound.asked.seed}"])


def _players(service: Service, ids: Sequence[str], new: int) -> str:
    """Return the players, the newest first; the first of the new ones plays at once."""
    rows = []
    for i, id in enumerate(ids):
        sound = service.find(id)
        if sound is None:
            continue
        url = f"api/sounds/{id}.wav"
        loads = " autoplay" if i == new - 1 else "" if i < new else ' preload="none"'
        rows.append(
            f'<div class="sound"><span>{html.escape(_said(sound))}</span>'
            f'<a href="{url}" download="sound-{sound.asked.seed}.wav">download</a>'
            f'<audio controls src="{url}"{loads}></audio></div>'
        )
    return "".join(rows)


def _plain(text: str) -> str:
    """Escape what Markdown and HTML would read as more than text."""
    return "".join(f"&#{ord(c)};" if c in "<>&*_`[]()#!\\|~" else c for c in text)
